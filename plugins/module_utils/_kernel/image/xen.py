# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Xen below a running kernel, and the images of it that are installed. Private to the collection.

On x86, ``xen`` is a 32-bit ELF file that a boot loader enters by one of the multiboot headers near its start (GNU
Multiboot Specification 0.6.96, and version 2), and that switches to 64 bits itself; ``xen-syms`` is the 64-bit file
that it was made of, with the symbols, and the EFI image is a PE file. What the running hypervisor tells is listed in
the kernel's Documentation/ABI/stable/sysfs-hypervisor-xen and Documentation/ABI/testing/sysfs-hypervisor-xen.
"""

from __future__ import annotations

import dataclasses
import os
import re
import struct
import typing as t
import zlib

from ..._core.errors import InvalidInput
from ..._core.root import Root
from . import elf
from .identity import build_id_of

MAX_IMAGES = 32
BUILD_ID = "sys/hypervisor/properties/buildid"
_BUILD_ID_BYTES = 20
_MAX_BYTES = 64 << 20
_DENIED = "<denied>"
_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
_PE_MACHINES = {0x14C: "i386", 0x1C0: "arm", 0x8664: "x86_64", 0xAA64: "aarch64", 0x5064: "riscv"}
_PE32, _PE32_PLUS, _EFI_APPLICATION = 0x10B, 0x20B, 10
# Version, magic number, words that sum up to zero, alignment, and where the header must have begun.
_MULTIBOOT = ((1, 0x1BADB002, 3, 4, 8192), (2, 0xE85250D6, 4, 8, 32768))
_IMAGE = re.compile(r"^xen(?:-hypervisor)?(?:-(?P<version>\d.*?))?(?:\.gz|\.efi)?$(?<!\.config)(?<!\.map)")
_SYMBOL_PLACES = ("{}/xen-syms-{}", "usr/lib/debug/boot/xen-syms-{1}", "usr/lib/debug/xen-syms-{1}")
# What /sys/hypervisor tells beyond version and kind, and the name it has in the result.
_PROPERTIES = {
    "capabilities": "properties/capabilities",
    "changeset": "properties/changeset",
    "virtual_start": "properties/virtual_start",
    "compiler": "compilation/compiler",
    "compiled_by": "compilation/compiled_by",
    "compile_date": "compilation/compile_date",
}


@dataclasses.dataclass(frozen=True)
class Image:
    """What a file that boots is: ``format`` (elf32, elf64, pe32, pe32plus), machine, entry address, how it is entered.

    ``multiboot`` lists the headers by version and file offset.
    """

    format: str
    machine: str
    entry: int
    entry_kind: str
    multiboot: list[dict[str, int]]
    build_id: str | None


class NotAnImage(Exception):
    """The bytes are neither ELF nor PE, or are damaged; the argument says it."""


def gather(root: Root, boot: str = "boot") -> dict[str, t.Any]:
    """Return ``running`` (null when no Xen is below), ``images`` and ``truncated``.

    :raises InvalidInput: a directory other than the usual one does not exist.
    """
    if boot.strip("/") != "boot" and not os.path.isdir(root.path(boot)):
        raise InvalidInput("boot", boot, "The directory does not exist.")
    running = running_xen(root)
    names = [name for name in root.listdir(boot) if _IMAGE.match(name)]
    own = running["build_id"] if running else None
    images = [_image_row(root, boot.strip("/"), name, own) for name in names[:MAX_IMAGES]]
    return {"running": running, "images": images, "truncated": len(names) > MAX_IMAGES}


def running_xen(root: Root) -> dict[str, t.Any] | None:
    """Return what ``/sys/hypervisor`` and ``/proc/xen`` tell of the Xen below; null without one.

    What Xen hides from this domain, or the kernel from this user, is null and its name is in ``restricted``.
    """
    if (root.read_text_or("sys/hypervisor/type") or "").strip() != "xen":
        return None
    restricted: list[str] = []

    def text(name: str, path: str) -> str | None:
        try:
            found = root.read_text("sys/hypervisor/" + path).strip()
        except FileNotFoundError:
            return None
        except OSError:
            found = _DENIED
        if found == _DENIED:
            restricted.append(name)
            return None
        return found or None

    def number(name: str, path: str) -> int | None:
        found = text(name, path)
        return int(found, 16) if found and re.match(r"^[0-9a-f]+\Z", found) else None

    parts = [text("version", "version/" + name) for name in ("major", "minor", "extra")]
    facts: dict[str, t.Any] = {name: text(name, path) for name, path in _PROPERTIES.items()}
    capabilities = root.read_text_or("proc/xen/capabilities") or ""
    return {
        "version": None if None in parts[:2] else f"{parts[0]}.{parts[1]}{parts[2] or ''}",
        "role": "control_domain" if "control_d" in capabilities else "guest",
        "guest_type": (text("guest_type", "guest_type") or "").lower() or None,
        "uuid": text("uuid", "uuid"),
        **facts,
        "capabilities": (facts["capabilities"] or "").split(),
        "build_id": text("build_id", "properties/buildid") and running_build_id(root),
        "page_bytes": number("page_bytes", "properties/pagesize"),
        "restricted": restricted,
    }


def running_build_id(root: Root) -> str | None:
    """Return the running Xen's build-id; null where it is not told.

    The file holds the bytes themselves, printed as a string (``buildid_show`` in the kernel's
    drivers/xen/sys-hypervisor.c): what comes after a zero byte is missing. Then the whole is not known.
    """
    try:
        data = root.read_bytes(BUILD_ID)
    except OSError:
        return None
    return data.hex() if len(data) == _BUILD_ID_BYTES else None


def parse_image(data: bytes) -> Image:
    """Return what an uncompressed image is.

    :raises NotAnImage: neither ELF nor PE, or damaged.
    """
    if data[:2] == b"MZ":
        return _parse_pe(data)
    try:
        header = elf.read_header(data)
        notes = elf.program_notes(data)
    except elf.ElfError as error:
        raise NotAnImage(error.message) from error
    multiboot = list(multiboot_headers(data))
    return Image(
        format=f"elf{header.bits}",
        machine=_MACHINES.get(header.machine, f"machine_{header.machine}"),
        entry=header.entry,
        entry_kind="multiboot" if multiboot else "elf",
        multiboot=multiboot,
        build_id=build_id_of(notes),
    )


def multiboot_headers(data: bytes) -> t.Iterator[dict[str, int]]:
    """Yield ``version`` and file ``offset`` of each multiboot header whose checksum is right."""
    for version, magic, words, alignment, limit in _MULTIBOOT:
        head = data[:limit]
        offset = head.find(struct.pack("<I", magic))
        while offset >= 0:
            fields = head[offset : offset + 4 * words]
            whole = offset % alignment == 0 and len(fields) == 4 * words
            if whole and sum(struct.unpack(f"<{words}I", fields)) & 0xFFFFFFFF == 0:
                yield {"version": version, "offset": offset}
                break
            offset = head.find(struct.pack("<I", magic), offset + 4)


def _parse_pe(data: bytes) -> Image:
    """Read the headers that the UEFI specification and Microsoft's PE format describe."""
    try:
        start = struct.unpack_from("<I", data, 0x3C)[0]
        signature, machine = struct.unpack_from("<4sH", data, start)
        magic = struct.unpack_from("<H", data, start + 24)[0]
        entry = struct.unpack_from("<I", data, start + 40)[0]
        base = struct.unpack_from("<Q" if magic == _PE32_PLUS else "<4xI", data, start + 48)[0]
        subsystem = struct.unpack_from("<H", data, start + 92)[0]
    except struct.error as error:
        raise NotAnImage(f"The PE file is damaged: {error}.") from error
    if signature != b"PE\0\0" or magic not in (_PE32, _PE32_PLUS):
        raise NotAnImage("The file is neither ELF nor PE.")
    return Image(
        format="pe32plus" if magic == _PE32_PLUS else "pe32",
        machine=_PE_MACHINES.get(machine, f"machine_{machine}"),
        entry=base + entry,
        entry_kind="efi" if subsystem == _EFI_APPLICATION else "pe",
        multiboot=[],
        build_id=None,
    )


def _image_row(root: Root, boot: str, name: str, running: str | None) -> dict[str, t.Any]:
    match = _IMAGE.match(name)
    version = match.group("version") if match else None
    row: dict[str, t.Any] = {
        "path": f"/{boot}/{name}",
        "version": version,
        "state": "readable",
        "reason": None,
        "size_bytes": None,
        "compression": None,
        "format": None,
        "machine": None,
        "entry": None,
        "entry_kind": None,
        "multiboot": [],
        "build_id": None,
        "running": None,
        "symbols": None,
    }
    data = _read(root, f"{boot}/{name}", row)
    if data is not None:
        _describe(row, data)
    if row["build_id"] and running:
        row["running"] = row["build_id"] == running
    if version is not None and not name.endswith(".efi"):
        row["symbols"] = _symbols_row(root, boot, version, row["build_id"])
    return row


def _describe(row: dict[str, t.Any], data: bytes) -> None:
    try:
        if data[:2] == b"\x1f\x8b":
            row["compression"] = "gzip"
            data = gunzip(data)
        image = parse_image(data)
    except NotAnImage as error:
        row.update(state="damaged", reason=str(error))
        return
    row.update(dataclasses.asdict(image), entry=f"{image.entry:#x}")


def gunzip(data: bytes) -> bytes:
    """Return what a gzip file holds, at most 64 MiB of it.

    :raises NotAnImage: damaged, or cut short.
    """
    machine = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = machine.decompress(data, _MAX_BYTES)
    except zlib.error as error:
        raise NotAnImage(f"The gzip file is damaged: {error}.") from error
    if not machine.eof and len(plain) < _MAX_BYTES:
        raise NotAnImage("The gzip file is cut short.")
    return plain


def _symbols_row(root: Root, boot: str, version: str, build_id: str | None) -> dict[str, t.Any] | None:
    """Return the row of the file with the symbols of this version; None if no file exists."""
    place = next((path for path in (p.format(boot, version) for p in _SYMBOL_PLACES) if root.exists(path)), None)
    if place is None:
        return None
    row: dict[str, t.Any] = {"path": "/" + place, "state": "readable", "reason": None, "size_bytes": None}
    row.update(format=None, machine=None, build_id=None, count=None, matches=None)
    row["map"] = f"/{place}.map" if root.exists(place + ".map") else None
    data = _read(root, place, row)
    if data is None:
        return row
    try:
        image = parse_image(data)
        row["count"] = len(elf.symbols(data))
    except (NotAnImage, elf.ElfError) as error:
        row.update(state="damaged", reason=str(error))
        return row
    row.update(format=image.format, machine=image.machine, build_id=image.build_id)
    if build_id and image.build_id:
        row["matches"] = build_id == image.build_id
    return row


def _read(root: Root, name: str, row: dict[str, t.Any]) -> bytes | None:
    """Return a file's first 64 MiB and note its size; where it cannot be read, note why."""
    try:
        row["size_bytes"] = os.stat(root.path(name)).st_size
        return root.read_bytes(name, _MAX_BYTES)
    except PermissionError as error:
        row.update(state="restricted", reason=error.strerror)
    except OSError as error:
        row.update(state="absent", reason=error.strerror)
    return None
