# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module's file says of its parameters beyond modinfo(8): access rights, flags and the value built into it.

Private to the collection. The section ``__param`` of a module is an array of ``struct kernel_param`` (the kernel's
include/linux/moduleparam.h). Its pointers are relocations: to the name, to the functions that read and set the
type, and to the variable, whose bytes in the file are the value that the parameter has unless it is set. Modules of
64-bit kernels are understood; of others nothing is said.
"""

from __future__ import annotations

import dataclasses
import struct
import typing as t

from ..image.elf import ElfError, Section, sections

_ENTRY_BYTES = 40  # name, module, operations, then 16 bits of mode, level, flags, padding, then the variable
_UNSAFE = 1
_SYMBOL_TABLE = 2
_RELOCATIONS = 4
_NO_BITS = 8

#: How the functions of kernel/params.c print a variable: its layout, and what becomes of it.
_PRINTED: dict[str, tuple[str, t.Callable[[t.Any], str]]] = {
    "param_ops_byte": ("B", str),
    "param_ops_short": ("h", str),
    "param_ops_ushort": ("H", str),
    "param_ops_int": ("i", str),
    "param_ops_uint": ("I", str),
    "param_ops_long": ("q", str),
    "param_ops_ulong": ("Q", str),
    "param_ops_ullong": ("Q", str),
    "param_ops_hexint": ("I", hex),
    "param_ops_bint": ("i", str),
    "param_ops_bool": ("?", lambda value: "Y" if value else "N"),
    "param_ops_bool_enable_only": ("?", lambda value: "Y" if value else "N"),
    "param_ops_invbool": ("?", lambda value: "N" if value else "Y"),
}


@dataclasses.dataclass(frozen=True)
class Declared:
    """A parameter in a module's file.

    ``default`` is what its file in sysfs would print; ``None``: of an unknown type. ``limit`` is the most elements of
    an array or the most bytes of a string; ``None``: neither. ``standard``: the kernel's own functions read its value
    (kernel/params.c), not functions of the module, which may take other words than its type.
    """

    mode: int
    unsafe: bool
    default: str | None
    limit: int | None = None
    standard: bool = True


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a pointer leads: an offset in a section of the file, or (section 0) a symbol of the kernel."""

    section: int
    offset: int
    symbol: str

    def after(self, count: int) -> _Place:
        return _Place(self.section, self.offset + count, "")


def declared_parameters(image: bytes) -> dict[str, Declared]:
    """Return the parameters of a module's file, by name as it is written; empty for a kernel that is not 64-bit.

    :raises ElfError: the file is damaged.
    """
    if image[4:5] != b"\2":
        return {}
    module = _Object(image)
    found: dict[str, Declared] = {}
    for start in module.entries("__param", _ENTRY_BYTES):
        name, operations = module.pointer(start), module.pointer(start.after(16))
        mode, _level, flags = module.unpack("HbB", start.after(24))
        if name is not None:
            symbol = "" if operations is None else operations.symbol
            default = _printed(module, symbol, start.after(32))
            limit, standard = _limit(module, symbol, start.after(32)), _is_standard(module, symbol, start.after(32))
            found[module.text(name)] = Declared(mode, bool(flags & _UNSAFE), default, limit, standard)
    return found


def _limit(module: _Object, operations: str, pointer: _Place) -> int | None:
    """Return the most elements of an array or the most bytes of a string; ``None``: the type has no such limit."""
    variable = module.pointer(pointer)
    if variable is None or not variable.section:
        return None
    # The first member: max of struct kparam_array, maxlen of struct kparam_string, which counts the zero at the end.
    if operations == "param_array_ops":
        return int(module.unpack("I", variable)[0])
    return max(int(module.unpack("I", variable)[0]) - 1, 0) if operations == "param_ops_string" else None


def _is_standard(module: _Object, operations: str, pointer: _Place) -> bool:
    """Tell whether the kernel's own functions set a parameter (for an array: each element)."""
    variable = module.pointer(pointer)
    if operations == "param_array_ops" and variable is not None and variable.section:
        elements = module.pointer(variable.after(16))
        operations = "" if elements is None else elements.symbol
    return operations in _PRINTED or operations in ("param_ops_charp", "param_ops_string")


def _printed(module: _Object, operations: str, pointer: _Place) -> str | None:
    """Return what the functions of a type print of the variable that a pointer leads to; null: they are unknown."""
    variable = module.pointer(pointer)
    if variable is None or not variable.section:
        return None
    if operations in _PRINTED:
        layout, shown = _PRINTED[operations]
        return shown(module.unpack(layout, variable)[0])
    if operations == "param_ops_charp":
        text = module.pointer(variable)
        return "(null)" if text is None else module.text(text)
    if operations == "param_ops_string":
        buffer = module.pointer(variable.after(8))
        return None if buffer is None else module.text(buffer)
    if operations == "param_array_ops":
        return _printed_array(module, variable)
    return None


def _printed_array(module: _Object, array: _Place) -> str | None:
    """Return the elements of a ``struct kparam_array``: all, or as many as the variable that counts them says."""
    count, step = module.unpack("II", array)
    counter, operations, elements = (module.pointer(array.after(offset)) for offset in (8, 16, 24))
    if operations is None or elements is None or operations.symbol not in _PRINTED:
        return None
    if counter is not None:
        count = min(count, module.unpack("I", counter)[0])
    module.check(elements, count * step)
    layout, shown = _PRINTED[operations.symbol]
    return ",".join(shown(module.unpack(layout, elements.after(step * index))[0]) for index in range(count))


class _Object:
    """A relocatable ELF64 file, before any relocation is applied."""

    def __init__(self, image: bytes) -> None:
        self._image = image
        self._order = ">" if image[5:6] == b"\2" else "<"
        self._sections = sections(image)
        self._symbols = next((found for found in self._sections if found.type == _SYMBOL_TABLE), None)
        self._pointers: dict[int, dict[int, tuple[int, int]]] = {}

    def entries(self, name: str, size: int) -> t.Iterator[_Place]:
        """Yield where each entry of a section begins; nothing where there is no such section."""
        for index, found in enumerate(self._sections):
            if found.name == name and found.type != _NO_BITS:
                for offset in range(0, found.size - size + 1, size):
                    yield _Place(index, offset, "")

    def unpack(self, layout: str, place: _Place) -> tuple[t.Any, ...]:
        """Return the values at a place; what is not in the file is zero when the module is loaded."""
        section = self._section(place.section)
        if section.type == _NO_BITS:
            return struct.unpack(self._order + layout, bytes(struct.calcsize(self._order + layout)))
        return self._unpack(layout, section.offset + place.offset)

    def check(self, place: _Place, size: int) -> None:
        """Refuse a variable that is larger than its section.

        :raises ElfError: it is.
        """
        if place.offset + size > self._section(place.section).size:
            raise ElfError(f"The ELF file is damaged: a variable of {size} bytes does not fit its section.")

    def text(self, place: _Place) -> str:
        """Return the text that begins at a place, up to its zero byte."""
        section = self._section(place.section)
        if section.type == _NO_BITS:
            return ""
        data = self._image[section.offset + place.offset : section.offset + section.size]
        return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def pointer(self, place: _Place) -> _Place | None:
        """Return where the pointer at a place leads; null when nothing fills it."""
        if place.section not in self._pointers:
            self._pointers[place.section] = dict(self._relocations(place.section))
        relocation = self._pointers[place.section].get(place.offset)
        if relocation is None or self._symbols is None:
            return None
        symbol, addend = relocation
        name, _info, _other, section, value, _size = self._unpack("IBBHQQ", self._symbols.offset + symbol * 24)
        names = self._section(self._symbols.link)
        start = names.offset + name
        symbol_name = self._image[start : self._image.find(b"\0", start)].decode("ascii", "replace")
        return _Place(section, value + addend, symbol_name)

    def _relocations(self, target: int) -> t.Iterator[tuple[int, tuple[int, int]]]:
        for section in self._sections:
            if section.type == _RELOCATIONS and section.info == target:
                for start in range(section.offset, section.offset + section.size - 23, 24):
                    offset, info, addend = self._unpack("QQq", start)
                    yield offset, (info >> 32, addend)

    def _section(self, index: int) -> Section:
        if not 0 < index < len(self._sections):
            raise ElfError(f"The ELF file is damaged: it has no section {index}.")
        return self._sections[index]

    def _unpack(self, layout: str, offset: int) -> tuple[t.Any, ...]:
        try:
            return struct.unpack_from(self._order + layout, self._image, offset)
        except (struct.error, OverflowError) as error:
            raise ElfError(f"The ELF file is damaged: {error}.") from error
