# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can a kprobe be put on a function of the running kernel? Private to the collection.

The rules are those of ``check_kprobe_address_safe`` and ``populate_kprobe_blacklist`` in the kernel's
kernel/kprobes.c: text that is still there, outside the sections and the list that kprobes must not touch.
"""

from __future__ import annotations

import re
import typing as t

from .._core.root import Root
from .mounts import mount_point
from .symbols import CORE_OWNER, Symbol, SymbolTable

_BLACKLIST_LINE = re.compile(r"^0x(\S+?)-0x(\S+?)\s+(\S+)", re.MULTILINE)
# Innermost first: the last one holds all of them but init.
_SECTIONS = (
    ("init", "_sinittext", "_einittext"),
    ("noinstr", "__noinstr_text_start", "__noinstr_text_end"),
    ("kprobes", "__kprobes_text_start", "__kprobes_text_end"),
    ("entry", "__entry_text_start", "__entry_text_end"),
    ("text", "_stext", "_etext"),
)
_REFUSED = {
    "init": "lies in the init section, which is freed after boot",
    "noinstr": "lies in the noinstr section, which kprobes must not touch",
    "kprobes": "lies in the kprobes section, which kprobes must not touch",
    "entry": "lies in the entry section, which kprobes must not touch",
}


class Blacklist:
    """The kernel's list of functions that must not be probed (``kprobes/blacklist`` in debugfs)."""

    def __init__(self, text: str) -> None:
        self._names: dict[str, list[tuple[int, int]]] = {}
        for start, end, name in _BLACKLIST_LINE.findall(text):
            self._names.setdefault(name, []).append((_address(start), _address(end)))

    def has(self, symbol: Symbol) -> bool:
        """Tell whether a symbol is on the list: by its address, or by its name where addresses are hidden."""
        ranges = self._names.get(symbol.name, [])
        if symbol.address is None or not any(end for _start, end in ranges):
            return bool(ranges)
        return any(start <= symbol.address < end for start, end in ranges)


class Sections:
    """In which part of the kernel image's text a function lies, by the markers of the linker script."""

    def __init__(self, table: SymbolTable) -> None:
        self._ranges = [] if table.restricted else list(_section_ranges(table))

    def of(self, symbol: Symbol) -> str | None:
        """Return ``init, noinstr, kprobes, entry`` or ``text``; null for what is elsewhere, or is not known."""
        if symbol.address is not None and symbol.owner == CORE_OWNER and symbol.is_function:
            for name, start, end in self._ranges:
                if start <= symbol.address < end:
                    return name
        return None


def in_ftrace(root: Root, symbols: t.Collection[Symbol]) -> set[tuple[str, str]] | None:
    """Return the name and the owner of those functions that ftrace can hook (its ``available_filter_functions``).

    Null where tracefs is not mounted, or not readable for this user. The kernel lists no address there.
    """
    tracefs = mount_point(root, "tracefs")
    wanted = {(symbol.name, symbol.owner) for symbol in symbols}
    if tracefs is None:
        return None
    found = set()
    try:
        for line in root.lines(tracefs + "/available_filter_functions"):
            name, _space, owner = line.decode("utf-8", "replace").partition(" ")
            key = (name, owner.strip().strip("[]") or CORE_OWNER)
            if key in wanted:
                found.add(key)
    except OSError:
        return None
    return found


class Probeability:
    """Verdicts on symbols of one table; the blacklist is read once.

    ``kprobes`` tells whether the kernel has kprobes; null: not known.
    """

    def __init__(self, root: Root, table: SymbolTable, kprobes: bool | None) -> None:
        self._kprobes = kprobes
        debugfs = mount_point(root, "debugfs")
        text = root.read_text_or(debugfs + "/kprobes/blacklist") if debugfs else None
        self._blacklist = None if text is None else Blacklist(text)
        self._hidden = table.restricted
        self._why_unknown = "the kprobe blacklist cannot be seen: debugfs is not {}".format(
            "readable for this user" if debugfs else "mounted"
        )
        self.sections = Sections(table)

    def verdict(self, symbol: Symbol) -> tuple[bool | None, str | None]:
        """Return true, false or null (not known), and the reason for the latter two."""
        if not symbol.is_function:
            return False, "is not a function"
        if self._kprobes is False:
            return False, "cannot be probed: the kernel was built without CONFIG_KPROBES"
        if self._blacklist is not None and self._blacklist.has(symbol):
            return False, "is in the kernel's kprobe blacklist"
        if symbol.owner == CORE_OWNER:
            section = self.sections.of(symbol)
            if section in _REFUSED:
                return False, _REFUSED[section]
            if self._hidden:
                return None, "addresses are hidden, so the section that it lies in is not known"
        return (None, self._why_unknown) if self._blacklist is None else (True, None)


def _section_ranges(table: SymbolTable) -> t.Iterator[tuple[str, int, int]]:
    for name, first, last in _SECTIONS:
        starts, ends = table.find(first), table.find(last)
        if starts and ends:
            yield name, starts[0].address or 0, ends[0].address or 0


def _address(text: str) -> int:
    """Return an address of the blacklist; 0 where the kernel prints a placeholder for a hidden one."""
    try:
        return int(text, 16)
    except ValueError:
        return 0
