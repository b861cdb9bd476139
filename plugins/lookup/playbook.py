# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The functions that the collection's own playbooks and roles call; no public interface."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ..module_utils._core.errors import TapvirtError
from ..plugin_utils._fleet import params, tables, targets, waves

DOCUMENTATION = r"""
name: playbook
author: The tapvirt.host authors (@tapvirt)
version_added: 0.1.0
short_description: Call an internal function of the playbooks and roles of this collection
description:
  - Calls one of the functions that belong to the playbooks and roles of this collection.
  - These functions are internal. They are not a public interface. Their names, arguments and results change without
    notice. Do not call them in your own playbooks.
options:
  _terms:
    description:
      - The name of the function, and its positional arguments. Arguments by name go to the function, too.
    type: list
    elements: raw
    required: true
"""

EXAMPLES = r"""
- name: What playbooks of this collection do with the variable params_serial
  hosts: all
  serial: "{{ lookup('tapvirt.host.playbook', 'waves', params_serial, default=[1, '100%'], name='params_serial') }}"
  tasks:
    - name: Contact the host
      ansible.builtin.ping:
"""

RETURN = r"""
_raw:
  description: The result of the function, as the only element.
  type: list
  elements: raw
"""

#: Pure functions, except for warnings. Each raises TapvirtError where its arguments cannot be used.
FUNCTIONS: dict[str, t.Callable[..., t.Any]] = {
    "merge_params": params.merge_params,
    "missing_tables": tables.missing_tables,
    "near_tables": tables.warn_of_near_tables,
    "play_hosts": targets.play_hosts,
    "waves": waves.waves,
}


class LookupModule(LookupBase):
    """The lookup of this file."""

    def run(self, terms: list[t.Any], variables: t.Any = None, **kwargs: t.Any) -> list[t.Any]:
        """Return the result of a function in a list, because a lookup unpacks a list of one element."""
        name, *arguments = terms
        if name not in FUNCTIONS:
            raise AnsibleLookupError(f"{name!r} is not an internal function: {', '.join(sorted(FUNCTIONS))}.")
        try:
            return [FUNCTIONS[name](*arguments, **kwargs)]
        except TapvirtError as error:
            raise AnsibleLookupError(error.message) from error
