# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters over a trace of many hosts; documented in the files named after them."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils._core.errors import InvalidInput, TapvirtError
from ..plugin_utils._trace import campaign, probe_points
from ..plugin_utils._trace import catalogue as _catalogue
from ..plugin_utils._transport.edge import Odd


def trace_outcomes(value: t.Any, name: str) -> list[str]:
    """Return the outcomes that are no failure."""
    try:
        return campaign.trace_outcomes(value, name)
    except InvalidInput as error:
        raise AnsibleFilterError(error.message) from None


def trace_request(
    given: t.Any,
    script: t.Any,
    duration: t.Any,
    catalogue: _catalogue.Catalogue,
    names: t.Mapping[str, str] | None = None,
) -> str:
    """Return why a script does not take these variables; empty when it does."""
    if not isinstance(given, t.Mapping):
        return f"trace_variables: {given!r} is not a dictionary."
    try:
        _catalogue.trace_request(given, str(script), duration, catalogue, names)
    except TapvirtError as error:
        return error.message
    return ""


def trace_points(script: t.Any, release: str) -> list[str]:
    """Return the probe points that a kernel must have for a script to be built."""
    if not isinstance(script, t.Mapping):
        raise AnsibleFilterError(f"trace_points: {script!r} is not a script, as stap_script returns it.")
    try:
        return probe_points.probe_points(script, release)
    except TapvirtError as error:
        raise AnsibleFilterError(error.message) from None


def trace_refusal(probes: t.Any, release: str, listed: t.Any = ()) -> dict[str, t.Any]:
    """Return why a script cannot be built for a kernel, and what only the builder can tell."""
    rows = _probe_rows("probes", probes)
    undecided = probe_points.undecided_points(rows)
    return {"reason": probe_points.refusal(rows, _probe_rows("listed", listed), release), "undecided": undecided}


def _probe_rows(name: str, value: t.Any) -> list[dict[str, t.Any]]:
    try:
        return probe_points.parse_rows(value)
    except Odd as error:
        raise AnsibleFilterError(f"trace_refusal: {name} is not what stap_probe_info returns: {error}.") from None


def trace_verdict(
    run: t.Any, before: t.Any = None, after: t.Any = None, failure: t.Any = None, accept: t.Any = ("ok", "zero_hits")
) -> dict[str, t.Any]:
    """Return what a host's run was, and whether it stops the campaign."""
    for name, value in (("the run", run), ("before", before or {}), ("after", after or {})):
        if not isinstance(value, t.Mapping):
            raise AnsibleFilterError(f"trace_verdict: {name}: {value!r} is not a result, which is a dictionary.")
    return campaign.trace_verdict(run, failure or None, before, after, accept)


def trace_summary(verdicts: t.Any, runs: t.Any = None, left_out: t.Any = None) -> dict[str, t.Any]:
    """Return a campaign in a few kB."""
    for name, value in (("the verdicts", verdicts), ("runs", runs or {}), ("left_out", left_out or {})):
        if not isinstance(value, t.Mapping):
            raise AnsibleFilterError(f"trace_summary: {name}: {value!r} is not a dictionary of host names.")
    return campaign.trace_summary(verdicts, runs or {}, left_out or {})


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {
            "trace_outcomes": trace_outcomes,
            "trace_points": trace_points,
            "trace_refusal": trace_refusal,
            "trace_request": trace_request,
            "trace_summary": trace_summary,
            "trace_verdict": trace_verdict,
        }
