# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of every action plugin here: run a module, and return only what it documents. Private to the collection."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ...module_utils._core.errors import InvalidInput
from .edge import Odd
from .module_result import keep_of_ansible

COLLECTION = "ansible_collections.tapvirt.host."


def refused(error: InvalidInput) -> AnsibleActionFail:
    """Return the failure of an action for an option; its result has the same ``error`` as that of a module."""
    return AnsibleActionFail(error.message, result={"error": error.row()})


class ModuleAction(ActionBase):
    """Runs the module of the plugin's own name."""

    def _module(self) -> str:
        """Return the full name of the module."""
        return f"{COLLECTION}plugins.modules.{type(self).__module__.rpartition('.')[2]}"

    def _run_module(self, task_vars: dict[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
        """Run the module as Ansible does.

        :raises AnsibleActionFail: the host returned something else than the module returns.
        """
        result = dict(self._execute_module(task_vars=task_vars, **options))
        try:
            return keep_of_ansible(self._module(), result, self._discovered_interpreter_key)
        except Odd as error:
            name = self._module().rpartition(".")[2]
            raise AnsibleActionFail(f"The host returned something else than {name} returns: {error}.") from None
