# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running domain against its stored definition: what waits for a restart, and what can be changed while it runs.

A running domain's XML always holds more than the stored one (aliases, ports, labels, paths). What is compared is what
the stored definition says, plus what only an edit of the running domain can have added.

Private to the collection. Pure.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing as t
import xml.etree.ElementTree as ET

from .._core.plan import MASK, Change
from .definition import Difference, element_text, keyed, size_bytes, text_of, to_text
from .disks import target_of
from .domain_xml import MARK_PREFIX, differences

_ASKED_URI = "https://github.com/tapvirt/tapvirt.host/asked/1"
_ASKED_TAG = "{" + _ASKED_URI + "}asked"

# What only the running domain has, yet nobody but a user (or a program of theirs) can have put there.
_ADDED_BY_HAND = re.compile(
    r"devices/(?:disk|interface|hostdev|filesystem|memory|redirdev|rng|shmem|vsock)\[[^/]*\]\Z"
    r"|vcpu@current\Z"
    r"|devices/disk\[[^/]*\]/(?:source\Z|readonly|shareable|iotune)"
    r"|devices/interface\[[^/]*\]/(?:link|bandwidth|mtu)"
)
# What a start changes by itself, although the stored definition says otherwise.
_FILLED_IN = re.compile(
    r"os@firmware\Z|os/(?:loader|nvram|firmware)\b"
    r"|cpu@check\Z|cpu/model@fallback\Z"
    r"|clock@(?:adjustment|basis)\Z"
    r"|metadata\b|title\Z|description\Z"
    r"|devices/graphics\[[^/]*\](?:@(?:port|autoport|tlsPort|websocket)\Z|/listen)"
    r"|devices/(?:serial|console|channel)\[[^/]*\]/source@path\Z"
    r"|devices/interface\[[^/]*\]/target@dev\Z"
)


# What can be plugged in and out while a domain runs, and the buses of disks that can.
_PLUGGABLE = frozenset(["disk", "interface", "hostdev", "rng"])
_PLUGGABLE_BUSES = frozenset(["virtio", "scsi", "usb", "xen"])
# What an update of a device can change while it runs: the medium of a removable disk, the link of an interface, the
# password of a display.
_PASSWORD = ("passwd", "passwdValidTo")
_UPDATABLE = {
    "disk": re.compile(r"(?:/source\b|@type\Z)"),
    "interface": re.compile(r"/link\b"),
    "graphics": re.compile(r"@(?:{0})\Z".format("|".join(_PASSWORD))),
}


@dataclasses.dataclass(frozen=True)
class LiveEdit:
    """An edit of a running domain.

    ``kind`` is ``memory`` (values in KiB), ``vcpus`` (counts), or ``attach``, ``detach``, ``update`` (of the device in
    ``xml``; values as they may be shown).
    """

    kind: str
    path: str
    before: t.Any
    after: t.Any
    xml: str = ""

    def key(self) -> str:
        """Return a word for the edit, by which a refusal is remembered."""
        return hashlib.sha256("\0".join([self.kind, self.path, str(self.after), self.xml]).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was asked of a running guest in vain, as noted in it until it ends: keys of edits."""

    keys: tuple[str, ...] = ()

    def with_key(self, key: str) -> Asked:
        """Return the note with one more key."""
        return Asked((*self.keys, key))

    def note(self) -> tuple[str, str, str]:
        """Return the note as setMetadata takes it: element text, prefix and namespace."""
        return '<asked edits="{0}"/>'.format(" ".join(self.keys)), MARK_PREFIX + "-asked", _ASKED_URI


def asked_of(running: ET.Element) -> Asked:
    """Return the note in a running domain."""
    note = running.find("metadata/" + _ASKED_TAG)
    return Asked() if note is None else Asked(tuple((note.get("edits") or "").split()))


def refused_reason(edit: LiveEdit) -> str:
    """Return what an edit waits for that was made in vain: a guest that does not follow, or a restart."""
    return {"memory": "guest", "detach": "detach_pending"}.get(edit.kind, "restart")


def pending_differences(stored: ET.Element, running: ET.Element) -> list[Difference]:
    """Return where a running domain is not what its stored definition says: ``before`` runs, ``after`` is stored."""
    cpu = stored.find("cpu")
    expanded = cpu is not None and cpu.get("mode") != "custom"
    return [
        difference
        for difference in differences(_with_empty_drives(running, stored), stored)
        if not _FILLED_IN.match(difference.path)
        and (difference.after is not None or _ADDED_BY_HAND.match(difference.path))
        and not (expanded and difference.path.startswith("cpu"))
    ]


def _with_empty_drives(running: ET.Element, stored: ET.Element) -> ET.Element:
    """Return a copy in which empty drives look as in the stored definition.

    An ejected medium leaves a source that holds a number of QEMU's only, and an empty drive that runs has no format.
    """
    copied = ET.fromstring(ET.tostring(running))
    drivers = ((target_of(disk), disk.find("driver")) for disk in stored.iterfind("devices/disk"))
    formats = {target: driver.get("type") for target, driver in drivers if driver is not None}
    for disk in copied.iterfind("devices/disk"):
        source, driver = disk.find("source"), disk.find("driver")
        if source is not None and not len(source) and set(source.attrib) <= {"index"}:
            disk.remove(source)
            source = None
        form = formats.get(target_of(disk))
        if source is None and driver is not None and driver.get("type") is None and form is not None:
            driver.set("type", form)
    return copied


def pending_row(what: str, running: t.Any, stored: t.Any, reason: str, secret: bool = False) -> dict[str, t.Any]:
    """Return a row of ``pending``: what runs, what is stored (or was asked for), and what it waits for."""
    row = Change(what, running, stored, "", "", secret).row()
    return {"what": what, "running": row["before"], "stored": row["after"], "reason": reason}


def live_edits(stored: ET.Element, running: ET.Element) -> list[LiveEdit]:
    """Return the edits that bring a running domain nearer to its stored definition, in the order to make them."""
    edits = []
    memory, wanted_memory = _memory_kib(running), _memory_kib(stored)
    room = size_bytes(running.find("memory"))
    if memory and wanted_memory and room and memory != wanted_memory and wanted_memory * 1024 <= room:
        edits.append(LiveEdit("memory", "currentMemory", memory, wanted_memory))
    vcpus, wanted_vcpus = vcpus_of(running), vcpus_of(stored)
    if vcpus[0] != wanted_vcpus[0] and wanted_vcpus[0] <= vcpus[1]:
        edits.append(LiveEdit("vcpus", "vcpu@current", vcpus[0], wanted_vcpus[0]))
    return edits + list(_device_edits(stored, running))


def _device_edits(stored: ET.Element, running: ET.Element) -> t.Iterator[LiveEdit]:
    """Return the edits of devices: out first, so that places and names are free, then in, then updates."""
    stored_devices, running_devices = stored.find("devices"), running.find("devices")
    if stored_devices is None or running_devices is None:
        return
    wanted, found = keyed(stored_devices), keyed(running_devices)
    for label, device in found.items():
        if label not in wanted and _pluggable(device):
            yield LiveEdit("detach", "devices/" + label, element_text(device), None, to_text(device))
    for label, device in wanted.items():
        if label not in found and _pluggable(device):
            yield LiveEdit("attach", "devices/" + label, None, element_text(device), to_text(device))
    by_device: dict[str, list[Difference]] = {}
    for row in pending_differences(stored, running):
        label = row.path.split("/")[1].partition("]")[0] + "]" if row.path.startswith("devices/") else ""
        if label in wanted and label in found:
            by_device.setdefault(label, []).append(row)
    for label, rows in by_device.items():
        device, place = wanted[label], "devices/" + label
        pattern = _UPDATABLE.get(device.tag)
        removable = device.tag != "disk" or device.get("device") in ("cdrom", "floppy")
        if pattern is not None and removable and all(pattern.match(row.path[len(place) :]) for row in rows):
            before = "; ".join(MASK if row.secret else row.before for row in rows if row.before is not None) or None
            after = "; ".join(MASK if row.secret else row.after for row in rows if row.after is not None) or None
            yield LiveEdit("update", place, before, after, to_text(_updated(found[label], device)))


def _updated(running: ET.Element, stored: ET.Element) -> ET.Element:
    """Return a device as it is handed over: a display keeps the address and port that its start gave it."""
    if running.tag != "graphics":
        return stored
    result = ET.fromstring(ET.tostring(running))
    for name in _PASSWORD:
        result.attrib.pop(name, None)
        if stored.get(name) is not None:
            result.set(name, stored.get(name, ""))
    return result


def _pluggable(device: ET.Element) -> bool:
    if device.tag != "disk":
        return device.tag in _PLUGGABLE
    target = device.find("target")
    return device.get("device", "disk") == "disk" and target is not None and target.get("bus") in _PLUGGABLE_BUSES


def _memory_kib(root: ET.Element) -> int | None:
    size = size_bytes(root.find("currentMemory")) or size_bytes(root.find("memory"))
    return None if size is None else size // 1024


def vcpus_of(root: ET.Element) -> tuple[int, int]:
    """Return how many processors a definition switches on, and how many it has at most."""
    element = root.find("vcpu")
    most = int(text_of(element) or 1)
    return int(element.get("current") or most) if element is not None else most, most
