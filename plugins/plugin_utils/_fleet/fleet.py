# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the hosts of a fleet are alike and where they differ. Private to the collection.

What hosts say is compared as JSON: a number is not a text, and the order of keys does not matter.
"""

from __future__ import annotations

import fnmatch
import json
import typing as t

from .._transport.edge import ANY, TEXT, WHOLE, Need

Facts = t.Mapping[str, t.Any]
_MISSING = object()
# What a kernel's table says of a symbol; addresses differ from boot to boot, and reasons are for people.
_SYMBOL_PARTS = ("status", "count", "exported", "gpl_only", "namespace", "probeable")
SYMBOL = {
    "name": Need(TEXT),
    "matches": Need([dict.fromkeys(("name", "type", "owner"), ANY)]),
    "variants": [{"name": Need(TEXT)}],
    **dict.fromkeys(_SYMBOL_PARTS, ANY),
    "count": WHOLE,
}
"""The shape of a row of kernel_symbol_info, as far as it is compared."""


def fact_diff(facts: t.Mapping[str, Facts], ignore: t.Sequence[str] = ()) -> list[dict[str, t.Any]]:
    """Return a row for each fact that is not the same on all hosts: ``fact``, and ``groups`` as of :func:`groups_of`.

    :param ignore: shell patterns of facts that may differ, such as ``memory.*``.
    """
    leaves = {host: dict(_leaves(tree)) for host, tree in facts.items()}
    names = {name for found in leaves.values() for name in found}
    rows = []
    for name in sorted(names):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore):
            continue
        groups = groups_of({host: found.get(name, _MISSING) for host, found in leaves.items()})
        if len(groups) > 1:
            rows.append({"fact": name, "groups": groups})
    return rows


def symbol_diff(symbols: t.Mapping[str, t.Sequence[Facts]]) -> list[dict[str, t.Any]]:
    """Return a row for each entry that is not the same on all hosts: ``name``, ``differs`` (what of it), ``groups``.

    Of the matches their names, types and owners are compared.
    """
    seen = {host: {row["name"]: _symbol(row) for row in rows} for host, rows in symbols.items()}
    names = {name for rows in seen.values() for name in rows}
    found = []
    for name in sorted(names):
        of_hosts = {host: rows.get(name, _MISSING) for host, rows in seen.items()}
        groups = groups_of(of_hosts)
        if len(groups) > 1:
            asked = [row for row in of_hosts.values() if isinstance(row, dict)]
            parts = [part for part in asked[0] if len({_key(row[part]) for row in asked}) > 1]
            found.append({"name": name, "differs": parts, "groups": groups})
    return found


def group_hosts_by(facts: t.Mapping[str, Facts], names: t.Sequence[str]) -> list[dict[str, t.Any]]:
    """Return a row for each combination of these facts that hosts have: ``value`` (fact to value) and ``hosts``.

    A fact that a host does not have is null.
    """
    values = {host: {name: _at(tree, name) for name in names} for host, tree in facts.items()}
    return [{"value": group["value"], "hosts": group["hosts"]} for group in groups_of(values)]


def groups_of(values: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """Return ``value``, ``present`` (false: the host has none) and ``hosts`` for each value, most hosts first."""
    hosts: dict[str, list[str]] = {}
    for host, value in values.items():
        hosts.setdefault(_key(value), []).append(host)
    ordered = sorted(hosts.values(), key=lambda names: (-len(names), sorted(names)))
    return [
        {
            "value": None if values[names[0]] is _MISSING else values[names[0]],
            "present": values[names[0]] is not _MISSING,
            "hosts": sorted(names),
        }
        for names in ordered
    ]


def _key(value: t.Any) -> str:
    return "" if value is _MISSING else json.dumps(value, sort_keys=True)


def _leaves(tree: t.Any, prefix: str = "") -> t.Iterator[tuple[str, t.Any]]:
    """Yield the dotted names and values of all that is no dictionary; lists are compared whole."""
    if isinstance(tree, t.Mapping) and (tree or not prefix):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _at(tree: t.Any, name: str) -> t.Any:
    """Return the fact of a dotted name; a key may hold dots itself."""
    if not isinstance(tree, t.Mapping):
        return None
    if name in tree:
        return tree[name]
    for position, character in enumerate(name):
        if character == "." and name[:position] in tree:
            return _at(tree[name[:position]], name[position + 1 :])
    return None


def _symbol(row: Facts) -> dict[str, t.Any]:
    matches = sorted(" ".join(str(match.get(part)) for part in ("name", "type", "owner")) for match in row["matches"])
    variants = sorted(variant["name"] for variant in row.get("variants") or [])
    return {**{part: row.get(part) for part in _SYMBOL_PARTS}, "variants": variants, "matches": matches}
