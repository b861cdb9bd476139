# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of a play, checked before any of them is contacted. Private to the collection."""

from __future__ import annotations

import typing as t

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader

from ...module_utils._core.errors import InvalidInput, nearest_names

Pattern: t.TypeAlias = str | t.Sequence[str]

_SHOWN_GROUPS = 10
_IMPLICIT_GROUPS = ("all", "ungrouped")


class NoHost(InvalidInput):
    """No host of the inventory, or of ``--limit``, matches a pattern."""


def check_hosts(
    pattern: Pattern, *, name: str, default: Pattern, groups: t.Mapping[str, t.Sequence[str]], limit: str | None = None
) -> Pattern:
    """Return the pattern of a play's hosts, which matches at least one host.

    Ansible itself skips a play without hosts and ends with the exit status 0.

    :param pattern: ``default`` when it is empty.
    :param name: the variable that the pattern comes from, for the message.
    :param groups: Ansible's variable of this name: every group of the inventory with its hosts.
    :param limit: the value of ``--limit``, if any.
    :raises NoHost: no host matches.
    :raises InvalidInput: the pattern is neither a text nor a list of texts.
    """
    chosen = pattern or default
    texts = [chosen] if isinstance(chosen, str) else chosen
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InvalidInput(name, chosen, "must be a pattern of hosts, or a list of patterns")
    inventory = InventoryManager(loader=DataLoader(), sources=None, parse=False)
    for group, hosts in groups.items():
        inventory.add_group(group)
        for host in hosts:
            inventory.add_host(host, group=group)
    found = inventory.get_hosts(chosen)
    if found and limit:
        inventory.subset(limit)
        if not inventory.get_hosts(chosen):
            raise NoHost(name, chosen, f"has no host in common with --limit {limit}")
    if not found:
        raise _no_host(name, chosen, not pattern, groups)
    return chosen


def _no_host(name: str, chosen: Pattern, is_default: bool, groups: t.Mapping[str, t.Sequence[str]]) -> NoHost:
    """Return the error for a pattern that no host of the inventory matches."""
    default = "(the default) " if is_default else ""
    hosts = list(groups.get("all", ()))
    if not hosts:
        return NoHost(name, chosen, f"{default}matches no host: the inventory is empty, give one with -i")
    named = sorted(group for group, members in groups.items() if members and group not in _IMPLICIT_GROUPS)
    if named:
        more = len(named) - _SHOWN_GROUPS
        rest = "whose groups are " + ", ".join(named[:_SHOWN_GROUPS]) + (f" and {more} more" if more > 0 else "")
    else:
        rest = "which has no groups"
    rule = f"{default}matches no host of the inventory, {rest}"
    nearest = nearest_names(chosen, [*named, *hosts]) if isinstance(chosen, str) else []
    return NoHost(name, chosen, rule, nearest)
