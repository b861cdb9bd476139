# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The symbol table: recorded lines of a real kernel, and this machine's own."""

from __future__ import annotations

import collections
import ctypes
import os
import pathlib
import re
import subprocess
import sys

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.lookup import look_up
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.table import (
    SymbolTable,
    read_table,
    variant_kinds,
)
from ansible_collections.tapvirt.host.tests.unit.support.files import write_files
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("this_kernel")

FIXTURES = next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures" / "kernel"
RELEASE = "6.12.107+deb13-cloud-amd64"
RECORDED = (FIXTURES / RELEASE / "kallsyms").read_bytes()
HIDDEN = re.sub(rb"(?m)^[0-9a-f]{16}", b"0" * 16, RECORDED)
OLD_HIDDEN = re.sub(rb"(?m)^[0-9a-f]{16}", b"          (null)", RECORDED)


@pytest.fixture
def kernel_tree(tmp_path):
    """A recorded kernel as a root: symbols, the kprobe blacklist, the release, a configuration with kprobes."""
    write_files(
        tmp_path,
        {
            "proc/kallsyms": RECORDED.decode(),
            "proc/sys/kernel/osrelease": RELEASE + "\n",
            "proc/sys/kernel/kptr_restrict": "0\n",
            "proc/self/mounts": "debugfs /sys/kernel/debug debugfs rw 0 0\n",
            "sys/kernel/debug/kprobes/blacklist": (FIXTURES / RELEASE / "blacklist").read_text(),
            "boot/config-" + RELEASE: "CONFIG_KPROBES=y\n",
        },
    )
    return tmp_path


def find_rows(tree, *symbols, owner=None, limit=50):
    return look_up(Root(str(tree)), symbols, owner, limit)["symbols"]


def test_a_name_is_found_as_a_whole():
    table = SymbolTable(RECORDED)
    assert [symbol.row() for symbol in table.find("vfs_read")] == [
        {"name": "vfs_read", "type": "T", "address": "0xffffffffa2230990", "owner": "vmlinux"}
    ]
    assert [symbol.owner for symbol in table.find("kvm_vcpu_ioctl")] == ["kvm"]
    assert SymbolTable(b"ffffffff81000000 T a\nffffffff81000010 T x y\n").find("y") == []
    assert table.find("vfs_rea") == [] and table.find("T") == [] and table.find("") == []


def test_one_walk_finds_what_single_searches_find():
    table = SymbolTable(RECORDED)
    names = sorted({symbol.name for symbol in table.search(lambda _name: True, 10000)[0]})
    assert len(names) > 100
    names += ["no_such_name", "bpf_prog_free.", "", "."]
    assert table.look_up_many(names) == {name: table.look_up(name) for name in names}


def test_patterns_count_all_and_return_a_few():
    table = SymbolTable(RECORDED)
    found, count = table.glob("vfs_*", 2)
    assert (len(found), count) == (2, 4)
    assert table.glob("kvm_*", 50, owner="vmlinux") == ([], 0)
    assert all(symbol.is_function for symbol in table.glob("*", 10000, functions_only=True)[0])


def test_counts_agree_with_counting_lines():
    counts = SymbolTable(RECORDED).counts()
    lines = RECORDED.decode().splitlines()
    assert counts.total == len(lines)
    assert counts.by_type == dict(sorted(collections.Counter(line[17] for line in lines).items()))
    owners = collections.Counter(line.partition("\t")[2].strip("[]") or "vmlinux" for line in lines)
    assert counts.by_owner == dict(owners.most_common())


@pytest.mark.parametrize("data", [HIDDEN, OLD_HIDDEN])
def test_hidden_addresses_change_neither_names_nor_fingerprints(data):
    table, hidden = SymbolTable(RECORDED), SymbolTable(data)
    assert (table.restricted, hidden.restricted) == (False, True)
    assert hidden.counts() == table.counts()
    assert hidden.find("vfs_read")[0].row() == {"name": "vfs_read", "type": "T", "address": None, "owner": "vmlinux"}
    assert hidden.aliases(hidden.find("jiffies")[0]) is None


def test_a_moved_kernel_has_the_same_fingerprint_and_another_one_has_not():
    moved = re.sub(rb"(?m)^f{8}", b"fffffffe", RECORDED)
    assert SymbolTable(moved).counts() == SymbolTable(RECORDED).counts()
    renamed = SymbolTable(RECORDED.replace(b" vfs_read\n", b" vfs_raed\n")).counts()
    assert renamed.core_fingerprint != SymbolTable(RECORDED).counts().core_fingerprint


def test_modules_change_only_the_fingerprint_of_the_extras():
    one, other = SymbolTable(RECORDED).counts(), SymbolTable(RECORDED + b"ffffffffc0000000 t new\t[new]\n").counts()
    assert one.core_fingerprint == other.core_fingerprint
    assert one.extras_fingerprint != other.extras_fingerprint


def test_variants_are_distinguished_from_other_functions():
    table = SymbolTable(b"ffffffff81000000 t foo.isra.0\nffffffff81000010 t foo.cold\nffffffff81000020 t foobar\n")
    assert [symbol.name for symbol in table.variants("foo")] == ["foo.isra.0", "foo.cold"]
    fillers = [f"x{number}" for number in range(100)]
    assert table.look_up_many(["foo", "foo.isra", *fillers])["foo"] == table.look_up("foo")
    assert [symbol.name for symbol in table.look_up_many(["foo.isra", *fillers])["foo.isra"][1]] == ["foo.isra.0"]
    assert variant_kinds("foo.constprop.0.isra.0") == ["constprop", "isra"]
    assert (variant_kinds("foo.llvm.1234"), variant_kinds("foo.7"), variant_kinds("foo")) == (["llvm"], ["other"], [])


def test_addresses_of_eight_digits_and_a_missing_last_newline():
    table = SymbolTable(b"c0008000 T stext\nc0008000 T _text")
    assert table.aliases(table.find("stext")[0]) == ["_text"]


def test_status_words(kernel_tree):
    with (kernel_tree / "proc/self/mounts").open("a") as mounts:
        mounts.write("tracefs /sys/kernel/tracing tracefs rw 0 0\n")
    (kernel_tree / "sys/kernel/tracing").mkdir()
    (kernel_tree / "sys/kernel/tracing/available_filter_functions").write_text("vfs_read\n")
    found, absent, ambiguous, pattern, none = find_rows(
        kernel_tree, "vfs_read", "vfs_reed", "init_once", "vfs_*", "~^nothing"
    )
    assert (found["status"], found["probeable"]) == ("found", True)
    assert absent["candidates"][0] == "vfs_read"
    assert (ambiguous["status"], ambiguous["count"], ambiguous["reason"]) == (
        "ambiguous",
        9,
        "9 symbols have this name",
    )
    assert (pattern["status"], pattern["count"], none["status"]) == ("found", 4, "absent")


def test_what_differs_among_symbols_of_one_name_is_null(kernel_tree):
    core = b"ffffffff81000000 T _stext\nffffffff81000010 t init_once\nffffffff82000000 T _etext\n"
    for table, section in ((core, "text"), (core + b"ffffffffc0000000 t init_once\t[ext4]\n", None)):
        (kernel_tree / "proc" / "kallsyms").write_bytes(table)
        assert find_rows(kernel_tree, "init_once")[0]["section"] == section


def test_a_table_without_variables_cannot_report_that_one_is_absent(kernel_tree):
    row = find_rows(kernel_tree, "no_such_thing")[0]
    assert (row["status"], row["reason"]) == (
        "data_unavailable",
        "there is no function of this name, and this kernel does not list variables",
    )


def test_hidden_is_not_absent(kernel_tree):
    (kernel_tree / "proc" / "kallsyms").write_bytes(HIDDEN)
    (kernel_tree / "proc/sys/kernel/kptr_restrict").write_text("2\n")
    result = look_up(Root(str(kernel_tree)), ["vfs_read"], None, 5)
    assert result["source"]["state"] == "restricted"
    assert result["source"]["reason"] == "kernel.kptr_restrict is 2: nobody sees addresses"
    assert (result["symbols"][0]["status"], result["symbols"][0]["matches"][0]["address"]) == ("restricted", None)


def test_no_table_is_an_answer(kernel_tree):
    (kernel_tree / "proc" / "kallsyms").unlink()
    result = look_up(Root(str(kernel_tree)), ["vfs_read", "a*"], None, 5)
    assert result["source"]["state"] == "absent"
    assert [row["status"] for row in result["symbols"]] == ["data_unavailable", "data_unavailable"]


def test_what_can_be_probed(kernel_tree):
    verdicts = {
        row["name"]: row["probeable_reason"]
        for row in find_rows(kernel_tree, "do_syscall_64", "start_kernel", "jiffies")
    }
    assert verdicts == {
        "do_syscall_64": "is in the kernel's kprobe blacklist",
        "start_kernel": "lies in the init section, which is freed after boot",
        "jiffies": "is not a function",
    }
    (kernel_tree / "proc/self/mounts").write_text("")
    row = find_rows(kernel_tree, "vfs_read")[0]
    assert (row["probeable"], row["probeable_reason"]) == (
        None,
        "the kprobe blacklist cannot be seen: debugfs is not mounted",
    )
    (kernel_tree / "boot" / ("config-" + RELEASE)).write_text("CONFIG_HZ=250\n# CONFIG_KPROBES is not set\n")
    row = find_rows(kernel_tree, "vfs_read")[0]
    assert (row["probeable"], row["probeable_reason"]) == (
        False,
        "cannot be probed: the kernel was built without CONFIG_KPROBES",
    )


def test_what_is_exported(kernel_tree):
    table = kernel_tree / "proc" / "kallsyms"
    table.write_bytes(RECORDED + b"ffffffffc0000000 T in_a_module\t[m]\nffffffffc0000010 t gpl_in_a_module\t[m]\n")
    with table.open("ab") as stream:
        stream.write(b"ffffffffc0000020 r __ksymtab_gpl_in_a_module\t[m]\n")
    names = ["kernel_read", "vfs_read", "kvm_vcpu_ioctl", "in_a_module", "gpl_in_a_module"]
    assert [row["exported"] for row in find_rows(kernel_tree, *names)] == [True, False, False, True, True]
    headers = kernel_tree / "lib" / "modules" / RELEASE / "build"
    headers.mkdir(parents=True)
    (headers / "Module.symvers").write_text("0x1\tkernel_read\tvmlinux\tEXPORT_SYMBOL_GPL\tSOME_SPACE\n0x2\tx\n")
    row = find_rows(kernel_tree, "kernel_read")[0]
    assert (row["exported"], row["gpl_only"], row["namespace"]) == (True, True, "SOME_SPACE")


def test_limit_and_owner(kernel_tree):
    first, second = find_rows(kernel_tree, "vfs_*", "kvm_*", limit=3)
    assert (len(first["matches"]), first["truncated"], len(second["matches"]), second["truncated"]) == (
        3,
        True,
        0,
        True,
    )
    assert [match["owner"] for match in find_rows(kernel_tree, "kvm_*", owner="kvm")[0]["matches"]][:1] == ["kvm"]
    assert find_rows(kernel_tree, "vfs_read", owner="nbd")[0]["reason"] == "nbd is not loaded, or has no symbols"


@pytest.mark.parametrize("text", ["", "two words", "~(", "a]b"])
def test_what_is_no_name_is_refused(text, kernel_tree):
    with pytest.raises(InvalidInput) as error:
        find_rows(kernel_tree, text)
    assert (error.value.option, error.value.value) == ("symbols[0]", text)


def test_a_name_that_is_not_utf8_is_no_symbol(kernel_tree):
    (row,) = find_rows(kernel_tree, "~vfs_\udce9")
    assert not row["matches"]
    table = SymbolTable(RECORDED)
    assert table.look_up("vfs_\udce9") == ([], [])
    assert not table.has_prefix("vfs_\udce9")


def mutations():
    lines = RECORDED.splitlines(keepends=True)[:20] + RECORDED.splitlines(keepends=True)[-5:]
    piece = st.one_of(st.sampled_from(lines), st.binary(max_size=40))
    return st.lists(piece, max_size=30).map(b"".join)


@pytest.mark.timeout(3600)  # of a soak test
@settings(max_examples=100000 if os.environ.get("TAPVIRT_SOAK") else 2000, deadline=None)
@given(mutations())
def test_damaged_tables_give_answers_and_no_exceptions(data):
    table = SymbolTable(data)
    table.counts()
    table.owners()
    for name in ("vfs_read", "x", "_stext"):
        for symbol in table.find(name):
            table.aliases(symbol)
        table.variants(name)
        table.nearest(name)
    table.search(lambda _name: True, 3)


def test_this_machines_table_agrees_with_other_readers():
    table = read_table(Root())
    lines = pathlib.Path("/proc/kallsyms").read_bytes().splitlines()
    core = [line for line in lines if b"\t" not in line]
    counts = table.counts()
    assert counts.by_owner["vmlinux"] == len(core)
    duplicates = collections.Counter(line[19:] for line in core)
    for name, count in duplicates.most_common(3):
        assert len([s for s in table.find(name.decode()) if s.owner == "vmlinux"]) == count


AS_OTHERS = """
import json, sys
sys.path.insert(0, {collections!r})
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.lookup import look_up
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.table import read_table
table = read_table(Root())
row = look_up(Root(), ["vfs_read", "vfs_reed"], None, 5)["symbols"]
print(json.dumps([table.restricted, table.counts().core_fingerprint, row[0]["status"], row[1]["count"]]))
"""
USERS = {
    "root": [],
    "root without CAP_SYSLOG": ["setpriv", "--bounding-set=-syslog", "--inh-caps=-syslog"],
    "nobody": ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
    "root of a user namespace": ["unshare", "--user", "--map-root-user"],
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change kernel.kptr_restrict")
@pytest.mark.parametrize("kptr_restrict", ["0", "1", "2"])
@pytest.mark.parametrize("paranoid", ["1", "2"])
def test_who_sees_addresses(kptr_restrict, paranoid, readable_collections):
    sysctl = pathlib.Path("/proc/sys/kernel")
    before = {name: (sysctl / name).read_text() for name in ("kptr_restrict", "perf_event_paranoid")}
    fingerprint = read_table(Root()).counts().core_fingerprint
    script = AS_OTHERS.format(collections=readable_collections)
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    try:
        (sysctl / "kptr_restrict").write_text(kptr_restrict)
        (sysctl / "perf_event_paranoid").write_text(paranoid)
        for who, prefix in USERS.items():
            done = subprocess.run([*prefix, python, "-c", script], capture_output=True, text=True, check=False)
            if who == "root of a user namespace" and done.returncode and "unshare" in done.stderr:
                continue
            privileged = who == "root" and kptr_restrict != "2"
            seen = privileged or (kptr_restrict == "0" and paranoid == "1")
            expected = f'[{"false" if seen else "true"}, "{fingerprint}", "{"found" if seen else "restricted"}", 0]'
            assert done.stdout.strip() == expected, (who, done.stderr)
    finally:
        for name, text in before.items():
            (sysctl / name).write_text(text)


@pytest.mark.skipif(os.geteuid() != 0 or os.uname().machine != "x86_64", reason="only root may load BPF programs")
def test_a_bpf_program_appears_among_the_extras_and_leaves_the_core_alone():
    enable = pathlib.Path("/proc/sys/net/core/bpf_jit_kallsyms")
    if not enable.exists():
        pytest.skip("this kernel does not compile BPF programs")
    before, text = read_table(Root()).counts(), enable.read_text()
    instructions = bytes.fromhex("b7000000000000009500000000000000")
    code, licence = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(72)
    ctypes.memmove(attributes, (1).to_bytes(4, "little") + (2).to_bytes(4, "little"), 8)
    pointers = ctypes.addressof(code).to_bytes(8, "little") + ctypes.addressof(licence).to_bytes(8, "little")
    ctypes.memmove(ctypes.addressof(attributes) + 8, pointers, 16)
    ctypes.memmove(ctypes.addressof(attributes) + 48, b"tapvirt_test\0", 13)
    try:
        enable.write_text("1")
        descriptor = ctypes.CDLL(None, use_errno=True).syscall(321, 5, attributes, 72)
        if descriptor < 0:
            pytest.skip(f"bpf(2): {os.strerror(ctypes.get_errno())}")
        table = read_table(Root())
        os.close(descriptor)
    finally:
        enable.write_text(text)
    found, count = table.glob("bpf_prog_*_tapvirt_test", 5)
    assert (count, found[0].owner) == (1, "bpf")
    assert table.counts().core_fingerprint == before.core_fingerprint
    assert table.counts().extras_fingerprint != before.extras_fingerprint
