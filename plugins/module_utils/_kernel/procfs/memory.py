# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of memory. Private to the collection.

Formats: the kernel's Documentation/filesystems/proc.rst, fs/proc/meminfo.c, mm/vmstat.c, mm/slab_common.c,
mm/swapfile.c.
"""

from __future__ import annotations

import re
import typing as t

from .parse import NotARow, at_least, integer, integers, labelled, lines_of, parse_rows, sized, unescape, words_of

# Lines of a zone that come after those of its CPUs.
_OF_THE_ZONE = ("node_unreclaimable", "all_unreclaimable", "start_pfn", "reserved_highatomic")
_ZONE = re.compile(r"Node ([0-9]{1,9}), zone +(\S+)(.*)")


def meminfo(text: str, unparsed: list[str]) -> dict[str, t.Any]:
    """Return ``{MemTotal_bytes: ..., HugePages_Total: ...}``: sizes in bytes, numbers without a unit are counts."""
    table = {}
    for line in lines_of(text):
        try:
            name, value = sized(*labelled(line))
            if isinstance(value, str):
                raise NotARow(line)
        except NotARow:
            unparsed.append(line)
            continue
        table[name] = value
    return table


def vmstat(text: str, unparsed: list[str]) -> dict[str, int]:
    """Return the counters by name."""
    return dict(parse_rows(text, unparsed, _counter))


def _counter(line: str) -> tuple[str, int]:
    words = words_of(line)
    if len(words) != 2:
        raise NotARow(line)
    return words[0], integer(words[1])


def buddyinfo(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``node``, ``zone`` and ``free``, the number of free blocks of 2^0, 2^1, ... pages."""

    def row(line: str) -> dict[str, t.Any]:
        match = _ZONE.fullmatch(line)
        if match is None:
            raise NotARow(line)
        return {"node": int(match.group(1)), "zone": match.group(2), "free": integers(words_of(match.group(3)))}

    return parse_rows(text, unparsed, row)


def zoneinfo(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return a row for each zone: ``node``, ``zone``, its ``counters`` in pages, those of its node, ``protection``
    and ``pagesets`` (one for each CPU)."""
    zones = _Zones()
    parse_rows(text, unparsed, zones.line)
    return zones.rows


class _Zones:
    """The zones that were read so far; the meaning of a line depends on those before it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, t.Any]] = []
        self._counters: dict[str, int] = {}

    def line(self, line: str) -> None:
        match = _ZONE.fullmatch(line)
        if match:
            self._counters = {}
            self.rows.append(
                {
                    "node": int(match.group(1)),
                    "zone": match.group(2),
                    "counters": self._counters,
                    "node_counters": {},
                    "protection": [],
                    "pagesets": [],
                }
            )
        elif not self.rows:
            raise NotARow(line)
        else:
            self._part(self.rows[-1], words_of(line))

    def _part(self, zone: dict[str, t.Any], words: list[str]) -> None:
        if words == ["per-node", "stats"]:
            self._counters = zone["node_counters"]
        elif words == ["pagesets"]:
            self._counters = {}
        elif words[0] == "protection:":
            zone["protection"] = integers(words_of(re.sub(r"[(),]", " ", " ".join(words[1:]))))
        elif words[0] == "cpu:":
            self._counters = {"cpu": integer(words[-1])}
            zone["pagesets"].append(self._counters)
        else:
            name, value = " ".join(words[:-1]).rstrip(":"), integer(words[-1])
            if words[0] == "pages" or name in _OF_THE_ZONE:
                self._counters = zone["counters"]
            self._counters[name[6:] if words[0] == "pages" else name] = value


def slabinfo(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return a row for each cache, with the columns that the file's own header names (``objsize_bytes`` in bytes)."""
    header = next((line for line in lines_of(text) if line.startswith("# name")), "")
    columns = [re.findall(r"<(\w+)>", part) for part in header.split(":")]

    def row(line: str) -> dict[str, t.Any]:
        parts = line.split(" : ")
        if len(parts) != len(columns) or not columns[0]:
            raise NotARow(line)
        # The name comes first and may hold spaces; the other parts begin with their own name.
        head = at_least(words_of(parts[0]), len(columns[0]) + 1)
        found: dict[str, t.Any] = {"name": " ".join(head[: -len(columns[0])])}
        for names, words in zip(columns, [head[-len(columns[0]) :], *(words_of(part)[1:] for part in parts[1:])]):
            if len(names) != len(words):
                raise NotARow(line)
            found.update(zip(names, integers(words)))
        if "objsize" in found:
            found["objsize_bytes"] = found.pop("objsize")
        return found

    rows = "\n".join(line for line in lines_of(text) if not line.startswith(("#", "slabinfo - version")))
    return parse_rows(rows, unparsed, row)


def swaps(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``path``, ``type``, ``size_bytes``, ``used_bytes`` and ``priority``."""

    def row(line: str) -> dict[str, t.Any]:
        words = words_of(line)
        if len(words) != 5:
            raise NotARow(line)
        size, used, priority = integers(words[2:])
        return {
            "path": unescape(words[0]),
            "type": words[1],
            "size_bytes": size << 10,
            "used_bytes": used << 10,
            "priority": priority,
        }

    return parse_rows(text, unparsed, row, skip=1)
