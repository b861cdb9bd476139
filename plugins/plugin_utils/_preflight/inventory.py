# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which jobs an inventory asks for, and on which hosts. Private to the collection."""

from __future__ import annotations

import typing as t

from ansible.inventory.manager import InventoryManager

from .._fleet.tables import has_table
from .._fleet.targets import inventory_of
from .model import JOBS, Job, Row

TRACE_GROUP, BUILDER_GROUP, VIRT_GROUP = "trace_hosts", "builders", "virt_hosts"
_NO_JOB_FIX = (
    f"put hosts to trace into the group {TRACE_GROUP} and a builder into {BUILDER_GROUP}; set module_params_wanted for"
    f" hosts with a parameter baseline; put hosts with domains into the group {VIRT_GROUP}, or set domains_wanted"
)


def preflight_jobs(
    hostvars: t.Mapping[str, Row],
    hosts: t.Sequence[str],
    groups: t.Mapping[str, t.Sequence[str]],
    patterns: t.Mapping[str, t.Any],
) -> dict[str, t.Any]:
    """Return the hosts of each job, the builders, the jobs of each host, and what is wrong with the inventory.

    ``{"trace": [host], "parameters": [host], "domains": [host], "builders": [host], "of_host": {host: [job]},
    "problems": [{"jobs": [job], "reason": text, "fix": text}]}``

    :param hosts: the hosts of the play. Builders need not be among them.
    :param groups: Ansible's variable of this name.
    :param patterns: the variables ``trace_targets``, ``trace_builders``, ``params_targets`` and ``domains_targets``;
        empty where they are not set.
    """
    matched = _Patterns(groups, patterns)
    among = set(hosts)
    virt = set(groups.get(VIRT_GROUP, ()))
    asked: dict[Job, list[str]] = {
        "trace": [host for host in matched.hosts("trace_targets", TRACE_GROUP) if host in among],
        "parameters": [
            host
            for host in matched.hosts("params_targets", "all")
            if host in among and has_table(hostvars[host], "module_params")
        ],
        "domains": [
            host
            for host in matched.hosts("domains_targets", "all")
            if host in among and (host in virt or has_table(hostvars[host], "domains"))
        ],
    }
    builders = matched.hosts("trace_builders", BUILDER_GROUP)
    problems = matched.problems
    if asked["trace"] and not builders and not patterns.get("trace_builders"):
        fix = (
            f"put a host with SystemTap, or one for the role tapvirt.host.trace_builder, into the group {BUILDER_GROUP}"
        )
        problems.append({"jobs": ["trace"], "reason": "the inventory has no builder", "fix": fix})
    if not any(asked.values()) and not problems:
        problems.append({"jobs": [], "reason": "the inventory asks for no job", "fix": _NO_JOB_FIX})
    of_host: dict[str, list[str]] = {}
    for job in JOBS:
        for host in asked[job]:
            of_host.setdefault(host, []).append(job)
    return {**t.cast("dict[str, t.Any]", asked), "builders": builders, "of_host": of_host, "problems": problems}


class _Patterns:
    """The hosts of patterns. A group that no variable names may be missing, without a warning of Ansible."""

    _JOBS: t.Mapping[str, Job] = {
        "trace_targets": "trace",
        "trace_builders": "trace",
        "params_targets": "parameters",
        "domains_targets": "domains",
    }

    def __init__(self, groups: t.Mapping[str, t.Sequence[str]], patterns: t.Mapping[str, t.Any]) -> None:
        self._groups = groups
        self._patterns = patterns
        self._inventory: InventoryManager | None = None
        self.problems: list[dict[str, t.Any]] = []

    def hosts(self, variable: str, group: str) -> list[str]:
        """Return the hosts of a variable's pattern, or of a group if the variable is not set."""
        pattern = self._patterns.get(variable)
        if not pattern:
            return list(self._groups.get(group, ()))
        if self._inventory is None:
            self._inventory = inventory_of(self._groups)
        found = [host.name for host in self._inventory.get_hosts(pattern)]
        if not found:
            self.problems.append(
                {
                    "jobs": [self._JOBS[variable]],
                    "reason": f"{variable}: the pattern {pattern!r} matches no host of the inventory",
                    "fix": f"correct {variable}, or leave it out for the group {group}",
                }
            )
        return found
