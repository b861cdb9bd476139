# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of the controller: paths that users give, and names that hosts and domains have. Private to the collection."""

from __future__ import annotations

import os
import re
import typing as t

from ansible.parsing.dataloader import DataLoader
from ansible.utils.vars import load_extra_vars

from ...module_utils._core.errors import InvalidInput, TapvirtError
from ...module_utils._core.write import check_target
from .progress import NameTooLong, encoded

# What os.path.expandvars takes for a variable, which Ansible's modules call for every path.
_VARIABLE = re.compile(r"\$(?:\w+|\{[^}]*\})")


def controller_path(value: t.Any, *, name: str, facts: t.Any, directory: bool = False) -> str:
    """Return the absolute path of a file or a directory that the user has named.

    A relative path counts from where the command was started, and not from the playbook, which may be in an installed
    collection. A path with ``$NAME`` is refused, because modules that write files expand variables of the environment.

    :param name: the variable that the value comes from.
    :param facts: the facts of the host. Ansible makes a variable of every fact, and a variable that the user did not
        set would be the host's. An extra variable wins over every fact.
    :raises InvalidInput: a FIFO, a device or a socket is there, a parent is not a directory, or a host chose the path.
    """
    if (
        isinstance(facts, t.Mapping)
        and value
        and facts.get(name) == value
        and name not in load_extra_vars(DataLoader())
    ):
        raise InvalidInput(
            name,
            value,
            "the value is a fact of this name that the host returned; a host must not choose a file of the controller.",
            f"Set {name} as an extra variable.",
        )
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidInput(name, value, "the value is not the path of a file.")
    try:
        home = os.path.expanduser(value)
        os.fsencode(home)
    except UnicodeEncodeError:
        raise InvalidInput(name, value, "the path is not UTF-8.") from None
    # As the shell has it: the working directory of Ansible's own processes may be another.
    path = os.path.normpath(os.path.join(os.environ.get("PWD") or os.getcwd(), home))
    found = _VARIABLE.search(path)
    if found:
        raise InvalidInput(
            name,
            path,
            f"the path contains {found[0]}, which Ansible replaces by a variable of the environment.",
            f"Give an absolute path without it, such as /tmp/{os.path.basename(path)}.",
        )
    check_target(name, path, directory)
    return path


def file_name(value: t.Any, suffix: str = "") -> str:
    """Return the name of the file for a host or a domain: see :func:`.progress.encoded`.

    :raises TapvirtError: the value is not a name, or the file's name would be too long.
    """
    if not isinstance(value, str) or not value:
        raise TapvirtError(f"{value!r} is not the name of a host or of a domain.")
    try:
        return encoded(value, suffix)
    except NameTooLong as error:
        text = str(error)
        raise TapvirtError(text[:1].upper() + text[1:]) from None
