# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of devices, file systems and address ranges. Private to the collection.

Formats: the kernel's Documentation/filesystems/proc.rst and Documentation/admin-guide/iostats.rst, fs/proc_namespace.c,
fs/locks.c, fs/filesystems.c, block/genhd.c, kernel/resource.c.
"""

from __future__ import annotations

import re
import typing as t

from .parse import NotARow, at_least, integer, integers, lines_of, named, parse_rows, unescape, words_of

_SECTOR_BYTES = 512
_MILLISECONDS = 1000
_RANGE = re.compile(r"( *)([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.*)")
# Of the options of a mount only commas that are not part of a value separate; overlayfs escapes its own by "\".
_OPTION_END = re.compile(r"(?<!\\134),")
_DISK_COLUMNS = (
    ("reads", 1, 1),
    ("reads_merged", 1, 1),
    ("read_bytes", _SECTOR_BYTES, 1),
    ("read_seconds", 1, _MILLISECONDS),
    ("writes", 1, 1),
    ("writes_merged", 1, 1),
    ("written_bytes", _SECTOR_BYTES, 1),
    ("write_seconds", 1, _MILLISECONDS),
    ("in_flight", 1, 1),
    ("io_seconds", 1, _MILLISECONDS),
    ("weighted_io_seconds", 1, _MILLISECONDS),
    ("discards", 1, 1),
    ("discards_merged", 1, 1),
    ("discarded_bytes", _SECTOR_BYTES, 1),
    ("discard_seconds", 1, _MILLISECONDS),
    ("flushes", 1, 1),
    ("flush_seconds", 1, _MILLISECONDS),
)


def mounts(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``source``, ``target``, ``type`` and ``options``."""

    def row(line: str) -> dict[str, t.Any]:
        words = line.split(" ")
        if len(words) != 6:
            raise NotARow(line)
        source, target, kind = (unescape(word) for word in words[:3])
        return {"source": source, "target": target, "type": kind, "options": _options(words[3])}

    return parse_rows(text, unparsed, row)


def mountinfo(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``id``, ``parent_id``, ``device``, ``root``, ``target``, ``options``, ``propagation``, ``type``,
    ``source`` and ``super_options``. Any number of fields of propagation may come before a lone hyphen."""

    def row(line: str) -> dict[str, t.Any]:
        words = line.split(" ")
        if "-" not in words[6:]:
            raise NotARow(line)
        dash = words.index("-", 6)
        tail = words[dash + 1 :]
        if len(tail) != 3:
            raise NotARow(line)
        return {
            "id": integer(words[0]),
            "parent_id": integer(words[1]),
            "device": words[2],
            "root": unescape(words[3]),
            "target": unescape(words[4]),
            "options": _options(words[5]),
            "propagation": words[6:dash],
            "type": unescape(tail[0]),
            "source": unescape(tail[1]),
            "super_options": _options(tail[2]),
        }

    return parse_rows(text, unparsed, row)


def _options(word: str) -> list[str]:
    return [unescape(option) for option in _OPTION_END.split(word)]


def filesystems(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``name`` and ``nodev``: whether it is one without a block device."""

    def row(line: str) -> dict[str, t.Any]:
        prefix, tab, name = line.partition("\t")
        if not tab or not name or prefix not in ("", "nodev"):
            raise NotARow(line)
        return {"name": name, "nodev": prefix == "nodev"}

    return parse_rows(text, unparsed, row)


def locks(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``id``, ``type``, ``mode``, ``access``, ``pid``, ``device``, ``inode``, ``start`` and ``end``.

    ``pid`` is null for an open file description's lock, ``end`` is null for the end of the file. A ``blocked`` row
    waits for the lock with the same ``id``.
    """

    def row(line: str) -> dict[str, t.Any]:
        words = at_least(words_of(line), 8)
        blocked = words[1] == "->"
        kind = words[1 + blocked : -4]
        if not words[0].endswith(":") or len(kind) != 3:
            raise NotARow(line)
        pid, place, start, end = words[-4:]
        device, _colon, inode = place.rpartition(":")
        return {
            "id": integer(words[0][:-1]),
            "blocked": blocked,
            "type": kind[0].lower(),
            "mode": kind[1].lower(),
            "access": kind[2].lower(),
            "pid": integer(pid) if pid != "-1" else None,
            "device": device,
            "inode": integer(inode),
            "start": integer(start),
            "end": integer(end) if end != "EOF" else None,
        }

    return parse_rows(text, unparsed, row)


def ranges(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``start``, ``end`` (text, inclusive), ``size_bytes``, ``name`` and ``depth`` of iomem or ioports.

    Where the kernel hides all addresses by printing zeros they are null.
    """
    found = parse_rows(text, unparsed, _range)
    if ranges_hidden(found):
        return [{**row, "start": None, "end": None, "size_bytes": None} for row in found]
    return found


def ranges_hidden(rows: t.Sequence[t.Mapping[str, t.Any]]) -> bool:
    """Tell whether the kernel hid the addresses of all ranges: every one begins and ends at zero."""
    return bool(rows) and all(row["end"] in (None, "0x0") for row in rows)


def _range(line: str) -> dict[str, t.Any]:
    match = _RANGE.fullmatch(line)
    if match is None:
        raise NotARow(line)
    start, end = int(match.group(2), 16), int(match.group(3), 16)
    return {
        "start": f"0x{start:x}",
        "end": f"0x{end:x}",
        "size_bytes": end - start + 1,
        "name": match.group(4),
        "depth": len(match.group(1)) // 2,
    }


def diskstats(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return a row for each block device; columns that this kernel does not have are null."""

    def row(line: str) -> dict[str, t.Any]:
        words = at_least(words_of(line), 14)
        values = [
            number * factor if divisor == 1 else number / divisor
            for number, (_name, factor, divisor) in zip(integers(words[3:]), _DISK_COLUMNS)
        ]
        extra = integers(words[3 + len(_DISK_COLUMNS) :])
        columns = named([name for name, _factor, _divisor in _DISK_COLUMNS], [*values, *extra])
        return {"name": words[2], "major": integer(words[0]), "minor": integer(words[1]), **columns}

    return parse_rows(text, unparsed, row)


def partitions(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``name``, ``major``, ``minor`` and ``size_bytes``."""

    def row(line: str) -> dict[str, t.Any]:
        words = words_of(line)
        if len(words) != 4:
            raise NotARow(line)
        major, minor, blocks = integers(words[:3])
        return {"name": words[3], "major": major, "minor": minor, "size_bytes": blocks << 10}

    return parse_rows(text, unparsed, row, skip=1)


def devices(text: str, unparsed: list[str]) -> dict[str, list[dict[str, t.Any]]]:
    """Return rows of ``major`` and ``name`` in ``character`` and ``block``."""
    table: dict[str, list[dict[str, t.Any]]] = {"character": [], "block": []}
    kind = None
    for line in lines_of(text):
        if line in ("Character devices:", "Block devices:"):
            kind = line.split(" ")[0].lower()
            continue
        match = re.fullmatch(r" *([0-9]{1,10}) (.+)", line)
        if kind is None or match is None:
            unparsed.append(line)
            continue
        table[kind].append({"major": int(match.group(1)), "name": match.group(2)})
    return table
