# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an initramfs says of a module: images packed here in every way that distributions pack them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pathlib
import shutil
import subprocess

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core import command
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.modules import initramfs
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.model import wanted_list
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.run import Parameters
from ansible_collections.tapvirt.host.tests.unit.support.files import write_files

RELEASE = "6.12.107"
IMAGE = "boot/initrd.img-" + RELEASE
MODULES = {"usr/lib/modules/6.12/kernel/drivers/block/virtio-blk.ko.xz": b"\x7fELF", "usr/lib/x.ko": b""}
OPTIONS = {
    "etc/modprobe.d/a.conf": b"options virtio-blk queue_depth=64\n",
    "usr/lib/modprobe.d/a.conf": b"options virtio_blk queue_depth=1\n",
    "usr/lib/modprobe.d/b.conf": b"options virtio_blk num_request_queues=2\n",
    "etc/modprobe.d/notes.txt": b"options virtio_blk num_request_queues=9\n",
}


def cpio(files):
    """Return a cpio archive ("newc"), as the kernel's gen_init_cpio writes it."""
    data = b""
    for number, (name, content) in enumerate([*files.items(), ("TRAILER!!!", b"")]):
        encoded = name.encode() + b"\0"
        fields = [number, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
        data += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        data += b"\0" * (-len(data) % 4) + content
        data += b"\0" * (-len(data) % 4)
    return data


def by_program(*argv):
    def packed(data):
        if shutil.which(argv[0]) is None:
            pytest.skip(f"no {argv[0]} here")
        return subprocess.run(argv, input=data, stdout=subprocess.PIPE, check=True).stdout

    return packed


PACKERS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": by_program("zstd", "-q", "-c"),
    "lz4": by_program("lz4", "-l", "-q", "-c"),
}


@pytest.fixture
def blk_root(tmp_path):
    write_files(
        tmp_path,
        {
            "proc/sys/kernel/osrelease": RELEASE,
            f"lib/modules/{RELEASE}/modules.dep": "kernel/virtio_blk.ko:\n",
            "sys/module/virtio_blk/initstate": "live\n",
            "sys/module/virtio_blk/parameters/queue_depth": "64\n",
            "sys/module/virtio_blk/parameters/num_request_queues": "0\n",
        },
    )
    for name in ("boot", "etc/modprobe.d"):
        (tmp_path / name).mkdir(parents=True)
    return Root(str(tmp_path))


def image(root, data):
    with open(root.path(IMAGE), "wb") as stream:
        stream.write(data)


def aged(root, seconds):
    """Let the image be made so long after the last change of modprobe.d."""
    newest = os.stat(root.path("etc/modprobe.d")).st_mtime
    os.utime(root.path(IMAGE), (newest + seconds, newest + seconds))


def set_queue_depth(root, value, state="present", check=False, **options):
    entry = {"module": "virtio_blk", "name": "queue_depth", "value": value, "runtime": True, "read_back": "auto"}
    wanted = wanted_list([{**entry, "persist": "auto"}], state)
    plan, result = Parameters(root, "x86_64", wanted, state, **options).converge(check)
    return plan, result["params"][0]


@pytest.mark.parametrize("packer", sorted(PACKERS))
@pytest.mark.parametrize("microcode", [False, True])
def test_modules_and_options_are_found_however_the_image_is_packed(packer, microcode, blk_root):
    first = cpio({"kernel/x86/microcode/AuthenticAMD.bin": b"\1" * 5001}) + b"\0" * 1536 if microcode else b""
    image(blk_root, first + PACKERS[packer](cpio({**MODULES, **OPTIONS}) + b"\0" * 200))
    assert initramfs.image_of(blk_root, RELEASE) == IMAGE
    found = initramfs.read_image(blk_root, IMAGE, RELEASE)
    assert found.unreadable is None
    assert found.modules == {"virtio_blk", "x"}
    options = {key: option.value for key, option in found.options.items()}
    assert options == {("virtio_blk", "queue_depth"): "64", ("virtio_blk", "num_request_queues"): "2"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x89LZO\0\r\n\x1a\n....", "compressed in a way that is not known here"),
        (gzip.compress(cpio(MODULES))[:-30], "damaged"),
        (gzip.compress(b"no archive at all"), "no archive that is known here"),
        (cpio(MODULES)[:150], "it ends too early"),
        (cpio(MODULES).replace(b"070701", b"999999")[6:], "not known here"),
        (b"070701" + b"x" * 200, "damaged"),
        (b"\x28\xb5\x2f\xfd nothing", "zstd"),
    ],
    # Not the bytes: those of gzip hold the time, and two workers would collect different tests.
    ids=[
        "lzo",
        "gzip cut short",
        "gzip of no archive",
        "cut short",
        "no archive",
        "damaged archive",
        "zstd of nothing",
    ],
)
def test_an_image_that_cannot_be_read_gives_the_reason(data, reason, blk_root):
    image(blk_root, data)
    found = initramfs.read_image(blk_root, IMAGE, RELEASE)
    message = str(found.unreadable)
    assert reason in message
    aged(blk_root, -5)
    assert any(message in text for text in set_queue_depth(blk_root, 64)[1]["pending"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_image_that_this_user_may_not_read_is_not_called_damaged(blk_root):
    image(blk_root, cpio(MODULES))
    os.chmod(blk_root.path(IMAGE), 0o600)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        message = initramfs.read_image(blk_root, IMAGE, RELEASE).unreadable
        os._exit(0 if message == "this user may not read it" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_image_that_takes_a_program_which_is_missing_or_slow_reports_it(blk_root, monkeypatch):
    image(blk_root, b"\x28\xb5\x2f\xfd")
    os.mkdir(blk_root.path("bin"))
    with open(blk_root.path("bin/zstd"), "w", encoding="ascii") as stream:
        stream.write("#!/bin/sh\nsleep 60\n")
    os.chmod(blk_root.path("bin/zstd"), 0o755)
    monkeypatch.setenv("PATH", blk_root.path("bin"), prepend=os.pathsep)
    message = initramfs.read_image(blk_root, IMAGE, RELEASE, unpack_seconds=0.1).unreadable
    assert message == "zstd takes longer than 0.1 s to unpack it"
    monkeypatch.setattr(command, "find_program", lambda _name: None)
    assert initramfs.read_image(blk_root, IMAGE, RELEASE).unreadable == "it takes the program zstd to unpack it"


def test_a_stale_image_is_reported_until_it_has_what_modprobe_d_has(blk_root):
    image(blk_root, gzip.compress(cpio({**MODULES, "etc/modprobe.d/a.conf": b"options virtio_blk queue_depth=32\n"})))
    for check in (True, False):
        _plan, row = set_queue_depth(blk_root, 64, check=check)
        assert [text.split(", and loads")[0] for text in row["pending"]] == [
            f"/{IMAGE} has the module with queue_depth=32"
        ]
    aged(blk_root, -5)
    plan, row = set_queue_depth(blk_root, 64)
    assert (bool(plan), row["verdict"]) == (False, "pending")
    image(blk_root, gzip.compress(cpio({**MODULES, "etc/modprobe.d/a.conf": b"options virtio_blk queue_depth=0x40\n"})))
    aged(blk_root, -5)
    assert set_queue_depth(blk_root, 64)[1]["pending"] == []


def test_a_module_that_is_not_in_the_image_is_nothing_to_say(blk_root):
    image(blk_root, gzip.compress(cpio({"usr/lib/other.ko": b"", **OPTIONS})))
    assert set_queue_depth(blk_root, 128)[1]["pending"] == []


def test_an_image_that_is_newer_than_all_of_modprobe_d_is_not_read(blk_root):
    image(blk_root, b"not an image")
    assert "cannot be seen" in set_queue_depth(blk_root, 64)[1]["pending"][0]
    aged(blk_root, 5)
    assert set_queue_depth(blk_root, 64)[1]["pending"] == []
    with open(blk_root.path("etc/modprobe.d/other.conf"), "w", encoding="ascii") as stream:
        stream.write("options x y=1\n")
    aged(blk_root, -5)
    assert "cannot be seen" in set_queue_depth(blk_root, 64)[1]["pending"][0]


def test_what_was_taken_out_of_modprobe_d_is_stale_in_the_image_that_has_it(blk_root):
    set_queue_depth(blk_root, 64)
    ours = blk_root.read_bytes("etc/modprobe.d/zz-tapvirt.conf")
    image(blk_root, cpio({**MODULES, "etc/modprobe.d/zz-tapvirt.conf": ours}))
    plan, row = set_queue_depth(blk_root, None, state="restored")
    assert [step.what for step in plan] == ["virtio_blk.queue_depth in /etc/modprobe.d/zz-tapvirt.conf"]
    assert "has the module with queue_depth=64" in row["pending"][0]
    aged(blk_root, 5)
    assert set_queue_depth(blk_root, None, state="restored")[1]["pending"] == []


PROGRAM = """#!/bin/sh
echo "$0 $*" >> {tree}/called
cp {tree}/new {tree}/{image}
exit {rc}
"""


def program(root, monkeypatch, new, rc=0):
    """Put an update-initramfs in the way that makes the image that is given."""
    tree = root.path("")
    os.makedirs(tree + "bin", exist_ok=True)
    with open(tree + "bin/update-initramfs", "w", encoding="ascii") as stream:
        stream.write(PROGRAM.format(tree=tree, image=IMAGE, rc=rc))
    os.chmod(tree + "bin/update-initramfs", 0o755)
    with open(tree + "new", "wb") as stream:
        stream.write(new)
    monkeypatch.setenv("PATH", tree + "bin", prepend=os.pathsep)


def test_a_stale_image_is_made_again_on_request_only_and_never_in_check_mode(blk_root, monkeypatch):
    image(blk_root, cpio(MODULES))
    program(blk_root, monkeypatch, cpio({**MODULES, "etc/modprobe.d/a.conf": b"options virtio_blk queue_depth=64\n"}))
    set_queue_depth(blk_root, 64, check=True, refresh_initramfs=True)
    set_queue_depth(blk_root, 64)
    assert not blk_root.exists("called")
    plan, row = set_queue_depth(blk_root, 64, refresh_initramfs=True)
    assert [(step.what, step.how) for step in plan] == [("/" + IMAGE, "update-initramfs -u -k " + RELEASE)]
    assert (row["verdict"], row["pending"]) == ("changed", [])
    assert blk_root.read_text("called").endswith(f"update-initramfs -u -k {RELEASE}\n")
    assert not set_queue_depth(blk_root, 64, refresh_initramfs=True)[0]


@pytest.mark.parametrize(("rc", "reason"), [(0, "still has other options"), (3, "update-initramfs failed .3.")])
def test_making_it_again_without_effect_fails_and_leaves_everything_as_before(rc, reason, blk_root, monkeypatch):
    image(blk_root, cpio(MODULES))
    program(blk_root, monkeypatch, cpio(MODULES), rc)
    with pytest.raises(TapvirtError, match=reason + ".*Everything is as it was before"):
        set_queue_depth(blk_root, 32, refresh_initramfs=True)
    assert not blk_root.exists("etc/modprobe.d/zz-tapvirt.conf")
    assert blk_root.read_text("sys/module/virtio_blk/parameters/queue_depth") == "64"
    # An image that was made with the wanted value is made again without it.
    assert len(blk_root.read_text("called").splitlines()) == (2 if rc == 0 else 1)


def test_a_file_that_cannot_be_put_back_is_named_and_values_are_put_back_all_the_same(blk_root, monkeypatch):
    image(blk_root, cpio(MODULES))
    program(blk_root, monkeypatch, cpio(MODULES), 3)
    place, value = blk_root.path("etc/modprobe.d"), blk_root.path("sys/module/virtio_blk/parameters/queue_depth")
    pathlib.Path(place, "zz-tapvirt.conf").write_text("options virtio_blk queue_depth=64\n")
    script = f"#!/bin/sh\nrm -r {place} && : >{place}\nexit 3\n"
    pathlib.Path(blk_root.path("bin/update-initramfs")).write_text(script)
    os.chmod(value, 0o644)
    with pytest.raises(
        TapvirtError, match="Not everything could be put back: /etc/modprobe.d/zz-tapvirt.conf: Not a directory"
    ):
        set_queue_depth(blk_root, 32, refresh_initramfs=True)
    assert blk_root.read_text("sys/module/virtio_blk/parameters/queue_depth").strip() == "64"


def test_without_a_program_that_could_make_it_again_that_is_refused(blk_root, monkeypatch):
    image(blk_root, cpio(MODULES))
    monkeypatch.setattr(initramfs, "find_program", lambda _name: None)
    with pytest.raises(TapvirtError, match="neither update-initramfs nor dracut"):
        set_queue_depth(blk_root, 64, refresh_initramfs=True)
