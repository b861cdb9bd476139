# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter of a report about a fleet; documented in the file named after it."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils._core.errors import InvalidInput, nearest_names
from ..plugin_utils._format import escaped
from ..plugin_utils._report import findings


def fleet_report(variables: t.Any, hosts: t.Any, lost: t.Any = (), html: bool = False) -> dict[str, t.Any]:
    """Return what is to be said of these hosts, from their variables."""
    if not isinstance(variables, t.Mapping):
        raise _refusal("fleet_report", variables, "The input is a dictionary of hosts with their variables.")
    for option, names in (("hosts", hosts), ("lost", lost)):
        if (
            isinstance(names, str)
            or not isinstance(names, t.Sequence)
            or not all(isinstance(name, str) for name in names)
        ):
            raise _refusal(option, names, "The option is a list of hosts.")
        for index, host in enumerate(names):
            if host not in variables:
                near = nearest_names(host, variables)
                raise _refusal(f"{option}[{index}]", host, "The inventory does not contain this host.", near)
    known = {}
    for host in dict.fromkeys(hosts):
        own = variables[host]
        known[host] = {name: own[name] for name in findings.VARIABLES if name in own}
    report = findings.fleet_report(known, set(lost))
    return t.cast("dict[str, t.Any]", escaped(report)) if html else report


def _refusal(option: str, value: t.Any, problem: str, candidates: t.Sequence[str] = ()) -> AnsibleFilterError:
    return AnsibleFilterError(InvalidInput(option, value, problem, candidates=candidates).message)


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., dict[str, t.Any]]]:
        return {"fleet_report": fleet_report}
