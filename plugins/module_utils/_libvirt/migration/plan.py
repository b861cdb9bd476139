# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a running domain can move from one libvirt to another, and what that changes.

Private to the collection. Pure. Rules: libvirt's page "Guest migration", and its checks before a migration
(qemuMigrationSrcIsAllowed, qemuMigrationSrcIsSafe), which stay on.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..._core.errors import InvalidInput, nearest_names
from ..._core.plan import Change
from ..disk.disks import Disk

# The file systems that libvirt takes for shared ones (virFileIsSharedFSType), as the kernel names them.
SHARED_FILE_SYSTEMS = frozenset([
    "nfs", "nfs4", "gfs2", "ocfs2", "afs", "smb3", "cifs", "ceph", "gpfs", "acfs", "beegfs", "fuse.glusterfs",
    "fuse.quobyte", "fuse.ceph", "fuse.ceph-fuse",
])  # fmt: skip
_MOVABLE = ("running", "blocked", "nostate", "paused")
HOW = {"peer_to_peer": "migrateToURI3", "tunnelled": "migrateToURI3", "client": "migrate3"}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A domain that has to run at the destination."""

    name: str


@dataclasses.dataclass(frozen=True)
class Seen:
    """A domain as one of the two libvirts has it."""

    name: str
    uuid: str
    state: str
    active: bool
    persistent: bool
    autostart: bool

    def words(self) -> str:
        """Return how it is there, in words."""
        return f"is {self.state}" if self.active else "is defined and off"


@dataclasses.dataclass(frozen=True)
class DiskSeen:
    """A disk with a medium: whether the destination has it, and what file system it is on at the source.

    ``there`` is null where nobody can tell before libvirt opens it; ``file_system`` where the source is another host.
    """

    disk: Disk
    there: bool | None
    file_system: str | None


@dataclasses.dataclass(frozen=True)
class Passage:
    """What stands between the two, as far as libvirt tells: sentences without a full stop, null where all is well."""

    machine: str | None = None
    processor: str | None = None
    job: bool = False
    snapshots: int = 0
    disks: tuple[DiskSeen, ...] = ()


@dataclasses.dataclass(frozen=True)
class Observed:
    """A domain at both places; ``passage`` is looked at only where it may have to move."""

    source: Seen | None
    destination: Seen | None
    names: tuple[str, ...] = ()
    passage: Passage | None = None

    @property
    def place(self) -> str:
        """Return where it is: ``source``, ``destination``, ``both`` or ``none``."""
        if self.source is not None and self.destination is not None:
            return "both"
        return "source" if self.source is not None else "destination" if self.destination is not None else "none"


@dataclasses.dataclass
class MigrationPlan:
    """The changes for one domain; ``doubts`` are what could not be checked in advance."""

    changes: list[Change] = dataclasses.field(default_factory=list)
    move: bool = False
    autostart: bool = False
    doubts: list[str] = dataclasses.field(default_factory=list)


def plan_migration(wanted: Wanted, observed: Observed, places: tuple[str, str], mode: str) -> MigrationPlan:
    """Plan one domain; ``places`` are source and destination as they may be shown.

    :raises InvalidInput: it cannot move; the option is empty, for the item itself is the name.
    """
    name, source, destination = wanted.name, observed.source, observed.destination
    if source is None:
        _check_arrived(name, observed)
        return MigrationPlan()
    if destination is not None:
        raise InvalidInput("", name, _twice(source, destination))
    if not source.active or source.state not in _MOVABLE:
        problem = f"The domain {source.words()} at the source, and only a running or paused domain can move"
        raise InvalidInput("", name, problem)
    passage = observed.passage or Passage()
    _check_passage(name, passage)
    plan = MigrationPlan(move=True, autostart=source.persistent and source.autostart)
    plan.doubts = [doubt for one in passage.disks for doubt in _check_disk(name, one)]
    plan.changes.append(Change(name + " place", *places, HOW[mode], "it has to run at the destination"))
    if source.persistent:
        why = "its definition goes with it, so that it is in one place"
        plan.changes.append(Change(name + " definition", *places, HOW[mode], why))
    if plan.autostart:
        why = "libvirt does not take it along; at the source it ends with the definition"
        plan.changes.append(Change(name + " autostart", *places, "setAutostart", why))
    return plan


def _check_arrived(name: str, observed: Observed) -> None:
    if observed.destination is None:
        problem = "Neither the source nor the destination has a domain of this name"
        raise InvalidInput("", name, problem, candidates=nearest_names(name, observed.names))
    if not observed.destination.active:
        problem = "The domain is already at the destination, but it is off"
        raise InvalidInput("", name, problem, "Start it there with libvirt_domain")


def _twice(source: Seen, destination: Seen) -> str:
    if source.uuid != destination.uuid:
        return (
            f"The domain {source.words()} at the source, and another domain of this name, with the UUID "
            f"{destination.uuid}, {destination.words()} at the destination"
        )
    called = "" if source.name == destination.name else f" as {destination.name!r}"
    return (
        f"The domain {source.words()} at the source, and a domain with the same UUID {destination.words()} at the "
        f"destination{called}; only one of the two can have it"
    )


def _check_passage(name: str, passage: Passage) -> None:
    if passage.job:
        problem = "The domain has an active job, such as a migration or a backup"
        raise InvalidInput("", name, problem, "Wait until the job ends, or abort it")
    if passage.snapshots:
        problem = f"The domain has {passage.snapshots} snapshots, and libvirt does not migrate snapshots"
        raise InvalidInput("", name, problem, "Remove the snapshots first")
    if passage.machine is not None:
        raise InvalidInput("", name, f"The domain cannot run at the destination: {passage.machine}")
    if passage.processor is not None:
        problem = f"The domain needs a processor that the destination does not offer: {passage.processor}"
        raise InvalidInput("", name, problem)


def _check_disk(name: str, seen: DiskSeen) -> t.Iterator[str]:
    """Yield the doubts about a disk.

    :raises InvalidInput: the destination does not have the disk's storage.
    """
    disk, source = seen.disk, seen.disk.source
    where = "" if source is None else source.shown()
    if seen.there is False:
        problem = f"Disk {disk.target} ({where}) does not exist at the destination"
        hint = "Copy the medium to the destination, or eject it first" if disk.removable else None
        raise InvalidInput("", name, problem, hint)
    own = not (disk.readonly or disk.removable)
    if own and seen.file_system is not None and seen.file_system not in SHARED_FILE_SYSTEMS:
        problem = f"Disk {disk.target} ({where}) is on {seen.file_system}, which only the source has"
        raise InvalidInput("", name, problem, "Put a writable disk on storage that both hosts share")
    if seen.there is None:
        yield (
            f"It is not known whether disk {disk.target} ({where}) of domain {name!r} exists at the destination. "
            "Without it, libvirt refuses to start the domain there, and the domain stays at the source."
        )
