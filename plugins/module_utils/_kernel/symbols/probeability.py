# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can a kprobe be put on a function of the running kernel? Private to the collection.

The rules are those of ``register_kprobe``, ``check_kprobe_address_safe``, ``within_kprobe_blacklist`` (which looks at
``foo`` for ``foo.cold``, too) and ``populate_kprobe_blacklist`` in the kernel's kernel/kprobes.c, and of ``can_probe``
in arch/x86/kernel/kprobes/core.c: text that is still there, outside the sections and the list that kprobes must not
touch, beginning with an instruction that is one and that the kernel itself does not patch.
"""

from __future__ import annotations

import bisect
import os
import re
import typing as t

from ..._core.root import Root
from ..procfs.mounts import mount_point
from .code import Text
from .table import CORE_OWNER, Symbol, SymbolTable

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
    "init": ("discarded", "lies in the init section, which is freed after boot"),
    "noinstr": ("blacklisted", "lies in the noinstr section, which kprobes must not touch"),
    "kprobes": ("blacklisted", "lies in the kprobes section, which kprobes must not touch"),
    "entry": ("blacklisted", "lies in the entry section, which kprobes must not touch"),
}
# Padding in front of functions, refused by name (is_cfi_preamble_symbol); the name is that of the address, so another
# symbol of the same address is refused with it.
_PREAMBLES = ("__pfx_", "__cfi_")
# From this many variants on, one walk over the table is cheaper than one search for each.
_WALK_FROM_VARIANTS = 100
_ARCH = "x86_64"


class Judgement(t.NamedTuple):
    """What is to be said of a symbol.

    ``probeable`` is null where that cannot be known; ``code`` is ``ok, no_function, no_kprobes, blacklisted, discarded,
    refused`` or ``unknown``; ``reason`` is null for ``ok``.
    """

    probeable: bool | None
    code: str
    reason: str | None


_OK = Judgement(True, "ok", None)


class Blacklist:
    """The kernel's list of functions that must not be probed (``kprobes/blacklist`` in debugfs)."""

    def __init__(self, text: str) -> None:
        rows = [(_address(start), _address(end), name) for start, end, name in _BLACKLIST_LINE.findall(text)]
        self._names = {name for _start, _end, name in rows}
        self._spans = sorted((start, end) for start, end, _name in rows if end > start)

    def names(self, name: str) -> bool:
        """Tell whether the list has this very name."""
        return name in self._names

    def has(self, symbol: Symbol) -> bool:
        """Tell whether a symbol is on the list: by its address, or by its name where addresses are hidden."""
        if symbol.address is None or not self._spans:
            return symbol.name in self._names
        index = bisect.bisect_right(self._spans, (symbol.address, 1 << 64)) - 1
        return index >= 0 and self._spans[index][0] <= symbol.address < self._spans[index][1]


class Sections:
    """In which part of the kernel image's text a function lies, by the markers of the linker script."""

    def __init__(self, table: SymbolTable) -> None:
        self._ranges = [] if table.restricted else list(_section_ranges(table))
        #: Whether the bounds of the kernel's text are known.
        self.known = any(name == "text" for name, _start, _end in self._ranges)

    def of(self, symbol: Symbol) -> str | None:
        """Return ``init, noinstr, kprobes, entry`` or ``text``; null for what is elsewhere, or is not known."""
        if symbol.address is not None and symbol.owner == CORE_OWNER and symbol.is_function:
            for name, start, end in self._ranges:
                if start <= symbol.address < end:
                    return name
        return None


def in_ftrace(root: Root, symbols: t.Collection[Symbol] | None) -> set[tuple[str, str]] | None:
    """Return the name and the owner of those functions that ftrace can hook (its ``available_filter_functions``).

    Of all functions where ``symbols`` is null. The result is null where tracefs is not mounted, or not readable for
    this user. The kernel lists no address there.
    """
    tracefs = mount_point(root, "tracefs")
    wanted = None if symbols is None else {(symbol.name, symbol.owner) for symbol in symbols}
    if tracefs is None:
        return None
    found = set()
    try:
        for line in root.lines(tracefs + "/available_filter_functions"):
            name, _space, owner = line.decode("utf-8", "replace").partition(" ")
            key = (name, owner.strip().strip("[]") or CORE_OWNER)
            if wanted is None or key in wanted:
                found.add(key)
    except OSError:
        return None
    return found


class Probeability:
    """Judgements on symbols of one table; the blacklist is read once, everything else when it is first needed.

    ``kprobes`` tells whether the kernel has kprobes; null: not known.
    """

    def __init__(self, root: Root, table: SymbolTable, kprobes: bool | None) -> None:
        self._root = root
        self._table = table
        self._kprobes = kprobes
        debugfs = mount_point(root, "debugfs")
        text = root.read_text_or(debugfs + "/kprobes/blacklist") if debugfs else None
        self._blacklist = None if text is None else Blacklist(text)
        self._hidden = table.restricted
        self._why_unknown = (
            f"the kprobe blacklist cannot be seen: debugfs is not {'readable for this user' if debugfs else 'mounted'}"
        )
        self.sections = Sections(table)
        self._text = Text(root, table)
        self._loaded: set[str] | None = None
        self._hooked: set[tuple[str, str]] | None = None
        self._variants = 0
        self._addresses: dict[str, int | None] = {}

    def verdict(self, symbol: Symbol) -> tuple[bool | None, str | None]:
        """Return true, false or null (not known), and the reason for the latter two."""
        judgement = self.judge(symbol)
        return judgement.probeable, judgement.reason

    def judge(self, symbol: Symbol) -> Judgement:
        """Return whether a kprobe goes to the beginning of a symbol, of which kind a refusal is, and why."""
        if not symbol.is_function:
            return Judgement(False, "no_function", "is not a function")
        if self._kprobes is False:
            return Judgement(False, "no_kprobes", "cannot be probed: the kernel was built without CONFIG_KPROBES")
        if self._is_blacklisted(symbol):
            return Judgement(False, "blacklisted", "is in the kernel's kprobe blacklist")
        placed = self._judge_core(symbol) if symbol.owner == CORE_OWNER else self._judge_module(symbol)
        if placed is not None:
            return placed
        if self._blacklist is None:
            return Judgement(None, "unknown", self._why_unknown)
        return self._judge_text(symbol)

    def _is_blacklisted(self, symbol: Symbol) -> bool:
        if self._blacklist is None:
            return False
        if self._blacklist.has(symbol) or "." not in symbol.name:
            return self._blacklist.has(symbol)
        base = self._first(symbol.name.partition(".")[0])
        return base is not None and self._blacklist.has(base)

    def _first(self, name: str) -> Symbol | None:
        """Return the symbol that the kernel finds by a name: the first one, those of its image before modules'."""
        self._variants += 1
        if self._variants == _WALK_FROM_VARIANTS:
            self._addresses = self._table.function_addresses()
        address = self._addresses.get(name)
        if address is not None:
            return Symbol(name, "t", address, CORE_OWNER)
        # Of modules' functions only those that the list itself names can be on it.
        known = self._variants < _WALK_FROM_VARIANTS or name in self._addresses
        if known or (self._blacklist is not None and self._blacklist.names(name)):
            return next(iter(self._table.find(name)), None)
        return None

    def _judge_core(self, symbol: Symbol) -> Judgement | None:
        section = self.sections.of(symbol)
        if section in _REFUSED:
            return Judgement(False, *_REFUSED[section])
        if self._hidden:
            reason = "addresses are hidden, so the section that it lies in is not known"
            return Judgement(None, "unknown", reason)
        if section is None and self.sections.known:
            # Code of the boot phase after the init section, or a variable: some kernels list them as text.
            return Judgement(False, "no_function", "is not in the kernel's text: a variable, or code that is gone")
        return None

    def _judge_module(self, symbol: Symbol) -> Judgement | None:
        if self._loaded is None:
            text = self._root.read_text_or("proc/modules") or ""
            self._loaded = {line.split(" ", 1)[0] for line in text.splitlines()}
        if symbol.owner not in self._loaded:
            return Judgement(False, "no_function", f"belongs to {symbol.owner}, which is no module")
        if symbol.address is None:
            return Judgement(None, "unknown", "addresses are hidden, so the section that it lies in is not known")
        section = self._text.sections(symbol.owner).of(symbol.address) or ""
        if "init." in section:
            reason = f"lies in the init section of {symbol.owner}, which was freed after it was loaded"
            return Judgement(False, "discarded", reason)
        return None

    def _marks_padding(self, symbol: Symbol) -> bool:
        """Tell whether the linker's mark of a section shares its address with the padding of the first function."""
        if not self._text.is_idle(symbol.address or 0):
            return False
        return any(name.startswith(_PREAMBLES) for name in self._table.aliases(symbol) or [])

    def _judge_text(self, symbol: Symbol) -> Judgement:
        if symbol.address is None or os.uname().machine != _ARCH:
            return _OK
        if symbol.name.startswith(_PREAMBLES) or self._marks_padding(symbol):
            return Judgement(False, "refused", "is padding in front of a function")
        module = None if symbol.owner == CORE_OWNER else symbol.owner
        try:
            reason = self._text.refusal(symbol.address, module)
        except LookupError as error:
            if self._hooked is None:
                self._hooked = in_ftrace(self._root, None) or set()
            if (symbol.name, symbol.owner) in self._hooked:
                # It begins with the call that ftrace patches, and a probe there is ftrace's.
                return _OK
            reason = f"whether its first instruction can be probed is not known: {error.args[0]}"
            return Judgement(None, "unknown", reason)
        return _OK if reason is None else Judgement(False, "refused", reason)


def _address(text: str) -> int:
    """Return an address of the blacklist; 0 where the kernel prints a placeholder for a hidden one."""
    try:
        return int(text, 16)
    except ValueError:
        return 0


def _section_ranges(table: SymbolTable) -> t.Iterator[tuple[str, int, int]]:
    for name, first, last in _SECTIONS:
        starts, ends = table.find(first), table.find(last)
        if starts and ends:
            yield name, starts[0].address or 0, ends[0].address or 0
