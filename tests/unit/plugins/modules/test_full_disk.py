# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Full, read-only and inode-less file systems: real ones, in a mount namespace of each test's own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest

MODULE = "ansible_collections.tapvirt.host.plugins.modules."
SCRIPT = "probe begin { exit() }\n"
FULL = ("size=16k", "head -c 1M /dev/zero > fill 2>/dev/null || true", "has no space left")
INODES = (
    "nr_inodes=4",
    "touch fill1 fill2 fill3 fill4 2>/dev/null || true",
    "has no inodes left, so no file can be made",
)
READ_ONLY = ("size=16k", "mount -o remount,ro .", "is read-only")
DISKS = pytest.mark.parametrize("disk", [FULL, INODES, READ_ONLY], ids=["full", "inodes", "read-only"])


def _can_mount() -> bool:
    argv = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not _can_mount(), reason="this user cannot mount a file system of its own")


def run_on(
    disk: tuple[str, str, str], place: str, argv: t.Sequence[str], stdin: str = "", before: str = ":"
) -> tuple[str, list[str]]:
    """Run a program with a file system at a place; return what it printed, and the files there afterwards.

    :param before: a shell command that runs in the new file system before it becomes full or read-only.
    """
    options, spoil, _words = disk
    text = (
        f"mount -t tmpfs -o mode=755,{options} none {place} && cd {place} || exit 99\n"
        f"{{ {before}; }} && {{ {spoil}; }} && cd / || exit 99\n"
        f'"$@"; echo; echo ---; cd {place}; find . -mindepth 1 ! -name "fill*" -printf "%P %s\\n" | sort'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", text, "sh", *argv], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    printed, _mark, listing = done.stdout.rpartition("---\n")
    return printed.strip() or done.stderr, listing.splitlines()


def run_module_on(
    disk: tuple[str, str, str], place: str, name: str, args: dict[str, t.Any], before: str = ":"
) -> tuple[dict[str, t.Any], list[str]]:
    text = json.dumps({"ANSIBLE_MODULE_ARGS": args})
    printed, files = run_on(disk, place, [sys.executable, "-m", MODULE + name], text, before)
    return json.loads(printed), files


def run_code_on(disk: tuple[str, str, str], place: str, code: str, before: str = ":") -> tuple[str, list[str]]:
    """Run a body as a module does; return the message of its failure, and the files there afterwards."""
    text = (
        "from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module\n"
        "from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError\n"
        f"def body(module):\n{code}\n    return {{}}\n"
        "run_module({}, body)\n"
    )
    stdin = json.dumps({"ANSIBLE_MODULE_ARGS": {}})
    printed, files = run_on(disk, place, [sys.executable, "-c", text], stdin, before)
    return json.loads(printed)["msg"], files


@DISKS
def test_a_script_that_does_not_fit_leaves_nothing(disk: tuple[str, str, str], tmp_path: pathlib.Path) -> None:
    dest = tmp_path / "a" / "b" / "x.stp"
    script = "#" * 100_000 + "\n" + SCRIPT
    done, files = run_module_on(
        disk, str(tmp_path), "stap_script", {"src": "x.stp", "dest": str(dest), "_content": script}
    )
    place = str(dest) if disk is FULL else str(tmp_path / "a")
    if disk is READ_ONLY:  # known before anything is written
        message = f"Invalid value '{dest}' for dest: The file system of {tmp_path} is mounted read-only."
    else:
        message = f"{place} cannot be written: its file system {disk[2]}. Nothing was changed."
    assert (done["msg"], files) == (message, [])


def test_an_old_script_stays_whole(tmp_path: pathlib.Path) -> None:
    args = {"src": "x.stp", "dest": str(tmp_path / "x.stp"), "_content": "#" * 100_000 + "\n" + SCRIPT}
    done, files = run_module_on(FULL, str(tmp_path), "stap_script", args, "echo 1234567 > x.stp")
    assert "has no space left. Nothing was changed." in done["msg"]
    assert files == ["x.stp 8"]


PRUNE = "mkdir -p {key} .lock .work; chmod 700 .lock; touch .lock/{key}; head -c 8k /dev/zero > {key}/x.ko; " + (
    "touch -d '40 days ago' {key}"
)


def test_a_full_store_is_pruned(tmp_path: pathlib.Path) -> None:
    """That is how it gets room again."""
    args = {"store": str(tmp_path), "older_than": "1d"}
    done, files = run_module_on(FULL, str(tmp_path), "stap_store", args, PRUNE.format(key="a" * 64))
    assert (done.get("msg"), done["changed"], len(done["removed"])) == (None, True, 1), done
    assert [line.split()[0] for line in files] == [".lock", ".work"]


def test_a_store_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    args = {"store": str(tmp_path), "older_than": "1d"}
    before = f"mkdir {'a' * 64}; touch -d '40 days ago' {'a' * 64}"
    done, _files = run_module_on(READ_ONLY, str(tmp_path), "stap_store", args, before)
    assert done["msg"] == f"{tmp_path}/.lock cannot be written: its file system is read-only."


@DISKS
def test_nothing_is_added_to_a_store(disk: tuple[str, str, str], tmp_path: pathlib.Path) -> None:
    code = (
        "    from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import build\n"
        "    from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import toolchain\n"
        "    from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import store\n"
        "    kernel = toolchain.Kernel('6.1', 'v', 14, 'gcc-14', None, 'x')\n"
        "    from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root\n"
        f"    order = build.BuildRequest('x', {SCRIPT!r} * 9000, kernel, False, 10)\n"
        "    build.key_of = lambda *_: 'a' * 64\n"
        f"    build.build_once(order, None, store.Store({str(tmp_path)!r}), Root())"
    )
    before = "mkdir -m 700 .lock; mkdir .work" if disk is INODES else ":"
    message, files = run_code_on(disk, str(tmp_path), code, before)
    assert message.startswith(f"{tmp_path}/.") and message.endswith(
        f" cannot be written: its file system {disk[2]}. No module was added to the store."
    ), message
    assert not any(line.startswith("a" * 64) for line in files)


@pytest.mark.parametrize("disk", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_a_module_that_does_not_fit_is_not_loaded(disk: tuple[str, str, str], tmp_path: pathlib.Path) -> None:
    code = (
        "    import hashlib\n"
        "    from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import start as run\n"
        f"    run.CACHE = {str(tmp_path)!r}\n"
        "    data = open(run.__file__, 'rb').read() * 9\n"
        "    open('/dev/shm/tapvirt-test.ko', 'wb').write(data)\n"
        "    build = {'name': 'x', 'sha256': hashlib.sha256(data).hexdigest()}\n"
        "    run.install_module(build, '/dev/shm/tapvirt-test.ko')"
    )
    try:
        message, files = run_code_on(disk, str(tmp_path), code)
    finally:
        os.unlink("/dev/shm/tapvirt-test.ko")
    assert message.startswith(f"{tmp_path}/") and message.endswith(
        f" cannot be written: its file system {disk[2]}. Nothing was loaded."
    ), message
    assert files == []


@DISKS
def test_a_root_of_the_embedded_driver_is_not_begun(disk: tuple[str, str, str], tmp_path: pathlib.Path) -> None:
    code = (
        "    from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection import embed\n"
        f"    embed.EmbedRoot({str(tmp_path / 'e')!r}).prepare()"
    )
    message, _files = run_code_on(disk, str(tmp_path), code)
    assert message.startswith(f"{tmp_path}/e") and message.endswith(
        f" cannot be written: its file system {disk[2]}. No domain was changed."
    ), message


@DISKS
def test_a_parameter_is_not_set_without_a_journal(disk: tuple[str, str, str], tmp_path: pathlib.Path) -> None:
    state = tmp_path / "var" / "lib"
    sysfs = tmp_path / "sys" / "module" / "m" / "parameters"
    for directory in (state, sysfs):
        directory.mkdir(parents=True)
    (sysfs / "p").write_text("1\n")
    code = (
        "    from ansible_collections.tapvirt.host.plugins.module_utils._core.journal import Journal\n"
        f"    journal = Journal({str(state / 'tapvirt')!r}, 'kernel_module_param')\n"
        "    with journal.locked():\n"
        "        journal.write({'a': 'x' * 100_000})"
    )
    message, _files = run_code_on(disk, str(state), code)
    assert message.startswith(f"{state}/tapvirt") and f" cannot be written: its file system {disk[2]}." in message, (
        message
    )


def test_a_temporary_directory_that_is_full_is_named(tmp_path: pathlib.Path) -> None:
    code = (
        "    import tempfile\n"
        f"    tempfile._candidate_tempdir_list = lambda: [{str(tmp_path)!r}]\n"
        "    tempfile.mkdtemp()"
    )
    message, _files = run_code_on(READ_ONLY, str(tmp_path), code)
    assert message == f"A temporary file cannot be written: every one of ['{tmp_path}'] is full, read-only or missing."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tcp_cubic/parameters/hystart_low_window", 1000),
        # The kernel makes HZ of it, which is written down before verifying.
        ("rcutree/parameters/jiffies_till_first_fqs", 100_000),
    ],
)
@pytest.mark.usefixtures("this_kernel")
def test_a_parameter_is_put_back_when_the_disk_fills_before_the_journal_is_finished(
    name: str, value: int, tmp_path: pathlib.Path
) -> None:
    """Two pages: one for the lock, one for the journal of the start. Replacing that needs a third."""
    shared = pathlib.Path("/sys/module", name)
    if not shared.exists():
        pytest.skip("this kernel has no such parameter")
    state = tmp_path / "var" / "lib" / "tapvirt"
    parameters = tmp_path / "sys" / "module" / "m" / "parameters"
    for directory in (state, parameters):
        directory.mkdir(parents=True)
    (tmp_path / "proc").symlink_to("/proc")
    (parameters / "p").symlink_to(shared)
    (parameters.parent / "initstate").write_text("live\n")
    before = shared.read_text()
    entry = {"module": "m", "name": "p", "value": value, "runtime": True, "persist": "none"}
    area = "ansible_collections.tapvirt.host.plugins.module_utils."
    code = (
        f"    from {area}_core.root import Root\n"
        f"    from {area}_kernel.parameters.model import wanted_list\n"
        f"    from {area}_kernel.parameters.run import Parameters\n"
        f"    wanted = wanted_list([{{**{entry!r}, 'read_back': 'auto'}}], 'present')\n"
        f"    Parameters(Root({str(tmp_path)!r}), 'x86_64', wanted, 'present').converge(False)"
    )
    try:
        message, files = run_code_on(("size=8k", ":", ""), str(state), code)
        assert (shared.read_text(), message) == (
            before,
            f"{state}/kernel_module_param.json cannot be written: its file system has no space left. "
            "Everything is as it was before.",
        )
        assert not any("kernel_module_param.json" in line for line in files), files
    finally:
        shared.write_text(before)
