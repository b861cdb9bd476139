# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A journal on the host: what an interrupted run had begun, and what things were before we first touched them.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import typing as t

from .errors import TapvirtError

DIRECTORY = "var/lib/tapvirt"


class Journal:
    """One JSON object in a file of its own, read and replaced under a lock.

    :param directory: where the journals lie, absolute; made (0700) when first written.
    :param name: a file name without directory, given by the collection, never by the user.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._directory = directory
        self._path = os.path.join(directory, name + ".json")

    @contextlib.contextmanager
    def locked(self) -> t.Iterator[None]:
        """Keep other runs on this host away from the same items for as long as the block lasts."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        with open(self._path + ".lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> dict[str, t.Any]:
        """Return the journal's object; an absent journal is empty.

        :raises TapvirtError: the file is not a JSON object; it is named, and left as it is.
        """
        try:
            with open(self._path, encoding="utf-8") as stream:
                value = json.load(stream)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise TapvirtError(
                f"The journal {self._path} is damaged ({error}); move it away to go on.", path=self._path
            ) from error
        if not isinstance(value, dict):
            raise TapvirtError(
                f"The journal {self._path} does not hold a JSON object; move it away to go on.", path=self._path
            )
        return value

    def write(self, value: t.Mapping[str, t.Any]) -> None:
        """Replace the journal's object; an empty one removes the file."""
        from .write import sync_directory, write_atomic  # most runs only read

        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        if value:
            write_atomic(self._path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), mode=0o600)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
            sync_directory(self._directory)
