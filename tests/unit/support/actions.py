# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole action plugins on a connection that plays the host."""

from __future__ import annotations

import sys
import typing as t

from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader
from ansible.template import Templar

Result = dict[str, t.Any]
#: Gets a command and its input (None: nothing); returns what it prints on standard output.
Execute = t.Callable[[str, bytes | None], str]
#: Gets the options of a module that Ansible runs; returns its result.
RunModule = t.Callable[[dict[str, t.Any]], Result]


def run_action(
    action: type[ActionBase],
    args: dict[str, t.Any],
    execute: Execute,
    run_module: RunModule | None = None,
    check_mode: bool = False,
) -> Result:
    """Run the action of a task with these options; return its result.

    The connection has pipelining, so a module's sources come as the input of a command.

    :param run_module: what stands for a module that Ansible runs.
    """

    def execute_module(_self: ActionBase, module_args: dict[str, t.Any] | None = None, **_options: t.Any) -> Result:
        assert run_module is not None
        return run_module(args if module_args is None else module_args)

    own = {"__module__": action.__module__, "_execute_module": execute_module}
    context, loader = PlayContext(), DataLoader()
    connection = connection_loader.get("local", context, "/dev/null")
    connection.set_options(direct={"pipelining": True})

    def run_command(command: str, in_data: bytes | None = None, **_options: t.Any) -> tuple[int, bytes, bytes]:
        return 0, execute(command, in_data).encode(), b""

    connection.exec_command = run_command
    name = "tapvirt.host." + action.__module__.rpartition(".")[2]
    made = type("ActionModule", (action,), own)(
        task=Task.load({"action": name, "args": args, "timeout": 99, "check_mode": check_mode}),
        connection=connection,
        play_context=context,
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    variables = {"inventory_hostname": "h", "ansible_python_interpreter": sys.executable}
    return t.cast("Result", made.run(task_vars=variables))
