# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images below the disks of domains: as a running domain's XML tells, or the storage pool of a stopped one's disk.

Private to the collection.
"""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

from ...connection.connection import Connection, libvirt
from ...connection.xml import text_of
from .info import source_of

_MAX_DEPTH = 64
_Image = t.Dict[str, t.Any]


class Backing:
    """Looks images up, each of them once for all domains."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The image below each one: in a list, or an empty one; null where nobody knows.
        self._below: dict[str, list[_Image] | None] = {}

    def row(self, disk: ET.Element) -> dict[str, t.Any]:
        """Return the images below a disk, the nearest first, as far as they are known.

        ``images`` is null where nothing is known, ``complete`` false where more may follow.
        """
        target = disk.find("target")
        images, complete = images_in_xml(disk)
        if images is None:
            images, complete = self._images_in_pools(disk.find("source"))
        return {"target": None if target is None else target.get("dev"), "images": images, "complete": complete}

    def _images_in_pools(self, source: ET.Element | None) -> tuple[list[_Image] | None, bool]:
        if source is None:
            return [], True  # an empty drive
        if source.get("pool"):
            below = self._below_volume(source.get("pool") or "", source.get("volume") or "")
        else:
            below = self._below_path(source.get("file") or source.get("dev"))
        if below is None:
            return None, False
        images: list[_Image] = []
        while below and len(images) < _MAX_DEPTH:
            images += below
            below = self._below_path(below[0]["source"])
        return images, below == []

    def _below_volume(self, pool: str, volume: str) -> list[_Image] | None:
        look_up = self._connection.storagePoolLookupByName
        return self._looked_up(f"{pool}/{volume}", lambda: look_up(pool).storageVolLookupByName(volume))

    def _below_path(self, path: str | None) -> list[_Image] | None:
        look_up = self._connection.storageVolLookupByPath
        return None if path is None else self._looked_up(path, lambda: look_up(path))

    def _looked_up(self, key: str, look_up: t.Callable[[], t.Any]) -> list[_Image] | None:
        if key not in self._below:
            try:
                self._below[key] = image_below(ET.fromstring(look_up().XMLDesc(0)))
            except libvirt.libvirtError:
                # In no active pool, or a driver without pools.
                self._below[key] = None
        return self._below[key]


def image_below(volume: ET.Element) -> list[_Image]:
    """Return the image below a storage volume, from its XML, in a list; empty if it has no image below."""
    path = text_of(volume, "backingStore/path")
    return [] if path is None else [_image(path, volume.find("backingStore/format"))]


def images_in_xml(disk: ET.Element) -> tuple[list[_Image] | None, bool]:
    """Return the images that a domain's XML lists below a disk, and whether it lists the last one.

    A chain ends with an empty <backingStore> (libvirt's page "Domain XML format"); null where there is no chain.
    """
    store = disk.find("backingStore")
    if store is None:
        return None, False
    images: list[_Image] = []
    while store is not None and len(store) and len(images) < _MAX_DEPTH:
        images.append(_image(source_of(store.find("source")), store.find("format")))
        store = store.find("backingStore")
    return images, store is not None and not len(store)


def _image(source: str | None, image_format: ET.Element | None) -> _Image:
    return {"source": source, "format": None if image_format is None else image_format.get("type")}
