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
import stat
import struct
import typing as t
import xml.etree.ElementTree as ET
from urllib.parse import urlsplit

from ..._core.errors import TapvirtError
from ..connection.connection import Connection, Domain, LibvirtFailure, libvirt, libvirt_errors
from ..connection.xml import text_of
from .disks import Disk, Source, disks_of

# What libvirt says where there is no such thing, or no storage driver at all (the embedded driver has none).
_NOT_THERE = ("VIR_ERR_NO_STORAGE_POOL", "VIR_ERR_NO_STORAGE_VOL", "VIR_ERR_NO_SUPPORT", "VIR_ERR_INVALID_STORAGE_VOL")
_GONE = ("VIR_ERR_NO_STORAGE_POOL", "VIR_ERR_NO_STORAGE_VOL")
_LONGEST_CHAIN = 200
_Answer = t.TypeVar("_Answer")
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
    """A disk of a domain that stands on some data: ``names`` are all names of the data.

    ``unseen`` tells why it may stand on more than that; null where it does not.
    """

    domain: str
    target: str
    names: frozenset[str]
    unseen: str | None = None


class Unseen(TapvirtError):
    """An image is there and cannot be looked into: what it stands on is not known."""


class ImageLocator:
    """Finds sources by libvirt's storage pools and, where the files are of this host, by the files themselves."""

    def __init__(self, connection: Connection | None, local: bool) -> None:
        """Prepare; without a connection there are no pools."""
        self._connection = connection
        self.local = local

    def volume(self, source: Source) -> t.Any:
        """Return the storage volume of a source; None if it is not in an active pool.

        :raises LibvirtFailure: the pool is not active, or libvirt cannot tell.
        """
        if self._connection is None:
            return None
        with libvirt_errors(f"Looking up the volume of {source.shown()}"):
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
        return None if volume is None else _unless_gone(volume.path, None)

    def names(self, source: Source) -> frozenset[str]:
        """Return all names of the data of a source. Two sources are the same data where they share one.

        :raises LibvirtFailure: it is a volume of a pool that is not active, or libvirt cannot tell.
        """
        path = self.path(source)
        if path is None:
            return frozenset([source.word()])
        return self._names_of_path(path)

    def known_names(self, source: Source) -> tuple[frozenset[str], str | None]:
        """Return the names of a source that are known, and why there may be more; null where these are all."""
        try:
            return self.names(source), None
        except LibvirtFailure as error:
            return frozenset([source.word()]), error.message

    def _names_of_path(self, path: str) -> frozenset[str]:
        if not self.local:
            return frozenset([path])
        names = {path, os.path.realpath(path)}
        # Without the file, or where it cannot be seen from here, its names are what is known.
        with contextlib.suppress(OSError):
            found = os.stat(path)
            names.add(f"inode {found.st_dev}:{found.st_ino}")
        return frozenset(names)

    def below(self, source: Source) -> list[Source]:
        """Return what a source stands on, nearest first: as its file says, or as libvirt noted of its volume.

        As far as that can be seen.
        """
        chain: list[Source] = []
        with contextlib.suppress(Unseen):
            chain.extend(self._chain(source))
        return chain

    def _chain(self, source: Source) -> t.Iterator[Source]:
        current = source
        for _level in range(_LONGEST_CHAIN):
            path = self.path(current)
            below = None if path is None else self._below_path(path)
            if below is None:
                return
            current = Source("file", below)
            yield current

    def _below_path(self, path: str) -> str | None:
        unreadable: OSError | None = None
        if self.local:
            try:
                return _read_backing_file(path)
            except (FileNotFoundError, NotADirectoryError):
                pass  # libvirt may see it
            except OSError as error:
                unreadable = error
        volume = self.volume(Source("file", path))
        if volume is not None:
            with libvirt_errors(f"Reading volume {path}"):
                xml = _unless_gone(volume.XMLDesc, None)
            if xml is not None:
                return text_of(ET.fromstring(xml), "backingStore/path")
        if unreadable is not None:
            raise Unseen(f"{path} cannot be read: {unreadable.strerror}") from unreadable
        return None

    def uses(self, domains: t.Iterable[Domain]) -> list[Use]:
        """Return every use of data by disks of domains: their sources, and all that these stand on.

        :raises LibvirtFailure: a domain cannot be read, so that its uses are not known.
        """
        return [
            use for domain in domains for root in _definitions(domain) for use in self.uses_in(str(domain.name()), root)
        ]

    def uses_in(self, domain: str, root: ET.Element | None) -> list[Use]:
        """Return every use of data by the disks of one definition."""
        return [self._use(domain, disk) for disk in disks_of(root)]

    def _use(self, domain: str, disk: Disk) -> Use:
        names: set[str] = set()
        unseen: str | None = None
        for source in (disk.source, *disk.backing):
            if source is not None:
                known, why = self.known_names(source)
                names |= known
                unseen = unseen or why
        # What the guest sees as raw stands on nothing, whatever its bytes look like.
        if disk.source is not None and disk.format != "raw" and unseen is None:
            try:
                for below in self._chain(disk.source):
                    names |= self.names(below)
            except (LibvirtFailure, Unseen) as error:
                unseen = error.message
        return Use(domain, disk.target, frozenset(names), unseen)

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
            # What vanishes meanwhile stands on nothing any more.
            empty: list[t.Any] = []
            found = [
                (_unless_gone(volume.path, None), _unless_gone(volume.XMLDesc, None))
                for pool in pools
                for volume in _unless_gone(pool.listAllVolumes, empty)
            ]
        belows = [(path, text_of(ET.fromstring(xml), "backingStore/path")) for path, xml in found if path and xml]
        return [Use("", path, self._names_of_path(below)) for path, below in belows if below]


def _unless_gone(ask: t.Callable[[], _Answer], default: _Answer) -> _Answer:
    try:
        return ask()
    except libvirt.libvirtError as error:
        if error.get_error_code() in [getattr(libvirt, name) for name in _GONE]:
            return default
        raise


def _definitions(domain: Domain) -> t.Iterator[ET.Element]:
    try:
        with libvirt_errors(f"Reading domain {domain.name()}"):
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
        return _read_backing_file(path)
    except OSError:
        return None


def _read_backing_file(path: str) -> str | None:
    # The open of another kind of file may wait for somebody at its other end.
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        return None
    with open(path, "rb") as stream:
        header = stream.read(_QCOW2.size)
        if len(header) < _QCOW2.size or header[:4] != _QCOW2_MAGIC:
            return None
        _magic, _version, offset, length = _QCOW2.unpack(header)
        if not offset or not 0 < length <= _LONGEST_NAME:
            return None
        stream.seek(offset)
        name = stream.read(length).decode("utf-8", "surrogateescape")
    file = _file_name(name)
    return os.path.join(os.path.dirname(os.path.realpath(path)), file) if file else None


def _file_name(name: str) -> str | None:
    """Return the file in a name as QEMU writes it: plain, ``file:...`` or ``json:{...}``; null for what is no file."""
    if name.startswith("json:"):
        try:
            value = json.loads(name[len("json:") :])
        except (ValueError, RecursionError):
            return None
        while isinstance(value, dict) and isinstance(value.get("file"), dict):
            value = value["file"]
        found = (value.get("filename") or value.get("file.filename")) if isinstance(value, dict) else None
        return found if isinstance(found, str) else None
    if name.startswith("file:"):
        return name[len("file:") :]
    return None if "://" in name else name
