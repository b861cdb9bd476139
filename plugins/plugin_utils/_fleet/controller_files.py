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


def controller_path(value: t.Any, *, name: str, facts: t.Any, directory: bool = False, default: str = "") -> str:
    """Return the absolute path of a file or a directory that the user has named.

    A relative path counts from where the command was started, and not from the playbook, which may be in an installed
    collection. A path with ``$NAME`` is refused, because modules that write files expand variables of the environment.

    :param default: the path when the value is empty.
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
            "The value is a fact of this name that the host returned; a host must not choose a file of the controller.",
            f"Set {name} as an extra variable.",
        )
    given, chosen = value or None, value or default
    if not isinstance(chosen, str) or not chosen or "\0" in chosen:
        raise InvalidInput(name, value, "The value is not the path of a file.")
    try:
        home = os.path.expanduser(chosen)
        os.fsencode(home)
    except UnicodeEncodeError:
        raise InvalidInput(name, given, "The path is not UTF-8.") from None
    # As the shell has it: the working directory of Ansible's own processes may be another.
    path = os.path.normpath(os.path.join(os.environ.get("PWD") or os.getcwd(), home))
    found = _VARIABLE.search(path)
    if found:
        shown = "The path" if path == given else f"The path {path}"
        raise InvalidInput(
            name,
            given,
            f"{shown} contains {found[0]}, which Ansible replaces by a variable of the environment.",
            "Give a path without a dollar sign."
            if _VARIABLE.search(home)
            else "Start the command in a directory whose path has no dollar sign, or give an absolute path.",
        )
    try:
        check_target(name, path, directory)
    except InvalidInput as error:
        raise InvalidInput(name, given, error.problem, error.hint) from None
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
        raise TapvirtError(str(error)) from None
