# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Xen images of Debian's packages (with all that is not looked at set to zero), and what a dom0's sysfs shows."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image import elf, xen
from ansible_collections.tapvirt.host.tests.unit.support.files import write_files
from hypothesis import given, settings
from hypothesis import strategies as st

FIXTURES = (
    next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures" / "xen" / "4.17-amd64"
)
XL = FIXTURES.parent / "4.20-dom0" / "xl-info"
DOM0_BUILD_ID = "ea92b67a6c7ec0dc9541bc73daef97756b70e672"
BUILD_ID = "151b373fd64b321593bf987fd923cd10dabadac4"
XEN = gzip.decompress((FIXTURES / "xen.gz").read_bytes())
SYMS = gzip.decompress((FIXTURES / "xen-syms.gz").read_bytes())


@pytest.fixture
def xen_tree(tmp_path):
    """An installed Xen as Debian lays it out."""
    boot, debug = tmp_path / "boot", tmp_path / "usr" / "lib" / "debug" / "boot"
    boot.mkdir()
    debug.mkdir(parents=True)
    shutil.copy(str(FIXTURES / "xen.gz"), str(boot / "xen-4.17-amd64.gz"))
    shutil.copy(str(FIXTURES / "xen.efi"), str(boot / "xen-4.17-amd64.efi"))
    shutil.copy(str(FIXTURES / "xen-syms.map"), str(debug / "xen-syms-4.17-amd64.map"))
    (boot / "xen-4.17-amd64.config").write_text("CONFIG_X86=y\n")
    (boot / "vmlinuz-6.1").write_bytes(b"MZ")
    (debug / "xen-syms-4.17-amd64").write_bytes(SYMS)
    return tmp_path


def test_xen_is_elf32_with_multiboot_headers_and_xen_syms_is_elf64(xen_tree):
    efi, image = xen.gather(Root(str(xen_tree)))["images"]
    assert image == {
        "path": "/boot/xen-4.17-amd64.gz",
        "version": "4.17-amd64",
        "state": "readable",
        "reason": None,
        "size_bytes": (FIXTURES / "xen.gz").stat().st_size,
        "compression": "gzip",
        "format": "elf32",
        "machine": "i386",
        "entry": "0x200000",
        "entry_kind": "multiboot",
        "multiboot": [{"version": 1, "offset": 136}, {"version": 2, "offset": 152}],
        "build_id": BUILD_ID,
        "running": None,
        "symbols": {
            "path": "/usr/lib/debug/boot/xen-syms-4.17-amd64",
            "state": "readable",
            "reason": None,
            "size_bytes": len(SYMS),
            "format": "elf64",
            "machine": "x86_64",
            "build_id": BUILD_ID,
            "count": 223,
            "matches": True,
            "map": "/usr/lib/debug/boot/xen-syms-4.17-amd64.map",
        },
    }
    assert (efi["format"], efi["machine"], efi["entry_kind"]) == ("pe32plus", "x86_64", "efi")
    assert (efi["entry"], efi["symbols"]) == ("0xffff82d0406303f0", None)


def test_a_directory_that_does_not_exist_is_refused_unless_it_is_the_usual_one(tmp_path):
    with pytest.raises(InvalidInput, match="^Invalid value '/nope' for boot: The directory does not exist.$"):
        xen.gather(Root(str(tmp_path)), "/nope")
    assert xen.gather(Root(str(tmp_path)), "/boot")["images"] == []


def test_an_uncompressed_image_is_the_same_image(xen_tree):
    (xen_tree / "boot" / "xen-4.17-amd64.gz").rename(xen_tree / "boot" / "old")
    (xen_tree / "boot" / "xen-4.17-amd64").write_bytes(XEN)
    image = xen.gather(Root(str(xen_tree)))["images"][0]
    assert (image["compression"], image["format"], image["build_id"]) == (None, "elf32", BUILD_ID)


def test_a_multiboot_header_with_a_wrong_checksum_is_none():
    damaged = bytearray(XEN)
    damaged[136 + 8] ^= 1
    assert list(xen.multiboot_headers(bytes(damaged))) == [{"version": 2, "offset": 152}]
    moved = b"\0" * 2 + XEN
    assert list(xen.multiboot_headers(moved)) == []
    assert list(xen.multiboot_headers(b"\0" * 8192 + XEN)) == [{"version": 2, "offset": 8192 + 152}]
    assert list(xen.multiboot_headers(b"\0" * 32768 + XEN)) == []


def test_without_multiboot_headers_the_image_is_a_plain_elf_file():
    assert xen.parse_image(XEN[:128] + b"\0" * 64 + XEN[192:]).entry_kind == "elf"


def test_damaged_images_are_reported_as_damaged(xen_tree):
    boot = xen_tree / "boot"
    (boot / "xen-4.17-amd64.gz").write_bytes((FIXTURES / "xen.gz").read_bytes()[:-2000])
    (boot / "xen-4.18.gz").write_bytes(b"\x1f\x8bnothing")
    (boot / "xen-4.19").write_bytes(b"text")
    (boot / "xen-4.20").symlink_to("nowhere")
    rows = {row["path"]: (row["state"], row["reason"]) for row in xen.gather(Root(str(xen_tree)))["images"]}
    assert rows["/boot/xen-4.17-amd64.gz"] == ("damaged", "The gzip file is cut short.")
    assert rows["/boot/xen-4.18.gz"][0] == rows["/boot/xen-4.19"][0] == "damaged"
    assert rows["/boot/xen-4.20"] == ("absent", "No such file or directory")


def test_a_file_that_unpacks_to_more_than_any_image_is_not_unpacked_whole():
    bomb = gzip.compress(XEN + b"\0" * (80 << 20), 1)
    assert len(xen.gunzip(bomb)) == 64 << 20


# As a control domain on Xen 4.20 has them, but for the build-id, which is not text.
DOM0 = {
    "type": "xen\n",
    "version/major": "4\n",
    "version/minor": "20\n",
    "version/extra": ".4-pre\n",
    "guest_type": "PV\n",
    "uuid": "00000000-0000-0000-0000-000000000000\n",
    "properties/capabilities": "xen-3.0-x86_64 \n",
    "properties/pagesize": "1000\n",
    "properties/changeset": "\n",
    "properties/virtual_start": "ffff800000000000\n",
    "compilation/compiler": "x86_64-linux-gnu-gcc (Debian 14.2.0-19) 14.2.0\n",
    "compilation/compiled_by": "pkg-xen-devel\n",
    "compilation/compile_date": "Fri Jul 31 21:59:26 UTC 2026\n",
}


def dom0(tree, build_id):
    write_files(tree, {"sys/hypervisor/" + name: text for name, text in DOM0.items()})
    write_files(tree, {"proc/xen/capabilities": "control_d\n"})
    (tree / "sys/hypervisor/properties/buildid").write_bytes(build_id)


def test_a_control_domain_agrees_with_what_xl_info_printed(tmp_path):
    dom0(tmp_path, bytes.fromhex(DOM0_BUILD_ID))
    pairs = [line.partition(":") for line in XL.read_text().splitlines()]
    xl = {name.strip(): value.strip() for name, _colon, value in pairs}
    running = xen.gather(Root(str(tmp_path)))["running"]
    assert running["version"] == xl["xen_version"]
    assert running["capabilities"] == xl["xen_caps"].split()
    assert running["page_bytes"] == int(xl["xen_pagesize"])
    assert running["build_id"] == xl["build_id"]
    assert (running["changeset"] or "") == xl["xen_changeset"]
    assert "virt_start=0x" + running["virtual_start"] == xl["platform_params"]
    assert (running["compiler"], running["compiled_by"]) == (xl["cc_compiler"], xl["cc_compile_by"])
    assert running["compile_date"] == xl["cc_compile_date"]
    assert (running["role"], running["guest_type"], running["restricted"]) == ("control_domain", "pv", [])


def test_the_running_xen_is_found_among_the_images(xen_tree):
    dom0(xen_tree, bytes.fromhex(BUILD_ID))
    assert [row["running"] for row in xen.gather(Root(str(xen_tree)))["images"]] == [None, True]
    dom0(xen_tree, bytes.fromhex(DOM0_BUILD_ID))
    assert [row["running"] for row in xen.gather(Root(str(xen_tree)))["images"]] == [None, False]
    # The kernel prints it up to its first zero byte.
    dom0(xen_tree, bytes.fromhex(BUILD_ID)[:7])
    found = xen.gather(Root(str(xen_tree)))
    assert (found["running"]["build_id"], found["images"][1]["running"]) == (None, None)


def test_what_xen_hides_from_a_guest_is_restricted(tmp_path):
    dom0(tmp_path, b"<denied>")
    write_files(tmp_path, {"sys/hypervisor/compilation/compiler": "<denied>\n", "proc/xen/capabilities": "\n"})
    running = xen.gather(Root(str(tmp_path)))["running"]
    assert (running["role"], running["compiler"], running["build_id"]) == ("guest", None, None)
    assert sorted(running["restricted"]) == ["build_id", "compiler"]


def test_no_xen_and_no_images_is_an_answer(tmp_path):
    assert xen.gather(Root(str(tmp_path))) == {"running": None, "images": [], "truncated": False}
    write_files(tmp_path, {f"boot/xen-4.{number}.gz": "" for number in range(40)})
    found = xen.gather(Root(str(tmp_path)))
    assert (len(found["images"]), found["truncated"]) == (xen.MAX_IMAGES, True)


AS_NOBODY = """
import json, sys
sys.path.insert(0, {collections!r})
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image import xen
print(json.dumps(xen.gather(Root({root!r}))))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="already unprivileged")
def test_another_user_gets_restricted_and_no_failure(xen_tree, readable_collections):
    root = pathlib.Path(readable_collections) / "xen"
    shutil.copytree(str(xen_tree), str(root))
    root.chmod(0o755)
    (root / "boot" / "xen-4.17-amd64.gz").chmod(0o600)
    (root / "usr" / "lib" / "debug" / "boot" / "xen-syms-4.17-amd64").chmod(0o600)
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    script = AS_NOBODY.format(collections=readable_collections, root=str(root))
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", script]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    efi, image = json.loads(done.stdout)["images"]
    assert (image["state"], image["reason"], image["format"]) == ("restricted", "Permission denied", None)
    assert image["symbols"]["state"] == "restricted"
    assert efi["state"] == "readable"


@pytest.mark.timeout(3600)  # of a soak test
@settings(max_examples=100000 if os.environ.get("TAPVIRT_SOAK") else 2000, deadline=None)
@given(
    source=st.sampled_from([XEN[:1024], SYMS[:4096], (FIXTURES / "xen.efi").read_bytes()]),
    changes=st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 4096),
)
def test_damaged_headers_are_refused_or_read(source, changes, length):
    data = bytearray(source[:length])
    for place, value in changes:
        if data:
            data[place % len(data)] = value
    try:
        assert len(xen.parse_image(bytes(data)).multiboot) <= 2
    except xen.NotAnImage:
        pass


def test_the_machine_codes_are_those_of_the_headers():
    header = bytearray(XEN[:1024])
    struct.pack_into("<H", header, 18, 183)
    assert xen.parse_image(bytes(header)).machine == "aarch64"
    assert elf.read_header(bytes(header)).machine == 183
