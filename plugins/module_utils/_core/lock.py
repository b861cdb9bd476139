# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to take a lock: flock(2) on a file that other users cannot open, for a bounded time.

Private to the collection. The supervisor's program holds a copy of this file: standard library only.

A user who can open a file can hold flock on it for ever, whatever the file's permissions for writing are. So a lock is
a file (0600) in a directory of its own (0700). The holder writes into it who it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
import typing as t

from .errors import TapvirtError
from .files import user_name
from .write import make_directories

WAIT_SECONDS = 120
"""How long to wait for a lock by default."""
_POLL_SECONDS = 0.2
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_HOLDER_BYTES = 4096


class LockTimeout(TapvirtError):
    """Another process held the lock for all of the time to wait."""


class UnsafeLock(TapvirtError):
    """Another user could hold or replace the lock, or it is not a regular file."""


@contextlib.contextmanager
def hold(
    path: str, what: str, wait_seconds: float = WAIT_SECONDS, shared: bool = False, temporary: bool = False
) -> t.Iterator[str]:
    """Hold a lock for as long as the block lasts; yield its path.

    :param path: the lock's file. Its directory is for locks only, and is made (0700) where it does not exist.
    :param what: the noun phrase for the message, as in ``the runs of this host``.
    :param wait_seconds: how long to wait; 0 tries once.
    :param shared: hold the lock beside other holders that share it.
    :param temporary: remove the file, and its directory and the one above when they are empty, at the end.
    :raises LockTimeout: another process held the lock for all of that time.
    :raises UnsafeLock: another user could hold or replace the lock.
    :raises OSError: the lock's file cannot be made.
    """
    descriptor = take(path, what, wait_seconds, shared)
    try:
        yield path
    finally:
        if temporary:
            _remove(path)
        os.close(descriptor)


def take(path: str, what: str, wait_seconds: float = WAIT_SECONDS, shared: bool = False) -> int:
    """Take a lock as in :func:`hold`; return the descriptor that holds it until it is closed."""
    end = time.monotonic() + wait_seconds
    pause = _POLL_SECONDS / 16
    while True:
        descriptor = _open(path)
        try:
            locked = _try(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            # The holder may have removed the file: then others lock another one.
            if locked and _is_file_of(path, descriptor):
                _write_holder(descriptor)
                return descriptor
            if not locked and time.monotonic() >= end:
                raise LockTimeout(_timeout_text(path, what, wait_seconds, descriptor), lock=path)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not locked:
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(pause * 2, _POLL_SECONDS)


def is_held(path: str) -> bool:
    """Return whether a process holds a lock at this moment; change nothing, not even a mode.

    :raises UnsafeLock: it is not a regular file of this user or of root.
    """
    try:
        descriptor = _open_file(path, os.O_RDONLY, changing=False)
    except FileNotFoundError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    """Remove the file of a lock that this process holds alone, and its directories when nothing else is in them."""
    directory = os.path.dirname(path)
    with contextlib.suppress(OSError):
        os.unlink(path)
        os.rmdir(directory)
        os.rmdir(os.path.dirname(directory))


def _open(path: str) -> int:
    """Open a lock's file, and make it and its directory where they do not exist."""
    for _attempt in range(100):
        make_directories(os.path.dirname(path), 0o700)
        # The holder of a temporary lock may remove the directory between the two calls.
        with contextlib.suppress(FileNotFoundError):
            return _open_file(path, os.O_RDWR | os.O_CREAT, changing=True)
    raise UnsafeLock(f"The lock {path} cannot be made: its directory disappears again and again.", lock=path)


def _open_file(path: str, flags: int, changing: bool) -> int:
    """Open a file below a directory of this user; where ``changing``, keep others out of both from now on."""
    directory, name = os.path.split(path)
    parent = _open_checked(path, directory, os.O_RDONLY | os.O_DIRECTORY, None, changing)
    try:
        descriptor = _open_checked(path, name, flags, parent, changing)
    finally:
        os.close(parent)
    return descriptor


def _open_checked(path: str, name: str, flags: int, parent: int | None, changing: bool) -> int:
    """Open the directory of a lock (``parent`` is None) or its file, and check type, owner and mode."""
    wanted, mode, test = ("directory", 0o700, stat.S_ISDIR) if parent is None else ("file", 0o600, stat.S_ISREG)
    place = os.path.dirname(path) if parent is None else path
    try:
        descriptor = os.open(name, flags | _FLAGS, mode, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
            raise UnsafeLock(_unsafe_text(place, f"it is not a regular {wanted}"), lock=path) from None
        if error.errno == errno.EACCES:
            _check_foreign(path, place, name, parent)
        error.filename = place
        raise
    try:
        status = os.fstat(descriptor)
        if not test(status.st_mode):
            raise UnsafeLock(_unsafe_text(place, f"it is not a regular {wanted}"), lock=path)
        # Looking at a lock of root is safe: root may hold every lock anyway.
        if status.st_uid != os.geteuid() and (changing or status.st_uid != 0):
            raise UnsafeLock(_foreign_text(place, status.st_uid, parent), lock=path)
        if changing and stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_foreign(path: str, place: str, name: str, parent: int | None) -> None:
    """Refuse a directory or file of a lock that another user owns, where this user could not even open it."""
    with contextlib.suppress(OSError):
        owner = os.stat(name, dir_fd=parent, follow_symlinks=False).st_uid
        if owner != os.geteuid():
            raise UnsafeLock(_foreign_text(place, owner, parent), lock=path) from None


def _foreign_text(place: str, uid: int, parent: int | None) -> str:
    owner, user = user_name(uid), user_name(os.geteuid())
    # A file in a directory of this user is in the way of this user only.
    other_way = f", or run the task as {owner}" if parent is None else ""
    return _unsafe_text(place, f"it belongs to {owner}, and this task runs as {user}; remove it{other_way}")


def _unsafe_text(place: str, reason: str) -> str:
    return f"{place} is not used for locks: {reason}."


def _try(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_file_of(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    row = {"pid": os.getpid(), "user": user_name(os.geteuid()), "since": time.time()}
    # A lock without a note about its holder is still a lock: a full disk is no reason to fail.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(row).encode("utf-8", "surrogateescape"), 0)


def _timeout_text(path: str, what: str, wait_seconds: float, descriptor: int) -> str:
    holder = "Another process"
    try:
        row = json.loads(os.pread(descriptor, _HOLDER_BYTES, 0))
        age = max(0, int(time.time() - float(row["since"])))
        holder = f"Process {int(row['pid'])} of user {row['user']}"
        holding = f"has held it for {age} seconds"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        holding = "holds it"
    return (
        f"{what[:1].upper()}{what[1:]}: the lock {path} was not free within {wait_seconds:g} seconds. "
        f"{holder} {holding}. Wait for that process or end it, and run the task again."
    )
