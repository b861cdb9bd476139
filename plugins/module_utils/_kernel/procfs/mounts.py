# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a kernel file system is mounted. Private to the collection."""

from __future__ import annotations

from ..._core.root import Root
from .devices import mounts


def mount_point(root: Root, kind: str) -> str | None:
    """Return the first mount point of a file-system type (``debugfs``, ``tracefs``), or null."""
    rows = mounts(root.read_text_or("proc/self/mounts") or "", [])
    return next((row["target"] for row in rows if row["type"] == kind), None)
