# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter for ``hosts``; documented in the file named after it."""

from __future__ import annotations

import pathlib
import typing as t

from ansible import context
from ansible.errors import AnsibleFilterError
from ansible.utils.display import Display

from ..module_utils._core.errors import InvalidInput
from ..plugin_utils._fleet import targets

# With these options ansible-playbook reads the playbook and contacts no host.
_READ_ONLY = ("syntax", "listhosts", "listtasks", "listtags")


_PLAYBOOKS = pathlib.Path(__file__).resolve().parents[2] / "playbooks"

display = Display()


def play_hosts(
    value: t.Any,
    name: str,
    default: targets.Pattern,
    groups: t.Mapping[str, t.Any],
    limited: bool = True,
    playbook: str = "",
) -> targets.Pattern:
    """Return the pattern of a play's hosts, which matches at least one where the playbook was started by itself."""
    chosen: targets.Pattern = value or default
    if any(context.CLIARGS.get(option) for option in _READ_ONLY):
        return chosen
    limit = context.CLIARGS.get("subset") if limited else None
    try:
        return targets.check_hosts(value or "", name=name, default=default, groups=groups, limit=limit)
    except targets.NoHost as error:
        if not _is_imported(playbook):
            raise AnsibleFilterError(error.message) from None
        display.warning(f"{error.message} The playbook {playbook} is imported: the run goes on without its plays.")
        return chosen
    except InvalidInput as error:
        raise AnsibleFilterError(error.message) from None


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


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., targets.Pattern]]:
        return {"play_hosts": play_hosts}
