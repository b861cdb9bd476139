# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored devices that a wanted definition does not declare: those that libvirt added, and those that would be removed.

Private to the collection. Pure.
"""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

from ..connection.xml import children_by_key
from .mark import Mark, comparable, mark_of

# What libvirt adds to a definition: domain_conf.c, virDomainDefAddImplicitDevices and virDomainDefAddConsoleCompat;
# qemu_domain.c, qemuDomainDefAddDefaultDevices; libxl_domain.c, libxlDomainDefPostParse.
_ADDED_TAGS = frozenset(
    ["controller", "input", "memballoon", "video", "audio", "watchdog", "panic", "console", "serial", "emulator"]
)
# Libvirt adds these only where none is declared.
_ADDED_ALONE = frozenset(["memballoon", "video", "audio", "watchdog", "panic", "emulator"])
# The models that libvirt adds, of what users add as well.
_ADDED_MODELS = {"watchdog": ("itco", "diag288"), "panic": ("pseries", "s390")}
# Drivers add these later, too, as at a start, so that the mark does not list them.
_ADDED_LATER = frozenset(["console", "controller", "memballoon", "emulator"])
# Libvirt makes these from each other each time.
_MADE_AGAIN = frozenset(["console", "serial"])
_ALWAYS_THERE = ("pci", "usb")
# Devices that need a controller, and the one that each needs.
_CONTROLLER_USERS = {"smartcard": "ccid", "hostdev": "scsi"}
_EMPTY = ET.Element("devices")


def is_added_by_libvirt(
    label: str, device: ET.Element, devices: ET.Element, stored: ET.Element, mark: Mark | None
) -> bool:
    """Tell whether libvirt added a stored device by itself. The mark says so; without it, the kind does.

    :param devices: the wanted ones; ``stored`` are all of the stored ones.
    """
    if device.tag not in _ADDED_TAGS:
        return False
    if device.tag == "video" and stored.find("graphics") is not None and devices.find("graphics") is None:
        return False
    if mark is not None and mark.filled is not None:
        return label in mark.filled
    if device.tag in _ADDED_ALONE and devices.find(device.tag) is not None:
        return False
    if device.tag == "serial":
        return devices.find("serial") is None and _has_serial_console(devices)
    if device.tag == "console":
        target = device.find("target")
        kind = None if target is None else target.get("type")
        if kind in ("virtio", "usb"):
            return False
        return kind != "serial" or devices.find("serial") is not None or _has_serial_console(devices)
    return device.tag not in _ADDED_MODELS or device.get("model") in _ADDED_MODELS[device.tag]


def _has_serial_console(devices: ET.Element) -> bool:
    targets = [console.find("target") for console in devices.findall("console")]
    return any(target is None or target.get("type") in (None, "serial") for target in targets)


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
        and _stays(device, devices, stored, mark is not None)
    ]


def _stays(device: ET.Element, devices: ET.Element, stored: ET.Element, ours: bool) -> bool:
    if device.tag in _MADE_AGAIN:
        return False
    if device.tag == "emulator":
        return not ours
    if device.tag == "audio":
        # The default backend follows from the displays.
        return _displays(devices) == _displays(stored)
    kind = device.get("type", "pci")
    return device.tag != "controller" or not ours or kind in _ALWAYS_THERE or kind in _controllers_needed(devices)


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
            same = next((one for one in host_devices if _is_same_host_device(device, one)), None)
            if same is None:
                removed[label] = device
            else:
                host_devices.remove(same)
        elif label not in kept:
            proof = None if device.tag in _ADDED_LATER else mark
            if not is_added_by_libvirt(label, device, devices, stored, proof):
                removed[label] = device
    return removed


def _is_same_host_device(stored: ET.Element, device: ET.Element) -> bool:
    values = _source_values(stored)
    said = _source_values(device)
    return stored.get("type") == device.get("type") and all(values.get(key) == said[key] for key in said)


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


def device_title(label: str, device: ET.Element) -> str:
    """Return what a device is called in a sentence: its label, and what is behind it."""
    source = ", ".join(f"{name}={value}" for _tag, name, value in _source_attributes(device))
    return f"{label} ({source})" if source else label
