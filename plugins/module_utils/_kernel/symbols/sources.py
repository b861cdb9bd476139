# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where symbols can be read, each as a ``SymbolTable``. Private to the collection.

Besides the running kernel's table there are System.map (the output of nm(1), without the addresses' ``0x``),
Module.symvers (the kernel's Documentation/kbuild/modules.rst), and of Xen what a control domain's ``/proc/xen``
shows, the ELF file ``xen-syms``, and the map beside it, whose addresses begin with ``0x``.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ..._core.root import Root
from ..image import elf
from ..image.identity import build_id, build_id_of
from ..image.xen import running_build_id as running_xen_build_id
from .exports import SYMVERS_PLACES, parse_symvers_line
from .table import CORE_OWNER, KALLSYMS, SymbolTable, read_table

SOURCES = ("kallsyms", "system_map", "module_symvers", "xen_syms")
_SYSTEM_MAP_PLACES = (
    "boot/System.map-{}",
    "lib/modules/{}/System.map",
    "lib/modules/{}/build/System.map",
    "usr/lib/debug/boot/System.map-{}",
    "usr/lib/debug/lib/modules/{}/System.map",
)
#: The symbols of the Xen below, for root of a control domain (its kernel has CONFIG_XEN_SYMS).
RUNNING_XEN = "proc/xen/xensyms"
_XEN_FOLDERS = ("boot", "usr/lib/debug/boot", "usr/lib/debug")
_XEN_FILE = re.compile(r"^xen-syms(?:-.*)?$(?<!\.config)")
_LINE = re.compile(rb"(?:0x)?(?:[0-9a-f]{16}|[0-9a-f]{8}|[ ]*\(null\)) \S \S+[\n\t]")
# What Debian installs in place of the file, which is in another package.
_PLACEHOLDER = re.compile(rb"f{8,16} B (The real System\.map is in [^\n]*)")
_MAX_BYTES = 64 << 20


@dataclasses.dataclass
class Source:
    """Symbols of one source. ``state`` is readable, restricted, absent, denied, placeholder or damaged.

    ``table`` is empty unless the state is one of the first two; ``build_id`` is null where the source has none.
    """

    kind: str
    name: str
    state: str
    reason: str | None
    table: SymbolTable
    build_id: str | None = None

    @property
    def has_addresses(self) -> bool:
        """Tell whether the symbols have addresses that can be seen."""
        return self.kind != "module_symvers" and not self.table.empty and not self.table.restricted

    @property
    def is_running(self) -> bool:
        """Tell whether it is what runs that tells its own symbols: no other list can make them wrong."""
        return self.name in ("/" + KALLSYMS, "/" + RUNNING_XEN)

    def row(self) -> dict[str, t.Any]:
        """Return the source as it appears in a result."""
        return {"kind": self.kind, "name": self.name, "state": self.state, "reason": self.reason}


def read_source(root: Root, kind: str, path: str | None, release: str) -> Source:
    """Read the symbols of one kind (of ``SOURCES``), from the file named or from where it is installed.

    ``release`` is the kernel whose files are searched. The source's state reports a file that is absent, unreadable, a
    placeholder or damaged.
    """
    if kind == "kallsyms":
        return _read_kallsyms(root, path)
    places = [path.lstrip("/")] if path else list(_places(root, kind, release))
    source = _without(kind, places, "absent", f"it does not exist in {_folders(kind)}")
    for place in places:
        found = _read_place(root, kind, place, release)
        if found.state == "readable":
            return found
        if source.state == "absent":
            # If no file is usable, the first existing one is reported.
            source = found
    return source


def running_build_id(root: Root) -> str | None:
    """Return the running kernel's build-id; null where it cannot be read."""
    try:
        return build_id(root.read_bytes("sys/kernel/notes"))
    except OSError:
        return None


def elf_table(image: bytes) -> SymbolTable:
    """Return the symbols of an ELF image as a table, in the order of their addresses.

    :raises ElfError: not ELF, or damaged.
    """
    found = sorted(elf.symbols(image), key=lambda symbol: symbol.address)
    return SymbolTable(
        "".join(f"{row.address:016x} {row.letter} {row.name}\n" for row in found).encode("utf-8", "replace")
    )


def map_table(data: bytes) -> SymbolTable | None:
    """Return the symbols of a System.map or of a map of Xen; null for bytes that are neither."""
    if not _LINE.match(data):
        return None
    return SymbolTable(data[2:].replace(b"\n0x", b"\n") if data.startswith(b"0x") else data)


def symvers_table(data: bytes) -> SymbolTable | None:
    """Return the names in a Module.symvers and who exports them; null for bytes without a row of one.

    The file has no addresses; a table without them looks as one whose addresses are hidden.
    """
    lines = []
    for line in data.decode("utf-8", "replace").splitlines():
        row = parse_symvers_line(line)
        if row is not None:
            owner = "" if row.owner == CORE_OWNER else f"\t[{row.owner}]"
            lines.append(f"0000000000000000 ? {row.name}{owner}\n")
    return SymbolTable("".join(lines).encode("utf-8", "replace")) if lines else None


def _read_kallsyms(root: Root, path: str | None) -> Source:
    name = (path or KALLSYMS).lstrip("/")
    source = Source("kallsyms", "/" + name, "readable", None, SymbolTable(b""))
    try:
        source.table = read_table(root, name)
    except OSError as error:
        source.state, source.reason = _state(error), error.strerror
        return source
    if source.table.restricted:
        source.state, source.reason = "restricted", _why_restricted(root)
    if name == KALLSYMS:
        source.build_id = running_build_id(root)
    return source


def _read_place(root: Root, kind: str, place: str, release: str) -> Source:
    try:
        data = root.read_bytes(place, _MAX_BYTES)
    except OSError as error:
        return _without(kind, [place], _state(error), error.strerror)
    placeholder = _PLACEHOLDER.match(data)
    if placeholder:
        words = placeholder.group(1).decode("utf-8", "replace").replace("<version>", release)
        return _without(kind, [place], "placeholder", f"it is a placeholder: {words}")
    table, identity = None, None
    if kind == "module_symvers":
        table = symvers_table(data)
    elif data[:4] == b"\x7fELF":
        try:
            table, identity = elf_table(data), build_id_of(elf.program_notes(data))
        except elf.ElfError as error:
            return _without(kind, [place], "damaged", error.message)
    else:
        table = map_table(data)
    if place == RUNNING_XEN:
        identity = running_xen_build_id(root)
    if table is None:
        return _without(kind, [place], "damaged", "it is not in the format of this source")
    return Source(kind, "/" + place, "readable", None, table, identity)


def _places(root: Root, kind: str, release: str) -> t.Iterator[str]:
    if kind != "xen_syms":
        templates = _SYSTEM_MAP_PLACES if kind == "system_map" else SYMVERS_PLACES
        yield from (template.format(release) for template in templates)
        return
    found = [f"{folder}/{name}" for folder in _XEN_FOLDERS for name in root.listdir(folder) if _XEN_FILE.match(name)]
    yield RUNNING_XEN
    running = running_xen_build_id(root)
    # The one that runs first, then ELF files (which have a build-id) before maps.
    yield from sorted(found, key=lambda place: (not _is_xen(root, place, running), place.endswith(".map")))


def _is_xen(root: Root, place: str, running: str | None) -> bool:
    """Tell whether a file is the Xen that runs."""
    try:
        return running is not None and build_id_of(elf.program_notes(root.read_bytes(place, _MAX_BYTES))) == running
    except (OSError, elf.ElfError):
        return False


def _folders(kind: str) -> str:
    folders = _XEN_FOLDERS if kind == "xen_syms" else ("boot", "lib/modules", "usr/src", "usr/lib/debug")
    return ", ".join("/" + folder for folder in folders)


def _without(kind: str, places: t.Sequence[str], state: str, reason: str | None) -> Source:
    return Source(kind, "/" + places[0] if places else "", state, reason, SymbolTable(b""))


def _state(error: OSError) -> str:
    return "absent" if isinstance(error, FileNotFoundError) else "denied"


def _why_restricted(root: Root) -> str:
    value = (root.read_text_or("proc/sys/kernel/kptr_restrict") or "").strip()
    if value == "2":
        return "kernel.kptr_restrict is 2: nobody sees addresses"
    return f"kernel.kptr_restrict is {value or 'set'}: only CAP_SYSLOG sees addresses, and this user lacks it"
