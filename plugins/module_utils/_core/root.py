# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file-system root: every reader takes one, so that the same code reads a live host, an image or a recorded tree.

Private to the collection.
"""

from __future__ import annotations

import os

from .files import open_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t

# Importing typing takes longer than searching all names of a kernel: small readers do without what they do not need.

_DEFAULT_LIMIT_BYTES = 64 << 20
_READ_BYTES = 1 << 16


class Root:
    """Reads regular files below one directory.

    Names are relative (``proc/kallsyms``), results bytes or str, errors OSError.
    """

    def __init__(self, path: str = "/") -> None:
        self._path = path

    def path(self, name: str) -> str:
        """Return the full path of a name below this root."""
        return f"{self._path.rstrip('/')}/{name.lstrip('/')}"

    def read_bytes(self, name: str, limit_bytes: int = _DEFAULT_LIMIT_BYTES) -> bytes:
        """Return up to ``limit_bytes`` of a file, read sequentially on one descriptor."""
        data = bytearray()
        with open_regular(self.path(name), buffering=0) as stream:
            while len(data) < limit_bytes:
                # Files below /proc/sys allocate what one read asks for: a large one fails with ENOMEM.
                part = stream.read(min(_READ_BYTES, limit_bytes - len(data)))
                if not part:
                    break
                data += part
        return bytes(data)

    def read_text(self, name: str, limit_bytes: int = _DEFAULT_LIMIT_BYTES) -> str:
        """Return a file's text; bytes that are not UTF-8 are kept as surrogates, so that nothing is lost."""
        return self.read_bytes(name, limit_bytes).decode("utf-8", "surrogateescape")

    def read_text_or(self, name: str, default: str | None = None) -> str | None:
        """Return a file's text, or the default where it is absent or may not be read."""
        try:
            return self.read_text(name)
        except OSError:
            return default

    def lines(self, name: str) -> t.Iterator[bytes]:
        """Yield a file's lines as bytes, without their line ends, never holding the whole file."""
        with open_regular(self.path(name)) as stream:
            for line in stream:
                yield line.rstrip(b"\n")

    def exists(self, name: str) -> bool:
        """Tell whether a name exists (a broken link does not)."""
        return os.path.exists(self.path(name))

    def listdir(self, name: str) -> list[str]:
        """Return the sorted names in a directory; an absent or unreadable one is empty."""
        try:
            return sorted(os.listdir(self.path(name)))
        except OSError:
            return []
