# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a domain at two libvirts, and what stands between them.

Private to the collection. Only reads, except that it refreshes storage pools of the destination.
"""

from __future__ import annotations

import contextlib
import os
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput
from ..connection.connection import (
    Connection,
    Domain,
    LibvirtFailure,
    connected,
    default_if_unsupported,
    libvirt,
    libvirt_errors,
)
from ..connection.lookup import all_domains
from ..connection.xml import text_of, to_text
from ..disk.disks import Disk, Source, disks_of
from ..disk.images import ImageLocator
from ..domain.lifecycle import state_of
from ..storage.storage import is_local, refresh
from .plan import DiskSeen, Observed, Passage, Seen

_MOUNTS = "/proc/self/mountinfo"


class Endpoints:
    """The connections to source and destination; one that was lost is opened again when it is next asked for."""

    def __init__(self, source_uri: str, destination_uri: str, timeout_seconds: float) -> None:
        self._uris = {"source": source_uri, "destination": destination_uri}
        self._timeout_seconds = timeout_seconds
        self._stack = contextlib.ExitStack()
        self._open: dict[str, Connection] = {}

    def __enter__(self) -> Endpoints:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def get(self, end: str) -> Connection:
        """Return the connection to ``source`` or ``destination``.

        :raises TapvirtError: it does not answer.
        """
        connection = self._open.get(end)
        if connection is None or not _is_alive(connection):
            option = "uri" if end == "source" else end
            opened = connected(self._uris[end], self._timeout_seconds, option=option)
            connection = self._stack.enter_context(opened)
            self._open[end] = connection
        return connection


def _is_alive(connection: Connection) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def find(connection: Connection, name: str, uuid: str | None = None) -> Domain | None:
    """Return a domain by its UUID, or else by its name; None if it does not exist."""
    lookups: list[tuple[t.Callable[[str], Domain], str]] = [(connection.lookupByName, name)]
    if uuid is not None:
        lookups.insert(0, (connection.lookupByUUIDString, uuid))
    for lookup, key in lookups:
        try:
            return lookup(key)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return None


def see(domain: Domain | None) -> Seen | None:
    """Read a domain; None if it does not exist or disappears during the read."""
    if domain is None:
        return None
    try:
        persistent = bool(domain.isPersistent())
        return Seen(
            name=str(domain.name()),
            uuid=str(domain.UUIDString()),
            state=state_of(domain)[0],
            active=bool(domain.isActive()),
            persistent=persistent,
            autostart=bool(domain.autostart()) if persistent else False,
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def observe(ends: Endpoints, name: str, refreshing: bool) -> Observed:
    """Read one domain at both ends; ``refreshing`` lets the destination look at what is in its pools now.

    :raises TapvirtError: an end does not answer.
    """
    source, destination = ends.get("source"), ends.get("destination")
    with libvirt_errors(f"Looking up domain {name}"):
        domain = find(source, name)
        here = see(domain)
        there = see(find(destination, name, None if here is None else here.uuid))
    if here is None and there is None:
        return Observed(None, None, (*all_domains(source), *all_domains(destination)))
    if domain is None or here is None or there is not None or not here.active:
        return Observed(here, there)
    with libvirt_errors(f"Checking whether domain {name} can move to the destination"):
        return Observed(here, there, passage=_look(source, destination, domain, refreshing))


def check_ends(ends: Endpoints, places: tuple[str, str]) -> None:
    """Refuse two ends between which nothing can move; ``places`` are their URIs as they may be shown.

    :raises InvalidInput: a driver that knows no live migration, two different ones, or the same host twice.
    """
    here, there = ends.get("source"), ends.get("destination")
    with libvirt_errors("Reading what source and destination can do"):
        kinds = [str(connection.getType()) for connection in (here, there)]
        roots = [ET.fromstring(connection.getCapabilities()) for connection in (here, there)]
    for option, place, kind, root in zip(("uri", "destination"), places, kinds, roots):
        if root.find("host/migration_features/live") is None:
            raise InvalidInput(option, place, f"libvirt's driver {kind} does not support live migration")
    if kinds[0] != kinds[1]:
        source, destination = kinds
        problem = (
            f"The destination has libvirt's driver {destination} and the source has {source}, and a domain cannot move "
            "between different drivers"
        )
        raise InvalidInput("destination", places[1], problem)
    if text_of(roots[0], "host/uuid") == text_of(roots[1], "host/uuid"):
        problem = "The destination is the same host as the source: both have the same host UUID"
        raise InvalidInput("destination", places[1], problem)


def _look(source: Connection, destination: Connection, domain: Domain, refreshing: bool) -> Passage:
    root = ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE))
    host = ET.fromstring(source.getCapabilities()).find("host/cpu")
    return Passage(
        machine=_machine(destination, root),
        processor=_processor(destination, root, host),
        job=default_if_unsupported(lambda: bool(domain.jobInfo()[0]), False),
        snapshots=default_if_unsupported(lambda: int(domain.snapshotNum()), 0),
        disks=tuple(_disks(source, destination, root, refreshing)),
    )


def _target(root: ET.Element) -> tuple[str | None, str | None, str | None, str | None]:
    kind = root.find("os/type")
    arch, machine = (None, None) if kind is None else (kind.get("arch"), kind.get("machine"))
    return text_of(root, "devices/emulator"), arch, machine, root.get("type")


def _machine(destination: Connection, root: ET.Element) -> str | None:
    """Return why the destination cannot have such a machine: emulator, machine type or kind of virtualization."""
    try:
        default_if_unsupported(lambda: destination.getDomainCapabilities(*_target(root)), None)
    except libvirt.libvirtError as error:
        return _said(error)
    return None


def _processor(destination: Connection, root: ET.Element, host: ET.Element | None) -> str | None:
    """Return what the destination's processor lacks; null where nothing, or where libvirt does not compare either."""
    cpu = root.find("cpu")
    if cpu is None or cpu.get("check") == "none":
        return None
    fail = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
    try:
        if cpu.get("mode", "custom") == "custom":
            arguments = (*_target(root), to_text(cpu), fail)
            default_if_unsupported(lambda: destination.compareHypervisorCPU(*arguments), None)
        elif host is not None:
            # The guest has the source's own processor.
            text = to_text(host)
            default_if_unsupported(lambda: destination.compareCPU(text, fail), None)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            raise
        return _said(error)
    return None


def _said(error: t.Any) -> str:
    return " ".join(str(error.get_error_message() or error).split()).rstrip(".")


def _disks(source: Connection, destination: Connection, root: ET.Element, refreshing: bool) -> t.Iterator[DiskSeen]:
    disks = [disk for disk in disks_of(root) if disk.source is not None]
    if not disks:
        return
    local = is_local(source)
    wanted = {os.path.dirname(disk.source.path) for disk in disks if disk.source is not None and disk.source.path}
    # A refresh can stop a pool, so check mode asks for none; a list that may be old does not tell what is missing.
    directories = _directories(destination, wanted) if refreshing else ()
    places = ImageLocator(destination, False)
    for disk in disks:
        yield DiskSeen(disk, _is_there(places, directories, disk), _file_system(disk) if local else None)


def _directories(destination: Connection, wanted: t.Collection[str]) -> set[str]:
    """Return which directories active pools of the destination have, after a fresh look at what is in these."""
    kind = libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE
    pools: list[t.Any] = default_if_unsupported(lambda: destination.listAllStoragePools(kind), [])
    found = set()
    for pool in pools:
        path = (text_of(ET.fromstring(pool.XMLDesc(0)), "target/path") or "").rstrip("/")
        if path in wanted:
            refresh(pool)
            found.add(path)
    return found


def _is_there(places: ImageLocator, directories: t.Collection[str], disk: Disk) -> bool | None:
    source = disk.source
    if source is None or source.kind == "network":
        # On a server that the destination asks by the same name.
        return True
    try:
        if places.volume(source) is not None:
            return True
    except LibvirtFailure:
        return False
    if source.kind == "volume":
        return False
    known = source.kind == "file" and os.path.dirname(source.path or "") in directories
    return False if known else None


def _file_system(disk: Disk) -> str | None:
    source: Source | None = disk.source
    if source is None or source.kind != "file" or source.path is None:
        return None
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as stream:
            return file_system_of(os.path.realpath(source.path), stream.read())
    except OSError:
        return None


def file_system_of(path: str, mounts: str) -> str | None:
    """Return the type of the file system that a path without symbolic links is on, by the text of ``mountinfo``.

    proc(5): the fifth field is the mount point, with octal escapes; the type is the first after the lone hyphen. Of
    several mounts on one point the last is seen.
    """
    best, kind = "", None
    for line in mounts.splitlines():
        left, hyphen, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if not hyphen or len(fields) < 5:
            continue
        point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        inside = point == "/" or path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, rest[0]
    return kind
