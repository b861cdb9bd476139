# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs a host to judge probe points from its own facts, against reading its symbol table with cat."""

from __future__ import annotations

import pathlib
import subprocess
import tempfile

from host import HOST_PYTHON, show, sources

ONE = ['kernel.function("vfs_read").call']
TEN = [f'kernel.function("vfs_{name}")' for name in "open write fsync statx rename mkdir link unlink".split()]
TEN += ["timer.s(1)", 'kernel.trace("sched:sched_switch")']
HUNDRED = TEN + [f'kprobe.function("ksys_{number}")' for number in range(90)]


def main() -> None:
    """Print one table: time, times cat, memory above cat's."""
    asked = {
        "1 probe point": ONE,
        "10": TEN,
        "100, 90 absent": HUNDRED,
        "a wildcard": [ONE[0].replace("read", "*")],
    }
    with tempfile.TemporaryDirectory() as folder:
        commands = [["cat", "/proc/kallsyms"]]
        for number, probes in enumerate(asked.values()):
            options = {"probes": probes, "limit": 10, "list": False, "kernel": None, "variables": False, "match": None}
            options.update(store="/nowhere", timeout_seconds=1, transport="source")
            options.update(build_id=None, module_build_ids=None, debuginfod=None)
            target = pathlib.Path(folder, f"{number}.py")
            commands.append([HOST_PYTHON, "-IS", str(sources("stap_probe_info", options, target))])
            done = subprocess.run(commands[-1], capture_output=True, check=False)
            if b'"failed": true' in done.stdout:
                raise SystemExit(done.stdout.decode())
        show("x cat", ["cat /proc/kallsyms", *("stap_probe_info, " + what for what in asked)], commands, 0)


if __name__ == "__main__":
    main()
