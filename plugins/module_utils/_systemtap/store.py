# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The content-addressed store of built modules.

Private to the collection. The store::

    STORE/KEY/NAME.ko, build.json                 one finished build, or a signed copy of one; its script beside it
    STORE/builds.log                              one JSON line for each compilation that was done
    STORE/.cache                                  stap's own cache (stapconf), shared by all builds: no rc file in it
    STORE/.root                                   a sysroot of links to the headers and debug information
    STORE/.work/KEY                               a build under way
    STORE/.lock/KEY                               one compilation for each key at a time (the directory is 0700)
    STORE/.lock/slot-N                            no more compilations at once than there are processors

The time of STORE/KEY is when it was last asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import typing as t

from .._core import lock
from .._core.files import open_regular
from .._core.root import Root

DEFAULT_STORE = "/var/lib/tapvirt/modules"
KEY = re.compile(r"^[0-9a-f]{64}\Z")
_LOCKS = ".lock"


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_row(folder: str) -> dict[str, t.Any] | None:
    """Return what is written of a build in its folder, or null."""
    try:
        row = json.loads(Root(folder).read_text("build.json"))
    except (OSError, ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class Store:
    """The builds that a builder keeps."""

    def __init__(self, directory: str, wait_seconds: float = lock.WAIT_SECONDS) -> None:
        self.directory = directory
        self._wait_seconds = wait_seconds

    def folder(self, key: str) -> str:
        return os.path.join(self.directory, key)

    def kept(self) -> list[str]:
        """Return the keys of what is kept."""
        return [name for name in Root(self.directory).listdir("") if KEY.match(name)]

    def read(self, key: str) -> dict[str, t.Any] | None:
        """Return what is known of a finished build, or null; a damaged one counts as absent."""
        build = read_row(self.folder(key))
        try:
            whole = build is not None and hash_file(build["path"]) == build["sha256"]
        except (OSError, KeyError):
            return None
        return build if whole else None

    def use(self, key: str) -> dict[str, t.Any] | None:
        """Read a build, and note that it is used now, which keeps it from being pruned."""
        if not os.path.isdir(self.folder(key)):
            return None
        with self._lock(key, self._wait_seconds, shared=True):
            with contextlib.suppress(OSError):
                os.utime(self.folder(key))
            return self.read(key)

    def locked(self, key: str) -> t.ContextManager[str]:
        """Keep other builds of the same key waiting.

        :raises LockTimeout: another build held it for too long.
        """
        return self._lock(key, self._wait_seconds)

    @contextlib.contextmanager
    def unused(self, key: str) -> t.Iterator[bool]:
        """Tell whether nobody is at a key; if so, keep all away meanwhile, and remove the lock's file afterwards."""
        path = self._lock_path(key)
        try:
            descriptor = lock.take(path, self._what(key), 0)
        except lock.LockTimeout:
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.close(descriptor)

    def is_busy(self, key: str) -> bool:
        """Tell whether somebody is at a key at this moment; writes nothing."""
        return lock.is_held(self._lock_path(key))

    @contextlib.contextmanager
    def slot(self) -> t.Iterator[None]:
        """Wait until fewer compilations than there are processors are under way.

        :raises LockTimeout: another compilation took too long.
        """
        with contextlib.ExitStack() as stack:
            count = os.cpu_count() or 1
            for number in range(count):
                try:
                    stack.enter_context(self._lock(f"slot-{number}", 0))
                    break
                except lock.LockTimeout:
                    continue
            else:
                stack.enter_context(self._lock(f"slot-{os.getpid() % count}", self._wait_seconds))
            yield

    def _lock(self, name: str, wait_seconds: float, shared: bool = False) -> t.ContextManager[str]:
        return lock.hold(self._lock_path(name), self._what(name), wait_seconds, shared)

    def _lock_path(self, name: str) -> str:
        return os.path.join(self.directory, _LOCKS, name)

    def _what(self, name: str) -> str:
        return f"the store {self.directory}, {name[:12]}"

    def log(self, row: t.Mapping[str, t.Any]) -> None:
        """Count a compilation: one line, appended at once, so that writers side by side do not mix."""
        line = (json.dumps(row, sort_keys=True) + "\n").encode()
        descriptor = os.open(os.path.join(self.directory, "builds.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def row(self) -> dict[str, t.Any]:
        """Return the store's own account: how many compilations were ever done, and how many modules it keeps."""
        builds = 0
        with contextlib.suppress(OSError):
            builds = sum(1 for _line in Root(self.directory).lines("builds.log"))
        return {"directory": self.directory, "builds": builds, "modules": len(self.kept())}
