# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter of a report about a fleet; documented in the file named after it."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..plugin_utils import _report
from ..plugin_utils._text import escaped


def fleet_report(variables: t.Any, hosts: t.Any, lost: t.Any = (), html: bool = False) -> dict[str, t.Any]:
    """Return what is to be said of these hosts, from their variables."""
    if not isinstance(variables, t.Mapping):
        raise AnsibleFilterError(f"fleet_report: {variables!r} is not a dictionary of hosts with their variables.")
    for option, names in (("hosts", hosts), ("lost", lost)):
        if isinstance(names, str) or not isinstance(names, t.Sequence):
            raise AnsibleFilterError(f"fleet_report: {option}: {names!r} is not a list of hosts.")
    known = {}
    for host in dict.fromkeys(hosts):
        if host not in variables:
            raise AnsibleFilterError(f"fleet_report: hosts: {host!r} is not a host of the inventory.")
        own = variables[host]
        known[host] = {name: own[name] for name in _report.VARIABLES if name in own}
    try:
        report = _report.fleet_report(known, set(lost))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"fleet_report: a variable holds no result of its module ({type(error).__name__}: {error})."
            f" They are {', '.join(_report.VARIABLES)}."
        ) from error
    return t.cast("dict[str, t.Any]", escaped(report)) if html else report


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., dict[str, t.Any]]]:
        return {"fleet_report": fleet_report}
