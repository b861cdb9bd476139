# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache: artifacts named by a hash of their recipe, each built once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def digest(recipe: Any) -> str:
    """A short hash of anything that JSON can write."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; wait until it is free (the kernel frees it when its holder dies)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Store:
    """Artifacts are directories that appear complete or not at all."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._say = say
        folder.mkdir(parents=True, exist_ok=True)
        # Private keys and root file systems with set-uid files are in here.
        folder.chmod(0o700)

    def path(self, kind: str, recipe: Any) -> Path:
        return self.folder / f"{kind}-{digest(recipe)}"

    def ensure(self, kind: str, recipe: Any, build: Callable[[Path], None]) -> Path:
        """Return the artifact of this recipe; build it in a temporary directory if it does not exist."""
        final = self.path(kind, recipe)
        if final.exists():
            os.utime(final)
            return final
        with locked(self.folder / "locks" / final.name):
            if not final.exists():
                partial = self.folder / "partial" / final.name
                # Left by an interrupted build: no other build uses it while we hold the lock.
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                began = time.monotonic()
                self._say(f"making {kind}")
                build(partial)
                os.rename(partial, final)
                self._say(f"made {kind} ({time.monotonic() - began:.0f} s)")
        return final

    def prune(self, days: float = 14) -> None:
        """Delete artifacts that were not used for some days: those of recipes that have changed."""
        for path in self.folder.glob("*-" + "[0-9a-f]" * 12):
            if path.stat().st_mtime < time.time() - days * 86400:
                self._say(f"dropping {path.name}, unused for {days:.0f} days")
                self.drop(path)

    def drop(self, path: Path) -> None:
        """Delete an artifact: first its name, so that no process finds a part of it."""
        with locked(self.folder / "locks" / path.name):
            if path.exists():
                dying = self.folder / "partial" / path.name
                shutil.rmtree(dying, ignore_errors=True)
                dying.parent.mkdir(exist_ok=True)
                os.rename(path, dying)
                shutil.rmtree(dying, ignore_errors=True)
