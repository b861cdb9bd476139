# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to write a file: whole, atomic, durable, with the access rights of the file that it replaces.

Private to the collection. Files of sysfs cannot be replaced; they are written where their rules live.
"""

from __future__ import annotations

import os
import stat
import tempfile

_SELINUX = "security.selinux"


def write_atomic(path: str, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old or the new content, never a part, also after a power cut.

    ``mode`` is for a new file; an existing one keeps its mode, owner and SELinux label. The directory must exist.

    :raises OSError: as the file system says; nothing was replaced then.
    """
    directory = os.path.dirname(path) or "."
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
    sync_directory(directory)


def sync_directory(directory: str) -> None:
    """Make a rename or removal in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _take_over_rights(path: str, descriptor: int, mode: int) -> None:
    try:
        old = os.stat(path)
    except FileNotFoundError:
        os.fchmod(descriptor, mode)
        return
    os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
    try:
        os.setxattr(descriptor, _SELINUX, os.getxattr(path, _SELINUX))
    except OSError:
        # No SELinux here, or no label: the directory's default applies.
        return
