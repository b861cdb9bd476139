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
import fcntl
import hashlib
import json
import os
import pwd
import re
import stat
import typing as t

from ..._core import lock
from ..._core.errors import InvalidInput
from ..._core.files import foreign_level, not_regular, open_regular, user_name
from ..._core.root import Root
from ..._core.write import check_target

KEY = re.compile(r"^[0-9a-f]{64}\Z")
_LOCKS = ".lock"
_LOCK_NAME = re.compile(r"(?:[0-9a-f]{64}|slot-\d+)\Z")


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def is_directory(path: str) -> bool:
    """Return whether a path is a directory, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def read_row(folder: str) -> dict[str, t.Any] | None:
    """Return what is written of a build in its folder, or null."""
    try:
        row = json.loads(Root(folder).read_text("build.json"))
    except (OSError, ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def check_owner(directory: str) -> None:
    """Check that no other user can put links and files into the way of this task.

    :raises InvalidInput: another user owns the store or a directory above it, everybody can write to it, or its path
        is not that of a directory.
    """
    found = _foreign_owner(directory)
    if found:
        level, uid = found
        owner, user = user_name(uid), user_name(os.geteuid())
        problem = f"The user {owner} owns {level} and controls the store, but this task runs as {user}"
        raise InvalidInput("store", directory, problem, f"Run the task with become_user: {owner}")


def check_absolute(directory: str | None) -> None:
    """Check the path of a store.

    :raises InvalidInput: it is missing or relative.
    """
    if not directory or not directory.startswith("/"):
        raise InvalidInput("store", directory, "The path of a store must be absolute")


def _foreign_owner(directory: str) -> tuple[str, int] | None:
    check_absolute(directory)
    check_target("store", directory, directory=True)
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(os.stat(directory).st_mode)
        if mode & 0o002:
            problem = f"Every user can write to the store (mode {mode:04o})"
            raise InvalidInput("store", directory, problem, f"Run chmod o-w {directory}")
    return foreign_level(directory)


@contextlib.contextmanager
def as_owner(directory: str, check_mode: bool) -> t.Iterator[None]:
    """Work in a store with the rights of its owner only, where root works in that of another user.

    For work on files: a program that is started in the block could become root again. Lock files that the owner could
    not take are removed first, except in check mode.

    :raises InvalidInput: as :func:`check_owner`, for others than root.
    """
    found = _foreign_owner(directory)
    if found is None or os.geteuid() != 0:
        check_owner(directory)
        yield
        return
    uid = found[1]
    if not check_mode:
        _remove_foreign_locks(directory, uid)
    before = os.getgroups(), os.getegid()
    try:
        entry = pwd.getpwuid(uid)
        groups, gid = os.getgrouplist(entry.pw_name, entry.pw_gid), entry.pw_gid
    except KeyError:
        groups, gid = [], uid
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        # Ansible reads its own files afterwards, which are root's.
        os.seteuid(0)
        os.setegid(before[1])
        os.setgroups(before[0])


def _remove_foreign_locks(directory: str, uid: int) -> None:
    """Remove what an earlier root task left in a store's directory of locks, unless a process holds it.

    The store's owner may change names at any time, so only free regular files with the name of a lock are removed,
    and only in a directory that this owner has: the owner could remove them as well.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        locks = os.open(os.path.join(directory, _LOCKS), flags | os.O_DIRECTORY)
        stack.callback(os.close, locks)
        if os.fstat(locks).st_uid != uid:
            return
        for name in filter(_LOCK_NAME.match, os.listdir(locks)):
            with contextlib.suppress(OSError):
                _remove_foreign_lock(locks, name, flags, uid)


def _remove_foreign_lock(locks: int, name: str, flags: int, uid: int) -> None:
    """Remove a lock's file unless the store's owner has it or a process holds it.

    :raises OSError: as the file system says; a held lock is a BlockingIOError.
    """
    status = os.stat(name, dir_fd=locks, follow_symlinks=False)
    if status.st_uid == uid or not stat.S_ISREG(status.st_mode):
        return
    descriptor = os.open(name, flags, dir_fd=locks)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=locks)
    finally:
        os.close(descriptor)


class Store:
    """The builds that a builder keeps."""

    def __init__(self, directory: str, wait_seconds: float = lock.WAIT_SECONDS) -> None:
        self.directory = directory
        self._wait_seconds = wait_seconds

    def folder(self, key: str) -> str:
        return os.path.join(self.directory, key)

    def kept(self) -> list[str]:
        """Return the keys of what is kept; a link is not followed."""
        return [
            name for name in Root(self.directory).listdir("") if KEY.match(name) and is_directory(self.folder(name))
        ]

    def read(self, key: str) -> dict[str, t.Any] | None:
        """Return what is known of a finished build, or null; a damaged one counts as absent."""
        build = read_row(self.folder(key))
        try:
            whole = build is not None and hash_file(build["path"]) == build["sha256"]
        except (OSError, KeyError, TypeError, ValueError):
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
        path = os.path.join(self.directory, "builds.log")
        # Of a link, a FIFO or a device that lies there, none is written.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(path, flags, 0o644)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise not_regular(path, status.st_mode)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def row(self) -> dict[str, t.Any]:
        """Return the store's own account: how many compilations were ever done, and how many modules it keeps."""
        builds = 0
        with contextlib.suppress(OSError):
            builds = sum(1 for _line in Root(self.directory).lines("builds.log"))
        return {"directory": self.directory, "builds": builds, "modules": len(self.kept())}
