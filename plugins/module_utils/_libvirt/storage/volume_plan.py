# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done to a storage volume: a pure function of what is wanted and what was observed.

Private to the collection. Rules: libvirt's page "Storage pool and volume XML format".
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..._core.errors import InvalidInput, nearest_names
from ..._core.plan import Change
from ..connection.xml import to_text
from .storage import INACTIVE_POOL, START_POOL, User, shown_size, unknown_users
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
_KEEP_OR_DELETE = "Leave the option out to keep the volume, or delete the volume with its content first"
_MAX_SHOWN = 5


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
    :raises InvalidInput: it cannot be done, or would lose something that the user did not name.
    """
    pool = seen.pool
    if pool is None:
        if wanted.state == "absent":
            return VolumePlan()
        nearest = nearest_names(wanted.pool, seen.pools)
        raise InvalidInput("pool", wanted.pool, "No storage pool has this name", candidates=nearest)
    if not pool.active:
        raise InvalidInput("pool", wanted.pool, INACTIVE_POOL, START_POOL)
    if wanted.state == "absent":
        return _plan_absence(wanted, seen.volume)
    _check_format(wanted, pool, seen)
    if seen.volume is None:
        return _plan_new(wanted, pool, seen, reserved)
    return _plan_existing(wanted, pool, seen.volume, seen.source, reserved)


def _add(plan: VolumePlan, wanted: WantedVolume, part: str, before: t.Any, after: t.Any, how: str, why: str) -> None:
    plan.changes.append(Change(f"{wanted.name} {part}", before, after, how, why))


def _check_format(wanted: WantedVolume, pool: PoolSeen, seen: Seen) -> None:
    formats = {"format": wanted.format, "backing.format": wanted.backing.format if wanted.backing else None}
    if pool.type in FILE_POOLS:
        for option, one in formats.items():
            if one is not None and one not in FILE_FORMATS:
                nearest = nearest_names(one, FILE_FORMATS)
                raise wanted.refusal(option, one, "libvirt does not know this volume format", candidates=nearest)
    source = seen.source
    if source is not None and wanted.format is not None and not same_format(wanted.format, source.format):
        problem = f"{source.path} has the format {source.format}, and the upload does not convert it"
        raise wanted.refusal("format", wanted.format, problem, candidates=[source.format])


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
        problem = f"A capacity is needed, because volume {wanted.name!r} does not exist"
        raise wanted.refusal("capacity", None, problem)
    if wanted.capacity is not None and wanted.capacity < least:
        problem = f"The content of the volume needs at least {shown_size(least)}"
        raise wanted.refusal("capacity", shown_size(wanted.capacity), problem)
    if seen.backing_missing and wanted.backing is not None:
        raise wanted.refusal("backing.path", wanted.backing.path, "The backing file does not exist")
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
    option, name = "clone_from", wanted.clone_from or ""
    if seen.origin is None:
        problem = f"Pool {wanted.pool!r} has no such volume, and no earlier item of the task creates it"
        raise InvalidInput(option, name, problem, candidates=nearest_names(name, seen.volumes))
    users = _users(wanted, seen.origin, option, name)
    writers = sorted({user.domain for user in users if user.writes})
    if writers and not wanted.allow_in_use:
        problem = f"Running domains write to this volume ({_shown(writers)}), so a copy would not be consistent"
        raise InvalidInput(option, name, problem, "Stop the domains, or set allow_in_use: true to copy it anyway")


def _check_checksum(wanted: WantedVolume, source: SourceFile) -> None:
    if wanted.checksum is None:
        return
    if wanted.capacity is not None and source.format not in PLAIN and wanted.capacity > source.capacity:
        problem = (
            f"The {source.format} image changes when it grows to {shown_size(wanted.capacity)}, so the checksum would "
            "no longer match"
        )
        raise InvalidInput("checksum", wanted.checksum, problem, "Leave out either checksum or capacity")
    if source.digest is not None and source.digest != wanted.checksum:
        raise InvalidInput("checksum", wanted.checksum, f"The SHA-256 of {source.path} is {source.digest}")


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
    if capacity > pool.capacity > 0:
        problem = f"The volume is larger than the whole pool {wanted.pool!r}, {shown_size(pool.capacity)}"
        raise wanted.refusal(*_size_option(wanted), problem)
    if needs > pool.available and pool.capacity > 0:
        raise _no_room(wanted, pool, needs)


def _no_room(wanted: WantedVolume, pool: PoolSeen, needs: int) -> InvalidInput:
    problem = (
        f"Pool {wanted.pool!r} has {shown_size(pool.available)} available, and {shown_size(needs)} would be allocated "
        "at once, including earlier volumes of the task"
    )
    return wanted.refusal(*_size_option(wanted), problem)


def _size_option(wanted: WantedVolume) -> tuple[str, t.Any]:
    """Return the option that a volume's size comes from, and its value."""
    if wanted.capacity is not None:
        return "capacity", shown_size(wanted.capacity)
    if wanted.source is not None:
        return "source", wanted.source
    if wanted.clone_from is not None:
        return "clone_from", wanted.clone_from
    return "allocation", shown_size(wanted.allocation or 0)


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
        why = "The content does not have this checksum and would be overwritten"
        _refuse_users(wanted, volume, "checksum", wanted.checksum, why)
        if capacity < source.size and same_format(volume.format or "raw", "raw"):
            problem = f"{source.path} has {shown_size(source.size)}, and the volume only {shown_size(capacity)}"
            raise wanted.refusal("capacity", wanted.capacity and shown_size(capacity), problem)
        plan.upload = True
        plan.needs += max(source.size - volume.allocation, 0)
        _add(plan, wanted, "content", volume.digest, wanted.checksum, "upload", "the content is another one")
    if plan.needs and plan.needs + reserved > pool.available:
        raise _no_room(wanted, pool, plan.needs + reserved)
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
        problem = f"The volume has {has}, and libvirt cannot resize a volume in a pool of type {pool.type}"
        raise wanted.refusal("capacity", shown_size(capacity), problem, candidates=[has])
    return True


def _check_fixed(wanted: WantedVolume, pool: PoolSeen, volume: VolumeSeen) -> None:
    """Refuse what only another volume could have."""
    fits = wanted.format is None or volume.format is None or same_format(wanted.format, volume.format)
    if pool.type in FILE_POOLS and not fits:
        raise _fixed(wanted, "format", wanted.format, f"The volume has the format {volume.format}")
    below = volume.backing
    if wanted.backing is None:
        return
    if below is None or below.path != wanted.backing.path:
        has = f"the backing file {below.path}" if below is not None else "no backing file"
        raise _fixed(wanted, "backing.path", wanted.backing.path, f"The volume has {has}")
    form = wanted.backing.format
    if below.format is not None and form is not None and not same_format(below.format, form):
        raise _fixed(wanted, "backing.format", form, f"The volume has a backing file of the format {below.format}")


def _fixed(wanted: WantedVolume, option: str, value: str | None, has: str) -> InvalidInput:
    return wanted.refusal(option, value, f"{has}, and that cannot change in place", _KEEP_OR_DELETE)


def _check_growth(wanted: WantedVolume, pool: PoolSeen, volume: VolumeSeen, capacity: int) -> None:
    _check_space(wanted, pool, capacity, 0)
    shown = shown_size(capacity)
    running = sorted({user.domain for user in _users(wanted, volume, "capacity", shown) if user.running})
    if running and not wanted.allow_in_use:
        problem = (
            f"The volume has {shown_size(volume.capacity)} and cannot grow while running domains use it: "
            f"{_shown(running)}"
        )
        hint = "Stop the domains, or set allow_in_use: true to try it anyway"
        raise wanted.refusal("capacity", shown, problem, hint)


def _check_shrink(wanted: WantedVolume, volume: VolumeSeen, capacity: int) -> None:
    option, shown = "capacity", shown_size(capacity)
    if not wanted.force_shrink:
        problem = f"The volume has {shown_size(volume.capacity)}, and shrinking it loses the data beyond its new end"
        raise wanted.refusal(option, shown, problem, "Set force_shrink: true to shrink it")
    if capacity < volume.allocation:
        problem = (
            f"The volume has {shown_size(volume.allocation)} allocated, and libvirt does not shrink a volume below that"
        )
        raise wanted.refusal(option, shown, problem)
    _refuse_users(wanted, volume, option, shown, f"The data beyond {shown} would be lost")


def _users(wanted: WantedVolume, volume: VolumeSeen, option: str, value: t.Any) -> tuple[User, ...]:
    if volume.users is None and not wanted.allow_in_use:
        raise wanted.refusal(option, value, *unknown_users("the volume"))
    return volume.users or ()


def _refuse_users(wanted: WantedVolume, volume: VolumeSeen, option: str, value: t.Any, why: str) -> None:
    if wanted.allow_in_use:
        return
    domains = sorted({user.domain for user in _users(wanted, volume, option, value)})
    for uses, names in (
        ("domains use the volume", domains),
        ("the volume is the backing file of others", volume.overlays),
    ):
        if names:
            problem = f"{why}, but {uses}: {_shown(names)}"
            raise wanted.refusal(option, value, problem, "Set allow_in_use: true to do it anyway")


def _shown(names: t.Sequence[str]) -> str:
    return ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "")


def _plan_absence(wanted: WantedVolume, volume: VolumeSeen | None) -> VolumePlan:
    plan = VolumePlan()
    if volume is not None:
        _refuse_users(wanted, volume, "state", wanted.state, f"Volume {wanted.name!r} would be deleted")
        plan.delete = True
        before = {"path": volume.path, "capacity_bytes": volume.capacity, "format": volume.format}
        _add(plan, wanted, "volume", before, None, "delete", "as wanted; its content is lost")
    return plan
