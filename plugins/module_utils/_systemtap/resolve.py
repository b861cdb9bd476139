# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell from a host's own facts, without any compile, whether a probe point can be armed there.

Private to the collection. What registration refuses is decided by ``register_kprobe`` in the kernel's kernel/kprobes.c:
no such symbol, an address on the blacklist, or one in memory that was freed after boot.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
import typing as t

from .._core.errors import nearest_names
from .._core.root import Root
from .._kernel.mounts import mount_point
from .._kernel.symbols import CORE_OWNER, Symbol, SymbolTable, read_table
from .probes import ProbePoint

_BLACKLIST_LINE = re.compile(r"^(?:0x)?([0-9a-f]+)-(?:0x)?([0-9a-f]+)\s+(\S+)")
_NEAREST = 3


@dataclasses.dataclass
class HostFacts:
    """What a host tells of its functions. ``blacklist`` is null where debugfs does not show it."""

    table: SymbolTable
    modules: frozenset[str]
    builtin: frozenset[str]
    blacklist: Blacklist | None


class Blacklist:
    """The places where the kernel refuses kprobes: debugfs kprobes/blacklist."""

    def __init__(self, text: str) -> None:
        rows = [match.groups() for match in (_BLACKLIST_LINE.match(line) for line in text.splitlines()) if match]
        self._names = {name for _begin, _end, name in rows}
        spans = sorted((int(begin, 16), int(end, 16)) for begin, end, _name in rows)
        self._spans = [span for span in spans if span[1] > span[0]]

    def has(self, symbol: Symbol) -> bool:
        """Tell whether a function is on the list, by address where addresses are shown, else by name."""
        if symbol.address is None or not self._spans:
            return symbol.name in self._names
        index = bisect.bisect_right(self._spans, (symbol.address, 1 << 64)) - 1
        return index >= 0 and self._spans[index][0] <= symbol.address < self._spans[index][1]


def read_facts(root: Root, release: str) -> HostFacts:
    """Read what resolution needs. The symbol table is read once, however many probes are asked for."""
    debugfs = mount_point(root, "debugfs")
    blacklist = root.read_text_or("{0}/kprobes/blacklist".format(debugfs)) if debugfs else None
    builtin = root.read_text_or("lib/modules/{0}/modules.builtin".format(release)) or ""
    modules = root.read_text_or("proc/modules") or ""
    return HostFacts(
        table=read_table(root),
        modules=frozenset(line.split(" ", 1)[0] for line in modules.splitlines()),
        builtin=frozenset(re.findall(r"([^/\n]+)\.ko$", builtin.replace("-", "_"), re.MULTILINE)),
        blacklist=Blacklist(blacklist) if blacklist is not None else None,
    )


def resolve(point: ProbePoint, facts: HostFacts, limit: int) -> dict[str, t.Any]:
    """Return a probe's row: ``probe, synchronous, verdict, reason, nearest, points``."""
    verdict, reason, nearest, points = _verdict(point, facts)
    return {
        "probe": point.text,
        "synchronous": point.synchronous,
        "verdict": verdict,
        "reason": reason,
        "nearest": nearest,
        "points": [{"name": symbol.name, "owner": symbol.owner} for symbol in points[:limit]],
        "point_count": len(points),
    }


_Answer = t.Tuple[str, str, t.List[str], t.List[Symbol]]


def _verdict(point: ProbePoint, facts: HostFacts) -> _Answer:
    if not point.synchronous:
        return "armable", "needs no place in the code", [], []
    if facts.table.empty:
        return "unknown", "this kernel shows no symbols", [], []
    if point.family == "tracepoint":
        return _tracepoint(point, facts)
    if point.symbol is None:
        return "unknown", "only the builder can tell: it needs the tapset or an address", [], []
    if point.module is not None and "*" not in point.module and point.module.replace("-", "_") not in facts.modules:
        return _absent_module(point, facts)
    if point.wild:
        return _glob(point, facts)
    return _function(point, facts)


def _tracepoint(point: ProbePoint, facts: HostFacts) -> _Answer:
    name = (point.symbol or "").split(":")[-1]
    if re.search(r"[*?\[]", name):
        return "unknown", "only the builder can list tracepoints by pattern", [], []
    found = facts.table.find("__tracepoint_" + name)
    if found:
        return "armable", "the kernel has this tracepoint", [], found
    if not facts.table.has_data_symbols:
        return "unknown", "this kernel does not list its tracepoints (CONFIG_KALLSYMS_ALL is off)", [], []
    known = {symbol.name[len("__tracepoint_") :] for symbol in facts.table.glob("__tracepoint_*", 1 << 16)[0]}
    return (
        "missing",
        "neither the kernel nor a loaded module has a tracepoint of that name",
        nearest_names(name, known),
        [],
    )


def _absent_module(point: ProbePoint, facts: HostFacts) -> _Answer:
    name = (point.module or "").replace("-", "_")
    if name in facts.builtin:
        instead = 'kernel.function("{0}")'.format(point.symbol)
        return "module_not_loaded", "{0} is built into the kernel: probe it as {1}".format(name, instead), [instead], []
    nearest = nearest_names(name, facts.modules)
    return (
        "module_not_loaded",
        "the module {0} is not loaded: the probe stays silent until it is".format(name),
        nearest,
        [],
    )


def _glob(point: ProbePoint, facts: HostFacts) -> _Answer:
    owner = CORE_OWNER if point.module is None else point.module
    if "*" in owner:
        owner = ""
    listed, _count = facts.table.glob(point.symbol or "", 1 << 16, owner or None, functions_only=True)
    # Cold parts and padding are no functions of the source.
    found = [symbol for symbol in listed if ".cold" not in symbol.name and not symbol.name.startswith("__pfx_")]
    allowed = [symbol for symbol in found if not _refusal(symbol, facts)]
    if allowed:
        return "armable", "{0} of {1} functions that match can be probed".format(len(allowed), len(found)), [], allowed
    if found:
        return "blacklisted", "every function that matches is one that kprobes refuse", [], found
    return "missing", "no function matches", [], []


def _refusal(symbol: Symbol, facts: HostFacts) -> tuple[str, str] | None:
    if facts.blacklist is not None and facts.blacklist.has(symbol):
        return "blacklisted", "the kernel refuses probes in this function (kprobes/blacklist)"
    if symbol.owner == CORE_OWNER and symbol.address:
        bounds = [facts.table.find(name) for name in ("_sinittext", "_einittext")]
        if all(bounds) and (bounds[0][0].address or 0) <= symbol.address < (bounds[1][0].address or 0):
            return "discarded", "the function ran during boot only, its code was freed afterwards"
    return None


def _function(point: ProbePoint, facts: HostFacts) -> _Answer:
    name = point.symbol or ""
    owner = CORE_OWNER if point.module is None else point.module.replace("-", "_")
    everywhere = [symbol for symbol in facts.table.find(name) if symbol.is_function]
    found = [symbol for symbol in everywhere if symbol.owner == owner]
    if point.variant == "inline":
        return "unknown", "inlined copies are known to debug information only: ask the builder", [], found
    if found:
        refusals = [refusal for refusal in (_refusal(symbol, facts) for symbol in found) if refusal]
        if len(refusals) == len(found):
            return refusals[0][0], refusals[0][1], [], found
        allowed = [symbol for symbol in found if not _refusal(symbol, facts)]
        reason = (
            "the function is there" if len(found) == 1 else "{0} functions of this name are there".format(len(found))
        )
        unknown = "" if facts.blacklist is not None else "; the kernel's blacklist could not be read"
        return "armable", reason + unknown, [], allowed
    return _not_found(point, facts, owner, everywhere)


def _not_found(point: ProbePoint, facts: HostFacts, owner: str, everywhere: list[Symbol]) -> _Answer:
    name = point.symbol or ""
    variants = [
        symbol
        for symbol in facts.table.variants(name)
        if symbol.is_function and symbol.owner == owner and ".cold" not in symbol.name
    ]
    if variants:
        shown = ", ".join(symbol.name for symbol in variants[:_NEAREST])
        if point.family == "kprobe":
            return (
                "optimised_variant_only",
                "the compiler left only {0}, which kprobe.function does not find by this name".format(shown),
                [symbol.name for symbol in variants[:_NEAREST]],
                variants,
            )
        return (
            "optimised_variant_only",
            "the compiler left only {0}: arguments may be missing".format(shown),
            [],
            variants,
        )
    if everywhere:
        places = sorted({symbol.owner for symbol in everywhere})
        forms = [
            '{0}.function("{1}")'.format("kernel" if place == CORE_OWNER else 'module("{0}")'.format(place), name)
            for place in places
        ]
        return "missing", "the function is elsewhere: {0}".format(", ".join(forms)), forms[:_NEAREST], []
    nearest = facts.table.nearest(name, _NEAREST, owner)
    return "missing", "no such function here; if the source has it, the compiler inlined every copy", nearest, []
