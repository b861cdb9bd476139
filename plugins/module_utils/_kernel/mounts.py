# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a kernel file system is mounted. Private to the collection."""

from __future__ import annotations

import re

from .._core.root import Root

_OCTAL = re.compile(r"\\([0-7]{3})")


def mount_point(root: Root, kind: str) -> str | None:
    """Return the first mount point of a file-system type (``debugfs``, ``tracefs``), or null.

    proc_mounts(5) writes white space and backslashes in names as three octal digits.
    """
    for line in (root.read_text_or("proc/self/mounts") or "").splitlines():
        fields = line.split(" ")
        if len(fields) > 2 and fields[2] == kind:
            return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), fields[1])
    return None
