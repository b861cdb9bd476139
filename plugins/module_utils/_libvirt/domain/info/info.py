# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said of domains: one typed row each.

Private to the collection.
"""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

from ...connection.connection import Domain, default_if_unsupported, libvirt
from ...connection.xml import size_bytes
from ..lifecycle import state_of
from ..live.edits import asked_of, live_edits, pending_differences, pending_row, refused_reason, vcpus_of
from ..mark import mark_of

MAX_DEVICES = 32
_MAX_PENDING = 20

# virDomain{Running,Paused,Shutoff,Crashed}Reason and the like: the words for the reason codes, by state.
_REASONS: dict[str, tuple[str, ...]] = {
    "running": (
        "unknown", "booted", "migrated", "restored", "from_snapshot", "unpaused", "migration_canceled", "save_canceled",
        "wakeup", "crashed", "postcopy", "postcopy_failed",
    ),
    "paused": (
        "unknown", "user", "migration", "save", "dump", "ioerror", "watchdog", "from_snapshot", "shutting_down",
        "snapshot", "crashed", "starting_up", "postcopy", "postcopy_failed", "api_error",
    ),
    "shutdown": ("unknown", "user"),
    "shutoff": (
        "unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from_snapshot", "daemon",
    ),
    "crashed": ("unknown", "panicked"),
}  # fmt: skip


def domain_row(domain: Domain) -> tuple[dict[str, t.Any], ET.Element, ET.Element | None]:
    """Return the row of one domain, its stored definition, and that of its run while it runs.

    :raises libvirt.libvirtError: libvirt refused, or the domain is gone.
    """
    state, reason = state_of(domain)
    active, persistent = bool(domain.isActive()), bool(domain.isPersistent())
    stored = ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    running = ET.fromstring(domain.XMLDesc(0)) if active else None
    row = {
        "name": domain.name(),
        "uuid": domain.UUIDString(),
        "state": state,
        "reason": reason_word(state, reason),
        "autostart": bool(domain.autostart()) if persistent else False,
        "persistent": persistent,
        "managed_save": _has_saved_memory(domain),
        "managed_by_tapvirt": mark_of(stored) is not None,
        **describe(stored, running),
    }
    return row, stored, running


def _has_saved_memory(domain: Domain) -> bool:
    return default_if_unsupported(lambda: bool(domain.hasManagedSaveImage(0)), False)


def reason_word(state: str, code: int) -> str:
    """Return libvirt's reason for a state as a word."""
    words = _REASONS.get(state, ("unknown",))
    return words[code] if code < len(words) else "unknown"


def describe(stored: ET.Element, running: ET.Element | None) -> dict[str, t.Any]:
    """Return what the XML says of a domain; of the running one where it runs, of the stored one where it does not."""
    root = running if running is not None else stored
    online, most = vcpus_of(root)
    machine = root.find("os/type")
    return {
        "type": root.get("type"),
        "machine": None if machine is None else machine.get("machine"),
        "vcpus": online,
        "max_vcpus": most,
        "memory_bytes": size_bytes(root.find("currentMemory")) or size_bytes(root.find("memory")),
        "max_memory_bytes": size_bytes(root.find("memory")),
        "disks": [_disk(disk) for disk in root.findall("devices/disk")[:MAX_DEVICES]],
        "interfaces": [_interface(interface) for interface in root.findall("devices/interface")[:MAX_DEVICES]],
        "console": _console(root),
        "pending": [] if running is None else _pending(stored, running)[:_MAX_PENDING],
    }


def _pending(stored: ET.Element, running: ET.Element) -> list[dict[str, t.Any]]:
    edits, asked = live_edits(stored, running), asked_of(running)
    rows = []
    for row in pending_differences(stored, running):
        reason = "restart"
        for edit in edits:
            if row.path.startswith(edit.path):
                reason = refused_reason(edit, asked) if edit.key() in asked.keys else "apply"
        rows.append(pending_row(row.path, row.before, row.after, reason, row.secret))
    return rows


def _disk(disk: ET.Element) -> dict[str, t.Any]:
    source, target, driver = disk.find("source"), disk.find("target"), disk.find("driver")
    return {
        "target": None if target is None else target.get("dev"),
        "bus": None if target is None else target.get("bus"),
        "device": disk.get("device", "disk"),
        "format": None if driver is None else driver.get("type"),
        "source": source_of(source),
        "readonly": disk.find("readonly") is not None,
    }


def source_of(source: ET.Element | None) -> str | None:
    """Return where a disk has its data: a path, ``POOL/VOLUME`` or a network name; null where it has none."""
    if source is None:
        return None
    if source.get("pool"):
        return f"{source.get('pool')}/{source.get('volume')}"
    return next((source.get(name) for name in ("file", "dev", "dir", "name") if source.get(name)), None)


def _interface(interface: ET.Element) -> dict[str, t.Any]:
    mac, source = interface.find("mac"), interface.find("source")
    model, target = interface.find("model"), interface.find("target")
    named = ("network", "bridge", "dev")
    return {
        "type": interface.get("type"),
        "mac": None if mac is None else mac.get("address"),
        "source": None if source is None else next((source.get(name) for name in named if source.get(name)), None),
        "model": None if model is None else model.get("type"),
        "device": None if target is None else target.get("dev"),
    }


def _console(root: ET.Element) -> dict[str, t.Any] | None:
    console = root.find("devices/console")
    if console is None:
        return None
    source = console.find("source")
    return {"type": console.get("type"), "path": None if source is None else source.get("path")}
