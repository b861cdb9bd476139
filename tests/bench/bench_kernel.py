# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What symbols and facts cost a host, against a floor measured in the same run."""

from __future__ import annotations

import pathlib
import tempfile

from host import COLLECTION, HOST_PYTHON, packed, packed_empty, show, sources

HEAD = (
    f"import sys; sys.path.insert(0, {str(COLLECTION.parents[2])!r})\n"
    "from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root\n"
    "from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols import table as symbols\n"
)
NAMES = ["vfs_read", "vfs_write", "do_sys_openat2", "tcp_sendmsg", "kmem_cache_alloc_noprof", "no_such_function"]
LOOK_UP = HEAD + f"table = symbols.read_table(Root())\n[table.look_up(n) for n in {NAMES!r}]\n"
COUNT = HEAD + "symbols.read_table(Root()).counts()\n"


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


if __name__ == "__main__":
    main()
