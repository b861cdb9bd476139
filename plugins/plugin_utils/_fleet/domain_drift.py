# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Differences of a host's domains from the requested ones, as libvirt_domain found them. Private to the collection."""

from __future__ import annotations

import typing as t

from .._format import shown
from .._transport.edge import ANY, TEXT, Need, parse

_CHANGE = {"what": Need(TEXT), "before": ANY, "after": ANY, "how": TEXT, "why": TEXT}
_WAIT = {"what": Need(TEXT), "running": ANY, "stored": ANY, "reason": TEXT}
_RESULT = Need({"plan": [_CHANGE], "domains": [{"name": Need(TEXT), "pending": [_WAIT]}]})


def domains_drift(result: t.Any) -> dict[str, t.Any]:
    """Return the ``plan``, and a line for each thing that a running domain waits for (``pending``).

    :param result: what ``libvirt_domain`` returned; both are empty for a task that was skipped.
    :raises Odd: the result does not have the shape of one.
    """
    known = parse(result, _RESULT)
    return {
        "plan": [{**dict.fromkeys(_CHANGE), **row} for row in known.get("plan") or ()],
        "pending": [
            f"{row['name']}: {_waiting(wait)}"
            for row in known.get("domains") or ()
            for wait in row.get("pending") or ()
        ],
    }


def _waiting(wait: t.Mapping[str, t.Any]) -> str:
    running, stored = shown_value(wait.get("running")), shown_value(wait.get("stored"))
    reason = _line(wait.get("reason") or "an unknown reason")
    return f"{wait['what']} is {running}, defined as {stored}, and waits for: {reason}"


def shown_value(value: t.Any) -> str:
    """Return a value on one line."""
    return "absent" if value is None else _line(value if isinstance(value, str) else shown(value))


def _line(text: str) -> str:
    return text.replace("\n", " ").strip()
