# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only a domain's XML has: our mark in its metadata, and what libvirt added by itself.

Private to the collection. Pure.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import xml.etree.ElementTree as ET

from ..connection.xml import Difference, normal_form, to_text
from ..connection.xml import differences as _differences

MARK_URI = "https://github.com/tapvirt/tapvirt.host/domain/1"
MARK_PREFIX = "tapvirt"
MARK_TAG = "{" + MARK_URI + "}domain"
_IDS = ("name", "uuid", "genid")


@dataclasses.dataclass(frozen=True)
class Mark:
    """What we leave in a domain's metadata: hashes of the XML that was asked for and of what libvirt made of it.

    ``declared`` are the labels of the devices in that XML, ``filled`` those of the devices that libvirt added by
    itself; null where nobody has looked.
    """

    wanted: str
    result: str | None
    filled: tuple[str, ...] | None = None
    declared: tuple[str, ...] | None = None

    def note(self) -> tuple[str, str, str]:
        """Return the mark as setMetadata takes it: element text, prefix and namespace."""
        bare = ET.Element("domain", self.element().attrib)
        return to_text(bare), MARK_PREFIX, MARK_URI

    def element(self) -> ET.Element:
        """Return the mark as an element."""
        ET.register_namespace(MARK_PREFIX, MARK_URI)
        element = ET.Element(MARK_TAG, {"wanted": self.wanted})
        if self.result is not None:
            element.set("result", self.result)
        for name, labels in (("filled", self.filled), ("declared", self.declared)):
            if labels is not None:
                element.set(name, " ".join(labels))
        return element


def mark_of(root: ET.Element) -> Mark | None:
    """Return the mark in a definition, if it is one of ours."""
    element = root.find("metadata/" + MARK_TAG)
    wanted = element.get("wanted") if element is not None else None
    if element is None or not wanted:
        return None
    filled, declared = (
        None if labels is None else tuple(labels.split()) for labels in (element.get("filled"), element.get("declared"))
    )
    return Mark(wanted, element.get("result"), filled, declared)


def add_at_top(root: ET.Element, tag: str) -> ET.Element:
    """Add a child at the top, where libvirt itself writes it: an ID below the name, others below the IDs. Return it.

    At the end, the schema's interleaved parts make some definitions invalid that are valid with the child here. Between
    the name and the UUID, the schema of libvirt 9.0 rejects a definition with an ID (domaincommon.rng, "ids").
    """
    element = ET.Element(tag)
    tags = [child.tag for child in root]
    place = next((index for index, found in enumerate(tags) if found not in _IDS), len(tags))
    if tag in _IDS and "name" in tags:
        place = tags.index("name") + 1
    root.insert(place, element)
    return element


def without_id(root: ET.Element) -> ET.Element:
    """Remove the number that a running domain has, as "virsh dumpxml" prints it. Libvirt ignores it in a definition."""
    if root.get("id", "").isdigit():
        del root.attrib["id"]
    return root


def with_mark(root: ET.Element, mark: Mark) -> ET.Element:
    """Return a copy of a definition that carries the mark."""
    marked = without_mark(root)
    metadata = marked.find("metadata")
    if metadata is None:
        metadata = add_at_top(marked, "metadata")
    metadata.append(mark.element())
    return marked


def without_mark(root: ET.Element) -> ET.Element:
    """Return a copy of a definition without the mark, and without a <metadata> that held nothing else."""
    copied = ET.fromstring(ET.tostring(root))
    metadata = copied.find("metadata")
    if metadata is not None:
        for element in metadata.findall(MARK_TAG):
            metadata.remove(element)
        if not len(metadata):
            copied.remove(metadata)
    return copied


def wanted_hash(text: str) -> str:
    """Return the hash of the XML as the user gave it."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogateescape")).hexdigest()


def definition_hash(root: ET.Element) -> str:
    """Return the hash of what a definition means: without the order of keyed elements and without the mark."""
    normal = json.dumps(normal_form(comparable(root)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(normal.encode("utf-8", "surrogateescape")).hexdigest()


def differences(before: ET.Element, after: ET.Element, subset: bool = False) -> list[Difference]:
    """Compare two definitions, the mark left out, as :func:`.definition.differences` does."""
    return _differences(comparable(before), comparable(after), subset)


def comparable(root: ET.Element) -> ET.Element:
    """Return a copy without the mark, the ports of its consoles counted by type.

    Libvirt counts over all types, and again when it reads what it has stored: the first serial device has got a console
    meanwhile, so the others move on.
    """
    copied = without_mark(root)
    seen: dict[str | None, int] = {}
    for target in copied.iterfind("devices/console/target[@port]"):
        kind = target.get("type")
        target.set("port", str(seen.get(kind, 0)))
        seen[kind] = seen.get(kind, 0) + 1
    return copied
