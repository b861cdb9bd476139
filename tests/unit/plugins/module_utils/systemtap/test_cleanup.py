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
import shutil
import subprocess
import sys
import time
import typing as t
import zlib

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core import lock
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap import limits
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise import (
    cleanup,
    outcome,
    supervisor,
    tracer_daemon,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import collect, schedule
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import start as run

NAME = "tapvirt_x_12345678"


def test_the_program_is_whole_and_runs_from_a_directory(tmp_path: pathlib.Path) -> None:
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
    (tmp_path / "output").unlink()
    assert collect.read_output(str(tmp_path), 0)["bytes"] == 0
    with pytest.raises(TapvirtError, match=f"The directory of the run no longer exists: {tmp_path}/absent"):
        collect.read_output(str(tmp_path / "absent"), 0)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("directory", ["/etc", "/run/tapvirt/stap/../../../etc-0", "/run/tapvirt/stap/x-1/y", ""])
def test_only_a_directory_of_a_run_is_collected(directory: str) -> None:
    with pytest.raises(InvalidInput):
        collect.collect(directory, 0, with_output=False, offset=0)


@pytest.mark.parametrize("run_id", ["", "../x", "0/../..", "g", "0" * 17])
def test_a_controller_names_a_run_and_no_place(run_id: str) -> None:
    assert collect.run_directory(NAME, "0f") == cleanup.BASE + "/" + NAME + "-0f"
    with pytest.raises(InvalidInput, match="hexadecimal"):
        collect.run_directory(NAME, run_id)


def test_a_run_that_left_nothing_is_reported() -> None:
    with pytest.raises(
        TapvirtError,
        match="The directory of the run no longer exists: .*The host was rebooted, or another run on it collected the "
        "result and returned it in previous_leftovers[.]$",
    ):
        collect.collect(f"/run/tapvirt/stap/{NAME}-ffffffffffffffff", 0, with_output=False, offset=0)


@pytest.fixture
def base(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A place for the runs of a host of its own."""
    monkeypatch.setattr(cleanup, "BASE", str(tmp_path / "stap"))
    monkeypatch.setattr(cleanup, "LOCKS", str(tmp_path / "lock"))
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
def test_a_bad_leftover_is_removed_and_reported_and_ends_nothing(base: pathlib.Path, bad: str) -> None:
    leave(base, 1, output=b"{}\n")
    directory = leave(base, 2, **BAD[bad])
    leave(base, 3, output=b"{}\n")
    found = collect.sweep(10)
    assert [row["module"] for row in found] == [NAME] * 3
    assert [row["record_count"] for row in found] == [1, 0, 1]
    assert found[1]["outcome"] != "ok" and found[1]["reason"] and found[1]["leftovers"] == [], found[1]
    assert set(found[0]) == set(found[1])
    json.dumps(found)
    assert not os.path.exists(directory) and not base.exists()


def test_a_leftover_that_cannot_be_removed_is_reported(base: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = leave(base, 1, output=b"{}\n")
    monkeypatch.setattr(collect, "remove_run_directory", lambda _directory: None)
    assert collect.sweep(10)[0]["leftovers"] == [f"the directory {directory} could not be removed"]


def test_a_run_whose_files_are_damaged_is_reported_in_a_sentence(base: pathlib.Path) -> None:
    directory = leave(base, 1, request=DEEP)
    with pytest.raises(TapvirtError, match=f"The files of the run in {directory} cannot be read"):
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
    assert cleanup.release_sysctls(str(directory)) == ({str(sysctl): ["0", "2"]}, [])
    assert (sysctl.read_text(), other.read_text()) == ("2\n", "core\n")
    cleanup.hold_sysctls(str(directory))
    snapshot.write_text(json.dumps({str(sysctl): 5}))
    assert cleanup.release_sysctls(str(directory)) == ({}, [])


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
        patch.setattr(cleanup, "SYSCTL_SECONDS", 0)
        descriptor = lock.take(path, "the test")
        cleaned = cleanup.clean(str(directory))
        os.close(descriptor)
    assert cleaned["restored"] == {}
    assert "the sysctls that staprun changes were not put back: " in cleaned["leftovers"][0]
    assert f"Process {os.getpid()} of user" in cleaned["leftovers"][0]
    assert cleanup.clean(str(directory)) == {"removed": False, "restored": {str(sysctl): ["0", "2"]}, "leftovers": []}


HOLD = """
import sys, time
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise import cleanup
cleanup.BASE, cleanup.LOCKS = sys.argv[1:3]
with cleanup.hold_module(sys.argv[3]):
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
    monkeypatch.setattr(cleanup, "CLAIM_SECONDS", 0.3)
    directory = leave(base, 0xAF, state={"state": "running"})
    pid = hold_elsewhere(start, base, directory).pid
    words = rf"{NAME} is in use by the run af \(process {pid}, started \d+ seconds ago\)"
    with pytest.raises(cleanup.ModuleInUse, match=words), cleanup.hold_module(NAME):
        pass
    # Another module's lock is another one.
    with cleanup.hold_module(NAME + "9"):
        pass


def test_only_what_a_run_has_loaded_is_removed(base: pathlib.Path, start: Start, monkeypatch: t.Any) -> None:
    monkeypatch.setattr(cleanup, "CLAIM_SECONDS", 0.3)
    other = pretend(start)
    never_loaded = leave(base, 1, state={"state": "starting"})
    assert cleanup.clean(never_loaded) == {"removed": False, "restored": {}, "leftovers": []}
    # It had begun to load the module, and another run has it now.
    killed = leave(base, 2, state={"state": "loading"})
    (base / os.path.basename(killed) / "holds").touch()
    holder = hold_elsewhere(start, base, leave(base, 3, state={"state": "running"}))
    assert cleanup.clean(killed)["leftovers"] == []
    assert other.poll() is None and holder.poll() is None


def test_processes_of_another_session_are_not_the_runs(base: pathlib.Path, start: Start) -> None:
    theirs = pretend(start, start_new_session=True)
    own = pretend(start, start_new_session=True)
    directory = leave(base, 1, state={"state": "running", "staprun": own.pid})
    (base / os.path.basename(directory) / "holds").touch()
    assert cleanup.clean(directory)["leftovers"] == []
    # Python ends with status 1 where the signal comes while it starts.
    assert own.wait(10) != 0 and theirs.poll() is None


def test_who_is_about_to_load_a_module_is_named(base: pathlib.Path, start: Start) -> None:
    own = leave(base, 1)
    assert collect.other_run(NAME, own) is None
    os.unlink(os.path.join(own, "state.json"))
    assert collect.other_run(NAME, own) is None
    assert collect.other_run(NAME, name_seconds=0.3) == "the run 1, which is starting"
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
    monkeypatch.setattr(cleanup, "MODULES", str(tmp_path / "proc"))
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


def end_hold(directory: pathlib.Path | str, changed: pathlib.Path) -> None:
    """Hold the sysctls as a run that staprun changed one for, and that was killed then."""
    descriptor = cleanup.hold_sysctls(str(directory))
    changed.write_text("0\n")
    os.close(descriptor)


Shared = t.Tuple[pathlib.Path, pathlib.Path]


def test_a_saved_value_outlives_the_run_that_saved_it(shared: Shared) -> None:
    directory, sysctl = shared
    end_hold(directory, sysctl)
    shutil.rmtree(directory)
    # The next run saves no changed value.
    later = directory.parent / f"{NAME}-2"
    cleanup.make_run_directory(str(later))
    end_hold(later, sysctl)
    assert json.loads((directory.parent / "sysctls.json").read_text()) == {str(sysctl): "2"}
    shutil.rmtree(later)
    assert collect.sweep(10) == []
    assert sysctl.read_text() == "2\n" and not directory.parent.exists()


def test_a_killed_run_holds_nothing(shared: Shared) -> None:
    directory, sysctl = shared
    end_hold(directory, sysctl)
    living = directory.parent / f"{NAME}-2"
    cleanup.make_run_directory(str(living))
    descriptor = cleanup.hold_sysctls(str(living))
    sysctl.write_text("0\n")
    # As long as another one lives, its sysctls stay as they are.
    assert cleanup.clean(str(directory))["restored"] == {} and sysctl.read_text() == "0\n"
    os.close(cleanup.hold_sysctls(str(directory)))
    assert cleanup.clean(str(living)) == {"removed": False, "restored": {str(sysctl): ["0", "2"]}, "leftovers": []}
    os.close(descriptor)


def test_a_cleanup_that_failed_is_done_again(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has ended, and its directory stays until the sysctls are as they were."""
    directory, sysctl = shared
    end_hold(directory, sysctl)
    leave(directory.parent, 2)
    for name in ("job", "request", "state"):
        (directory.parent / f"{NAME}-2" / f"{name}.json").rename(directory / f"{name}.json")
    shutil.rmtree(directory.parent / f"{NAME}-2")
    monkeypatch.setattr(cleanup, "SYSCTL_SECONDS", 0)
    descriptor = lock.take(os.path.join(cleanup.LOCKS, "sysctls"), "the test")
    assert "were not put back" in collect.collect(str(directory), 0, with_output=False, offset=0)["leftovers"][0]
    collect.remove_run_directory(str(directory))
    assert sysctl.read_text() == "0\n" and (directory / "holds").exists()
    os.close(descriptor)
    result = collect.collect(str(directory), 0, with_output=False, offset=0)
    assert (result["outcome"], result["leftovers"]) == ("ok", [])
    assert result["restored"] == {str(sysctl): ["0", "2"]} and sysctl.read_text() == "2\n"
    collect.remove_run_directory(str(directory))
    assert not directory.exists()


def test_a_cleanup_that_is_killed_while_it_writes_is_done_again(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, sysctl = shared
    end_hold(directory, sysctl)

    def kill(_path: str) -> t.Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cleanup, "read_json", kill)
        cleanup.release_sysctls(str(directory))
    assert cleanup.clean(str(directory))["restored"] == {str(sysctl): ["0", "2"]}


def test_a_sysctl_that_cannot_be_written_is_reported_and_tried_again(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _sysctl = shared
    real = "/proc/self/oom_score_adj"
    monkeypatch.setattr(cleanup, "SYSCTLS", (real,))
    cleanup.hold_sysctls(str(directory))
    snapshot = directory.parent / "sysctls.json"
    snapshot.write_text(json.dumps({real: "many"}))
    assert f"{real} could not be set back to many: " in cleanup.clean(str(directory))["leftovers"][0]
    assert json.loads(snapshot.read_text()) == {real: "many"}
    snapshot.write_text(json.dumps({real: pathlib.Path(real).read_text().strip()}))
    assert cleanup.restore_orphaned_sysctls() == [] and not snapshot.exists()


def test_one_step_that_fails_keeps_no_other_from_being_done(
    shared: Shared, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, sysctl = shared
    end_hold(directory, sysctl)
    monkeypatch.setattr(cleanup, "MODULES", str(tmp_path / "proc"))
    (tmp_path / "proc" / NAME).mkdir(parents=True)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(cleanup, "Child", functools.partial(subprocess.Popen, executable="/nowhere/staprun"))
    cleaned = cleanup.clean(str(directory))
    assert cleaned["leftovers"] == [
        f"the module {NAME} could not be removed: [Errno 2] No such file or directory: '/nowhere/staprun'"
    ]
    assert sysctl.read_text() == "2\n" and cleanup.needs_cleaning(str(directory))
    (tmp_path / "proc" / NAME).rmdir()
    assert cleanup.clean(str(directory))["leftovers"] == [] and not cleanup.needs_cleaning(str(directory))


def test_odd_counts_of_a_killed_run_are_ignored(base: pathlib.Path) -> None:
    directory = leave(base, 1, output=b"{}\n", state={"state": "running", "bytes": [1]})
    assert collect.wait(directory, 5, clean_seconds=0)["state"] == "killed"
    result = collect.collect(directory, 0, with_output=False, offset=0)
    assert result["bytes"] == 3 and result["leftovers"] == []


def test_a_directory_that_disappears_while_it_is_waited_for_is_gone(
    base: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = leave(base, 1, state={})
    os.unlink(os.path.join(directory, "state.json"))
    read_json = cleanup.read_json

    def remove_and_read(path: str) -> dict[str, t.Any]:
        shutil.rmtree(directory)
        return read_json(path)

    monkeypatch.setattr(cleanup, "read_json", remove_and_read)
    with pytest.raises(TapvirtError, match=f"The directory of the run no longer exists: {directory}"):
        collect.wait(directory, 5)


def test_only_one_process_cleans_up_in_a_directory(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, sysctl = shared
    end_hold(directory, sysctl)
    state = {"state": "running"}
    (directory / "state.json").write_text(json.dumps(state))
    (directory / "job.json").write_text("{}")
    monkeypatch.setattr(cleanup, "CLEANER_SECONDS", 0.2)
    descriptor = lock.take(str(directory / "cleaner"), "the test")
    assert cleanup.finish_killed_run(str(directory)) == state
    assert collect.sweep(10) == []
    assert (directory / "holds").exists() and sysctl.read_text() == "0\n"
    os.close(descriptor)
    assert cleanup.finish_killed_run(str(directory))["restored"] == {str(sysctl): ["0", "2"]}


def test_a_module_that_nobody_uses_is_no_other_runs(
    shared: Shared, start: Start, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another task holds the module's lock while it checks whether the module is free."""
    directory, sysctl = shared
    end_hold(directory, sysctl)
    monkeypatch.setattr(cleanup, "CLAIM_SECONDS", 0.3)
    monkeypatch.setattr(cleanup, "MODULES", str(tmp_path / "proc"))
    (tmp_path / "proc" / NAME).mkdir(parents=True)
    hold_elsewhere(start, directory.parent, str(directory.parent / f"{NAME}-2"))
    cleaned = cleanup.clean(str(directory))
    assert f"{NAME} is in use by the run 2" in cleaned["leftovers"][0] and cleanup.needs_cleaning(str(directory))


def test_check_mode_takes_what_a_run_removes_first_for_free(
    shared: Shared, start: Start, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, sysctl = shared
    monkeypatch.setattr(cleanup, "MODULES", str(tmp_path / "proc"))
    (tmp_path / "proc" / NAME).mkdir(parents=True)
    own = pretend(start, start_new_session=True)
    (directory / "state.json").write_text(json.dumps({"state": "loading", "staprun": own.pid}))
    with pytest.raises(run.Refused, match="in use by staprun"):
        run.check_free({"name": NAME}, sweeps=True)
    end_hold(directory, sysctl)
    run.check_free({"name": NAME}, sweeps=True)
    with pytest.raises(run.Refused, match="in use by staprun"):
        run.check_free({"name": NAME})
    pretend(start, start_new_session=True)
    with pytest.raises(run.Refused, match="in use by staprun"):
        run.check_free({"name": NAME}, sweeps=True)


def test_what_changed_nothing_waits_for_nothing(shared: Shared) -> None:
    directory, _sysctl = shared
    descriptor = lock.take(os.path.join(cleanup.LOCKS, "sysctls"), "the test")
    begun = time.monotonic()
    assert cleanup.clean(str(directory)) == {"removed": False, "restored": {}, "leftovers": []}
    assert time.monotonic() - begun < 5
    os.close(descriptor)


def test_a_run_whose_output_is_fetched_is_not_removed(base: pathlib.Path) -> None:
    directory = leave(base, 1, output=b"0123456789", seen=b"")
    assert collect.collect(directory, 0, with_output=True, offset=4)["output"]["chunk_bytes"] == 6
    assert collect.sweep(10) == [] and os.path.isdir(directory)


KEPT = {**REQUEST, "keep": True}
HOUR = 3600


def set_age(directory: str, seconds: float, name: str = "request.json") -> None:
    """Make a file of a run as old as that."""
    path = pathlib.Path(directory) / name
    path.touch()
    os.utime(str(path), (time.time() - seconds,) * 2)


def test_a_result_that_nobody_collected_stays_for_a_day(base: pathlib.Path) -> None:
    young, old = (leave(base, number, request=KEPT, output=b"{}\n") for number in (1, 2))
    set_age(young, 23 * HOUR)
    set_age(old, 25 * HOUR)
    assert [row["record_count"] for row in collect.sweep(10)] == [1]
    assert os.listdir(str(base)) == [os.path.basename(young)]
    assert collect.collect_by_id(os.path.basename(young), 0, with_output=False, offset=0)["record_count"] == 1


def test_a_result_that_was_collected_stays_for_an_hour_and_is_no_news(base: pathlib.Path) -> None:
    directories = [leave(base, number, request=KEPT) for number in (1, 2)]
    for directory, age in zip(directories, (HOUR / 2, 2 * HOUR)):
        set_age(directory, 3 * HOUR)
        collect.collect_by_id(os.path.basename(directory), 0, with_output=False, offset=0)
        set_age(directory, age, "collected")
        set_age(directory, age, "seen")
    assert collect.sweep(10) == []
    assert os.listdir(str(base)) == [os.path.basename(directories[0])]


@pytest.mark.parametrize(("option", "limit"), [("KEPT_RESULTS", 2), ("KEPT_BYTES", 2500)])
def test_few_results_stay_and_the_oldest_goes_first(
    base: pathlib.Path, monkeypatch: pytest.MonkeyPatch, option: str, limit: int
) -> None:
    monkeypatch.setattr(limits, option, limit)
    directories = [leave(base, number, request=KEPT, output=b"x" * 600) for number in range(1, 5)]
    for directory, age in zip(directories, (400, 300, 200, 100)):
        set_age(directory, age)
    # Who was collected makes room first, however young.
    (pathlib.Path(directories[3]) / "collected").touch()
    set_age(directories[3], 100, "seen")
    assert len(collect.sweep(10)) == 1
    assert sorted(os.listdir(str(base))) == [os.path.basename(path) for path in directories[1:3]]


def test_a_killed_run_whose_result_stays_is_cleaned_up_at_once(shared: Shared) -> None:
    directory, sysctl = shared
    end_hold(directory, sysctl)
    (directory / "request.json").write_text(json.dumps(KEPT))
    (directory / "job.json").write_text(json.dumps({"name": NAME}))
    (directory / "state.json").write_text(json.dumps({"state": "running", "armed_seconds": 1, "armed_at": 5.5}))
    assert collect.sweep(10) == []
    assert sysctl.read_text() == "2\n" and not (directory / "holds").exists()
    run_id = directory.name
    result = collect.collect_by_id(run_id, 0, with_output=False, offset=0)
    assert (result["outcome"], result["reason"]) == ("timeout", "the run was ended by force: its supervisor was killed")
    assert result["times"]["armed"] == 5.5 and result["times"]["end"] is None


def test_a_damaged_handle_is_reported_in_a_sentence(base: pathlib.Path) -> None:
    directory = leave(base, 1, state={"state": "running", "armed_at": "x", "pid": 1}, begun={"times": 5})
    with pytest.raises(TapvirtError, match=f"The files of the run in {directory} cannot be read"):
        collect.collect(directory, 0, with_output=False, offset=0, only_reads=True)


def test_loading_takes_as_long_as_usual(tmp_path: pathlib.Path) -> None:
    """A measurement from a busy moment changes nothing: neither the module's own, nor that of another module."""
    own, busy, other, later = (tmp_path / name / "x.ko" for name in ("a", "b", "c", "d"))
    assert schedule.estimate_load(str(own)) == limits.FIRST_LOAD_SECONDS
    for path, seconds, at in ((other, [9, 0.5], 1), (later, [0.4, 0.6, 7], 2), (busy, [1, 1.5, 30], 3)):
        path.parent.mkdir()
        file = pathlib.Path(schedule.load_file(str(path)))
        cleanup.write_json(str(file), {"seconds": seconds})
        os.utime(str(file), (at, at))
    assert schedule.estimate_load(str(own)) == 7
    assert (schedule.estimate_load(str(later)), schedule.estimate_load(str(busy))) == (0.6, 1.5)
    for damaged in (b"", b"5", b'{"seconds": "x"}', b'{"seconds": [-1]}', b'{"seconds": [1, 1e9]}', DEEP):
        pathlib.Path(schedule.load_file(str(busy))).write_bytes(damaged)
        assert schedule.estimate_load(str(busy)) == 7


Stuck = t.Tuple[pathlib.Path, pathlib.Path]


def test_a_run_notes_how_long_its_last_loads_took(shared: Shared, tmp_path: pathlib.Path) -> None:
    directory, sysctl = shared
    noted = tmp_path / "load.json"
    noted.write_text(json.dumps({"seconds": [1, 2, 3, 4, 5, 6]}))
    job = {"name": NAME, "duration": 0.1, "load": 20, "grace": 1, "limit": 1, "sites": 0, "load_file": str(noted)}
    (tmp_path / "proc").mkdir()
    script = (
        f"trap 'rmdir {tmp_path}/proc/{NAME}; exit 0' INT; mkdir {tmp_path}/proc/{NAME}; while :; do sleep 0.1; done"
    )
    (directory / "job.json").write_text(json.dumps({**job, "argv": ["sh", "-c", script]}))
    program = SUPERVISE.replace(
        "supervisor.Supervisor", f"cleanup.MODULES = {str(tmp_path / 'proc')!r}\nsupervisor.Supervisor"
    )
    argv = [sys.executable, "-c", program, str(directory.parent), cleanup.LOCKS, str(sysctl), str(directory)]
    subprocess.run(argv, check=True, timeout=60)
    seconds = json.loads(noted.read_text())["seconds"]
    assert seconds[:-1] == [3, 4, 5, 6] and 0 < seconds[-1] < 20


@pytest.fixture
def stuck(shared: Shared, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Stuck:
    """A run that has ended, whose module staprun cannot remove until ``allow`` exists, and its directory."""
    directory, sysctl = shared
    end_hold(directory, sysctl)
    (tmp_path / "proc" / NAME).mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    staprun = tmp_path / "bin" / "staprun"
    staprun.write_text(f"#!/bin/sh\n[ -e {tmp_path}/allow ] && rmdir {tmp_path}/proc/{NAME}\n")
    staprun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(cleanup, "MODULES", str(tmp_path / "proc"))
    monkeypatch.setattr(cleanup, "ASKED_SECONDS", 0.5)
    monkeypatch.setattr(cleanup, "FORCED_SECONDS", 0.1)
    for name, content in {"job": {"name": NAME}, "request": REQUEST, "state": ENDED}.items():
        path = directory / f"{name}.json"
        path.write_text(json.dumps(content))
        os.utime(str(path), (1, 1))
    return directory, tmp_path / "allow"


LOADED = [f"the module {NAME} could not be removed"]


@pytest.mark.parametrize("kind", ["waited for", "kept", "collected", "in hands"])
def test_a_module_that_could_not_be_removed_is_tried_again_by_the_next_run(stuck: Stuck, kind: str) -> None:
    directory, allow = stuck
    if kind in ("kept", "collected"):
        (directory / "request.json").write_text(json.dumps(KEPT))
        set_age(str(directory), 100)
    if kind == "collected":
        (directory / "collected").touch()
    if kind == "in hands":
        (directory / "seen").touch()
    assert cleanup.clean(str(directory))["leftovers"] == LOADED
    assert cleanup.needs_cleaning(str(directory)), "the next run has to know of it"
    (row,) = collect.sweep(10)
    assert row["leftovers"][:1] == LOADED and directory.exists()
    allow.touch()
    (row,) = collect.sweep(10)
    assert (row["removed"], row["leftovers"]) == (True, [])
    assert not cleanup.loaded(NAME) and not cleanup.needs_cleaning(str(directory))
    assert directory.exists() == (kind != "waited for")
    assert collect.sweep(10) == []


def test_a_module_that_could_not_be_removed_is_tried_again_when_the_result_is_collected(stuck: Stuck) -> None:
    directory, allow = stuck
    assert collect.collect(str(directory), 0, with_output=False, offset=0)["leftovers"] == LOADED
    allow.touch()
    assert collect.collect(str(directory), 0, with_output=False, offset=0)["leftovers"] == []
    assert not cleanup.loaded(NAME)


def test_a_run_that_has_just_been_accepted_has_a_progress(base: pathlib.Path) -> None:
    job = {"name": NAME, "start": time.time() + 20, "wait": 20, "load": 60, "sites": 2}
    accepted = {"times": {"accepted": time.time() - 3}}
    for number, start, state, of_seconds in ((1, job["start"], "waiting", 20), (2, None, "starting", 60)):
        directory = leave(base, number, job={**job, "start": start}, begun=accepted)
        os.unlink(os.path.join(directory, "state.json"))
        told = collect.collect(directory, 0, with_output=False, offset=0)["progress"]
        assert 3 <= told.pop("elapsed_seconds") < 30
        expected = {"state": state, "of_seconds": of_seconds, "bytes": 0, "records": 0, "armed": 0, "sites": 2}
        assert told == expected


def test_a_run_that_is_ending_has_a_progress(base: pathlib.Path) -> None:
    directory = leave(base, 1, state={"state": "running", "rc": 0, "bytes": 7, "pid": os.getpid()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleanup, "is_supervised", lambda *_arguments: True)
        told = collect.collect(directory, 0, with_output=False, offset=0)["progress"]
    assert (told["state"], told["elapsed_seconds"], told["bytes"]) == ("stopping", 0, 7)


@pytest.mark.parametrize("silent", [0, 100])
def test_a_killed_run_is_seen_without_waiting_for_its_end(
    base: pathlib.Path, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    """Its supervisor may have been killed a moment ago: then systemd gets the time to clean up."""
    directory = leave(base, 1, state={"state": "running", "pid": 1})
    set_age(directory, silent, "state.json")
    monkeypatch.setattr(collect.wait, "__defaults__", (1.0 if silent == 0 else 50.0,))
    assert collect.collect(directory, 0, with_output=False, offset=0, only_reads=True)["progress"]["state"] == "killed"
    begun = time.monotonic()
    result = collect.collect(directory, 0, with_output=False, offset=0)
    assert (result["finished"], result["outcome"]) == (True, "timeout")
    assert result["reason"].endswith("its supervisor was killed")
    took = time.monotonic() - begun
    assert took > 0.5 if silent == 0 else took < 20


def test_a_schedule_leaves_time_for_loading() -> None:
    now = 1000.0
    at_once = schedule.plan_schedule(None, 10, 2, now)
    assert (at_once.wait_seconds, at_once.times()) == (0, {"accepted": now, "start": now, "end": 1012})
    planned = schedule.plan_schedule(1030, 10, 2, now)
    assert (planned.wait_seconds, planned.times()) == (28, {"accepted": now, "start": 1028, "end": 1040})
    # Nearer than the time that loading takes: as soon as possible.
    assert schedule.plan_schedule(1001, 10, 2, now).wait_seconds == 0


MOUNTED = """
import os, subprocess, sys
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise import cleanup
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import collect
directory = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "none", directory + "/debugfs"], check=True)
os.mkdir(directory + "/debugfs/instance")
try:
    cleanup.remove_tree(directory)
except cleanup.TapvirtError as error:
    print(error)
collect.remove_run_directory(directory)
print(os.path.isdir(directory + "/debugfs/instance"), cleanup.unmount(directory), os.listdir(directory + "/debugfs"))
os.chdir(directory)
subprocess.run(["mount", "-t", "tmpfs", "none", directory + "/debugfs"], check=True)
os.chdir(directory + "/debugfs")
print(*cleanup.unmount(directory))
"""


def test_nothing_is_removed_in_what_is_mounted(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / f"{NAME}-1"
    (directory / "debugfs").mkdir(parents=True)
    argv = ["unshare", "-m", sys.executable, "-c", MOUNTED, str(directory)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if not done.stdout and "denied" in done.stderr + "denied" * ("not permitted" in done.stderr):
        pytest.skip("this user cannot mount a file system of its own")
    assert done.stdout.splitlines() == [
        f"debugfs is still mounted in {directory}",
        "True [] []",
        f"debugfs could not be unmounted from {directory}/debugfs",
    ], done.stderr


SUPERVISE = """
import sys
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise import cleanup, supervisor
cleanup.BASE, cleanup.LOCKS, sysctl, directory = sys.argv[1:]
cleanup.SYSCTLS = (sysctl,)
supervisor.debugfs_mount = lambda: "/sys/kernel/debug"
supervisor.Supervisor(directory).run()
"""


@pytest.mark.parametrize(
    ("script", "rc"),
    [
        # The process in the background has inherited the pipes.
        ("(trap '' INT TERM; exec sleep 1003) & echo printed; exit 0", 0),
        ("trap '' INT TERM; exec >&- 2>&-; while :; do sleep 1003; done", -9),
    ],
)
def test_a_run_ends_whatever_its_processes_keep_open(shared: Shared, script: str, rc: int) -> None:
    directory, sysctl = shared
    job = {"name": NAME, "duration": 1, "load": 1, "grace": 0.5, "limit": 1000, "sites": 0}
    (directory / "job.json").write_text(json.dumps({**job, "argv": ["sh", "-c", script]}))
    cleanup.reserve_space(str(directory))
    argv = [sys.executable, "-c", SUPERVISE, str(directory.parent), cleanup.LOCKS, str(sysctl), str(directory)]
    subprocess.run(argv, check=True, timeout=20)
    state = cleanup.read_json(str(directory / "state.json"))
    assert (state["state"], state["rc"], state["leftovers"]) == ("done", rc, [])
    # Had it been armed, the number of signals would decide.
    armed = {**state, "armed_seconds": 1, "rc": 0, "stop": "duration"}
    nothing = outcome.read_messages("", 0), outcome.Arming(0, 0, 0, []), None
    reason = outcome.classify_outcome(armed, *nothing, truncated=False)[1]
    assert (reason == "the run was ended by force: it did not end when it was asked to") == (state["signals_sent"] > 1)
    assert (directory / "output").read_text() == ("printed\n" if rc == 0 else "")
    time.sleep(0.1)
    assert subprocess.run(["pgrep", "-fx", "sleep 1003"], check=False, capture_output=True).stdout == b""


@pytest.mark.parametrize("event", ["the moment", "a stop", "a clock that is set back"])
def test_a_run_waits_for_its_start(shared: Shared, start: Start, event: str) -> None:
    """It holds the lock of its module while it waits, and nothing else."""
    directory, sysctl = shared
    job = {"name": NAME, "argv": ["sh", "-c", "echo printed"], "duration": 1, "load": 5, "grace": 1, "limit": 1000}
    ahead, wait = {"the moment": (3, 3), "a stop": (60, 60), "a clock that is set back": (60, -4)}[event]
    times = {"sites": 0, "start": time.time() + ahead, "wait": wait}
    (directory / "job.json").write_text(json.dumps({**job, **times}))
    argv = [sys.executable, "-c", SUPERVISE, str(directory.parent), cleanup.LOCKS, str(sysctl), str(directory)]
    process = start(argv)
    end = time.monotonic() + 20
    while cleanup.read_json(str(directory / "progress.json")).get("state") != "waiting" and time.monotonic() < end:
        time.sleep(0.05)
    assert not (directory / "holds").exists()
    if event == "a stop":
        with pytest.raises(cleanup.ModuleInUse, match="in use by"), cleanup.hold_module(NAME):
            pass
        process.terminate()
    assert process.wait(20) == 0
    state = cleanup.read_json(str(directory / "state.json"))
    printed = (directory / "output").read_text() if (directory / "output").exists() else ""
    if event == "a stop":
        assert (state["state"], state["stop"], printed, "started" in state) == ("done", "signal", "", False)
    else:
        assert (state["state"], printed) == ("done", "printed\n")
    if event == "the moment":
        assert 0 <= state["started"] - times["start"] < 3
    assert not os.path.exists(os.path.join(cleanup.LOCKS, "module-" + NAME))


def test_a_program_that_cannot_be_started_ends_the_run(shared: Shared) -> None:
    directory, sysctl = shared
    job = {"name": NAME, "argv": ["/nowhere/staprun"], "duration": 1, "load": 1, "grace": 1, "limit": 1, "sites": 0}
    (directory / "job.json").write_text(json.dumps(job))
    argv = [sys.executable, "-c", SUPERVISE, str(directory.parent), cleanup.LOCKS, str(sysctl), str(directory)]
    subprocess.run(argv, check=True, timeout=20)
    assert cleanup.read_json(str(directory / "state.json"))["state"] == "done"
    assert "/nowhere/staprun" in (directory / "errors").read_text() and not (directory / "holds").exists()


def test_a_command_that_does_not_end_is_ended() -> None:
    begun = time.monotonic()
    assert cleanup.run_bounded(["sh", "-c", "sleep 1004; true"], 0.3) is None
    assert cleanup.run_bounded(["sh", "-c", "exit 3"]) == 3
    assert time.monotonic() - begun < 10


def test_a_killed_tracer_holds_nothing(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but the next run, or the task that removes the tracer, puts its sysctls back."""
    directory, sysctl = shared
    monkeypatch.setattr(tracer_daemon, "BASE", cleanup.BASE)
    tracer = directory.parent / "service.reads"
    for give_back in (lambda: collect.sweep(10), lambda: tracer_daemon.SysctlGuard("reads").leave()):
        cleanup.make_run_directory(str(tracer))
        end_hold(tracer, sysctl)
        assert give_back() == []
        assert sysctl.read_text() == "2\n" and not tracer.exists()


def test_a_tracer_without_a_sound_file_is_cleaned_up_after(
    shared: Shared, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, sysctl = shared
    monkeypatch.setattr(tracer_daemon, "BASE", cleanup.BASE)
    end_hold(directory.parent / "service.reads", sysctl)
    (tmp_path / "reads").mkdir()
    (tmp_path / "reads" / "service.json").write_text("5")
    (tmp_path / "reads" / "job.json").write_text(json.dumps({"name": NAME}))
    tracer_daemon.clean_up(str(tmp_path / "reads"))
    assert sysctl.read_text() == "2\n" and not (tmp_path / "reads" / "job.json").exists()


DAEMON = """
import sys
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise import cleanup, tracer_daemon
cleanup.BASE = tracer_daemon.BASE = sys.argv[1]
raise SystemExit(tracer_daemon.TracerDaemon(sys.argv[2]).run())
"""


@pytest.mark.parametrize("spec", ["{", '{"builds": []}', '{"builds": {"RELEASE": 5}}'])
def test_a_tracer_with_a_damaged_file_ends_in_a_sentence(base: pathlib.Path, tmp_path: pathlib.Path, spec: str) -> None:
    directory = tmp_path / "reads"
    directory.mkdir()
    (directory / "service.json").write_text(spec.replace("RELEASE", os.uname().release))
    done = subprocess.run([sys.executable, "-c", DAEMON, str(base), str(directory)], capture_output=True, check=False)
    assert done.returncode == tracer_daemon.EXIT_STAY and b"Traceback" not in done.stderr, done.stderr
    assert cleanup.read_json(str(directory / "state.json"))["state"] in ("failed", "pending")


TRACER = """
import sys
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise import cleanup, tracer_daemon
cleanup.BASE = tracer_daemon.BASE = sys.argv[1]
cleanup.LOCKS, cleanup.MODULES, sysctl, directory = sys.argv[2:]
cleanup.SYSCTLS = (sysctl,)
tracer_daemon.debugfs_mount = lambda: "/sys/kernel/debug"
raise SystemExit(tracer_daemon.TracerDaemon(directory).run())
"""
# It changes a sysctl, "loads" the module, and leaves a process in the background that keeps its pipes open.
STAPRUN = """#!/bin/sh
[ "$1" = -d ] && exec rmdir {module}
echo 0 > {sysctl}
mkdir {module}
(trap '' INT TERM; exec sleep 1005) &
trap 'rmdir {module}; exit 0' INT
echo begun
echo "WARNING: Skipped due to missed kretprobe/1 on 'f': 3" >&2
while :; do sleep 0.1; done
"""


def test_a_tracer_stops_in_time_and_leaves_nothing(shared: Shared, start: Start, tmp_path: pathlib.Path) -> None:
    _directory, sysctl = shared
    module, tracer = tmp_path / "proc" / NAME, tmp_path / "reads"
    for path in (module.parent, tracer, tmp_path / "bin"):
        path.mkdir()
    program = tmp_path / "bin" / "staprun"
    program.write_text(STAPRUN.format(module=module, sysctl=sysctl))
    program.chmod(0o755)
    output = {"directory": str(tmp_path / "log"), "file_bytes": 4096, "files": 2}
    settings = {"globals": {}, "buffer_mb": 1, "output": output, "program": "x"}
    builds = {os.uname().release: {"name": NAME, "key": "a" * 64, "path": "x.ko", "probes": []}}
    cleanup.write_json(str(tracer / "service.json"), {"name": "reads", "settings": settings, "builds": builds})
    argv = [sys.executable, "-c", TRACER, cleanup.BASE, cleanup.LOCKS, str(module.parent), str(sysctl), str(tracer)]
    daemon = start(argv, env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    end = time.monotonic() + 20
    while cleanup.read_json(str(tracer / "state.json")).get("state") != "running" and time.monotonic() < end:
        time.sleep(0.1)
    # Only loading needs the sysctls changed.
    assert sysctl.read_text() == "2\n" and not (pathlib.Path(cleanup.BASE) / "service.reads" / "holds").exists()
    daemon.terminate()
    assert daemon.wait(20) == 0
    state = cleanup.read_json(str(tracer / "state.json"))
    assert (state["state"], state["rc"], state["leftovers"]) == ("stopped", 0, [])
    assert state["messages"] == {"warnings": ["Skipped due to missed kretprobe/1 on 'f': 3"]}
    assert not module.exists() and not (tracer / "job.json").exists()
    assert (tmp_path / "log" / "trace.000001").read_text() == "begun\n"
    assert subprocess.run(["pgrep", "-fx", "sleep 1005"], check=False, capture_output=True).stdout == b""
