# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What looking symbols up and counting them costs, against a floor measured in the same run."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time
import typing as t

TURNS = 9
COLLECTIONS = next(str(path.parent) for path in pathlib.Path(__file__).parents if path.name == "ansible_collections")
HEAD = (
    "import sys; sys.path.insert(0, {!r})\n"
    "from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root\n"
    "from ansible_collections.tapvirt.host.plugins.module_utils._kernel import symbols\n"
).format(COLLECTIONS)
NAMES = ["vfs_read", "vfs_write", "do_sys_openat2", "tcp_sendmsg", "kmem_cache_alloc_noprof", "no_such_function"]
LOOK_UP = HEAD + "table = symbols.read_table(Root())\n[table.look_up(n) for n in {!r}]\n".format(NAMES)
COUNT = HEAD + "symbols.read_table(Root()).counts()\n"


def measure(argv: t.Sequence[str]) -> tuple[float, float]:
    """Return the least wall time in milliseconds, and the most memory in MiB, of several runs."""
    best = float("inf")
    for _turn in range(TURNS):
        started = time.perf_counter()
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
        best = min(best, (time.perf_counter() - started) * 1000)
    return best, peak_of(argv)


def peak_of(argv: t.Sequence[str]) -> float:
    """Return a command's peak memory in MiB, from a parent of its own."""
    script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
    script += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-S", "-c", script, *argv], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def python(script: str) -> list[str]:
    """Return the command that runs a script in a bare interpreter."""
    return [sys.executable, "-S", "-c", script]


def main() -> None:
    """Print a table: time, times the floor, memory above an empty interpreter."""
    cat, _memory = measure(["cat", "/proc/kallsyms"])
    empty, base = measure(python(HEAD))
    rows = [("cat /proc/kallsyms", cat, 0.0), ("an interpreter with the imports alone", empty, base)]
    rows += [("look 6 names and their variants up", *measure(python(LOOK_UP)))]
    rows += [("count all, both fingerprints", *measure(python(COUNT)))]
    print("{:<40} {:>9} {:>8} {:>12}".format("", "ms", "x cat", "MiB above"))
    for name, milliseconds, memory in rows:
        above = max(memory - base, 0.0)
        print("{:<40} {:>9.1f} {:>8.2f} {:>12.1f}".format(name, milliseconds, milliseconds / cat, above))


if __name__ == "__main__":
    main()
