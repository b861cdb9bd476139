# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a new snapshot takes: a pure function of what is wanted and what the domain will be by then.

Private to the collection. What libvirt refuses late, or does at the cost of data, is refused here.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, nearest_names
from ..._core.plan import Change
from .model import EXTERNAL, INTERNAL, NO, DomainDisk, Snapshot, SnapshotDisk, domain_disks, overlay_path
from .projection import Observed, ProjectedState, SnapshotPlan, Wanted, WantedDisk

_MAX_FILE_NAME = 255
# qemu-img takes such a name for the number that the image gave a snapshot, and finds another snapshot by it.
NUMBER = re.compile(r"[1-9]\d{0,5}\Z")


def check_same(wanted: Wanted, found: Snapshot) -> None:
    """Refuse what a snapshot that is there differs in: it is not edited, and not taken anew in silence."""
    asked: list[tuple[str, t.Any, t.Any]] = [
        ("kind", wanted.kind, found.kind),
        ("description", wanted.description, found.description or ""),
        ("memory_file", wanted.memory_file, found.memory_file),
    ]
    for said in wanted.disks:
        asked += _asked_of_disk(wanted, said, found)
    for what, value, there in asked:
        if value is not None and value != there:
            rule = f"is not what the snapshot that is there has, {there!r}; a snapshot is not edited, remove it first"
            raise InvalidInput(f"{wanted.name}: {what}", value, rule)


def _asked_of_disk(wanted: Wanted, said: WantedDisk, found: Snapshot) -> list[tuple[str, t.Any, t.Any]]:
    item = f"disk {said.target}: "
    disk = found.disks.get(said.target)
    if disk is None:
        rule = f"is no disk of the snapshot; it has {', '.join(found.disks) or 'none'}"
        raise InvalidInput(f"{wanted.name}: disks", said.target, rule, nearest_names(said.target, found.disks))
    disks = domain_disks(found.domain) if found.domain is not None else []
    could = [one.target for one in disks if one.writable and one.source]
    asked: list[tuple[str, t.Any, t.Any]] = []
    if not said.include or said.target in could:
        asked.append((item + "include", said.include, disk.mode != NO))
    # A revert may have put a file of libvirt's own naming beside it.
    if said.file is None or said.file != found.branch.get(said.target):
        asked.append((item + "file", said.file, disk.file))
    return asked


def plan_creation(wanted: Wanted, outlook: ProjectedState) -> SnapshotPlan:
    observed = outlook.observed
    kind = wanted.kind or INTERNAL
    disks = [
        dataclasses.replace(disk, source=outlook.sources[disk.target]) for disk in domain_disks(observed.definition)
    ]
    _check_targets(wanted, disks)
    if kind == INTERNAL:
        _check_internal(wanted, observed, disks)
    else:
        _check_external(wanted, observed)
    said = {disk.target: disk for disk in wanted.disks}
    modes = {disk.target: _mode_of(wanted, kind, disk, said.get(disk.target)) for disk in disks}
    if modes and all(disk.mode == NO for disk in modes.values()) and kind == EXTERNAL:
        raise InvalidInput(f"{wanted.name}: kind", kind, "cannot be: no disk of the domain would take part")
    memory, state = _memory_of(wanted, observed, kind, modes, disks)
    new = Snapshot(
        name=wanted.snapshot,
        description=wanted.description,
        state=state,
        parent=None,
        created_seconds=0,
        memory=memory,
        memory_file=wanted.memory_file,
        disks=modes,
        sources=dict(outlook.sources),
        domain=observed.stored,
    )
    _check_files(wanted, outlook, new)
    after = {
        "kind": kind,
        "state": state,
        "memory": memory,
        "disks": {target: one.mode for target, one in modes.items()},
    }
    plan = SnapshotPlan(create=new, quiesce=wanted.quiesce)
    plan.changes.append(Change(wanted.name, None, after, "snapshotCreateXML", "as wanted"))
    for target, file in new.overlays.items():
        row = {"disk": target, "format": "qcow2", "backing": outlook.sources[target]}
        why = "takes what the guest writes from now on; its backing file stays as it is"
        plan.changes.append(Change(f"{wanted.domain} file {file}", None, row, "snapshotCreateXML", why))
    if new.memory_file:
        what = f"{wanted.domain} file {new.memory_file}"
        plan.changes.append(Change(what, None, {"memory": True}, "snapshotCreateXML", "holds the guest's memory"))
    outlook.add(new)
    return plan


def _check_targets(wanted: Wanted, disks: t.Sequence[DomainDisk]) -> None:
    targets = [disk.target for disk in disks]
    for said in wanted.disks:
        if said.target not in targets:
            raise InvalidInput(
                f"{wanted.name}: disks",
                said.target,
                f"is no disk of the domain; it has {', '.join(targets) or 'none'}",
                nearest_names(said.target, targets),
            )


def _check_internal(wanted: Wanted, observed: Observed, disks: t.Sequence[DomainDisk]) -> None:
    item = f"{wanted.name}: kind"
    if NUMBER.match(wanted.snapshot):
        rule = "cannot name an internal snapshot: QEMU takes it for the number of another one in the image"
        raise InvalidInput(f"{wanted.name}: name", wanted.snapshot, rule, ["s" + wanted.snapshot])
    for said in wanted.disks:
        if said.file is not None or not said.include:
            rule = (
                f"is kept inside every writable disk's image, so disk {said.target} has no file and cannot be left out"
            )
            raise InvalidInput(item, INTERNAL, rule, [EXTERNAL])
    if wanted.memory_file is not None:
        raise InvalidInput(item, INTERNAL, "keeps the memory in the image too; memory_file goes with", [EXTERNAL])
    for disk in disks:
        if not disk.writable or disk.source is None:
            continue
        if disk.excluded:
            rule = f"cannot be: the domain's definition excludes disk {disk.target} from snapshots"
            raise InvalidInput(item, INTERNAL, rule, [EXTERNAL])
        if disk.format not in (None, "qcow2"):
            rule = f"needs qcow2 images, and disk {disk.target} ({disk.source}) is {disk.format}"
            raise InvalidInput(item, INTERNAL, rule, [EXTERNAL, f"a qcow2 image for {disk.target}"])
    system = observed.definition.find("os")
    if system is not None and _has_raw_nvram(system):
        rule = "cannot hold the firmware's variables (NVRAM): they are in a raw file beside the disks"
        raise InvalidInput(item, INTERNAL, rule, [EXTERNAL])


def _has_raw_nvram(system: ET.Element) -> bool:
    loader, nvram = system.find("loader"), system.find("nvram")
    firmware = system.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")
    return firmware and (nvram is None or nvram.get("format") != "qcow2")


def _check_external(wanted: Wanted, observed: Observed) -> None:
    if wanted.memory_file is not None and not observed.active:
        rule = "cannot be written: the domain does not run, so there is no memory to keep"
        raise InvalidInput(f"{wanted.name}: memory_file", wanted.memory_file, rule)


def _mode_of(wanted: Wanted, kind: str, disk: DomainDisk, said: WantedDisk | None) -> SnapshotDisk:
    item = f"{wanted.name}: disk {disk.target}"
    if not disk.writable or disk.source is None:
        if said is not None and said.file is not None:
            raise InvalidInput(item, said.file, "cannot be its overlay: the disk is read-only, removable or empty")
        return SnapshotDisk(NO)
    if said is not None and not said.include:
        return SnapshotDisk(NO)
    if kind == INTERNAL:
        return SnapshotDisk(INTERNAL)
    if disk.excluded and said is None:
        return SnapshotDisk(NO)
    if said is not None and said.file is not None:
        return SnapshotDisk(EXTERNAL, said.file)
    if disk.kind != "file":
        rule = f"is of type {disk.kind}, so there is no place beside it for an overlay; name a 'file' for it"
        raise InvalidInput(item, disk.source, rule)
    return SnapshotDisk(EXTERNAL, overlay_path(disk.source, wanted.snapshot))


def _memory_of(
    wanted: Wanted,
    observed: Observed,
    kind: str,
    modes: t.Mapping[str, SnapshotDisk],
    disks: t.Sequence[DomainDisk],
) -> tuple[str, str]:
    """Return where the memory goes, and the state that the snapshot is of."""
    whole = INTERNAL if kind == INTERNAL and observed.active else EXTERNAL if wanted.memory_file else NO
    left_out = [disk.target for disk in disks if disk.writable and disk.source and modes[disk.target].mode == NO]
    if whole == EXTERNAL and left_out:
        rule = f"goes with a snapshot of every writable disk, and {', '.join(left_out)} is left out"
        raise InvalidInput(f"{wanted.name}: memory_file", wanted.memory_file, rule)
    if wanted.quiesce:
        _check_quiesce(wanted, observed, kind)
    if not observed.active:
        return whole, "shutoff"
    return whole, "disk-snapshot" if whole == NO else "paused" if observed.state == "paused" else "running"


def _check_quiesce(wanted: Wanted, observed: Observed, kind: str) -> None:
    item = f"{wanted.name}: quiesce"
    if kind == INTERNAL or wanted.memory_file is not None or not observed.active:
        rule = "is for an external snapshot of a running domain without its memory; elsewhere nothing is in flight"
        raise InvalidInput(item, True, rule)
    agent = observed.definition.find("devices/channel/target[@name='org.qemu.guest_agent.0']")
    if agent is None or agent.get("state") != "connected":
        rule = (
            "needs the guest agent, and "
            f"{'the domain has no channel for it' if agent is None else 'nothing answers on its channel'}"
        )  # fmt: skip
        raise InvalidInput(item, True, rule)


def _check_files(wanted: Wanted, outlook: ProjectedState, new: Snapshot) -> None:
    seen: set[str] = set()
    for file in new.files:
        item = f"{wanted.name}: file"
        if not file.startswith("/") or file.endswith("/") or not file.isprintable() or "/../" in file:
            raise InvalidInput(item, file, "must be an absolute path of printable characters, without '..'")
        if len(file.rpartition("/")[2].encode()) > _MAX_FILE_NAME:
            raise InvalidInput(item, file, f"has a last part longer than {_MAX_FILE_NAME} bytes")
        if file in seen or file in outlook.taken:
            rule = "would be written twice, or is the file of a disk or of another snapshot; name another one"
            raise InvalidInput(item, file, rule)
        seen.add(file)
