# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots as data: what libvirt's XML says of one, what a domain's disks are, and the XML that asks for a new one.

Private to the collection. Pure: text and elements in, values out. The format is that of libvirt's page "Snapshot XML
format".
"""

from __future__ import annotations

import dataclasses
import typing as t
import xml.etree.ElementTree as ET

from ..connection.xml import text_of, to_text
from ..disk.disks import disks_of

INTERNAL, EXTERNAL, MIXED, NO = "internal", "external", "mixed", "no"
_WITHOUT_MEMORY = ("shutoff", "disk-snapshot")


@dataclasses.dataclass(frozen=True)
class DomainDisk:
    """One disk of a domain: ``source`` as a word, and its ``kind``; null: no medium is in it."""

    target: str
    source: str | None
    kind: str | None
    format: str | None
    writable: bool
    excluded: bool = False


@dataclasses.dataclass(frozen=True)
class SnapshotDisk:
    """What a snapshot did with one disk: ``internal``, ``external`` (``file`` is the overlay) or ``no``."""

    mode: str
    file: str | None = None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One snapshot. ``domain`` is the domain's definition at that time; ``sources`` its disks' sources by target;
    null and empty where an old libvirt noted none.

    ``branch`` are the overlays, by target, that a revert to it put beside those that its children stand on.
    """

    name: str
    description: str | None
    state: str
    parent: str | None
    created_seconds: int
    memory: str
    memory_file: str | None
    disks: dict[str, SnapshotDisk]
    sources: dict[str, str | None]
    domain: ET.Element | None = None
    branch: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return ``internal``, ``external``, or ``mixed`` where parts of it are in the images and others are not."""
        modes = {self.memory, *(disk.mode for disk in self.disks.values())} - {NO}
        if modes == {EXTERNAL}:
            return EXTERNAL
        return MIXED if EXTERNAL in modes else INTERNAL

    @property
    def overlays(self) -> dict[str, str]:
        """Return the files that it added to the domain's disks, by target."""
        return {target: disk.file for target, disk in self.disks.items() if disk.mode == EXTERNAL and disk.file}

    @property
    def files(self) -> list[str]:
        """Return every file outside the images that belongs to it."""
        return [*self.overlays.values(), *self.branch.values(), *([self.memory_file] if self.memory_file else [])]

    @property
    def written(self) -> dict[str, str]:
        """Return the overlays that the domain writes to while this snapshot is the current one."""
        return self.branch or self.overlays

    def without_children(self) -> Snapshot:
        """Return it as it is once nothing stands on its first overlays any more: those of the branch are its own."""
        disks = {**self.disks, **{target: SnapshotDisk(EXTERNAL, file) for target, file in self.branch.items()}}
        return dataclasses.replace(self, disks=disks, branch={})

    @property
    def inside(self) -> dict[str, str | None]:
        """Return the images that hold its internal state, by target."""
        return {target: self.sources.get(target) for target, disk in self.disks.items() if disk.mode == INTERNAL}

    @property
    def leads_to(self) -> str:
        """Return the run state that a revert to it leads to."""
        return self.state if self.state in ("running", "paused") else "shutoff"


def parse_snapshot(text: str) -> Snapshot:
    """Return what libvirt's XML says of a snapshot."""
    root = ET.fromstring(text)
    state = text_of(root, "state") or "nostate"
    memory = root.find("memory")
    without = NO if state in _WITHOUT_MEMORY else INTERNAL
    default = EXTERNAL if state == "disk-snapshot" else INTERNAL
    disks = {}
    for disk in root.iterfind("disks/disk"):
        mode = disk.get("snapshot", default)
        disks[disk.get("name", "")] = SnapshotDisk(mode, _file(disk) if mode == EXTERNAL else None)
    domain = root.find("domain[devices]")
    stored = root.find("inactiveDomain")
    return Snapshot(
        name=text_of(root, "name") or "",
        description=text_of(root, "description"),
        state=state,
        parent=text_of(root, "parent/name"),
        created_seconds=int(text_of(root, "creationTime") or 0),
        memory=without if memory is None else memory.get("snapshot", without),
        memory_file=None if memory is None else memory.get("file"),
        disks=disks,
        sources={} if domain is None else {disk.target: disk.source for disk in domain_disks(domain)},
        domain=domain if stored is None else stored,
        branch={disk.get("name", ""): _file(disk) or "" for disk in root.iterfind("revertDisks/disk") if _file(disk)},
    )


def _file(disk: ET.Element) -> str | None:
    return _attribute(disk, "source", "file") or _attribute(disk, "source", "dev")


def domain_disks(domain: ET.Element) -> list[DomainDisk]:
    """Return the disks of a domain's definition, in its order."""
    elements = {_attribute(element, "target", "dev"): element for element in domain.iterfind("devices/disk")}
    return [
        DomainDisk(
            target=disk.target,
            source=None if disk.source is None else disk.source.shown(),
            kind=None if disk.source is None else disk.source.kind,
            format=_attribute(elements[disk.target], "driver", "type"),
            writable=not (disk.removable or disk.readonly),
            excluded=elements[disk.target].get("snapshot") == NO,
        )
        for disk in disks_of(domain)
    ]


def _attribute(element: ET.Element, child: str, name: str) -> str | None:
    found = element.find(child)
    return None if found is None else found.get(name)


def snapshot_xml(wanted: Snapshot) -> str:
    """Return the XML that asks for a snapshot. Every disk is named, so that libvirt chooses nothing by itself."""
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = wanted.name
    if wanted.description is not None:
        ET.SubElement(root, "description").text = wanted.description
    memory = ET.SubElement(root, "memory", {"snapshot": wanted.memory})
    if wanted.memory_file is not None:
        memory.set("file", wanted.memory_file)
    disks = ET.SubElement(root, "disks")
    for target, disk in wanted.disks.items():
        element = ET.SubElement(disks, "disk", {"name": target, "snapshot": disk.mode})
        if disk.file is not None:
            element.set("type", "file")
            ET.SubElement(element, "driver", {"type": "qcow2"})
            ET.SubElement(element, "source", {"file": disk.file})
    return to_text(root)


def overlay_path(source: str, snapshot: str) -> str:
    """Return where the overlay of an image goes: beside it, the suffix replaced by the snapshot's name."""
    directory, slash, name = source.rpartition("/")
    return f"{directory}{slash}{name.rpartition('.')[0] or name}.{snapshot}"


def descendants(snapshots: t.Mapping[str, Snapshot], name: str) -> list[str]:
    """Return the snapshots below one, each before its own parent."""
    found = [name]
    for parent in found:
        found += sorted(one.name for one in snapshots.values() if one.parent == parent)
    return found[:0:-1]
