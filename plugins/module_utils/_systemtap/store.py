# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The content-addressed store of built modules.

Private to the collection. The store::

    STORE/KEY/NAME.ko, build.json, script.stp     one finished build
    STORE/builds.log                              one JSON line for each compilation that was done
    STORE/.cache                                  stap's own cache (stapconf), shared by all builds: no rc file in it
    STORE/.root                                   a sysroot of links to the headers and debug information
    STORE/.work/KEY                               a build under way
    STORE/.lock/KEY                               one compilation for each key at a time
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import typing as t

from .._core.root import Root

DEFAULT_STORE = "/var/lib/tapvirt/modules"


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class Store:
    """The builds that a builder keeps."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def folder(self, key: str) -> str:
        return os.path.join(self.directory, key)

    def read(self, key: str) -> dict[str, t.Any] | None:
        """Return what is known of a finished build, or null; a damaged one counts as absent."""
        try:
            with open(os.path.join(self.folder(key), "build.json"), encoding="utf-8") as stream:
                build = json.load(stream)
            whole = hash_file(build["path"]) == build["sha256"]
        except (OSError, ValueError, KeyError):
            return None
        return build if whole else None

    @contextlib.contextmanager
    def locked(self, key: str) -> t.Iterator[None]:
        """Keep other builds of the same key waiting."""
        locks = os.path.join(self.directory, ".lock")
        os.makedirs(locks, mode=0o755, exist_ok=True)
        with open(os.path.join(locks, key), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

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
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self.directory, "builds.log"), "rb") as stream:
            builds = sum(1 for _line in stream)
        modules = [name for name in Root(self.directory).listdir("") if len(name) == 64]
        return {"directory": self.directory, "builds": builds, "modules": len(modules)}
