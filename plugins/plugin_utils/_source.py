# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module that only reads from its own source files, sent as they are, instead of packed by AnsiballZ.

Unpacking a module and importing ansible.module_utils costs a host several times what reading /proc does. Here the
host's Python gets the module's file and those it imports on its standard input; options are checked on the controller
by the module's own argument specification. Private to the collection.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import re
import shlex
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import UnsupportedError
from ansible.plugins.action import ActionBase

_COLLECTION = "ansible_collections.tapvirt.host."
_TREE = pathlib.Path(__file__).resolve().parents[2]
# What only actions may return (ansible.constants.INTERNAL_RESULT_KEYS).
_CONTROLLERS = ("add_host", "add_group")
_IMPORT = re.compile(r"^[ \t]*from (\.*)([\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


def imported(name: str, text: str) -> list[str]:
    """Return the modules of this collection that a module's source imports, anywhere in it, by their full names."""
    found = []
    for dots, path, words in _IMPORT.findall(text):
        base = name.rsplit(".", len(dots))[0] + "." if dots else ""
        if not (base + path).startswith(_COLLECTION):
            continue
        package = (base + path).rstrip(".")
        names = [package, *("{0}.{1}".format(package, word) for word in re.findall(r"\w+", words))]
        found += [candidate for candidate in names if _file(candidate).is_file()]
    return found


def sources(name: str) -> dict[str, str]:
    """Return the source of a module of this collection and of all that it imports from it, by their full names."""
    texts: dict[str, str] = {}
    names = [name]
    while names:
        name = names.pop()
        if name not in texts:
            texts[name] = _file(name).read_text(encoding="utf-8")
            names += imported(name, texts[name])
    return texts


def payload(name: str, params: t.Mapping[str, t.Any]) -> bytes:
    """Return the program that runs a module on a host, with options that were checked but for their paths."""
    host_side = _file(_COLLECTION + "plugins.plugin_utils._source_host").read_text(encoding="utf-8")
    spec = importlib.import_module(name).ARGUMENT_SPEC
    paths = [option for option, rule in spec.items() if rule["type"] == "path"]
    call = "start({0!r}, {1!r}, {2!r}, {3!r})\n".format(sources(name), name, json.dumps(params), paths)
    return (host_side + call).encode("utf-8")


def told(stdout: str) -> dict[str, t.Any]:
    """Return the result in a host's output, without what a host has no say in: Ansible's own keys, facts of others.

    :raises IndexError: there is none.
    :raises ValueError: it is not whole.
    """
    lines = [line for line in stdout.splitlines() if line.startswith("{")]
    try:
        found = json.loads(lines[-1])
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    result = {key: value for key, value in found.items() if not key.startswith("_ansible_") and key not in _CONTROLLERS}
    if "ansible_facts" in result:
        facts = result["ansible_facts"]
        result["ansible_facts"] = {key: value for key, value in facts.items() if key.startswith("tapvirt_")}
    return result


def _file(name: str) -> pathlib.Path:
    return _TREE.joinpath(*name[len(_COLLECTION) :].split(".")).with_suffix(".py")


class SourceAction(ActionBase):
    """Runs the module of the plugin's own name, as O(transport) says."""

    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            result.update(self._gathered(task_vars or {}))
        except AnsibleActionFail as error:
            result.update(failed=True, msg=error.message)
        return result

    def _gathered(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        name = "{0}plugins.modules.{1}".format(_COLLECTION, type(self).__module__.rpartition(".")[2])
        params = self._checked_options(name)
        interpreter = self._interpreter(task_vars)
        reason = self._obstacle(interpreter)
        if params["transport"] == "source" and reason:
            raise AnsibleActionFail("transport: 'source' is not possible: {0}.".format(reason))
        if params["transport"] == "module" or reason:
            return dict(self._execute_module(task_vars=task_vars, wrap_async=self._task.async_val))
        return self._run_sources(name, params, interpreter)

    def _checked_options(self, name: str) -> dict[str, t.Any]:
        """Return the task's options as the module itself would see them, but for paths: ``~`` is the host's."""
        module = importlib.import_module(name)
        spec = {
            option: {**rule, "type": "str"} if rule["type"] == "path" else rule
            for option, rule in module.ARGUMENT_SPEC.items()
        }
        checked = ArgumentSpecValidator(spec, **getattr(module, "RULES", {})).validate(self._task.args)
        if checked.error_messages:
            unsupported = isinstance(checked.errors[0], UnsupportedError)
            start = "Unsupported parameters for ({0}) module: ".format(self._task.action) if unsupported else ""
            raise AnsibleActionFail(start + checked.errors.msg)
        return dict(checked.validated_parameters)

    def _interpreter(self, task_vars: dict[str, t.Any]) -> str:
        """Return the host's Python as set or as discovered before, else nothing: discovery belongs to modules."""
        if self._task.delegate_to:
            task_vars = task_vars.get("ansible_delegated_vars", {}).get(self._task.delegate_to, {})
        wanted = str(self._templar.template(task_vars.get("ansible_python_interpreter") or "auto"))
        if wanted.startswith("auto"):
            return str(task_vars.get("ansible_facts", {}).get("discovered_interpreter_python", ""))
        return wanted

    def _obstacle(self, interpreter: str) -> str:
        """Return why the sources cannot be sent, or nothing."""
        if self._task.async_val:
            return "the task is asynchronous"
        if not self._is_pipelining_enabled("new"):
            return "pipelining is off, or this connection or its become method has none"
        return "" if interpreter else "the host's Python is not known yet; set ansible_python_interpreter"

    def _run_sources(self, name: str, params: dict[str, t.Any], interpreter: str) -> dict[str, t.Any]:
        # -I: no module of the current directory or of PYTHONPATH takes the place of one of the standard library.
        words = [*shlex.split(interpreter), "-IS", "-"]
        command = "{0} {1}".format(self._compute_environment_string(), shlex.join(words)).strip()
        answer = self._low_level_execute_command(command, in_data=payload(name, params))
        try:
            return told(str(answer["stdout"]))
        except (IndexError, ValueError):
            said = (str(answer["stderr"]).strip().splitlines() or ["nothing"])[-1]
            raise AnsibleActionFail(
                "{0} gave no result (rc {1}): {2}. transport: module runs it as Ansible runs other modules.".format(
                    interpreter, answer["rc"], said[:500]
                )
            ) from None
