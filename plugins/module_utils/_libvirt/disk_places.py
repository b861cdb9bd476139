# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the sources of disks really are, and what they stand on: by libvirt's pools, and by the files of this host.

Private to the collection. Only reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
import typing as t
import xml.etree.ElementTree as ET
from urllib.parse import urlsplit

from .connection import Connection, Domain, LibvirtFailure, libvirt, libvirt_errors
from .definition import text_of
from .disks import Source, disks_of

# What libvirt says where there is no such thing, or no storage driver at all (the embedded driver has none).
_NOT_THERE = ("VIR_ERR_NO_STORAGE_POOL", "VIR_ERR_NO_STORAGE_VOL", "VIR_ERR_NO_SUPPORT", "VIR_ERR_INVALID_STORAGE_VOL")
_LONGEST_CHAIN = 200
# QEMU's page "Qcow2 image format": magic, version, offset and length of the backing file's name, big endian.
_QCOW2 = struct.Struct(">4sIQI")
_QCOW2_MAGIC = b"QFI\xfb"
_LONGEST_NAME = 1023


def is_of_this_host(uri: str) -> bool:
    """Tell whether a URI's files are this host's: a hypervisor without a transport and without a host name.

    The test driver's are nobody's: it makes its disks up.
    """
    parts = urlsplit(uri)
    elsewhere = "+" in parts.scheme or parts.scheme in ("", "test", "remote")
    return not (elsewhere or parts.netloc or "socket=" in parts.query)


@dataclasses.dataclass(frozen=True)
class Use:
    """A disk of a domain that stands on some data: ``names`` are all names of the data."""

    domain: str
    target: str
    names: frozenset[str]


class DiskPlaces:
    """Finds sources by libvirt's storage pools and, where the files are of this host, by the files themselves."""

    def __init__(self, connection: Connection | None, local: bool) -> None:
        """Prepare; without a connection there are no pools."""
        self._connection = connection
        self.local = local

    def volume(self, source: Source) -> t.Any:
        """Return the storage volume that a source is, null where it is none of an active pool.

        :raises LibvirtFailure: the pool is not active, or libvirt cannot tell.
        """
        if self._connection is None:
            return None
        with libvirt_errors("Looking up the volume of {0}".format(source.shown())):
            try:
                if source.kind == "volume":
                    return self._connection.storagePoolLookupByName(source.pool).storageVolLookupByName(source.volume)
                return self._connection.storageVolLookupByPath(source.path) if source.path else None
            except libvirt.libvirtError as error:
                if error.get_error_code() in [getattr(libvirt, name) for name in _NOT_THERE]:
                    return None
                raise

    def path(self, source: Source) -> str | None:
        """Return the path of a source; null where it has none that is known."""
        if source.kind != "volume":
            return source.path if source.kind in ("file", "block", "dir") else None
        volume = self.volume(source)
        return None if volume is None else str(volume.path())

    def names(self, source: Source) -> frozenset[str]:
        """Return all names of the data of a source. Two sources are the same data where they share one."""
        path = self.path(source)
        if path is None:
            return frozenset(["{0}:{1}".format(source.kind, source.shown())])
        return self._names_of_path(path)

    def _names_of_path(self, path: str) -> frozenset[str]:
        if not self.local:
            return frozenset([path])
        names = {path, os.path.realpath(path)}
        # Without the file, or where it cannot be seen from here, its names are what is known.
        with contextlib.suppress(OSError):
            found = os.stat(path)
            names.add("inode {0}:{1}".format(found.st_dev, found.st_ino))
        return frozenset(names)

    def below(self, source: Source) -> list[Source]:
        """Return what a source stands on, nearest first: as its file says, or as libvirt noted of its volume."""
        chain: list[Source] = []
        current: Source | None = source
        while current is not None and len(chain) < _LONGEST_CHAIN:
            path = self.path(current)
            below = None if path is None else self._below_path(path)
            current = None if below is None else Source("file", below)
            if current is not None:
                chain.append(current)
        return chain

    def _below_path(self, path: str) -> str | None:
        if self.local and os.path.isfile(path):
            return backing_file(path)
        volume = self.volume(Source("file", path))
        if volume is None:
            return None
        with libvirt_errors("Reading volume {0}".format(path)):
            return text_of(ET.fromstring(volume.XMLDesc(0)), "backingStore/path")

    def uses(self, domains: t.Iterable[Domain]) -> list[Use]:
        """Return every use of data by disks of domains: their sources, and all that these stand on.

        :raises LibvirtFailure: a domain cannot be read, so that its uses are not known.
        """
        uses = []
        for domain in domains:
            name = str(domain.name())
            for root in _definitions(domain):
                for disk in disks_of(root):
                    sources = [disk.source, *disk.backing] if disk.source is not None else [*disk.backing]
                    if disk.source is not None:
                        sources += self.below(disk.source)
                    names = frozenset().union(*(self.names(source) for source in sources))
                    uses.append(Use(name, disk.target, names))
        return uses

    def volume_uses(self) -> list[Use]:
        """Return what the volumes of all active pools stand on, as uses by no domain; the target is the volume."""
        if self._connection is None:
            return []
        with libvirt_errors("Listing the volumes"):
            try:
                pools = self._connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                    return []
                raise
            found = [
                (str(volume.path()), text_of(ET.fromstring(volume.XMLDesc(0)), "backingStore/path"))
                for pool in pools
                for volume in pool.listAllVolumes()
            ]
        return [Use("", path, self._names_of_path(below)) for path, below in found if below]


def _definitions(domain: Domain) -> t.Iterator[ET.Element]:
    try:
        with libvirt_errors("Reading domain {0}".format(domain.name())):
            yield ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
            if domain.isActive():
                yield ET.fromstring(domain.XMLDesc(0))
    except LibvirtFailure as error:
        if error.code != libvirt.VIR_ERR_NO_DOMAIN:
            raise


def backing_file(path: str) -> str | None:
    """Return the path of the file that an image of this host stands on; null where it is no overlay of a file.

    Reads the image's header only (qcow2), so that a running guest's image can be asked, too.
    """
    try:
        with open(path, "rb") as stream:
            header = stream.read(_QCOW2.size)
            if len(header) < _QCOW2.size or header[:4] != _QCOW2_MAGIC:
                return None
            _magic, _version, offset, length = _QCOW2.unpack(header)
            if not offset or not 0 < length <= _LONGEST_NAME:
                return None
            stream.seek(offset)
            name = stream.read(length).decode("utf-8", "surrogateescape")
    except OSError:
        return None
    file = _file_name(name)
    return os.path.join(os.path.dirname(os.path.realpath(path)), file) if file else None


def _file_name(name: str) -> str | None:
    """Return the file in a name as QEMU writes it: plain, ``file:...`` or ``json:{...}``; null for what is no file."""
    if name.startswith("json:"):
        try:
            value = json.loads(name[len("json:") :])
        except ValueError:
            return None
        while isinstance(value, dict) and isinstance(value.get("file"), dict):
            value = value["file"]
        found = (value.get("filename") or value.get("file.filename")) if isinstance(value, dict) else None
        return found if isinstance(found, str) else None
    if name.startswith("file:"):
        return name[len("file:") :]
    return None if "://" in name else name
