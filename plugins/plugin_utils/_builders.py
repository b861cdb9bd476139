# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several builders, for several distributions: which of them builds for a host. Private to the collection."""

from __future__ import annotations

import dataclasses
import typing as t

from ..module_utils._systemtap.envelope import Memory
from ..module_utils._systemtap.host import Finding, judge
from ._edge import ANY, COUNT, FLAG, NAME, TEXT, Each, Kind, Need, parse, parse_all

Row = t.Mapping[str, t.Any]
_REASONS = Need([TEXT])
# What host.judge reads.
_HOST = Need(
    {
        "kernel": Need({"release": Need(NAME)}),
        "traceability": Need({"reasons": _REASONS, "conditions": _REASONS}),
        "trusted_keys": [{"name": Need(TEXT), "key_id": Need(TEXT)}],
        "staprun": NAME,
        "privilege": Need({"root": Need(FLAG), "groups": _REASONS}),
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
    "stap": NAME,
    "kernels": Each({"debuginfo": ANY, "compiler": ANY}),
    "tested": _VERSIONS,
}


def parse_host(host: t.Any) -> dict[str, t.Any]:
    """Return a host's facts, which are what ``stap_host_info`` returns as ``host``.

    :raises Odd: they are not.
    """
    known = parse(host, _HOST)
    loaded = [{"users": None, **row} for row in known["loaded"]]
    return {"staprun": None, **host, "memory": known["memory"], "loaded": loaded}


def trace_builder_for(host: Row, builders: t.Mapping[str, Row | None]) -> dict[str, t.Any]:
    """Return which ``builder`` builds for a host, or why none can: ``verdict``, ``reason``, ``remedy``, ``findings``.

    It is the first that can, among those with debug information of the host's kernel where there are such. So all hosts
    of one kernel have the same builder, and nothing is built twice.

    :param host: what ``stap_host_info`` returned as ``host``.
    :param builders: names, each with what it returned as ``builder`` there; null for one without answer or stap.
    """
    odd = parse_all(builders, lambda facts: parse(facts, _BUILDER))[1]
    builders = {name: None if name in odd else facts for name, facts in builders.items()}
    own = judge(host, None)
    found = {name: judge(host, facts)[len(own) :] for name, facts in builders.items() if facts}
    able = [name for name, findings in found.items() if not any(finding.blocks for finding in findings)]
    able.sort(key=lambda name: any(finding.check == "debuginfo" for finding in found[name]))
    chosen = able[0] if able else ""
    reasons = [(finding.reason, finding.remedy) for finding in own if finding.blocks]
    if not chosen:
        reasons += _refusals(builders, found, odd)
    fine = "kernel {0} can be traced, built on {1}".format(host["kernel"]["release"], chosen)
    return {
        "builder": chosen,
        "verdict": "refused" if reasons else "ready",
        "reason": "; ".join(reason for reason, _remedy in reasons) or fine,
        "remedy": "; ".join(dict.fromkeys(remedy for _reason, remedy in reasons)) or None,
        "findings": [finding.row() for finding in [*own, *found.get(chosen, [])]],
    }


def _refusals(
    builders: t.Mapping[str, Row | None], found: t.Mapping[str, list[Finding]], odd: t.Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return what speaks against each builder; its name is said where there are several."""
    if not builders:
        return [("there is no builder", "put one into the group builders")]
    rows = []
    for name, facts in builders.items():
        before = "{0}: ".format(name) if len(builders) > 1 else ""
        if name in odd:
            rows.append((f"what the builder {name} returned cannot be read: {odd[name]}", "use another builder"))
        elif not facts:
            rows.append(
                (
                    "the builder {0} did not answer, or has no SystemTap".format(name),
                    "prepare it with the role trace_builder",
                )
            )
        rows += [
            (before + finding.reason, "{0} ({1})".format(finding.remedy, name) if before else finding.remedy)
            for finding in found.get(name, [])
            if finding.blocks
        ]
    return rows
