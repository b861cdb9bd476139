# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules say of themselves: types and descriptions of parameters, of loadable and of built-in modules.

Private to the collection. Sources are the ``.modinfo`` section of a module's file, ``modules.builtin.modinfo`` (the
same, ``module.`` before each entry), ``modules.dep`` and ``modules.builtin`` of the running kernel's release.
"""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import re
import typing as t
import zlib

from .._core.command import CommandMissing, run
from .._core.root import Root
from .elf import ElfError, section
from .parameter_table import Declared, declared_parameters

_MODULE_FILE = re.compile(r"^(?:[^\s:]*/)?([^/\s:]+)\.ko(?:\.(?:xz|gz|zst|bz2))?(?::|$)", re.MULTILINE)

_UNPACKED_HERE = (".ko", ".ko.xz", ".ko.gz")
# A damaged file is one without parameters: the kernel would not load it either, and says so when it is tried.
_DAMAGED = (OSError, EOFError, ElfError, lzma.LZMAError, zlib.error)

#: Built-in modules whose parameters appear under another name: MODULE_PARAM_PREFIX in the kernel's sources.
#: ``modules.builtin.modinfo`` has the name of the source file, sysfs and the command line have the prefix.
SOURCE_NAMES = {
    "8250_core": ("8250_rsa",),
    "block": ("events",),
    "damon_lru_sort": ("lru_sort",),
    "damon_reclaim": ("reclaim",),
    "damon_stat": ("stat",),
    "kfence": ("core",),
    "mmcblk": ("block",),
    "module": ("main", "signing", "dups"),
    "rcupdate": ("update",),
    "rcutree": ("tree",),
    "xen": ("balloon", "events", "events_base", "grant_table"),
}


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """A parameter as its module declares it. Either may be null: some have a type only, some a description only."""

    type: str | None
    description: str | None


def canonical(name: str) -> str:
    """Return a module's or parameter's name as sysfs has it: the kernel takes ``-`` and ``_`` as the same."""
    return name.replace("-", "_")


def parse_modinfo(data: bytes) -> list[tuple[str, str]]:
    """Return the entries of a ``.modinfo`` section: keys may repeat, values may hold line ends."""
    pairs = (entry.decode("utf-8", "replace").partition("=") for entry in data.split(b"\0") if entry)
    return [(key, value) for key, equals, value in pairs if equals]


def parameters_of(entries: t.Iterable[tuple[str, str]]) -> dict[str, ParameterInfo]:
    """Return the parameters that entries declare; ``parm`` and ``parmtype`` are joined by the name before the colon."""
    types: dict[str, str] = {}
    descriptions: dict[str, str] = {}
    for key, value in entries:
        name, _colon, rest = value.partition(":")
        if key == "parmtype":
            types[canonical(name)] = rest
        elif key == "parm":
            descriptions[canonical(name)] = rest
    return {name: ParameterInfo(types.get(name), descriptions.get(name)) for name in sorted({*types, *descriptions})}


def parse_builtin_modinfo(data: bytes) -> dict[str, list[tuple[str, str]]]:
    """Return the entries of ``modules.builtin.modinfo``, by module."""
    modules: dict[str, list[tuple[str, str]]] = {}
    for key, value in parse_modinfo(data):
        module, dot, field = key.partition(".")
        if dot:
            modules.setdefault(canonical(module), []).append((field, value))
    return modules


class InstalledModules:
    """The modules installed for one kernel release; each file is read once, when first asked for."""

    def __init__(self, root: Root, release: str) -> None:
        self._root = root
        self._directory = "lib/modules/{}".format(release)
        self._dependencies: str | None = None
        self._files: dict[str, str | None] = {}
        self._builtin: dict[str, list[tuple[str, str]]] | None = None
        self._known: dict[str, dict[str, ParameterInfo]] = {}
        self._unpacked: tuple[str, bytes] = ("", b"")

    def file_of(self, module: str) -> str | None:
        """Return the file of a loadable module, relative to the root; null when there is none."""
        if module not in self._files:
            self._files[module] = self._search(module)
        return self._files[module]

    def names(self) -> list[str]:
        """Return every loadable and built-in module that is named."""
        return sorted({*_names(self._loadable()), *self._built_in(), *self._listed_built_in()})

    def is_built_in(self, module: str) -> bool:
        """Tell whether the kernel image holds a module, as far as the installed lists say."""
        return module in self._listed_built_in() or any(name in self._built_in() for name in _sources(module))

    def parameters(self, module: str) -> dict[str, ParameterInfo]:
        """Return the parameters that a module declares; empty where nothing is installed that could tell."""
        if module not in self._known:
            path = self.file_of(module)
            if path is not None:
                # Some are declared without a word for modinfo(8) (kvm_intel.vmentry_l1d_flush).
                silent = {name: ParameterInfo(None, None) for name in self.declared(module)}
                self._known[module] = {**silent, **parameters_of(self._entries(path))}
            else:
                entries = [entry for name in _sources(module) for entry in self._built_in().get(name, [])]
                self._known[module] = parameters_of(entries)
        return self._known[module]

    def declared(self, module: str) -> dict[str, Declared]:
        """Return what a loadable module's file says beyond modinfo(8); empty where Python cannot unpack it."""
        path = self.file_of(module)
        if path is None or not path.endswith(_UNPACKED_HERE):
            return {}
        try:
            declared = declared_parameters(self._image(path))
        except _DAMAGED:
            return {}
        return {canonical(name): parameter for name, parameter in declared.items()}

    def _search(self, module: str) -> str | None:
        # Either sign may stand in the name; the list is searched as it is, as it has thousands of lines.
        name = "[-_]".join(re.escape(part) for part in canonical(module).split("_"))
        match = re.search(r"^(?:\S*/)?{}\.ko(?:\.(?:xz|gz|zst|bz2))?(?=:)".format(name), self._loadable(), re.MULTILINE)
        if match is None:
            return None
        path = match.group(0)
        return path.lstrip("/") if path.startswith("/") else "{}/{}".format(self._directory, path)

    def _loadable(self) -> str:
        if self._dependencies is None:
            self._dependencies = self._root.read_text_or(self._directory + "/modules.dep") or ""
        return self._dependencies

    def _built_in(self) -> dict[str, list[tuple[str, str]]]:
        if self._builtin is None:
            text = self._root.read_text_or(self._directory + "/modules.builtin.modinfo") or ""
            self._builtin = parse_builtin_modinfo(text.encode("utf-8", "surrogateescape"))
        return self._builtin

    def _listed_built_in(self) -> set[str]:
        return _names(self._root.read_text_or(self._directory + "/modules.builtin") or "")

    def _entries(self, path: str) -> list[tuple[str, str]]:
        try:
            if not path.endswith(_UNPACKED_HERE):
                return _entries_from_command(self._root.path(path))
            return parse_modinfo(section(self._image(path), ".modinfo") or b"")
        except _DAMAGED:
            return []

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


def _sources(module: str) -> tuple[str, ...]:
    return (module, *SOURCE_NAMES.get(module, ()))


def _names(text: str) -> set[str]:
    """Return the modules that the lines of modules.dep or modules.builtin begin with."""
    return {canonical(name) for name in _MODULE_FILE.findall(text)}


def entries_printed(types: str, descriptions: str) -> list[tuple[str, str]]:
    """Return the entries that modinfo(8) prints, ended by zeros, as ``-F parmtype`` and ``-F parm``.

    After a description it prints the type in brackets, also where there is no description.
    """
    entries = [("parmtype", entry) for entry in types.split("\0") if entry]
    known = dict(entry.split(":", 1) for _key, entry in entries if ":" in entry)
    for entry in descriptions.split("\0"):
        name, _colon, description = entry.partition(":")
        if name in known and description.endswith(" ({})".format(known[name])):
            description = description[: -len(known[name]) - 3]
        if description:
            entries.append(("parm", "{}:{}".format(name, description)))
    return entries


def _entries_from_command(path: str) -> list[tuple[str, str]]:
    """Ask modinfo(8), where Python cannot unpack the file (Zstandard before Python 3.14)."""
    try:
        types, descriptions = (run(["modinfo", "-0", "-F", field, path]).stdout for field in ("parmtype", "parm"))
        return entries_printed(types, descriptions)
    except CommandMissing:
        # Then the value in sysfs shows what it can of the type.
        return []
