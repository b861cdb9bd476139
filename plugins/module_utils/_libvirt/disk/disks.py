# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks that a definition names, and what each of them stands on as far as the definition tells.

Private to the collection. Pure. Rules: libvirt's page "Domain XML format", section on hard drives, floppies, CD-ROMs.
"""

from __future__ import annotations

import dataclasses
import typing as t
import xml.etree.ElementTree as ET

from ..connection.xml import text_of

# Where the source of each type of disk has its place.
_PLACES = {"file": "file", "block": "dev", "dir": "dir", "network": "name"}
_REMOVABLE = ("cdrom", "floppy")
# Protocols whose hosts are several doors to one store, so that another list of them leads to the same data.
ANY_HOST = ("rbd", "gluster", "sheepdog")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the data of a disk is: ``kind`` is libvirt's type, ``path`` the place in it.

    Of a ``volume`` the place is ``pool`` and ``volume``; of ``network`` the path is the name on the server, and ``at``
    tells protocol and server. Of a kind without a place, such as ``nvme``, ``at`` is what its source says.
    """

    kind: str
    path: str | None = None
    pool: str | None = None
    volume: str | None = None
    at: str = ""

    def word(self) -> str:
        """Return it as one word that no other data has."""
        return ":".join([self.kind, *([self.at] if self.at else []), self.shown()])

    def shown(self) -> str:
        """Return it as one word."""
        if self.kind == "volume":
            return f"{self.pool}/{self.volume}"
        return self.path or self.kind


@dataclasses.dataclass(frozen=True)
class Disk:
    """One disk; ``source`` is null where no medium is in it, ``backing`` is what it stands on, nearest first.

    ``format`` is libvirt's word for how the data lies there; null where the definition does not say.
    """

    target: str
    device: str
    source: Source | None
    readonly: bool
    shareable: bool
    backing: tuple[Source, ...] = ()
    format: str | None = None

    @property
    def removable(self) -> bool:
        """Tell whether it is a drive whose medium comes and goes."""
        return self.device in _REMOVABLE

    @property
    def own(self) -> bool:
        """Tell whether it is meant for one domain alone: it is written to, and not said to be shared."""
        return self.source is not None and not (self.removable or self.readonly or self.shareable)


def disks_of(root: ET.Element | None) -> list[Disk]:
    """Return the disks of a definition in its order; those without a target are none."""
    found = []
    for element in root.iterfind("devices/disk") if root is not None else ():
        target = target_of(element)
        if not target:
            continue
        driver = element.find("driver")
        found.append(
            Disk(
                target=target,
                device=element.get("device", "disk"),
                source=_source(element),
                readonly=element.find("readonly") is not None,
                shareable=element.find("shareable") is not None,
                backing=tuple(_backing(element)),
                format=None if driver is None else driver.get("type"),
            )
        )
    return found


def target_of(element: ET.Element) -> str | None:
    """Return the target of a disk, such as ``vda``; null where it has none."""
    target = element.find("target")
    return None if target is None else target.get("dev")


def nvram_path(root: ET.Element) -> str | None:
    """Return the file of a domain's firmware variables; null where none is named."""
    source = root.find("os/nvram/source")
    return text_of(root, "os/nvram") or (None if source is None else source.get("file"))


def _source(element: ET.Element) -> Source | None:
    source = element.find("source")
    kind = element.get("type", "file")
    if source is None:
        return None
    if kind == "volume":
        pool, volume = source.get("pool"), source.get("volume")
        return Source(kind, None, pool, volume) if pool and volume else None
    path = source.get(_PLACES.get(kind, ""))
    if kind == "network":
        return Source(kind, path, at=_server(source)) if path else None
    if kind not in _PLACES:
        return Source(kind, path, at=_said_by(source))
    return Source(kind, path) if path else None


def _server(source: ET.Element) -> str:
    protocol = source.get("protocol", "")
    hosts = [] if protocol in ANY_HOST else [_said_by(host) for host in source.iterfind("host")]
    return "/".join([protocol, *sorted(hosts)])


def _said_by(element: ET.Element) -> str:
    # A running domain's sources are counted.
    said = [(name, value) for name, value in element.attrib.items() if name != "index"]
    address = element.find("address")
    return ",".join(
        f"{name}={value}" for name, value in sorted([*said, *(address.attrib.items() if address is not None else ())])
    )


def _backing(element: ET.Element) -> t.Iterator[Source]:
    below = element.find("backingStore")
    while below is not None:
        source = _source(below)
        if source is not None:
            yield source
        below = below.find("backingStore")
