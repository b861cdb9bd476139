# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter for files of the controller; documented in the file named after it."""

from __future__ import annotations

import os
import re
import typing as t

import jinja2
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.utils.vars import load_extra_vars
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.write import check_target

# What os.path.expandvars takes for a variable, which Ansible's modules call for every path.
_VARIABLE = re.compile(r"\$(?:\w+|\{[^}]*\})")


def controller_path(value: t.Any, name: str, directory: bool = False) -> str:
    """Return the whole path of a file or a directory that the user has named."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise AnsibleFilterError(f"{name}: {value!r} is not the path of a file.")
    try:
        home = os.path.expanduser(value)
        os.fsencode(home)
    except UnicodeEncodeError:
        raise AnsibleFilterError(f"{name}: {value!r} is not UTF-8.") from None
    # As the shell has it: the working directory of Ansible's own processes may be another.
    path = os.path.normpath(os.path.join(os.environ.get("PWD") or os.getcwd(), home))
    found = _VARIABLE.search(path)
    if found:
        raise AnsibleFilterError(
            f"{name}: {path!r} has {found[0]} in it, for which Ansible puts a variable of the environment. Give a whole"
            f" path without it, such as /tmp/{os.path.basename(path)}."
        )
    try:
        check_target(name, path, directory)
    except InvalidInput as error:
        raise AnsibleFilterError(error.message) from None
    return path


@jinja2.pass_context
def _controller_path(context: jinja2.runtime.Context, value: t.Any, name: str, directory: bool = False) -> str:
    """Return the same, of a variable that does not come from the facts that a host returned.

    Ansible makes a variable of every fact, and a variable that the user did not set would be the host's. An extra
    variable wins over every fact.
    """
    facts = context.get("ansible_facts")
    is_fact = isinstance(facts, t.Mapping) and value and facts.get(name) == value
    if is_fact and name not in load_extra_vars(DataLoader()):
        raise AnsibleFilterError(
            f"{name}: {value!r} is the value of a fact of this name that the host returned; a host must not choose a "
            f"file of the controller. Give {name} as an extra variable."
        )
    return controller_path(value, name, directory)


class FilterModule:
    """The filter by name."""

    def filters(self) -> dict[str, t.Callable[..., str]]:
        return {"controller_path": _controller_path}
