# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several builders, for several distributions: which of them builds for a host. Private to the collection."""

from __future__ import annotations

import dataclasses
import typing as t

from ...module_utils._core.errors import TapvirtError
from ...module_utils._systemtap.limits import Memory
from ...module_utils._systemtap.readiness import Finding, find_problems
from .._transport.edge import ANY, COUNT, FLAG, NAME, TEXT, Each, Kind, Need, Odd, parse, parse_all

Row = t.Mapping[str, t.Any]
_REASONS = Need([TEXT])
# The facts that readiness.find_problems reads.
_HOST = Need(
    {
        "distribution": {"name": NAME, "family": NAME},
        "kernel": Need({"release": Need(NAME), "arch": NAME}),
        "traceability": Need({"reasons": _REASONS, "conditions": _REASONS}),
        "trusted_keys": [{"name": Need(TEXT), "key_id": Need(TEXT)}],
        "staprun": NAME,
        "privilege": Need({"load_modules": Need(FLAG), "groups": _REASONS}),
        "memory": Need(
            {
                field.name: Need(COUNT) if field.default is dataclasses.MISSING else COUNT
                for field in dataclasses.fields(Memory)
            }
        ),
        "loaded": Need([{"name": Need(TEXT), "users": COUNT}]),
    }
)
_VERSIONS = Kind(
    "two versions",
    lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and all(map(NAME.fits, value)),
)
_BUILDER = {
    "arch": NAME,
    "distribution": {"name": NAME, "family": NAME},
    "stap": NAME,
    "kernels": Each({"debuginfo": ANY, "compiler": ANY, "compiled_with": NAME}),
    "tested": _VERSIONS,
    "debuginfod": {"servers": [TEXT], "answering": [TEXT]},
}


def parse_host(host: t.Any) -> dict[str, t.Any]:
    """Return a host's facts, which are what ``stap_host_info`` returns as ``host``.

    :raises Odd: they are not.
    """
    known = parse(host, _HOST)
    loaded = [{"users": None, **row} for row in known["loaded"]]
    return {"staprun": None, **host, "memory": known["memory"], "loaded": loaded}


def asked_builders(results: t.Iterable[Row], chosen: str = "") -> dict[str, t.Any]:
    """Return the builders that may build for a host: name -> its facts, None where it did not answer or has no stap.

    :param results: what ``stap_host_info`` returned in a loop over the builders.
    :param chosen: the builder that the host's own variable names, if any.
    """
    asked = {row["item"]: row.get("builder") for row in results}
    return {chosen: asked.get(chosen)} if chosen else asked


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which ``builder`` builds for a host (empty: none), with what was found.

    ``own`` are findings about the host itself, ``of_builder`` those about the builder. ``reasons`` and ``remedies`` are
    of the builders, where none can build for the host.
    """

    builder: str
    own: list[Finding]
    of_builder: list[Finding]
    reasons: list[str]
    remedies: list[str]


def choose_builder(host: t.Any, builders: t.Any) -> Choice:
    """Return the first builder that can build for a host, among those with debug information where there are such.

    So all hosts of one kernel have the same builder, and nothing is built twice.

    :param host: what ``stap_host_info`` returned as ``host``.
    :param builders: names, each with what it returned as ``builder`` there; None for one without answer or stap.
    :raises TapvirtError: the host, or the builders, are something else.
    """
    if not isinstance(host, t.Mapping) or not {"kernel", "traceability", "memory"} <= set(host):
        raise TapvirtError("trace_builder_for: the host is not what tapvirt.host.stap_host_info returns as its host.")
    try:
        host = parse_host(host)
    except Odd as error:
        raise TapvirtError(f"trace_builder_for: the host is not what stap_host_info returned: {error}.") from None
    if not isinstance(builders, t.Mapping):
        raise TapvirtError(f"trace_builder_for: builders: {builders!r} is not a dictionary of builders' names.")
    odd = parse_all(builders, lambda facts: parse(facts, _BUILDER))[1]
    builders = {name: None if name in odd else facts for name, facts in builders.items()}
    own = find_problems(host, None)
    found = {name: find_problems(host, facts)[len(own) :] for name, facts in builders.items() if facts}
    able = [name for name, findings in found.items() if not any(finding.blocks for finding in findings)]
    able.sort(key=lambda name: any(finding.check == "debuginfo" for finding in found[name]))
    if able:
        return Choice(able[0], own, found[able[0]], [], [])
    foreign = _foreign(host, builders, found)
    reasons = [foreign.reason] if foreign else _reasons(builders, found, odd)
    return Choice("", own, [], reasons, [foreign.remedy] if foreign else _remedies(builders, found, odd))


def trace_builder_for(host: t.Any, builders: t.Any) -> dict[str, t.Any]:
    """Return which ``builder`` builds for a host, or why none can: ``verdict``, ``reason``, ``remedy``, ``findings``.

    Parameters and errors are those of :func:`choose_builder`.
    """
    choice = choose_builder(host, builders)
    blocking = [finding for finding in choice.own if finding.blocks]
    reasons = [*(finding.reason for finding in blocking), *choice.reasons]
    remedies = [*(finding.remedy for finding in blocking), *choice.remedies]
    fine = f"kernel {host['kernel']['release']} can be traced, built on {choice.builder}"
    return {
        "builder": choice.builder,
        "verdict": "refused" if reasons else "ready",
        "reason": "; ".join(reasons) or fine,
        "remedy": "; ".join(dict.fromkeys(remedies)) or None,
        "findings": [finding.row() for finding in [*choice.own, *choice.of_builder]],
    }


def _foreign(host: Row, builders: t.Mapping[str, Row | None], found: t.Mapping[str, list[Finding]]) -> Finding | None:
    """Return the one finding for a host of an architecture that no builder has; None where another reason is there."""
    if not found or set(found) != set(builders):
        return None
    if not all(findings and findings[0].check == "arch" for findings in found.values()):
        return None
    arch = host["kernel"]["arch"]
    have = ", ".join(f"{name} is {(facts or {})['arch']}" for name, facts in builders.items())
    remedy = f"put a builder of the architecture {arch} into the group builders"
    return Finding("arch", True, f"there is no builder for {arch}: {have}", remedy)


def _reasons(
    builders: t.Mapping[str, Row | None], found: t.Mapping[str, list[Finding]], odd: t.Mapping[str, str]
) -> list[str]:
    """Return what speaks against each builder, with its name where there are several."""
    if not builders:
        return ["there is no builder"]
    reasons = []
    for name, facts in builders.items():
        if name in odd:
            reasons.append(f"what the builder {name} returned cannot be read: {odd[name]}")
        elif not facts:
            reasons.append(f"the builder {name} did not answer, or has no SystemTap")
        before = f"{name}: " if len(builders) > 1 else ""
        reasons += [before + finding.reason for finding in found.get(name, []) if finding.blocks]
    return reasons


def _remedies(
    builders: t.Mapping[str, Row | None], found: t.Mapping[str, list[Finding]], odd: t.Container[str]
) -> list[str]:
    """Return what helps, each once, with the builders that it is for where there are several."""
    if not builders:
        return ["put one into the group builders"]
    of: dict[str, list[str]] = {}
    for name, facts in builders.items():
        helps = [finding.remedy for finding in found.get(name, []) if finding.blocks]
        if not facts:
            helps = ["use another builder" if name in odd else "prepare it with the role trace_builder"]
        for remedy in dict.fromkeys(helps):
            of.setdefault(remedy, []).append(name)
    return [f"{remedy} ({', '.join(names)})" if len(builders) > 1 else remedy for remedy, names in of.items()]
