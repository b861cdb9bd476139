# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to know of parameters: module files with a table of parameters, a tree, this machine's own sysfs."""

from __future__ import annotations

import json
import lzma
import os
import pathlib
import struct
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image.elf import ElfError
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.modules.kernel_param_section import (
    Declared,
    declared_parameters,
)
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.modules.modinfo import ParameterInfo, parameters_of
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.modules.module_file import entries_printed
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.info import parameter_info
from ansible_collections.tapvirt.host.tests.unit.support.files import write_files

FIXTURES = next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures" / "kernel"
RELEASE = "6.12.107+deb13-cloud-amd64"
SYSFS = pathlib.Path("/sys/module")

NAMES, PARAMETERS, DATA, ZEROS, MODINFO = 1, 2, 3, 4, 5


class Module:
    """Writes a 64-bit module file with the sections that hold parameters, as a compiler does."""

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.content = {NAMES: bytearray(b"\0"), PARAMETERS: bytearray(), DATA: bytearray(), MODINFO: bytearray()}
        self.zeros = 0
        self.relocations: dict[int, list[tuple[int, int, int]]] = {PARAMETERS: [], DATA: []}
        self.symbol_names = bytearray(b"\0")
        # The first is none; one stands for the begin of each section.
        self.symbols = [(0, 0)] + [(0, section) for section in (NAMES, PARAMETERS, DATA, ZEROS)]

    def data(self, layout: str, *values: t.Any) -> tuple[int, int]:
        """Add a variable with a value."""
        self.content[DATA] += bytes(-len(self.content[DATA]) % 8)
        place = len(self.content[DATA])
        self.content[DATA] += struct.pack(self.order + layout, *values)
        return DATA, place

    def zero(self, size: int = 8) -> tuple[int, int]:
        """Add a variable that is zero, of which the file says the size only."""
        self.zeros += size
        return ZEROS, self.zeros - size

    def text(self, text: str) -> tuple[int, int]:
        place = len(self.content[NAMES])
        self.content[NAMES] += text.encode() + b"\0"
        return NAMES, place

    def point(self, place: tuple[int, int], target: tuple[int, int] | str) -> None:
        """Let the pointer at a place lead to another, or to a symbol of the kernel."""
        if isinstance(target, str):
            self.symbols.append((len(self.symbol_names), 0))
            self.symbol_names += target.encode() + b"\0"
            self.relocations[place[0]].append((place[1], len(self.symbols) - 1, 0))
        else:
            self.relocations[place[0]].append((place[1], target[0], target[1]))

    def parameter(
        self, name: str, operations: tuple[int, int] | str, variable: tuple[int, int], mode: int, flags: int = 0
    ) -> None:
        start = len(self.content[PARAMETERS])
        self.content[PARAMETERS] += struct.pack(self.order + "QQQHbBxxxxQ", 0, 0, 0, mode, -1, flags, 0)
        self.point((PARAMETERS, start), self.text(name))
        self.point((PARAMETERS, start + 16), operations)
        self.point((PARAMETERS, start + 32), variable)

    def declare(self, *entries: str) -> None:
        """Add entries for modinfo."""
        self.content[MODINFO] += "".join(entry + "\0" for entry in entries).encode()

    def bytes(self) -> bytes:
        symbols = b"".join(
            struct.pack(self.order + "IBBHQQ", name, 3, 0, section, 0, 0) for name, section in self.symbols
        )
        tables = [
            b"".join(struct.pack(self.order + "QQq", at, symbol << 32 | 1, add) for at, symbol, add in rows)
            for rows in self.relocations.values()
        ]
        names = b"\0.rodata\0__param\0.data\0.bss\0.modinfo\0.symtab\0.strtab\0.rela\0.shstrtab\0"
        content = self.content
        sections = [
            (b".rodata", 1, bytes(content[NAMES]), 0, 0),
            (b"__param", 1, bytes(content[PARAMETERS]), 0, 0),
            (b".data", 1, bytes(content[DATA]), 0, 0),
            (b".bss", 8, b"", 0, 0),
            (b".modinfo", 1, bytes(content[MODINFO]), 0, 0),
            (b".symtab", 2, symbols, 7, 0),
            (b".strtab", 3, bytes(self.symbol_names), 0, 0),
            (b".rela", 4, tables[0], 6, PARAMETERS),
            (b".rela", 4, tables[1], 6, DATA),
            (b".shstrtab", 3, names, 0, 0),
        ]
        body, rows = b"", [struct.pack(self.order + "IIQQQQIIQQ", *[0] * 10)]
        for name, kind, data, link, info in sections:
            body += bytes(-len(body) % 8)
            size = self.zeros if kind == 8 else len(data)
            row = (names.index(name + b"\0"), kind, 0, 0, 64 + len(body), size, link, info, 8, 0)
            rows.append(struct.pack(self.order + "IIQQQQIIQQ", *row))
            body += data
        ident = b"\x7fELF" + bytes([2, 1 if self.order == "<" else 2, 1]) + bytes(9)
        counts = (64, 0, 0, 64, len(rows), len(rows) - 1)
        header = ident + struct.pack(self.order + "HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(body), 0, *counts)
        return header + body + b"".join(rows)


def sample_module(order: str = "<") -> Module:
    """A module with a parameter of each type that the kernel has functions for, and one of its own."""
    module = Module(order)
    for kind, layout, value in [
        ("byte", "B", 200),
        ("short", "h", -3),
        ("ushort", "H", 65535),
        ("int", "i", -1),
        ("uint", "I", 200000),
        ("long", "q", -1 << 40),
        ("ulong", "Q", 1 << 63),
        ("ullong", "Q", (1 << 64) - 1),
        ("hexint", "I", 0xABCD),
        ("bint", "i", 1),
        ("bool", "B", 1),
        ("invbool", "B", 1),
        ("bool_enable_only", "B", 0),
    ]:
        module.parameter("the_" + kind, "param_ops_" + kind, module.data(layout, value), 0o644)
        module.declare(f"parm=the_{kind}:A value of this type", f"parmtype=the_{kind}:{kind}")
    module.parameter("nothing", "param_ops_int", module.zero(4), 0)
    module.parameter("off", "param_ops_bool", module.zero(1), 0o444)
    module.parameter("risky", "param_ops_bool", module.zero(1), 0o600, flags=1)
    pointer = module.data("Q", 0)
    module.point(pointer, module.text("qemu:///system, twice"))
    module.parameter("words", "param_ops_charp", pointer, 0o444)
    module.declare("parmtype=words:charp", "parmtype=no_words:charp", "parmtype=whole:array of int")
    module.parameter("no_words", "param_ops_charp", module.zero(), 0o444)
    buffer = module.data("16s", b"in place")
    string = module.data("IxxxxQ", 16, 0)
    module.point((DATA, string[1] + 8), buffer)
    module.parameter("buffer", "param_ops_string", string, 0o644)
    for name, count in (("whole", None), ("counted", 2)):
        elements = module.data("4i", 7, 0, -7, 9)
        array = module.data("IIQQQ", 4, 4, 0, 0, 0)
        if count is not None:
            module.point((DATA, array[1] + 8), module.data("I", count))
        module.point((DATA, array[1] + 16), "param_ops_int")
        module.point((DATA, array[1] + 24), elements)
        module.parameter(name, "param_array_ops", array, 0o444)
    module.parameter("own_type", module.data("4Q", 0, 0, 0, 0), module.zero(), 0o200)
    module.parameter("elsewhere", "param_ops_bool", module.zero(1), 0o444)
    module.relocations[PARAMETERS].pop()
    module.point((PARAMETERS, len(module.content[PARAMETERS]) - 8), "enable_apicv")
    return module


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_modules_file_reports_what_each_parameter_is_unless_it_is_set(order):
    found = declared_parameters(sample_module(order).bytes())
    assert {name: row.default for name, row in found.items()} == {
        "the_byte": "200",
        "the_short": "-3",
        "the_ushort": "65535",
        "the_int": "-1",
        "the_uint": "200000",
        "the_long": str(-1 << 40),
        "the_ulong": str(1 << 63),
        "the_ullong": str((1 << 64) - 1),
        "the_hexint": "0xabcd",
        "the_bint": "1",
        "the_bool": "Y",
        "the_invbool": "N",
        "the_bool_enable_only": "N",
        "nothing": "0",
        "off": "N",
        "risky": "N",
        "words": "qemu:///system, twice",
        "no_words": "(null)",
        "buffer": "in place",
        "whole": "7,0,-7,9",
        "counted": "7,0",
        "own_type": None,
        "elsewhere": None,
    }
    assert found["nothing"] == Declared(0, False, "0")
    assert found["risky"] == Declared(0o600, True, "N")
    assert found["own_type"].mode == 0o200
    assert {name: row.limit for name, row in found.items() if row.limit is not None} == {
        "whole": 4,
        "counted": 4,
        "buffer": 15,
    }
    assert [name for name, row in found.items() if not row.standard] == ["own_type"]


def test_a_damaged_module_file_is_an_error_of_its_own():
    image = sample_module().bytes()
    wrong = 0
    for position in range(0, len(image), 7):
        for byte in (0x00, 0xFF):
            damaged = image[:position] + bytes([byte]) + image[position + 1 :]
            try:
                declared_parameters(damaged)
            except ElfError:
                wrong += 1
    for end in range(0, len(image), 11):
        try:
            declared_parameters(image[:end])
        except ElfError:
            wrong += 1
    assert wrong > 100


def test_an_array_is_never_larger_than_its_section():
    module = Module()
    array = module.data("IIQQQ", 1 << 31, 4, 0, 0, 0)
    module.point((DATA, array[1] + 16), "param_ops_int")
    module.point((DATA, array[1] + 24), module.zero(64))
    module.parameter("endless", "param_array_ops", array, 0o444)
    with pytest.raises(ElfError):
        declared_parameters(module.bytes())


def test_what_modinfo_prints_is_what_modules_say():
    # Of kvm and loop of kernel 7.2, by kmod 34.
    types = "mmio_caching:bool\0max_part:int\0"
    descriptions = (
        "mmio_caching: (bool)\0"
        "max_loop:Maximum number of loop devices\0"
        "max_part:Maximum number of partitions per loop device (int)\0"
        "hw_queue_depth:Queue depth for each hardware queue. Default: 128\0"
    )
    assert parameters_of(entries_printed(types, descriptions)) == {
        "mmio_caching": ParameterInfo("bool", None),
        "max_loop": ParameterInfo(None, "Maximum number of loop devices"),
        "max_part": ParameterInfo("int", "Maximum number of partitions per loop device"),
        "hw_queue_depth": ParameterInfo(None, "Queue depth for each hardware queue. Default: 128"),
    }


@pytest.fixture
def sample_root(tmp_path):
    """A host of kernel 6.12: sample is loaded, spare only installed, zswap and the kernel itself are built in."""
    modules = tmp_path / "lib" / "modules" / RELEASE
    (modules / "kernel").mkdir(parents=True)
    (modules / "modules.dep").write_text("kernel/sample-mod.ko.xz:\nkernel/spare.ko:\nkernel/plain.ko:\n")
    (modules / "modules.builtin").write_text("kernel/mm/zswap.ko\nkernel/kernel/rcu/tree.ko\n")
    (modules / "modules.builtin.modinfo").write_bytes((FIXTURES / RELEASE / "modules.builtin.modinfo").read_bytes())
    (modules / "kernel" / "sample-mod.ko.xz").write_bytes(lzma.compress(sample_module().bytes()))
    spare = Module()
    spare.declare("parm=level:How loud\nit is", "parmtype=level:int", "parm=unknown:No type")
    spare.parameter("level", "param_ops_int", spare.data("i", 3), 0o644)
    spare.parameter("silent", "param_ops_bool", spare.zero(1), 0)
    (modules / "kernel" / "spare.ko").write_bytes(spare.bytes())
    (modules / "kernel" / "plain.ko").write_bytes(Module().bytes())
    files = {
        "proc/sys/kernel/osrelease": RELEASE,
        "proc/cmdline": "quiet panic=5 zswap.max_pool_percent=30 sample_mod.the_uint=7",
        "etc/modprobe.d/sample.conf": "options sample-mod the_bool=0 the-int=0x10 off\n",
        "etc/modprobe.d/second.conf": "options sample_mod the_uint=9 scope=CACHE\n",
        "etc/modprobe.d/zswap.conf": "options zswap enabled=1\n",
        "sys/module/sample_mod/initstate": "live\n",
        "sys/module/sample_mod/parameters/the_bool": "Y\n",
        "sys/module/sample_mod/parameters/the_int": "16\n",
        "sys/module/sample_mod/parameters/the_uint": "200000\n",
        "sys/module/sample_mod/parameters/off": "Y\n",
        "sys/module/sample_mod/parameters/no_words": "(null)\n",
        "sys/module/sample_mod/parameters/own_type": "",
        "sys/module/sample_mod/parameters/scope": "cache\n",
        "sys/module/zswap/parameters/enabled": "N\n",
        "sys/module/zswap/parameters/max_pool_percent": "20\n",
        "sys/module/kernel/parameters/panic": "5\n",
        "sys/module/empty/initstate": "live\n",
    }
    write_files(tmp_path, files)
    (tmp_path / "sys/module/sample_mod/parameters/own_type").chmod(0o200)
    (tmp_path / "sys/module/sample_mod/parameters/off").chmod(0o444)
    return Root(str(tmp_path))


def rows_of(root: Root, *modules: str, names: t.Sequence[str] = ("*",), limit: int = 100) -> dict[str, t.Any]:
    result = parameter_info(root, "x86_64", modules, names, limit)
    return {f"{row['module']}.{row['name']}": row for row in result["params"]}


def test_a_loaded_modules_parameters_are_known_whole(sample_root):
    rows = rows_of(sample_root, "sample-mod")
    assert rows["sample_mod.the_uint"] == {
        "module": "sample_mod",
        "name": "the_uint",
        "type": "uint",
        "type_source": "modinfo",
        "description": "A value of this type",
        "mode": "0644",
        "unsafe": False,
        "settable": ["run", "load"],
        "persist": "modprobe_d",
        "persist_as": "options sample_mod the_uint",
        "value": 200000,
        "value_status": "known",
        "default": 200000,
        "configured": 7,
        "configured_in": "/proc/cmdline",
        "pending": ["/proc/cmdline says the_uint=7: it takes effect when the module is loaded again"],
    }
    truth = rows["sample_mod.the_bool"]
    assert (truth["value"], truth["configured"], truth["default"]) == (True, False, True)
    assert truth["pending"] == [
        "/etc/modprobe.d/sample.conf says the_bool=0: it takes effect when the module is loaded again"
    ]
    equal = rows["sample_mod.the_int"]
    assert (equal["value"], equal["configured"], equal["pending"], equal["default"]) == (16, 16, [], -1)
    bare = rows["sample_mod.off"]
    assert (bare["configured"], bare["value"], bare["pending"]) == (True, True, [])
    assert (bare["mode"], bare["settable"]) == ("0444", ["load"])
    unset = rows["sample_mod.no_words"]
    assert (unset["value"], unset["value_status"], unset["default"]) == (None, "known", None)
    hidden = rows["sample_mod.nothing"]
    assert (hidden["value"], hidden["value_status"], hidden["mode"], hidden["default"]) == (None, "no_file", "0000", 0)
    assert rows["sample_mod.risky"]["unsafe"] is True
    assert rows["sample_mod.whole"]["default"] == [7, 0, -7, 9]
    scope = rows["sample_mod.scope"]
    assert (scope["type"], scope["configured"], scope["pending"]) == ("opaque", "CACHE", [])
    assert set(rows) - {"sample_mod.scope"} == {
        "sample_mod." + name for name in declared_parameters(sample_module().bytes())
    }


def test_an_option_that_keeps_a_module_from_being_loaded_is_pending(sample_root):
    with open(sample_root.path("etc/modprobe.d/sample.conf"), "a", encoding="ascii") as stream:
        stream.write(
            "options sample_mod the_byte=256 the_short=1,2 the_invbool own_type=x whole=1,2,3,4,5 buffer=0123\n"
        )
    rows = rows_of(sample_root, "sample-mod")
    found = {
        row["name"]: row["pending"] for row in rows.values() if any("cannot be" in text for text in row["pending"])
    }
    assert {name: len(texts) for name, texts in found.items()} == {
        "the_byte": 1,
        "the_invbool": 1,
        "the_short": 1,
        "whole": 1,
    }
    assert found["whole"] == [
        "/etc/modprobe.d/sample.conf sets whole=1,2,3,4,5 for sample_mod, but whole takes at most 4 elements, not 5:"
        " the module cannot be loaded until that is corrected"
    ]
    assert rows["sample_mod.the_invbool"]["configured"] is None


def test_a_module_that_is_only_installed_has_what_its_file_contains(sample_root):
    result = parameter_info(sample_root, "x86_64", ["spare"], ["*"], 20)
    assert result["modules"] == [
        {
            "module": "spare",
            "status": "installed",
            "file": f"/lib/modules/{RELEASE}/kernel/spare.ko",
            "parameters": 3,
            "candidates": [],
        }
    ]
    level, silent, unknown = result["params"]
    assert level["description"] == "How loud\nit is"
    assert (level["mode"], level["default"], level["value"], level["value_status"]) == ("0644", 3, None, "not_loaded")
    assert (silent["name"], silent["type"], silent["description"], silent["mode"]) == ("silent", None, None, "0000")
    assert (silent["settable"], silent["default"]) == (["load"], False)
    assert (unknown["type"], unknown["description"], unknown["mode"]) == (None, "No type", None)


def test_built_in_parameters_are_set_by_the_command_line_alone(sample_root):
    rows = rows_of(sample_root, "zswap", "kernel")
    percent = rows["zswap.max_pool_percent"]
    assert (percent["persist"], percent["persist_as"]) == ("command_line", "zswap.max_pool_percent")
    assert (percent["settable"], percent["default"], percent["unsafe"]) == (["run", "boot"], None, None)
    assert percent["pending"] == [
        "this kernel was started with max_pool_percent=30, and something has changed the value since"
    ]
    assert rows["zswap.enabled"]["configured_in"] is None
    panic = rows["kernel.panic"]
    assert (panic["persist_as"], panic["configured"], panic["pending"]) == ("panic", 5, [])


def test_names_patterns_and_what_does_not_exist(sample_root):
    asked = ["sampel_mod", "s*pa*", "[r-t]ample-*", "nosuch*", "tree", "spare", "[d-f]mpty", "plain", "empty"]
    result = parameter_info(sample_root, "x86_64", asked, ["*e*"], 100)
    assert [(row["module"], row["status"], row["candidates"]) for row in result["modules"]] == [
        ("sampel_mod", "absent", ["sample_mod"]),
        ("spare", "installed", []),
        ("sample_mod", "loaded", []),
        ("nosuch*", "absent", []),
        ("tree", "absent", ["rcutree"]),
        ("[d-f]mpty", "absent", []),
        ("plain", "installed", []),
        ("empty", "loaded", []),
    ]
    assert {row["module"] for row in result["params"]} == {"spare", "sample_mod"}
    everything = parameter_info(sample_root, "x86_64", ["*"], ["*"], 500)
    assert [row["module"] for row in everything["modules"]][:3] == ["kernel", "sample_mod", "zswap"]
    assert len(everything["modules"]) > 10
    absent = parameter_info(sample_root, "x86_64", ["sample_mod", "zswap"], ["the-int", "the_imt", "q*"], 100)
    assert [row["name"] for row in absent["params"]] == ["the_int"]
    (missing,) = absent["absent_names"]
    assert (missing["name"], missing["candidates"][0]) == ("the_imt", "the_int")


def test_the_limit_holds_and_is_reported(sample_root):
    all_of_it = parameter_info(sample_root, "x86_64", ["sample_mod", "zswap"], ["*"], 500)
    count = len(all_of_it["params"])
    assert not all_of_it["truncated"]
    assert not parameter_info(sample_root, "x86_64", ["sample_mod", "zswap"], ["*"], count)["truncated"]
    some = parameter_info(sample_root, "x86_64", ["sample_mod", "zswap", "nosuch"], ["x", "*"], 5)
    assert (some["truncated"], some["params"]) == (True, all_of_it["params"][:5])
    assert [row["module"] for row in some["modules"]] == ["sample_mod"]
    assert some["absent_names"] == []


@pytest.mark.parametrize(
    ("modules", "names", "limit", "option"),
    [
        (["../kvm"], ["*"], 1, "modules[0]"),
        (["kvm"], ["*", "a b"], 1, "names[1]"),
        (["kvm"], ["*"], 0, "limit"),
        (["kvm", ""], ["*"], 1, "modules[1]"),
    ],
)
def test_what_can_be_no_name_is_refused(sample_root, modules, names, limit, option):
    with pytest.raises(InvalidInput) as error:
        parameter_info(sample_root, "x86_64", modules, names, limit)
    assert error.value.option == option


def live() -> list[dict[str, t.Any]]:
    return parameter_info(Root(), os.uname().machine, ["*"], ["*"], 10000)["params"]


def test_every_parameter_of_this_machine_has_its_row():
    rows = {(row["module"], row["name"]): row for row in live()}
    files = sorted(SYSFS.glob("*/parameters/*"))
    assert len(files) > 20
    for path in files:
        row = rows[path.parent.parent.name, path.name]
        mode = path.stat().st_mode & 0o7777
        assert row["mode"] == f"{mode:04o}"
        assert ("run" in row["settable"]) == bool(mode & 0o222)
        assert (row["value_status"] == "write_only") == (not mode & 0o444)


def test_a_default_result_is_small():
    result = parameter_info(Root(), os.uname().machine, ["*"], ["*"], 20)
    assert len(result["params"]) == 20
    assert len(json.dumps(result)) < 8192


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_somebody_else_sees_what_is_restricted(readable_collections):
    closed = [path for path in sorted(SYSFS.glob("*/parameters/*")) if path.stat().st_mode & 0o777 in (0o400, 0o600)]
    if not closed:
        pytest.skip("this kernel lets everybody read every parameter")
    path = closed[0]
    code = (
        "import json, os, sys\n"
        "from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root\n"
        "from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.info import parameter_info\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "print(json.dumps(parameter_info(Root(), 'x86_64', [sys.argv[1]], [sys.argv[2]], 5)))"
    )
    argv = [sys.executable, "-c", code, path.parent.parent.name, path.name]
    done = subprocess.run(
        argv, env={"PYTHONPATH": readable_collections}, capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["params"]
    assert (row["value"], row["value_status"]) == (None, "restricted")
    assert row["mode"] == f"{path.stat().st_mode & 0o777:04o}"


def test_the_module_answers(run_module):
    result = run_module("kernel_module_param_info", {"modules": ["printk"], "names": ["time"]}, check=True)
    (row,) = result["params"]
    shown = (SYSFS / "printk" / "parameters" / "time").read_text().strip()
    assert (result["changed"], row["value"]) == (False, shown == "Y")
    refused = run_module("kernel_module_param_info", {"modules": ["a/b"]})
    assert refused["failed"]
    assert "a/b" in refused["msg"]
