# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands for a managed host in the benchmarks: the system's Python, a module as Ansible would send it, a table.

The interpreter is the system's, as on a managed host, without this environment's settings.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import time
import typing as t

from ansible.executor.module_common import modify_module
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

HOST_PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_COLLECTIONS = next(path for path in sys.path if pathlib.Path(path, "ansible_collections/tapvirt/host").is_dir())
COLLECTION = pathlib.Path(_COLLECTIONS, "ansible_collections", "tapvirt", "host")
TURNS = 15
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
    from ansible_collections.tapvirt.host.plugins.plugin_utils._transport import pipelined

    full = "ansible_collections.tapvirt.host.plugins.modules." + name
    target.write_bytes(pipelined.payload(full, arguments))
    return target


def measure(commands: t.Sequence[t.Sequence[str]]) -> list[tuple[float, float]]:
    """Return the least wall time in milliseconds of each, run in turns, and the most memory in MiB."""
    best = [float("inf")] * len(commands)
    for _turn in range(TURNS):
        for number, argv in enumerate(commands):
            started = time.perf_counter()
            subprocess.run(argv, env=CLEAN, stdout=subprocess.DEVNULL, check=True)
            best[number] = min(best[number], (time.perf_counter() - started) * 1000)
    return list(zip(best, map(peak_of, commands), strict=True))


def peak_of(argv: t.Sequence[str]) -> float:
    """Return a command's peak memory in MiB, from a parent of its own."""
    script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
    script += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([HOST_PYTHON, "-S", "-c", script, *argv], env=CLEAN, capture_output=True, check=True)
    return int(done.stdout) / 1024


def show(unit: str, names: t.Sequence[str], commands: t.Sequence[t.Sequence[str]], base: int) -> None:
    """Measure commands and print a table; the first one's time is the unit, memory is above that of ``base``."""
    figures = measure(commands)
    print(f"{'':<40} {'ms':>9} {unit:>8} {'MiB above':>12}")
    for name, (milliseconds, memory) in zip(names, figures, strict=True):
        above = max(memory - figures[base][1], 0.0)
        print(f"{name:<40} {milliseconds:>9.1f} {milliseconds / figures[0][0]:>8.2f} {above:>12.1f}")
