# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kernel's initramfs has: modules, and the modprobe.d that they are loaded with before the root is there.

Private to the collection. An image is a chain of cpio archives (the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst): first ones may be plain (microcode), the last one is
compressed. Zstandard and LZ4 are unpacked by their own programs, which every host has that makes such images.
"""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import lzma
import os
import re
import shutil
import tempfile
import typing as t
import zlib

from ..._core.command import CommandMissing, CommandTimeout, find_program, run
from ..._core.errors import TapvirtError
from ..._core.root import Root
from . import modprobe_d
from .modinfo import canonical

IMAGES = ("boot/initrd.img-{}", "boot/initramfs-{}.img", "boot/initrd-{}")
_MAKE_SECONDS = 900.0
_UNPACK_SECONDS = 120.0
_CPIO = (b"070701", b"070702")
_CPIO_HEADER_BYTES = 110
_LAST_ENTRY = "TRAILER!!!"
_MODULE = re.compile(r"(?:^|/)([^/]+)\.ko(?:\.\w+)?$")
_OPTIONS_BYTES = 1 << 20
_PACKED, _OUT = "image", "unpacked"
_ZSTD = ("zstd", "-d", "-q", "-f", _PACKED, "-o", _OUT)
_LZ4 = ("lz4", "-d", "-q", "-f", _PACKED, _OUT)
_PROGRAMS = ((b"\x28\xb5\x2f\xfd", _ZSTD), (b"\x02\x21\x4c\x18", _LZ4), (b"\x04\x22\x4d\x18", _LZ4))
_BLOCK_BYTES = 1 << 16


class Unreadable(TapvirtError):
    """The image cannot be looked into; the message says why, as the end of a sentence about it."""


@dataclasses.dataclass(frozen=True)
class Image:
    """An initramfs: its file, the command that rebuilds it (empty: unknown), its modules and their options.

    ``unreadable`` says why nothing is known of the content; null when it is.
    """

    path: str
    maker: tuple[str, ...]
    modules: t.Collection[str]
    options: t.Mapping[tuple[str, str], modprobe_d.Option]
    unreadable: str | None


def image_of(root: Root, release: str) -> str | None:
    """Return the initramfs of a kernel release, relative to the root; None if it does not exist."""
    return next((name for name in (image.format(release) for image in IMAGES) if root.exists(name)), None)


def is_older_than_options(root: Root, name: str) -> bool:
    """Tell whether anything in modprobe.d was changed after an image was made."""
    made = os.stat(root.path(name)).st_mtime_ns
    for directory in modprobe_d.DIRECTORIES:
        for file in ("", *root.listdir(directory)):
            with contextlib.suppress(OSError):
                if os.stat(root.path(f"{directory}/{file}")).st_mtime_ns > made:
                    return True
    return False


def read_image(root: Root, name: str, release: str, unpack_seconds: float = _UNPACK_SECONDS) -> Image:
    """Look into an image.

    :param unpack_seconds: how long a program may take to unpack it.
    """
    path = root.path(name)
    maker = maker_of(path, release)
    try:
        with tempfile.TemporaryDirectory(prefix="tapvirt-") as scratch, contextlib.ExitStack() as opened:
            image = opened.enter_context(open(path, "rb"))
            modules, files = _contents(image, scratch, opened, unpack_seconds)
    except Unreadable as error:
        return Image("/" + name, maker, (), {}, error.message)
    except PermissionError:
        return Image("/" + name, maker, (), {}, "this user may not read it")
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        # What unpacks raises OSError as well, without a number.
        system = isinstance(error, OSError) and error.errno is not None
        return Image("/" + name, maker, (), {}, f"it {'cannot be unpacked' if system else 'is damaged'}: {error}")
    lines = modprobe_d.read_lines(_Unpacked(files))
    return Image("/" + name, maker, modules, modprobe_d.effective(modprobe_d.options_of(lines)), None)


def maker_of(path: str, release: str) -> tuple[str, ...]:
    """Return the command that rebuilds an image on this host; empty if the host has no such command."""
    if find_program("update-initramfs") is not None:
        return ("update-initramfs", "-u", "-k", release)
    if find_program("dracut") is not None:
        return ("dracut", "--force", path, release)
    return ()


def make_image(image: Image) -> None:
    """Rebuild an image.

    :raises TapvirtError: the host's own program failed; the old image is still there.
    """
    done = run(list(image.maker), timeout_seconds=_MAKE_SECONDS)
    if done.rc != 0:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise TapvirtError(
            f"{image.path} could not be rebuilt: {image.maker[0]} failed ({done.rc}): "
            f"{said[-1] if said else 'it gave no reason'}"
        )


class _Unpacked(Root):
    """The few files of an image that were kept, as a root."""

    def __init__(self, files: t.Mapping[str, str]) -> None:
        super().__init__()
        self._files = files

    def listdir(self, name: str) -> list[str]:
        return sorted(os.path.basename(path) for path in self._files if os.path.dirname(path) == name)

    def read_text_or(self, name: str, default: str | None = None) -> str | None:
        return self._files.get(name, default)


class _Stream:
    """Bytes read once, of which some can be given back."""

    def __init__(self, source: t.BinaryIO) -> None:
        self._source = source
        self._held = b""

    def read(self, count: int) -> bytes:
        data, self._held = self._held[:count], self._held[count:]
        return data + self._source.read(count - len(data)) if len(data) < count else data

    def exactly(self, count: int) -> bytes:
        data = self.read(count)
        if len(data) != count:
            raise EOFError("it ends too early")
        return data

    def skip(self, count: int) -> None:
        while count > 0:
            count -= len(self.exactly(min(count, _BLOCK_BYTES)))

    def next_archive(self) -> bytes:
        """Skip the zeros between archives; return the first six bytes of the next one, not read. Empty: the end."""
        while True:
            block = self.read(_BLOCK_BYTES)
            self._held = block.lstrip(b"\0") + self._held
            if self._held or not block:
                return self._held[:6]

    def rest(self) -> t.BinaryIO:
        """Return the source, at the first byte that was not read here."""
        self._source.seek(-len(self._held), os.SEEK_CUR)
        return self._source


def _contents(
    image: t.BinaryIO, scratch: str, opened: contextlib.ExitStack, unpack_seconds: float
) -> tuple[set[str], dict[str, str]]:
    """Return the modules in an image, and its modprobe.d files: path to text."""
    modules: set[str] = set()
    files: dict[str, str] = {}
    stream, packed = _Stream(image), True
    while True:
        start = stream.next_archive()
        if not start:
            return modules, files
        if start in _CPIO:
            _read_archive(stream, modules, files)
        elif packed:
            rest = _unpacked(stream.rest(), start, scratch, unpack_seconds)
            stream, packed = _Stream(opened.enter_context(rest)), False
        else:
            raise Unreadable("its compressed part holds no archive that is known here")


def _read_archive(stream: _Stream, modules: set[str], files: dict[str, str]) -> None:
    """Read one cpio archive ("newc": thirteen numbers of eight hexadecimal digits, name, content, each padded)."""
    while True:
        header = stream.exactly(_CPIO_HEADER_BYTES)
        if header[:6] not in _CPIO:
            raise Unreadable("one of its archives is damaged")
        size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        padded_name = _padded(_CPIO_HEADER_BYTES + name_size) - _CPIO_HEADER_BYTES
        name = stream.exactly(padded_name)[: name_size - 1].decode("utf-8", "surrogateescape")
        if name == _LAST_ENTRY:
            return
        name = os.path.normpath(name).lstrip("/")
        module = _MODULE.search(name)
        if module:
            modules.add(canonical(module.group(1)))
        if os.path.dirname(name) in modprobe_d.DIRECTORIES and name.endswith(".conf") and size <= _OPTIONS_BYTES:
            files[name] = stream.exactly(_padded(size))[:size].decode("utf-8", "surrogateescape")
        else:
            stream.skip(_padded(size))


def _unpacked(rest: t.BinaryIO, start: bytes, scratch: str, seconds: float) -> t.BinaryIO:
    """Return what the rest of an image holds, unpacked.

    :raises Unreadable: nothing here can unpack it.
    """
    if start.startswith(b"\x1f\x8b"):
        return t.cast("t.BinaryIO", gzip.GzipFile(fileobj=rest))
    if start.startswith((b"\xfd7zXZ", b"\x5d\0\0")):
        return t.cast("t.BinaryIO", lzma.LZMAFile(rest))
    if start.startswith(b"BZh"):
        return t.cast("t.BinaryIO", bz2.BZ2File(rest))
    argv = next((argv for magic, argv in _PROGRAMS if start.startswith(magic)), None)
    if argv is None:
        raise Unreadable(f"it is compressed in a way that is not known here ({start.hex()})")
    with open(os.path.join(scratch, _PACKED), "wb") as copy:
        shutil.copyfileobj(rest, copy)
    try:
        done = run(argv, seconds, cwd=scratch)
    except CommandMissing as error:
        raise Unreadable(f"it takes the program {argv[0]} to unpack it") from error
    except CommandTimeout as error:
        raise Unreadable(f"{argv[0]} takes longer than {seconds:g} s to unpack it") from error
    if done.rc != 0:
        raise Unreadable(f"{argv[0]} does not unpack it: {done.stderr.strip()[:200]}")
    return open(os.path.join(scratch, _OUT), "rb")


def _padded(size: int) -> int:
    return (size + 3) & ~3
