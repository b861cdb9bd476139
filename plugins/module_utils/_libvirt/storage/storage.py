# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pools and volumes share: sizes, finding pools, and which domains stand on which files.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import fractions
import os
import re
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, TapvirtError, nearest_names
from ..connection.connection import Connection, Domain, LibvirtFailure, check_uri, libvirt, libvirt_errors, shown_uri
from ..connection.xml import SIZE_UNITS, text_of
from ..disk.disks import ANY_HOST, Source, disks_of, nvram_path
from ..disk.images import ImageLocator, is_of_this_host

INACTIVE_POOL = "The storage pool is inactive, so its volumes cannot be read"
START_POOL = "Start the pool with libvirt_pool and state: active"
# What the binding's objects are; it ships no types.
Pool = t.Any
Volume = t.Any
Rows = t.List[t.Dict[str, t.Any]]
_Found = t.TypeVar("_Found")

_SIZE = re.compile(r"(\d+)\s*([a-z]*)\Z", re.IGNORECASE)
_FRACTION = re.compile(r"(\d+\.\d+)\s*([a-z]*)\Z", re.IGNORECASE)
_FACTORS = {**{unit.lower(): factor for unit, factor in SIZE_UNITS.items()}, "": 1}
_MAX_BYTES = (1 << 63) - 1
_MAX_DIGITS = len(str(_MAX_BYTES))
# Text of a domain's <os> that is the path of a file.
_BOOT_FILES = ("loader", "kernel", "initrd", "dtb")
_NO_STORAGE = "This libvirt driver has no storage."
_USE_DAEMON = "Connect to a daemon with a storage driver, such as qemu:///system."
_SIZE_RULE = "A size is a whole number, with a unit such as MiB or GB, or without a unit in bytes"


def parse_size(option: str, text: str) -> int:
    """Return the bytes that a size such as ``10GiB``, ``10 GiB`` or ``512`` (bytes) means.

    Units are read as libvirt reads them (virScaleInteger): in any case; ``K`` and ``KiB`` are 1024, ``KB`` is 1000.

    :raises InvalidInput: no whole number, or a unit that libvirt does not know; with the nearest.
    """
    stripped = text.strip()
    found = _SIZE.match(stripped)
    if found is None:
        part = _FRACTION.match(stripped)
        factor = _FACTORS.get(part.group(2).lower()) if part else None
        nearest = []
        if part is not None and factor is not None:
            nearest = [str(int(fractions.Fraction(part.group(1)) * factor))]
        raise InvalidInput(option, text, _SIZE_RULE, candidates=nearest)
    factor = _FACTORS.get(found.group(2).lower())
    if factor is None:
        units = [unit for unit in SIZE_UNITS if len(unit) > 1 and unit[0].lower() == found.group(2)[0].lower()]
        likely = nearest_names(found.group(2), units) or units or ["MiB", "GiB"]
        problem = f"libvirt does not know the unit {found.group(2)!r}"
        raise InvalidInput(option, text, problem, candidates=[found.group(1) + unit for unit in likely])
    digits = found.group(1).lstrip("0")
    # int() refuses more than 4300 digits.
    size = int(digits or "0") * factor if len(digits) <= _MAX_DIGITS else _MAX_BYTES + 1
    if size > _MAX_BYTES:
        raise InvalidInput(option, text, f"The size is larger than libvirt's maximum, {_MAX_BYTES} bytes")
    return size


def element_size(element: ET.Element | None) -> int | None:
    """Return the bytes that ``<capacity unit='MiB'>8</capacity>`` of a user's XML means; None without the element.

    :raises InvalidInput: as ``parse_size`` does.
    """
    text = text_of(element)
    if element is None or text is None:
        return None
    return parse_size("xml", text + element.get("unit", ""))


def shown_size(size: int) -> str:
    """Return a number of bytes as people read it, exact where it is a whole number of a unit."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]} {unit}"
    return f"{size} bytes"


def check_has_storage(uri: str) -> None:
    """Refuse a root of the embedded driver before opening it would create it.

    :raises InvalidInput: the URI is malformed, or the embedded driver's.
    """
    if check_uri(uri) is not None:
        raise InvalidInput("uri", shown_uri(uri), _NO_STORAGE, _USE_DAEMON)


def list_pools(connection: Connection) -> list[Pool]:
    """Return all pools.

    :raises TapvirtError: the driver has no storage.
    """
    with libvirt_errors("Listing the storage pools"):
        try:
            return list(connection.listAllStoragePools())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                raise TapvirtError(f"{_NO_STORAGE} {_USE_DAEMON}") from error
            raise


def unknown_users(thing: str) -> tuple[str, str]:
    """Return the problem and the hint where something would be taken from domains, and the driver knows no domains."""
    return (
        f"This libvirt driver has no domains, so it is not known whether a domain uses {thing}",
        "Connect to a driver that has them, such as qemu:///system, or set allow_in_use: true",
    )


def is_local(connection: Connection) -> bool:
    """Tell whether the files that this libvirt speaks of are this host's own."""
    return is_of_this_host(str(connection.getURI()))


@dataclasses.dataclass(frozen=True)
class User:
    """A domain that stands on a file or volume; ``writes``: it runs, and may change it at any moment."""

    domain: str
    running: bool
    writes: bool


class Users:
    """Which domains stand on what, by their stored and their running definitions, with all backing files.

    ``known`` is false where the driver is of storage only and cannot tell: what is said of users is null then.
    """

    def __init__(self, connection: Connection, local: bool) -> None:
        self._places = ImageLocator(connection, local)
        self._by_name: dict[str, set[User]] = {}
        domains = _domains(connection)
        self.known = domains is not None
        for domain in domains or ():
            for root, running in _definitions(domain):
                self._add(root, running)

    def _add(self, root: ET.Element, running: bool) -> None:
        domain = text_of(root, "name") or ""
        for disk in disks_of(root):
            if disk.source is None:
                continue
            self._note(User(domain, running, running and not disk.readonly), disk.source)
            for source in (*disk.backing, *_unless_inactive(self._places.below, disk.source)):
                self._note(User(domain, running, False), source)
        files = [(tag, text_of(root, "os/" + tag)) for tag in _BOOT_FILES]
        for tag, path in (*files, ("nvram", nvram_path(root))):
            if path is not None:
                self._note(User(domain, running, running and tag == "nvram"), Source("file", path))

    def _note(self, user: User, source: Source) -> None:
        # A volume is known by its pool's name too: the pool may not be active.
        by_pool = [_volume_name(source.pool, source.volume)] if source.kind == "volume" else []
        for name in (*by_pool, *_unless_inactive(self._places.names, source)):
            self._by_name.setdefault(name, set()).add(user)

    def of_volume(self, pool: str, volume: str, path: str) -> list[User] | None:
        """Return the users of one volume, by name."""
        if not self.known:
            return None
        names = {_volume_name(pool, volume), *self._places.names(Source("file", path))}
        names.update(Source("network", path, at=protocol).word() for protocol in ANY_HOST)
        users = {user for name in names for user in self._by_name.get(name, ())}
        return sorted(users, key=lambda user: (user.domain, user.running, user.writes))

    def running_in(self, pool: str, directory: str | None, paths: t.Iterable[str]) -> list[str] | None:
        """Return the names of the running domains that use a volume of a pool, or a file below its directory."""
        if not self.known:
            return None
        names: set[str] = set()
        for path in paths:
            names |= self._places.names(Source("file", path))
        inside = tuple(root.rstrip("/") + "/" for root in (directory, os.path.realpath(directory))) if directory else ()
        volumes = _volume_name(pool, "")
        found: set[str] = set()
        for name, users in self._by_name.items():
            if name in names or name.startswith(volumes) or (inside and name.startswith(inside)):
                found.update(user.domain for user in users if user.running)
        return sorted(found)


def _unless_inactive(look: t.Callable[[Source], t.Iterable[_Found]], source: Source) -> t.Iterable[_Found]:
    """Return what is found of a source; nothing of a volume whose pool is not active."""
    try:
        return look(source)
    except LibvirtFailure as error:
        if source.kind != "volume" or error.code != libvirt.VIR_ERR_OPERATION_INVALID:
            raise
        return ()


def _volume_name(pool: str | None, volume: str | None) -> str:
    return f"volume:{pool}/{volume}"


def _domains(connection: Connection) -> list[Domain] | None:
    with libvirt_errors("Listing the domains"):
        try:
            return list(connection.listAllDomains())
        except libvirt.libvirtError as error:
            # Libvirt's storage driver by itself (storage:///system) knows none, whatever runs beside it.
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                return None
            raise


def _definitions(domain: Domain) -> list[tuple[ET.Element, bool]]:
    """Return the stored definition of a domain and the running one, each with whether the domain runs."""
    with libvirt_errors(f"Reading domain {domain.name()}"):
        try:
            active = bool(domain.isActive())
            found = [(ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)), active)]
            return [*found, (ET.fromstring(domain.XMLDesc(0)), True)] if active else found
        except libvirt.libvirtError as error:
            # It vanished meanwhile.
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return []
            raise


def refresh(pool: Pool) -> None:
    """Let libvirt look at what is in an active pool now. A pool that is busy keeps the list that it has.

    :raises TapvirtError: libvirt could not, and has stopped the pool over it (a transient one has vanished).
    """
    try:
        pool.refresh(0)
    except libvirt.libvirtError as error:
        active = pool.connect().listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
        if pool.name() not in [one.name() for one in active]:
            reason = " ".join(str(error.get_error_message()).split())
            message = f"libvirt could not read the content of pool {str(pool.name())!r} and stopped the pool: {reason}."
            raise TapvirtError(message) from error
