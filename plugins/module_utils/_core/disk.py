# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors of a full, read-only or broken file system as sentences. Private to the collection."""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from .errors import TapvirtError

_REASONS = {
    errno.ENOSPC: "has no space left",
    errno.EDQUOT: "is used up to this user's quota",
    errno.EROFS: "is read-only",
    errno.EIO: "reports an I/O error",
}
_NO_INODES = "has no inodes left, so no file can be made"
# What tempfile raises when it can write to none of its directories; there is no other mark of it.
_NO_TEMPORARY = "No usable temporary directory found in "


def disk_failure(error: OSError) -> str | None:
    """Return a sentence that names the file and what is wrong with its file system; None for another error."""
    if error.strerror and error.strerror.startswith(_NO_TEMPORARY):
        places = error.strerror[len(_NO_TEMPORARY) :]
        return f"A temporary file cannot be written: every one of {places} is full, read-only or missing."
    reason = _REASONS.get(error.errno or 0)
    if reason is None:
        return None
    path = error.filename2 or error.filename
    if not isinstance(path, (str, bytes)):
        return f"A file cannot be written: its file system {reason}."
    path = os.fsdecode(path)
    if error.errno == errno.ENOSPC and _lacks_inodes(path):
        reason = _NO_INODES
    return f"{path} cannot be written: its file system {reason}."


@contextlib.contextmanager
def disk_errors(consequence: str) -> t.Iterator[None]:
    """Turn errors of a file system in the block into one that adds what became of the task, a true sentence.

    :raises TapvirtError: the file system of a file is full, read-only or broken.
    """
    try:
        yield
    except OSError as error:
        text = disk_failure(error)
        if text is None:
            raise
        raise TapvirtError(f"{text} {consequence}") from error


def _lacks_inodes(path: str) -> bool:
    """Return whether a file system has inodes and none is free; one without a fixed number of them has f_files 0."""
    while path not in ("", "/") and not os.path.isdir(path):
        path = os.path.dirname(path)
    try:
        status = os.statvfs(path or ".")
    except OSError:
        return False
    return status.f_files > 0 and status.f_favail == 0
