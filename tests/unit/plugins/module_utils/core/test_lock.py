# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks: bounded, private, and no door to other files. Other processes hold them, other users attack them."""

from __future__ import annotations

import fcntl
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core import files, lock, write

HOLD = """
import sys
from ansible_collections.tapvirt.host.plugins.module_utils._core import lock
with lock.hold(sys.argv[1], "the test", shared=sys.argv[2] == "shared", temporary=sys.argv[2] == "temporary"):
    print("held", flush=True)
    sys.stdin.read()
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


class Holder:
    """Another process that holds a lock."""

    def __init__(self, path: pathlib.Path, how: str = "alone") -> None:
        self._argv = [sys.executable, "-c", HOLD, str(path), how]

    def __enter__(self) -> int:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert t.cast("t.IO[str]", self._process.stdout).readline() == "held\n"
        return self._process.pid

    def __exit__(self, *_error: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(params=[0, 0o002, 0o077], ids=lambda mask: f"umask {mask:03o}")
def umask(request: pytest.FixtureRequest) -> t.Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: pathlib.Path) -> int:
    return path.lstat().st_mode & 0o7777


@pytest.mark.usefixtures("umask")
def test_other_users_cannot_open_a_lock(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a" / "lock" / "one"
    with lock.hold(str(path), "the test"):
        assert (mode(path), mode(path.parent), mode(path.parent.parent)) == (0o600, 0o700, 0o755)


def test_a_lock_of_before_becomes_private(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "one"
    path.touch(0o644)
    with lock.hold(str(path), "the test"):
        assert (mode(path), mode(tmp_path)) == (0o600, 0o700)


def test_a_wait_ends_and_names_the_holder(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lock" / "one"
    with Holder(path) as pid:
        started = time.monotonic()
        with pytest.raises(lock.LockTimeout) as caught, lock.hold(str(path), "the test", wait_seconds=0.3):
            pytest.fail("two held it")
        assert 0.3 <= time.monotonic() - started < 2
    expected = (
        rf"The test: the lock {re.escape(str(path))} was not free within 0\.3 seconds\. "
        rf"Process {pid} of user {files.user_name(os.geteuid())} has held it for \d+ seconds\."
    )
    assert re.match(expected, caught.value.message)
    with lock.hold(str(path), "the test", wait_seconds=0):
        pass


def test_a_holder_that_wrote_nothing_is_reported_as_such(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o700)
    with (tmp_path / "one").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(lock.LockTimeout, match="Another process holds it"):
            lock.take(str(tmp_path / "one"), "the test", wait_seconds=0)


def test_shared_locks_are_held_together(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lock" / "one"
    refused = pytest.raises(lock.LockTimeout)
    with Holder(path, "shared"), lock.hold(str(path), "the test", wait_seconds=0, shared=True), refused:
        lock.take(str(path), "the test", wait_seconds=0)


def test_a_temporary_lock_leaves_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run" / "lock" / "one"
    with Holder(path, "temporary"):
        with lock.hold(str(path.with_name("two")), "the test", temporary=True):
            pass
        assert os.listdir(path.parent) == ["one"]
    assert os.listdir(tmp_path) == []


def test_temporary_locks_keep_others_away_though_their_files_disappear(tmp_path: pathlib.Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")
    program = (
        "import pathlib, sys\n"
        "from ansible_collections.tapvirt.host.plugins.module_utils._core import lock\n"
        "count = pathlib.Path(sys.argv[1])\n"
        "for _time in range(100):\n"
        "    with lock.hold(str(count.parent / 'run' / 'lock' / 'one'), 'the test', temporary=True):\n"
        "        count.write_text(str(int(count.read_text()) + 1))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(count)]) for _number in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert count.read_text() == "400"


def test_whether_it_is_held_is_reported_without_a_trace(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lock" / "one"
    assert not lock.is_held(str(path))
    with Holder(path):
        assert lock.is_held(str(path))
    assert not lock.is_held(str(path))
    assert os.listdir(tmp_path) == ["lock"]


def test_looking_at_a_lock_changes_no_mode(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lock" / "one"
    path.parent.mkdir()
    path.touch()
    path.parent.chmod(0o755)
    path.chmod(0o644)
    assert not lock.is_held(str(path))
    assert (mode(path.parent), mode(path)) == (0o755, 0o644)


AS_OTHER = """
import os, sys
from ansible_collections.tapvirt.host.plugins.module_utils._core import lock
os.setegid(4321)
os.seteuid(4321)
for call in (lock.is_held, lambda path: lock.take(path, "the test", 0)):
    try:
        print(call(sys.argv[1]))
    except lock.UnsafeLock as error:
        print(error.message)
"""


@needs_root
@pytest.mark.parametrize(("mask", "held"), [(0o644, "False"), (0o600, None)])
def test_a_lock_that_root_left_is_named_to_the_owner_of_its_directory(mask: int, held: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="tapvirt-") as top:
        os.chmod(top, 0o755)
        path = pathlib.Path(top) / "lock" / "one"
        path.parent.mkdir(0o700)
        path.touch()
        path.chmod(mask)
        os.chown(path.parent, 4321, 4321)
        done = subprocess.run([sys.executable, "-c", AS_OTHER, path], capture_output=True, text=True, check=True)
        refused = f"{path} is not used for locks: it belongs to root, and this task runs as 4321; remove it."
        assert done.stdout.splitlines() == [held or refused, refused]
        assert mode(path) == mask


def make_link(path: pathlib.Path, target: pathlib.Path) -> None:
    path.symlink_to(target)


def make_socket(path: pathlib.Path, _target: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    "make",
    [
        make_link,
        make_socket,
        pytest.param(lambda path, _target: os.mkfifo(path), id="fifo"),
        pytest.param(lambda path, _target: path.mkdir(), id="directory"),
    ],
)
def test_what_is_not_a_regular_file_is_refused(make: t.Any, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    path = tmp_path / "lock" / "one"
    path.parent.mkdir(0o700)
    make(path, target)
    started = time.monotonic()
    for call in (lambda: lock.take(str(path), "the test"), lambda: lock.is_held(str(path))):
        with pytest.raises(lock.UnsafeLock, match="it is not a regular file"):
            call()
    assert time.monotonic() - started < 2
    assert target.read_text() == "precious"


def test_a_link_as_the_directory_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "target").mkdir(0o755)
    (tmp_path / "lock").symlink_to("target")
    with pytest.raises(lock.UnsafeLock, match="it is not a regular directory"):
        lock.take(str(tmp_path / "lock" / "one"), "the test")
    assert (os.listdir(tmp_path / "target"), mode(tmp_path / "target")) == ([], 0o755)


@needs_root
@pytest.mark.parametrize("name", ["", "one"])
def test_a_lock_of_another_user_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lock" / "one"
    path.parent.mkdir(0o700)
    path.touch(0o600)
    os.chown(path.parent / name, 4321, 4321)
    with pytest.raises(lock.UnsafeLock, match="it belongs to 4321, and this task runs as root"):
        lock.take(str(path), "the test")


@pytest.mark.usefixtures("umask")
def test_every_level_of_a_directory_has_its_mode(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    write.make_directories(str(path), 0o750)
    assert [mode(level) for level in (path.parent.parent, path.parent, path)] == [0o755, 0o755, 0o750]
    path.parent.chmod(0o711)
    write.make_directories(str(path), 0o700)
    assert [mode(level) for level in (path.parent, path)] == [0o711, 0o750]


def test_a_file_among_the_levels_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(NotADirectoryError, match=re.escape(str(tmp_path / "a"))):
        write.make_directories(str(tmp_path / "a" / "b"))


def test_others_cannot_write_to_what_a_task_and_its_programs_make(tmp_path: pathlib.Path) -> None:
    program = (
        "import os, pathlib, subprocess\n"
        "from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module\n"
        "def body(module):\n"
        "    pathlib.Path('one').touch()\n"
        "    subprocess.run(['mkdir', 'two'], check=True)\n"
        "    return {}\n"
        "os.umask(0)\n"
        "run_module({}, body)\n"
    )
    argv = [sys.executable, "-c", program]
    subprocess.run(argv, input='{"ANSIBLE_MODULE_ARGS": {}}', text=True, cwd=str(tmp_path), check=True)
    assert [mode(tmp_path / "one"), mode(tmp_path / "two")] == [0o644, 0o755]
