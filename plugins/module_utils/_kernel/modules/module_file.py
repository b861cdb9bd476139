# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading what a loadable module's file says of itself, packed as it may be. Private to the collection."""

from __future__ import annotations

import gzip
import lzma
import zlib

from ..._core.command import CommandMissing, run
from ..._core.root import Root
from ..image.elf import ElfError, section
from .kernel_param_section import Declared, declared_parameters
from .modinfo import parse_modinfo

_UNPACKED_HERE = (".ko", ".ko.xz", ".ko.gz")
# A damaged file is one without parameters: the kernel would not load it either, and says so when it is tried.
_DAMAGED = (OSError, EOFError, ElfError, lzma.LZMAError, zlib.error)


class ModuleFiles:
    """Files of modules, by their path below a root."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._unpacked: tuple[str, bytes] = ("", b"")

    def entries(self, path: str) -> list[tuple[str, str]]:
        """Return the entries for modinfo(8)."""
        try:
            if not path.endswith(_UNPACKED_HERE):
                return _entries_from_command(self._root.path(path))
            return parse_modinfo(section(self._image(path), ".modinfo") or b"")
        except _DAMAGED:
            return []

    def declared(self, path: str) -> dict[str, Declared]:
        """Return what the file says of parameters beyond modinfo(8); empty where Python cannot unpack it."""
        if not path.endswith(_UNPACKED_HERE):
            return {}
        try:
            return declared_parameters(self._image(path))
        except _DAMAGED:
            return {}

    def _image(self, path: str) -> bytes:
        """Return a file, unpacked; the last one is kept, as its reader often asks for another part of it."""
        if self._unpacked[0] != path:
            data = self._root.read_bytes(path)
            if path.endswith(".xz"):
                data = lzma.decompress(data)
            elif path.endswith(".gz"):
                data = gzip.decompress(data)
            self._unpacked = (path, data)
        return self._unpacked[1]


def entries_printed(types: str, descriptions: str) -> list[tuple[str, str]]:
    """Return the entries that modinfo(8) prints, ended by zeros, as ``-F parmtype`` and ``-F parm``.

    After a description it prints the type in brackets, also where there is no description.
    """
    entries = [("parmtype", entry) for entry in types.split("\0") if entry]
    known = dict(entry.split(":", 1) for _key, entry in entries if ":" in entry)
    for entry in descriptions.split("\0"):
        name, _colon, description = entry.partition(":")
        if name in known and description.endswith(f" ({known[name]})"):
            description = description[: -len(known[name]) - 3]
        if description:
            entries.append(("parm", f"{name}:{description}"))
    return entries


def _entries_from_command(path: str) -> list[tuple[str, str]]:
    """Ask modinfo(8), where Python cannot unpack the file (Zstandard before Python 3.14)."""
    try:
        types, descriptions = (run(["modinfo", "-0", "-F", field, path]).stdout for field in ("parmtype", "parm"))
        return entries_printed(types, descriptions)
    except CommandMissing:
        # Then the value in sysfs shows what it can of the type.
        return []
