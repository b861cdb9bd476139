# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap import stap_output
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import build, sysroot
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import toolchain as builders
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.compilers import (
    Compiler,
    Origin,
    choose_compiler,
    find_compilers,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import Store, hash_file

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures" / "systemtap"
RELEASE = "6.12.107+deb13-cloud-amd64"
COMPILERS = [Compiler("gcc", 14, "gcc-14"), Compiler("gcc", 16, "gcc-16")]
TOOLS = builders.Toolchain("5.6", "Systemtap translator/driver (version 5.6/0.196)", ("3.10", "7.3.0-rc3"), COMPILERS)


def builder_root(path: pathlib.Path) -> Root:
    """A builder's tree with headers of one kernel, as Debian packs them."""
    headers = path / "usr/lib/modules" / RELEASE / "build"
    (headers / "include/generated").mkdir(parents=True)
    (headers / ".config").write_text('CONFIG_CC_VERSION_TEXT="x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0"\n')
    (headers / "include/generated/utsversion.h").write_text('#define UTS_VERSION "#1 SMP Debian 6.12.107-1"\n')
    (headers / "Module.symvers").write_text("0x0\tvfs_read\tvmlinux\tEXPORT_SYMBOL\t\n")
    (path / "usr/bin").mkdir()
    for name in ("gcc", "gcc-14", "gcc-16", "gcc-ar-14"):
        (path / "usr/bin" / name).touch()
    (path / "usr/lib/debug/boot").mkdir(parents=True)
    (path / "usr/lib/debug/boot" / ("vmlinux-" + RELEASE)).touch()
    (path / "usr/lib/debug/boot" / ("System.map-" + RELEASE)).write_bytes(b"x" * 5000)
    return Root(str(path))


def test_kernels_and_compilers_are_found(tmp_path: pathlib.Path) -> None:
    root = builder_root(tmp_path)
    compilers = find_compilers(root)
    assert compilers == COMPILERS
    kernel = builders.read_kernels(root, compilers)[RELEASE]
    assert (kernel.version, kernel.origin, kernel.compiler) == (
        "#1 SMP Debian 6.12.107-1",
        Origin("gcc", 14),
        COMPILERS[0],
    )
    assert kernel.vmlinux is not None


@pytest.mark.parametrize(
    ("wanted", "chosen"), [(12, "gcc-14"), (14, "gcc-14"), (15, "gcc-16"), (17, "gcc-16"), (None, "gcc-16")]
)
def test_the_compiler_is_the_named_or_the_next_newer(wanted: int | None, chosen: str) -> None:
    compiler = choose_compiler(Origin("gcc", wanted), COMPILERS)
    assert compiler is not None and compiler.command == chosen
    assert choose_compiler(Origin("gcc", wanted), []) is None


def test_headers_must_be_of_the_hosts_kernel(tmp_path: pathlib.Path) -> None:
    kernels = builders.read_kernels(builder_root(tmp_path), TOOLS.compilers)
    assert builders.find_kernel(kernels, RELEASE, None).release == RELEASE
    with pytest.raises(InvalidInput) as caught:
        builders.find_kernel(kernels, "6.12.108+deb13-cloud-amd64", None)
    assert RELEASE in caught.value.message
    with pytest.raises(InvalidInput, match="another build"):
        builders.find_kernel(kernels, RELEASE, "#2 SMP Debian 6.12.107-2")


def test_the_key_covers_what_the_module_depends_on(tmp_path: pathlib.Path) -> None:
    kernel = builders.read_kernels(builder_root(tmp_path), TOOLS.compilers)[RELEASE]
    order = build.BuildRequest("vfs latency.x", "probe begin { }", kernel, False, 10)
    assert order.module_name.startswith("tapvirt_vfs_latency_x_") and len(order.module_name) < 56
    key = build.key_of(order, TOOLS)
    assert key == build.key_of(build.BuildRequest("vfs latency.x", "probe begin { }", kernel, False, 10), TOOLS)
    others = [
        build.BuildRequest("other", "probe begin { }", kernel, False, 10),
        build.BuildRequest("vfs latency.x", "probe end { }", kernel, False, 10),
        build.BuildRequest("vfs latency.x", "probe begin { }", kernel, True, 10),
        build.BuildRequest("vfs latency.x", "probe begin { }", kernel, False, 20),
    ]
    plain = [
        dataclasses.replace(kernel, compiler=Compiler("gcc", 14, "gcc", version)) for version in ("14.2.1", "14.3.0")
    ]
    others += [build.BuildRequest("vfs latency.x", "probe begin { }", compiled, False, 10) for compiled in plain]
    newer = builders.Toolchain("5.7", "Systemtap translator/driver (version 5.7/0.197)", None, TOOLS.compilers)
    keys = {build.key_of(other, TOOLS) for other in others} | {build.key_of(order, newer)}
    assert len(keys) == 7 and key not in keys


def test_the_sysroot_links_to_debug_information(tmp_path: pathlib.Path) -> None:
    root = builder_root(tmp_path / "builder")
    store = Store(str(tmp_path / "store"))
    kernel = builders.read_kernels(root, TOOLS.compilers)[RELEASE]
    for _time in range(2):
        links = pathlib.Path(sysroot.make_sysroot(store, kernel, root))
    assert (links / "lib/modules" / RELEASE / "build/.config").exists()
    assert (links / "boot" / ("System.map-" + RELEASE)).exists()


@pytest.mark.parametrize(
    ("points", "linked"),
    [
        ('kernel.trace("raw_syscalls:sys_enter")', ["syscalls.h"]),
        ('kernel.trace("sched:sched_wakeup"), kernel.trace("exceptions:page_fault_user")', ["exceptions.h", "sched.h"]),
        ('kernel.trace("sys_enter")', ["exceptions.h", "sched.h", "syscalls.h"]),
        ('kernel.function("vfs_read")', []),
        ('kernel.{trace("sched:sched_switch"), function("vfs_read")}', ["sched.h"]),
        ('kernel.trace ("sched:sched_switch")', ["sched.h"]),
    ],
)
def test_headers_of_the_named_tracepoints_are_linked(tmp_path: pathlib.Path, points: str, linked: list[str]) -> None:
    root = builder_root(tmp_path)
    common = "usr/src/linux-headers-6.12.107+deb13-common"
    (tmp_path / "usr/lib/modules" / RELEASE / "build/Makefile").write_text(f"include /{common}/Makefile\n")
    for name, system in (
        ("include/trace/events/sched.h", "sched"),
        ("include/trace/events/syscalls.h", "raw_syscalls"),
        ("arch/x86/include/asm/trace/exceptions.h", "exceptions"),
    ):
        (tmp_path / common / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / common / name).write_text(f"#undef TRACE_SYSTEM\n#define TRACE_SYSTEM {system}\n")
    links = tmp_path / "sysroot"
    sysroot.link_trace_headers(str(links), RELEASE, root, f"probe {points} {{ }}\n")
    found = sorted((links / "lib/modules" / RELEASE / "source").rglob("*.h"))
    assert [path.name for path in found] == linked
    assert all(path.read_text().startswith("#undef") for path in found)


def test_a_damaged_build_counts_as_absent(tmp_path: pathlib.Path) -> None:
    store = Store(str(tmp_path))
    folder = tmp_path / ("a" * 64)
    folder.mkdir()
    module = folder / "x.ko"
    module.write_bytes(b"module")
    digest = hash_file(str(module))
    (folder / "build.json").write_text(json.dumps({"path": str(module), "sha256": digest}))
    assert store.read("a" * 64) is not None
    module.write_bytes(b"modul")
    assert store.read("a" * 64) is None
    assert store.read("b" * 64) is None
    store.log({"key": "a"})
    store.log({"key": "b"})
    assert store.row() == {"directory": str(tmp_path), "builds": 2, "modules": 1}


def test_the_listing_of_pass_two() -> None:
    rows = stap_output.parse_probe_rows((FIXTURES / "pass2_listing.txt").read_text())
    assert [(row["place"], row["helper"], row["optional"]) for row in rows] == [
        ("_stext+0x430990", False, False),
        ("_stext+0x431230", True, False),
        ("_stext+0x431230", False, False),
        ("kvm_amd:svm_invoke_exit_handler+0", False, False),
        (None, False, False),
        (None, False, False),
        (None, False, True),
        (None, False, False),
    ]
    assert rows[0]["point"] == 'kernel.function("vfs_read@fs/read_write.c:549").call'
    assert rows[0]["asked"] == 'kernel.function("vfs_read").call'
    assert rows[6]["point"] == 'kprobe.function("vfs_open")'


def test_parameters_of_a_module() -> None:
    assert stap_output.parse_parameters((FIXTURES / "modinfo_parm.txt").read_text()) == {
        "target_pid": "long",
        "threshold_us": "long",
    }
    assert stap_output.parse_parameters("name: (string)\n") == {"name": "string"}


@pytest.mark.parametrize(
    ("name", "phase", "line", "column", "message", "candidates"),
    [
        ("syntax", "parse", 3, 1, "expected literal string or number saw: operator '}'", []),
        ("open_string", "parse", 1, 21, "closing quote", []),
        (
            "missing_function",
            "analysis",
            1,
            7,
            "no function or event has that name",
            ["vfs_read", "vcs_read", "vfs_open", "vfs_readv", "fb_read"],
        ),
        ("missing_script_function", "analysis", 1, 15, "unresolved function foo", ["log", "HZ", "pn", "pp", "cpu"]),
        (
            "missing_variable",
            "analysis",
            1,
            49,
            "unable to find local 'nosuch' in vfs_read fs/read_write.c: identifier '$nosuch' (in: ",
            ["$buf", "$count", "$pos", "$ret", "$file"],
        ),
        ("type_mismatch", "analysis", 2, 22, "type mismatch (string)", []),
    ],
)
def test_what_stap_reports_becomes_one_paragraph(
    name: str, phase: str, line: int, column: int, message: str, candidates: list[str]
) -> None:
    text = (FIXTURES / f"stap_error_{name}.txt").read_text()
    error = stap_output.build_failed("sample", RELEASE, stap_output.read_failure("sample", text))
    assert (error.fields["phase"], error.fields["line"], error.fields["column"]) == (phase, line, column)
    assert error.row()["candidates"] == candidates
    assert error.message.startswith(
        f"Script sample, line {line}, column {column}: The {phase} of stap failed for kernel "
    )
    assert message in error.row()["problem"] and error.row()["problem"] in error.message
    assert "\n" not in error.message
    assert not re.search(r"dieoffset|near pc|\[man", error.message)


def test_a_reason_is_found_where_there_is_no_pass() -> None:
    text = 'Checking "/lib/modules/6.9.9/build/.config" failed with error: No such file or directory\nTip: x\n'
    assert "No such file" in stap_output.build_failed("s", RELEASE, stap_output.read_failure("s", text)).message
    error = stap_output.build_failed("s", None, stap_output.read_failure("s", ""))
    assert error.row() == {
        "option": None,
        "value": None,
        "problem": "Script s: The start of stap failed: stap gave no reason.",
        "hint": None,
        "candidates": [],
    }
