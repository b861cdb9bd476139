# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of the network. Private to the collection.

Both are driven by their own headers (net/core/net-procfs.c, net/ipv4/proc.c).
"""

from __future__ import annotations

import typing as t

from .parse import NotARow, integers, lines_of, parse_rows, words_of


def net_dev(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``interface`` with the counters of ``receive`` and ``transmit`` by name."""
    header = list(lines_of(text))[1:2]
    columns = [words_of(part) for part in (header[0] if header else "").split("|")[1:]]

    def row(line: str) -> dict[str, t.Any]:
        name, colon, rest = line.rpartition(":")
        values = integers(words_of(rest))
        if not colon or len(columns) != 2 or len(values) != sum(len(names) for names in columns):
            raise NotARow(line)
        received = len(columns[0])
        return {
            "interface": name.strip(" \t"),
            "receive": dict(zip(columns[0], values)),
            "transmit": dict(zip(columns[1], values[received:])),
        }

    return parse_rows(text, unparsed, row, skip=2)


def net_snmp(text: str, unparsed: list[str]) -> dict[str, dict[str, int]]:
    """Return the counters of each protocol by name; a line of names goes before each line of numbers."""
    table: dict[str, dict[str, int]] = {}
    names: list[str] = []
    for line in lines_of(text):
        words = words_of(line)
        if names and words[0] == names[0] and len(words) == len(names):
            try:
                table[words[0].rstrip(":")] = dict(zip(names[1:], integers(words[1:])))
            except NotARow:
                unparsed.append(line)
            names = []
            continue
        if names:
            unparsed.append(" ".join(names))
        names = words
    if names:
        unparsed.append(" ".join(names))
    return table
