# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a volume, wanted and observed, and the XML of a new one.

Private to the collection. Pure.
"""

from __future__ import annotations

import copy
import dataclasses
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput
from .storage import User

# Formats of volumes that are files (virStorageFileFormat), but those that are directories.
FILE_FORMATS = (
    "raw", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "cow", "qcow", "qcow2", "qed", "vmdk",
)  # fmt: skip
FILE_POOLS = ("dir", "fs", "netfs", "gluster", "vstorage")
# What libvirt calls a file without a header of an image depends on what is in it.
PLAIN = ("raw", "iso")
# The options that the XML of a volume contains.
IN_XML = ("capacity", "allocation", "format", "backing")


@dataclasses.dataclass(frozen=True)
class BackingFile:
    """The file that a volume stands on."""

    path: str
    format: str | None


@dataclasses.dataclass(frozen=True)
class WantedVolume:
    """One volume as the user wants it: sizes in bytes, ``checksum`` a SHA-256 in hex, ``root`` the parsed ``xml``.

    ``sizes`` are ``capacity`` and ``allocation`` as the user wrote them.
    """

    pool: str
    volume: str
    state: str = "present"
    capacity: int | None = None
    allocation: int | None = None
    format: str | None = None
    backing: BackingFile | None = None
    root: ET.Element | None = None
    source: str | None = None
    clone_from: str | None = None
    checksum: str | None = None
    force_shrink: bool = False
    allow_in_use: bool = False
    xml: str | None = None
    sizes: t.Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return pool and volume, which together are one of a kind."""
        return f"{self.pool}/{self.volume}"

    def refusal(
        self, option: str, value: t.Any, problem: str, hint: str | None = None, candidates: t.Iterable[str] = ()
    ) -> InvalidInput:
        """Return the error for an option of this volume, which is ``xml`` where its value is from there.

        A size is shown as the user wrote it.
        """
        value = self.sizes.get(option) or value
        in_xml = self.root is not None and option.partition(".")[0] in IN_XML
        return InvalidInput("xml" if in_xml else option, value, problem, hint, candidates)


@dataclasses.dataclass(frozen=True)
class PoolSeen:
    """The pool that a volume is in; ``capacity`` and ``available`` in bytes, as libvirt counts them."""

    type: str
    active: bool
    path: str | None
    capacity: int
    available: int


@dataclasses.dataclass(frozen=True)
class VolumeSeen:
    """A volume as it was found. ``overlays``: the volumes that stand on it. ``digest``: of the content asked about.

    ``users`` is null where the driver cannot tell.
    """

    path: str
    capacity: int
    allocation: int
    format: str | None
    backing: BackingFile | None = None
    users: tuple[User, ...] | None = ()
    overlays: tuple[str, ...] = ()
    digest: str | None = None


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to upload: its bytes, and the format and the capacity of the image that it is."""

    path: str
    size: int
    format: str
    capacity: int
    digest: str | None = None


@dataclasses.dataclass(frozen=True)
class Seen:
    """All that was observed for one volume. ``origin``: the one that it is to be a copy of."""

    pool: PoolSeen | None = None
    volume: VolumeSeen | None = None
    source: SourceFile | None = None
    origin: VolumeSeen | None = None
    pools: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    backing_missing: bool = False


def same_format(one: str, other: str) -> bool:
    """Tell whether two formats are the same to what reads the volume."""
    return one == other or (one in PLAIN and other in PLAIN)


def new_definition(
    wanted: WantedVolume, pool: PoolSeen, source: SourceFile | None, form: str, capacity: int
) -> ET.Element:
    """Return the XML of a new volume. What is uploaded brings its own header, so the volume starts as plain bytes."""
    root = copy.deepcopy(wanted.root) if wanted.root is not None else ET.Element("volume")
    allocation = wanted.allocation
    if source is not None and source.format not in PLAIN:
        capacity = source.size if pool.type in FILE_POOLS else capacity
        form = "raw"
    if allocation is None and (source is not None or wanted.clone_from is not None):
        allocation = 0  # what goes into it allocates as much as it is
    _set(root, "name", wanted.volume)
    if capacity:
        _set(root, "capacity", str(capacity))
    if allocation is not None:
        _set(root, "allocation", str(allocation))
    target = _child(root, "target")
    if pool.type in FILE_POOLS:
        _child(target, "format").set("type", form)
    if wanted.backing is not None:
        below = _child(root, "backingStore")
        _set(below, "path", wanted.backing.path)
        if wanted.backing.format is not None:
            _child(below, "format").set("type", wanted.backing.format)
    return root


def _child(parent: ET.Element, tag: str) -> ET.Element:
    element = parent.find(tag)
    return ET.SubElement(parent, tag) if element is None else element


def _set(parent: ET.Element, tag: str, text: str) -> None:
    element = _child(parent, tag)
    element.attrib.clear()
    element.text = text
