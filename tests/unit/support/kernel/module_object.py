# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object files of modules, as small as they can be."""

from __future__ import annotations

import struct


def object_file(modinfo: bytes, wide: bool = True) -> bytes:
    """Return an ELF file with one section, .modinfo, as small as it can be."""
    names = b"\0.modinfo\0.shstrtab\0"
    size = 64 if wide else 52
    sections = [(0, 0, 0), (1, size, len(modinfo)), (10, size + len(modinfo), len(names))]
    table = b""
    for name, offset, length in sections:
        layout = "<IIQQQQIIQQ" if wide else "<IIIIIIIIII"
        table += struct.pack(layout, name, 1, 0, 0, offset, length, 0, 0, 1, 0)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    start = size + len(modinfo) + len(names)
    layout = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    header = ident + struct.pack(layout, 1, 62, 1, 0, 0, start, 0, size, 0, 0, 64 if wide else 40, 3, 2)
    return header + modinfo + names + table
