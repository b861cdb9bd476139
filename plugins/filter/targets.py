# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter for ``hosts``; documented in the file named after it."""

from __future__ import annotations

import typing as t

from ansible import context
from ansible.errors import AnsibleFilterError

from ..module_utils._core.errors import InvalidInput
from ..plugin_utils._fleet import targets

# With these options ansible-playbook reads the playbook and contacts no host.
_READ_ONLY = ("syntax", "listhosts", "listtasks", "listtags")


def play_hosts(
    value: t.Any, name: str, default: targets.Pattern, groups: t.Mapping[str, t.Any], limited: bool = True
) -> targets.Pattern:
    """Return the pattern of a play's hosts, which matches at least one."""
    if any(context.CLIARGS.get(option) for option in _READ_ONLY):
        return value or default
    limit = context.CLIARGS.get("subset") if limited else None
    try:
        return targets.check_hosts(value or "", name=name, default=default, groups=groups, limit=limit)
    except InvalidInput as error:
        raise AnsibleFilterError(error.message) from None


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., targets.Pattern]]:
        return {"play_hosts": play_hosts}
