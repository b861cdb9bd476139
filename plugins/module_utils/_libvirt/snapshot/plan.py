# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done to a domain's snapshots: a pure function of what is wanted and what was observed.

Private to the collection. What libvirt refuses late, or does at the cost of data, is refused here, by its release notes
and by what 9.0 and 11.3 were seen to do.
"""

from __future__ import annotations

import re
import typing as t

from ..._core.errors import InvalidInput, nearest_names
from ..._core.plan import Change
from ..domain.mark import differences
from ..domain.stored_devices import is_lost_device
from .model import EXTERNAL, INTERNAL, NO, Snapshot, descendants, domain_disks
from .plan_create import NUMBER, check_same, plan_creation
from .projection import Observed, ProjectedState, SnapshotPlan, Wanted

_DELETES_EXTERNAL_SINCE = 9000000
_REVERTS_EXTERNAL_SINCE = 9009000
_MAX_DIFFERENCES = 20


def version_text(version: int) -> str:
    """Return a library's version, ``9.0.0``, from libvirt's number for it."""
    return f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}"


def plan_snapshot(wanted: Wanted, outlook: ProjectedState | None, reverted: bool = False) -> SnapshotPlan:
    """Return the plan for one snapshot, and note its effect in ``outlook`` (null: there is no such domain).

    :param reverted: the revert was done; only what it did not reach is planned.
    :raises InvalidInput: it cannot be done, or would lose something that the user did not name.
    """
    if outlook is None:
        # Without its domain a snapshot is gone, too; the others are refused before this.
        return SnapshotPlan()
    if wanted.state == "absent":
        return _plan_absence(wanted, outlook)
    if wanted.state == "reverted":
        return _plan_revert(wanted, outlook, reverted)
    found = outlook.snapshots.get(wanted.snapshot)
    if found is None:
        return plan_creation(wanted, outlook)
    check_same(wanted, found)
    return SnapshotPlan()


# ---- reverted ----


def _plan_revert(wanted: Wanted, outlook: ProjectedState, reverted: bool) -> SnapshotPlan:
    observed = outlook.observed
    found = outlook.snapshots.get(wanted.snapshot)
    if found is None:
        nearest = nearest_names(wanted.snapshot, outlook.snapshots)
        raise InvalidInput(
            "name", wanted.snapshot, f"No snapshot of domain {wanted.domain!r} has this name", None, nearest
        )
    before = {"current": observed.current, "state": observed.state}
    after = {"current": found.name, "state": found.leads_to}
    if reverted:
        running = found.leads_to == "running" and observed.state in ("running", "blocked", "nostate")
        if outlook.current == found.name and (running or observed.state == found.leads_to):
            return SnapshotPlan()
    else:
        _check_revert(wanted, outlook, found)
    outlook.current, outlook.state = found.name, found.leads_to
    plan = SnapshotPlan(revert=True)
    why = "as wanted; what the domain did since then is lost"
    plan.changes.append(Change(wanted.name, before, after, "revertToSnapshot", why))
    if not reverted:
        _plan_overlays(plan, wanted, observed, found)
    if found.domain is not None and not reverted:
        rows = [row for row in differences(observed.stored, found.domain) if not _is_source(row.path)]
        plan.changes += [
            Change(
                f"{wanted.domain} {row.path}",
                row.before,
                row.after,
                "revertToSnapshot",
                "the definition goes back, too",
                row.secret,
            )
            for position, row in enumerate(rows)
            if position < _MAX_DIFFERENCES or is_lost_device(row)
        ]
    return plan


def _plan_overlays(plan: SnapshotPlan, wanted: Wanted, observed: Observed, found: Snapshot) -> None:
    """Plan what a revert to an external snapshot does: new overlays, and no more use for those written to until now."""
    if found.kind == INTERNAL:
        return
    now = {disk.target: disk.source for disk in domain_disks(observed.definition)}
    for target in found.overlays:
        after = f"a new overlay above {found.sources.get(target)}, named by libvirt"
        what, why = f"{wanted.domain} disk {target}", "the image stays as it was in the snapshot"
        plan.changes.append(Change(what, now.get(target), after, "revertToSnapshot", why))
    current = observed.snapshots.get(observed.current or "")
    if current is None:
        return
    for target, file in current.written.items():
        if file not in observed.missing:
            what, why = (
                f"{wanted.domain} file {file}",
                f"has what was written since {current.name}",
            )
            plan.changes.append(Change(what, {"disk": target}, None, "revertToSnapshot", why))
            plan.goes.append(file)


def _is_source(path: str) -> bool:
    return bool(re.match(r"devices/disk\[[^]]*\]/(source|backingStore)", path))


def _check_revert(wanted: Wanted, outlook: ProjectedState, found: Snapshot) -> None:
    observed = outlook.observed
    if observed.managed_save:
        problem = (
            f"Domain {wanted.domain!r} has saved memory (a managed save), which would resume on other disks after the "
            "revert"
        )
        hint = "Start the domain first, or discard the saved memory"
        raise InvalidInput("state", wanted.state, problem, hint)
    if found.domain is None:
        problem = f"The definition of domain {wanted.domain!r} is not in the snapshot, so its state may not fit"
        raise InvalidInput("state", wanted.state, problem)
    if found.kind != INTERNAL and observed.library_version < _REVERTS_EXTERNAL_SINCE:
        problem = (
            f"The snapshot is external, and libvirt {version_text(observed.library_version)} cannot revert to such a "
            f"snapshot ({version_text(_REVERTS_EXTERNAL_SINCE)} and later can)"
        )
        raise InvalidInput("state", wanted.state, problem)
    if found.kind != EXTERNAL:
        if found.memory == NO and NUMBER.match(found.name):
            problem = "QEMU would take this name for the number of another snapshot in the image"
            raise InvalidInput("name", found.name, problem)
        _check_in_place(wanted, outlook, found)


def _check_in_place(wanted: Wanted, outlook: ProjectedState, found: Snapshot) -> None:
    """Refuse to touch internal state where the domain's disks are others now.

    Images that later overlays stand on would change below them, or the state is not where libvirt looks for it.
    """
    for target, image in found.inside.items() if found.domain is not None else ():
        now = outlook.sources.get(target)
        if now != image:
            has = f"uses {now}" if now else "does not exist"
            problem = f"The state of snapshot {found.name!r} is in {image}, but disk {target} of the domain now {has}"
            raise InvalidInput("state", wanted.state, problem)


# ---- absent ----


def _plan_absence(wanted: Wanted, outlook: ProjectedState) -> SnapshotPlan:
    plan = SnapshotPlan()
    found = outlook.snapshots.get(wanted.snapshot)
    if found is None:
        return plan
    below = descendants(outlook.snapshots, found.name)
    unnamed = [name for name in reversed(below) if name not in outlook.named_absent]
    if unnamed and wanted.with_children is None:
        problem = f"A value is needed, because {wanted.title} has children: {', '.join(unnamed)}"
        hint = "Set with_children: true to remove them too, or with_children: false to keep them below its parent"
        raise InvalidInput("with_children", None, problem, hint)
    doomed = [*(below if wanted.with_children else []), found.name]
    kept = sorted(outlook.named_present.intersection(doomed))
    if kept:
        problem = (
            f"Snapshot {kept[0]!r} would be removed as a child of {found.name!r}, but another item of the task has it "
            "as present"
        )
        raise InvalidInput("with_children", wanted.with_children, problem)
    for name in doomed:
        snapshot = outlook.snapshots[name]
        _check_removal(wanted, outlook, snapshot)
        _plan_removal(plan, wanted, outlook, snapshot)
        outlook.drop(snapshot)
    return plan


def _check_removal(wanted: Wanted, outlook: ProjectedState, snapshot: Snapshot) -> None:
    if snapshot.kind != EXTERNAL and outlook.observed.active:
        # While the domain is off libvirt looks for the state where it was put.
        _check_in_place(wanted, outlook, snapshot)
    if snapshot.kind == INTERNAL:
        return
    version = outlook.observed.library_version
    if version < _DELETES_EXTERNAL_SINCE:
        problem = (
            f"Snapshot {snapshot.name!r} is external. libvirt {version_text(version)} would only forget it and leave "
            f"its files with the domain's data ({', '.join(snapshot.files)}); "
            f"{version_text(_DELETES_EXTERNAL_SINCE)} and later can merge them"
        )
        raise InvalidInput("state", wanted.state, problem)
    parent = outlook.snapshots.get(snapshot.parent or "")
    if parent is not None and parent.kind != EXTERNAL:
        problem = (
            f"Snapshot {snapshot.name!r} is external and its parent {parent.name!r} is internal, so libvirt cannot "
            "merge it into the image that has the state of its parent"
        )
        hint = f"Remove {parent.name!r} first, while the domain is off"
        raise InvalidInput("state", wanted.state, problem, hint)
    children = outlook.children(snapshot.name)
    if len(children) > 1 or (children and snapshot.branch):
        users = [*(f"snapshot {child!r}" for child in children), *(["the domain"] if snapshot.branch else [])]
        problem = (
            f"libvirt cannot merge the external snapshot {snapshot.name!r}, because its image has several users: "
            f"{', '.join(users)}"
        )
        raise InvalidInput("state", wanted.state, problem)
    going = set(snapshot.overlays.values())
    for other in outlook.snapshots.values():
        inside = sorted(going.intersection(image for image in other.inside.values() if image))
        if other.name != snapshot.name and inside:
            problem = f"The removal would delete {', '.join(inside)}, which has the state of snapshot {other.name!r}"
            raise InvalidInput("state", wanted.state, problem, f"Remove {other.name!r} first")


def _plan_removal(plan: SnapshotPlan, wanted: Wanted, outlook: ProjectedState, snapshot: Snapshot) -> None:
    what = f"{wanted.domain} snapshot {snapshot.name}"
    why = "as wanted" if snapshot.name == wanted.snapshot else f"a child of {wanted.snapshot}"
    before = {"kind": snapshot.kind, "state": snapshot.state}
    plan.changes.append(Change(what, before, None, "snapshotDelete", why))
    plan.delete.append(snapshot)
    files: list[tuple[str, dict[str, t.Any], str]] = [
        (file, {"disk": target}, "its data goes into the image below it") for target, file in snapshot.overlays.items()
    ]
    parent = outlook.snapshots.get(snapshot.parent or "")
    if parent is not None and parent.branch and outlook.children(parent.name) == [snapshot.name]:
        why = f"only {snapshot.name} stood on it, the domain does not since a revert"
        files += [(file, {"disk": target}, why) for target, file in parent.overlays.items()]
    memory = memory_file_to_go(snapshot, outlook.snapshots.values())
    if memory is not None:
        files.append((memory, {"memory": True}, f"holds the memory of {snapshot.name} only"))
    for file, row, why in files:
        if file not in outlook.observed.missing:
            plan.changes.append(Change(f"{wanted.domain} file {file}", row, None, "snapshotDelete", why))
            plan.goes.append(file)


def memory_file_to_go(snapshot: Snapshot, others: t.Iterable[Snapshot]) -> str | None:
    """Return the memory file that goes with a snapshot; null where it has none or another one has the same."""
    shared = {other.memory_file for other in others if other.name != snapshot.name}
    return None if snapshot.memory_file in shared else snapshot.memory_file
