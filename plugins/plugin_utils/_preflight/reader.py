# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read one host for the playbook preflight: a failure is part of the answer, not of the run.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from .._fleet.progress import at_most
from .probe import probe_command

_MODULES = "tapvirt.host."
# What is kept of a failed module, and of modules of whose result nothing else is read.
_FAILURE = ("failed", "msg", "module_stderr", "module_stdout")
_ONLY_FAILURE = ("libvirt_domain_info",)
_MOST_CHARS = 2000
# A host whose file system hangs must not stop the others.
_MOST_SECONDS = 300.0


class ReadAction(ActionBase):
    """Runs a shell command and some of the modules that only read, on one host.

    Its options are ``modules`` (name -> options) and ``directories``, whose free space is asked for. It returns
    ``reached``, ``reason`` (why it was not, or why the command failed), ``output`` (of the command), ``directories``,
    ``begin`` and ``end`` (the controller's clock around the command), and ``results`` (module -> its result).
    """

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        options = self._task.args
        result.update(changed=False, reached=False, reason="", output="", results={})
        result["directories"] = options["directories"]
        try:
            with at_most(_MOST_SECONDS, self._task.timeout):
                self._read(result, options, task_vars or {})
        except AnsibleConnectionFailure as error:
            result.update(reached=False, reason=_text(error.message))
        finally:
            with contextlib.suppress(AnsibleError):
                self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _read(self, result: dict[str, t.Any], options: t.Mapping[str, t.Any], task_vars: dict[str, t.Any]) -> None:
        """Add to a result what the command and the modules return.

        :raises AnsibleConnectionFailure: the host does not answer.
        """
        self._run_command(result, options["directories"])
        for name, params in options["modules"].items() if result["reached"] else ():
            answer = self._run_module(name, params, task_vars)
            # Those of a builder would become facts of the host that delegates to it.
            if name == "kernel_facts" and not answer.get("failed") and not self._task.delegate_to:
                result["ansible_facts"] = answer.get("ansible_facts", {})
            result["results"][name] = _kept(name, answer)
            if name == "kernel_facts" and answer.get("failed"):
                break  # every other module needs the same Python

    def _run_command(self, result: dict[str, t.Any], directories: t.Sequence[str]) -> None:
        """Run the command, which needs no Python on the host.

        :raises AnsibleConnectionFailure: the host does not answer.
        """
        result["begin"] = time.time()
        try:
            answer = self._low_level_execute_command(probe_command(directories))
        except AnsibleConnectionFailure:
            raise
        except AnsibleError as error:  # such as a missing password
            result["reason"] = _text(error.message)
            return
        result["end"] = time.time()
        result["reached"] = True
        result["output"] = _text(answer.get("stdout"), 4 * _MOST_CHARS)
        if answer.get("rc"):
            result["reason"] = _text(answer.get("stderr") or answer.get("stdout"))

    def _run_module(self, name: str, params: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """Return the result of a module; what Ansible raises is a failed result.

        :raises AnsibleConnectionFailure: the host no longer answers.
        """
        task = self._task.copy()
        task.action, task.args = _MODULES + name, params
        action = self._shared_loader_obj.action_loader.get(
            _MODULES + name,
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        try:
            if action is None:
                return dict(self._execute_module(_MODULES + name, module_args=params, task_vars=task_vars))
            return dict(action.run(task_vars=task_vars))
        except AnsibleConnectionFailure:
            raise
        except AnsibleError as error:
            return {"failed": True, "msg": _text(error.message)}


def _kept(name: str, answer: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what the judgement reads of a result."""
    if answer.get("failed"):
        return {"failed": True, **{key: _text(answer[key]) for key in _FAILURE[1:] if key in answer}}
    return {} if name in _ONLY_FAILURE else {key: answer[key] for key in answer if key != "ansible_facts"}


def _text(value: t.Any, most: int = _MOST_CHARS) -> str:
    return str(value or "")[:most]
