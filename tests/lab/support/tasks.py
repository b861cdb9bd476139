# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of playbooks that several lab tests run."""

from __future__ import annotations

import typing as t

Task = dict[str, t.Any]


def module_task(name: str, module: str, args: t.Mapping[str, t.Any], **keywords: t.Any) -> Task:
    """Return a task that runs a module of this collection; ``keywords`` are other keywords of the task."""
    return {"name": name, f"tapvirt.host.{module}": dict(args), **keywords}


def shell_task(name: str, command: str) -> Task:
    """Return a task that runs a shell command and never counts as changed."""
    return {"name": name, "ansible.builtin.shell": command, "changed_when": False}


def role_task(role: str, variables: t.Mapping[str, t.Any]) -> Task:
    """Return a task that imports a role of this collection with variables."""
    return {
        "name": "Prepare",
        "ansible.builtin.import_role": {"name": f"tapvirt.host.{role}"},
        "vars": dict(variables),
    }


def trace_task(**variables: t.Any) -> Task:
    """Return a task that includes the role trace with variables, whose names get the prefix ``trace_``."""
    return {
        "name": "Trace",
        "ansible.builtin.include_role": {"name": "tapvirt.host.trace"},
        "vars": {f"trace_{name}": value for name, value in variables.items()},
    }


# For a build for the running kernel of a host: read its facts, then give stap_module these options.
FACTS = module_task("Facts", "kernel_facts", {"gather_subset": ["min"]})
RUNNING_KERNEL = {
    "kernel": "{{ ansible_facts.tapvirt_kernel.release }}",
    "kernel_version": "{{ ansible_facts.tapvirt_kernel.version }}",
}
