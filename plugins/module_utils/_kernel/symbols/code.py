# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands at the beginning of a function of the running kernel: instructions, and places that it patches itself.

Private to the collection. The machine code is read through /proc/kcore (an ELF file of the kernel's memory, proc(5)),
the places that the kernel patches from its own tables: ``struct jump_entry`` (include/linux/jump_label.h, with
relative addresses) and ``struct static_call_site`` (include/linux/static_call_types.h). Of x86_64 only.
"""

from __future__ import annotations

import bisect
import os
import re
import struct
import typing as t

from ..._core.root import Root
from ..procfs.mounts import mount_point

if t.TYPE_CHECKING:
    from .table import SymbolTable

_KCORE = "proc/kcore"
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_LOAD = 1
_MOST_SEGMENTS = 4096
_WINDOW = 1 << 16
_MOST_TABLE_BYTES = 4 << 20
# How long the longest instruction of interest is, after the mark of an indirect branch's target.
_CODE_BYTES = 12
_BRANCH_TARGETS = (bytes.fromhex("f30f1efa"), bytes.fromhex("0f1f40d6"))
_TRAPS = (bytes.fromhex("0f0b"),)
# What a patched place can look like: jumps, calls, and the two instructions that do nothing.
_PATCHABLE = tuple(bytes.fromhex(code) for code in ("6690", "0f1f440000", "eb", "e9", "e8"))
_PADDING = b"\xcc"
_IDLE = b"\x90"
# name of the table's section in a module, its marks in the kernel image, bytes of an entry
_TABLES = (
    ("__jump_table", "__start___jump_table", "__stop___jump_table", 16),
    (".static_call_sites", "__start_static_call_sites", "__stop_static_call_sites", 8),
)


class KernelMemory:
    """The kernel's own memory, read in windows; nothing is read before the first question."""

    def __init__(self, root: Root) -> None:
        self._path = root.path(_KCORE)
        self._segments: list[tuple[int, int, int]] | None = None
        self._descriptor = -1
        self._window: tuple[int, bytes] = (0, b"")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, address: int, count: int) -> bytes | None:
        """Return ``count`` bytes, or null where there is no memory or this user may not read it."""
        start, data = self._window
        if not start <= address <= start + len(data) - count:
            start = address - address % _WINDOW
            data = self._read(start, _WINDOW)
            if len(data) == _WINDOW:
                # The window may end in the middle of what is asked for.
                data += self._read(start + _WINDOW, count)
            self._window = start, data
        found = data[address - start : address - start + count]
        return found if len(found) == count else self._read(address, count) or None

    def _read(self, address: int, count: int) -> bytes:
        for start, end, offset in self._known_segments():
            if start <= address < end:
                try:
                    return os.pread(self._descriptor, min(count, end - address), offset + address - start)
                except OSError:
                    return b""
        return b""

    def _known_segments(self) -> list[tuple[int, int, int]]:
        if self._segments is None:
            self._segments = []
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                self._segments = list(self._read_segments())
            except (OSError, struct.error):
                pass
        return self._segments

    def _read_segments(self) -> t.Iterator[tuple[int, int, int]]:
        header = _HEADER.unpack(os.pread(self._descriptor, _HEADER.size, 0))
        place, size, number = header[4], header[8], header[9]
        for index in range(min(number, _MOST_SEGMENTS)):
            row = _SEGMENT.unpack(os.pread(self._descriptor, _SEGMENT.size, place + index * size))
            if row[0] == _LOAD:
                yield row[3], row[3] + row[6], row[2]


class Sections:
    """Where a loaded module's sections lie (sysfs, ``/sys/module/M/sections``); empty where that cannot be read."""

    def __init__(self, root: Root, module: str) -> None:
        folder = f"sys/module/{module}/sections"
        rows = []
        for name in root.listdir(folder):
            text = root.read_text_or(f"{folder}/{name}") or ""
            if re.match(r"0x[0-9a-f]+\s*$", text) and int(text, 16):
                rows.append((int(text, 16), name))
        self._rows = sorted(rows)

    def of(self, address: int) -> str | None:
        """Return the section that an address lies in: the last one that begins at or before it."""
        index = bisect.bisect_right(self._rows, (address, "\U0010ffff")) - 1
        return self._rows[index][1] if index >= 0 else None

    def span(self, name: str) -> tuple[int, int] | None:
        """Return where a section begins and where the next one does."""
        starts = [start for start, _name in self._rows]
        for start, found in self._rows:
            if found == name:
                after = bisect.bisect_right(starts, start)
                return (start, starts[after]) if after < len(starts) else None
        return None


class Text:
    """Questions about the first instruction of functions."""

    def __init__(self, root: Root, table: SymbolTable) -> None:
        self._root = root
        self._table = table
        self._memory = KernelMemory(root)
        self._modules: dict[str, Sections] = {}
        self._patched: dict[str, set[int] | None] = {}

    def sections(self, module: str) -> Sections:
        """Return the sections of a module, read once."""
        if module not in self._modules:
            self._modules[module] = Sections(self._root, module)
        return self._modules[module]

    def is_idle(self, address: int) -> bool:
        """Tell whether an instruction that does nothing stands there, as in the padding in front of functions."""
        return (self._memory.read(address, 1) or b"") == _IDLE

    def refusal(self, address: int, module: str | None) -> str | None:
        """Return why no probe goes to the beginning of a function, or null: nothing speaks against it.

        ``module`` is null for the kernel image.

        :raises LookupError: it cannot be told: the code, or the places that the kernel patches, cannot be read.
        """
        code = self._memory.read(address, _CODE_BYTES)
        if code is None:
            raise LookupError("its code cannot be read (/proc/kcore)")
        if code.startswith(_BRANCH_TARGETS):
            # A probe at the beginning is put behind this mark (arch_adjust_kprobe_addr).
            address, code = address + 4, code[4:]
        if code.startswith(_TRAPS):
            return "begins with a trap (BUG or WARN), which is never probed"
        if code.startswith(_PADDING) and not self._is_probed(address):
            return "is no code: what stands there is padding"
        if not any(code):
            return "is no code: its memory was freed"
        if code.startswith(_PATCHABLE):
            places = self._patched_places(module)
            if places is None:
                raise LookupError("the places that the kernel patches itself cannot be read")
            if address in places:
                return "begins at a place that the kernel patches itself (a static key or a static call)"
        return None

    def _is_probed(self, address: int) -> bool:
        """Return whether what looks like padding is the breakpoint of an existing probe."""
        debugfs = mount_point(self._root, "debugfs")
        probes = self._root.read_text_or(debugfs + "/kprobes/list") if debugfs else None
        return f"{address:016x} " in (probes or "")

    def _patched_places(self, module: str | None) -> set[int] | None:
        key = module or ""
        if key not in self._patched:
            places: set[int] = set()
            for section, first, last, size in _TABLES:
                span = self.sections(module).span(section) if module else self._marks(first, last)
                data = self._memory.read(span[0], span[1] - span[0]) if span else b""
                if (span is None and not module) or data is None:
                    self._patched[key] = None
                    break
                if span is not None:
                    for offset in range(0, len(data) - size + 1, size):
                        places.add(span[0] + offset + struct.unpack_from("<i", data, offset)[0])
            else:
                self._patched[key] = places
        return self._patched[key]

    def _marks(self, first: str, last: str) -> tuple[int, int] | None:
        starts, ends = self._table.find(first), self._table.find(last)
        if not starts or not ends or not starts[0].address or not ends[0].address:
            return None
        start, end = starts[0].address, ends[0].address
        return (start, end) if 0 <= end - start <= _MOST_TABLE_BYTES else None
