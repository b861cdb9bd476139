# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deleting the disks that a user named, once their domain is gone: nothing else, and nothing that anybody still needs.

Private to the collection. ``find_disks_to_delete`` reads, ``refuse_unsafe_deletes`` is pure, ``delete`` writes.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import typing as t

from ..._core.errors import InvalidInput, NoEffect, TapvirtError, nearest_names
from ..connection.connection import Connection, libvirt, libvirt_errors
from .disks import Disk
from .images import ImageLocator, Use

# virStorageVolType: what holds one disk's data (a directory holds more).
_VOLUMES_OF_DATA = (0, 1, 3)
_MOST_USERS = 3


@dataclasses.dataclass(frozen=True)
class DiskToDelete:
    """One named disk: where it is, how it goes (``deleteVolume``, ``unlink``), or why it cannot.

    ``identity`` tells whether it is still the same file later; ``there`` is false where nothing is left to delete.
    """

    target: str
    where: str
    how: str = ""
    there: bool = True
    refusal: str | None = None
    identity: tuple[int, int] | None = None


def find_disks_to_delete(
    name: str,
    wanted: t.Sequence[str],
    disks: t.Sequence[Disk],
    running: t.Sequence[Disk],
    places: ImageLocator,
    uses: t.Sequence[Use],
) -> list[DiskToDelete]:
    """Look at the named disks of a domain.

    :param disks: those of its definition; ``running`` those it runs with, which have to be the same ones.
    :param uses: of all domains and volumes, this domain's included.
    :raises InvalidInput: it has no disk of that target; with the nearest ones.
    :raises LibvirtFailure: libvirt cannot tell where a disk is.
    """
    by_target = {disk.target: disk for disk in disks}
    now = {disk.target: disk for disk in running}
    found = []
    for index, target in enumerate(wanted):
        if target in wanted[:index]:
            continue
        disk = by_target.get(target)
        if disk is None:
            nearest = nearest_names(target, by_target) or sorted(by_target)[:_MOST_USERS]
            raise InvalidInput(f"remove_disks[{index}]", target, f"Domain {name!r} has no such disk.", None, nearest)
        if target in now and now[target].source != disk.source:
            found.append(
                DiskToDelete(target, "", refusal="is another file in the running domain than in its definition")
            )
            continue
        found.append(_find(name, disk, set(wanted), places, uses))
    return found


def _find(name: str, disk: Disk, named: t.Collection[str], places: ImageLocator, uses: t.Sequence[Use]) -> DiskToDelete:
    source = disk.source
    where = "" if source is None else source.shown()
    refusal = _refusal_by_kind(disk)
    if refusal is not None or source is None:
        return DiskToDelete(disk.target, where, refusal=refusal or "has no medium")
    mine = places.names(source)
    others = [use for use in uses if use.names & mine and not (use.domain == name and use.target in named)]
    if others:
        users = [f"{use.target} of {use.domain!r}" if use.domain else use.target for use in others]
        return DiskToDelete(disk.target, where, refusal=f"is needed by {', '.join(sorted(set(users))[:_MOST_USERS])}")
    blind = next((use for use in uses if use.unseen and not (use.domain == name and use.target in named)), None)
    if blind is not None:
        rule = f"may be needed by {blind.target} of {blind.domain!r}: {blind.unseen}"
        return DiskToDelete(disk.target, where, refusal=rule)
    volume = places.volume(source)
    if volume is not None:
        return _volume(disk.target, volume, places)
    if source.kind == "volume":
        return DiskToDelete(disk.target, where, there=False)
    if source.kind != "file":
        return DiskToDelete(disk.target, where, refusal="is neither a plain file nor a volume of an active pool")
    if not places.local:
        rule = "is no volume of an active pool; a file of another host is not deleted otherwise"
        return DiskToDelete(disk.target, where, refusal=rule)
    return _file(disk.target, where)


def _refusal_by_kind(disk: Disk) -> str | None:
    if disk.removable:
        return f"is a {disk.device}: what is in a drive is not the domain's own"
    if disk.device == "lun":
        return "is a device that is passed through"
    if disk.readonly:
        return "is read-only, so others may rely on it"
    if disk.shareable:
        return "is shareable, so others may use it"
    return None


def _volume(target: str, volume: t.Any, places: ImageLocator) -> DiskToDelete:
    with libvirt_errors(f"Reading volume {volume.path()}"):
        where, kind = str(volume.path()), volume.info()[0]
    if kind not in _VOLUMES_OF_DATA:
        return DiskToDelete(target, where, refusal="is a volume that holds more than one file")
    if places.local and os.path.islink(where) and kind == 0:
        return DiskToDelete(target, where, refusal="is a symbolic link; what it leads to was not named")
    return DiskToDelete(target, where, "deleteVolume")


def _file(target: str, where: str) -> DiskToDelete:
    try:
        found = os.lstat(where)
    except FileNotFoundError:
        return DiskToDelete(target, where, there=False)
    except OSError as error:
        return DiskToDelete(target, where, refusal=f"cannot be looked at: {error.strerror}")
    if stat.S_ISLNK(found.st_mode):
        return DiskToDelete(target, where, refusal="is a symbolic link; what it leads to was not named")
    if not stat.S_ISREG(found.st_mode):
        return DiskToDelete(target, where, refusal="is not a plain file")
    if not os.access(os.path.dirname(where), os.W_OK | os.X_OK):
        return DiskToDelete(target, where, refusal="lies in a directory that this user may not change")
    return DiskToDelete(target, where, "unlink", identity=(found.st_dev, found.st_ino))


def refuse_unsafe_deletes(name: str, targets: t.Sequence[str], disks: t.Iterable[DiskToDelete]) -> None:
    """Refuse to delete what has to stay.

    :param targets: the option ``remove_disks``.
    :raises InvalidInput: a disk has to stay; says which and why.
    """
    for one in disks:
        if one.refusal is not None:
            option = f"remove_disks[{targets.index(one.target)}]"
            raise InvalidInput(option, one.target, f"{_title(name, one)} {one.refusal}")


def _title(name: str, disk: DiskToDelete) -> str:
    shown = f"{disk.target} ({disk.where})" if disk.where else disk.target
    return f"Disk {shown} of domain {name!r}"


def delete(name: str, connection: Connection, planned: DiskToDelete, now: DiskToDelete) -> None:
    """Delete one disk, and make sure that it is gone.

    :param now: the same disk as it is after its domain has gone; it has to be as it was planned.
    :raises TapvirtError: it is needed by now, is another file, or could not be deleted; it is named.
    """
    title = _title(name, planned)
    if not now.there:
        return
    if now != planned:
        raise TapvirtError(f"{title} was not deleted: it {now.refusal or 'is another file than planned'}.")
    with libvirt_errors(f"Deleting {title[0].lower()}{title[1:]}"):
        if planned.how == "deleteVolume":
            connection.storageVolLookupByPath(planned.where).delete(0)
        else:
            _unlink(title, planned.where)
    if not _is_gone(connection, planned):
        raise NoEffect(f"{title} was deleted without an error, but it still exists.")


def _unlink(title: str, path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        raise TapvirtError(f"{title} could not be deleted: {error.strerror}.") from error


def _is_gone(connection: Connection, planned: DiskToDelete) -> bool:
    if planned.how == "unlink":
        return not os.path.lexists(planned.where)
    try:
        connection.storageVolLookupByPath(planned.where)
    except libvirt.libvirtError as error:
        return bool(error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL)
    return False
