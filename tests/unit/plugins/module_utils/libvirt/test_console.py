# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a console printed, as plain text. Pure."""

from __future__ import annotations

import random
import re

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.console.text import (
    PlainText,
    clean_text,
    compile_pattern,
)

# What bursts are made of: whole things, their beginnings, and what may end them or not.
ATOMS = [
    "ü€😀".encode(), "€".encode()[:2], b"\xff", b"a", b"login: ", b"0;12", b"m", b"[", b"]", b"\\", b" ", b"~", b"\n",
    b"\r", b"\r\n", b"\x1b", b"\x1b[", b"\x1b[1;32m", b"\x1b(B", b"\x1b]", b"\x1b]0;title", b"\x1bP", b"\x07",
    b"\x1b\\", b"\x18", b"\x00",
]  # fmt: skip


def clean(data: bytes) -> str:
    return clean_text(data.decode("utf-8", "replace"))


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
        # A string that nothing ends does not swallow what comes after.
        (b"\x1b]0;lost\r\nkept\x07", "0;lost\nkept"),
        (b"\x1bPlost\x1b[1mkept", "lostkept"),
    ],
)
def test_clean(data: bytes, text: str) -> None:
    assert clean(data) == text


def test_a_pattern_sees_lines_and_crosses_them() -> None:
    pattern = compile_pattern("^login:.*boot$")
    assert pattern is not None
    assert pattern.search("x\nlogin: a\nboot\n")
    assert compile_pattern(None) is None


@pytest.mark.parametrize("seed", range(50))
def test_a_burst_is_cleaned_the_same_however_it_is_cut(seed: int) -> None:
    dice = random.Random(seed)
    for _burst in range(20):
        data = b"".join(dice.choice(ATOMS) for _atom in range(dice.randrange(1, 30)))
        plain, begin = PlainText(), 0
        while begin < len(data):
            end = begin + dice.randrange(1, 6)
            plain.feed(data[begin:end])
            begin = end
            assert plain.text() == clean(data[:end]), (seed, data[:end])


def test_a_pattern_is_found_over_the_borders_of_pieces_and_windows() -> None:
    plain = PlainText()
    found = []
    for piece in (b"x" * 70000, b"\nlog", b"in: \x1b[1", b"mroot\x1b[0m", b"\r", b"\n"):
        plain.feed(piece)
        found.append([plain.has(re.compile(pattern, re.MULTILINE)) for pattern in ("^login: root$", "^x{10}$")])
    assert [row[0] for row in found] == [False, False, False, True, True, True]
    # The window was cut within a line: what is left of that line is no line of its own.
    plain = PlainText()
    plain.feed(b"y" * 100000)
    assert not plain.has(re.compile("never"))
    plain.feed(b"\n")
    assert not plain.has(re.compile("^y{65536}$", re.MULTILINE))


def test_nothing_is_kept_for_a_search_that_does_not_come() -> None:
    plain = PlainText(searched=False)
    for _piece in range(50):
        plain.feed(b"\r" * 5000)
    plain.feed(b"x")
    assert plain.text() == "\nx"
    assert not plain.has(re.compile("[^a]"))
