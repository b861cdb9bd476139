# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a path is and who owns it, and a way to open regular files only.

Private to the collection. The supervisor's program holds a copy of this file: standard library only.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t

# Readers of single files do without the import of typing, as root.py does.

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
_NULL_DEVICE = os.makedev(1, 3)


def kind_of(mode: int) -> str | None:
    """Return what a file is that is not a regular one, as in ``a FIFO``; None for a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def not_regular(path: str, mode: int) -> OSError:
    """Return the error for a path that is not a regular file; its ``strerror`` is a clause."""
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    return OSError(number, f"it is {kind_of(mode)}, not a regular file", path)


def open_regular(path: str, buffering: int = -1) -> t.BinaryIO:
    """Open a regular file to read its bytes; /dev/null is an empty one, as in links that mask a file of /etc.

    The open of a FIFO waits for its writer, and the open of a device may do anything, so neither is opened.

    :raises OSError: as the file system says; ``strerror`` names the type of what is not a regular file.
    """
    return open(path, "rb", buffering=buffering, opener=_open)


def _open(path: str, flags: int) -> int:
    status = os.stat(path)
    if kind_of(status.st_mode) and not (stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL_DEVICE):
        raise not_regular(path, status.st_mode)
    # Another file may have taken its place since.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def user_name(uid: int) -> str:
    """Return a user's name, or the number where no user has it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def foreign_level(path: str) -> tuple[str, int] | None:
    """Return the lowest level of a path that another user owns, and that user; None where there is no such level.

    A user who owns one level can replace everything below it. Root's levels are trusted, and so are those of the
    owner of ``/``: in a user namespace that may be the overflow user.
    """
    trusted = {0, os.geteuid(), os.stat("/").st_uid}
    level = os.path.realpath(path)
    while True:
        try:
            owner = os.lstat(level).st_uid
        except FileNotFoundError:
            owner = 0
        if owner not in trusted:
            return level, owner
        if level == "/":
            return None
        level = os.path.dirname(level)
