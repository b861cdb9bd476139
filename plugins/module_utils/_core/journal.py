# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A journal on the host: what an interrupted run had begun, and what things were before we first touched them.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import json
import os
import typing as t

from .disk import disk_errors
from .errors import TapvirtError
from .write import make_directories, sync_directory, write_atomic

DIRECTORY = "var/lib/tapvirt"


class Journal:
    """One JSON object in a file of its own, read and replaced under a lock.

    :param directory: where the journals lie, absolute; made (0700) when first written.
    :param name: a file name without directory, given by the collection, never by the user.
    :param wait_seconds: how long to wait for another run; ``None``: as long as for each lock.
    """

    def __init__(self, directory: str, name: str, wait_seconds: float | None = None) -> None:
        self._directory = directory
        self._name = name
        self._wait_seconds = wait_seconds
        self._path = os.path.join(directory, name + ".json")

    @contextlib.contextmanager
    def locked(self) -> t.Iterator[None]:
        """Keep other runs on this host away from the same items for as long as the block lasts.

        The caller has changed nothing when it takes the lock.

        :raises LockTimeout: another run held it for the whole time of waiting.
        """
        from .lock import WAIT_SECONDS, hold

        path = os.path.join(self._directory, "lock", self._name)
        wait_seconds = WAIT_SECONDS if self._wait_seconds is None else self._wait_seconds
        with contextlib.ExitStack() as stack:
            with disk_errors("Nothing was changed."):
                stack.enter_context(hold(path, f"the journal {self._path}", wait_seconds))
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
        except (ValueError, RecursionError) as error:
            raise TapvirtError(f"The journal {self._path} is damaged ({error}). Move it away to go on.") from error
        if not isinstance(value, dict):
            raise TapvirtError(f"The journal {self._path} does not hold a JSON object. Move it away to go on.")
        return value

    def write(self, value: t.Mapping[str, t.Any]) -> None:
        """Replace the journal's object; an empty one removes the file."""
        make_directories(self._directory, 0o700)
        if value:
            write_atomic(self._path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), mode=0o600)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
            sync_directory(self._directory)
