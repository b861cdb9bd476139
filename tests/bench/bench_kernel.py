# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What symbols and facts cost a host, against a floor measured in the same run."""

from __future__ import annotations

import pathlib
import subprocess
import tempfile
import time
import typing as t

from host import CLEAN, COLLECTION, HOST_PYTHON, packed, packed_empty, sources

TURNS = 15
HEAD = (
    "import sys; sys.path.insert(0, {!r})\n"
    "from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root\n"
    "from ansible_collections.tapvirt.host.plugins.module_utils._kernel import symbols\n"
).format(str(COLLECTION.parents[2]))
NAMES = ["vfs_read", "vfs_write", "do_sys_openat2", "tcp_sendmsg", "kmem_cache_alloc_noprof", "no_such_function"]
LOOK_UP = HEAD + "table = symbols.read_table(Root())\n[table.look_up(n) for n in {!r}]\n".format(NAMES)
COUNT = HEAD + "symbols.read_table(Root()).counts()\n"


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


def python(script: str) -> list[str]:
    """Return the command that runs a script in a bare interpreter."""
    return [HOST_PYTHON, "-S", "-c", script]


def main() -> None:
    """Print two tables: time, times the floor, memory above an empty interpreter."""
    names = ["cat /proc/kallsyms", "an interpreter with the imports alone"]
    names += ["look 6 names and their variants up", "count all, both fingerprints"]
    show("x cat", names, [["cat", "/proc/kallsyms"], python(HEAD), python(LOOK_UP), python(COUNT)], 1)
    with tempfile.TemporaryDirectory() as folder:
        top = pathlib.Path(folder)
        options = {"gather_subset": ["all"], "config": [], "transport": "module"}
        runs = [packed_empty(top), packed("kernel_facts", options, top / "packed.py")]
        commands = [[HOST_PYTHON, str(path)] for path in runs]
        commands.append([HOST_PYTHON, "-IS", str(sources("kernel_facts", options, top / "sources.py"))])
        show(
            "x empty", ["an empty module", "kernel_facts, packed", "kernel_facts, its sources as they are"], commands, 0
        )


def show(unit: str, names: t.Sequence[str], commands: t.Sequence[t.Sequence[str]], base: int) -> None:
    """Measure commands and print a table; the first one's time is the unit, memory is above that of ``base``."""
    figures = measure(commands)
    print("{:<40} {:>9} {:>8} {:>12}".format("", "ms", unit, "MiB above"))
    for name, (milliseconds, memory) in zip(names, figures, strict=True):
        above = max(memory - figures[base][1], 0.0)
        print("{:<40} {:>9.1f} {:>8.2f} {:>12.1f}".format(name, milliseconds, milliseconds / figures[0][0], above))


if __name__ == "__main__":
    main()
