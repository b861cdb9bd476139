# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell from a host's own facts whether probes can be armed that are at no function: tracepoints, data, counters.

Private to the collection.
"""

from __future__ import annotations

import fnmatch
import re
import typing as t

from ..._core.errors import nearest_names
from ..._kernel.procfs.mounts import mount_point
from ..._kernel.symbols.table import Symbol
from ..language.probe_point import NO_USER_SPACE, ProbePoint
from ..language.probe_syntax import WILD
from .host_facts import Answer, HostFacts

_TRACEPOINT = "__tracepoint_"
_EVENT_SOURCES = "sys/bus/event_source/devices"
# Types of events that every CPU's own unit counts (include/uapi/linux/perf_event.h): hardware, cache, raw.
_OF_THE_CPU = (0, 3, 4)
_SOFTWARE = 1
_NEAREST = 3


def answer(point: ProbePoint, facts: HostFacts) -> Answer:
    """Return verdict, reason, nearest names and the symbols that the point means."""
    reader = _READERS.get(point.family)
    if reader is not None:
        return reader(point, facts)
    if point.family == "alias":
        return "unknown", "it is an alias of the tapset: only the builder can resolve it", [], []
    if point.family == "xdp":
        return "unknown", "it needs SystemTap's BPF runtime, which no module has", [], []
    return "armable", "it needs no place in the code", [], []


def _timer(point: ProbePoint, _facts: HostFacts) -> Answer:
    if any(part.word == "profile" for part in point.parts):
        return "unknown", "what stands for the profile timer on this kernel is known to the builder only", [], []
    return "armable", "it needs no place in the code", [], []


def _tracepoint(point: ProbePoint, facts: HostFacts) -> Answer:
    if facts.table.empty:
        return "unknown", "this kernel shows no symbols", [], []
    system, _colon, name = (point.symbol or "").rpartition(":")
    if WILD.search(name):
        accept = re.compile(fnmatch.translate(_TRACEPOINT + name)).match
        found = facts.table.search(accept, 1 << 16)[0]
    else:
        found = facts.table.find(_TRACEPOINT + name)
    found = [symbol for symbol in found if _is_in_system(symbol, system, facts)]
    if found:
        shown = "the kernel has this tracepoint" if len(found) == 1 else f"{len(found)} tracepoints match"
        return "armable", shown, [], found
    if not facts.table.has_data_symbols:
        return "unknown", "this kernel does not list its tracepoints (CONFIG_KALLSYMS_ALL is off)", [], []
    known = {symbol.name[len(_TRACEPOINT) :] for symbol in facts.table.glob(_TRACEPOINT + "*", 1 << 16)[0]}
    systems = [] if name not in known else [f"{place}:{name}" for place in _systems_of(name, facts)]
    reason = "neither the kernel nor a loaded module has a tracepoint of that name"
    if systems:
        reason = f"the tracepoint is in another system: {', '.join(systems)}"
    return "missing", reason, systems or nearest_names(name, known), []


def _is_in_system(symbol: Symbol, system: str, facts: HostFacts) -> bool:
    """Tell whether a tracepoint is in the system that is asked for; one without an event of its own may be."""
    systems = _systems_of(symbol.name[len(_TRACEPOINT) :], facts) if system else []
    return not systems or any(fnmatch.fnmatchcase(found, system) for found in systems)


def _systems_of(name: str, facts: HostFacts) -> list[str]:
    tracefs = mount_point(facts.root, "tracefs")
    events = f"{tracefs}/events"
    if tracefs is None:
        return []
    return [system for system in facts.root.listdir(events) if facts.root.exists(f"{events}/{system}/{name}")]


def _data(point: ProbePoint, facts: HostFacts) -> Answer:
    if not facts.table.find("register_wide_hw_breakpoint"):
        return "missing", "this kernel has no hardware breakpoints (CONFIG_HAVE_HW_BREAKPOINT)", [], []
    if point.symbol is None:
        return "armable", "an address is watched by one of the processor's breakpoints, which are few", [], []
    found = facts.table.find(point.symbol)[:1]
    if found:
        return "armable", "the symbol is there; the processor has few breakpoints", [], found
    if not facts.table.has_data_symbols:
        return "unknown", "this kernel does not list its variables (CONFIG_KALLSYMS_ALL is off)", [], []
    return "missing", "the kernel has no symbol of that name", [], []


def _perf(point: ProbePoint, facts: HostFacts) -> Answer:
    kind = point.argument("type")
    names = facts.root.listdir(_EVENT_SOURCES)
    texts = {name: facts.root.read_text_or(f"{_EVENT_SOURCES}/{name}/type") or "" for name in names}
    if kind in _OF_THE_CPU:
        units = [name for name in names if name.startswith("cpu")]
        if units:
            return "armable", f"the processor's own unit counts it: {', '.join(units)}", [], []
        return "missing", "the processor shows no counters here (a virtual machine without them)", [], []
    if kind == _SOFTWARE or any(text.strip() == str(kind) for text in texts.values()):
        return "armable", "the kernel has this source of events", [], []
    return "missing", f"the kernel has no source of events of type {kind} ({_EVENT_SOURCES})", [], []


def _netfilter(_point: ProbePoint, facts: HostFacts) -> Answer:
    if facts.table.find("nf_register_net_hook"):
        return "armable", "it needs no place in the code", [], []
    return "missing", "the kernel has no netfilter hooks (CONFIG_NETFILTER)", [], []


def _process(point: ProbePoint, facts: HostFacts) -> Answer:
    if point.is_in_program:
        return "refused", NO_USER_SPACE, [], []
    path = point.parts[0].argument
    if isinstance(path, str) and path.startswith("/") and not WILD.search(path) and not facts.root.exists(path):
        return "missing", "there is no such program here", [], []
    return "unknown", "the places of a program are known to the builder, which needs the same program", [], []


_READERS: dict[str, t.Callable[[ProbePoint, HostFacts], Answer]] = {
    "tracepoint": _tracepoint,
    "timer": _timer,
    "data": _data,
    "perf": _perf,
    "netfilter": _netfilter,
    "process": _process,
}
