# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection needs of ELF: its header, notes, sections and symbols. Private to the collection.

Both classes and both byte orders, as elf(5) describes them. Bytes that are not ELF, or that lie about their own
layout, raise ``ElfError``, never anything else.
"""

from __future__ import annotations

import mmap
import struct
import sys
import typing as t

from ..._core.errors import TapvirtError
from ..._core.files import open_regular

_PT_NOTE = 4
_SHT_NOTE = 7
_NOTE_HEADER_BYTES = 12
# Notes of a kernel and of its modules are a few hundred bytes; a damaged file must not make millions of them.
_NOTES_BYTES = 1 << 16
_MOST_NOTE_PLACES = 64
# Names of Linux and Xen are shorter; a damaged file must not make one of megabytes for every symbol.
_NAME_BYTES = 4096
_SHT_SYMTAB = 2
_SHT_NOBITS = 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_SHN_UNDEF, _SHN_ABS, _SHN_COMMON = 0, 0xFFF1, 0xFFF2
_STB_LOCAL, _STB_WEAK = 0, 2
_STT_OBJECT, _STT_SECTION, _STT_FILE = 1, 3, 4


class ElfError(TapvirtError):
    """The bytes are not an ELF file, or are a damaged one."""


class Note(t.NamedTuple):
    """One note: who defined it (``GNU``, ``Linux``, ``Xen``), its type there, and its content."""

    name: str
    type: int
    content: bytes


class Section(t.NamedTuple):
    """One section: name, type, where it lies in the file, and the two numbers whose meaning its type gives."""

    name: str
    type: int
    offset: int
    size: int
    link: int
    info: int
    flags: int


class ElfHeader(t.NamedTuple):
    """What an image is: ``bits`` 32 or 64, byte order, machine (a number of elf(5)), and where it is entered."""

    bits: int
    order: str
    machine: int
    entry: int


class ElfSymbol(t.NamedTuple):
    """One symbol: name, address, and the letter that nm(1) prints for it."""

    name: str
    address: int
    letter: str


def parse_notes(data: bytes, order: str = sys.byteorder) -> list[Note]:
    """Return the notes of a note section or segment (names and contents are padded to 4 bytes).

    A note that does not fit ends the list: what comes before it is good.
    """
    header = struct.Struct(_prefix(order) + "III")
    notes = []
    offset = 0
    while offset + _NOTE_HEADER_BYTES <= len(data):
        name_size, content_size, kind = header.unpack_from(data, offset)
        name_start = offset + _NOTE_HEADER_BYTES
        start = name_start + _padded(name_size)
        if start + content_size > len(data):
            break
        name = data[name_start : name_start + name_size].rstrip(b"\0").decode("ascii", "replace")
        notes.append(Note(name, kind, data[start : start + content_size]))
        offset = start + _padded(content_size)
    return notes


def program_notes(image: bytes) -> list[Note]:
    """Return the notes of an ELF image's PT_NOTE segments.

    :raises ElfError: not ELF, or damaged.
    """
    elf = _Header(image)
    notes: list[Note] = []
    for index in range(elf.program_count):
        kind, offset, size = elf.program(index)
        if kind == _PT_NOTE:
            notes += parse_notes(image[offset : offset + size], elf.order)
    return notes


def file_notes(path: str) -> list[Note]:
    """Return the notes of a whole ELF file of any size, from its segments and its sections; read no more than needed.

    A file that ends before the last of its sections is damaged.

    :raises ElfError: not ELF, or damaged.
    :raises OSError: the file cannot be read.
    """
    with open_regular(path) as stream:
        try:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ElfError("Not an ELF file.") from None
        with content:
            return _notes_of(_Header(content), content)


def _notes_of(elf: _Header, content: mmap.mmap) -> list[Note]:
    """Return the notes of an ELF file; each segment or section of notes is read up to a bound."""
    # Segments of a separate debug file describe the file that it was separated from: they need not lie in this one.
    places = [(offset, size) for kind, offset, size in map(elf.program, range(elf.program_count)) if kind == _PT_NOTE]
    if elf.sections_end > len(content):
        raise ElfError("A damaged ELF file: it ends before the last of its sections.")
    for index in range(elf.section_count):
        _name, kind, offset, size, _link, _info, _flags = elf.section(index)
        if kind != _SHT_NOBITS and offset + size > len(content):
            raise ElfError("A damaged ELF file: it ends before the last of its sections.")
        if kind == _SHT_NOTE:
            places.append((offset, size))
    notes: list[Note] = []
    for offset, size in places[:_MOST_NOTE_PLACES]:
        notes += parse_notes(content[offset : offset + min(size, _NOTES_BYTES)], elf.order)
    return notes


def read_header(image: bytes) -> ElfHeader:
    """Return what an ELF image's header says; the first 64 bytes suffice.

    :raises ElfError: not ELF, or damaged.
    """
    elf = _Header(image)
    return ElfHeader(64 if elf.wide else 32, elf.order, elf.machine, elf.entry)


def symbols(image: bytes) -> list[ElfSymbol]:
    """Return the symbols that nm(1) lists, in the order of the table; an image without a table has none.

    :raises ElfError: not ELF, or damaged.
    """
    elf = _Header(image)
    rows = sections(image)
    table = next((row for row in rows if row.type == _SHT_SYMTAB), None)
    if table is None:
        return []
    if table.link >= len(rows):
        raise ElfError("The ELF file is damaged: its symbols have no names.")
    names = image[rows[table.link].offset : rows[table.link].offset + rows[table.link].size]
    content = image[table.offset : table.offset + table.size]
    layout = struct.Struct(_prefix(elf.order) + ("IBBHQQ" if elf.wide else "IIIBBH"))
    found = []
    for words in layout.iter_unpack(content[: len(content) // layout.size * layout.size]):
        if elf.wide:
            name_start, info, _other, index, address, _size = words
        else:
            name_start, address, _size, info, _other, index = words
        name = names[name_start : name_start + _NAME_BYTES].partition(b"\0")[0].decode("ascii", "replace")
        if name and info & 15 not in (_STT_SECTION, _STT_FILE):
            found.append(ElfSymbol(name, address, _letter(info, index, rows)))
    return found


def _letter(info: int, index: int, rows: t.Sequence[Section]) -> str:
    """Return the letter of nm(1): where a symbol lies, upper case for one that other files see."""
    binding = info >> 4
    if binding == _STB_WEAK:
        letter = "v" if info & 15 == _STT_OBJECT else "w"
        return letter if index == _SHN_UNDEF else letter.upper()
    if index in (_SHN_UNDEF, _SHN_COMMON):
        return "U" if index == _SHN_UNDEF else "C"
    letter = "a"
    if index != _SHN_ABS and index < len(rows):
        place = rows[index]
        if place.flags & _SHF_EXECINSTR:
            letter = "t"
        elif not place.flags & _SHF_ALLOC:
            letter = "n"
        elif place.type == _SHT_NOBITS:
            letter = "b"
        else:
            letter = "d" if place.flags & _SHF_WRITE else "r"
    return letter if binding == _STB_LOCAL else letter.upper()


def section(image: bytes, name: str) -> bytes | None:
    """Return the content of the section of this name; None if it does not exist.

    :raises ElfError: not ELF, or damaged.
    """
    for found in sections(image):
        if found.name == name:
            return image[found.offset : found.offset + found.size]
    return None


def sections(image: bytes) -> list[Section]:
    """Return the sections of an ELF file, in the order of their numbers.

    :raises ElfError: not ELF, or damaged.
    """
    elf = _Header(image)
    rows = [elf.section(index) for index in range(elf.section_count)]
    if elf.names_index >= len(rows):
        raise ElfError("The ELF file is damaged: it has no section with the names of sections.")
    _name, _type, start, size, _link, _info, _flags = rows[elf.names_index]
    names = image[start : start + size]
    return [Section(names[row[0] : names.find(b"\0", row[0])].decode("ascii", "replace"), *row[1:]) for row in rows]


class _Header:
    def __init__(self, image: bytes | mmap.mmap) -> None:
        if image[:4] != b"\x7fELF" or len(image) < 52:
            raise ElfError("The file is not an ELF file.")
        self._image = image
        self.wide = image[4] == 2
        self.order = "big" if image[5] == 2 else "little"
        self._prefix = _prefix(self.order)
        words = self._unpack("QQQIHHHHHH" if self.wide else "IIIIHHHHHH", 24)
        self.entry, self._program_offset, self._section_offset = words[:3]
        self.machine: int = self._unpack("H", 18)[0]
        self._program_size, self.program_count = words[5:7]
        self._section_size, self.section_count, self.names_index = words[7:10]

    @property
    def sections_end(self) -> int:
        """Return where the table of sections ends in the file."""
        return int(self._section_offset + self.section_count * self._section_size)

    def program(self, index: int) -> tuple[int, int, int]:
        """Return type, file offset and file size of a segment."""
        start = self._program_offset + index * self._program_size
        if self.wide:
            kind, _flags, offset, _virtual, _physical, size = self._unpack("IIQQQQ", start)
        else:
            kind, offset, _virtual, _physical, size = self._unpack("IIIII", start)
        return kind, offset, size

    def section(self, index: int) -> tuple[int, int, int, int, int, int, int]:
        """Return name offset, type, file offset, size, link, info and flags of a section."""
        start = self._section_offset + index * self._section_size
        words = self._unpack("IIQQQQII" if self.wide else "IIIIIIII", start)
        return words[0], words[1], words[4], words[5], words[6], words[7], words[2]

    def _unpack(self, layout: str, offset: int) -> tuple[t.Any, ...]:
        try:
            return struct.unpack_from(self._prefix + layout, self._image, offset)
        except (struct.error, OverflowError) as error:
            raise ElfError(f"The ELF file is damaged: {error}.") from error


def _prefix(order: str) -> str:
    return ">" if order == "big" else "<"


def _padded(size: int) -> int:
    return (size + 3) & ~3
