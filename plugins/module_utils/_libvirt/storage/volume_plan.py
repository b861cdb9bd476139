# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done to a storage volume: a pure function of what is wanted and what was observed.

Private to the collection. Rules: libvirt's page "Storage pool and volume XML format".
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..._core.errors import InvalidInput, TapvirtError, nearest_names
from ..._core.plan import Change
from ..connection.xml import to_text
from .storage import UNKNOWN_USERS, User, shown_size
from .volume_data import (
    FILE_FORMATS,
    FILE_POOLS,
    PLAIN,
    PoolSeen,
    Seen,
    SourceFile,
    VolumeSeen,
    WantedVolume,
    new_definition,
    same_format,
)

# Images are made of whole sectors: a capacity is rounded up to them.
_SECTOR = 512
# The types of pools in which libvirt changes a volume's capacity (those of its storage backends with a resizeVol).
_RESIZED = ("dir", "fs", "netfs", "vstorage", "rbd", "sheepdog")


@dataclasses.dataclass
class VolumePlan:
    """The steps for one volume.

    ``needs``: the bytes that they take from the pool at once. ``made``: what a new volume will be.
    """

    changes: list[Change] = dataclasses.field(default_factory=list)
    create: str | None = None
    resize: int | None = None
    shrink: bool = False
    upload: bool = False
    delete: bool = False
    needs: int = 0
    made: VolumeSeen | None = None


def plan_volume(wanted: WantedVolume, seen: Seen, reserved: int = 0) -> VolumePlan:
    """Return the plan for one volume.

    :param reserved: bytes of the pool that the volumes before it in the list will take.
    :raises TapvirtError: it cannot be done, or would lose something that the user did not name.
    """
    pool = seen.pool
    if pool is None:
        if wanted.state == "absent":
            return VolumePlan()
        rule = "is no storage pool of this libvirt"
        raise InvalidInput(f"{wanted.name}: pool", wanted.pool, rule, nearest_names(wanted.pool, seen.pools))
    if not pool.active:
        rule = "is inactive, so that nothing can be said of its volumes; libvirt_pool can start it"
        raise InvalidInput(f"{wanted.name}: pool", wanted.pool, rule)
    if wanted.state == "absent":
        return _plan_absence(wanted, seen.volume)
    _check_format(wanted, pool, seen)
    if seen.volume is None:
        return _plan_new(wanted, pool, seen, reserved)
    return _plan_existing(wanted, pool, seen.volume, seen.source, reserved)


def _add(plan: VolumePlan, wanted: WantedVolume, part: str, before: t.Any, after: t.Any, how: str, why: str) -> None:
    plan.changes.append(Change(f"{wanted.name} {part}", before, after, how, why))


def _check_format(wanted: WantedVolume, pool: PoolSeen, seen: Seen) -> None:
    item = f"{wanted.name}: format"
    formats = [one for one in (wanted.format, wanted.backing.format if wanted.backing else None) if one is not None]
    if pool.type in FILE_POOLS:
        for one in formats:
            if one not in FILE_FORMATS:
                raise InvalidInput(item, one, "is no format of a volume", nearest_names(one, FILE_FORMATS))
    source = seen.source
    if source is not None and wanted.format is not None and not same_format(wanted.format, source.format):
        rule = f"is not what {source.path} is, {source.format}; it is uploaded as it is"
        raise InvalidInput(item, wanted.format, rule)


# ---- a volume that is not there ----


def _plan_new(wanted: WantedVolume, pool: PoolSeen, seen: Seen, reserved: int) -> VolumePlan:
    source, origin = seen.source, seen.origin
    least = 0
    if wanted.clone_from is not None:
        _check_origin(wanted, seen)
        least = origin.capacity if origin is not None else 0
    elif source is not None:
        # A volume of blocks is the device that an image is written to, as large as the file is.
        least = source.capacity if pool.type in FILE_POOLS else source.size
        _check_checksum(wanted, source)
    if wanted.capacity is None and not least and wanted.backing is None and wanted.clone_from is None:
        raise InvalidInput(wanted.name, "no capacity", "is given, and there is no such volume")
    if wanted.capacity is not None and wanted.capacity < least:
        rule = f"is less than what goes into it, {shown_size(least)}"
        raise InvalidInput(f"{wanted.name}: capacity", shown_size(wanted.capacity), rule)
    if seen.backing_missing and wanted.backing is not None:
        raise InvalidInput(f"{wanted.name}: backing", wanted.backing.path, "is no file that is there")
    capacity = wanted.capacity if wanted.capacity is not None else least
    form = wanted.format or _default_format(wanted, seen)
    plan = VolumePlan(needs=_needs(wanted, pool, seen, form, capacity))
    _check_space(wanted, pool, capacity, plan.needs + reserved)
    plan.create = to_text(new_definition(wanted, pool, seen.source, form, capacity))
    plan.upload = source is not None
    plan.made = VolumeSeen(f"{pool.path}/{wanted.volume}", capacity, plan.needs, form, wanted.backing)
    after: dict[str, t.Any] = {"capacity_bytes": capacity or None, "format": form}
    if wanted.backing is not None:
        after["backing"] = wanted.backing.path
    how = "createXML" if wanted.clone_from is None else "createXMLFrom"
    _add(plan, wanted, "volume", None, after, how, "there is no such volume")
    if source is not None:
        _add(plan, wanted, "content", None, source.path, "upload", "the volume is new")
    elif wanted.clone_from is not None:
        _add(plan, wanted, "content", None, wanted.clone_from, "createXMLFrom", "the volume is new")
    return plan


def _check_origin(wanted: WantedVolume, seen: Seen) -> None:
    item, name = f"{wanted.name}: clone_from", wanted.clone_from or ""
    if seen.origin is None:
        rule = f"is no volume of pool {wanted.pool!r}, nor one that is made before it"
        raise InvalidInput(item, name, rule, nearest_names(name, seen.volumes))
    writers = sorted({user.domain for user in _users(wanted, seen.origin) if user.writes})
    if writers and not wanted.allow_in_use:
        shown = ", ".join(writers[:5])
        rule = (
            f"is written to by running domains ({shown}), a copy would not be consistent (allow_in_use: true makes it)"
        )
        raise InvalidInput(item, name, rule)


def _check_checksum(wanted: WantedVolume, source: SourceFile) -> None:
    if wanted.checksum is None:
        return
    item = f"{wanted.name}: checksum"
    if wanted.capacity is not None and source.format not in PLAIN and wanted.capacity > source.capacity:
        rule = f"cannot hold: an image of the format {source.format} that grows is another one; leave one of both out"
        raise InvalidInput(item, wanted.checksum, rule)
    if source.digest is not None and source.digest != wanted.checksum:
        rule = f"is not the SHA-256 of {source.path}, {source.digest}"
        raise InvalidInput(item, wanted.checksum, rule)


def _default_format(wanted: WantedVolume, seen: Seen) -> str:
    if seen.source is not None:
        return seen.source.format
    if wanted.backing is not None:
        return "qcow2"
    if seen.origin is not None and seen.origin.format is not None:
        return seen.origin.format
    return "raw"


def _needs(wanted: WantedVolume, pool: PoolSeen, seen: Seen, form: str, capacity: int) -> int:
    """Return the bytes that libvirt takes from the pool at once.

    It counts what is allocated, not what a volume may grow to: a raw volume is allocated whole unless it says less,
    the others start empty, a copy takes what its origin took.
    """
    if pool.type not in FILE_POOLS:
        return capacity
    if seen.source is not None:
        return max(seen.source.size, wanted.allocation or 0)
    if wanted.allocation is not None:
        return wanted.allocation
    if wanted.clone_from is not None:
        return seen.origin.allocation if seen.origin is not None else 0
    return capacity if form in PLAIN else 0


def _check_space(wanted: WantedVolume, pool: PoolSeen, capacity: int, needs: int) -> None:
    """Refuse what does not fit: into what is available now, or, once it is full, into the whole pool."""
    item = f"{wanted.name}: capacity"
    if capacity > pool.capacity > 0:
        rule = f"is more than the whole pool has, {shown_size(pool.capacity)}"
        raise InvalidInput(item, shown_size(capacity), rule)
    if needs > pool.available and pool.capacity > 0:
        rule = (
            f"does not fit: {shown_size(needs)} would be allocated at once, with the volumes before it, and "
            f"{shown_size(pool.available)} are available"
        )
        raise InvalidInput(item, shown_size(capacity), rule)


# ---- a volume that is there ----


def _plan_existing(
    wanted: WantedVolume, pool: PoolSeen, volume: VolumeSeen, source: SourceFile | None, reserved: int
) -> VolumePlan:
    plan = VolumePlan()
    _check_fixed(wanted, pool, volume)
    capacity = volume.capacity
    if wanted.capacity is not None and not _has_capacity(wanted, pool, volume, wanted.capacity):
        capacity = wanted.capacity
        if capacity > volume.capacity:
            _check_growth(wanted, pool, volume, capacity)
            plan.needs = capacity - volume.capacity if pool.type not in FILE_POOLS else 0
            why = "as wanted"
        else:
            _check_shrink(wanted, volume, capacity)
            plan.shrink = True
            why = "as wanted; what is beyond is lost"
        plan.resize = capacity
        _add(plan, wanted, "capacity", volume.capacity, capacity, "resize", why)
    if wanted.checksum is not None and source is not None and volume.digest != wanted.checksum:
        _check_checksum(wanted, source)
        _refuse_users(wanted, volume, "its content is not the one of the checksum, and would be replaced")
        if capacity < source.size and same_format(volume.format or "raw", "raw"):
            rule = f"has no room for {source.path}, {shown_size(source.size)}"
            raise InvalidInput(f"{wanted.name}: capacity", shown_size(capacity), rule)
        plan.upload = True
        plan.needs += max(source.size - volume.allocation, 0)
        _add(plan, wanted, "content", volume.digest, wanted.checksum, "upload", "the content is another one")
    if plan.needs and plan.needs + reserved > pool.available:
        rule = f"do not fit: {shown_size(pool.available)} are available"
        raise InvalidInput(wanted.name, shown_size(plan.needs), rule)
    return plan


def _has_capacity(wanted: WantedVolume, pool: PoolSeen, volume: VolumeSeen, capacity: int) -> bool:
    """Tell whether a volume has the capacity that is wanted.

    :raises InvalidInput: it has not, and libvirt cannot change it.
    """
    more = volume.capacity - capacity
    if pool.type in _RESIZED:
        return 0 <= more < _SECTOR
    # What is made of whole extents or sectors, of a size that is not known here, may have more.
    if more != 0 and (more < 0 or wanted.force_shrink):
        has = shown_size(volume.capacity)
        rule = f"cannot be had: the volume has {has}, and libvirt changes no capacity in a pool of the type {pool.type}"
        raise InvalidInput(
            f"{wanted.name}: capacity",
            shown_size(capacity),
            rule,
            [shown_size(volume.capacity)],
        )
    return True


def _check_fixed(wanted: WantedVolume, pool: PoolSeen, volume: VolumeSeen) -> None:
    """Refuse what only another volume could have."""
    stays = "cannot become another one in place, and nothing is deleted to make it anew; the volume has {0}"
    fits = wanted.format is None or volume.format is None or same_format(wanted.format, volume.format)
    if pool.type in FILE_POOLS and not fits:
        raise InvalidInput(f"{wanted.name}: format", wanted.format, stays.format(volume.format))
    below = volume.backing
    if wanted.backing is not None and (below is None or below.path != wanted.backing.path):
        rule = stays.format(below.path if below is not None else "no backing file")
        raise InvalidInput(f"{wanted.name}: backing", wanted.backing.path, rule)
    said = wanted.backing.format if wanted.backing is not None else None
    if below is not None and below.format is not None and said is not None and not same_format(below.format, said):
        rule = stays.format(f"a backing file of the format {below.format}")
        raise InvalidInput(f"{wanted.name}: backing", said, rule)


def _check_growth(wanted: WantedVolume, pool: PoolSeen, volume: VolumeSeen, capacity: int) -> None:
    _check_space(wanted, pool, capacity, 0)
    running = sorted({user.domain for user in _users(wanted, volume) if user.running})
    if running and not wanted.allow_in_use:
        raise TapvirtError(
            f"{wanted.name}: cannot grow from {shown_size(volume.capacity)} to {shown_size(capacity)} behind the "
            f"running domains that have it open: {', '.join(running[:5])}. Nothing was changed (allow_in_use: true "
            "tries)."
        )


def _check_shrink(wanted: WantedVolume, volume: VolumeSeen, capacity: int) -> None:
    item, shown = f"{wanted.name}: capacity", shown_size(capacity)
    if not wanted.force_shrink:
        rule = (
            f"is less than the volume has, {shown_size(volume.capacity)}; to shrink it loses what is beyond "
            "(force_shrink: true does)"
        )
        raise InvalidInput(item, shown, rule)
    if capacity < volume.allocation:
        rule = (
            f"is less than what is allocated, {shown_size(volume.allocation)}; libvirt does not shrink a volume below "
            "that"
        )
        raise InvalidInput(item, shown, rule)
    _refuse_users(wanted, volume, f"it would lose what is beyond {shown}")


def _users(wanted: WantedVolume, volume: VolumeSeen) -> tuple[User, ...]:
    if volume.users is None and not wanted.allow_in_use:
        raise TapvirtError(UNKNOWN_USERS.format(wanted.name))
    return volume.users or ()


def _refuse_users(wanted: WantedVolume, volume: VolumeSeen, why: str) -> None:
    if wanted.allow_in_use:
        return
    domains = sorted({user.domain for user in _users(wanted, volume)})
    for kind, names in (("domains", domains), ("volumes that stand on it", volume.overlays)):
        if names:
            raise TapvirtError(
                f"{wanted.name}: {why}, and it is in use by {kind}: "
                f"{', '.join(names[:5]) + (', ...' if len(names) > 5 else '')}. Nothing was changed (allow_in_use: "
                "true would)."
            )


def _plan_absence(wanted: WantedVolume, volume: VolumeSeen | None) -> VolumePlan:
    plan = VolumePlan()
    if volume is not None:
        _refuse_users(wanted, volume, "it would be deleted")
        plan.delete = True
        before = {"path": volume.path, "capacity_bytes": volume.capacity, "format": volume.format}
        _add(plan, wanted, "volume", before, None, "delete", "as wanted; its content is lost")
    return plan
