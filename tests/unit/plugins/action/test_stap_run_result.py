# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that are started on several hosts and collected later.

Each host is a directory of this machine: the modules' own sources run with its paths in place of the real ones, and
start a real supervisor, with a script in the place of staprun.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import re
import subprocess
import time
import typing as t
import zlib

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader
from ansible_collections.tapvirt.host.plugins.action import stap_run, stap_run_result
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import progress
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace import run_action as run_base
from ansible_collections.tapvirt.host.tests.unit.support.actions import run_action

Result = dict[str, t.Any]
NAME = "tapvirt_x_12345678"
RUN_ID = NAME + "-0123456789abcdef"
DATA = b"\x7fELF of a module"
SHA256 = hashlib.sha256(DATA).hexdigest()
# What is not a record counts as output only. It takes as long to load as LOAD says.
STAPRUN = """#!/bin/sh
[ "$1" = -d ] && exec rmdir {modules}/{name}
sleep {load}
mkdir {modules}/{name}
trap 'rmdir {modules}/{name}; exit 0' INT
echo '{{"kind":"count","key":"a"}}'
while :; do sleep 0.1; done
"""


class TraceHost:
    """A host below a directory, whose clock is ahead by some seconds."""

    def __init__(self, root: pathlib.Path, skew: float = 0, load: float = 0.2) -> None:
        self.root, self.skew = root, skew
        self.commands = 0
        self.delay_seconds = 0.0
        self.date: str | None = None
        self.has_nanoseconds = True
        bin_directory, modules = root / "bin", root / "proc"
        for path in (bin_directory, modules):
            path.mkdir(parents=True)
        (root / "sysctl").write_text("2\n", encoding="ascii")
        staprun = bin_directory / "staprun"
        staprun.write_text(STAPRUN.format(modules=modules, name=NAME, load=load), encoding="ascii")
        staprun.chmod(0o755)
        self.module = root / "cache" / SHA256 / f"{NAME}.ko"
        self.module.parent.mkdir(parents=True)
        self.module.write_bytes(DATA)

    def _own(self, text: bytes) -> bytes:
        """Return a program or a command with the paths of this host, and without what only root can do."""
        for real, own in {
            "/run/systemd": f"{self.root}/no_systemd",
            "/run/tapvirt": f"{self.root}/run",
            "/var/cache/tapvirt/modules": f"{self.root}/cache",
            "/proc/systemtap": f"{self.root}/proc",
            "/proc/sys/debug/kprobes-optimization": f"{self.root}/no_such_sysctl",
            "/proc/sys/kernel/kptr_restrict": f"{self.root}/sysctl",
            "os.geteuid() != 0": "False",
            'not root.exists("proc/modules")': "False",
            "mount = debugfs_mount()": 'mount = "/sys/kernel/debug"',
            "time.time()": f"(time.time() + {self.skew})",
        }.items():
            text = text.replace(real.encode(), own.encode())
        return text

    def execute(self, command: str, in_data: bytes | None) -> str:
        self.commands += 1
        if "date +%s" in command:
            now = time.time() + self.skew
            if self.date is not None:
                return self.date
            rest = f"{now % 1:.9f}"[1:] if self.has_nanoseconds else ".%N"
            return f"{int(now)}{rest if '%N' in command else ''}\n"
        time.sleep(self.delay_seconds)
        done = subprocess.run(
            ["/bin/sh", "-c", self._own(command.encode())],
            input=self._own(in_data or b""),
            stdout=subprocess.PIPE,
            check=False,
            timeout=120,
            env={**os.environ, "PATH": f"{self.root}/bin:{os.environ['PATH']}"},
        )
        return done.stdout.decode()

    def start(self, check_mode: bool = False, **options: t.Any) -> Result:
        build = {"name": NAME, "sha256": SHA256, "kernel": os.uname().release, "globals": {}, "probes": []}
        args = {"module": build, "duration_seconds": 1, **options}
        return run_action(stap_run.ActionModule, args, self.execute, check_mode=check_mode)

    def collect(self, run_id: str, check_mode: bool = False, **options: t.Any) -> Result:
        args = {"run_id": run_id, **options}
        return run_action(stap_run_result.ActionModule, args, self.execute, check_mode=check_mode)

    def left(self) -> list[str]:
        """Return what is left of runs on the host, in its memory and its cache."""
        found = [*(self.root / "run").rglob("*"), *(self.root / "proc").iterdir()]
        return sorted(path.name for path in found)


@pytest.fixture
def host(tmp_path: pathlib.Path) -> TraceHost:
    return TraceHost(tmp_path / "h")


def test_hosts_are_armed_at_the_same_moment(tmp_path: pathlib.Path) -> None:
    """Also hosts whose clocks are wrong, and whose loading takes a different time once it was measured."""
    hosts = [
        TraceHost(tmp_path / "h1"),
        TraceHost(tmp_path / "h2", skew=500),
        TraceHost(tmp_path / "h3", skew=-500, load=1),
    ]
    cached = hosts[2].module.parent / "load.json"
    cached.write_text('{"seconds": [1.2]}', encoding="ascii")
    # Ansible's loader of plugins does not load one in several threads at once.
    connection_loader.get("local", PlayContext(), "/dev/null")
    start_at = time.time() + 8
    with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
        begun = list(pool.map(lambda host: host.start(wait=False, start_at=start_at), hosts))
        assert time.time() < start_at, "the handles come before the run"
        assert all(result["run"]["phase"] == "started" for result in begun), begun
        ended = list(pool.map(lambda host, result: host.collect(result["run"]["run_id"]), hosts, begun))
    armed = []
    for host, handle, result in zip(hosts, begun, ended, strict=True):
        run, times = result["run"], result["run"]["times"]
        assert (run["outcome"], run["finished"], run["record_count"]) == ("ok", True, 1), result
        assert run["run_id"] == handle["run"]["run_id"] and run["clock"] == handle["run"]["clock"]
        clock = run["clock"]
        assert abs(clock["skew_seconds"] - host.skew) <= clock["uncertainty_seconds"] + 0.001
        assert clock["uncertainty_seconds"] < 5
        assert handle["run"]["times"]["armed"] is None
        assert abs(handle["run"]["times"]["end"] - host.skew - (start_at + 1)) < 0.2
        assert times["accepted"] < times["start"] < times["armed"] < times["end"]
        armed.append(times["armed"] - host.skew)
    # The lab measures it. A busy machine runs the supervisors late, never early, but for the time that loading saves.
    assert all(-1 < moment - start_at < 20 for moment in armed), armed
    assert 0.9 < json.loads(cached.read_text(encoding="ascii"))["seconds"][1] < 5


def test_a_result_is_the_same_until_it_is_removed(host: TraceHost, tmp_path: pathlib.Path) -> None:
    begun = host.start(wait=False)["run"]
    first = host.collect(begun["run_id"], output=str(tmp_path / "out"))
    assert (tmp_path / "out" / f"h.{NAME}.txt").read_text() == '{"kind":"count","key":"a"}\n'
    second = host.collect(begun["run_id"], wait=False, remove=True, accept=["skipped"])
    assert second["failed"] is True and "The run ended as ok" in second["msg"]
    assert first["run"].pop("output")["truncated"] is False
    assert first["run"] == second["run"] and first["changed"] is False
    assert host.left() == []
    gone = host.collect(begun["run_id"])
    assert (gone["failed"], gone["error"]["option"]) == (True, "run_id")
    assert gone["msg"].startswith(
        f"Invalid value '{begun['run_id']}' for run_id: This host keeps no run of this name. "
    )


def test_a_run_under_way_has_its_progress_and_its_lock(host: TraceHost) -> None:
    before = host.commands
    begun = host.start(wait=False, start_at=time.time() + 90)["run"]
    assert host.commands - before == 2
    # The supervisor may not have begun yet.
    early = host.collect(begun["run_id"], wait=False)["run"]
    assert (early["phase"], early["finished"], "outcome" in early) == ("started", False, False)
    assert early["progress"]["state"] == "waiting" and 5 < early["progress"]["of_seconds"] <= 90
    assert early["times"]["armed"] is None and early["times"]["start"] == begun["times"]["start"]
    assert "left_seconds" not in early
    assert set(early) == {*begun, "progress"}
    end = time.monotonic() + 60
    while not list(host.root.rglob("state.json")) and time.monotonic() < end:
        time.sleep(0.1)
    refused = host.start(wait=False)
    short = begun["run_id"].rpartition("-")[2]
    assert f"the module {NAME} is in use by the run {short} (process " in refused["msg"]
    (supervisor,) = [json.loads(path.read_text())["pid"] for path in host.root.rglob("state.json")]
    os.kill(supervisor, 15)
    ended = host.collect(begun["run_id"], remove=True)
    assert "its supervisor was told to stop" in ended["msg"] and ended["run"]["times"]["armed"] is None
    assert host.left() == [] and (host.root / "sysctl").read_text() == "2\n"


def test_waiting_is_starting_and_collecting(host: TraceHost) -> None:
    waited = host.start()["run"]
    assert host.left() == []
    begun = host.start(wait=False)["run"]
    collected = host.collect(begun["run_id"])["run"]
    assert set(waited) == set(collected) and waited["run_id"] != collected["run_id"]
    assert waited["finished"] is True and waited["times"]["armed"] < waited["times"]["end"]


def test_check_mode_leaves_a_result_as_it_is(host: TraceHost, tmp_path: pathlib.Path) -> None:
    run_id = host.start(wait=False)["run"]["run_id"]
    host.collect(run_id)
    (directory,) = (host.root / "run" / "stap").iterdir()
    for name in ("collected", "seen"):
        (directory / name).unlink()
    options = {"output": str(tmp_path / "out"), "remove": True}
    assert host.collect(run_id, check_mode=True, **options)["run"]["outcome"] == "ok"
    assert not {"collected", "seen"} & set(os.listdir(directory)) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("run_id", ["", "../../etc", NAME, "x-0/../../y-0", RUN_ID])
def test_an_unknown_run_is_one_sentence_and_a_hint(host: TraceHost, run_id: str) -> None:
    result = host.collect(run_id)
    assert result["failed"] is True and result["error"]["option"] == "run_id"
    assert result["error"]["problem"] == "This host keeps no run of this name."
    assert result["error"]["hint"].startswith("A result is kept for 24 hours, for one hour after it was collected")
    assert host.commands == (run_id == RUN_ID)


@pytest.mark.parametrize(
    ("start_at", "problem"),
    [
        (-2000, "The start was 2000 seconds ago, and at most 900 are possible."),
        (2000, "The start is 2000 seconds ahead, and at most 900 are possible."),
        (float("nan"), "The start is not a number of seconds since 1970."),
        (float("inf"), "The start is not a number of seconds since 1970."),
    ],
)
@pytest.mark.parametrize("check_mode", [False, True])
def test_a_start_that_cannot_be_is_refused(host: TraceHost, start_at: float, problem: str, check_mode: bool) -> None:
    result = host.start(check_mode, start_at=time.time() + start_at)
    assert (result["failed"], result["error"]["option"]) == (True, "start_at")
    assert result["error"]["problem"][:16] == problem[:16] and host.commands == 0


def test_a_host_that_is_reached_too_late_starts_at_once(host: TraceHost) -> None:
    """The host compares the start by its own clock, corrected by the skew that the controller measured."""
    host.delay_seconds = 1
    host.skew = -300
    start_at = time.time() + 0.5
    begun = host.start(wait=False, start_at=start_at)["run"]
    assert begun["times"]["start"] == begun["times"]["accepted"] > start_at + host.skew
    ended = host.collect(begun["run_id"], remove=True)["run"]
    assert ended["outcome"] == "ok" and 0 < ended["times"]["armed"] - begun["times"]["start"] < 10
    assert host.left() == []


def test_more_output_than_a_host_keeps_is_refused(host: TraceHost) -> None:
    result = host.start(wait=False, max_output_bytes=(64 << 20) + 1)
    assert (result["failed"], result["error"]["option"]) == (True, "max_output_bytes")


class HostClock:
    """A clock that a sleep moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_dead_host_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HostClock()
    monkeypatch.setattr(run_base, "time", clock)

    def execute(_command: str, _in_data: bytes | None) -> str:
        clock.now += 5
        raise AnsibleConnectionFailure("no route to host")

    for options in ({"wait": True}, {"wait": False}):
        begun = clock.now
        with pytest.raises(AnsibleConnectionFailure):
            run_action(stap_run_result.ActionModule, {"run_id": RUN_ID, **options}, execute)
        assert 20 <= clock.now - begun <= 30


@pytest.mark.parametrize("left", [1e18, -5, "x", None, float("nan")])
def test_a_run_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch, left: t.Any) -> None:
    clock = HostClock()
    monkeypatch.setattr(run_base, "time", clock)

    def execute(_command: str, in_data: bytes | None) -> str:
        if in_data is None:
            return "{}"
        clock.now += 40
        run = {"phase": "started", "left_seconds": left, "progress": {"state": "running", "elapsed_seconds": clock.now}}
        return json.dumps({"changed": False, "run": run}).replace("NaN", "null")

    result = run_action(stap_run_result.ActionModule, {"run_id": RUN_ID}, execute)
    assert "when it must have ended long ago" in result["msg"]
    assert clock.now < 4000


@pytest.mark.parametrize("printed", ["", "x", "1" * 400 + ".000000000", "1764.N", "-5.000000000"])
def test_a_host_without_a_readable_clock_cannot_start_at_a_moment(host: TraceHost, printed: str) -> None:
    host.date = printed
    result = host.start(start_at=time.time() + 5)
    assert result["error"]["option"] == "start_at" and "does not print its time" in result["msg"]


def test_a_host_that_tells_whole_seconds_starts_at_a_moment_with_a_warning(host: TraceHost) -> None:
    """Busybox may be built without nanoseconds: the second may be over soon, or have just begun."""
    host.has_nanoseconds, host.skew = False, 500
    result = host.start(wait=False, start_at=time.time() + 2)
    clock = result["run"]["clock"]
    assert abs(clock["skew_seconds"] - 500) <= clock["uncertainty_seconds"] + 0.001
    assert 0.5 <= clock["uncertainty_seconds"] < 5
    (warning,) = result["warnings"]
    assert warning.startswith("The clock of this host is known to ") and "date prints whole seconds" in warning
    assert "warnings" not in host.collect(result["run"]["run_id"], remove=True)
    exact = TraceHost(host.root / "exact").start(start_at=time.time() + 1)
    assert "warnings" not in exact and exact["run"]["clock"]["uncertainty_seconds"] < 0.5


def test_a_start_that_arrives_when_nobody_waits_starts_nothing(
    host: TraceHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a slow line, the question may arrive after the controller has given the host up."""
    asked: list[tuple[str, bytes]] = []
    execute = host.execute

    def lose(command: str, in_data: bytes | None) -> str:
        if in_data is None:
            return execute(command, in_data)
        asked.append((command, in_data))
        raise AnsibleConnectionFailure("the line is slow")

    monkeypatch.setattr(host, "execute", lose)
    monkeypatch.setattr(stap_run, "WAVE_PERSIST_SECONDS", 0)
    monkeypatch.setattr(run_base, "RETRY_SECONDS", 0.1)
    with pytest.raises(AnsibleConnectionFailure) as caught:
        host.start(wait=False)
    words = rf"\(the line is slow\).* stap_run_result and the run_id ({NAME}-[0-9a-f]{{16}})\. A later run on the host"
    found = re.search(words.replace(" stap", " tapvirt.host.stap"), str(caught.value))
    assert found, str(caught.value)
    host.skew += 1000
    late = json.loads(execute(*asked[0]).splitlines()[-1])
    assert "seconds after the controller had given this host up" in late["msg"] and host.left() == []
    host.skew -= 1000
    # In time it is the run that the message names.
    assert json.loads(execute(*asked[-1]).splitlines()[-1])["run"]["phase"] == "started"
    monkeypatch.setattr(host, "execute", execute)
    assert host.collect(found.group(1), remove=True)["run"]["outcome"] == "ok"
    assert host.left() == []


def test_a_result_whose_answer_was_lost_counts_as_nobodys(host: TraceHost, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = host.start(wait=False)["run"]["run_id"]
    execute = host.execute

    def lose(command: str, in_data: bytes | None) -> str:
        execute(command, in_data)
        raise AnsibleConnectionFailure("the line is cut")

    collected = host.root / "run" / "stap" / run_id / "collected"
    monkeypatch.setattr(stap_run_result, "WAVE_PERSIST_SECONDS", 0)
    monkeypatch.setattr(run_base, "RETRY_SECONDS", 0.1)
    time.sleep(3)
    with monkeypatch.context() as patch, pytest.raises(AnsibleConnectionFailure):
        patch.setattr(host, "execute", lose)
        host.collect(run_id, wait=False)
    assert not collected.exists()
    assert host.collect(run_id)["run"]["outcome"] == "ok" and collected.exists()


def test_every_question_has_a_time_limit_and_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Also the rest of the output and the removal; other hosts of a wave do not wait long for these."""
    clock = HostClock()
    monkeypatch.setattr(run_base, "time", clock)
    limits: list[float] = []

    @contextlib.contextmanager
    def at_most(seconds: float, _task_timeout: int) -> t.Iterator[None]:
        limits.append(seconds)
        yield
        limits.append(0)

    monkeypatch.setattr(progress, "at_most", at_most)
    failures = [AnsibleConnectionFailure("cut")]
    printed = b"ab"

    def execute(_command: str, in_data: bytes | None) -> str:
        assert 0 < limits[-1] <= 60, "no time limit"
        if in_data is None:
            clock.now += 15
            raise AnsibleConnectionFailure("gone")
        second = rb'"offset": 1' in in_data
        if second and failures:
            raise failures.pop()
        data = base64.b64encode(zlib.compress(printed[1:] if second else printed[:1])).decode()
        output = {"bytes": 2, "sha256": hashlib.sha256(printed).hexdigest(), "data": data}
        run = {"outcome": "ok", "bytes": 2, "sha256": output["sha256"], "output": output}
        return json.dumps({"changed": False, "run": run})

    begun = clock.now
    args = {"run_id": RUN_ID, "output": str(tmp_path / "out"), "remove": True}
    result = run_action(stap_run_result.ActionModule, args, execute)
    assert result["run"]["outcome"] == "ok" and failures == []
    assert (tmp_path / "out" / f"h.{NAME}.txt").read_bytes() == printed
    assert clock.now - begun < 60
