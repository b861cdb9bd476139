# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of a play, checked before any of them is contacted. Private to the collection."""

from __future__ import annotations

import pathlib
import typing as t

from ansible import context
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.utils.display import Display

from ...module_utils._core.errors import InvalidInput, nearest_names

Pattern: t.TypeAlias = str | t.Sequence[str]

_PLAYBOOKS = pathlib.Path(__file__).resolve().parents[3] / "playbooks"
# With these options ansible-playbook reads the playbook and contacts no host.
_READ_ONLY = ("syntax", "listhosts", "listtasks", "listtags")
_SHOWN_GROUPS = 10
_IMPLICIT_GROUPS = ("all", "ungrouped")

display = Display()


class NoHost(InvalidInput):
    """No host of the inventory, or of ``--limit``, matches a pattern."""


def play_hosts(
    value: t.Any,
    name: str,
    default: Pattern,
    groups: t.Mapping[str, t.Any],
    limited: bool = True,
    playbook: str = "",
) -> Pattern:
    """Return the pattern of a play's hosts, which matches at least one host where the user started this playbook.

    :param limited: whether the hosts have to be among those of ``--limit``.
    :param playbook: the full name of this playbook, such as ``tapvirt.host.trace``. Where another playbook imports it,
        a pattern without hosts is a warning, and Ansible skips the plays.
    :raises InvalidInput: see :func:`check_hosts`.
    """
    chosen: Pattern = value or default
    if any(context.CLIARGS.get(option) for option in _READ_ONLY):
        return chosen
    limit = context.CLIARGS.get("subset") if limited else None
    try:
        return check_hosts(value or "", name=name, default=default, groups=groups, limit=limit)
    except NoHost as error:
        if not _is_imported(playbook):
            raise
        display.warning(f"{error.message} The playbook {playbook} is imported: the run goes on without its plays.")
        return chosen


def _is_imported(playbook: str) -> bool:
    """Return whether another playbook imports this one: the command names it neither by name nor by path.

    Ansible evaluates the hosts of every play, also of plays that tags or a condition leave out. An error would end the
    whole run of a site's playbook.
    """
    if not playbook:
        return False
    started = context.CLIARGS.get("args") or ()
    path = _PLAYBOOKS / f"{playbook.rpartition('.')[2]}.yml"
    return not any(argument == playbook or pathlib.Path(argument).resolve() == path for argument in started)


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
        raise InvalidInput(name, chosen, "The hosts are a pattern, or a list of patterns.")
    what = "The pattern" if pattern else f"The default pattern {default!r}"
    inventory = inventory_of(groups)
    found = inventory.get_hosts(chosen)
    if found and limit:
        inventory.subset(limit)
        if not inventory.get_hosts(chosen):
            raise NoHost(name, pattern or None, f"{what} has no host in common with --limit {limit}.")
    if not found:
        raise _no_host(name, pattern, chosen, what, groups)
    return chosen


def inventory_of(groups: t.Mapping[str, t.Sequence[str]]) -> InventoryManager:
    """Return an inventory with these groups, which finds the hosts of patterns."""
    inventory = InventoryManager(loader=DataLoader(), sources=None, parse=False)
    for group, hosts in groups.items():
        inventory.add_group(group)
        for host in hosts:
            inventory.add_host(host, group=group)
    return inventory


def _no_host(
    name: str, pattern: Pattern, chosen: Pattern, what: str, groups: t.Mapping[str, t.Sequence[str]]
) -> NoHost:
    """Return the error for a pattern that no host of the inventory matches."""
    given = pattern or None
    hosts = list(groups.get("all", ()))
    if not hosts:
        return NoHost(name, given, f"{what} matches no host: the inventory is empty.", "Give an inventory with -i.")
    named = sorted(group for group, members in groups.items() if members and group not in _IMPLICIT_GROUPS)
    more = len(named) - _SHOWN_GROUPS
    shown = ", ".join(named[:_SHOWN_GROUPS]) + (f" and {more} more" if more > 0 else "")
    hint = f"Its groups are {shown}." if named else "It has no groups."
    nearest = nearest_names(chosen, [*named, *hosts]) if isinstance(chosen, str) else []
    return NoHost(name, given, f"{what} matches no host of the inventory.", hint, nearest)
