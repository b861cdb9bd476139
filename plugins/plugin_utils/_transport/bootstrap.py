# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Goes to a host ahead of a module's own source files: imports them from their text, and is their AnsibleModule.

Private to the collection. It runs on the host's Python, from standard input, with nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import sys
import types
import typing as t
from importlib.machinery import ModuleSpec


class Sources:
    """Imports the modules of ``texts``, by their full names; the packages around them are empty (PEP 451)."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts
        self._packages = {name.rsplit(".", depth)[0] for name in texts for depth in range(1, name.count(".") + 1)}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        del path, target
        if name in self._texts or name in self._packages:
            loader: t.Any = self
            return ModuleSpec(name, loader, is_package=name in self._packages)
        return None

    def get_source(self, name: str) -> str:
        return self._texts.get(name, "")

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave that to the interpreter."""

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__
        code = compile(self._texts.get(name, ""), name.rpartition(".")[2] + ".py", "exec", dont_inherit=True)
        exec(code, module.__dict__)


class AnsibleModule:
    """What modules that travel as sources use of ansible.module_utils.basic.AnsibleModule, and no more."""

    params: t.Mapping[str, t.Any] = types.MappingProxyType({})
    check_mode = False
    no_log = False
    no_log_values: frozenset[str] = frozenset()
    _diff = False
    _name = ""
    _syslog_facility = "LOG_USER"
    _target_log_info = ""

    def __init__(self, **_options: object) -> None:
        self._warnings: list[str] = []

    def warn(self, warning: str, **_more: object) -> None:
        if warning not in self._warnings:
            self._warnings.append(warning)

    def deprecate(self, msg: str, version: str | None = None, date: str | None = None, **_more: object) -> None:
        """Warn: a host has no say in what a controller shows as deprecated."""
        end = f"in version {version}" if version else f"after {date}" if date else "in a later version"
        self.warn(f"Deprecated: {msg} It will be removed {end}.")

    def exit_json(self, **result: t.Any) -> t.NoReturn:
        warnings = [*self._warnings, *result.pop("warnings", ())]
        print("\n" + json.dumps({**result, "warnings": warnings} if warnings else result))
        sys.exit(0)

    def fail_json(self, msg: str, **result: t.Any) -> t.NoReturn:
        self.exit_json(failed=True, msg=msg, **result)


def start(texts: dict[str, str], name: str, task_json: str, paths: list[str]) -> None:
    """Run the module's ``main`` as a task has it, whose options the controller has checked.

    :param task_json: ``params``, ``check_mode``, ``diff``, and ``log`` with ``no_log``, ``facility`` and ``info``.
    :param paths: the options that are paths.
    """
    task = json.loads(task_json)
    params = task["params"]
    for path in filter(params.get, paths):
        params[path] = os.path.expanduser(os.path.expandvars(params[path]))
    AnsibleModule.params, AnsibleModule.check_mode, AnsibleModule._diff = params, task["check_mode"], task["diff"]
    log = task["log"]
    AnsibleModule._name, AnsibleModule.no_log = name, log.get("no_log", False)
    AnsibleModule._syslog_facility = log.get("facility", AnsibleModule._syslog_facility)
    AnsibleModule._target_log_info = log.get("info", "")
    for package in ("ansible", "ansible.module_utils", "ansible.module_utils.basic"):
        sys.modules[package] = types.ModuleType(package)
    vars(sys.modules["ansible.module_utils.basic"])["AnsibleModule"] = AnsibleModule
    sys.meta_path.insert(0, Sources(texts))
    __import__(name)
    sys.modules[name].main()
