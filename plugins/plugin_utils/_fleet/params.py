# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet's table of module parameters: tables merged into one, and the difference to a host in words.

Private to the collection.
"""

from __future__ import annotations

import typing as t

from ...module_utils._core.errors import TapvirtError
from ...module_utils._kernel.modules.modinfo import canonical
from .._format import shown
from .._transport.edge import ANY, TEXT, Need, parse

_ENTRIES = "entries such as {module: kvm, name: halt_poll_ns, value: 200000}"


# What is read of a result of kernel_module_param.
_ROW = {"module": Need(TEXT), "name": Need(TEXT), "pending": [TEXT], "changed": ANY}
_RESULT = Need({"params": [{**_ROW, **dict.fromkeys(("wanted", "before", "after"), ANY)}]})


class BadTable(TapvirtError):
    """A table cannot be used; the text names the table, the entry and the rule."""


def merge_params(tables: t.Mapping[str, t.Any], **defaults: t.Any) -> list[dict[str, t.Any]]:
    """Return one table in which what a later one says of a parameter replaces what an earlier one said, key by key.

    ``tables`` are entries as M(tapvirt.host.kernel_module_param) takes them, by the name of the variable that holds
    them. A parameter is what ``module`` and ``name`` say, ``-`` and ``_`` being the same to the kernel. Parameters
    keep the order in which they are first named.

    :raises BadTable: an entry is none, or a table names a parameter twice.
    """
    merged: dict[tuple[str, str], dict[str, t.Any]] = {}
    for variable, table in tables.items():
        if isinstance(table, str) or not isinstance(table, t.Sequence):
            raise BadTable(f"{variable}: {table!r} is not a list of {_ENTRIES}.")
        seen = set()
        for number, entry in enumerate(table, 1):
            key = _key(f"{variable}, entry {number}", entry)
            if key in seen:
                raise BadTable(f"{variable}, entry {number}: {'.'.join(key)} is named twice in this table.")
            seen.add(key)
            merged[key] = {**merged.get(key, defaults), **entry, "module": key[0], "name": key[1]}
    return list(merged.values())


def params_drift(result: t.Mapping[str, t.Any]) -> list[str]:
    """Return a line for each parameter that is not as wanted, from a result of kernel_module_param in check mode.

    Of a run that was none, the lines say what the run found and changed, and what is still pending.

    :raises Odd: it is not such a result.
    """
    lines = (_line(row) for row in parse(result, _RESULT).get("params") or ())
    return [line for line in lines if line]


def _key(where: str, entry: t.Any) -> tuple[str, str]:
    if not isinstance(entry, t.Mapping):
        raise BadTable(f"{where}: {entry!r} is none of {_ENTRIES}.")
    for name in ("module", "name"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise BadTable(f"{where}: {entry!r} has no {name}.")
    return canonical(entry["module"]), canonical(entry["name"])


def _line(row: t.Mapping[str, t.Any]) -> str:
    """Return what is to be said of a row; empty when all is as it should be."""
    label = f"{row['module']}.{row['name']}"
    facts = list(row.get("pending") or ())
    if row.get("changed"):
        facts.insert(0, _difference(row))
    return f"{label} {'; '.join(facts)}" if facts else ""


def _difference(row: t.Mapping[str, t.Any]) -> str:
    wanted, before, after = (row.get(key) for key in ("wanted", "before", "after"))
    if wanted is None:
        # Put back: what it was before it was first set is what it is afterwards.
        if before == after:
            return f"is {shown(before)} and still kept in modprobe.d"
        return f"is {shown(before)}, and was {shown(after)} before it was first set"
    if before == wanted:
        return f"is {shown(before)}, and nothing keeps it"
    if before is None:
        return f"shall be {shown(wanted)}"
    return f"is {shown(before)}, wanted {shown(wanted)}"
