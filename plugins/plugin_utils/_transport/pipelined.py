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

from ansible import constants
from ansible.errors import AnsibleActionFail

from ...module_utils._core.errors import InvalidInput
from .edge import Odd
from .module_action import COLLECTION, NEEDED_PYTHON, ModuleAction, refused
from .module_result import keep_documented, parse_json

_TREE = pathlib.Path(__file__).resolve().parents[3]
_IMPORT = re.compile(r"^[ \t]*from (\.*)([\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


# An old Python cannot even compile the rest, so this part is for any, and the rest is a text in it.
_GUARD = f"""\
import sys
if sys.version_info < (3, 8):
    import json
    python = "The host's Python %s has the version %s" % (sys.executable, ".".join(map(str, sys.version_info[:3])))
    message = python + {", and " + NEEDED_PYTHON!r}
    error = {{"option": None, "value": None, "problem": message, "hint": None, "candidates": []}}
    print("\\n" + json.dumps({{"failed": True, "msg": message, "error": error}}))
    sys.exit(0)
"""


def imported(name: str, text: str) -> list[str]:
    """Return the modules of this collection that a module's source imports, anywhere in it, by their full names."""
    found = []
    for dots, path, words in _IMPORT.findall(text):
        base = name.rsplit(".", len(dots))[0] + "." if dots else ""
        if not (base + path).startswith(COLLECTION):
            continue
        package = (base + path).rstrip(".")
        names = [package, *(f"{package}.{word}" for word in re.findall(r"\w+", words))]
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


def payload(
    name: str,
    params: t.Mapping[str, t.Any],
    check_mode: bool = False,
    diff: bool = False,
    log: t.Mapping[str, t.Any] | None = None,
) -> bytes:
    """Return the program that runs a module on a host, with options that were checked but for their paths.

    :param log: ``no_log``, ``facility`` and ``info`` for the host's system log, where they are not the defaults.
    """
    host_side = _file(COLLECTION + "plugins.plugin_utils._transport.bootstrap").read_text(encoding="utf-8")
    spec = importlib.import_module(name).ARGUMENT_SPEC
    paths = [option for option, rule in spec.items() if rule["type"] == "path"]
    task = {"params": params, "check_mode": check_mode, "diff": diff, "log": {**(log or {})}}
    call = f"start({sources(name)!a}, {name!r}, {json.dumps(task)!r}, {paths!a})\n"
    return f"{_GUARD}exec(compile({host_side!a}, 'bootstrap.py', 'exec'))\n{call}".encode("ascii")


def _file(name: str) -> pathlib.Path:
    return _TREE.joinpath(*name[len(COLLECTION) :].split(".")).with_suffix(".py")


class SourceAction(ModuleAction):
    """Runs the module of the plugin's own name, as O(transport) says."""

    _supports_async = True

    def _run_task(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        params = self._checked_options(self._module())
        interpreter = self._interpreter(task_vars)
        reason = self._why_not_pipelined(interpreter)
        if params["transport"] == "source" and reason:
            raise refused(InvalidInput("transport", "source", f"The module's sources cannot be sent: {reason}."))
        if params["transport"] == "module" or reason:
            return self._run_module(task_vars, wrap_async=self._task.async_val)
        return self._run_sources(params, interpreter, task_vars)

    def _log_settings(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """Return what Ansible tells a module about the host's system log."""
        is_off = constants.config.get_config_value("DEFAULT_NO_TARGET_SYSLOG", variables=task_vars)
        return {
            "no_log": bool(self._task.no_log or is_off),
            "facility": str(task_vars.get("ansible_syslog_facility", constants.DEFAULT_SYSLOG_FACILITY)),
            "info": str(constants.config.get_config_value("TARGET_LOG_INFO", variables=task_vars) or ""),
        }

    def _interpreter(self, task_vars: dict[str, t.Any]) -> str:
        """Return the host's Python as set or as discovered before, else nothing: discovery belongs to modules."""
        if self._task.delegate_to:
            task_vars = task_vars.get("ansible_delegated_vars", {}).get(self._task.delegate_to, {})
        wanted = str(self._templar.template(task_vars.get("ansible_python_interpreter") or "auto"))
        if wanted.startswith("auto"):
            return str(task_vars.get("ansible_facts", {}).get("discovered_interpreter_python", ""))
        return wanted

    def _why_not_pipelined(self, interpreter: str) -> str:
        """Return why the sources cannot be sent, or nothing."""
        if self._task.async_val:
            return "the task is asynchronous"
        if not self._is_pipelining_enabled("new"):
            return "pipelining is off, or this connection or its become method has none"
        return "" if interpreter else "the host's Python is not known yet; set ansible_python_interpreter"

    def _run_sources(self, params: dict[str, t.Any], interpreter: str, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        # -I: no module of the current directory or of PYTHONPATH takes the place of one of the standard library.
        words = [*shlex.split(interpreter), "-IS", "-"]
        command = f"{self._compute_environment_string()} {shlex.join(words)}".strip()
        name = self._module()
        program = payload(name, params, self._task.check_mode, self._task.diff, self._log_settings(task_vars))
        answer = self._low_level_execute_command(command, in_data=program)
        try:
            return keep_documented(name, parse_json(str(answer["stdout"])))
        except Odd as error:
            last = (str(answer["stderr"]).strip().splitlines() or ["nothing"])[-1]
            raise AnsibleActionFail(
                f"{interpreter} gave no result of {name.rpartition('.')[2]} (rc {answer['rc']}): {error}; stderr ends "
                f"with: {last[:500]}. transport: module runs it as Ansible runs other modules."
            ) from None
