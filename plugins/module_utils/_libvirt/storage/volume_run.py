# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many storage volumes in one go: check the input, observe, plan, apply volume by volume, verify.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, TapvirtError, did_you_mean, duplicate, error_row, nearest_names
from ..connection.connection import Connection, connected, libvirt, libvirt_errors
from ..connection.xml import check_name, fill_or_check_name, parse_definition, text_of
from ..item_run import Item, ItemRun, entry_path
from .pool_plan import path_of, type_of
from .schema import schema_errors
from .storage import (
    Pool,
    Volume,
    check_has_storage,
    element_size,
    is_local,
    list_pools,
    parse_size,
    refresh,
    shown_size,
)
from .volume_content import Log, digest_of_file, digest_of_volume, inspect_source, upload
from .volume_data import FILE_POOLS, IN_XML, PLAIN, BackingFile, PoolSeen, Seen, SourceFile, VolumeSeen, WantedVolume
from .volume_plan import VolumePlan, plan_volume
from .volume_read import BackingUsers, find_volume, may_lose_data

_SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})\Z", re.IGNORECASE)


def read_wanted(items: t.Sequence[t.Mapping[str, t.Any]], option: str = "volumes") -> list[WantedVolume]:
    """Turn a user's list into ``WantedVolume``, all of it checked.

    :param option: the option that lists the items; empty where the task's own options describe its only item.
    :raises InvalidInput: a name that is invalid or given twice, a size in an unknown unit, options that exclude
        each other.
    """
    wanted: list[WantedVolume] = []
    seen: dict[str, int] = {}
    for index, item in enumerate(items):
        with entry_path(option, index):
            one = _read_entry(item)
            if one.name in seen:
                raise duplicate("name", one.volume, f"{option}[{seen[one.name]}]", "pool and name")
        seen[one.name] = index
        wanted.append(one)
    return wanted


def _read_entry(item: t.Mapping[str, t.Any]) -> WantedVolume:
    check_name("pool", item.get("pool"))
    check_name("name", item["name"])
    _check_together(item)
    capacity, allocation, form = item.get("capacity"), item.get("allocation"), item.get("format")
    backing = item.get("backing")
    wanted = WantedVolume(
        pool=item["pool"],
        volume=item["name"],
        state=item["state"],
        capacity=None if capacity is None else parse_size("capacity", capacity),
        allocation=None if allocation is None else parse_size("allocation", allocation),
        sizes={"capacity": capacity, "allocation": allocation},
        format=form,
        backing=None if backing is None else BackingFile(backing["path"], backing["format"]),
        source=item.get("source"),
        clone_from=item.get("clone_from"),
        checksum=_checksum(item.get("checksum")),
        force_shrink=item["force_shrink"],
        allow_in_use=item["allow_in_use"],
    )
    if item.get("xml"):
        wanted = _with_xml(wanted, item["xml"])
    _check_values(wanted)
    return wanted


def _check_together(item: t.Mapping[str, t.Any]) -> None:
    given = {key for key, value in item.items() if value is not None}
    for key in IN_XML:
        if "xml" in given and key in given:
            problem = f"xml and {key} cannot be used together, because the XML contains the {key}"
            raise InvalidInput(key, item[key], problem)
    if {"source", "clone_from"} <= given:
        raise InvalidInput("source", item["source"], "source and clone_from cannot be used together")
    if "checksum" in given and "source" not in given:
        raise InvalidInput("checksum", item["checksum"], "A checksum needs source, the file that it belongs to")


def _checksum(text: str | None) -> str | None:
    if text is None:
        return None
    found = _SHA256.match(text.strip())
    if found is None:
        raise InvalidInput("checksum", text, "The checksum is a SHA-256, which has 64 hexadecimal digits")
    return found.group(1).lower()


def _with_xml(wanted: WantedVolume, text: str) -> WantedVolume:
    root = parse_definition(text, "volume")
    fill_or_check_name("volume", wanted.volume, root)
    form, below = root.find("target/format"), text_of(root, "backingStore/path")
    below_form = root.find("backingStore/format")
    return dataclasses.replace(
        wanted,
        root=root,
        xml=text,
        capacity=element_size(root.find("capacity")),
        allocation=element_size(root.find("allocation")),
        format=None if form is None else form.get("type"),
        backing=None if below is None else BackingFile(below, None if below_form is None else below_form.get("type")),
    )


def _check_values(wanted: WantedVolume) -> None:
    if wanted.clone_from is not None:
        check_name("clone_from", wanted.clone_from)
    paths = {"source": wanted.source, "backing.path": wanted.backing.path if wanted.backing else None}
    for option, path in paths.items():
        if path is not None and not os.path.isabs(path):
            raise wanted.refusal(option, path, "The path is not absolute")
    if wanted.backing is not None and (wanted.source is not None or wanted.clone_from is not None):
        problem = "A volume with a backing file cannot have the content of source or clone_from"
        raise wanted.refusal("backing.path", wanted.backing.path, problem)
    if wanted.backing is not None and wanted.format in PLAIN:
        problem = "A volume of this format cannot have a backing file"
        raise wanted.refusal("format", wanted.format, problem, candidates=["qcow2"])
    if wanted.source is not None and wanted.format not in (None, *PLAIN, "qcow2"):
        problem = "An image of this format cannot be uploaded"
        raise wanted.refusal("format", wanted.format, problem, candidates=["raw", "qcow2"])
    if wanted.allocation is not None and wanted.capacity is not None and wanted.allocation > wanted.capacity:
        problem = f"The allocation is larger than the capacity, {shown_size(wanted.capacity)}"
        raise wanted.refusal("allocation", shown_size(wanted.allocation), problem)


_Item = Item[WantedVolume, Seen, VolumePlan]


class VolumeRun(ItemRun[WantedVolume, Seen, VolumePlan]):
    """Converges storage volumes on one connection. ``log`` receives the progress of an upload."""

    rows = "volumes"

    def __init__(self, wanted: t.Sequence[WantedVolume], log: Log, option: str | None = None) -> None:
        """Prepare the run.

        :param option: as ``read_wanted`` takes it.
        """
        super().__init__(wanted, VolumePlan, option)
        self._log = log
        self._local, self._check_mode = False, False
        # Of the volumes planned so far: the bytes that they will take, by pool; what they will be, by name.
        self._reserved: dict[str, int] = {}
        self._coming: dict[str, VolumeSeen] = {}
        # The digests of what was uploaded, read back, by name.
        self._uploaded: dict[str, str] = {}

    def converge(self, uri: str, timeout_seconds: float, check_mode: bool, with_diff: bool) -> dict[str, t.Any]:
        """Plan, apply unless in check mode, verify; return the module's result.

        :raises TapvirtError: at least one volume failed; the rows of all are in its fields.
        """
        check_has_storage(uri)
        refusals = schema_errors(item.wanted for item in self._items)
        for item in self._items:
            item.fail(refusals.get(item.wanted.name))
        with connected(uri, timeout_seconds) as connection:
            self._local, self._check_mode = is_local(connection), check_mode
            self.run(connection, check_mode)
        return self.result(check_mode, with_diff)

    # ---- observe ----

    def _observe(self, connection: Connection) -> None:
        pools = {str(pool.name()): pool for pool in list_pools(connection)}
        wanted = {item.wanted.pool for item in self._items}
        seen = {name: self._see_pool(pool) for name, pool in pools.items() if name in wanted}
        names = {name: _volumes_in(pools[name]) for name, pool in seen.items() if pool.active}
        self._standing = BackingUsers(connection, self._local)
        for item in self._items:
            one = item.wanted
            found = Seen(pool=seen.get(one.pool), pools=tuple(pools), volumes=names.get(one.pool, ()))
            if found.pool is not None and found.pool.active:
                with libvirt_errors(f"Reading volume {one.name}"):
                    found = self._see(connection, pools[one.pool], item, found)
            elif found.pool is None and one.state == "absent":
                self._warn_of_pool(one, pools)
            item.observed = found

    def _warn_of_pool(self, wanted: WantedVolume, pools: t.Collection[str]) -> None:
        nearest = nearest_names(wanted.pool, pools)
        absent = f"Volume {wanted.name!r} is absent, because no storage pool is called {wanted.pool!r}."
        warning = absent + did_you_mean(nearest)
        if warning not in self._warnings:
            self._warnings.append(warning)

    def _see_pool(self, pool: Pool) -> PoolSeen:
        with libvirt_errors(f"Reading pool {pool.name()}"):
            root = ET.fromstring(pool.XMLDesc(0))
            if pool.isActive() and self._may_refresh(type_of(root), path_of(root)):
                refresh(pool)
            active = bool(pool.isActive())
            _state, capacity, _allocation, available = pool.info()
        return PoolSeen(type_of(root), active, path_of(root), capacity, available)

    def _may_refresh(self, kind: str, path: str | None) -> bool:
        """Tell whether libvirt may look at what is in a pool: it stops the pool where it cannot.

        In check mode, the module has to see in advance that libvirt can read the pool.
        """
        if self._check_mode:
            return self._local and kind in FILE_POOLS and path is not None and os.access(path, os.R_OK | os.X_OK)
        return not self._local or path is None or os.path.exists(path)

    def _see(self, connection: Connection, pool: Pool, item: _Item, found: Seen) -> Seen:
        wanted = item.wanted
        volume, seen = find_volume(pool, wanted.volume)
        source, origin = None, None
        if wanted.state == "present" and wanted.source is not None and (seen is None or wanted.checksum is not None):
            try:
                source, seen = self._see_content(connection, wanted, wanted.source, volume, seen)
            except InvalidInput as error:
                item.fail(error)
        if seen is None and wanted.clone_from is not None:
            origin = find_volume(pool, wanted.clone_from)[1]
            origin = None if origin is None else self._standing.upon(wanted.pool, wanted.clone_from, origin)
        elif seen is not None and may_lose_data(wanted, seen):
            seen = self._standing.upon(wanted.pool, wanted.volume, seen)
        below = wanted.backing.path if wanted.backing is not None and seen is None and self._local else None
        missing = below is not None and not os.path.exists(below)
        return dataclasses.replace(found, volume=seen, source=source, origin=origin, backing_missing=missing)

    def _see_content(
        self, connection: Connection, wanted: WantedVolume, path: str, volume: Volume, seen: VolumeSeen | None
    ) -> tuple[SourceFile, VolumeSeen | None]:
        """Look at the file to upload and, where a checksum holds it, at what is in the volume."""
        source = inspect_source(path)
        if seen is not None:
            digest = self._uploaded.get(wanted.name)
            if digest is None:
                digest = digest_of_volume(connection, wanted.name, volume, source.size)
            seen = dataclasses.replace(seen, digest=digest)
        if wanted.checksum is not None and (seen is None or seen.digest != wanted.checksum):
            source = dataclasses.replace(source, digest=digest_of_file(path))
        return source, seen

    # ---- plan ----

    def _plan_all(self, connection: Connection | None) -> None:
        self._reserved, self._coming = {}, {}
        super()._plan_all(connection)

    def _plan(self, item: _Item) -> VolumePlan:
        wanted, seen = item.wanted, item.observed if item.observed is not None else Seen()
        if seen.origin is None and wanted.clone_from is not None:
            seen = dataclasses.replace(seen, origin=self._coming.get(f"{wanted.pool}/{wanted.clone_from}"))
        if seen.backing_missing and wanted.backing is not None:
            missing = wanted.backing.path not in [one.path for one in self._coming.values()]
            seen = dataclasses.replace(seen, backing_missing=missing)
        plan = plan_volume(wanted, seen, self._reserved.get(wanted.pool, 0))
        self._reserved[wanted.pool] = self._reserved.get(wanted.pool, 0) + plan.needs
        if plan.made is not None:
            self._coming[wanted.name] = plan.made
        return plan

    # ---- apply ----

    def _apply(self, connection: Connection, item: _Item) -> None:
        wanted, plan = item.wanted, item.plan
        with libvirt_errors(f"Looking up pool {wanted.pool}"):
            pool = connection.storagePoolLookupByName(wanted.pool)
        if plan.create is not None:
            self._create(connection, pool, item, plan.create)
            return
        self._look_again(connection, item)
        with libvirt_errors(f"Looking up volume {wanted.name}"):
            volume = pool.storageVolLookupByName(wanted.volume)
        if plan.delete:
            with libvirt_errors(f"Deleting volume {wanted.name}"):
                volume.delete(0)
            item.done = True
        if plan.resize is not None:
            _resize(wanted.name, volume, plan.resize, plan.shrink)
            item.done = True
        if plan.upload:
            item.done = True  # from its first byte on
            self._upload(connection, item, volume)

    def _look_again(self, connection: Connection, item: _Item) -> None:
        """Plan again with the current users of a volume: an upload before this may have taken an hour.

        :raises InvalidInput: what was planned is now refused.
        """
        wanted, seen = item.wanted, item.observed
        if seen is not None and seen.volume is not None:
            standing = BackingUsers(connection, self._local)
            plan_volume(
                wanted, dataclasses.replace(seen, volume=standing.upon(wanted.pool, wanted.volume, seen.volume))
            )

    def _create(self, connection: Connection, pool: Pool, item: _Item, xml: str) -> None:
        wanted = item.wanted
        with libvirt_errors(f"Creating volume {wanted.name}"):
            if wanted.clone_from is not None:
                volume = pool.createXMLFrom(xml, pool.storageVolLookupByName(wanted.clone_from), 0)
            else:
                volume = pool.createXML(xml, 0)
        # Libvirt takes back what it could not make; what it has made is ours to take back from here on.
        try:
            if item.plan.upload:
                self._upload(connection, item, volume)
            with libvirt_errors(f"Reading volume {wanted.name}"):
                refresh(pool)
                capacity = volume.info()[1]
            if wanted.capacity is not None and wanted.capacity > capacity:
                _resize(wanted.name, volume, wanted.capacity, False)
        except BaseException as error:
            with contextlib.suppress(libvirt.libvirtError):
                volume.delete(0)
            if isinstance(error, TapvirtError):
                raise TapvirtError(f"{error.message} The incomplete volume was deleted again.") from error
            raise
        item.done = True

    def _upload(self, connection: Connection, item: _Item, volume: Volume) -> None:
        source = item.observed.source if item.observed is not None else None
        if source is not None:
            digest = upload(connection, item.wanted.name, volume, source, self._log)
            self._uploaded[item.wanted.name] = digest

    def _row(self, item: _Item, check_mode: bool) -> dict[str, t.Any]:
        wanted, plan = item.wanted, item.plan
        volume = item.observed.volume if item.observed is not None else None
        state = "absent" if volume is None else "present"
        if check_mode and plan.changes and not item.error:
            state = wanted.state
        return {
            "pool": wanted.pool,
            "name": wanted.volume,
            "state": state,
            "path": volume.path if volume else None,
            "format": volume.format if volume else None,
            "capacity_bytes": volume.capacity if volume else None,
            "allocation_bytes": volume.allocation if volume else None,
            "checksum": self._uploaded.get(wanted.name) or (volume.digest if volume else None),
            "changed": item.changed(check_mode),
            "error": error_row(item.error),
        }


def _volumes_in(pool: Pool) -> tuple[str, ...]:
    with libvirt_errors(f"Listing the volumes of pool {pool.name()}"):
        return tuple(str(volume.name()) for volume in pool.listAllVolumes())


def _resize(name: str, volume: Volume, capacity: int, shrink: bool) -> None:
    with libvirt_errors(f"Resizing volume {name}"):
        volume.resize(capacity, libvirt.VIR_STORAGE_VOL_RESIZE_SHRINK if shrink else 0)
