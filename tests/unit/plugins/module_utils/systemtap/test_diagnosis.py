# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a build failed: output of stap 5.6 with gcc 14 and make, as a builder printed it for kernel 6.12."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.probe_point import parse_probe_point
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.diagnosis import (
    explain_compile,
    explain_no_match,
    failed_point,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.stap_output import (
    Failure,
    build_failed,
    read_failure,
)

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures" / "systemtap"
RELEASE = "6.12.117+deb13-cloud-amd64"
LIMITS = "600 seconds of CPU time and 4 GiB in each process"
TAIL = "\nmake: *** [Makefile:2008: all] Error 2\nPass 4: compilation failed.  [man error::pass4]\n"
RUNTIME = "SystemTap's runtime does not compile for this kernel: "
PLAIN = "probe begin { println(1); exit() }\n"
EMBEDDED = """function f:long() %{
  int x = nosuch_function_here(3);
  STAP_RETVALUE = x + ;
%}
probe begin { println(f()); exit() }
"""
SYMBOL = """%{
extern int tapvirt_not_exported(int);
%}
function f:long() %{
  STAP_RETVALUE = tapvirt_not_exported(2);
%}
probe begin { println(f()); exit() }
"""
INCLUDE = "%{\n#include <linux/nosuch_header.h>\n%}\nprobe begin { exit() }\n"
UPDATE = "Update SystemTap on the builder; this one was tested with 3.10 ... 7.3.0-rc3."
SMALLER = f"The builder needs more free memory, or the script has to be smaller: a compile may use {LIMITS}."


def explained(output: str, text: str) -> Failure:
    return explain_compile(read_failure("sample", output), text, LIMITS)


@pytest.mark.parametrize(
    ("fixture", "text", "line", "reason", "hint"),
    [
        (
            "embedded",
            EMBEDDED,
            2,
            "the compiler refuses the script's embedded C: tapvirt_emb_src.c:286:11: error: implicit declaration of "
            "function 'nosuch_function_here' [-Wimplicit-function-declaration]",
            None,
        ),
        (
            "include",
            INCLUDE,
            2,
            "the compiler refuses the script's embedded C: tapvirt_inc_src.c:27:10: fatal error: "
            "linux/nosuch_header.h: No such file or directory",
            None,
        ),
        (
            "symbol",
            SYMBOL,
            2,
            "the script's embedded C uses tapvirt_not_exported, which the kernel does not export to this module: "
            'ERROR: modpost: "tapvirt_not_exported" [tapvirt_undef.ko] undefined!',
            None,
        ),
        (
            "runtime",
            PLAIN,
            None,
            f"{RUNTIME}/usr/share/systemtap/runtime/transport/transport.c:32:44: error: implicit declaration of "
            "function 'nosuch_kernel_function' [-Wimplicit-function-declaration]",
            UPDATE,
        ),
        # The translator's own code, which stands in no embedded C.
        (
            "embedded",
            PLAIN,
            None,
            f"{RUNTIME}tapvirt_emb_src.c:286:11: error: implicit declaration of function "
            "'nosuch_function_here' [-Wimplicit-function-declaration]",
            UPDATE,
        ),
        (
            "symbol",
            PLAIN,
            None,
            "SystemTap's runtime uses what this kernel does not export: ERROR: modpost: "
            '"tapvirt_not_exported" [tapvirt_undef.ko] undefined!',
            UPDATE,
        ),
        (
            "killed",
            PLAIN,
            None,
            "the compiler was killed: gcc-14: fatal error: Killed signal terminated program cc1",
            SMALLER,
        ),
        (
            "no_compiler",
            PLAIN,
            None,
            "make could not run a program: /bin/sh: 1: gcc-12: not found",
            "Install the program on the builder.",
        ),
        (
            "full_disk",
            PLAIN,
            None,
            "the builder's disk is full: tapvirt_ok_aux_0.c:4:3: fatal error: closing dependency file "
            ".tapvirt_ok_aux_0.o.d: No space left on device",
            "Free space where the store is.",
        ),
    ],
)
def test_a_failed_compile_shows_the_compilers_line_and_whose_code_it_is(
    fixture: str, text: str, line: int | None, reason: str, hint: str | None
) -> None:
    failure = explained((FIXTURES / f"compile_{fixture}.txt").read_text(encoding="utf-8"), text)
    assert (failure.phase, failure.reason, failure.hint, failure.line) == ("compilation", reason, hint, line)
    error = build_failed("sample", RELEASE, failure)
    place = "" if line is None else f", line {line}"
    problem = f"Script sample{place}: The compilation of stap failed for kernel {RELEASE}: {reason}"
    assert error.row()["problem"] == problem + ("" if reason.endswith("!") else ".")
    assert error.row()["hint"] == hint and error.message == " ".join(filter(None, [error.problem, hint]))
    assert error.fields["phase"] == "compilation" and "Pass 4" in error.fields["output"]


@pytest.mark.parametrize(
    "line",
    [
        "x86_64-linux-gnu-gcc-8: internal compiler error: Killed (program cc1)",
        "cc1: out of memory allocating 65536 bytes after a total of 4026531840 bytes",
        "virtual memory exhausted: Cannot allocate memory",
        "clang-16: error: unable to execute command: Killed",
        "clang: error: clang frontend command failed due to signal (use -v to see invocation)",
        "make[1]: *** [scripts/Makefile.build:234: /w/stapAbC123/x_src.o] Killed",
        "gcc-14: fatal error: CPU time limit exceeded signal terminated program cc1",
    ],
)
def test_a_killed_compiler_is_recognised(line: str) -> None:
    assert explained(line + TAIL, PLAIN).reason.startswith("the compiler was killed: ")


def test_stap_itself_may_run_out_of_memory() -> None:
    text = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    assert explained(text, PLAIN).reason.startswith("stap was killed: terminate called after throwing")


@pytest.mark.parametrize(
    "shown",
    [
        "/w/stapAbC123/x_src.c:286:11: error: use of undeclared identifier 'y'\n  int x = nosuch_function_here(3);\n",
        "/w/stapAbC123/x_src.c:286:11: error: 'y' undeclared\n   int x = nosuch_function_here(3);\n          ^\n",
        "/w/stapAbC123/x_src.c:286: error: 'y' undeclared\n  286 |   int x = nosuch_function_here(3);\n",
    ],
)
def test_clang_and_older_gcc_show_the_code_in_their_own_way(shown: str) -> None:
    failure = explained("x_src.c: In function 'f':\n" + shown + TAIL, EMBEDDED)
    assert failure.line == 2 and failure.reason.startswith("the compiler refuses the script's embedded C: x_src.c:286")


def test_a_header_that_the_script_includes_is_the_scripts() -> None:
    header = "/usr/src/linux-headers-6.12/include/linux/x.h:3:1: error: unknown type name 'u33'\n"
    script = "In file included from /w/stapAbC123/x_src.c:27:\n"
    runtime = "In file included from /usr/share/systemtap/runtime/linux/print.c:17,\n    from /w/x_src.c:52:\n"
    assert "embedded C includes" in explained(script + header + TAIL, INCLUDE).reason
    assert explained(runtime + header + TAIL, INCLUDE).reason.startswith(RUNTIME)
    assert explained(script + header + TAIL, PLAIN).reason.startswith(RUNTIME)


def test_where_make_fails_its_line_is_shown() -> None:
    line = "make[1]: *** No rule to make target 'arch/x86/tools/relocs_32.c', needed by 'all'.  Stop."
    assert explained(line + TAIL, PLAIN).reason == f"make failed: {line}"


NO_MATCH = """semantic error: while resolving probe point: identifier '{0}' at /w/sample.stp:1:7
        source: probe {1} {{ println(1) }}
                      ^

semantic error: no match{2}

Pass 2: analysis failed.  [man error::pass2]
"""


def no_match(point: str, similar: str = "", builtin: str = "", kernel: str = "") -> Failure:
    text = f"probe {point} {{ println(1) }}\n"
    failure = read_failure("sample", NO_MATCH.format(point.split("(", maxsplit=1)[0], point, similar))
    found = failed_point(failure, text)
    assert found == parse_probe_point(point)
    return explain_no_match(failure, found, lambda name: name == builtin, lambda name: name == kernel)


def test_a_module_that_is_built_in_is_named() -> None:
    point = 'module("ext4").function("ext4_sync_file")'
    instead = 'kernel.function("ext4_sync_file")'
    listed = no_match(point, builtin="ext4")
    assert listed.reason == f"ext4 is built into the kernel: probe it as {instead}"
    assert listed.candidates == [instead]
    unlisted = no_match(point, kernel="ext4_sync_file")
    assert unlisted.reason == f"the kernel itself has ext4_sync_file, so ext4 is built in: probe it as {instead}"
    assert no_match(point).reason == "there is no debug information of a module ext4"
    other = no_match('module("zram").function("zram_reset")', " (similar functions: zram_exit)", builtin="zram")
    assert other.is_no_match and other.candidates == ["zram_exit"]


def test_a_function_without_inlined_copies_is_told_from_none() -> None:
    found = no_match('kernel.function("vfs_read").inline', " (similar functions: vfs_read, vcs_read)")
    assert found.reason == (
        'the function exists, but the compiler made no inlined copy of it: probe it as kernel.function("vfs_read")'
    )
    assert found.candidates == ['kernel.function("vfs_read")']
    absent = no_match('kernel.function("vfs_raed").inline', " (similar functions: vfs_read, vcs_read)")
    assert absent.is_no_match and absent.candidates == ["vfs_read", "vcs_read"]
