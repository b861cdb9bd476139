# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest-visible identity: carried over from the existing definition into the requested one.

UUID, MAC addresses, machine version, places of devices, NVRAM file, generation ID. What the user's XML says wins.
Private to the collection. Pure.
"""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t
import uuid
import xml.etree.ElementTree as ET

from ..connection.xml import children_by_key, text_of
from ..disk.disks import target_of
from .device_keys import fill_keys, number_controllers
from .mark import MARK_URI, Mark, add_at_top, definition_hash, mark_of
from .stored_devices import carried_devices

# A machine alias and what the versions it stands for begin with; any other alias is a prefix itself (virt, pseries).
_MACHINE_ALIASES = {"pc": "pc-i440fx-", "q35": "pc-q35-"}
_MAC_PREFIX = {"xen": "00:16:3e"}
_DEFAULT_MAC_PREFIX = "52:54:00"
# By type of virtual port, what libvirt would generate again at each definition.
_PORT_IDS = {"openvswitch": "interfaceid", "802.1Qbg": "instanceid"}
# Told by position among their like, so that an address may belong to another one; libvirt places them again.
_PLACED_BY_KEY = frozenset(["disk", "interface", "controller", "filesystem", "input", "sound", "channel"])
_ALONE = frozenset(["memballoon", "watchdog", "rng", "video", "vsock", "iommu", "panic", "tpm"])


def with_identity(wanted: ET.Element, existing: ET.Element, with_addresses: bool = True) -> ET.Element:
    """Return a copy of the wanted definition with the identity of the existing one wherever it says nothing itself."""
    result = ET.fromstring(ET.tostring(wanted))
    _carry_text(result, existing, "uuid")
    _carry_text(result, existing, "genid", only_if_there=True)
    same_machine = _carry_machine(result, existing)
    _carry_nvram(result, existing)
    _carry_metadata(result, existing)
    _carry_keys(result, existing)
    if same_machine:
        _carry_devices(result, existing, with_addresses)
    if same_machine and with_addresses:
        _carry_addresses(result, existing)
    return complete(result)


def _carry_keys(result: ET.Element, existing: ET.Element) -> None:
    """Give devices that the XML leaves without a key the one that libvirt gave them."""
    for new, old in _pair_interfaces(result, existing):
        if new.find("mac") is None:
            _copy(old, new, "mac")
        _carry_port(new, old)
    fill_keys(result, existing)


def _carry_devices(result: ET.Element, existing: ET.Element, with_addresses: bool) -> None:
    """Keep the devices that libvirt added. Where the places no longer fit, libvirt makes the buses again."""
    devices, stored = result.find("devices"), existing.find("devices")
    if devices is None or stored is None:
        return
    for device in carried_devices(devices, stored, mark_of(existing)):
        if not with_addresses:
            if device.get("type") == "pci":
                continue
            for address in device.findall("address"):
                device.remove(address)
        devices.append(device)


def result_mark(mark: Mark, wanted: ET.Element, result: ET.Element) -> Mark:
    """Return a mark that also says what libvirt made of the wanted XML.

    Devices that libvirt, or the stored definition, added to the XML are ``filled``; the others are ``declared``.
    """
    found = result.find("devices")
    said = ET.fromstring(ET.tostring(wanted))
    _carry_keys(said, result)
    devices = said.find("devices")
    known = children_by_key(devices) if devices is not None else {}
    labels = [label for label in (children_by_key(found) if found is not None else {}) if " " not in label]
    filled = tuple(label for label in labels if label not in known)
    declared = tuple(label for label in labels if label in known)
    return dataclasses.replace(mark, result=definition_hash(result), filled=filled, declared=declared)


def with_disks_of(wanted: ET.Element, existing: ET.Element, targets: t.Collection[str]) -> ET.Element:
    """Return the wanted definition with the disks of these targets on the sources that they have, format included."""
    found = {target_of(disk): disk for disk in existing.iterfind("devices/disk")}
    for disk in wanted.iterfind("devices/disk"):
        target = target_of(disk)
        if target not in targets or target not in found:
            continue
        old, driver, old_driver = found[target], disk.find("driver"), found[target].find("driver")
        disk.set("type", old.get("type", "file"))
        for tag in ("source", "backingStore"):
            for element in disk.findall(tag):
                disk.remove(element)
            _copy(old, disk, tag)
        if driver is None:
            _copy(old, disk, "driver")
        elif old_driver is not None and old_driver.get("type"):
            driver.set("type", old_driver.get("type", ""))
    return wanted


def complete(wanted: ET.Element) -> ET.Element:
    """Fill in what libvirt would choose: MAC addresses and generation ID follow from the UUID, indexes count up.

    So the plan is exact: what check mode shows is what a later run, and libvirt, use.
    """
    number_controllers(wanted.findall("devices/controller"))
    genid = wanted.find("genid")
    if genid is not None and text_of(genid) is None:
        genid.text = str(uuid.uuid5(uuid.NAMESPACE_URL, f"genid:{text_of(wanted, 'uuid')}"))
    prefix = _MAC_PREFIX.get(wanted.get("type", ""), _DEFAULT_MAC_PREFIX)
    seed = text_of(wanted, "uuid") or ""
    used = {(mac.get("address") or "").lower() for mac in wanted.iterfind("devices/interface/mac")}
    for position, interface in enumerate(wanted.iterfind("devices/interface")):
        _complete_port(interface, str(uuid.uuid5(uuid.NAMESPACE_URL, f"port:{seed}/{position}")))
        if interface.find("mac") is not None:
            continue
        address = next(mac for mac in _addresses(prefix, seed, position) if mac not in used)
        used.add(address)
        ET.SubElement(interface, "mac", {"address": address})
    return wanted


def _port(interface: ET.Element) -> tuple[ET.Element | None, str]:
    """Return the virtual port of an interface and which of its parameters libvirt makes up; null where it does not."""
    port = interface.find("virtualport")
    name = "" if port is None else _PORT_IDS.get(port.get("type", ""), "")
    return (port if name else None), name


def _carry_port(new: ET.Element, old: ET.Element) -> None:
    known = old.find("virtualport/parameters")
    value = None if known is None else known.get(_port(new)[1])
    if value is not None:
        _complete_port(new, value)


def _complete_port(interface: ET.Element, value: str) -> None:
    port, name = _port(interface)
    if port is None:
        return
    parameters = port.find("parameters")
    if parameters is None:
        parameters = ET.SubElement(port, "parameters")
    if parameters.get(name) is None:
        parameters.set(name, value)


def _addresses(prefix: str, seed: str, position: int) -> t.Iterator[str]:
    attempt = 0
    while True:
        digest = hashlib.sha256(f"{seed}/{position}/{attempt}".encode()).hexdigest()
        yield ":".join([prefix, digest[0:2], digest[2:4], digest[4:6]])
        attempt += 1


def _carry_text(result: ET.Element, existing: ET.Element, tag: str, only_if_there: bool = False) -> None:
    value, place = text_of(existing, tag), result.find(tag)
    if value is None or text_of(place) is not None or (only_if_there and place is None):
        return
    if place is None:
        place = add_at_top(result, tag)
    place.text = value


def _carry_machine(result: ET.Element, existing: ET.Element) -> bool:
    """Keep the machine version where the wanted one is an alias of it; tell whether both are the same machine now."""
    new, old = result.find("os/type"), existing.find("os/type")
    if new is None or old is None:
        return new is old
    machine = old.get("machine")
    if machine is None:
        # Not every driver has machines.
        return text_of(new) == text_of(old) and new.get("machine") is None
    if (new.get("arch") or old.get("arch")) != old.get("arch"):
        return False
    wanted = new.get("machine")
    prefix = _MACHINE_ALIASES.get(wanted, wanted + "-") if wanted else ""
    if wanted != machine and (wanted is None or machine.startswith(prefix)):
        new.set("machine", machine)
    return new.get("machine") == machine


def _carry_nvram(result: ET.Element, existing: ET.Element) -> None:
    system, old = result.find("os"), existing.find("os/nvram")
    if system is None or old is None or text_of(system, "nvram") is not None:
        return
    if system.get("firmware") == "efi" or system.find("loader") is not None:
        nvram = system.find("nvram")
        if nvram is None:
            system.append(ET.fromstring(ET.tostring(old)))
        else:
            nvram.text = old.text


def _carry_metadata(result: ET.Element, existing: ET.Element) -> None:
    """Keep what other programs noted in the metadata, namespace by namespace; our mark is written again."""
    old = existing.find("metadata")
    if old is None:
        return
    mine = result.find("metadata")
    said = {"{" + MARK_URI, *(_namespace(element) for element in (mine if mine is not None else ()))}
    kept = [element for element in old if _namespace(element) not in said]
    if kept and mine is None:
        mine = add_at_top(result, "metadata")
    if mine is not None:
        mine.extend(kept)


def _namespace(element: ET.Element) -> str:
    return element.tag.rpartition("}")[0]


def _pair_interfaces(result: ET.Element, existing: ET.Element) -> list[tuple[ET.Element, ET.Element]]:
    """Pair wanted interfaces with existing ones: by MAC, alias, kind with source (and model), in order."""
    left = existing.findall("devices/interface")
    waiting = result.findall("devices/interface")
    pairs: list[tuple[ET.Element, ET.Element]] = []
    for key in (_mac, _alias, _kind_source_model, _kind_source):
        still: list[ET.Element] = []
        for new in waiting:
            wanted = key(new)
            old = next((old for old in left if wanted is not None and key(old) == wanted), None)
            if old is None or (_mac(new) is not None and key is not _mac):
                still.append(new)
                continue
            left.remove(old)
            pairs.append((new, old))
        waiting = still
    return pairs


def _mac(interface: ET.Element) -> str | None:
    mac = interface.find("mac")
    return None if mac is None else (mac.get("address") or "").lower() or None


def _alias(interface: ET.Element) -> str | None:
    alias = interface.find("alias")
    name = None if alias is None else alias.get("name")
    return name if name and name.startswith("ua-") else None


def _kind_source(interface: ET.Element) -> str:
    source = interface.find("source")
    attributes = {} if source is None else source.attrib
    named = [attributes.get(name, "") for name in ("network", "bridge", "dev", "path", "type")]
    return "|".join([interface.get("type", ""), *named])


def _kind_source_model(interface: ET.Element) -> str:
    model = interface.find("model")
    return f"{_kind_source(interface)}|{'' if model is None else model.get('type', '')}"


def _carry_addresses(result: ET.Element, existing: ET.Element) -> None:
    new_devices, old_devices = result.find("devices"), existing.find("devices")
    if new_devices is None or old_devices is None:
        return
    old_by_label = children_by_key(old_devices)
    for label, new in children_by_key(new_devices).items():
        existing_device = old_by_label.get(label)
        if existing_device is None or new.find("address") is not None or existing_device.find("address") is None:
            continue
        if new.tag in _PLACED_BY_KEY | _ALONE and _same_bus(new, existing_device):
            _copy(existing_device, new, "address")


def _same_bus(new: ET.Element, old: ET.Element) -> bool:
    """Tell whether an address of the one can be an address of the other."""
    if new.tag == "controller":
        return new.get("model") in (None, old.get("model"))
    wanted, target = new.find("target"), old.find("target")
    bus = None if wanted is None else wanted.get("bus")
    return bus is None or target is None or bus == target.get("bus")


def _copy(source: ET.Element, target: ET.Element, tag: str) -> None:
    found = source.find(tag)
    if found is not None:
        target.append(ET.fromstring(ET.tostring(found)))
