# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import typing as t
import zlib

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core import lock
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise import cleanup, supervisor
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import collect
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import start as run

NAME = "tapvirt_x_12345678"


def test_the_program_is_whole_and_runs_from_a_folder(tmp_path: pathlib.Path) -> None:
    for name, source in supervisor.program().items():
        path = tmp_path / "program" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    job = tmp_path / "job"
    job.mkdir()
    # A run that had come to its end is left alone; so this touches nothing of the machine.
    (job / "state.json").write_text(json.dumps({"state": "done"}))
    python = [sys.executable, "-IB", str(tmp_path / "program")]
    done = subprocess.run([*python, "clean", str(job)], cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(str(tmp_path / "program" / "tapvirt_stap")).count("__pycache__") == 0


def test_json_is_replaced_as_a_whole(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "state.json")
    cleanup.write_json(path, {"a": 1})
    cleanup.write_json(path, {"a": 2})
    assert cleanup.read_json(path) == {"a": 2}
    assert os.listdir(str(tmp_path)) == ["state.json"]
    (tmp_path / "damaged").write_text("{")
    assert cleanup.read_json(str(tmp_path / "damaged")) == cleanup.read_json(str(tmp_path / "absent")) == {}


def test_there_is_room_for_the_end(tmp_path: pathlib.Path) -> None:
    cleanup.reserve_space(str(tmp_path))
    assert os.stat(str(tmp_path / "spare")).st_blocks * 512 >= cleanup.SPARE_BYTES
    assert cleanup.write_with_reserve(str(tmp_path / "state.json"), b"{}")
    assert os.listdir(str(tmp_path)) == ["state.json"]
    begun = time.monotonic()
    assert not cleanup.write_with_reserve(str(tmp_path / "no" / "folder"), b"")
    assert time.monotonic() - begun < 60


def test_a_process_is_known_by_its_program_and_its_module(start: t.Callable[..., subprocess.Popen[bytes]]) -> None:
    sleep = "import sys, time; time.sleep(60)"
    argvs = [
        ["stapio", "-c", sleep, f"/x/{NAME}.ko", "-F3"],
        ["staprun", "-c", sleep, NAME],
        ["stapio", "-c", sleep, f"/x/{NAME}9.ko"],
        ["other", "-c", sleep, NAME],
        # It is removing the module.
        ["staprun", "-c", sleep, "-d", NAME],
    ]
    processes = [start(argv, executable=sys.executable) for argv in argvs]
    assert sorted(cleanup.processes_of(NAME)) == sorted(process.pid for process in processes[:2])


def test_a_supervisor_is_known_by_its_directory(start: t.Callable[..., subprocess.Popen[bytes]]) -> None:
    assert not cleanup.is_supervised("/run/x", {})
    assert not cleanup.is_supervised("/run/x", {"pid": os.getpid()})
    argv = [sys.executable, "-c", "import time; time.sleep(60)", "/run/x"]
    assert cleanup.is_supervised("/run/x", {"pid": start(argv).pid})


def test_what_was_printed_goes_in_chunks(tmp_path: pathlib.Path) -> None:
    data = os.urandom(100)
    (tmp_path / "output").write_bytes(data)
    first, second = (collect.read_output(str(tmp_path), offset) for offset in (0, 40))
    assert first["bytes"] == second["bytes"] == 100
    assert first["sha256"] == second["sha256"] == hashlib.sha256(data).hexdigest()
    assert zlib.decompress(base64.b64decode(second["data"])) == data[40:]
    assert collect.read_output(str(tmp_path / "absent"), 0)["bytes"] == 0


@pytest.mark.parametrize("directory", ["/etc", "/run/tapvirt/stap/../../../etc-0", "/run/tapvirt/stap/x-1/y", ""])
def test_only_a_directory_of_a_run_is_collected(directory: str) -> None:
    with pytest.raises(InvalidInput):
        collect.collect(directory, 0, with_output=False, offset=0)


@pytest.mark.parametrize("run_id", ["", "../x", "0/../..", "g", "0" * 17])
def test_a_controller_names_a_run_and_no_place(run_id: str) -> None:
    assert collect.run_directory(NAME, "0f") == cleanup.BASE + "/" + NAME + "-0f"
    with pytest.raises(InvalidInput, match="hexadecimal"):
        collect.run_directory(NAME, run_id)


def test_a_run_that_left_nothing_is_told() -> None:
    with pytest.raises(TapvirtError, match="left nothing on the host"):
        collect.collect(f"/run/tapvirt/stap/{NAME}-ffffffffffffffff", 0, with_output=False, offset=0)


@pytest.fixture
def base(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A place for the runs of a host of its own."""
    monkeypatch.setattr(cleanup, "BASE", str(tmp_path / "stap"))
    monkeypatch.setattr(cleanup, "LOCKS", str(tmp_path / "lock"))
    pattern = collect._DIRECTORY.pattern.replace("/run/tapvirt/stap", str(tmp_path / "stap"))
    monkeypatch.setattr(collect, "_DIRECTORY", re.compile(pattern))
    return tmp_path / "stap"


REQUEST = {
    "build": {"name": NAME, "sha256": "0" * 64, "kernel": "6", "probes": []},
    "schema": {},
    "builder": {},
    "path": "/x.ko",
    "tainted": 0,
    "record_limit": 10,
}
DEEP = b"[" * 200000 + b"]" * 200000
ENDED = {"state": "done", "armed_seconds": 1, "kept": 3, "bytes": 3, "stop": "duration"}


def leave(base: pathlib.Path, number: int, **files: t.Any) -> str:
    """Leave the directory of a run that nobody collects; a file's content is bytes or JSON."""
    directory = base / f"{NAME}-{number:x}"
    directory.mkdir(parents=True)
    for name, content in {"job": {"name": NAME}, "request": REQUEST, "state": ENDED, **files}.items():
        path = directory / (name if name == "output" else name + ".json")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        os.utime(str(path), (1, 1))
    return str(directory)


BAD: dict[str, dict[str, t.Any]] = {
    "a record with 990 levels": {"output": b'{"a":' + b"[" * 990 + b"]" * 990 + b"}\n"},
    "a request with 200000 levels": {"request": DEEP},
    "a state with 200000 levels": {"state": DEEP},
    "a request without its build": {"request": {"schema": {}}},
    "a state that is odd": {"state": {"state": "done", "armed_seconds": 1, "sites": 5, "bytes": "x"}},
    "nothing that can be read": {"job": b"\xff", "request": b"", "state": b"5"},
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_leftover_is_removed_and_told_and_ends_nothing(base: pathlib.Path, bad: str) -> None:
    leave(base, 1, output=b"{}\n")
    directory = leave(base, 2, **BAD[bad])
    leave(base, 3, output=b"{}\n")
    found = collect.sweep(10)
    assert [row["module"] for row in found] == [NAME] * 3
    assert [row["record_count"] for row in found] == [1, 0, 1]
    assert found[1]["outcome"] != "ok" and found[1]["reason"] and found[1]["left"] == [], found[1]
    assert set(found[0]) == set(found[1])
    json.dumps(found)
    assert not os.path.exists(directory) and not base.exists()


def test_a_leftover_that_cannot_be_removed_is_told(base: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = leave(base, 1, output=b"{}\n")
    monkeypatch.setattr(collect, "remove_run_directory", lambda _directory: None)
    assert collect.sweep(10)[0]["left"] == [f"the directory {directory} could not be removed"]


def test_a_run_whose_files_are_damaged_is_told_in_a_sentence(base: pathlib.Path) -> None:
    directory = leave(base, 1, request=DEEP)
    with pytest.raises(TapvirtError, match=f"What the run left in {directory} cannot be read"):
        collect.collect(directory, 0, with_output=False, offset=0)
    assert os.path.isdir(directory)


def test_bytes_that_are_not_utf8_are_replaced_in_a_result(base: pathlib.Path) -> None:
    directory = leave(base, 1, output=b'{"key":"a\xffb"}\n')
    result = collect.collect(directory, 0, with_output=False, offset=0)
    assert result["records"] == [{"key": "a\ufffdb"}]


@pytest.fixture
def shared(base: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> tuple[pathlib.Path, pathlib.Path]:
    """A run's directory, and a file in the place of a sysctl that staprun changes."""
    sysctl = base.parent / "kptr_restrict"
    sysctl.write_text("2\n")
    monkeypatch.setattr(cleanup, "SYSCTLS", (str(sysctl),))
    directory = base / f"{NAME}-1"
    cleanup.make_run_directory(str(directory))
    return directory, sysctl


def test_only_known_sysctls_are_written_back(shared: tuple[pathlib.Path, pathlib.Path]) -> None:
    directory, sysctl = shared
    other = sysctl.with_name("core_pattern")
    other.write_text("core\n")
    cleanup.hold_sysctls(str(directory))
    snapshot = directory.parent / "sysctls.json"
    assert json.loads(snapshot.read_text()) == {str(sysctl): "2"}
    snapshot.write_text(json.dumps({str(sysctl): "2", str(other): "|/tmp/x"}))
    sysctl.write_text("0\n")
    assert cleanup.release_sysctls(str(directory)) == {str(sysctl): ["0", "2"]}
    assert (sysctl.read_text(), other.read_text()) == ("2\n", "core\n")
    cleanup.hold_sysctls(str(directory))
    snapshot.write_text(json.dumps({str(sysctl): 5}))
    assert cleanup.release_sysctls(str(directory)) == {}


@pytest.mark.parametrize("mask", [0, 0o002])
def test_only_root_can_enter_what_runs_share(base: pathlib.Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        cleanup.make_run_directory(str(base / "x-1"))
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (base, base / "x-1")] == [0o700, 0o700]


def test_sysctls_are_put_back_when_the_lock_is_free_again(
    shared: tuple[pathlib.Path, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that cannot be had is told by the clean-up, and the note that sysctls are held stays for the next one."""
    directory, sysctl = shared
    cleanup.hold_sysctls(str(directory))
    sysctl.write_text("0\n")
    path = os.path.join(cleanup.LOCKS, "sysctls")
    with monkeypatch.context() as patch:
        patch.setattr(lock, "hold", functools.partial(lock.hold, wait_seconds=0))
        descriptor = lock.take(path, "the test")
        cleaned = cleanup.clean(str(directory))
        os.close(descriptor)
    assert cleaned["restored"] == {}
    assert "the sysctls that staprun changes were not put back: " in cleaned["left"][0]
    assert f"Process {os.getpid()} of user" in cleaned["left"][0]
    assert cleanup.clean(str(directory)) == {"removed": False, "restored": {str(sysctl): ["0", "2"]}, "left": []}


HOLD = """
import sys, time
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise import cleanup as leavings
leavings.BASE, leavings.LOCKS = sys.argv[1:3]
with leavings.hold_module(sys.argv[3]):
    print("held", flush=True)
    time.sleep(60)
"""
Start = t.Callable[..., "subprocess.Popen[t.Any]"]


def hold_elsewhere(start: Start, base: pathlib.Path, directory: str) -> subprocess.Popen[t.Any]:
    """Hold the module's lock in another process, which looks like the supervisor of a run."""
    argv = [sys.executable, "-c", HOLD, str(base), cleanup.LOCKS, NAME, directory]
    process = start(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def pretend(start: Start, **options: t.Any) -> subprocess.Popen[t.Any]:
    """Start a process that looks like the stapio of the module."""
    sleep = "import time; time.sleep(60)"
    return start(["stapio", "-c", sleep, f"/x/{NAME}.ko"], executable=sys.executable, **options)


def test_a_module_that_another_run_has_is_refused_with_its_name(
    base: pathlib.Path, start: Start, monkeypatch: t.Any
) -> None:
    monkeypatch.setattr(cleanup, "_CLAIM_SECONDS", 0.3)
    directory = leave(base, 0xAF, state={"state": "running"})
    pid = hold_elsewhere(start, base, directory).pid
    words = rf"{NAME} is in use by the run af \(process {pid}, started \d+ seconds ago\)"
    with pytest.raises(cleanup.ModuleInUse, match=words), cleanup.hold_module(NAME):
        pass
    # Another module's lock is another one.
    with cleanup.hold_module(NAME + "9"):
        pass


def test_only_what_a_run_has_loaded_is_removed(base: pathlib.Path, start: Start, monkeypatch: t.Any) -> None:
    monkeypatch.setattr(cleanup, "_CLAIM_SECONDS", 0.3)
    other = pretend(start)
    never_loaded = leave(base, 1, state={"state": "starting"})
    assert cleanup.clean(never_loaded) == {"removed": False, "restored": {}, "left": []}
    # It had begun to load the module, and another run has it now.
    killed = leave(base, 2, state={"state": "loading"})
    (base / os.path.basename(killed) / "holds").touch()
    holder = hold_elsewhere(start, base, leave(base, 3, state={"state": "running"}))
    assert cleanup.clean(killed)["left"] == []
    assert other.poll() is None and holder.poll() is None


def test_processes_of_another_session_are_not_the_runs(base: pathlib.Path, start: Start) -> None:
    theirs = pretend(start, start_new_session=True)
    own = pretend(start, start_new_session=True)
    directory = leave(base, 1, state={"state": "running", "staprun": own.pid})
    (base / os.path.basename(directory) / "holds").touch()
    assert cleanup.clean(directory)["left"] == []
    # Python ends with status 1 where the signal comes while it starts.
    assert own.wait(10) != 0 and theirs.poll() is None


def test_who_is_about_to_load_a_module_is_named(base: pathlib.Path, start: Start, monkeypatch: t.Any) -> None:
    monkeypatch.setattr(collect, "_NAME_SECONDS", 0.3)
    own = leave(base, 1)
    assert collect.other_run(NAME, own) is None
    os.unlink(os.path.join(own, "state.json"))
    assert collect.other_run(NAME, own) is None
    assert collect.other_run(NAME) == "the run 1, which is starting"
    assert collect.other_run(NAME + "9") is None
    argv = [sys.executable, "-c", "import time; time.sleep(60)", own]
    pid = start(argv).pid
    (pathlib.Path(own) / "state.json").write_text(json.dumps({"state": "loading", "pid": pid}))
    named = rf"the run 1 \(process {pid}, started \d+ seconds ago\)$"
    assert re.match(named, str(collect.other_run(NAME)))
    with pytest.raises(run.Refused, match="in use by the run 1"):
        run.check_free({"name": NAME})


def test_a_module_that_somebody_loaded_by_hand_is_named(
    base: pathlib.Path, start: Start, tmp_path: pathlib.Path, monkeypatch: t.Any
) -> None:
    monkeypatch.setattr(cleanup, "_PROC", str(tmp_path / "proc"))
    (tmp_path / "proc" / NAME).mkdir(parents=True)
    with pytest.raises(cleanup.ModuleInUse, match="no process uses it; remove it with: staprun -d " + NAME):
        cleanup.check_not_loaded(NAME)
    pid = pretend(start).pid
    with pytest.raises(cleanup.ModuleInUse, match=rf"staprun \(process {pid}, started"):
        cleanup.check_not_loaded(NAME)


def test_of_many_messages_the_first_and_the_last_are_kept() -> None:
    kept = b""
    for number in range(5000):
        kept = cleanup.keep_ends(kept + b"WARNING: %d\n" % number, 1000)
    assert len(kept) <= 1000 and kept.startswith(b"WARNING: 0\n") and kept.endswith(b"WARNING: 4999\n")
