# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsers of the files of one process. Private to the collection.

Formats: proc_pid_stat(5), proc_pid_status(5), proc_pid_io(5), proc_pid_limits(5), proc_pid_maps(5), cgroups(7), and
fs/proc/array.c and fs/proc/task_mmu.c in the kernel.
"""

from __future__ import annotations

import re
import typing as t

from .parse import (
    PAGE_BYTES,
    NotARow,
    Value,
    at_least,
    integer,
    integers,
    labelled,
    lines_of,
    named,
    parse_rows,
    seconds,
    sized,
    unescape,
    words_of,
)

_LIMIT = re.compile(r"Max (.+?) {2,}(\S+) +(\S+) *(\S*) *")
_MAPPING = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16}) (\S{4}) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ [0-9]+ *(.*)")
_FILES_SHOWN = 10
_DELETED = " (deleted)"
_UNLIMITED = 2**64 - 1
# After the name, in the order of proc_pid_stat(5).
_STAT_NAMES = tuple(
    "ppid pgrp session tty_nr tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime priority nice "
    "num_threads itrealvalue starttime vsize rss rsslim startcode endcode startstack kstkesp kstkeip signal blocked "
    "sigignore sigcatch wchan nswap cnswap exit_signal processor rt_priority policy delayacct_blkio_ticks guest_time "
    "cguest_time start_data end_data start_brk arg_start arg_end env_start env_end exit_code".split(" ")
)
_TICKS = ("utime", "stime", "cutime", "cstime", "starttime", "delayacct_blkio_ticks", "guest_time", "cguest_time")
_ADDRESSES = (
    "startcode endcode startstack kstkesp kstkeip start_data end_data start_brk arg_start arg_end env_start env_end"
).split(" ")
# Obsolete: always zero, or bitmaps of the first 31 signals that status has whole.
_OBSOLETE = ("itrealvalue", "nswap", "cnswap", "signal", "blocked", "sigignore", "sigcatch")
_NUMBERS = ("NStgid", "NSpid", "NSpgid", "NSsid", "Groups")
_IDENTITIES = ("real", "effective", "saved", "filesystem")
_AS_TEXT = re.compile(r"(?:Sig(?!Q)|Shd|Cap)\w*|\w+_(?:allowed|list)|Umask|Name|State|SigQ")


def stat(text: str) -> dict[str, Value]:
    """Return the fields of proc_pid_stat(5) by name: times as ``_seconds``, sizes as ``_bytes``, addresses as text.

    The name of a program may contain any character, even parentheses and newlines: it ends at the last parenthesis.

    :raises NotARow: the text is not such a row.
    """
    head, opening, rest = text.partition("(")
    comm, closing, tail = rest.rpartition(")")
    words = at_least(words_of(tail.strip("\n")), 22)
    if not opening or not closing:
        raise NotARow(text)
    fields = named(_STAT_NAMES, integers(words[1:]))
    found: dict[str, Value] = {"pid": integer(head.strip(" ")), "comm": comm, "state": words[0]}
    for name, value in fields.items():
        if name not in _OBSOLETE:
            key, typed = _stat_field(name, value)
            found[key] = typed
    return found


def _stat_field(name: str, value: Value) -> tuple[str, Value]:
    if value is None or name == "more":
        return name, value
    if name in _TICKS:
        return name.replace("_ticks", "") + "_seconds", seconds(value)
    if name in _ADDRESSES:
        # Hidden: 0, of the code also 1.
        return name, f"0x{value:x}" if value > 1 else None
    if name == "rsslim":
        return "rsslim_bytes", None if value == _UNLIMITED else value
    if name in ("vsize", "rss"):
        return name + "_bytes", value * (PAGE_BYTES if name == "rss" else 1)
    return name, value


def status(text: str, unparsed: list[str]) -> dict[str, Value]:
    """Return the fields of proc_pid_status(5): sizes as ``_bytes``, user and group by kind, masks as text."""
    found: dict[str, Value] = {}
    for line in lines_of(text):
        try:
            key, value = _status_field(*labelled(line))
        except NotARow:
            unparsed.append(line)
            continue
        found[key] = value
    for name in ("Cpus", "Mems"):
        # The same as the list, and very long on a large machine.
        if name + "_allowed_list" in found:
            found.pop(name + "_allowed", None)
    return found


def _status_field(name: str, value: str) -> tuple[str, Value]:
    if name in ("Uid", "Gid"):
        return name, dict(zip(_IDENTITIES, integers(at_least(words_of(value), 4))))
    if name in _NUMBERS:
        return name, integers(words_of(value))
    if name == "Name":
        return name, re.sub(r"\\(n|\\)", lambda match: "\n" if match.group(1) == "n" else "\\", value)
    return (name, value) if _AS_TEXT.fullmatch(name) else sized(name, value)


def cmdline(text: str) -> list[str]:
    """Return the arguments. A program may have written over them: what ends in many NULs is padded."""
    return text.rstrip("\0").split("\0") if text.strip("\0") else []


def io(text: str, unparsed: list[str]) -> dict[str, int]:
    """Return the counters of proc_pid_io(5) by name."""

    def row(line: str) -> tuple[str, int]:
        name, value = labelled(line)
        return name, integer(value)

    return dict(parse_rows(text, unparsed, row))


def limits(text: str, unparsed: list[str]) -> dict[str, dict[str, Value]]:
    """Return ``open files: {soft, hard, unit}`` and so on; an unlimited one is null."""

    def row(line: str) -> tuple[str, dict[str, Value]]:
        match = _LIMIT.fullmatch(line)
        if match is None:
            raise NotARow(line)
        soft, hard = (None if word == "unlimited" else integer(word) for word in match.groups()[1:3])
        return match.group(1), {"soft": soft, "hard": hard, "unit": match.group(4) or None}

    return dict(parse_rows(text, unparsed, row, skip=1))


def cgroup(text: str, unparsed: list[str]) -> list[dict[str, Value]]:
    """Return rows of ``hierarchy`` (0: version 2), ``controllers`` and ``path``."""

    def row(line: str) -> dict[str, Value]:
        hierarchy, *rest = line.split(":", 2)
        controllers, path = at_least(rest, 2)
        return {
            "hierarchy": integer(hierarchy),
            "controllers": controllers.split(",") if controllers else [],
            "path": unescape(path),
        }

    return parse_rows(text, unparsed, row)


def maps(text: str, unparsed: list[str]) -> dict[str, Value]:
    """Return a summary of the address space: how many ``mappings``, their sizes by kind, and the largest ``files``.

    ``private_writable_bytes`` is what the process may change without writing to a file.
    """
    found = parse_rows(text, unparsed, _mapping)
    files: dict[str, int] = {}
    for _bytes, _permissions, name in found:
        if name.startswith("/"):
            files[name] = files.get(name, 0) + _bytes
    largest = sorted(files.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        {
            "path": name[: -len(_DELETED)] if name.endswith(_DELETED) else name,
            "size_bytes": total,
            "deleted": name.endswith(_DELETED),
        }
        for name, total in largest[:_FILES_SHOWN]
    ]
    return {
        "mappings": len(found),
        "size_bytes": _sum(found, lambda _permissions, _name: True),
        "executable_bytes": _sum(found, lambda permissions, _name: permissions[2] == "x"),
        "private_writable_bytes": _sum(found, lambda permissions, _name: permissions[1:] in ("w-p", "wxp")),
        "anonymous_bytes": _sum(found, lambda _permissions, name: not name or name.startswith("[anon")),
        "heap_bytes": _sum(found, lambda _permissions, name: name == "[heap]"),
        "stack_bytes": _sum(found, lambda _permissions, name: name == "[stack]"),
        "files": rows,
        "files_left_out": max(len(largest) - _FILES_SHOWN, 0),
    }


_Mapping = t.Tuple[int, str, str]


def _mapping(line: str) -> _Mapping:
    match = _MAPPING.fullmatch(line)
    if match is None:
        raise NotARow(line)
    start, end, permissions, name = match.groups()
    return int(end, 16) - int(start, 16), permissions, unescape(name)


def _sum(rows: t.Sequence[_Mapping], takes: t.Callable[[str, str], bool]) -> int:
    return sum(count for count, permissions, name in rows if takes(permissions, name))
