# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.options import parse_age
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.tokens import ScriptError, tokenize
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.request import read_order
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script.check import (
    check_globals,
    check_safety,
    read_script,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script.deploy import deploy, script_name
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace.collect import run_directory
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace.start import check_build

SCRIPT = r"""
#: record histogram key:string count:integer buckets:list
#: record count key:string count:integer
global threshold_us = 100, name = "x", lat, arr[10], low = -3, mask = 0x1f
private global wrap%
/* global hidden = 1 */
probe kernel.function("vfs_read").call, never ? { x = 1; s = "global y = 2" }
probe alias = begin { z = 1 }
function f:long(a:long) { return a }
probe end { println(name) }
"""


def test_declarations_are_read() -> None:
    script = read_script("s", SCRIPT)
    assert {name: variable.kind for name, variable in script.globals.items()} == {
        "threshold_us": "long",
        "name": "string",
        "lat": "unknown",
        "arr": "array",
        "low": "long",
        "mask": "long",
        "wrap": "array",
    }
    assert script.globals["low"].initial == -3
    assert script.globals["mask"].initial == 31
    assert script.probes == ('kernel.function("vfs_read").call, never ?', "end")
    assert script.schema["histogram"] == {"key": "string", "count": "integer", "buckets": "list"}


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ('probe begin {\n  print("abc) }\n', 2, 9, "not closed on its line"),
        ("probe begin { (x] }", 1, 17, "']' does not match the '(' of line 1"),
        ("probe begin { x }\n}", 2, 1, "'}' has no opening bracket"),
        ("probe begin {\n  if (1) {\n}\n", 1, 13, "never closed"),
        ("global a\n", 1, 1, "no probe"),
        ("probe begin { x = `1` }", 1, 19, "The language has no token that begins with '`'"),
        ("probe begin { /* open }", 1, 15, "The comment is not closed"),
        ("%{ int x;\nprobe begin { }", 1, 1, "Embedded C is not closed by %}"),
        ("#: record count key:text\nprobe begin { }", 1, 17, "NAME:TYPE"),
    ],
)
def test_a_fault_has_a_line_and_a_column(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(ScriptError) as caught:
        read_script("s", text)
    assert (caught.value.fields["line"], caught.value.fields["column"]) == (line, column)
    assert message in caught.value.message


def test_lines_are_counted_through_comments_and_embedded_code() -> None:
    tokens = tokenize("/* a\nb */ %{ c\nd %} word")
    assert [(token.text, token.line) for token in tokens if token.kind == "word"] == [("word", 3)]


PROBE = "probe begin { }"


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        (f"%{{\n#undef STP_OVERLOAD_THRESHOLD\n%}}\n{PROBE}", "STP_OVERLOAD_THRESHOLD", 2),
        (f"{PROBE}\n%{{ #define STP_OVERLOAD_THRESHOLD 1000000000LL %}}", "STP_OVERLOAD_THRESHOLD", 2),
        (f"%{{\n  #  define STP_OVERLOAD_INTERVAL 1\n%}}{PROBE}", "STP_OVERLOAD_INTERVAL", 2),
        (f"%{{ #undef STP_OVERLOAD\n%}}{PROBE}", "STP_OVERLOAD", 1),
        (f"%{{ #define STP_NO_OVERLOAD\n%}}{PROBE}", "STP_NO_OVERLOAD", 1),
        (f"%{{ #define STAP_NO_OVERLOAD 1\n%}}{PROBE}", "STAP_NO_OVERLOAD", 1),
        (f"%{{ #define STAP_SUPPRESS_TIME_LIMITS_ENABLE\n%}}{PROBE}", "STAP_SUPPRESS_TIME_LIMITS_ENABLE", 1),
        (f"%{{ #define STAP_SUPPRESS_HANDLER_ERRORS\n%}}{PROBE}", "STAP_SUPPRESS_HANDLER_ERRORS", 1),
        # The preprocessor joins lines, takes a comment for a space, and has another spelling of "#".
        (f"%{{\n#de\\\nfine STP_NO_\\\nOVERLOAD\n%}}{PROBE}", "STP_NO_OVERLOAD", 3),
        (f"%{{ /* a */ # /* b */ undef /* c */ STP_OVERLOAD\n%}}{PROBE}", "STP_OVERLOAD", 1),
        (f"%{{ %:undef STP_OVERLOAD\n%}}{PROBE}", "STP_OVERLOAD", 1),
        (f"{PROBE}\n%{{ /*\n\n*/ int a; // b\n\n#undef STP_OVERLOAD\n%}}", "STP_OVERLOAD", 6),
        # A function's body, the body of a macro, and a branch that another kernel takes.
        ("function f() %{\n#undef STP_OVERLOAD\n%}\nprobe begin { f() }", "STP_OVERLOAD", 2),
        (f"@define off %( %{{ #undef STP_OVERLOAD %}} %)\n@off\n{PROBE}", "STP_OVERLOAD", 1),
        (f'%( kernel_v >= "9.0" %? %{{ #undef STP_OVERLOAD %}} %)\n{PROBE}', "STP_OVERLOAD", 1),
        # The one comment that carries options.
        (f"#!/usr/bin/stap --suppress-time-limits\n{PROBE}", "--suppress-time-limits", 1),
        (f"#! /usr/bin/stap -g --suppress-handler-errors\n{PROBE}", "--suppress-handler-errors", 1),
        (f"#!/usr/bin/stap --suppress-time\n{PROBE}", "--suppress-time", 1),
        (f"#!/usr/bin/stap -D STP_NO_OVERLOAD\n{PROBE}", "-D STP_NO_OVERLOAD", 1),
        (f"#!/usr/bin/stap -DSTP_OVERLOAD_THRESHOLD=9\n{PROBE}", "-DSTP_OVERLOAD_THRESHOLD", 1),
    ],
)
def test_guards_stay_on(text: str, what: str, line: int) -> None:
    with pytest.raises(InvalidInput, match="never accepted") as caught:
        check_safety("src", read_script("s", text), guru=True)
    place = "the interpreter line" if text.startswith("#!") else "embedded C"
    problem = f"The script s switches off a protection of the host in {place}, which is never accepted."
    assert caught.value.message == f"Invalid value {what!r} for src, line {line}: {problem}"
    assert caught.value.row()["value"] == what


GUARD = "STP_OVERLOAD_THRESHOLD"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
@pytest.mark.parametrize(
    "code",
    [
        *(f"{space}#define {GUARD} 1" for space in "\f\v\0\r"),
        *(f"#{space}define {GUARD} 1" for space in "\f\v\0"),
        *(f"#define{space}{GUARD} 1" for space in "\f\v\0"),
        *(f"#def\\{space}\nine {GUARD} 1" for space in "\f\v\0\r"),
        f"#def\\\rine {GUARD} 1",
        f"int a;\r#define {GUARD} 1",
        f"// a\r#define {GUARD} 1",
    ],
)
def test_a_definition_that_gcc_takes_is_refused(code: str) -> None:
    argv = ["gcc", "-E", "-P", "-std=gnu11", "-"]
    done = subprocess.run(argv, input=f"{code}\nX{GUARD}X {GUARD}\n".encode(), capture_output=True, check=True)
    assert done.stdout.decode().splitlines()[-1] == f"X{GUARD}X 1"
    with pytest.raises(InvalidInput, match="never accepted") as caught:
        check_safety("src", read_script("s", f"%{{\n{code}\n%}}{PROBE}"), guru=True)
    assert caught.value.line == 2 + code.count("\n")


@pytest.mark.parametrize(
    "text",
    [
        f"// STP_NO_OVERLOAD\n{PROBE}",
        f"/* the option --suppress-time-limits */\n{PROBE}",
        f"# --suppress-handler-errors\n{PROBE}",
        'probe begin { println("--suppress-time-limits STP_NO_OVERLOAD #undef STP_OVERLOAD_THRESHOLD") }',
        "probe begin { STP_NO_OVERLOAD = 1 println(STP_NO_OVERLOAD) }",
        f"%{{\n/*\n#undef STP_OVERLOAD_THRESHOLD\n*/\n// don't #define STP_NO_OVERLOAD\n%}}{PROBE}",
        f'%{{ static const char *s = "\\"\\n#undef STP_OVERLOAD"; %}}{PROBE}',
        f"%{{\n#ifdef STP_OVERLOAD\n#define STP_OVERLOAD_THRESHOLDS 2\n#define MY_STP_OVERLOAD 2\n#endif\n%}}{PROBE}",
        f"#!/usr/bin/stap -DMAXACTION=5000\n{PROBE}",
    ],
)
def test_words_that_switch_nothing_off_are_accepted(text: str) -> None:
    check_safety("src", read_script("s", text), guru=True)


def test_embedded_c_needs_guru_mode() -> None:
    unsafe = read_script("s", "function f() %{ %}\nprobe begin { f() }")
    with pytest.raises(InvalidInput, match="guru mode"):
        check_safety("src", unsafe, guru=False)
    check_safety("src", unsafe, guru=True)


def test_values_of_globals_are_typed() -> None:
    declared = {"n": "long", "s": "string", "u": "unknown", "a": "array"}
    assert check_globals("x", declared, {"n": "12", "s": 5, "u": "word"}) == {"n": 12, "s": "5", "u": "word"}
    assert check_globals("x", declared, {"n": True, "u": 7}) == {"n": 1, "u": 7}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"thresold": 1}, "it has threshold, title. Did you mean threshold?"),
        ({"threshold": "fast"}, "whole number"),
        ({"threshold": 1.5}, "whole number"),
        ({"threshold": 1 << 63}, "a number of 64 bits"),
        ({"title": "two words"}, "without spaces"),
        ({"title": "x" * 600}, "511 bytes"),
        ({"table": 1}, "is an array"),
    ],
)
def test_a_wrong_global_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_globals("x", {"threshold": "long", "title": "string", "table": "array"}, values)
    assert message in caught.value.message


@pytest.mark.parametrize("end", ["\n", "\r", " "])
def test_nothing_follows_what_a_text_must_fit(end: str) -> None:
    """A newline at the end fits Python's ``$`` as well."""
    with pytest.raises(InvalidInput, match="whole number"):
        check_globals("x", {"n": "long"}, {"n": "12" + end})
    with pytest.raises(InvalidInput, match="file name"):
        script_name("src", "/x/reads" + end)
    with pytest.raises(InvalidInput, match="older_than"):
        parse_age("30d" + end)
    with pytest.raises(InvalidInput, match="for name: stap_module does not return such a name"):
        check_build({"name": "tapvirt_x" + end, "sha256": "0" * 64})
    with pytest.raises(InvalidInput, match="for sha256: stap_module does not return such a sha256"):
        check_build({"name": "tapvirt_x", "sha256": "0" * 64 + end})
    with pytest.raises(InvalidInput, match=re.escape("_stage.run")):
        run_directory("tapvirt_x", "12ab" + end)


def test_a_number_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(
        InvalidInput, match=r"^Invalid value '9{199}\.\.\. for n: The global variable n takes a number of 64"
    ):
        check_globals("x", {"n": "long"}, {"n": "9" * 5000})
    assert check_globals("x", {"n": "long"}, {"n": "0" * 400 + "7"}) == {"n": 7}


def test_a_text_that_is_not_utf8_has_a_size() -> None:
    assert check_globals("x", {"s": "string"}, {"s": "a\udce9"}) == {"s": "a\udce9"}


@pytest.mark.parametrize(
    ("field", "value", "option", "problem"),
    [
        ("name", None, "name", "The module has no name."),
        ("name", 5, "name", "stap_module does not return such a name."),
        ("kernel", 5, "kernel", "The field kernel of a module is a text."),
        ("kernel", None, "kernel", "The module has no kernel."),
        ("globals", 5, "globals", "The field globals of a module is a dictionary."),
        ("globals", None, "globals", "The module has no globals."),
        ("assigned", "x", "assigned", "The field assigned of a module is a dictionary."),
        ("probes", 5, "probes", "The field probes of a module is a list."),
        ("probes", [5], "probes[0]", "stap_module does not return such a probe."),
        ("schema", [], "schema", "The field schema of a module is a dictionary."),
    ],
)
def test_a_module_of_another_form_is_refused(field: str, value: object, option: str, problem: str) -> None:
    good = {"name": "tapvirt_x", "sha256": "0" * 64, "kernel": "6.1", "globals": {}, "probes": [{"point": "begin"}]}
    check_build(good)
    with pytest.raises(InvalidInput) as caught:
        check_build({**good, field: value})
    assert (caught.value.option, caught.value.problem) == (option, problem)


def test_guru_mode_has_a_reason(run_module: t.Any) -> None:
    options = {"src": "/x.stp", "_content": "probe begin { exit() }", "guru": True, "guru_reason": " "}
    result = run_module("stap_script", options)
    assert result["error"]["option"] == "guru_reason"
    assert result["msg"].endswith("The reason is empty. Say why guru mode is needed.")
    kept = run_module("stap_script", {**options, "guru_reason": "a counter in C"})["script"]
    assert (kept["guru"], kept["guru_reason"]) == (True, "a counter in C")
    assert run_module("stap_script", {**options, "guru": False})["script"]["guru_reason"] is None


def test_a_script_that_was_not_checked_is_checked_before_it_is_built() -> None:
    text = f"%{{ #define STP_NO_OVERLOAD\n%}}{PROBE}"
    row = {"name": "s", "text": text, "schema": {}, "assigned": {}, "guru": True, "guru_reason": "a counter"}
    with pytest.raises(InvalidInput, match="never accepted"):
        read_order(row)
    with pytest.raises(ScriptError, match="guru mode") as caught:
        read_order({**row, "text": f"%{{ int x; %}}{PROBE}", "guru": False})
    assert caught.value.row()["option"] == "script"
    assert read_order({**row, "text": PROBE})["name"] == "s"
    with pytest.raises(InvalidInput, match="gives no reason") as refused:
        read_order({**row, "text": PROBE, "guru_reason": " "})
    assert refused.value.option == "script.guru_reason"


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("new/", "The path must end with the name of a file"),
        ("new/.", "The path must end with the name of a file"),
        ("..", "The path must end with the name of a file"),
        ("a\0b", "A path cannot contain a NUL byte"),
    ],
)
def test_a_place_that_is_not_a_file_is_refused(name: str, rule: str, check: bool, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        deploy(f"{tmp_path}/{name}", PROBE, check)
    assert caught.value.message == f"Invalid value {f'{tmp_path}/{name}'!r} for dest: {rule}."
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/proc/x/y", "/proc is a proc"),
        ("/proc/sys/kernel/hostname", "/proc is a proc"),
        ("/sys/x.stp", "/sys is a sysfs"),
    ],
)
def test_a_place_where_no_file_can_be_made_is_named(path: str, mount: str, check: bool) -> None:
    with pytest.raises(TapvirtError) as caught:
        deploy(path, PROBE, check)
    assert caught.value.message == (
        f"Invalid value {path!r} for dest: {mount} file system of the kernel, where no file can be created."
    )


@pytest.mark.parametrize("check", [True, False])
def test_a_read_only_file_system_is_named(check: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.stp"
    path.write_text(PROBE, encoding="utf-8")
    found = list(os.statvfs(tmp_path))
    found[8] |= os.ST_RDONLY
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(found))
    # Nothing has to be written.
    assert not deploy(str(path), PROBE, check)
    with pytest.raises(TapvirtError) as caught:
        deploy(str(path), PROBE + "\n", check)
    assert caught.value.message == (
        f"Invalid value '{path}' for dest: The file system of {tmp_path} is mounted read-only."
    )
