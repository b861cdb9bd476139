# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The difference between a table of module parameters and a host, in words. Private to the collection."""

from __future__ import annotations

import typing as t

from .._format import shown
from .._transport.edge import ANY, TEXT, Need, parse

# What is read of a result of kernel_module_param.
_ROW = {"module": Need(TEXT), "name": Need(TEXT), "pending": [TEXT], "changed": ANY}
_RESULT = Need({"params": [{**_ROW, **dict.fromkeys(("wanted", "before", "after"), ANY)}]})


def params_drift(result: t.Mapping[str, t.Any]) -> list[str]:
    """Return a line for each parameter that is not as wanted, from a result of kernel_module_param in check mode.

    The lines of a run without check mode say what the run found and changed, and what is still pending.

    :raises Odd: the result does not have the shape of one.
    """
    lines = (_line(row) for row in parse(result, _RESULT).get("params") or ())
    return [line for line in lines if line]


def _line(row: t.Mapping[str, t.Any]) -> str:
    """Return the line of a row; empty where the parameter is as wanted."""
    label = f"{row['module']}.{row['name']}"
    facts = list(row.get("pending") or ())
    if row.get("changed"):
        facts.insert(0, _difference(row))
    return f"{label} {'; '.join(facts)}" if facts else ""


def _difference(row: t.Mapping[str, t.Any]) -> str:
    wanted, before, after = (row.get(key) for key in ("wanted", "before", "after"))
    if wanted is None:
        # The state is restored: ``after`` is the value before it was first set.
        if before == after:
            return f"is {shown(before)} and still kept in modprobe.d"
        return f"is {shown(before)}, and was {shown(after)} before it was first set"
    if before == wanted:
        return f"is {shown(before)}, and nothing keeps it"
    if before is None:
        return f"shall be {shown(wanted)}"
    return f"is {shown(before)}, wanted {shown(wanted)}"
