# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prune a store of built modules by age and size.

Private to the collection. The entries are what ``Store.kept`` names, and what builds that were killed left in
``STORE/.work``; nothing else in a store is touched. Who builds, signs or reads an entry holds its lock, and a module
that was asked for lately may still be on its way to a controller.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
import typing as t

from ..._core.disk import disk_failure
from ..._core.errors import InvalidInput, NoEffect
from ..._core.options import parse_age
from ..._core.plan import Change, Plan
from ..._core.root import Root
from ..._core.write import make_directories
from .store import KEY, Store, is_directory, read_row

FETCH_SECONDS = 600
"""For how long after it was last asked for a module may be on its way to a controller."""
_WORK = ".work"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One folder of a store: a build, a signed copy, or what a killed build left (``name`` is null then).

    ``folder`` is relative to the store, ``used`` the time when it was last asked for, in seconds since 1970;
    somebody is at it when it is ``busy``.
    """

    folder: str
    key: str
    name: str | None
    kernel: str | None
    size_bytes: int
    used: float
    busy: bool


def read_entries(store: Store) -> list[Entry]:
    """Return what a store keeps, the longest unused first.

    :raises PermissionError: the user may not read the store.
    """
    with contextlib.suppress(FileNotFoundError):
        os.listdir(store.directory)  # one that cannot be read would look empty
    entries = [_read_entry(store, key, key) for key in store.kept()]
    # A link in its place may lead to anything.
    work = Root(store.directory).listdir(_WORK) if is_directory(os.path.join(store.directory, _WORK)) else []
    entries += [_read_entry(store, os.path.join(_WORK, key), key) for key in work if KEY.match(key)]
    return sorted((entry for entry in entries if entry is not None), key=lambda entry: (entry.used, entry.folder))


def _read_entry(store: Store, folder: str, key: str) -> Entry | None:
    path = os.path.join(store.directory, folder)
    try:
        used = os.stat(path).st_mtime
    except OSError:
        return None
    row = (read_row(path) or {}) if folder == key else {}
    return Entry(folder, key, row.get("name"), row.get("kernel"), _size_of(path), used, store.is_busy(key))


def _size_of(path: str) -> int:
    size = 0
    for folder, _folders, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(os.path.join(folder, name)).st_size
    return size


def choose(
    entries: t.Sequence[Entry], now: float, older_than_seconds: int | None, larger_than_bytes: int | None
) -> list[tuple[Entry, str]]:
    """Return the entries that are to go, each with the reason in words; ``entries`` are the longest unused first.

    What was asked for in the last ``FETCH_SECONDS`` stays. What a killed build left goes as soon as it is older.
    """
    chosen = []
    size = sum(entry.size_bytes for entry in entries)
    for entry in entries:
        idle = now - entry.used
        if idle < FETCH_SECONDS:
            continue
        why = None
        if entry.folder != entry.key:
            why = "a build that was killed left it"
        elif older_than_seconds is not None and idle >= older_than_seconds:
            why = f"nobody asked for it for {_spoken(idle)}"
        elif larger_than_bytes is not None and size > larger_than_bytes:
            why = (
                f"the store has more than {larger_than_bytes} bytes, and this was not asked for for the longest time, "
                f"{_spoken(idle)}"
            )
        if why is not None:
            chosen.append((entry, why))
            # One that is in use stays, and its bytes with it.
            size -= 0 if entry.busy else entry.size_bytes
    return chosen


def _spoken(seconds: float) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}{'' if seconds // unit == 1 else 's'}"
    return f"{seconds:.0f} seconds"


def prune(
    store: Store, older_than: str | None, larger_than_bytes: int | None, check_mode: bool
) -> tuple[Plan, dict[str, t.Any]]:
    """Prune a store; return the plan, and ``removed``, ``in_use`` (rows), ``freed_bytes``, ``kept_bytes``.

    :raises InvalidInput: an option is not acceptable.
    :raises NoEffect: an entry could not be removed, or is still there; the others were removed.
    """
    if larger_than_bytes is not None and larger_than_bytes < 0:
        raise InvalidInput("larger_than", larger_than_bytes, "The size must not be negative")
    seconds = None if older_than is None else parse_age(older_than)
    entries, now = read_entries(store), time.time()
    changes, removed, in_use, failed = [], [], [], []
    for entry, why in choose(entries, now, seconds, larger_than_bytes):
        row = {
            "key": entry.key,
            "name": entry.name,
            "kernel": entry.kernel,
            "bytes": entry.size_bytes,
            "idle_seconds": int(now - entry.used),
            "reason": why,
        }
        try:
            gone = not entry.busy and (check_mode or remove(store, entry))
        except OSError as error:
            if disk_failure(error):
                raise  # no other entry fares better on that file system
            failed.append(f"{entry.folder} ({error})")
            continue
        if not gone:
            in_use.append(row)
            continue
        removed.append(row)
        changes.append(Change(entry.name or entry.key, entry.folder, None, "remove", why))
    if failed:
        names = ", ".join(failed)
        raise NoEffect(
            f"These entries could not be removed from the store: {names}. The others were removed.", removed=removed
        )
    kept = entries if check_mode else read_entries(store)
    left = {entry.folder for entry in kept} & {change.before for change in changes}
    if left and not check_mode:
        raise NoEffect(f"These entries were removed from the store, but still exist: {', '.join(sorted(left))}.")
    freed = sum(int(row["bytes"] or 0) for row in removed)
    kept_bytes = sum(entry.size_bytes for entry in kept) - (freed if check_mode else 0)
    return Plan(changes), {"removed": removed, "in_use": in_use, "freed_bytes": freed, "kept_bytes": kept_bytes}


def remove(store: Store, entry: Entry) -> bool:
    """Remove an entry unless somebody is at it, or has asked for it meanwhile; return whether it is gone."""
    path = os.path.join(store.directory, entry.folder)
    with store.unused(entry.key) as unused:
        if not unused or _last_used(path) != entry.used:
            return False
        # First its name, so that nobody finds half of it.
        dying = os.path.join(store.directory, _WORK, entry.key)
        if path != dying:
            shutil.rmtree(dying, ignore_errors=True)
            make_directories(os.path.dirname(dying))
            os.rename(path, dying)
        shutil.rmtree(dying)
        return True


def _last_used(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return None
