# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a console printed, as plain text. Pure."""

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.console import clean, compile_pattern


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\r\nb\r\n", "a\nb\n"),
        (b"10%\r20%\r\n", "10%\n20%\n"),
        (b"\x1b[2J\x1b[1;32mok\x1b[0m", "ok"),
        (b"\x1b]0;title\x07prompt$ ", "prompt$ "),
        (b"\x1b]0;title\x1b\\x", "x"),
        (b"\x1b(B\x1b=\x1b>x", "x"),
        (b"\x00a\x07\x08b\tc", "ab\tc"),
        ("grün".encode(), "grün"),
        (b"\xff!", "\ufffd!"),
    ],
)
def test_clean(data: bytes, text: str) -> None:
    assert clean(data) == text


def test_a_pattern_sees_lines_and_crosses_them() -> None:
    pattern = compile_pattern("^login:.*boot$")
    assert pattern is not None
    assert pattern.search("x\nlogin: a\nboot\n")
    assert compile_pattern(None) is None
