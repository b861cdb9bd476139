# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The calls that change a domain: each one reads its effect back, or leaves that to the run.

Private to the collection.
"""

from __future__ import annotations

import time
import typing as t
import xml.etree.ElementTree as ET

from ..connection.connection import Connection, Domain, libvirt, libvirt_errors
from ..connection.xml import children_by_key
from . import lifecycle
from .identity import result_mark
from .live.edits import LiveEdit, RefusedEdits, asked_of, live_edits, refused_reason, same_memory
from .mark import Mark
from .undefine import DomainArtifacts

_FOLLOW_SECONDS = 3.0
# Refusals whose reason may be gone the next time: a file that is missing, closed or held by somebody.
_PASSING = (
    "VIR_ERR_SYSTEM_ERROR",
    "VIR_ERR_OPEN_FAILED",
    "VIR_ERR_ACCESS_DENIED",
    "VIR_ERR_NO_MEMORY",
    "VIR_ERR_OPERATION_TIMEOUT",
    "VIR_ERR_RESOURCE_BUSY",
)
# QEMU's command that opens an image; what it says comes as an internal error.
_OPENS_IMAGE = "'blockdev-add'"


def write_mark(name: str, domain: Domain, mark: Mark, wanted: ET.Element) -> None:
    """Note what libvirt made of the wanted definition, so that the next run can tell that nobody changed it."""
    with libvirt_errors(f"Writing the mark of domain {name}"):
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        result = ET.fromstring(domain.XMLDesc(flags))
        note = result_mark(mark, wanted, result).note()
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, *note, libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def edit_running(name: str, domain: Domain, edit: LiveEdit) -> tuple[str, str] | None:
    """Make an edit of a running domain; return what it waits for and a sentence why, null where it took effect.

    A guest may ignore what it is asked (a balloon without a driver, an unplugged device), a hypervisor may have no
    place left. That is noted in the running domain, so that the next run reports it instead of asking again.

    :raises LibvirtFailure: refused for a reason that may pass, so that the next run has to try again.
    """
    why, refused = None, False
    with libvirt_errors(f"Changing {edit.path} of the running domain {name}"):
        try:
            _EDITS[edit.kind](domain, edit)
        except libvirt.libvirtError as error:
            why, refused = " ".join(str(error.get_error_message()).split()), True
            if error.get_error_code() in [getattr(libvirt, name) for name in _PASSING] or _OPENS_IMAGE in why:
                raise
        if why is None and not _followed(domain, edit):
            why = "the guest does not follow"
    if why is None:
        return None
    _note_asked(name, domain, edit, refused)
    reason = refused_reason(edit, RefusedEdits().with_key(edit.key(), refused))
    until = "before a restart" if reason == "restart" else "yet"
    return reason, f"{name}: {edit.kind} of {edit.path} has no effect {until}: {why}."


def _set_text(kind: str) -> t.Callable[[Domain, LiveEdit], t.Any]:
    """Return the call for a title or a description; libvirt has a number for each."""
    return lambda domain, edit: domain.setMetadata(
        getattr(libvirt, "VIR_DOMAIN_METADATA_" + kind.upper()), edit.after, None, None, libvirt.VIR_DOMAIN_AFFECT_LIVE
    )


_EDITS: dict[str, t.Callable[[Domain, LiveEdit], t.Any]] = {
    "memory": lambda domain, edit: domain.setMemoryFlags(edit.after, libvirt.VIR_DOMAIN_AFFECT_LIVE),
    "vcpus": lambda domain, edit: domain.setVcpusFlags(edit.after, libvirt.VIR_DOMAIN_AFFECT_LIVE),
    "title": _set_text("title"),
    "description": _set_text("description"),
    "attach": lambda domain, edit: domain.attachDeviceFlags(edit.xml, libvirt.VIR_DOMAIN_AFFECT_LIVE),
    "detach": lambda domain, edit: domain.detachDeviceFlags(edit.xml, libvirt.VIR_DOMAIN_AFFECT_LIVE),
    "update": lambda domain, edit: domain.updateDeviceFlags(edit.xml, libvirt.VIR_DOMAIN_AFFECT_LIVE),
}


def record_balloon_request(name: str, domain: Domain) -> None:
    """Note in a domain that was just started what the start has asked of its guest: the memory to give back."""
    with libvirt_errors(f"Reading domain {name} after its start"):
        running = _running(domain)
        stored = ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE))
    for edit in live_edits(stored, running):
        if edit.kind == "memory":
            _note_asked(name, domain, edit)


def _note_asked(name: str, domain: Domain, edit: LiveEdit, refused: bool = False) -> None:
    with libvirt_errors(f"Recording a request to the guest of domain {name}"):
        note = asked_of(_running(domain)).with_key(edit.key(), refused).note()
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, *note, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _running(domain: Domain) -> ET.Element:
    return ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))


def _followed(domain: Domain, edit: LiveEdit) -> bool:
    """Wait a moment for the guest; what libvirt does by itself is there at once."""
    deadline = time.monotonic() + _FOLLOW_SECONDS
    while True:
        if edit.kind == "memory":
            done = same_memory(int(domain.memoryStats().get("actual", 0)), edit.after)
        elif edit.kind == "detach":
            devices = _running(domain).find("devices")
            done = devices is None or edit.path.partition("/")[2] not in children_by_key(devices)
        else:
            return True
        if done or time.monotonic() > deadline:
            return done
        time.sleep(0.1)


def undefine(
    name: str, connection: Connection, domain: Domain, found: DomainArtifacts, remove: t.Collection[str]
) -> None:
    """Undefine a domain; what of its belongings is not in ``remove`` stays."""
    with libvirt_errors(f"Undefining domain {name}"):
        version = connection.getLibVersion()
        flags = lifecycle.undefine_flags(
            version, remove, bool(found.managed_save), len(found.snapshots), len(found.checkpoints)
        )
        try:
            domain.undefineFlags(flags)
        except libvirt.libvirtError as error:
            # Drivers other than QEMU's know fewer flags; they have nothing that the others would keep.
            known = flags & (lifecycle.UNDEFINE_MANAGED_SAVE | lifecycle.UNDEFINE_SNAPSHOTS)
            if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG or known == flags:
                raise
            domain.undefineFlags(known)
