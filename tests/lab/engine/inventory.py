# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running hosts as an Ansible inventory."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from . import ssh, state
from .describe import Host

GROUPS = ("trace_hosts", "builders", "xen_hosts", "virt_hosts", "secure_hosts", "selinux_hosts")


def write(path: Path, running: list[tuple[Host, state.Started]], key: Path, known_hosts: Path) -> Path:
    """Writes the inventory. It is JSON, which is YAML, so that no value needs quoting rules of its own."""
    groups: dict[str, dict[str, dict[str, dict[str, object]]]] = {group: {"hosts": {}} for group in GROUPS}
    for host, started in running:
        variables: dict[str, object] = {
            "ansible_host": "127.0.0.1",
            "ansible_port": started.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(key),
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_common_args": shlex.join(ssh.options(known_hosts)),
        }
        if host.kind == "guest":
            variables["lab_kernel"] = started.kernel
        for group in host.groups:
            groups[group]["hosts"][host.name] = variables
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(groups, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return path
