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
    """Refuse a difference from an existing snapshot: it cannot be edited, and is not taken again silently."""
    options: list[tuple[str, t.Any, t.Any]] = [
        ("kind", wanted.kind, found.kind),
        ("description", wanted.description, found.description or ""),
        ("memory_file", wanted.memory_file, found.memory_file),
    ]
    for index, disk in enumerate(wanted.disks):
        options += _disk_options(f"disks[{index}]", disk, found)
    for option, value, existing in options:
        if value is not None and value != existing:
            problem = f"The existing {wanted.title} {_has(existing)}, and a snapshot cannot be edited"
            raise InvalidInput(option, value, problem, "Remove the snapshot first")


def _has(value: t.Any) -> str:
    if isinstance(value, bool):
        return "includes this disk" if value else "leaves this disk out"
    return f"has {value!r}" if value else "has none"


def _disk_options(path: str, wanted: WantedDisk, found: Snapshot) -> list[tuple[str, t.Any, t.Any]]:
    """Return the options of a disk, each with its value and what the existing snapshot has."""
    disk = found.disks.get(wanted.target)
    if disk is None:
        problem = f"The existing snapshot has no such disk. Its disks are: {', '.join(found.disks) or 'none'}"
        raise InvalidInput(f"{path}.target", wanted.target, problem, None, nearest_names(wanted.target, found.disks))
    disks = domain_disks(found.domain) if found.domain is not None else []
    could = [one.target for one in disks if one.writable and one.source]
    options: list[tuple[str, t.Any, t.Any]] = []
    if not wanted.include or wanted.target in could:
        options.append((f"{path}.include", wanted.include, disk.mode != NO))
    # A revert may have put a file of libvirt's own naming beside it.
    if wanted.file is None or wanted.file != found.branch.get(wanted.target):
        options.append((f"{path}.file", wanted.file, disk.file))
    return options


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
    indexes = {disk.target: index for index, disk in enumerate(wanted.disks)}
    modes = {disk.target: _mode_of(wanted, kind, disk, indexes.get(disk.target)) for disk in disks}
    if modes and all(disk.mode == NO for disk in modes.values()) and kind == EXTERNAL:
        problem = f"The snapshot would have no disk of domain {wanted.domain!r}"
        raise InvalidInput("kind", kind, problem)
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
    for index, disk in enumerate(wanted.disks):
        if disk.target not in targets:
            problem = f"Domain {wanted.domain!r} has no such disk. Its disks are: {', '.join(targets) or 'none'}"
            raise InvalidInput(
                f"disks[{index}].target", disk.target, problem, None, nearest_names(disk.target, targets)
            )


def _check_internal(wanted: Wanted, observed: Observed, disks: t.Sequence[DomainDisk]) -> None:
    if NUMBER.match(wanted.snapshot):
        problem = "QEMU would take this name for the number of another internal snapshot in the image"
        raise InvalidInput("name", wanted.snapshot, problem, candidates=["s" + wanted.snapshot])
    _check_internal_options(wanted)
    predicate = _internal_problem(observed, disks)
    if predicate is not None:
        raise InvalidInput("kind", wanted.kind, f"An internal snapshot {predicate}", "Set kind: external")


def _check_internal_options(wanted: Wanted) -> None:
    """Refuse options that only an external snapshot can have; without ``kind`` a snapshot is internal."""
    hint = "Set kind: external"
    for index, asked in enumerate(wanted.disks):
        if asked.file is not None or not asked.include:
            problem = (
                f"An internal snapshot is in the image of every writable disk, so disk {asked.target} cannot have a "
                "file or be left out"
            )
            option, value = ("include", False) if asked.file is None else ("file", asked.file)
            raise InvalidInput(f"disks[{index}].{option}", value, problem, hint)
    if wanted.memory_file is not None:
        problem = "An internal snapshot has the memory in the image, so it cannot have a memory_file"
        raise InvalidInput("memory_file", wanted.memory_file, problem, hint)


def _internal_problem(observed: Observed, disks: t.Sequence[DomainDisk]) -> str | None:
    """Return why a snapshot cannot be internal, as the predicate of a sentence; None where it can."""
    for disk in disks:
        if not disk.writable or disk.source is None:
            continue
        if disk.excluded:
            return f"needs every writable disk, but the domain's definition excludes disk {disk.target} from snapshots"
        if disk.format not in (None, "qcow2"):
            return f"needs qcow2 images, but disk {disk.target} ({disk.source}) is {disk.format}"
    system = observed.definition.find("os")
    if system is not None and _has_raw_nvram(system):
        return "cannot contain the firmware's variables (NVRAM), which are in a raw file beside the disks"
    return None


def _has_raw_nvram(system: ET.Element) -> bool:
    loader, nvram = system.find("loader"), system.find("nvram")
    firmware = system.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")
    return firmware and (nvram is None or nvram.get("format") != "qcow2")


def _check_external(wanted: Wanted, observed: Observed) -> None:
    if wanted.memory_file is not None and not observed.active:
        problem = f"Domain {wanted.domain!r} does not run, so it has no memory to store"
        raise InvalidInput("memory_file", wanted.memory_file, problem)


def _mode_of(wanted: Wanted, kind: str, disk: DomainDisk, index: int | None) -> SnapshotDisk:
    """Return what the snapshot does with a disk; ``index`` is the one of its entry in ``disks``."""
    asked = None if index is None else wanted.disks[index]
    if not disk.writable or disk.source is None:
        if asked is not None and asked.file is not None:
            problem = f"Disk {disk.target} is read-only, removable or empty, so it cannot have an overlay"
            raise InvalidInput(f"disks[{index}].file", asked.file, problem)
        return SnapshotDisk(NO)
    if asked is not None and not asked.include:
        return SnapshotDisk(NO)
    if kind == INTERNAL:
        return SnapshotDisk(INTERNAL)
    if disk.excluded and asked is None:
        return SnapshotDisk(NO)
    if asked is not None and asked.file is not None:
        return SnapshotDisk(EXTERNAL, asked.file)
    if disk.kind != "file":
        option = "disks" if index is None else f"disks[{index}].file"
        problem = f"Disk {disk.target} ({disk.source}) is of type {disk.kind}, so no overlay can be placed beside it"
        raise InvalidInput(option, None, problem, f"Set a file for disk {disk.target} in disks")
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
        problem = f"A snapshot with memory needs every writable disk, but this one leaves out {', '.join(left_out)}"
        raise InvalidInput("memory_file", wanted.memory_file, problem)
    if wanted.quiesce:
        _check_quiesce(wanted, observed, kind)
    if not observed.active:
        return whole, "shutoff"
    return whole, "disk-snapshot" if whole == NO else "paused" if observed.state == "paused" else "running"


def _check_quiesce(wanted: Wanted, observed: Observed, kind: str) -> None:
    if kind == INTERNAL or wanted.memory_file is not None or not observed.active:
        problem = "Only an external snapshot of a running domain without its memory can be quiesced"
        raise InvalidInput("quiesce", True, problem)
    agent = observed.definition.find("devices/channel/target[@name='org.qemu.guest_agent.0']")
    if agent is None or agent.get("state") != "connected":
        has = "has no channel for the guest agent" if agent is None else "is not connected to its guest agent"
        raise InvalidInput("quiesce", True, f"Domain {wanted.domain!r} {has}, which freezes the file systems")


def file_error(wanted: Wanted, new: Snapshot, file: str, problem: str, hint: str | None = None) -> InvalidInput:
    """Return the error for a file of a new snapshot; ``problem`` is the predicate of a sentence."""
    if file == new.memory_file:
        return InvalidInput("memory_file", file, f"The file {problem}", hint)
    for index, disk in enumerate(wanted.disks):
        if file == disk.file:
            return InvalidInput(f"disks[{index}].file", file, f"The file {problem}")
    target = next(target for target, overlay in new.overlays.items() if overlay == file)
    return InvalidInput(
        "disks", None, f"The overlay {file} of disk {target} {problem}", "Set another file for this disk"
    )


def _check_files(wanted: Wanted, outlook: ProjectedState, new: Snapshot) -> None:
    seen: set[str] = set()
    for file in new.files:
        if not file.startswith("/") or file.endswith("/") or not file.isprintable() or "/../" in file:
            raise file_error(wanted, new, file, "needs an absolute path of printable characters without '..'")
        if len(file.rpartition("/")[2].encode()) > _MAX_FILE_NAME:
            raise file_error(wanted, new, file, f"has a name of more than {_MAX_FILE_NAME} bytes")
        if file in seen or file in outlook.taken:
            raise file_error(wanted, new, file, "already belongs to a disk or a snapshot")
        seen.add(file)
