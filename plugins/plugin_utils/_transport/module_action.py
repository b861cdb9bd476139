# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of every action plugin here: run a module, and return only what it documents. Private to the collection."""

from __future__ import annotations

import importlib
import re
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import UnsupportedError
from ansible.plugins.action import ActionBase

from ...module_utils._core.errors import InvalidInput, TapvirtError
from .edge import Odd
from .module_result import keep_of_ansible

COLLECTION = "ansible_collections.tapvirt.host."
#: What hosts need; the end of a sentence.
NEEDED_PYTHON = (
    "this collection needs Python 3.8 or newer. Install a newer Python beside it, and set ansible_python_interpreter to"
    " its path."
)
# Python before 3.7 ends so, and 3.7 at syntax that is newer.
_OLD_SYNTAX = re.compile(r"^SyntaxError: ", re.MULTILINE)


class OptionsError(AnsibleActionFail):
    """A task's options do not fit the module's argument specification."""


def refused(error: InvalidInput) -> AnsibleActionFail:
    """Return the failure of an action for an option; its result has the same ``error`` as that of a module."""
    return AnsibleActionFail(error.message, result={"error": error.row()})


class ModuleAction(ActionBase):
    """Runs the module of the plugin's own name; a failure of the controller has an ``error`` like one of the module."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            result.update(self._run_task(task_vars or {}))
        except AnsibleActionFail as error:
            row = error.result.get("error") or TapvirtError(error.message).row()
            result.update(failed=True, msg=error.message, error=row)
        return result

    def _run_task(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """Return the result of the task.

        :raises AnsibleActionFail: the task failed on the controller.
        """
        raise NotImplementedError

    def _module(self) -> str:
        """Return the full name of the module."""
        return f"{COLLECTION}plugins.modules.{type(self).__module__.rpartition('.')[2]}"

    def _checked_options(self, name: str) -> dict[str, t.Any]:
        """Return the task's options as the module itself would see them, but for paths: ``~`` is the host's.

        :raises OptionsError: the module would not take them.
        """
        module = importlib.import_module(name)
        spec = {
            option: {**rule, "type": "str"} if rule["type"] == "path" else rule
            for option, rule in module.ARGUMENT_SPEC.items()
        }
        checked = ArgumentSpecValidator(spec, **getattr(module, "RULES", {})).validate(self._task.args)
        if checked.error_messages:
            unsupported = isinstance(checked.errors[0], UnsupportedError)
            start = f"Unsupported parameters for ({self._task.action}) module: " if unsupported else ""
            message = start + checked.errors.msg
            raise OptionsError(message, result={"error": TapvirtError(message).row()})
        return dict(checked.validated_parameters)

    def _run_module(self, task_vars: dict[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
        """Run the module as Ansible does.

        :raises AnsibleActionFail: the host returned something else than the module returns, or its Python is too old.
        """
        result = dict(self._execute_module(task_vars=task_vars, **options))
        printed = (str(result.get(key) or "") for key in ("module_stderr", "module_stdout", "exception"))
        if result.get("failed") and any(map(_OLD_SYNTAX.search, printed)):
            raise AnsibleActionFail(f"The host's Python is too old to compile this module: {NEEDED_PYTHON}")
        try:
            return keep_of_ansible(self._module(), result, self._discovered_interpreter_key)
        except Odd as error:
            name = self._module().rpartition(".")[2]
            raise AnsibleActionFail(f"The host returned something else than {name} returns: {error}.") from None
