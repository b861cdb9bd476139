# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables that a fleet's inventory has for a role: whether there are any, and misspelt names of them.

Both roles with tables name them alike: ``PREFIX_wanted``, ``PREFIX_group``, ``PREFIX_group_NAME`` and ``PREFIX_host``.
Private to the collection.
"""

from __future__ import annotations

import difflib
import re
import typing as t

from ansible.errors import AnsibleError
from ansible.utils.display import Display

from .._transport.edge import printable

Variables = t.Mapping[str, t.Any]

display = Display()

_KINDS = ("wanted", "group", "host")
_LEAST_SIMILAR = 0.8
_SHOWN = 5
# A group's table may have a name of its own after the stem.
_GROUP = re.compile(r"(.*?_groups?)(_.+)")
# Variables of the roles and playbooks themselves.
_OTHERS = ("module_params_here", "module_params_table", "module_params_tables")


def missing_tables(hostvars: t.Mapping[str, Variables], hosts: t.Sequence[str], prefix: str) -> str:
    """Return a sentence when no host has a table with an entry; empty when one has.

    Hosts are read up to the first one with a table.

    :param prefix: of the variables, such as ``module_params``.
    """
    if any(has_table(hostvars[host], prefix) for host in hosts):
        return ""
    names = _of_prefix(prefix)
    every = f"{', '.join(names)} and {prefix}_group_NAME are empty or not set on {len(hosts)} of {len(hosts)} hosts."
    near: dict[str, str] = {}
    for host in hosts:
        near.update(near_tables(hostvars[host], prefix))
    meant = [
        f"{printable(ours)}? The inventory sets {printable(given)}." for given, ours in sorted(near.items())[:_SHOWN]
    ]
    hint = f" Did you mean {' '.join(meant)}" if meant else ""
    return f"No host has a table: {every}{hint} If this is intended, set {prefix}_allow_empty: true."


def warn_of_near_tables(inventory: Variables, prefix: str) -> dict[str, str]:
    """Return what :func:`near_tables` returns, and print a warning for each of these variables."""
    found = near_tables(inventory, prefix)
    for given, ours in found.items():
        display.warning(f"The variable {printable(given)} is not used. Did you mean {printable(ours)}?")
    return found


def near_tables(variables: Variables, prefix: str) -> dict[str, str]:
    """Return the variables that hold a table under a name that is almost one of ours, each with the name of ours."""
    found = {}
    for name in _names(variables):
        ours = _nearest(name, prefix)
        if ours is not None and _has_entries(variables, name, _is_entry):
            found[name] = ours
    return found


def _names(variables: Variables) -> t.Iterator[str]:
    """Return the names of variables. A file of variables in YAML may have other keys, such as the number 8080."""
    return (name for name in variables if isinstance(name, str))


def _of_prefix(prefix: str) -> list[str]:
    return [f"{prefix}_{kind}" for kind in _KINDS]


def _is_table(name: str, prefix: str) -> bool:
    return name in _of_prefix(prefix) or name.startswith(f"{prefix}_group_")


def has_table(variables: Variables, prefix: str) -> bool:
    """Return whether a host's variables contain a table of this prefix with an entry."""
    return any(
        _has_entries(variables, name, lambda _entry: True) for name in _names(variables) if _is_table(name, prefix)
    )


def _is_entry(value: t.Any) -> bool:
    return isinstance(value, t.Mapping)


def _has_entries(variables: Variables, name: str, accept: t.Callable[[t.Any], bool]) -> bool:
    """Tell whether a variable has an accepted entry. One that cannot be evaluated has: the role reports why."""
    try:
        value = variables[name]
    except AnsibleError:
        return True
    return isinstance(value, (list, tuple)) and any(accept(entry) for entry in value)


def _nearest(name: str, prefix: str) -> str | None:
    """Return the table whose name is most like this one, None when it is not like any, or is one."""
    if _is_table(name, prefix) or name in _OTHERS:
        return None
    group = _GROUP.match(name)
    stem, more = group.groups() if group else (name, "")
    score, ours = max((_similarity(stem, ours), ours) for ours in _of_prefix(prefix))
    return f"{ours}{more if ours.endswith('_group') else ''}" if score >= _LEAST_SIMILAR else None


def _similarity(name: str, other: str) -> float:
    """Return how alike two names are, from 0 to 1; 0 without a comparison where the lengths rule it out."""
    if 2 * min(len(name), len(other)) < _LEAST_SIMILAR * (len(name) + len(other)):
        return 0.0
    return difflib.SequenceMatcher(None, name, other).ratio()
