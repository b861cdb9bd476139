# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script import (
    check_globals,
    check_safety,
    read_script,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.tokens import ScriptError, tokenize

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
    assert not script.embedded_c


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ('probe begin {\n  print("abc) }\n', 2, 9, "not closed on its line"),
        ("probe begin { (x] }", 1, 17, "cannot close"),
        ("probe begin { x }\n}", 2, 1, "closes nothing"),
        ("probe begin {\n  if (1) {\n}\n", 1, 13, "never closed"),
        ("global a\n", 1, 1, "no probe"),
        ("probe begin { x = `1` }", 1, 19, "begins no token"),
        ("probe begin { } /* open", 1, 17, "comment that is not closed"),
        ("%{ int x;\nprobe begin { }", 1, 1, "embedded C that is not closed"),
        ("#: record count key:text\nprobe begin { }", 1, 17, "NAME:TYPE"),
    ],
)
def test_a_fault_has_a_line_and_a_column(text: str, line: int, column: int, said: str) -> None:
    with pytest.raises(ScriptError) as caught:
        read_script("s", text)
    assert (caught.value.fields["line"], caught.value.fields["column"]) == (line, column)
    assert said in caught.value.message


def test_lines_are_counted_through_comments_and_embedded_code() -> None:
    tokens = tokenize("s", "/* a\nb */ %{ c\nd %} word")
    assert [(token.text, token.line) for token in tokens if token.kind == "word"] == [("word", 3)]


def test_guards_stay_on() -> None:
    with pytest.raises(InvalidInput, match="never accepted"):
        check_safety(read_script("s", "// STP_NO_OVERLOAD\nprobe begin { }"), guru=True)
    unsafe = read_script("s", "function f() %{ %}\nprobe begin { f() }")
    with pytest.raises(InvalidInput, match="guru mode"):
        check_safety(unsafe, guru=False)
    check_safety(unsafe, guru=True)


def test_values_of_globals_are_typed() -> None:
    declared = {"n": "long", "s": "string", "u": "unknown", "a": "array"}
    assert check_globals("x", declared, {"n": "12", "s": 5, "u": "word"}) == {"n": 12, "s": "5", "u": "word"}
    assert check_globals("x", declared, {"n": True, "u": 7}) == {"n": 1, "u": 7}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"thresold": 1}, "Nearest: threshold"),
        ({"threshold": "fast"}, "whole number"),
        ({"threshold": 1.5}, "whole number"),
        ({"threshold": 1 << 63}, "64-bit"),
        ({"title": "two words"}, "without blanks"),
        ({"title": "x" * 600}, "511 bytes"),
        ({"table": 1}, "is an array"),
    ],
)
def test_a_wrong_global_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_globals("x", {"threshold": "long", "title": "string", "table": "array"}, values)
    assert said in caught.value.message
