# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths that users give where no regular file is: an answer at once, in one sentence, and nothing is changed."""

from __future__ import annotations

import os
import pathlib
import socket
import typing as t

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.tapvirt.host.plugins.module_utils._core import write
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import progress
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.controller_files import controller_path

RunModule = t.Callable[..., t.Dict[str, t.Any]]
SCRIPT = "probe begin { exit() }\n"
KINDS = {
    "fifo": "a FIFO",
    "socket": "a socket",
    "directory": "a directory",
    "device": "a character device",
    "link": "a FIFO",
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")


def make_special(kind: str, path: pathlib.Path) -> pathlib.Path:
    """Make a file that is not a regular one; /dev/null's neighbour stands for all devices."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        os.mkfifo(path.with_suffix(".target"))
        path.symlink_to(path.with_suffix(".target"))
    else:
        os.mknod(path, 0o20600, os.makedev(1, 5))
    return path


def is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return os.path.samestat(one, other) and one.st_mode == other.st_mode and one.st_mtime_ns == other.st_mtime_ns


@pytest.fixture(params=["fifo", "socket", "directory", pytest.param("device", marks=needs_root), "link"])
def special(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> tuple[pathlib.Path, str]:
    """A path and the words for what is there."""
    return make_special(request.param, tmp_path / "x.stp"), KINDS[request.param]


def test_a_script_is_not_put_in_its_place(run_module: RunModule, special: tuple[pathlib.Path, str]) -> None:
    path, words = special
    before = path.lstat()
    args = {"src": "x.stp", "dest": str(path), "_content": SCRIPT}
    for check in (True, False) if words == "a FIFO" else (False,):
        done = run_module("stap_script", args, check=check, timeout=20)
        expected = f"Invalid value {str(path)!r} for dest: The path is {words}, not a regular file."
        assert (done.get("failed"), done["msg"]) == (True, expected)
    assert is_same(path.lstat(), before)


def test_a_script_is_not_built_from_it(run_module: RunModule, tmp_path: pathlib.Path) -> None:
    path = make_special("fifo", tmp_path / "x.stp")
    done = run_module("stap_module", {"script": str(path), "kernel": "6.1"}, timeout=20)
    problem = "The file cannot be read on the builder: it is a FIFO, not a regular file."
    expected = f"Invalid value {str(path)!r} for script: {problem}"
    assert done["msg"] == expected


def test_a_symbol_table_is_not_read_from_it(run_module: RunModule, tmp_path: pathlib.Path) -> None:
    args = {"symbols": ["vfs_read"], "source": "system_map", "path": str(make_special("fifo", tmp_path / "map"))}
    done = run_module("kernel_symbol_info", args, timeout=20)
    assert "it is a FIFO, not a regular file" in str(done)


def test_an_image_of_xen_is_not_read_from_it(run_module: RunModule, tmp_path: pathlib.Path) -> None:
    make_special("fifo", tmp_path / "xen-4.17-amd64.gz")
    (row,) = run_module("xen_info", {"boot": str(tmp_path)}, timeout=20)["images"]
    assert row["reason"] == "it is a FIFO, not a regular file"


def test_readers_and_the_writer_refuse_it(special: tuple[pathlib.Path, str]) -> None:
    path, words = special
    before = path.lstat()
    for call in (lambda: Root().read_bytes(str(path)), lambda: write.write_atomic(str(path), b"x")):
        with pytest.raises(OSError) as caught:
            call()
        assert (caught.value.strerror, caught.value.filename) == (f"it is {words}, not a regular file", str(path))
    assert is_same(path.lstat(), before)


def test_the_null_device_is_an_empty_file(tmp_path: pathlib.Path) -> None:
    """A link to it masks a file of /etc."""
    (tmp_path / "mask.conf").symlink_to("/dev/null")
    assert Root(str(tmp_path)).read_text("mask.conf") == ""
    with pytest.raises(OSError, match="it is a character device"):
        write.write_atomic("/dev/null", b"")


def test_a_link_of_another_user_gives_its_target_nothing(tmp_path: pathlib.Path) -> None:
    """The mode of the target, which may be set-user-ID, is not taken over, and the target stays as it is."""
    target = tmp_path / "target"
    target.write_text("precious")
    target.chmod(0o4755)
    path = tmp_path / "link"
    path.symlink_to(target)
    write.write_atomic(str(path), b"new", mode=0o600)
    assert (path.is_symlink(), path.lstat().st_mode & 0o7777, target.read_text()) == (False, 0o600, "precious")


@pytest.mark.parametrize("directory", [False, True])
def test_a_file_of_the_controller_is_not_put_there(
    directory: bool, special: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    path, words = special
    if words == "a directory":
        directory = False
    wanted = "directory" if directory else "regular file"
    with pytest.raises(InvalidInput) as caught:
        controller_path(str(path), name="report_dest", facts={}, directory=directory)
    assert str(caught.value) == f"Invalid value {str(path)!r} for report_dest: The path is {words}, not a {wanted}."
    (tmp_path / "file").touch()
    made = "directory cannot be created" if directory else "file cannot be written"
    with pytest.raises(InvalidInput, match=f"/file is not a directory, so the {made}"):
        controller_path(str(tmp_path / "file" / "a" / "b"), name="report_dest", facts={}, directory=directory)
    new = str(tmp_path / "new" / "a")
    assert controller_path(new, name="report_dest", facts={}, directory=directory) == new


def test_the_output_of_a_trace_is_not_put_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(AnsibleActionFail, match="output: .* is a FIFO, not a directory"):
        progress.check_directory(str(make_special("fifo", tmp_path / "x")))
    progress.check_directory(str(tmp_path))
    progress.check_directory(str(tmp_path / "new"))
