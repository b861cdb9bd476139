# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a kernel has the probe points of a script, before anything is built. Private to the collection."""

from __future__ import annotations

import re
import typing as t

from ...module_utils._core.errors import TapvirtError
from ...module_utils._systemtap.language.grammar import parse
from ...module_utils._systemtap.language.preprocessor import Target
from ...module_utils._systemtap.language.probe_point import ProbePoint, parse_probe_point, split_probe_points
from ...module_utils._systemtap.language.tokens import tokenize
from .._transport.edge import TEXT, Kind, Need, Odd
from .._transport.edge import parse as parse_shape

Row = t.Mapping[str, t.Any]

# What depends on the kernel alone. Programs, counters and the like differ from host to host.
_FAMILIES = ("function", "statement", "kprobe", "tracepoint")
# What a conditional may compare beside the version of the kernel; only the builder knows these.
_OF_BUILDER = re.compile(r"CONFIG_|(?:arch|systemtap_v|runtime|systemtap_privilege|guru_mode)$")
# These forms are compiled for a function with code of its own only, never for an inlined copy (man stapprobes).
_NEVER_INLINE = ("call", "return", "exported")
_SHOWN = 3


def _is_probe_point(value: t.Any) -> bool:
    try:
        return isinstance(value, str) and bool(parse_probe_point(value))
    except TapvirtError:
        return False


# What is read of a row of stap_probe_info.
_ROW = {
    "probe": Need(Kind("a probe point", _is_probe_point)),
    "family": Need(TEXT),
    "verdict": Need(TEXT),
    "reason": Need(TEXT),
    "candidates": Need([TEXT]),
}


def _parse_rows(name: str, value: t.Any) -> list[dict[str, t.Any]]:
    """Return rows of ``stap_probe_info``, as a host returned them.

    :raises TapvirtError: they are something else.
    """
    try:
        return t.cast("list[dict[str, t.Any]]", parse_shape(value, Need([_ROW])))
    except Odd as error:
        raise TapvirtError(f"trace_refusal: {name} is not what stap_probe_info returns: {error}.") from None


def trace_refusal(probes: t.Any, *, release: str, listed: t.Any = ()) -> dict[str, t.Any]:
    """Return why a script cannot be built for a kernel, and what only the builder knows: ``reason, undecided``.

    :param probes: ``probes`` of ``stap_probe_info``, of a host with this kernel.
    :param listed: the same of the builder, for the undecided points.
    :raises TapvirtError: these are not rows of ``stap_probe_info``.
    """
    rows = _parse_rows("probes", probes)
    return {"reason": refusal(rows, _parse_rows("listed", listed), release), "undecided": undecided_points(rows)}


def probe_points(script: t.Any, release: str) -> list[str]:
    """Return the probe points that a kernel must have for a script to be built.

    Optional and alternative points, groups, and aliases of tapsets are left to the builder. So is a script with
    conditionals about more than the version of the kernel.

    :param script: what ``stap_script`` returned.
    :param release: of the kernel, as ``uname -r`` prints it.
    :raises TapvirtError: this is not a script, or it cannot be parsed.
    """
    if not isinstance(script, t.Mapping):
        raise TapvirtError(f"trace_points: {script!r} is not a script, as stap_script returns it.")
    name, text = str(script.get("name", "script")), script.get("text")
    if not text:
        return []
    if not isinstance(text, str):
        raise TapvirtError(f"trace_points: {text!r} is not the text of a script.")
    tokens = tokenize(text)
    words = (token.text for token in tokens if token.kind == "word")
    if any(token.text == "%?" for token in tokens) and any(_OF_BUILDER.match(word) for word in words):
        return []
    guru = bool(script.get("guru"))
    parsed = parse(name, text, guru, Target(kernel=release, guru=guru))
    points: list[str] = []
    for probe in parsed.probes:
        found = [_point(single, parsed.aliases) for single in split_probe_points(probe)]
        if not any(point is not None and point.sufficient for point in found):
            points += [point.text for point in found if point is not None and _is_needed(point)]
    return list(dict.fromkeys(points))


def _point(text: str, aliases: t.Container[str]) -> ProbePoint | None:
    """Return a probe point; None for an alias and for what only some tapset knows."""
    if re.split(r"[.(\s?!]", text, maxsplit=1)[0] in aliases:
        return None
    try:
        return parse_probe_point(text)
    except TapvirtError:
        return None


def _is_needed(point: ProbePoint) -> bool:
    return point.family in _FAMILIES and not point.optional


def undecided_points(rows: t.Sequence[Row]) -> list[str]:
    """Return the probe points that the host lacks and that debug information may know.

    These are functions that may be inlined, and what is in a module that is not loaded.

    :param rows: ``probes`` of ``stap_probe_info``, of the host.
    """
    return [row["probe"] for row in rows if _is_undecided(row)]


def _is_undecided(row: Row) -> bool:
    if row["verdict"] == "module_not_loaded" or (row["verdict"] == "missing" and row["family"] == "tracepoint"):
        return True
    inlinable = row["family"] in ("function", "statement")
    return row["verdict"] == "missing" and inlinable and parse_probe_point(row["probe"]).variant not in _NEVER_INLINE


def refusal(rows: t.Sequence[Row], listed: t.Sequence[Row], release: str) -> str:
    """Return why a script cannot be built for a kernel; empty when nothing is known against it.

    :param rows: ``probes`` of ``stap_probe_info``, of a host with this kernel.
    :param listed: the same of the builder, for the undecided points.
    """
    known = {row["probe"]: row for row in listed}
    missing: dict[t.Any, str] = {}
    for row in rows:
        decisive = known.get(row["probe"]) if _is_undecided(row) else row
        if decisive is not None and decisive["verdict"] == "missing":
            point = parse_probe_point(row["probe"])
            # A function that is probed at its entry and its return is missing once.
            missing.setdefault((point.family, point.module, point.symbol), _described(decisive))
    if not missing:
        return ""
    shown = list(missing.values())[:_SHOWN]
    more = len(missing) - len(shown)
    return f"kernel {release} does not have {'; '.join(shown)}{f'; and {more} more' if more else ''}"


def _described(row: Row) -> str:
    nearest = f" (nearest: {', '.join(row['candidates'][:_SHOWN])})" if row["candidates"] else ""
    return f"{row['probe']}: {row['reason']}{nearest}"
