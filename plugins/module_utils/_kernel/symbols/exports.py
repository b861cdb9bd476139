# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which symbols a kernel exports to modules. Private to the collection."""

from __future__ import annotations

import dataclasses
import typing as t

from ..._core.root import Root
from .table import CORE_OWNER, Symbol, SymbolTable

#: Where Module.symvers of a release lies (of Debian's and Fedora's headers, and of a kernel built on the host).
SYMVERS_PLACES = (
    "lib/modules/{}/build/Module.symvers",
    "usr/src/linux-headers-{}/Module.symvers",
    "usr/src/kernels/{}/Module.symvers",
)


@dataclasses.dataclass(frozen=True)
class Export:
    """One row of Module.symvers: who exports a symbol, to GPL modules only or to all, in which namespace."""

    name: str
    owner: str
    gpl_only: bool
    namespace: str | None


def parse_symvers_line(line: str) -> Export | None:
    """Return a row of Module.symvers (4 fields; since Linux 5.4 a fifth, the namespace); null for another line.

    The format is in the kernel's Documentation/kbuild/modules.rst; in the first kernels that had it, the namespace
    was the third field.
    """
    fields = line.rstrip("\n").split("\t")
    if len(fields) == 5 and fields[4].startswith("EXPORT_"):
        fields = [*fields[:2], fields[3], fields[4], fields[2]]
    if len(fields) < 4 or not fields[1] or not fields[3].startswith("EXPORT_"):
        return None
    namespace = fields[4] if len(fields) > 4 and fields[4] else None
    # Files have dashes where modules, once they are loaded, have underscores.
    owner = fields[2].rpartition("/")[2].replace("-", "_")
    return Export(fields[1], owner, "_GPL" in fields[3], namespace)


class Exports:
    """Answers for one kernel: from the table itself for modules, from Module.symvers for the kernel image.

    ``places`` are the files that may be its Module.symvers; the first one that can be read counts.
    """

    def __init__(self, root: Root, places: t.Sequence[str], table: SymbolTable, names: t.Collection[str]) -> None:
        self._table = table
        self._rows: dict[str, Export] | None = None
        # Kernels that list data symbols list the entries of their export tables too.
        self._in_table = table.has_prefix("__ksymtab_")
        wanted = set(names)
        for place in places:
            try:
                rows = [parse_symvers_line(line.decode("utf-8", "replace")) for line in root.lines(place)]
            except OSError:
                # No headers for this kernel here: without any, only modules' own symbols can be judged.
                continue
            self._rows = {row.name: row for row in rows if row is not None and row.name in wanted}
            break

    def verdict(self, symbol: Symbol) -> tuple[bool | None, Export | None]:
        """Return whether a symbol is exported (null: not known), and the row that says how."""
        row = (self._rows or {}).get(symbol.name)
        if symbol.owner != CORE_OWNER and symbol.type.isupper():
            # kernel/module/kallsyms.c: upper case says exported; lower case leaves open an export to GPL modules.
            return True, row
        if self._in_table:
            entries = self._table.find("__ksymtab_" + symbol.name)
            return any(entry.owner == symbol.owner for entry in entries), row
        if self._rows is not None and symbol.owner == CORE_OWNER:
            return row is not None, row
        return None, row
