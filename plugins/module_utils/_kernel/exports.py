# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which symbols a kernel exports to modules. Private to the collection."""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.root import Root
from .symbols import CORE_OWNER, Symbol, SymbolTable


@dataclasses.dataclass(frozen=True)
class Export:
    """One row of Module.symvers: who exports a symbol, to GPL modules only or to all, in which namespace."""

    name: str
    owner: str
    gpl_only: bool
    namespace: str | None


def parse_symvers_line(line: str) -> Export | None:
    """Return a row of Module.symvers (4 fields; since Linux 5.4 a fifth, the namespace); null for another line.

    The format is in the kernel's Documentation/kbuild/modules.rst.
    """
    fields = line.rstrip("\n").split("\t")
    if len(fields) < 4 or not fields[3].startswith("EXPORT_"):
        return None
    namespace = fields[4] if len(fields) > 4 and fields[4] else None
    return Export(fields[1], fields[2].rpartition("/")[2], "_GPL" in fields[3], namespace)


class Exports:
    """Answers for the running kernel: from the table itself for modules, from Module.symvers for the kernel image."""

    def __init__(self, root: Root, release: str, table: SymbolTable, names: t.Collection[str]) -> None:
        self._table = table
        self._rows: dict[str, Export] | None = None
        # Kernels that list data symbols list the entries of their export tables too.
        self._in_table = table.has_prefix("__ksymtab_")
        wanted = set(names)
        try:
            lines = root.lines("lib/modules/{}/build/Module.symvers".format(release))
            rows = (parse_symvers_line(line.decode("utf-8", "replace")) for line in lines)
            self._rows = {row.name: row for row in rows if row is not None and row.name in wanted}
        except OSError:
            # No headers for this kernel are installed: only modules' own symbols can be judged.
            pass

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
