# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell from a host's own facts, without any compile, whether a probe point can be armed there.

Private to the collection. This module finds the functions that a probe point names. ``_kernel.symbols.probeability``
knows which functions the kernel refuses, ``stap_blocklist`` which ones SystemTap leaves out. A probe point that needs
debug information or a tapset is ``unknown``, never guessed. ``events`` resolves the probes that are not at a function.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import typing as t

from ..._core.errors import InvalidInput, nearest_names
from ..._kernel.symbols.probeability import Judgement
from ..._kernel.symbols.table import CORE_OWNER, Symbol
from ..language.probe_point import NO_USER_SPACE, ProbePoint
from ..language.probe_syntax import WILD
from .events import answer
from .host_facts import Answer, HostFacts
from .stap_blocklist import is_blocklisted

_NEAREST = 3
_MOST_MATCHES = 1 << 18
# What the compiler makes beside a function, under a name of its own: no function of the source.
_PART = re.compile(r"^__(?:pfx|cfi)_|\.cold\b")


def resolve_all(points: t.Sequence[ProbePoint], facts: HostFacts, limit: int) -> list[dict[str, t.Any]]:
    """Return the rows of many probes; their names are looked up together."""
    facts.found.update(facts.table.look_up_many({point.symbol for point in points if point.symbol and not point.wild}))
    return [resolve(point, facts, limit) for point in points]


def resolve(point: ProbePoint, facts: HostFacts, limit: int) -> dict[str, t.Any]:
    """Return a probe's row, as the documentation of ``stap_probe_info`` has it; of its points up to ``limit``."""
    verdict, reason, nearest, points = _answer(point, facts)
    return {
        **_row(point.text, point, verdict, reason, nearest),
        "points": [{"name": symbol.name, "owner": symbol.owner} for symbol in points[:limit]],
        "point_count": len(points),
        "truncated": len(points) > limit,
    }


def unresolved(text: str, found: ProbePoint | InvalidInput) -> dict[str, t.Any]:
    """Return the row of a text that is no probe point, or of a point in a program, without a look at any kernel."""
    if isinstance(found, ProbePoint):
        return _row(text, found, "refused", NO_USER_SPACE, [])
    return _row(text, None, "invalid", found.problem.rstrip("."), found.candidates)


def _row(
    text: str, point: ProbePoint | None, verdict: str, reason: str, candidates: t.Sequence[str]
) -> dict[str, t.Any]:
    return {
        "probe": text,
        "family": point.family if point else None,
        "synchronous": point.synchronous if point else None,
        "verdict": verdict,
        "reason": reason,
        "candidates": list(candidates),
        "points": [],
        "point_count": 0,
        "truncated": False,
    }


def _answer(point: ProbePoint, facts: HostFacts) -> Answer:
    if point.family not in ("function", "statement", "kprobe"):
        return answer(point, facts)
    if facts.table.empty:
        return "unknown", "this kernel shows no symbols", [], []
    if point.symbol is None:
        return "unknown", "it is an address: what stands there is known when it is armed", [], []
    if point.module is not None and not WILD.search(point.module) and _module(point) not in facts.modules:
        return _absent_module(point, facts)
    found = _glob(point, facts) if point.wild else _function(point, facts)
    return _known_to_debug_information(point, found)


def _module(point: ProbePoint) -> str:
    return (point.module or "").replace("-", "_")


def _known_to_debug_information(point: ProbePoint, found: Answer) -> Answer:
    """Turn what holds for the function into what can be said of a place in it."""
    verdict, reason, nearest, points = found
    if point.variant == "inline":
        reason = "inlined copies are known to debug information only: ask the builder"
        return "unknown", reason, nearest, points
    inside = point.family == "statement" or point.source or point.variant in ("callee", "callees", "label")
    if inside and verdict in ("armable", "optimised_variant_only"):
        reason += "; source files, lines, labels and callees are known to debug information only: ask the builder"
        return "unknown", reason, nearest, points
    return found


def _absent_module(point: ProbePoint, facts: HostFacts) -> Answer:
    name = _module(point)
    instead = f'kernel.function("{point.symbol}")'
    if facts.builtin is not None and name in facts.builtin:
        return "module_not_loaded", f"{name} is built into the kernel: probe it as {instead}", [instead], []
    if facts.builtin is None and _is_in_kernel(point, facts):
        reason = f"the kernel itself has {point.symbol}, so {name} is built in: probe it as {instead}"
        return "module_not_loaded", reason, [instead], []
    reason = f"the module {name} is not loaded: the probe stays silent until it is"
    return "module_not_loaded", reason, nearest_names(name, facts.modules), []


def _is_in_kernel(point: ProbePoint, facts: HostFacts) -> bool:
    """Tell whether the kernel itself has a function that a point seeks in a module."""
    if point.wild:
        return bool(_glob(dataclasses.replace(point, module=None), facts)[3])
    everywhere, _variants = facts.look_up(point.symbol or "")
    return any(symbol.owner == CORE_OWNER and symbol.is_function for symbol in everywhere)


def _patterns(point: ProbePoint) -> list[str]:
    """Return the shell patterns of a function name; ``kprobe.function`` takes ``{a,b}`` as well (tapsets.cxx)."""
    patterns = [point.symbol or ""]
    while point.family == "kprobe" and any("{" in pattern for pattern in patterns):
        pattern = next(pattern for pattern in patterns if "{" in pattern)
        before, _brace, rest = pattern.partition("{")
        inner, _brace, after = rest.partition("}")
        patterns.remove(pattern)
        patterns += [before + word + after for word in inner.split(",")]
    return patterns


def _glob(point: ProbePoint, facts: HostFacts) -> Answer:
    accept = re.compile("|".join(_regex(pattern) for pattern in _patterns(point))).match
    owner = re.compile(_regex(_module(point))).match if point.module is not None else None
    listed, _count = facts.table.search(
        accept, _MOST_MATCHES, CORE_OWNER if point.module is None else None, functions_only=True
    )
    judged = [
        (symbol, _judge(point, symbol, facts))
        for symbol in sorted(listed, key=lambda symbol: symbol.address or 0)
        if not _PART.search(symbol.name) and (owner is None or (symbol.owner in facts.modules and owner(symbol.owner)))
    ]
    judged = [(symbol, judgement) for symbol, judgement in judged if judgement.code != "no_function"]
    return _sum_up(judged, "no function matches")


def _regex(pattern: str) -> str:
    return fnmatch.translate(pattern)


def _judge(point: ProbePoint, symbol: Symbol, facts: HostFacts) -> Judgement:
    """Return what the kernel says of a function, or SystemTap where it leaves the function out by itself."""
    name = symbol.name.partition(".")[0]
    if point.family != "kprobe" and is_blocklisted(name, point.variant == "return"):
        judgement = facts.probes.judge(symbol)
        if judgement.probeable is not False:
            return Judgement(False, "blacklisted", "is one of those that SystemTap itself leaves out")
        return judgement
    return facts.probes.judge(symbol)


def _sum_up(judged: t.Sequence[tuple[Symbol, Judgement]], nothing: str) -> Answer:
    """Make one verdict of several functions: what can be armed counts, then what is not known, then the refusals."""
    if not judged:
        return "missing", nothing, [], []
    allowed = [symbol for symbol, judgement in judged if judgement.probeable]
    doubtful = [symbol for symbol, judgement in judged if judgement.probeable is None]
    if allowed:
        reason = "the function is there"
        if len(judged) > 1:
            reason = f"{len(allowed)} of {len(judged)} functions that match can be probed"
        if doubtful:
            reason += f"; of {len(doubtful)} that is not known"
        return "armable", reason, [], allowed
    if doubtful:
        judgement = next(judgement for _symbol, judgement in judged if judgement.probeable is None)
        return "unknown", f"the function is there; {judgement.reason}", [], doubtful
    codes = {judgement.code for _symbol, judgement in judged}
    first = judged[0][1]
    verdict = first.code if first.code in ("blacklisted", "discarded") else "refused"
    reason = f"the function {first.reason}"
    if len(judged) > 1:
        kinds = "" if len(codes) == 1 else ", each for a reason of its own"
        reason = f"none of {len(judged)} functions that match can be probed{kinds}: the first {first.reason}"
    return verdict, reason, [], [symbol for symbol, _judgement in judged]


def _function(point: ProbePoint, facts: HostFacts) -> Answer:
    name = point.symbol or ""
    owner = CORE_OWNER if point.module is None else _module(point)
    everywhere, variants = facts.look_up(name)
    here = _of_owner(point, everywhere, owner)
    judged = [(symbol, _judge(point, symbol, facts)) for symbol in here]
    functions = [(symbol, judgement) for symbol, judgement in judged if judgement.code != "no_function"]
    if point.variant == "exported" and functions and not any(symbol.type in "TW" for symbol, _judgement in functions):
        return "missing", "the function is local to its source file, so it is not exported", [], []
    if functions:
        return _sum_up(functions, "")
    if judged:
        return "missing", f"it {judged[0][1].reason}", [], []
    return _not_found(point, facts, owner, everywhere, variants)


def _of_owner(point: ProbePoint, symbols: list[Symbol], owner: str) -> list[Symbol]:
    found = [symbol for symbol in symbols if symbol.owner == owner]
    # kprobe.* is registered by name, and the kernel takes the first symbol of that name, of whatever kind.
    return found[:1] if point.family == "kprobe" else [symbol for symbol in found if symbol.is_function] or found[:1]


def _not_found(
    point: ProbePoint, facts: HostFacts, owner: str, everywhere: list[Symbol], variants: list[Symbol]
) -> Answer:
    name = point.symbol or ""
    judged = [
        (symbol, _judge(point, symbol, facts))
        for symbol in variants
        if symbol.is_function and symbol.owner == owner and not _PART.search(symbol.name)
    ]
    judged = [(symbol, judgement) for symbol, judgement in judged if judgement.code != "no_function"]
    if judged:
        verdict, reason, _nearest, points = _sum_up(judged, "")
        names = [symbol.name for symbol, _judgement in judged[:_NEAREST]]
        if verdict != "armable":
            return verdict, f"the compiler left only {', '.join(names)}; {reason}", [], points
        if point.family == "kprobe":
            reason = f"the compiler left only {', '.join(names)}, which kprobe.function does not find by this name"
            return "optimised_variant_only", reason, names, points
        reason = f"the compiler left only {', '.join(names)}: arguments may be missing"
        return "optimised_variant_only", reason, [], points
    functions = [symbol for symbol in everywhere if symbol.is_function]
    if functions:
        forms = [_form(place, name) for place in sorted({symbol.owner for symbol in functions})]
        return "missing", f"the function is elsewhere: {', '.join(forms)}", forms[:_NEAREST], []
    nearest = facts.nearest(name, owner)
    return "missing", "no such function here; if the source has it, the compiler inlined every copy", nearest, []


def _form(owner: str, name: str) -> str:
    place = "kernel" if owner == CORE_OWNER else f'module("{owner}")'
    return f'{place}.function("{name}")'
