# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what probe points are resolved against: a host's symbols, its modules, and what its kernel refuses to probe.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import re
import typing as t

from ..._core.root import Root
from ..._kernel.image.config import read_config
from ..._kernel.image.identity import build_id
from ..._kernel.symbols.probeability import Probeability
from ..._kernel.symbols.table import Symbol, SymbolTable, read_table

_NEAREST = 3
_NEAREST_FOR_PROBES = 3
#: verdict, reason, nearest, points
Answer = t.Tuple[str, str, t.List[str], t.List[Symbol]]
if t.TYPE_CHECKING:
    from ..._kernel.symbols.table import Found


@dataclasses.dataclass
class HostFacts:
    """What a host tells of its functions.

    ``modules`` are loaded, ``builtin`` are those that the kernel image holds (None: the host has no list of them).
    """

    root: Root
    table: SymbolTable
    modules: frozenset[str]
    builtin: frozenset[str] | None
    probes: Probeability
    found: dict[str, Found] = dataclasses.field(default_factory=dict)
    nearest_left: int = _NEAREST_FOR_PROBES

    def look_up(self, name: str) -> Found:
        """Return the symbols of a name and its variants; those that ``resolve_all`` asks for were found at once."""
        return self.found[name] if name in self.found else self.table.look_up(name)

    def nearest(self, name: str, owner: str) -> list[str]:
        """Return the functions most like an absent one, for the first few of a task: each takes a walk."""
        self.nearest_left -= 1
        return self.table.nearest(name, _NEAREST, owner) if self.nearest_left >= 0 else []


def module_build_ids(root: Root, names: t.Iterable[str]) -> dict[str, str]:
    """Return the build-ids of loaded modules, by name; ``names`` may have wildcards."""
    wanted = {name.replace("-", "_") for name in names}
    loaded = [name for name in root.listdir("sys/module") if any(fnmatch.fnmatchcase(name, one) for one in wanted)]
    found = {}
    for name in loaded:
        with contextlib.suppress(OSError):
            key = build_id(root.read_bytes(f"sys/module/{name}/notes/.note.gnu.build-id"))
            if key is not None:
                found[name] = key
    return found


def read_facts(root: Root, release: str) -> HostFacts:
    """Read what resolution needs. The symbol table is read once, however many probes are asked for."""
    builtin = root.read_text_or(f"lib/modules/{release}/modules.builtin")
    modules = root.read_text_or("proc/modules") or ""
    options = read_config(root, release)
    table = read_table(root)
    return HostFacts(
        root=root,
        table=table,
        modules=frozenset(line.split(" ", 1)[0] for line in modules.splitlines()),
        builtin=None
        if builtin is None
        else frozenset(re.findall(r"([^/\n]+)\.ko$", builtin.replace("-", "_"), re.MULTILINE)),
        probes=Probeability(root, table, None if options is None else bool(options.get("CONFIG_KPROBES"))),
    )
