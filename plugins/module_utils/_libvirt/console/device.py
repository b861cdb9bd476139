# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of a domain's consoles, ports and channels is meant, and whether libvirt lets it be read.

Private to the collection. Pure.
"""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, TapvirtError, nearest_names

_AGENT = "org.qemu.guest_agent.0"


@dataclasses.dataclass(frozen=True)
class Device:
    """What is opened: a console or port by its alias (null: libvirt's first), or a channel."""

    alias: str | None = None
    channel: bool = False


def find_device(name: str, root: ET.Element, alias: str | None) -> Device:
    """Return the device of that alias, by default the first console or serial port.

    Aliases of a domain that is off are those that its start gives: tag and position, those of a console on a serial
    port from there (libvirt, ``src/qemu/qemu_alias.c``).

    :raises InvalidInput: no device has that alias, it is the guest agent's, or libvirt does not let it be read.
    :raises TapvirtError: there is no console or serial port at all.
    """
    devices = _aliases(root)
    if alias is None:
        element = root.find("devices/console")
        element = root.find("devices/serial") if element is None else element
        if element is None:
            raise TapvirtError(f"Domain {name!r} has neither a console nor a serial port.")
    elif alias in devices:
        element = devices[alias]
    else:
        problem = f"Domain {name!r} has no console, port or channel."
        if devices:
            there = ", ".join(sorted(devices))
            problem = f"Domain {name!r} has no console, port or channel of this alias. It has {there}."
        raise InvalidInput("device", alias, problem, candidates=nearest_names(alias, devices))
    channel, target = element.tag == "channel", element.find("target")
    if target is not None and target.get("name") == _AGENT:
        raise InvalidInput("device", alias, "This channel is that of the guest agent, which libvirt itself uses.")
    readable = "unix" if channel else "pty"
    if element.get("type") != readable:
        problem = (
            f"The {element.tag} is of type {element.get('type')!r}, but libvirt can only read a {element.tag} of type "
            f"{readable!r}."
        )
        raise InvalidInput("device", alias, problem)
    return Device(alias, channel)


def _aliases(root: ET.Element) -> dict[str, ET.Element]:
    found: dict[str, ET.Element] = {}
    ports: dict[str | None, str] = {}
    for tag in ("serial", "parallel", "channel", "console"):
        for position, element in enumerate(root.findall("devices/" + tag)):
            alias, target = element.find("alias"), element.find("target")
            name = None if alias is None else alias.get("name")
            port = None if target is None else target.get("port")
            if name is None and tag == "console" and target is not None and target.get("type") == "serial":
                name = ports.get(port)
            name = name or f"{tag}{position}"
            if tag == "serial":
                ports[port] = name
            found.setdefault(name, element)
    return found
