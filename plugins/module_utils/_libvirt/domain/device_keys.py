# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What identifies a device and may be left out of the XML: indexes of controllers, ports, names and buses.

A device without it is the stored one that libvirt gave it to. Private to the collection. Pure.
"""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

from ..connection.xml import is_ich9, key_of

# What libvirt fills in of a device's key, by tag: paths with an attribute, as in definition.
_FILLED_PARTS = {
    "serial": ("target@port",),
    "parallel": ("target@port",),
    "console": ("target@type", "target@port"),
    "channel": ("target@name",),
    "input": ("@bus",),
}
# What two devices of a tag have in common when they are the same one.
_SAME_PARTS = {"channel": ("@type", "target@type"), "input": ("@type",)}


def fill_keys(wanted: ET.Element, existing: ET.Element) -> None:
    """Give the devices of a wanted definition the keys that libvirt gave to the existing ones, where they have none."""
    devices, stored = wanted.find("devices"), existing.find("devices")
    if devices is None or stored is None:
        return
    _carry_indexes(devices, stored)
    for tag, parts in _FILLED_PARTS.items():
        waiting: list[ET.Element] = []
        left = stored.findall(tag)
        for device in devices.findall(tag):
            if any(_get(device, part) is None for part in parts):
                waiting.append(device)
            else:
                left = [old for old in left if key_of("devices", old) != key_of("devices", device)]
        for device in waiting:
            same = (*_SAME_PARTS.get(tag, ()), *parts)
            old = next((old for old in left if _agree(device, old, same, parts)), None)
            if old is not None:
                left.remove(old)
                for part in parts:
                    _set(device, part, _get(old, part) or "")


def _agree(device: ET.Element, old: ET.Element, same: t.Iterable[str], parts: t.Iterable[str]) -> bool:
    if any(_get(old, part) is None for part in parts):
        return False
    return all(_get(device, part) in (None, _get(old, part)) for part in same)


def _get(device: ET.Element, part: str) -> str | None:
    path, _at, name = part.partition("@")
    element = device.find(path) if path else device
    return None if element is None else element.get(name)


def _set(device: ET.Element, part: str, value: str) -> None:
    path, _at, name = part.partition("@")
    element = device.find(path) if path else device
    if element is None:
        element = ET.SubElement(device, path)
    element.set(name, value)


def _carry_indexes(devices: ET.Element, stored: ET.Element) -> None:
    """Give controllers without an index that of the stored ones of their type and model, in order."""
    controllers = devices.findall("controller")
    explicit = [one for one in controllers if one.get("index") is not None]
    waiting = [one for one in controllers if one.get("index") is None]
    left = [old for old in stored.findall("controller") if not any(_in_the_same_place(old, one) for one in explicit)]
    for has_model in (True, False):
        for controller in waiting:
            kind, model = controller.get("type"), controller.get("model")
            if (model is not None) is not has_model:
                continue
            of_kind = (old for old in left if old.get("type") == kind)
            old = next((old for old in of_kind if model in (None, old.get("model"))), None)
            if old is not None:
                left.remove(old)
                controller.set("index", old.get("index", ""))
    used = [one for one in stored.findall("controller") if one.get("type") == "pci"]
    number_controllers(controllers, used)


def _in_the_same_place(one: ET.Element, other: ET.Element) -> bool:
    """Tell whether two controllers cannot be there side by side. Those of an ich9 set share an index."""
    if (one.get("type"), one.get("index")) != (other.get("type"), other.get("index")):
        return False
    return one.get("model") == other.get("model") or not (is_ich9(one) and is_ich9(other))


def number_controllers(controllers: t.Sequence[ET.Element], others: t.Iterable[ET.Element] = ()) -> None:
    """Give controllers without an index the one that libvirt gives them: the lowest free one of their type.

    An ich9 USB controller joins the set of the USB controller before it (domain_conf.c,
    virDomainAssignControllerIndexes).

    :param others: further controllers whose indexes are taken.
    """
    used = {(one.get("type"), one.get("index")) for one in (*controllers, *others)}
    for position, controller in enumerate(controllers):
        if controller.get("index") is not None:
            continue
        kind = controller.get("type")
        index = _set_index(controllers, position)
        if index is None:
            index = next(str(free) for free in range(len(used) + 1) if (kind, str(free)) not in used)
        used.add((kind, index))
        controller.set("index", index)


def _set_index(controllers: t.Sequence[ET.Element], position: int) -> str | None:
    controller = controllers[position]
    before = next((one for one in reversed(controllers[:position]) if one.get("type") == "usb"), None)
    if before is None or not is_ich9(controller) or not is_ich9(before):
        return None
    index, model = before.get("index"), controller.get("model")
    taken = any(is_ich9(one) and (one.get("index"), one.get("model")) == (index, model) for one in controllers)
    return None if taken else index
