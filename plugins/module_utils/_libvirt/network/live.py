# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be changed in a network while it runs: the sections that libvirt updates, and the steps for each.

Some entries of a section can be modified, others only removed and added again. An entry is identified by
what libvirt looks for. If two entries cannot be distinguished, the section waits for a restart.

Private to the collection. Pure. What libvirt takes follows virNetworkUpdate and its page "Network XML format".
"""

from __future__ import annotations

import dataclasses
import typing as t
import xml.etree.ElementTree as ET

from ..connection.xml import differences, element_text, key_of, to_text
from .xml import forward_mode, normal, same_addresses, users_of

# The forward modes whose <interface> elements are a pool of devices for guests. With NAT and routing it is the way
# out, which cannot be exchanged without a moment in which there is any.
_POOL_MODES = frozenset(["bridge", "private", "vepa", "passthrough"])
# The order of the steps: what is taken out makes room for what is put in. Ranges and devices need no room, and there
# should be one at any moment.
_COMMANDS = ("delete", "modify", "add")
_ROOM_FOR_ALL = frozenset(["IP_DHCP_RANGE", "FORWARD_INTERFACE"])
_ANY_PARENT = -1


@dataclasses.dataclass(frozen=True)
class NetworkEdit:
    """One update of a running network: ``command`` is ``add``, ``modify`` or ``delete``, of the entry in ``xml``.

    ``section`` is the end of the name of libvirt's constant for it, ``parent`` the position of the <ip> that the entry
    belongs to (-1: none). ``before`` and ``after`` are as they may be shown.
    """

    command: str
    section: str
    parent: int
    path: str
    before: str | None
    after: str | None
    xml: str


def live_edits(target: ET.Element, running: ET.Element) -> tuple[list[NetworkEdit], ET.Element]:
    """Return the edits that bring a running network nearer to a definition, in their order, and what it is after them.

    The latter is a normal form: where it still differs from the definition, only a restart helps.
    """
    wanted, found = normal(target), normal(running)
    edits: list[NetworkEdit] = []
    for tag, section in (("host", "DNS_HOST"), ("txt", "DNS_TXT"), ("srv", "DNS_SRV")):
        edits += _in_part(wanted, found, "dns", tag, section, _ANY_PARENT, "dns")
    positions = {id(ip): position for position, ip in enumerate(found.findall("ip"))}
    for old, new in same_addresses(found, wanted):
        path = f"ip[{key_of('network', old)}]/dhcp"
        for tag, section in (("host", "IP_DHCP_HOST"), ("range", "IP_DHCP_RANGE")):
            edits += _in_part(new, old, "dhcp", tag, section, positions[id(old)], path)
    if (
        forward_mode(wanted) == forward_mode(found)
        and forward_mode(wanted) in _POOL_MODES
        and not _loses_used(wanted, running)
    ):
        edits += _in_part(wanted, found, "forward", "interface", "FORWARD_INTERFACE", _ANY_PARENT, "forward")
    edits += _entries(wanted, found, "portgroup", "PORTGROUP", _ANY_PARENT, "")
    return sorted(edits, key=_order), found


def _order(edit: NetworkEdit) -> tuple[bool, int, bool]:
    # A network has one default group: the old one has to give it up first.
    becomes_default = edit.section == "PORTGROUP" and 'default="yes"' in edit.xml
    place = _COMMANDS.index(edit.command)
    if edit.section in _ROOM_FOR_ALL:
        return True, -place, False
    return False, place, becomes_default


def _loses_used(wanted: ET.Element, running: ET.Element) -> bool:
    """Tell whether a device would go that a guest uses; libvirt refuses that."""
    kept = {element.get("dev") for element in wanted.iterfind("forward/interface")}
    return any(
        users_of(element) and element.get("dev") not in kept for element in running.iterfind("forward/interface")
    )


def _in_part(
    wanted: ET.Element, found: ET.Element, part: str, tag: str, section: str, parent: int, path: str
) -> list[NetworkEdit]:
    """Return the edits of the entries in a part that either side may lack."""
    new, old = wanted.find(part), found.find(part)
    if new is None and old is None:
        return []
    if new is None:
        new = ET.Element(part)
    if old is None:
        old = ET.SubElement(found, part)
    return _entries(new, old, tag, section, parent, path + "/")


def _entries(
    wanted: ET.Element, found: ET.Element, tag: str, section: str, parent: int, path: str
) -> list[NetworkEdit]:
    """Return the edits of one section; its entries in ``found`` become the wanted ones."""
    new, old = _by_key(wanted, tag), _by_key(found, tag)
    if new is None or old is None:
        return []
    edits: list[NetworkEdit] = []

    def edit(command: str, key: str, entry: ET.Element, before: ET.Element | None, after: ET.Element | None) -> None:
        shown = (element_text(before), element_text(after))
        edits.append(NetworkEdit(command, section, parent, f"{path}{tag}[{key}]", *shown, to_text(entry)))

    for key, entry in old.items():
        change = key in new and differences(entry, new[key])
        if change and (section == "PORTGROUP" or (section == "IP_DHCP_HOST" and _modifiable(new[key], old.values()))):
            edit("modify", key, new[key], entry, new[key])
        elif change or key not in new:
            # By its names, libvirt would also find other addresses of the same names.
            sought = ET.Element("host", {"ip": key}) if section == "DNS_HOST" else entry
            edit("delete", key, sought, entry, None)
            if change:
                edit("add", key, new[key], None, new[key])
    for key, entry in new.items():
        if key not in old:
            edit("add", key, entry, None, entry)
    for entry in old.values():
        found.remove(entry)
    found.extend(new.values())
    return edits


def _by_key(parent: ET.Element, tag: str) -> dict[str, ET.Element] | None:
    """Return a parent's entries by key; null where two have the same, or one has none."""
    entries = parent.findall(tag)
    by_key = {key_of(parent.tag, entry): entry for entry in entries}
    if None in by_key or len(by_key) < len(entries):
        return None
    return {key: entry for key, entry in by_key.items() if key is not None}


def _modifiable(host: ET.Element, running: t.Iterable[ET.Element]) -> bool:
    """Tell whether libvirt would find the right host to modify: it takes the first of the same MAC address or name."""
    names = [name for name in ("mac", "name") if host.get(name) is not None]
    matching = [other for other in running if any(other.get(name) == host.get(name) for name in names)]
    return len(matching) == 1
