# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only a network's XML has: its identity, what means the same in two ways, what a start fills in.

Private to the collection. Pure. Meanings follow libvirt's page "Network XML format".
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t
import xml.etree.ElementTree as ET

from ..connection import xml
from ..connection.xml import Difference, children_by_key, text_of

# The forward modes of networks whose bridge libvirt makes itself; null: isolated.
OWN_BRIDGE_MODES = frozenset([None, "nat", "route", "open"])
# What a start notes in the XML of a network with NAT; it is what NAT does without it, too.
_NAT_PORTS = {"start": "1024", "end": "65535"}
# How many interfaces of guests use a network, or one of its devices.
_COUNTER = "connections"


@dataclasses.dataclass(frozen=True)
class Address:
    """An <ip> of a network: the address, the length of its prefix (null: by its class), its family, what DHCP has."""

    address: str | None
    prefix: int | None
    family: str
    dhcp_ranges: tuple[tuple[str | None, str | None], ...]
    dhcp_hosts: int


def forward_mode(root: ET.Element) -> str | None:
    """Return how a network reaches the outside; null: not at all."""
    forward = root.find("forward")
    return None if forward is None else forward.get("mode", "nat")


def bridge_name(root: ET.Element) -> str | None:
    """Return the name of the bridge in a network's XML."""
    bridge = root.find("bridge")
    return None if bridge is None else bridge.get("name")


def addresses(root: ET.Element) -> list[Address]:
    """Return the addresses that the host has on a network."""
    return [
        Address(
            ip.get("address"),
            None if ip.get("prefix") is None else int(ip.get("prefix", "0")),
            ip.get("family", "ipv4"),
            tuple((item.get("start"), item.get("end")) for item in ip.findall("dhcp/range")),
            len(ip.findall("dhcp/host")),
        )
        for ip in normal(root).findall("ip")
    ]


def with_identity(wanted: ET.Element, existing: ET.Element) -> ET.Element:
    """Return a copy of the wanted definition with what libvirt chose for the existing one, where it says nothing.

    UUID, the name of a bridge of libvirt's own and its MAC address; and the metadata, which others may have written.
    """
    result = _copied(wanted)
    if text_of(result, "uuid") is None:
        _take(result, existing, "uuid")
    if result.find("metadata") is None:
        _take(result, existing, "metadata")
    if forward_mode(result) in OWN_BRIDGE_MODES and forward_mode(existing) in OWN_BRIDGE_MODES:
        name = bridge_name(existing)
        bridge = result.find("bridge")
        if name is not None and bridge is None:
            ET.SubElement(result, "bridge", {"name": name})
        elif name is not None and bridge is not None and _may_be(bridge.get("name"), name):
            bridge.set("name", name)
        if result.find("mac") is None:
            _take(result, existing, "mac")
    return result


def _may_be(wanted: str | None, name: str) -> bool:
    """Tell whether libvirt can have made a bridge's name of the wanted one: of none, or of one with a place for %d."""
    if not wanted:
        return True
    before, place, after = wanted.partition("%d")
    return bool(place) and re.fullmatch(re.escape(before) + r"\d+" + re.escape(after), name) is not None


def _take(result: ET.Element, existing: ET.Element, tag: str) -> None:
    found, place = existing.find(tag), result.find(tag)
    if place is not None:
        result.remove(place)
    if found is not None:
        result.append(_copied(found))


def _copied(element: ET.Element) -> ET.Element:
    return ET.fromstring(ET.tostring(element))


def without_counters(root: ET.Element) -> ET.Element:
    """Return a copy of a running network's XML that can be defined: without the numbers of guests in it."""
    copied = _copied(root)
    for element in copied.iter():
        element.attrib.pop(_COUNTER, None)
    return copied


def users_of(interface: ET.Element) -> int:
    """Return how many interfaces of guests use a network, or a device that it forwards to, as its running XML says."""
    return int(interface.get(_COUNTER, "0"))


def normal(root: ET.Element) -> ET.Element:
    """Return a copy in which what means the same reads the same."""
    copied = without_counters(root)
    for element in [*copied.iterfind("uuid")]:
        element.text = (text_of(element) or "").lower()
    for element in [*copied.iterfind("mac"), *copied.iterfind("ip/dhcp/host[@mac]")]:
        name = "address" if element.tag == "mac" else "mac"
        element.set(name, element.get(name, "").lower())
    for element in [*copied.iterfind("ip"), *copied.iterfind("route")]:
        if element.get("family") == "ipv4":
            del element.attrib["family"]
        netmask = element.get("netmask")
        if netmask is not None and element.get("prefix") is None:
            del element.attrib["netmask"]
            element.set("prefix", str(ipaddress.ip_network("0.0.0.0/" + netmask).prefixlen))
    forward = copied.find("forward")
    if forward is not None:
        _normal_forward(forward)
    return copied


def _normal_forward(forward: ET.Element) -> None:
    forward.set("mode", forward.get("mode", "nat"))
    if forward.find("pf") is not None:
        # Libvirt lists the functions of a physical one while the network runs.
        for element in [*forward.findall("interface"), *forward.findall("address")]:
            forward.remove(element)
    if forward.find("pf") is not None or forward.find("interface") is not None:
        # It is the first of those.
        forward.attrib.pop("dev", None)
    nat = forward.find("nat")
    if nat is not None:
        for port in nat.findall("port"):
            if port.attrib == _NAT_PORTS:
                nat.remove(port)
        if not len(nat) and not nat.attrib:
            forward.remove(nat)


def differences(before: ET.Element, after: ET.Element) -> list[Difference]:
    """Compare what two networks' definitions mean, as :func:`.definition.differences` does."""
    old, new = normal(before), normal(after)
    _pair(old, new, "dns")
    for first, second in same_addresses(old, new):
        _pair(first, second, "dhcp")
    return xml.differences(old, new)


def same_addresses(before: ET.Element, after: ET.Element) -> t.Iterator[tuple[ET.Element, ET.Element]]:
    """Return the <ip> elements that both of two normal forms have, in pairs."""
    new = children_by_key(after)
    for label, element in children_by_key(before).items():
        if element.tag == "ip" and label in new:
            yield element, new[label]


def _pair(before: ET.Element, after: ET.Element, tag: str) -> None:
    """Give both a part that only one has, so that what is in it is compared and not the part as a whole."""
    for mine, other in ((before, after), (after, before)):
        if mine.find(tag) is None and other.find(tag) is not None:
            ET.SubElement(mine, tag)


def summary(root: ET.Element) -> dict[str, t.Any]:
    """Return what a new network is, in a few words."""
    ips = addresses(root)
    return {
        "forward": forward_mode(root),
        "bridge": bridge_name(root),
        "ips": [ip.address if ip.prefix is None else f"{ip.address}/{ip.prefix}" for ip in ips],
        "dhcp_hosts": sum(ip.dhcp_hosts for ip in ips),
    }
