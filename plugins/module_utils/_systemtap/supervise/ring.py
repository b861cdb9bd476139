# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A flight recorder's files: a ring of a few, each of bounded size, the oldest of which makes room for the newest.

Private to the collection. It is also part of the program that a tracer that stays runs on its host, so it imports the
standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ..._core.write import make_directories

_NAME = re.compile(r"^trace\.(\d{6,12})\Z")


class File(t.NamedTuple):
    """One file of a ring: its number (the newest has the highest), its path and its size."""

    number: int
    path: str
    size_bytes: int


def list_files(directory: str) -> list[File]:
    """Return a ring's files, the oldest first; an absent directory has none, and other files are no part of it."""
    found = []
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    for name in names:
        match = _NAME.match(name)
        if match:
            path = os.path.join(directory, name)
            with contextlib.suppress(FileNotFoundError):
                found.append(File(int(match.group(1)), path, os.stat(path).st_size))
    return sorted(found)


class Ring:
    """Writes into a ring: never more than ``files`` files of ``file_bytes`` each, whatever is written."""

    def __init__(self, directory: str, file_bytes: int, files: int) -> None:
        self._directory = directory
        self._file_bytes = file_bytes
        self._files = files
        self._descriptor: int | None = None
        self._number = 0
        self._used = 0
        #: How many bytes could not be written, because the disk was full or broken.
        self.dropped_bytes = 0

    def open(self) -> None:
        """Go on where an earlier ring in this directory ended, within the bounds of this one.

        :raises OSError: the directory cannot be made or written.
        """
        make_directories(self._directory, 0o700)
        found = list_files(self._directory)
        for file in found:
            if file.size_bytes > self._file_bytes or file.number <= found[-1].number - self._files:
                os.unlink(file.path)
        self._number = max(found[-1].number if found else 0, 1)
        self._switch(self._number)

    def close(self) -> None:
        """End the newest file as it is."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write(self, data: bytes) -> None:
        """Write output, so that a line stays in one file if it fits there at all; what fails is dropped and counted."""
        left = memoryview(data)
        try:
            while left:
                part = left[: self._fitting(left)]
                if part:
                    left = left[self._append(part) :]
                else:
                    self._switch(self._number + 1)
        except OSError:
            self.dropped_bytes += len(left)

    def _fitting(self, data: memoryview) -> int:
        """Return how much of the data fits into the newest file, up to a newline; 0: start the next file."""
        room = self._file_bytes - self._used
        if len(data) <= room:
            return len(data)
        end = bytes(data[: max(room, 0)]).rfind(b"\n") + 1
        return end if end or self._used else room

    def _append(self, part: memoryview) -> int:
        descriptor = self._switch(self._number) if self._descriptor is None else self._descriptor
        written = os.write(descriptor, part)
        self._used += written
        return written

    def _switch(self, number: int) -> int:
        """Take away what the new file would be one too many for, then begin it; return its descriptor."""
        for file in list_files(self._directory):
            if file.number <= number - self._files:
                os.unlink(file.path)
        self.close()
        path = os.path.join(self._directory, f"trace.{number:06d}")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._descriptor = descriptor
        self._number = number
        self._used = os.fstat(descriptor).st_size
        return descriptor
