# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wanted of a domain's snapshots, what was observed, and what will be once the steps planned so far are done.

Private to the collection. Pure.
"""

from __future__ import annotations

import dataclasses
import typing as t
import xml.etree.ElementTree as ET

from ..._core.plan import Change
from .model import Snapshot, domain_disks


@dataclasses.dataclass(frozen=True)
class WantedDisk:
    """The user's options for one disk: the path of its overlay, or that the snapshot leaves the disk out."""

    target: str
    file: str | None = None
    include: bool = True


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One snapshot as the user wants it."""

    domain: str
    snapshot: str
    state: str
    description: str | None = None
    kind: str | None = None
    memory_file: str | None = None
    quiesce: bool = False
    disks: tuple[WantedDisk, ...] = ()
    with_children: bool | None = None

    @property
    def name(self) -> str:
        """Return the item's name in a plan."""
        return f"{self.domain} snapshot {self.snapshot}"

    @property
    def title(self) -> str:
        """Return the item's name in a message."""
        return f"snapshot {self.snapshot!r} of domain {self.domain!r}"


@dataclasses.dataclass(frozen=True)
class Observed:
    """A domain with its snapshots as they were found.

    ``definition`` is the running one where the domain is active; ``stored`` is the one for the next start.
    ``library_version`` is libvirt's, as a number. ``missing`` are the files that snapshots name and that are gone.
    """

    state: str
    active: bool
    managed_save: bool
    definition: ET.Element
    stored: ET.Element
    snapshots: dict[str, Snapshot]
    current: str | None
    library_version: int
    missing: frozenset[str] = frozenset()


@dataclasses.dataclass
class SnapshotPlan:
    """The steps for one snapshot: at most one of ``create``, ``revert`` and ``delete`` (in this order)."""

    changes: list[Change] = dataclasses.field(default_factory=list)
    create: Snapshot | None = None
    quiesce: bool = False
    revert: bool = False
    delete: list[Snapshot] = dataclasses.field(default_factory=list)
    # The files that will be gone.
    goes: list[str] = dataclasses.field(default_factory=list)


class ProjectedState:
    """A domain as it will be once the steps planned so far are done: later items of a task are planned on that."""

    def __init__(self, observed: Observed, wanted: t.Sequence[Wanted], taken: set[str] | None = None) -> None:
        """Begin with what was observed.

        :param taken: the files that no new snapshot may have; one set for all domains of a task, completed here.
        """
        self.observed = observed
        self.snapshots = dict(observed.snapshots)
        self.current = observed.current
        self.state = observed.state
        self.sources = {disk.target: disk.source for disk in domain_disks(observed.definition)}
        self.taken: set[str] = set() if taken is None else taken
        self.taken.update(source for source in self.sources.values() if source is not None)
        for one in observed.snapshots.values():
            self.taken.update(file for file in one.files if file not in observed.missing)
        self.named_absent = {one.snapshot for one in wanted if one.state == "absent"}
        self.named_present = {one.snapshot for one in wanted if one.state == "present"}

    def add(self, new: Snapshot) -> None:
        """Note that a snapshot will be there, and be the current one."""
        self.snapshots[new.name] = dataclasses.replace(new, parent=self.current)
        self.current = new.name
        self.sources.update(new.overlays)
        self.taken.update(new.files)

    def drop(self, gone: Snapshot) -> None:
        """Note that a snapshot will be gone; its children hang on its parent then."""
        del self.snapshots[gone.name]
        for name, one in self.snapshots.items():
            if one.parent == gone.name:
                self.snapshots[name] = dataclasses.replace(one, parent=gone.parent)
        parent = self.snapshots.get(gone.parent or "")
        if parent is not None and not self.children(parent.name):
            self.snapshots[parent.name] = parent.without_children()
        if self.current == gone.name:
            self.current = gone.parent
        for target, file in gone.overlays.items():
            if self.sources.get(target) == file:
                self.sources[target] = gone.sources.get(target)

    def children(self, name: str) -> list[str]:
        """Return the snapshots right below one."""
        return sorted(one.name for one in self.snapshots.values() if one.parent == name)
