# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What volumes are, and what stands on them.

Private to the collection. Only reads.
"""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

from ..connection.connection import Connection, libvirt
from ..connection.xml import text_of
from ..disk.disks import Source
from ..disk.images import ImageLocator
from .storage import Pool, Users, Volume
from .volume_data import BackingFile, VolumeSeen, WantedVolume


def may_lose_data(wanted: WantedVolume, seen: VolumeSeen) -> bool:
    """Tell whether what stands on a volume has to be known before it becomes what is wanted."""
    resized = wanted.capacity is not None and wanted.capacity != seen.capacity
    replaced = wanted.checksum is not None and wanted.checksum != seen.digest
    return wanted.state == "absent" or resized or replaced


def find_volume(pool: Pool, name: str) -> tuple[Volume, VolumeSeen | None]:
    """Return a volume of an active pool and what it is; null for both where it is not there."""
    try:
        volume = pool.storageVolLookupByName(name)
        return volume, read_volume(volume)
    except libvirt.libvirtError as error:
        # Also said of a volume whose file has gone.
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None, None
        raise


def read_volume(volume: Volume) -> VolumeSeen:
    """Return what a volume is."""
    root = ET.fromstring(volume.XMLDesc(0))
    _type, capacity, allocation = volume.info()
    below = text_of(root, "backingStore/path")
    return VolumeSeen(
        path=str(volume.path()),
        capacity=capacity,
        allocation=allocation,
        format=_format(root, "target/format"),
        backing=None if below is None else BackingFile(below, _format(root, "backingStore/format")),
    )


def _format(root: ET.Element, path: str) -> str | None:
    element = root.find(path)
    return None if element is None else element.get("type")


class BackingUsers:
    """What stands on volumes, domains and other volumes; looked up when it is first asked for."""

    def __init__(self, connection: Connection, local: bool) -> None:
        self._connection, self._local = connection, local
        self._users: Users | None = None
        self._below: list[tuple[str, frozenset[str]]] = []

    def upon(self, pool: str, name: str, seen: VolumeSeen) -> VolumeSeen:
        """Return what a volume is, completed by what stands on it."""
        places = ImageLocator(self._connection, self._local)
        if self._users is None:
            self._users = Users(self._connection, self._local)
            self._below = [(use.target, use.names) for use in places.volume_uses()]
        names = places.names(Source("file", seen.path))
        overlays = tuple(sorted(path for path, below in self._below if below & names))
        users = self._users.of_volume(pool, name, seen.path)
        return dataclasses.replace(seen, users=None if users is None else tuple(users), overlays=overlays)
