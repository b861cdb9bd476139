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

from ...._core.errors import MASK
from ...._core.plan import Change
from ...connection.xml import Difference, children_by_key, element_text, size_bytes, text_of, to_text
from ...disk.disks import target_of
from ..mark import MARK_PREFIX, differences

_ASKED_URI = "https://github.com/tapvirt/tapvirt.host/asked/1"
_ASKED_TAG = "{" + _ASKED_URI + "}asked"

# What only the running domain has, yet nobody but a user (or a program of theirs) can have put there.
_ADDED_BY_HAND = re.compile(
    r"devices/(?:disk|interface|hostdev|filesystem|memory|redirdev|rng|shmem|vsock)\[[^/]*\]\Z"
    r"|cpu/vendor\Z"
    r"|devices/disk\[[^/]*\]/(?:source\Z|readonly|shareable|iotune)"
    r"|devices/interface\[[^/]*\]/(?:link|bandwidth|mtu)"
    r"|devices/graphics\[[^/]*\]@passwd"
)
# What a start changes by itself, although the stored definition says otherwise, and what is edited apart from the rest.
_FILLED_IN = re.compile(
    r"os@firmware\Z|os/(?:loader|nvram|firmware)\b"
    r"|cpu@check\Z|cpu/model@fallback\Z"
    r"|clock@(?:adjustment|basis)\Z"
    r"|metadata\b|title\Z|description\Z"
    r"|devices/graphics\[[^/]*\](?:@(?:port|autoport|tlsPort|websocket)\Z|/listen)"
    r"|devices/(?:serial|console|channel)\[[^/]*\]/source@path\Z"
    r"|devices/interface\[[^/]*\]/target@dev\Z"
)
# What a start writes in place of the host's own processor, and what it rounds up.
_HOST_MODEL = re.compile(r"cpu(?:@(?:mode|match)\Z|/(?:model|vendor|feature)\b)")
_ROUNDED = re.compile(r"(?:memory|currentMemory|cpu/numa/cell(?:\[[^/]*\])?@memory)\Z")
_ROUND_KIB = 1024


# What can be plugged in and out while a domain runs, and the buses of disks that can.
_PLUGGABLE = frozenset(["disk", "interface", "hostdev", "rng"])
_PLUGGABLE_BUSES = frozenset(["virtio", "scsi", "usb", "xen"])
# What an update of a device can change while it runs: the medium of a removable disk, the link of an interface, the
# password of a display.
_PASSWORD = ("passwd", "passwdValidTo")
_UPDATABLE = {
    "disk": re.compile(r"(?:/source\b|@type\Z)"),
    "interface": re.compile(r"/link\b"),
    "graphics": re.compile(f"@(?:{'|'.join(_PASSWORD)})\\Z"),
}

#: A processor's model and vendor.
HostModel = t.Tuple[t.Optional[str], t.Optional[str]]


@dataclasses.dataclass(frozen=True)
class LiveEdit:
    """An edit of a running domain.

    ``kind`` is ``memory`` (values in KiB), ``vcpus`` (counts), ``title`` or ``description`` (text), or ``attach``,
    ``detach``, ``update`` (of the device in ``xml``; values as they may be shown).
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
class RefusedEdits:
    """Edits without effect on a running guest, noted in its definition until it ends: keys of edits.

    ``refused`` are those of ``keys`` that the hypervisor has refused; the others the guest has not followed.
    """

    keys: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def with_key(self, key: str, refused: bool = False) -> RefusedEdits:
        """Return the note with one more key."""
        return RefusedEdits((*self.keys, key), (*self.refused, key) if refused else self.refused)

    def note(self) -> tuple[str, str, str]:
        """Return the note as setMetadata takes it: element text, prefix and namespace."""
        text = f'<asked edits="{" ".join(self.keys)}" refused="{" ".join(self.refused)}"/>'
        return text, MARK_PREFIX + "-asked", _ASKED_URI


def asked_of(running: ET.Element) -> RefusedEdits:
    """Return the note in a running domain."""
    note = running.find("metadata/" + _ASKED_TAG)
    if note is None:
        return RefusedEdits()
    return RefusedEdits(tuple((note.get("edits") or "").split()), tuple((note.get("refused") or "").split()))


def refused_reason(edit: LiveEdit, asked: RefusedEdits) -> str:
    """Return what an edit without effect waits for: a guest that does not follow, or a restart.

    Memory waits for the guest in any case: a restart would ask it for the same.
    """
    if edit.kind == "memory":
        return "guest"
    return "detach_pending" if edit.kind == "detach" and edit.key() not in asked.refused else "restart"


def pending_differences(
    stored: ET.Element, running: ET.Element, host_model: HostModel | None = None, subset: bool = False
) -> list[Difference]:
    """Return where a running domain is not what its stored definition says: ``before`` runs, ``after`` is stored.

    :param host_model: what a start would write in place of the host's own processor, where that is known.
    :param subset: ``stored`` is not all that will be stored, so only what it says is compared.
    """
    expanded = is_expanded(stored, running) and host_model in (None, model_of(running.find("cpu")))
    return [
        difference
        for difference in differences(_as_stored(running, stored), _with_count(stored), subset)
        if not _FILLED_IN.match(difference.path)
        and (difference.after is not None or _ADDED_BY_HAND.match(difference.path))
        and not (expanded and _HOST_MODEL.match(difference.path))
        and not _only_rounded(difference)
    ]


def is_expanded(stored: ET.Element, running: ET.Element) -> bool:
    """Tell whether a domain can run with what a start has written in place of the host's own processor."""
    modes = [cpu.get("mode") for cpu in (stored.find("cpu"), running.find("cpu")) if cpu is not None]
    return modes == ["host-model", "custom"]


def model_of(cpu: ET.Element | None) -> HostModel:
    """Return the model and the vendor in a definition's <cpu>; only of a host's own processor is there a vendor."""
    return text_of(cpu, "model"), text_of(cpu, "vendor")


def _only_rounded(row: Difference) -> bool:
    if not _ROUNDED.match(row.path) or row.before is None or row.after is None:
        return False
    return same_memory(int(row.before), int(row.after))


def same_memory(one_kib: int, other_kib: int) -> bool:
    """Tell whether two sizes are the same to a start, which rounds up to whole MiB."""
    return -(-one_kib // _ROUND_KIB) == -(-other_kib // _ROUND_KIB)


def _with_count(root: ET.Element) -> ET.Element:
    """Return a copy that says how many processors are on, also where those are all."""
    copied = ET.fromstring(ET.tostring(root))
    element = copied.find("vcpu")
    if element is not None:
        element.set("current", str(vcpus_of(root)[0]))
    return copied


def _as_stored(running: ET.Element, stored: ET.Element) -> ET.Element:
    """Return a copy in which empty drives look as in the stored definition.

    An ejected medium leaves a source that holds a number of QEMU's only, and an empty drive that runs has no format.
    """
    copied = _with_count(running)
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
    if memory and wanted_memory and room and not same_memory(memory, wanted_memory) and wanted_memory * 1024 <= room:
        edits.append(LiveEdit("memory", "currentMemory", memory, wanted_memory))
    vcpus, wanted_vcpus = vcpus_of(running), vcpus_of(stored)
    if vcpus[0] != wanted_vcpus[0] and wanted_vcpus[0] <= vcpus[1]:
        edits.append(LiveEdit("vcpus", "vcpu@current", vcpus[0], wanted_vcpus[0]))
    for tag in ("title", "description"):
        text, wanted_text = text_of(running, tag), text_of(stored, tag)
        if text != wanted_text:
            edits.append(LiveEdit(tag, tag, text, wanted_text))
    return edits + list(_device_edits(stored, running))


def _device_edits(stored: ET.Element, running: ET.Element) -> t.Iterator[LiveEdit]:
    """Return the edits of devices: out first, so that places and names are free, then in, then updates."""
    stored_devices, running_devices = stored.find("devices"), running.find("devices")
    if stored_devices is None or running_devices is None:
        return
    wanted, found = children_by_key(stored_devices), children_by_key(running_devices)
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
        if (
            pattern is not None
            and _updatable(device, rows)
            and all(pattern.match(row.path[len(place) :]) for row in rows)
        ):
            before = "; ".join(MASK if row.secret else row.before for row in rows if row.before is not None) or None
            after = "; ".join(MASK if row.secret else row.after for row in rows if row.after is not None) or None
            yield LiveEdit("update", place, before, after, to_text(_updated(found[label], device)))


def _updatable(device: ET.Element, rows: t.Sequence[Difference]) -> bool:
    if device.tag == "graphics":
        # Without a password the display would go on to ask for the one it has, whatever libvirt then says.
        return all(row.after is not None for row in rows)
    return device.tag != "disk" or device.get("device") in ("cdrom", "floppy")


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
