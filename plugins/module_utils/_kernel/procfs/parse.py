# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parsers of procfs share: lines, words and numbers, as the kernel prints them. Private to the collection.

Python's own ``splitlines``, ``split`` and ``int`` know Unicode newlines, spaces and digits, and underscores in
numbers. A name in procfs may contain any of these, so this module uses none of them.
"""

from __future__ import annotations

import os
import re
import typing as t

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Value = t.Any
#: A parser: the text of a file, and a list that takes the rows that it does not know; it returns a table.
Parser = t.Callable[[str, t.List[str]], Value]

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_DECIMAL = re.compile(r"-?[0-9]{1,20}\.[0-9]{1,20}")
_KIBIBYTES = re.compile(r"([0-9]{1,20}) [kK]B")
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


class NotARow(ValueError):
    """A row does not have the form that the kernel is known to print."""


def decode(data: bytes) -> str:
    r"""Return bytes as text; those that are not UTF-8 become ``\xNN``, so that any result can be sent as JSON."""
    return data.decode("utf-8", "backslashreplace")


def lines_of(text: str) -> t.Iterator[str]:
    """Yield the lines that are not blank, without their line ends."""
    return (line for line in text.split("\n") if line.strip(" \t"))


def words_of(line: str) -> list[str]:
    """Split at spaces and tabs."""
    return [word for word in line.replace("\t", " ").split(" ") if word]


def parse_rows(text: str, unparsed: list[str], parse: t.Callable[[str], Value], skip: int = 0) -> list[Value]:
    """Return a row for each line after the first ``skip``; a line that ``parse`` refuses is kept raw."""
    rows = []
    for line in list(lines_of(text))[skip:]:
        try:
            rows.append(parse(line))
        except NotARow:
            unparsed.append(line)
    return rows


def integer(word: str) -> int:
    """Return a decimal number of at most 64 bits.

    :raises NotARow: the word is not such a number.
    """
    if not _INTEGER.fullmatch(word):
        raise NotARow(word)
    return int(word)


def decimal(word: str) -> float:
    """Return a number with a point.

    :raises NotARow: the word is not such a number.
    """
    if not _DECIMAL.fullmatch(word):
        raise NotARow(word)
    return float(word)


def integers(words: t.Iterable[str]) -> list[int]:
    """Return several numbers.

    :raises NotARow: a word is not a number.
    """
    return [integer(word) for word in words]


def seconds(ticks: int) -> float:
    """Return the seconds of a number of clock ticks of user space (USER_HZ)."""
    return ticks / TICKS_PER_SECOND


def at_least(words: t.Sequence[str], count: int) -> t.Sequence[str]:
    """Return the words if there are enough of them.

    :raises NotARow: there are fewer.
    """
    if len(words) < count:
        raise NotARow(" ".join(words))
    return words


def labelled(line: str) -> tuple[str, str]:
    """Split ``name : value``.

    :raises NotARow: there is no colon, or nothing before it.
    """
    name, colon, value = line.partition(":")
    name = name.strip(" \t")
    if not colon or not name:
        raise NotARow(line)
    return name, value.strip(" \t")


def sized(name: str, value: str) -> tuple[str, Value]:
    """Return ``NAME_bytes`` and a number of bytes for a value in kB, else the name with its number or text."""
    match = _KIBIBYTES.fullmatch(value)
    if match:
        return name + "_bytes", int(match.group(1)) << 10
    for pattern, convert in ((_INTEGER, int), (_DECIMAL, float)):
        if pattern.fullmatch(value):
            return name, convert(value)
    return name, value


def address(word: str) -> str | None:
    """Return a hexadecimal address as ``0x...``: JSON numbers cannot hold it. Zero is hidden: None.

    :raises NotARow: the word is not an address.
    """
    if not re.fullmatch(r"(?:0x)?[0-9a-fA-F]{1,16}", word):
        raise NotARow(word)
    value = int(word, 16)
    return f"0x{value:x}" if value else None


def unescape(word: str) -> str:
    r"""Undo the octal escapes of ``seq_escape``: ``\040`` is a space, and so on for any byte."""
    if "\\" not in word:
        return word
    data = word.encode("utf-8", "surrogatepass")
    return decode(_OCTAL.sub(lambda match: bytes([int(match.group(1), 8)]), data))


def named(names: t.Sequence[str], values: t.Sequence[Value]) -> dict[str, Value]:
    """Return names with their values: null where there are fewer values, ``more`` for those without a name."""
    row: dict[str, Value] = dict(zip(names, values))
    for name in names[len(values) :]:
        row[name] = None
    if len(values) > len(names):
        row["more"] = list(values[len(names) :])
    return row
