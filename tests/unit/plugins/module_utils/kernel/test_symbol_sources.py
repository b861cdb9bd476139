# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""System.map, Module.symvers and Xen's symbols, as real kernels and packages have them, and their reconciliation."""

from __future__ import annotations

import gzip
import os
import pathlib
import re

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.compare import compare, drift
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.exports import parse_symvers_line
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.lookup import Place, look_up
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.probeability import in_ftrace
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.sources import (
    Source,
    map_table,
    read_source,
    symvers_table,
)
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.table import SymbolTable
from ansible_collections.tapvirt.host.tests.unit.support.files import write_files
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("this_kernel")

FIXTURES = next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures"
RELEASE = "6.12.107+deb13-cloud-amd64"
OLDER = "6.1.0-50-cloud-amd64"
NEWER = "7.2.12+deb14-cloud-amd64"
KALLSYMS = (FIXTURES / "kernel" / RELEASE / "kallsyms").read_bytes()
SYSTEM_MAP = (FIXTURES / "kernel" / RELEASE / "System.map").read_bytes()
OLDER_MAP = (FIXTURES / "kernel" / OLDER / "System.map").read_bytes()
SYMVERS = (FIXTURES / "kernel" / RELEASE / "Module.symvers").read_bytes()
NOTES = (FIXTURES / "kernel" / RELEASE / "notes").read_bytes()
BUILD_ID = "e1b6c81f7afcf08c49c197583920e5307d281cdf"
HIDDEN = re.sub(rb"(?m)^[0-9a-f]{16}", b"0" * 16, KALLSYMS)
XEN = FIXTURES / "xen" / "4.17-amd64"
DOM0 = FIXTURES / "xen" / "4.20-dom0"
DOM0_BUILD_ID = "ea92b67a6c7ec0dc9541bc73daef97756b70e672"
XEN_BUILD_ID = "151b373fd64b321593bf987fd923cd10dabadac4"
EXAMPLES = 100000 if os.environ.get("TAPVIRT_SOAK") else 2000


@pytest.fixture
def kernel_tree(tmp_path):
    """A running kernel, and Debian's placeholder for its System.map."""
    files = {
        "proc/kallsyms": KALLSYMS,
        "proc/sys/kernel/osrelease": RELEASE.encode() + b"\n",
        "sys/kernel/notes": NOTES,
    }
    placeholder = (FIXTURES / "kernel" / OLDER / "System.map-placeholder").read_bytes()
    write_files(tmp_path, {**files, "boot/System.map-" + RELEASE: placeholder})
    return tmp_path


def find(tree, *symbols, kind="system_map", path=None, against=None, owner=None, limit=40):
    return look_up(Root(str(tree)), symbols, owner, limit, Place(kind, path), against)


def debug_map(tree, content=SYSTEM_MAP):
    write_files(tree, {"usr/lib/debug/boot/System.map-" + RELEASE: content})


@pytest.mark.parametrize("release", [OLDER, NEWER])
def test_a_placeholder_is_no_table_and_names_the_package(kernel_tree, release):
    text = (FIXTURES / "kernel" / release / "System.map-placeholder").read_bytes()
    write_files(kernel_tree, {"boot/System.map-" + RELEASE: text})
    found = find(kernel_tree, "vfs_read", "vfs_*")
    # Newer packages write the release themselves.
    package = f"linux-image-{RELEASE if release == OLDER else NEWER}-dbg"
    reason = f"it is a placeholder: The real System.map is in the {package} package"
    name = "/boot/System.map-" + RELEASE
    assert found["source"] == {"kind": "system_map", "name": name, "state": "placeholder", "reason": reason}
    assert [row["status"] for row in found["symbols"]] == ["data_unavailable", "data_unavailable"]
    assert package in found["symbols"][0]["reason"]


def test_the_map_of_the_debug_package_is_found_behind_the_placeholder(kernel_tree):
    debug_map(kernel_tree)
    found = find(kernel_tree, "vfs_read", "init_once", "no_such_name", "vfs_*")
    assert found["source"]["name"] == "/usr/lib/debug/boot/System.map-" + RELEASE
    row, ambiguous, absent, pattern = found["symbols"]
    assert (row["status"], row["matches"][0]["address"]) == ("found", "0xffffffff81430990")
    assert (row["probeable"], row["probeable_reason"]) == (
        None,
        "only the running kernel's own table tells what can be probed",
    )
    assert (ambiguous["status"], ambiguous["count"]) == ("ambiguous", 9)
    assert (absent["status"], pattern["count"]) == ("absent", 4)


def test_without_any_map_there_is_none(tmp_path):
    found = find(tmp_path, "vfs_read")
    assert (found["source"]["state"], found["symbols"][0]["status"]) == ("absent", "data_unavailable")
    write_files(tmp_path, {"some/file": b"this is no map\n"})
    assert find(tmp_path, "vfs_read", path="/some/file")["source"] == {
        "kind": "system_map",
        "name": "/some/file",
        "state": "damaged",
        "reason": "it is not in the format of this source",
    }


def test_a_map_of_the_running_kernel_is_bound_to_its_build_id(kernel_tree):
    debug_map(kernel_tree)
    found = find(kernel_tree, "vfs_read", against=Place())
    comparison = found["comparison"]
    assert (comparison["verdict"], comparison["build_id"]) == ("same_kernel", BUILD_ID)
    assert (comparison["offset"], comparison["differing"]) == ("0x20e00000", 0)
    assert comparison["compared"] > 100
    row = found["symbols"][0]
    assert (row["status"], row["drift"], row["matches"][0]["address"]) == ("found", "none", "0xffffffff81430990")
    running = find(kernel_tree, "vfs_read", kind="kallsyms", against=Place("system_map"))
    assert (running["comparison"]["verdict"], running["comparison"]["offset"]) == ("same_kernel", "-0x20e00000")
    assert running["symbols"][0]["matches"][0]["address"] == "0xffffffffa2230990"


def test_addresses_of_another_kernels_map_are_never_returned(kernel_tree):
    debug_map(kernel_tree, OLDER_MAP)
    found = find(kernel_tree, "vfs_read", "bpf_prog_get_stats", "kvm_exit", "vfs_*", "no_such_name", against=Place())
    comparison = found["comparison"]
    assert (comparison["verdict"], comparison["build_id"], comparison["offset"]) == ("another_kernel", None, None)
    assert 0 < comparison["differing"] <= comparison["compared"]
    assert len(comparison["examples"]) == 5
    assert "0xffffffff" not in repr(found["symbols"])
    rows = {row["name"]: row for row in found["symbols"]}
    assert (rows["vfs_read"]["status"], rows["vfs_read"]["drift"]) == ("data_unavailable", "moved")
    assert "is of another kernel" in rows["vfs_read"]["reason"]
    assert rows["vfs_*"]["status"] == "data_unavailable"
    # The other way round, the running kernel's own addresses are right, whatever the file is.
    running = find(kernel_tree, "vfs_read", kind="kallsyms", against=Place("system_map"))
    assert running["comparison"]["verdict"] == "another_kernel"
    row = running["symbols"][0]
    assert (row["status"], row["drift"], row["matches"][0]["address"]) == ("found", "moved", "0xffffffffa2230990")
    assert (rows["no_such_name"]["status"], rows["no_such_name"]["drift"]) == ("absent", None)


def test_one_function_elsewhere_is_enough_to_be_another_kernel():
    address = b"ffffffff81430990 T vfs_read"
    assert address in SYSTEM_MAP
    moved = source_of(SYSTEM_MAP.replace(address, b"ffffffff81430994 T vfs_read"))
    verdict = compare(moved, source_of(KALLSYMS))
    assert (verdict["verdict"], verdict["differing"], verdict["examples"]) == ("another_kernel", 1, ["vfs_read"])


def test_functions_of_the_same_name_are_not_compared():
    addresses = SymbolTable(KALLSYMS).function_addresses()
    assert (addresses["init_once"], addresses["vfs_read"]) == (None, 0xFFFFFFFFA2230990)
    assert "jiffies" not in addresses and "kvm_vcpu_ioctl" not in addresses


def source_of(data):
    return Source("kallsyms", "/proc/kallsyms", "readable", None, SymbolTable(data))


def test_what_cannot_be_compared_is_unknown_and_gives_the_reason(kernel_tree):
    debug_map(kernel_tree)
    write_files(kernel_tree, {"proc/kallsyms": HIDDEN, "proc/sys/kernel/kptr_restrict": b"2\n"})
    found = find(kernel_tree, "vfs_read", "kvm_exit", against=Place())
    assert found["comparison"]["verdict"] == "unknown"
    assert (
        found["comparison"]["reason"]
        == "/proc/kallsyms shows no addresses: kernel.kptr_restrict is 2: nobody sees addresses"
    )
    assert [row["drift"] for row in found["symbols"]] == ["none", "only_there"] or found["symbols"][1]["drift"] is None
    nothing = compare(source_of(KALLSYMS), source_of(b"ffffffff81000000 T other\n"))
    assert (nothing["verdict"], nothing["reason"]) == ("unknown", "/proc/kallsyms has no symbol _stext to measure from")
    alone = compare(source_of(KALLSYMS), source_of(b"ffffffff81000000 T _stext\n"))
    assert (alone["verdict"], alone["reason"]) == ("unknown", "they have no other function in common")


def test_drift_reports_who_has_a_name():
    ours, theirs = SymbolTable(b"ffffffff81000000 T _stext\nffffffff81000010 T a\n"), SymbolTable(KALLSYMS)
    assert drift("a", ours, theirs, "unknown") == "only_here"
    assert drift("vfs_read", ours, theirs, "unknown") == "only_there"
    assert drift("nowhere", ours, theirs, "unknown") is None
    assert drift("_stext", ours, theirs, "another_kernel") == "none"


def test_module_symvers_reports_who_exports_what(kernel_tree):
    write_files(kernel_tree, {f"usr/src/linux-headers-{RELEASE}/Module.symvers": SYMVERS})
    found = find(kernel_tree, "kernel_read", "bpf_prog_put", "twofish_enc_blk", "vfs_read", kind="module_symvers")
    assert found["source"]["name"] == f"/usr/src/linux-headers-{RELEASE}/Module.symvers"
    plain, gpl, module, absent = found["symbols"]
    assert plain["matches"] == [
        {
            "name": "kernel_read",
            "type": None,
            "address": None,
            "owner": "vmlinux",
            "probeable": None,
            "exported": True,
            "gpl_only": False,
            "namespace": None,
        }
    ]
    assert (plain["status"], gpl["gpl_only"], module["matches"][0]["owner"]) == ("found", True, "twofish_x86_64")
    assert absent["status"] == "absent"
    owned = find(kernel_tree, "*", kind="module_symvers", owner="kvm")["symbols"][0]
    assert sorted(match["name"] for match in owned["matches"]) == ["kvm_exit", "kvm_init"]


def test_exports_of_the_running_kernel_come_from_its_headers(kernel_tree):
    write_files(kernel_tree, {f"usr/src/linux-headers-{RELEASE}/Module.symvers": SYMVERS})
    read, put_, internal = find(kernel_tree, "kernel_read", "bpf_prog_put", "do_syscall_64", kind="kallsyms")["symbols"]
    assert (read["exported"], read["gpl_only"], read["matches"][0]["gpl_only"]) == (True, False, False)
    assert (put_["gpl_only"], put_["matches"][0]["namespace"]) == (True, None)
    assert "gpl_only" not in internal and "gpl_only" not in internal["matches"][0]


@pytest.mark.parametrize(
    ("line", "namespace"),
    [
        ("0x1\tname\tdrivers/cxl/cxl-core\tEXPORT_SYMBOL_GPL", None),
        ("0x1\tname\tdrivers/cxl/cxl-core\tEXPORT_SYMBOL_GPL\t", None),
        ("0x1\tname\tdrivers/cxl/cxl-core\tEXPORT_SYMBOL_GPL\tCXL\n", "CXL"),
        ("0x1\tname\tdrivers/cxl/cxl-core\tEXPORT_SYMBOL_GPL\tmodule:kvm,kvm-amd\n", "module:kvm,kvm-amd"),
        ("0x1\tname\tCXL\tdrivers/cxl/cxl-core\tEXPORT_SYMBOL_GPL\n", "CXL"),
    ],
)
def test_rows_of_module_symvers_of_all_ages(line, namespace):
    row = parse_symvers_line(line)
    assert (row.name, row.owner, row.gpl_only, row.namespace) == ("name", "cxl_core", True, namespace)


def test_invalid_rows_are_refused():
    assert [parse_symvers_line(line) for line in ("", "a\tb\tc", "0x1\t\tvmlinux\tEXPORT_SYMBOL\t", "\t\t\t\t")] == [
        None
    ] * 4


def xen_tree(tree):
    syms = gzip.decompress((XEN / "xen-syms.gz").read_bytes())
    debug = "usr/lib/debug/boot/xen-syms-4.17-amd64"
    write_files(tree, {debug: syms, debug + ".map": (XEN / "xen-syms.map").read_bytes()})


def test_xens_symbols_are_read_from_the_elf_file(kernel_tree):
    xen_tree(kernel_tree)
    found = find(kernel_tree, "core_parking_init", "crash_heap_current", "vfs_read", kind="xen_syms")
    assert found["source"]["name"] == "/usr/lib/debug/boot/xen-syms-4.17-amd64"
    text, data, absent = found["symbols"]
    assert text["matches"][0] == {
        "name": "core_parking_init",
        "type": "t",
        "address": "0xffff82d0403b7060",
        "owner": "vmlinux",
        "probeable": None,
        "exported": None,
    }
    assert (data["matches"][0]["type"], absent["status"]) == ("b", "absent")


def test_the_map_of_xen_has_prefixed_addresses(kernel_tree):
    xen_tree(kernel_tree)
    path = "/usr/lib/debug/boot/xen-syms-4.17-amd64.map"
    found = find(kernel_tree, "start", "x86_64/entry.S#restore_all_guest", kind="xen_syms", path=path)["symbols"]
    assert [row["matches"][0]["address"] for row in found] == ["0xffff82d040200000", "0xffff82d040201000"]
    assert found[0]["aliases"] == ["_stext", "_start"]


def test_the_running_xen_comes_first_and_has_its_build_id(kernel_tree):
    xen_tree(kernel_tree)
    root = Root(str(kernel_tree))
    write_files(kernel_tree, {"sys/hypervisor/properties/buildid": bytes.fromhex(XEN_BUILD_ID)})
    # Not the map, nor a file of another version.
    write_files(
        kernel_tree,
        {"boot/xen-syms-4.11": (XEN / "xen-syms.map").read_bytes(), "boot/xen-syms-4.12": b"\x7fELF damaged"},
    )
    assert read_source(root, "xen_syms", None, RELEASE).build_id == XEN_BUILD_ID
    write_files(
        kernel_tree,
        {
            "proc/xen/xensyms": (DOM0 / "xensyms").read_bytes(),
            "sys/hypervisor/properties/buildid": bytes.fromhex(DOM0_BUILD_ID),
        },
    )
    running = read_source(root, "xen_syms", None, RELEASE)
    assert (running.name, running.build_id) == ("/proc/xen/xensyms", DOM0_BUILD_ID)
    file = "/usr/lib/debug/boot/xen-syms-4.17-amd64"
    verdict = find(kernel_tree, "start", kind="xen_syms", path=file, against=Place("xen_syms"))["comparison"]
    assert (verdict["verdict"], verdict["reason"]) == ("another_kernel", "the build-ids differ")


def test_the_section_and_ftrace_are_reported(kernel_tree):
    write_files(
        kernel_tree,
        {
            "proc/kallsyms": b"ffffffffa3200000 T _etext\n" + KALLSYMS,
            "proc/self/mounts": b"tracefs /sys/kernel/tracing tracefs rw 0 0\n",
            "sys/kernel/tracing/available_filter_functions": b"vfs_read\nkvm_vcpu_ioctl [kvm]\n",
        },
    )
    names = ["vfs_read", "start_kernel", "kvm_vcpu_ioctl", "jiffies"]
    rows = find(kernel_tree, *names, kind="kallsyms")["symbols"]
    assert [row["section"] for row in rows] == ["text", "init", None, None]
    assert [row["ftrace"] for row in rows] == [True, False, True, False]
    wanted = SymbolTable(KALLSYMS).find("vfs_read")
    assert in_ftrace(Root(str(kernel_tree)), wanted) == {("vfs_read", "vmlinux")}
    write_files(kernel_tree, {"proc/self/mounts": b""})
    assert in_ftrace(Root(str(kernel_tree)), []) is None
    assert find(kernel_tree, "vfs_read", kind="kallsyms")["symbols"][0]["ftrace"] is None


def damaged(*texts):
    lines = [line for text in texts for line in text.splitlines(keepends=True)[:15]]
    piece = st.one_of(
        st.sampled_from(lines), st.binary(max_size=30), st.sampled_from([b"\t", b" ", b"0x", b"\n", b"\0"])
    )
    return st.lists(piece, max_size=25).map(b"".join)


@pytest.mark.timeout(3600)  # of a soak test
@settings(max_examples=EXAMPLES, deadline=None)
@given(damaged(SYSTEM_MAP, (XEN / "xen-syms.map").read_bytes()), damaged(KALLSYMS))
def test_damaged_maps_give_answers_of_a_bounded_size(data, other):
    tables = [table for table in (map_table(data), SymbolTable(other)) if table is not None]
    for table in tables:
        found, count = table.search(lambda _name: True, 5)
        assert len(found) <= 5 and count <= data.count(b"\n") + other.count(b"\n") + 2
        table.look_up("vfs_read")
        table.counts()
        table.nearest("vfs_read")
    assert len(compare(source_of(data), source_of(other))["examples"]) <= 5
    drift("vfs_read", tables[0], tables[-1], "another_kernel")


@pytest.mark.timeout(3600)  # of a soak test
@settings(max_examples=EXAMPLES, deadline=None)
@given(damaged(SYMVERS, (FIXTURES / "kernel" / NEWER / "Module.symvers").read_bytes()))
def test_damaged_module_symvers_give_rows_or_nothing(data):
    table = symvers_table(data)
    if table is not None:
        found, _count = table.search(lambda _name: True, 1000)
        assert all(symbol.address is None for symbol in found)
        table.look_up("kernel_read")
        table.owners()
