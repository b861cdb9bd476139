# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored devices that a wanted definition does not declare: those that libvirt added, and those that would be removed.

Private to the collection. Pure.
"""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree as ET

from ..connection.xml import Difference, children_by_key
from .mark import Mark, comparable, mark_of

# What libvirt adds to a definition: domain_conf.c, virDomainDefAddImplicitDevices and virDomainDefAddConsoleCompat;
# qemu_domain.c, qemuDomainDefAddDefaultDevices; libxl_domain.c, libxlDomainDefPostParse. The first ones are added only
# where none is declared.
_ADDED_ALONE = frozenset(["memballoon", "video", "audio", "watchdog", "panic", "iommu", "emulator"])
_ADDED_TAGS = frozenset([*_ADDED_ALONE, "controller", "input", "hub", "console", "serial"])
# The models that libvirt adds, of what users add as well.
_ADDED_MODELS = {"watchdog": ("itco", "diag288"), "panic": ("pseries", "s390")}
# Drivers add these later, too, as at a start, so that the mark does not list them.
_ADDED_LATER = frozenset(["console", "controller", "memballoon", "emulator"])
_ALWAYS_THERE = ("pci", "usb")
# Devices that need a controller, and the one that each needs.
_CONTROLLER_USERS = {"smartcard": "ccid", "hostdev": "scsi"}
_DEVICE_PATH = re.compile(r"devices/[^/@]+\[[^]]*\]\Z")
_EMPTY = ET.Element("devices")


def is_added_by_libvirt(
    label: str, device: ET.Element, devices: ET.Element, stored: ET.Element, mark: Mark | None
) -> bool:
    """Tell whether libvirt added a stored device by itself. The mark says so; without it, the kind does.

    :param devices: the wanted ones; ``stored`` are all of the stored ones.
    """
    if device.tag == "video" and stored.find("graphics") is not None and devices.find("graphics") is None:
        return False
    added = _noted_as_added(label, device, mark)
    if added is not None:
        return added
    if device.tag not in _ADDED_TAGS or (device.tag in _ADDED_ALONE and devices.find(device.tag) is not None):
        return False
    if device.tag == "serial":
        return devices.find("serial") is None and any(_makes(console, device) for console in _serial_consoles(devices))
    if device.tag == "console":
        target = device.find("target")
        kind = None if target is None else target.get("type")
        if kind in (None, "serial"):
            return devices.find("serial") is not None or bool(_serial_consoles(devices))
        # Of the other kinds, libvirt adds Xen's first one only.
        return kind == "xen" and target is not None and target.get("port") in (None, "0")
    return device.tag not in _ADDED_MODELS or device.get("model") in _ADDED_MODELS[device.tag]


def _noted_as_added(label: str, device: ET.Element, mark: Mark | None) -> bool | None:
    """Return what the mark says: whether libvirt added a device; null where the mark does not know."""
    if mark is None or mark.filled is None:
        return None
    if label in mark.filled:
        return True
    if device.tag not in _ADDED_LATER or label in (mark.declared or ()):
        return False
    return None


def _makes(console: ET.Element, serial: ET.Element) -> bool:
    """Tell whether libvirt would make a stored serial device from a declared console."""
    return _has_same_source(serial, console) and (serial.find("log") is None or console.find("log") is not None)


def _serial_consoles(devices: ET.Element) -> list[ET.Element]:
    targets = [(console, console.find("target")) for console in devices.findall("console")]
    return [console for console, target in targets if target is None or target.get("type") in (None, "serial")]


def carried_devices(devices: ET.Element, stored: ET.Element, mark: Mark | None) -> list[ET.Element]:
    """Return copies of the stored devices that libvirt added and that have to stay, though the XML leaves them out.

    Libvirt would add most of them again, but in other places, or as its defaults are today.
    """
    declared = children_by_key(devices)
    return [
        ET.fromstring(ET.tostring(device))
        for label, device in children_by_key(stored).items()
        if label not in declared
        and is_added_by_libvirt(label, device, devices, stored, mark)
        and _stays(device, devices, stored, bool(_noted_as_added(label, device, mark)))
    ]


def _stays(device: ET.Element, devices: ET.Element, stored: ET.Element, noted: bool) -> bool:
    """Tell whether a device that libvirt added has to stay. ``noted``: the mark says who added it."""
    if device.tag == "serial" or device in _serial_consoles(stored):
        # Libvirt makes these from each other each time.
        return False
    if device.tag == "emulator":
        return not noted
    if device.tag == "audio":
        # The default backend follows from the displays.
        return _displays(devices) == _displays(stored)
    kind = device.get("type", "pci")
    return device.tag != "controller" or not noted or kind in _ALWAYS_THERE or kind in _controllers_needed(devices)


def _displays(devices: ET.Element) -> set[str | None]:
    return {graphics.get("type") for graphics in devices.findall("graphics")}


def _controllers_needed(devices: ET.Element) -> set[str | None]:
    needed = {target.get("bus") for target in devices.iterfind("disk/target")}
    needed.update(_CONTROLLER_USERS.get(device.tag) for device in devices)
    for tag in ("channel", "console"):
        if any(target.get("type") == "virtio" for target in devices.iterfind(tag + "/target")):
            needed.add("virtio-serial")
    return needed


def removed_devices(existing: ET.Element, result: ET.Element) -> dict[str, ET.Element]:
    """Return the devices of an existing definition that the result does not have, by label, without libvirt's own.

    A device of the host is the same one where its source is; its label is a position.

    :param result: the definition that will be stored, as far as it is known.
    """
    mark = mark_of(existing)
    stored, devices = comparable(existing).find("devices"), comparable(result).find("devices")
    stored, devices = _EMPTY if stored is None else stored, _EMPTY if devices is None else devices
    kept = children_by_key(devices)
    host_devices = devices.findall("hostdev")
    removed: dict[str, ET.Element] = {}
    for label, device in children_by_key(stored).items():
        if device.tag == "hostdev":
            same = next((one for one in host_devices if _has_same_source(device, one)), None)
            if same is None:
                removed[label] = device
            else:
                host_devices.remove(same)
        elif label not in kept and not is_added_by_libvirt(label, device, devices, stored, mark):
            removed[label] = device
    return removed


def new_host_devices(existing: ET.Element, result: ET.Element) -> dict[str, ET.Element]:
    """Return the devices of the host in a result that the existing definition does not have, by label."""
    devices, stored = result.find("devices"), existing.findall("devices/hostdev")
    found = {} if devices is None else children_by_key(devices)
    return {
        label: device
        for label, device in found.items()
        if device.tag == "hostdev" and not any(_has_same_source(old, device) for old in stored)
    }


def _has_same_source(stored: ET.Element, device: ET.Element) -> bool:
    values = _source_values(stored)
    said = _source_values(device)
    return stored.get("type") == device.get("type") and all(values.get(key) == said[key] for key in said)


def has_device(stored: ET.Element, running: ET.Element, label: str) -> bool:
    """Tell whether a stored definition has the device that runs under a label. A disk on another source is another one.

    Devices of the host are found by their source; their label is a position.
    """
    devices, running_devices = stored.find("devices"), running.find("devices")
    if devices is None or running_devices is None:
        return False
    device = children_by_key(running_devices).get(label)
    if device is not None and device.tag == "hostdev":
        return any(_has_same_source(device, one) for one in devices.findall("hostdev"))
    old = children_by_key(devices).get(label)
    if device is None or old is None:
        return False
    return device.tag != "disk" or _has_same_source(device, old)


def _source_values(device: ET.Element) -> dict[tuple[str, str], int | str]:
    """Return the attributes in a device's source; users and libvirt write numbers in different ways."""
    return {(tag, name): _number(value) for tag, name, value in _source_attributes(device)}


def _source_attributes(device: ET.Element) -> t.Iterator[tuple[str, str, str]]:
    for source in device.findall("source"):
        for element in source.iter():
            for name, value in element.attrib.items():
                yield element.tag, name, value


def _number(text: str) -> int | str:
    try:
        return int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        return text


def other_label(disk: ET.Element, stored: ET.Element, result: ET.Element) -> str | None:
    """Return the new label, if there is one, under which a result has the source of a stored disk."""
    old, new = stored.find("devices"), result.find("devices")
    known = {} if old is None else children_by_key(old)
    found = {} if new is None or disk.find("source") is None else children_by_key(new)
    moved = (label for label, one in found.items() if label not in known and one.tag == disk.tag == "disk")
    return next((label for label in moved if _source_values(found[label]) == _source_values(disk)), None)


def is_lost_device(row: Difference) -> bool:
    """Tell whether a row says that a whole device goes."""
    return row.after is None and bool(_DEVICE_PATH.match(row.path))


def device_title(label: str, device: ET.Element) -> str:
    """Return what a device is called in a sentence: its label, and what is behind it."""
    source = ", ".join(f"{name}={value}" for _tag, name, value in _source_attributes(device))
    return f"{label} ({source})" if source else label
