# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults while a host is traced: processes killed, connections cut, disks full. The host is clean in time, and the
outcome is reported.

Each trial has a fault at a random moment of a run. Trials come in pairs: in the first, the controller is killed too, so
that the next run on the host, the second of the pair, reports the first. The seed is printed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shlex
import signal
import socket
import threading
import time
import typing as t

import pytest
import yaml

HOSTS = ("trace1", "trace2", "trace4")
# Pairs of faults; in the first trial of a pair the controller is killed too. ``guard`` is the supervisor on a host
# without systemd. A short run has one pair for each host.
PAIRS = [("controller", "cut"), ("stapio", "stapio"), ("supervisor", "supervisor")]
if os.environ.get("TAPVIRT_SOAK"):
    PAIRS = [("controller", "cut")] * 20
    PAIRS += [(kind, kind) for kind in ("stapio", "supervisor", "guard", "disk") for _pair in range(10)]
KINDS = sorted({kind for pair in PAIRS for kind in pair})
pytestmark = pytest.mark.timeout(3600)  # all trials are made for the first test
SEED = int(os.environ.get("TAPVIRT_SEED", random.randrange(10_000)))
DURATION = 5
# A run is seen, and reached again, a little after it has begun.
LAST_MOMENT = 3
LATEST_SECONDS = 45
# Longer than the controller waits for any answer.
SILENT_SECONDS = 45
BASE = "/run/tapvirt/stap"
SCRIPT = """
#: record tick number:integer
global number
probe timer.ms(50) { printf("{\\"kind\\":\\"tick\\",\\"number\\":%d}%400s\\n", number++, "") }
probe kprobe.function("vfs_read") { next }
"""
# The state of a host that a run must not change.
STATE = "sysctl kernel.kptr_restrict debug.kprobes-optimization; grep -c debugfs /proc/self/mounts"
LEFT = (
    "ls /proc/systemtap 2>/dev/null | grep {name}; pgrep -f '[s]tap(run|io).*{name}';"
    " pgrep -f '[t]apvirt/stap/{name}'; systemctl list-units --all --no-legend --plain 'tapvirt-stap-{name}*'; true"
)
# A Python for the host that sees no systemd, as on hosts without it.
WITHOUT_SYSTEMD = """#!/bin/sh
exec unshare -m sh -c 'mount -t tmpfs none /run/systemd && exec python3 "$@"' sh "$@"
"""


@dataclasses.dataclass
class Trial:
    """One run with a fault: the random parameters, and the results."""

    kind: str
    number: int
    alone: bool
    """Whether the controller is killed as well, a moment before."""
    moment: float
    """When the fault happens, in seconds after the directory of the run exists."""
    seconds: float
    """How long the connection is cut, or the disk full."""
    clean_seconds: float | None = None
    left: str = ""
    before: str = ""
    after: str = ""
    run: dict[str, t.Any] | None = None
    found: list[dict[str, t.Any]] | None = None
    """What the next run found."""
    screen: str = ""

    def result(self) -> dict[str, t.Any]:
        """Return the result of the run, from its own task or from the next run."""
        rows = self.found if self.alone else [self.run]
        assert rows and len(rows) == 1 and rows[0], self
        return rows[0]

    def row(self) -> list[t.Any]:
        """Return the trial in short."""
        rows = (self.found if self.alone else [self.run]) or [None]
        outcomes = [
            f"{row['outcome']}, {row.get('bytes')} bytes, {row.get('record_count')} records" for row in rows if row
        ]
        return [f"at {self.moment:.1f} s", outcomes, f"clean after {self.clean_seconds or -1:.1f} s"]


def hang_up(ends: t.Iterable[socket.socket]) -> None:
    """Shut connections down."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Forwarder:
    """A port that leads to a host, and can go silent or be cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._open = threading.Event()
        self._open.set()
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._ended:
            try:
                near, _peer = self._listener.accept()
            except OSError:
                return
            if not self._open.is_set():
                near.close()
                continue
            pair = (near, socket.create_connection(("127.0.0.1", self._target)))
            self._pairs.append(pair)
            for source, sink in (pair, pair[::-1]):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                sink.sendall(data)
        hang_up((source, sink))

    def cut(self, seconds: float, silently: bool) -> None:
        """Forward nothing for some seconds; connections are closed at once, or afterwards with ``silently``."""
        self._open.clear()
        if not silently:
            self._drop()
        time.sleep(seconds)
        self._drop()
        self._open.set()

    def _drop(self) -> None:
        while self._pairs:
            hang_up(self._pairs.pop())

    def close(self) -> None:
        self._ended = True
        self._open.set()
        self._drop()
        self._listener.close()


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


class Host:
    """A host and the trials on it, one after the other."""

    def __init__(self, lab: t.Any, host: str, module: dict[str, t.Any]) -> None:
        self.lab = lab
        self.host = host
        self.module = module
        self.name = module["name"]
        self.variables = lab.variables(host)
        self.chance = random.Random(f"{SEED} {host}")

    def shell(self, text: str) -> str:
        """Return the output of a shell command on the host, whatever its exit status."""
        return t.cast("str", self.lab.shell(self.host, text, check=False))

    def begin(self, duration: float, **variables: t.Any) -> t.Any:
        """Start a playbook that runs the module."""
        args = {"module": self.module, "duration_seconds": duration, "record_limit": 5}
        tasks = [{"name": "Run", "tapvirt.host.stap_run": args, "ignore_errors": True}]
        play = [{"hosts": self.host, "gather_facts": False, "tasks": tasks}]
        return self.lab.begin(yaml.safe_dump(play), "-e", json.dumps(variables))

    def directories(self) -> list[str]:
        """Return the directories of runs that have begun, ended or not."""
        return [os.path.dirname(path) for path in self.shell(f"ls -d {BASE}/{self.name}-*/state.json").split()]

    def directory(self, play: t.Any, earlier: list[str]) -> str:
        """Wait until a run has begun; return its directory."""
        end = time.monotonic() + 120
        while time.monotonic() < end and play.process.poll() is None:
            found = [path for path in self.directories() if path not in earlier]
            if found:
                return found[0]
            time.sleep(0.2)
        raise AssertionError(f"no run began on {self.host}: {play.end(1).stdout}")

    def trial(self, kind: str, number: int, alone: bool) -> Trial:
        seconds = SILENT_SECONDS if kind == "cut" and number == 3 else self.chance.uniform(1, 4)
        trial = Trial(kind, number, alone, self.chance.uniform(0, LAST_MOMENT), seconds)
        trial.before = self.shell(STATE)
        variables: dict[str, t.Any] = {}
        forwarder = Forwarder(self.variables["ansible_port"]) if kind == "cut" else None
        if forwarder:
            known = "[127.0.0.1]:{ansible_port}".format(**self.variables)
            common = f"{self.variables['ansible_ssh_common_args']} -o HostKeyAlias={known}"
            variables = {"ansible_port": forwarder.port, "ansible_ssh_common_args": common}
        if kind == "guard":
            variables = {"ansible_python_interpreter": "/run/python"}
        earlier = self.directories()
        play = self.begin(DURATION, **variables)
        try:
            self._happen(trial, play, forwarder, earlier)
        finally:
            if forwarder:
                forwarder.close()
        return trial

    def _happen(self, trial: Trial, play: t.Any, forwarder: Forwarder | None, earlier: list[str]) -> None:
        directory = self.directory(play, earlier)
        started = time.monotonic()
        time.sleep(trial.moment)
        if trial.alone:
            for pid in descendants(play.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            play.process.wait()
        if forwarder:
            forwarder.cut(trial.seconds, silently=trial.number % 2 == 1)
        elif trial.kind != "controller":
            self.shell(self._fault(trial, directory))
        # Loading may take long here; the deadline of the run is counted from its beginning.
        end = started + DURATION + LATEST_SECONDS
        while trial.clean_seconds is None and time.monotonic() < end:
            trial.left = self.shell(LEFT.format(name=self.name))
            trial.after = self.shell(STATE)
            if not trial.left and trial.after == trial.before:
                trial.clean_seconds = time.monotonic() - started
        if not trial.alone:
            done = play.end(300)
            trial.screen = done.stdout
            trial.run = next((row["result"].get("run") for row in done.results), None)
        # The next run does not report a run that was requested a moment ago: make the files of this run older.
        self.shell(f"touch -d '-1 min' {BASE}/*/seen {BASE}/*/request.json 2>/dev/null; true")

    def _fault(self, trial: Trial, directory: str) -> str:
        pid = f"$(sed 's/.*\"pid\": \\([0-9]*\\).*/\\1/' {directory}/state.json)"
        if trial.kind == "stapio":
            return f"pkill -KILL -f '[s]tapio.*{self.name}'"
        if trial.kind == "supervisor":
            return f"kill -KILL {pid}"
        if trial.kind == "guard":
            return f"kill -KILL {pid} $([ {trial.number} -ge 1 -a {trial.alone:d} = 0 ] && ps -o ppid= {pid})"
        fill = shlex.quote(f"{BASE}/fill")
        return f"cat /dev/zero > {fill} 2>/dev/null; sleep {trial.seconds:.1f}; rm {fill}"

    def pair(self, kinds: tuple[str, str], number: int) -> list[Trial]:
        """Do the two trials of a pair; the second reports the run of the first."""
        first, second = kinds
        if first == "guard":
            self.lab.write(self.host, "/run/python", WITHOUT_SYSTEMD, "755")
        if first == "disk":
            self.shell(f"mkdir -p {BASE} && mount -t tmpfs -o size=2m none {BASE}")
        try:
            trials = [self.trial(first, number, True), self.trial(second, number, False)]
        finally:
            self.shell(f"umount {BASE} 2>/dev/null; rmdir {BASE} /run/tapvirt; rm -f /run/python")
        trials[0].found = (trials[1].run or {}).get("previous_leftovers")
        trials[1].left += self.shell("ls -d /run/tapvirt 2>/dev/null")
        print(f"{self.host} {first} {number}, {second}:", *(row.row() for row in trials), flush=True)
        return trials


@pytest.fixture(scope="module")
def builds(lab, tmp_path_factory):
    """The build of the script for each host: host -> script -> result of the task."""
    script = tmp_path_factory.mktemp("killed") / "killed.stp"
    script.write_text(SCRIPT, encoding="utf-8")
    # An emulated processor may stop in the middle of a probe, and the time counts as time of the probe.
    return lab.build(":".join(HOSTS), {"killed": script}, module={"cpu_ceiling_percent": 50})


@pytest.mark.soak  # 26 s; two runs in each ./dev test: tests/unit/plugins/action/test_stap_run_result.py
def test_only_one_of_three_controllers_may_run_the_same_trace(lab, builds):
    """The first run continues to its end; the errors of the others name the run that uses the module."""
    host = Host(lab, "trace2", builds["trace2"]["killed"]["module"])
    names = [f"twin_{number}" for number in range(3)]
    reach = {name: value for name, value in host.variables.items() if name.startswith("ansible_")}
    twins = [{"name": f"Add {name}", "ansible.builtin.add_host": {"name": name, **reach}} for name in names]
    args = {"module": host.module, "duration_seconds": 2 * DURATION}
    tasks = [{"name": "Run", "tapvirt.host.stap_run": args, "ignore_errors": True}]
    plays = [
        {"hosts": host.host, "gather_facts": False, "tasks": twins},
        {"hosts": ",".join(names), "gather_facts": False, "tasks": tasks},
    ]
    done = lab.playbook(yaml.safe_dump(plays))
    runs = sorted((done.of(name, "Run")["run"] for name in names), key=lambda run: run["outcome"])
    assert [run["outcome"] for run in runs] == ["ok", "refused", "refused"], runs
    assert runs[0]["duration_seconds"] >= 2 * DURATION and runs[0]["record_count"] >= DURATION, runs[0]
    assert runs[0]["leftovers"] == [], runs[0]
    user = r"the run [0-9a-f]{16}( \(process \d+, started \d+ seconds ago\)|, which is starting)"
    for run in runs[1:]:
        assert re.match(f"the module {host.name} is in use by {user}$", run["reason"]), run
    assert host.shell(LEFT.format(name=host.name) + "; ls -d /run/tapvirt 2>/dev/null") == ""


@pytest.fixture(scope="module")
def trials(lab, builds):
    """Do all pairs, on the hosts side by side; return the trials by kind."""
    print(f"TAPVIRT_SEED={SEED}")
    left = [(kinds, PAIRS[:place].count(kinds)) for place, kinds in enumerate(PAIRS)]
    random.Random(SEED).shuffle(left)
    rows: list[Trial] = []

    def work(host: Host) -> None:
        while left:
            rows.extend(host.pair(*left.pop()))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(work, [Host(lab, host, builds[host]["killed"]["module"]) for host in HOSTS]))
    return {kind: [row for row in rows if row.kind == kind] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_host_is_clean_in_time(trials, kind):
    assert len(trials[kind]) == sum(pair.count(kind) for pair in PAIRS)
    for trial in trials[kind]:
        assert trial.clean_seconds is not None and trial.left == "", trial
        assert trial.after == trial.before, trial
    print(kind, "clean after", sorted(round(trial.clean_seconds, 1) for trial in trials[kind]))


OUTCOMES = {
    "stapio": {"timeout", "ok"},
    "supervisor": {"timeout", "ok"},
    "guard": {"timeout", "ok"},
    "controller": {"ok"},
    "cut": {"ok"},
    "disk": {"lost_output", "ok"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_outcome_is_reported(trials, kind):
    for trial in trials[kind]:
        result = trial.result()
        assert result["outcome"] in OUTCOMES[kind], trial
        assert result["leftovers"] == [], trial
        assert len(result["records"]) == min(result["record_count"], 5), trial
        if trial.alone:
            assert result["bytes"] >= result["kept_bytes"], trial


@pytest.mark.parametrize("kind", KINDS)
def test_records_before_the_fault_are_kept(trials, kind):
    for trial in trials[kind]:
        result = trial.result()
        # The module counts 20 ticks a second from its start; an emulated host misses many.
        assert [record["number"] for record in result["records"]] == list(range(len(result["records"]))), trial
        if result["outcome"] == "ok":
            assert result["duration_seconds"] >= DURATION and result["record_count"] >= DURATION * 2, trial
