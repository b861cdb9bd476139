# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands for a managed host in the benchmarks: the system's Python, and a module as Ansible would send it.

The interpreter is the system's, as on a managed host, without this environment's settings.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
import typing as t

from ansible.executor.module_common import modify_module
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

HOST_PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_COLLECTIONS = next(path for path in sys.path if pathlib.Path(path, "ansible_collections/tapvirt/host").is_dir())
COLLECTION = pathlib.Path(_COLLECTIONS, "ansible_collections", "tapvirt", "host")
_EMPTY = """#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule
AnsibleModule(argument_spec={}, supports_check_mode=True).exit_json()
"""

init_plugin_loader([_COLLECTIONS])  # before anything is imported from there


def packed_empty(folder: pathlib.Path) -> pathlib.Path:
    """Write the packed file of a module that does nothing."""
    (folder / "empty.py").write_text(_EMPTY, encoding="utf-8")
    return _pack("empty", folder / "empty.py", {}, folder / "packed-empty.py")


def packed(name: str, arguments: dict[str, t.Any], target: pathlib.Path) -> pathlib.Path:
    """Write the packed file (AnsiballZ) of a module of this collection."""
    return _pack("tapvirt.host." + name, COLLECTION / "plugins" / "modules" / (name + ".py"), arguments, target)


def _pack(name: str, path: pathlib.Path, arguments: dict[str, t.Any], target: pathlib.Path) -> pathlib.Path:
    built = modify_module(
        module_name=name,
        module_path=str(path),
        module_args={**arguments, "_ansible_check_mode": False, "_ansible_remote_tmp": str(target.parent)},
        templar=Templar(DataLoader()),
        task_vars={"ansible_python_interpreter": HOST_PYTHON},
        module_compression="ZIP_DEFLATED",
    )
    target.write_bytes(built.b_module_data)
    return target


def sources(name: str, arguments: dict[str, t.Any], target: pathlib.Path) -> pathlib.Path:
    """Write what the transport ``source`` sends for a module of this collection."""
    from ansible_collections.tapvirt.host.plugins.plugin_utils import _source

    full = "ansible_collections.tapvirt.host.plugins.modules." + name
    target.write_bytes(_source.payload(full, arguments))
    return target
