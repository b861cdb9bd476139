# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to write a file: whole, atomic, durable, with the access rights of the file that it replaces.

Private to the collection. Files of sysfs cannot be replaced; they are written where their rules live.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from .errors import InvalidInput
from .files import kind_of, not_regular

_SELINUX = "security.selinux"
_ATTEMPTS = 100


def write_atomic(path: str, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old or the new content, never a part, also after a power cut.

    ``mode`` is for a new file; an existing one keeps its mode, owner and SELinux label. The directory must exist.
    A link is replaced by a new file.

    :raises OSError: as the file system says, with ``path`` as its ``filename``; nothing was replaced then.
    """
    import tempfile  # most runs only read

    directory = os.path.dirname(path) or "."
    try:
        _check_replaceable(path)
        descriptor, temporary = tempfile.mkstemp(prefix=".tapvirt-", dir=directory)
        try:
            try:
                _write_all(descriptor, data)
                _take_over_rights(path, descriptor, mode)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        # The error itself names the temporary file, or none.
        raise OSError(error.errno, error.strerror, path) from error
    sync_directory(directory)


def check_target(option: str, path: str, directory: bool = False) -> None:
    """Check that a file (or a directory) can be at a path that the user gave, whether it exists or not.

    :raises InvalidInput: something else is there or above it.
    :raises PermissionError: the user may not look.
    """
    wanted = "directory" if directory else "regular file"
    made = "directory cannot be created" if directory else "file cannot be written"
    if "\0" in path:
        raise InvalidInput(option, path, "A path cannot contain a NUL byte.")
    if not directory and os.path.basename(path) in ("", ".", ".."):
        raise InvalidInput(option, path, "The path must end with the name of a file.")
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        level = os.path.dirname(path)
        while level not in ("", "/") and not os.path.lexists(level):
            level = os.path.dirname(level)
        if level and not os.path.isdir(level):
            raise InvalidInput(option, path, f"{level} is not a directory, so the {made}.") from None
        return
    except PermissionError:
        raise
    except OSError as error:
        raise InvalidInput(option, path, f"The path cannot be used: {error.strerror}.") from None
    kind = kind_of(mode) or "a regular file"
    if kind != f"a {wanted}":
        raise InvalidInput(option, path, f"The path is {kind}, not a {wanted}.")


def sync_directory(directory: str) -> None:
    """Make a rename or removal in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: str, mode: int = 0o755) -> list[str]:
    """Make a directory with those above it that do not exist; an existing one keeps its mode.

    Return those that were made, the uppermost first.

    Whatever the umask, the directory gets ``mode`` and those above it 0755: :func:`os.makedirs` gives its mode to the
    last level only, and a umask of 0 would let every user put files into the others.

    :raises OSError: as the file system says; a level that is not a directory is a NotADirectoryError.
    """
    parent = os.path.dirname(path.rstrip("/"))
    made: list[str] = []
    for _attempt in range(_ATTEMPTS):
        if os.path.isdir(path):
            return made
        if parent:
            made += make_directories(parent)
        # Another process may make the same level, or remove an empty one above it, at the same time.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            make_directory(path, mode)
            return [*made, path]
        # One look: a directory that disappears between two of them would count as none.
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def write_new_place(path: str, data: bytes, mode: int = 0o644) -> None:
    """Write a file as :func:`write_atomic` does, and the directories above it that do not exist; all or nothing.

    :raises OSError: as the file system says; directories that were made for it are removed.
    """
    made: list[str] = []
    try:
        made = make_directories(os.path.dirname(path))
        write_atomic(path, data, mode)
    except OSError:
        for directory in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        raise


def make_directory(path: str, mode: int) -> None:
    """Make a directory that does not exist, with exactly this mode.

    :raises FileExistsError: the name exists.
    :raises OSError: as the file system says.
    """
    os.mkdir(path, mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        now = stat.S_IMODE(os.fstat(descriptor).st_mode)
        # mkdir(2) takes bits away by the umask; set-group-ID comes from the directory above and stays.
        if now & 0o777 != mode:
            os.fchmod(descriptor, mode | (now & stat.S_ISGID))
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _check_replaceable(path: str) -> None:
    """Refuse to put a file in the place of a device, a FIFO, a socket or a directory.

    :raises OSError: such a file exists, or a link leads to it.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if kind_of(mode):
        raise not_regular(path, mode)


def _take_over_rights(path: str, descriptor: int, mode: int) -> None:
    try:
        old = os.lstat(path)
    except FileNotFoundError:
        old = None
    # Who can make a link must not decide by its target whose the new file is.
    if old is None or not stat.S_ISREG(old.st_mode):
        os.fchmod(descriptor, mode)
        return
    os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode) & 0o777)
    try:
        os.setxattr(descriptor, _SELINUX, os.getxattr(path, _SELINUX))
    except OSError:
        # No SELinux here, or no label: the directory's default applies.
        return
