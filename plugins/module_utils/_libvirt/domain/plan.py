# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done to a domain: a pure function of what is wanted and what was observed.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, nearest_names
from ..._core.plan import Change
from ..connection.xml import Difference, size_bytes, text_of, to_text
from ..disk.removal import DiskToDelete, refuse_unsafe_deletes
from . import lifecycle
from .identity import complete, result_mark, with_disks_of, with_identity
from .live.edits import (
    HostModel,
    LiveEdit,
    asked_of,
    live_edits,
    pending_differences,
    pending_row,
    refused_reason,
    vcpus_of,
)
from .mark import Mark, add_at_top, definition_hash, differences, mark_of, wanted_hash, with_mark
from .stored_devices import device_title, has_device, is_lost_device, other_label, removed_devices
from .undeclared import definition_rows
from .undefine import DomainArtifacts, disk_changes, loss_changes, refuse_unnamed_losses

EXACT, SEMANTIC = "exact", "semantic"
_MAX_PENDING = 20
# Devices whose labels stay the same when others come and go.
_KEYED = ("disk[", "interface[")


@dataclasses.dataclass(frozen=True)
class Options:
    """What holds for all domains of a task."""

    apply: str
    waiting: lifecycle.Waiting
    remove: tuple[str, ...] = ()

    @property
    def may_redefine(self) -> bool:
        """Return whether the stored definition of an existing domain may be changed."""
        return self.apply != "live"

    @property
    def edits(self) -> bool:
        """Tell whether a running domain may be changed."""
        return self.apply != "config"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One domain as the user wants it; ``root`` is the parsed ``xml``."""

    name: str
    state: str
    xml: str | None = None
    root: ET.Element | None = None
    autostart: bool | None = None
    remove_disks: tuple[str, ...] = ()
    allow_device_removal: bool = False


@dataclasses.dataclass(frozen=True)
class Overlay:
    """A disk that stands on the file that the wanted XML names for it: ``base`` is named, ``overlay`` is in use."""

    target: str
    base: str
    overlay: str


@dataclasses.dataclass(frozen=True)
class Observed:
    """One domain as it was found. ``stored`` and ``running`` (only while active) are parsed XML with secrets.

    ``saved`` is the definition that a managed save would bring back, where there is one and the driver tells;
    ``belongings`` are read of a domain that has to be absent only, ``overlays`` where the wanted XML names other files,
    ``host_model`` where a domain may run with what a start wrote in place of the host's own processor.
    """

    uuid: str
    state: str
    active: bool
    persistent: bool
    autostart: bool
    managed_save: bool
    stored: ET.Element
    running: ET.Element | None
    saved: ET.Element | None = None
    belongings: DomainArtifacts = dataclasses.field(default_factory=DomainArtifacts)
    overlays: tuple[Overlay, ...] = ()
    host_model: HostModel | None = None


@dataclasses.dataclass
class DomainPlan:
    """The steps for one domain, and what would still wait after them."""

    changes: list[Change] = dataclasses.field(default_factory=list)
    pending: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    fidelity: str | None = None
    define: str | None = None
    # The mark to note once libvirt has made its own of the definition, where that is not known before.
    write_mark: Mark | None = None
    edits: list[LiveEdit] = dataclasses.field(default_factory=list)
    steps: list[str] = dataclasses.field(default_factory=list)
    undefine: bool = False
    disks: list[DiskToDelete] = dataclasses.field(default_factory=list)


def desired_definition(
    wanted: Wanted, observed: Observed | None, new_uuid: str, with_addresses: bool = True
) -> ET.Element | None:
    """Return the definition to hand to libvirt, identity included; null where nothing has to be looked at.

    Nothing: no XML was given, or the domain's mark says that this XML was applied and nobody has changed the result.

    :param with_addresses: keep devices in their places; where those no longer fit, libvirt has to place them again.
    """
    if wanted.root is None or wanted.xml is None or wanted.state == "absent":
        return None
    if observed is None:
        root = ET.fromstring(ET.tostring(wanted.root))
        if text_of(root, "uuid") is None:
            _set_uuid(root, new_uuid)
        return complete(root)
    uuid = text_of(wanted.root, "uuid")
    if uuid is not None and uuid.lower() != observed.uuid:
        problem = f"The UUID in the XML is {uuid}, but that of domain {wanted.name!r} is {observed.uuid}."
        raise InvalidInput("xml", None, problem, "Leave <uuid> out of the XML to keep the UUID.")
    mark = mark_of(observed.stored)
    applied = mark is not None and mark.wanted == wanted_hash(wanted.xml) and observed.persistent
    if mark is not None and applied and mark.result == definition_hash(observed.stored):
        return None
    desired = with_identity(wanted.root, observed.stored, with_addresses)
    return with_disks_of(desired, observed.stored, [overlay.target for overlay in observed.overlays])


def _set_uuid(root: ET.Element, uuid: str) -> None:
    element = root.find("uuid")
    if element is None:
        element = add_at_top(root, "uuid")
    element.text = uuid


def plan_domain(
    wanted: Wanted,
    observed: Observed | None,
    desired: ET.Element | None,
    canonical: ET.Element | None,
    options: Options,
    known: t.Collection[str] = (),
) -> DomainPlan:
    """Return the plan for one domain.

    :param known: the names of all domains, to help with a wrong one.
    :param desired: from ``desired_definition``.
    :param canonical: what libvirt makes of ``desired``, where that could be found out: the plan is exact then.
    :raises TapvirtError: it cannot be done, or would lose something that the user did not name.
    """
    if wanted.state == "absent":
        return _plan_absence(wanted, observed, options)
    if observed is None and desired is None:
        problem = "No domain has this name, and the task has no xml to define one."
        raise InvalidInput("name", wanted.name, problem, candidates=nearest_names(wanted.name, known))
    plan = DomainPlan(
        fidelity=None if wanted.xml is None else EXACT if desired is None or canonical is not None else SEMANTIC
    )
    stored = observed.stored if observed is not None else None
    if desired is not None and wanted.xml is not None:
        _check_removals(wanted, observed, canonical if canonical is not None else desired)
        if observed is None or not observed.persistent or options.may_redefine:
            stored = _plan_definition(plan, wanted, wanted.xml, observed, desired, canonical)
        else:
            # Only what runs may change: the definition that was asked for waits.
            rows = _definition_rows(observed.stored, desired, canonical)
            plan.pending += _pending_rows(rows, "apply")
            stored = canonical if canonical is not None else stored
    if wanted.autostart is not None and wanted.autostart != (observed.autostart if observed else False):
        plan.changes.append(
            _change(wanted, "autostart", not wanted.autostart, wanted.autostart, "setAutostart", "as wanted")
        )
    if observed is not None:
        plan.pending += [
            pending_row(f"devices/disk[{one.target}]/source", one.overlay, one.base, "overlay")
            for one in observed.overlays
        ]
    _plan_running(plan, wanted, observed, stored, options)
    _plan_state(plan, wanted, observed)
    if options.apply == "restart_if_needed" and any(row["reason"] == "restart" for row in plan.pending):
        plan_restart(plan, wanted, observed)
    return plan


def _change(wanted: Wanted, part: str, before: t.Any, after: t.Any, how: str, why: str, secret: bool = False) -> Change:
    return Change(f"{wanted.name} {part}", before, after, how, why, secret)


def _check_removals(wanted: Wanted, observed: Observed | None, result: ET.Element) -> None:
    """Refuse to remove devices, without permission, from a domain that somebody else defined.

    :raises InvalidInput: the XML does not declare a device that such a domain has.
    """
    if observed is None or wanted.allow_device_removal or mark_of(observed.stored) is not None:
        return
    removed = removed_devices(observed.stored, result)
    if removed:
        places = {label: other_label(device, observed.stored, result) for label, device in removed.items()}
        devices = "; ".join(
            device_title(label, device) + (f", which it declares as {places[label]}" if places[label] else "")
            for label, device in removed.items()
        )
        problem = (
            f"The XML does not declare devices that domain {wanted.name!r} has: {devices}. They would be removed, and "
            "this collection did not define the domain."
        )
        raise InvalidInput("xml", None, problem, "Declare the devices in xml, or set allow_device_removal: true.")


def _definition_rows(stored: ET.Element, desired: ET.Element, canonical: ET.Element | None) -> list[Difference]:
    return definition_rows(stored, desired) if canonical is None else differences(stored, canonical)


def _plan_definition(
    plan: DomainPlan,
    wanted: Wanted,
    xml: str,
    observed: Observed | None,
    desired: ET.Element,
    canonical: ET.Element | None,
) -> ET.Element:
    """Plan the stored definition; return what it will be (in a semantic plan: as far as it is known)."""
    mark = Mark(wanted_hash(xml), None)
    if canonical is not None and wanted.root is not None:
        mark = result_mark(mark, wanted.root, canonical)
    rows: list[Difference] = []
    if observed is None:
        after = summary(canonical if canonical is not None else desired)
        plan.changes.append(_change(wanted, "definition", None, after, "defineXML", "there is no such domain"))
    else:
        rows = _definition_rows(observed.stored, desired, canonical)
        why = "the definition is another one"
        plan.changes += [_change(wanted, row.path, row.before, row.after, "defineXML", why, row.secret) for row in rows]
        old = mark_of(observed.stored)
        last = old.wanted if old is not None else None
        if canonical is None and last != mark.wanted and (rows or old is not None):
            # Not all that the new XML leaves out can be seen without libvirt's own reading of it.
            why = "the XML is not the one applied last"
            before = last and last[:12]
            plan.changes.append(_change(wanted, "xml", before, mark.wanted[:12], "defineXML", why))
        if not observed.persistent:
            plan.changes.append(
                _change(wanted, "persistent", False, True, "defineXML", "the domain would vanish when it ends")
            )
    if not plan.changes:
        return observed.stored if observed is not None else desired
    plan.define = to_text(with_mark(desired, mark))
    plan.write_mark = mark if mark.result is None else None
    return canonical if canonical is not None else desired


def summary(root: ET.Element) -> dict[str, t.Any]:
    """Return what a new definition is, in a few numbers."""
    return {
        "type": root.get("type"),
        "memory_bytes": size_bytes(root.find("memory")),
        "vcpus": vcpus_of(root)[0],
        "disks": len(root.findall("devices/disk")),
        "interfaces": len(root.findall("devices/interface")),
    }


def _plan_running(
    plan: DomainPlan, wanted: Wanted, observed: Observed | None, stored: ET.Element | None, options: Options
) -> None:
    """Plan edits of a running domain, and list what only a restart brings in."""
    if observed is None or stored is None:
        return
    if observed.running is None:
        if observed.saved is not None:
            plan.pending += _pending_rows(pending_differences(stored, observed.saved), "managed_save")
        return
    if wanted.state in ("shutdown", "saved"):
        return
    asked = asked_of(observed.running)
    covered: list[str] = []
    for edit in live_edits(stored, observed.running):
        if edit.key() in asked.keys:
            plan.pending.append(pending_row(edit.path, edit.before, edit.after, refused_reason(edit, asked)))
            covered.append(edit.path)
            continue
        reason = _edit_reason(wanted, observed, options, edit)
        if reason is None:
            plan.edits.append(edit)
            why = "the running domain differs"
            plan.changes.append(_change(wanted, "running " + edit.path, edit.before, edit.after, _HOW[edit.kind], why))
        else:
            plan.pending.append(pending_row(edit.path, edit.before, edit.after, reason))
        covered.append(edit.path)
    semantic = plan.fidelity == SEMANTIC and plan.define is not None
    found = pending_differences(stored, observed.running, observed.host_model, subset=semantic)
    rest = [row for row in found if not any(_is_in(row.path, path) for path in covered)]
    plan.pending += _pending_rows(rest, "restart")


def _edit_reason(wanted: Wanted, observed: Observed, options: Options, edit: LiveEdit) -> str | None:
    """Return why an edit of a running domain is not made; null where it is."""
    if wanted.root is None:
        return "xml"
    if not options.edits:
        return "apply"
    return "permission" if edit.kind == "detach" and not _may_detach(wanted, observed, edit) else None


def _may_detach(wanted: Wanted, observed: Observed, edit: LiveEdit) -> bool:
    """Tell whether a device was defined, or declared when the domain started, so that its removal was planned.

    A backup program, a cloud or an administrator has attached any other one to the running domain only.
    """
    running, label = observed.running, edit.path.partition("/")[2]
    if running is None or wanted.allow_device_removal or has_device(observed.stored, running, label):
        return True
    mark = mark_of(running) if mark_of(observed.stored) is not None else None
    return label.startswith(_KEYED) and mark is not None and label in (mark.declared or ())


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith((place + "/", place + "@"))


_HOW = {
    "memory": "setMemory",
    "vcpus": "setVcpus",
    "title": "setMetadata",
    "description": "setMetadata",
    "attach": "attachDevice",
    "detach": "detachDevice",
    "update": "updateDevice",
}


def _pending_rows(rows: t.Sequence[Difference], reason: str) -> list[dict[str, t.Any]]:
    """Return the first rows, and each row of a device that goes."""
    shown = [row for position, row in enumerate(rows) if position < _MAX_PENDING or is_lost_device(row)]
    return [pending_row(row.path, row.before, row.after, reason, row.secret) for row in shown]


def _plan_state(plan: DomainPlan, wanted: Wanted, observed: Observed | None) -> None:
    if wanted.state == "present":
        return
    state, active, saved = (
        (observed.state, observed.active, observed.managed_save) if observed else ("shutoff", False, False)
    )
    plan.steps = lifecycle.steps_to(wanted.state, state, active, saved)
    if plan.steps:
        after = "shutoff" if wanted.state == "shutdown" else wanted.state
        plan.changes.append(
            _change(wanted, "state", state if observed else None, after, ", ".join(plan.steps), "as wanted")
        )


def plan_restart(plan: DomainPlan, wanted: Wanted, observed: Observed | None) -> None:
    """Add a restart where the domain runs, or will; one that is paused and may stay so keeps waiting."""
    runs = wanted.state == "running" or (
        wanted.state == "present" and observed is not None and lifecycle.reached("running", observed.state, False)
    )
    if not runs:
        return
    if "create" not in plan.steps:
        plan.steps = [*plan.steps, "shutdown", "create"]
        plan.changes.append(
            _change(wanted, "restart", "running", "running", "shutdown, create", "changes wait for a restart")
        )
    plan.pending = [row for row in plan.pending if row["reason"] != "restart"]


def _plan_absence(wanted: Wanted, observed: Observed | None, options: Options) -> DomainPlan:
    plan = DomainPlan()
    if observed is None:
        return plan
    found = observed.belongings
    refuse_unnamed_losses(wanted.name, found, options.remove)
    refuse_unsafe_deletes(wanted.name, wanted.remove_disks, found.disks)
    if observed.active:
        plan.steps = lifecycle.steps_to("shutdown", observed.state, True, False)
        plan.changes.append(_change(wanted, "state", observed.state, "shutoff", ", ".join(plan.steps), "as wanted"))
    if observed.persistent:
        plan.undefine = True
        kept = [
            "other disks" if found.disks else "disks",
            *(one for one in ("nvram", "tpm") if one not in options.remove),
        ]
        why = f"as wanted; {', '.join(kept)} stay"
        plan.changes.append(_change(wanted, "definition", summary(observed.stored), None, "undefine", why))
        plan.changes += loss_changes(wanted.name, found, options.remove)
    plan.changes += disk_changes(wanted.name, found.disks)
    plan.disks = [one for one in found.disks if one.there]
    return plan
