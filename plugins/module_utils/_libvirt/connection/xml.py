# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Libvirt's XML as data: reading it safely, naming its parts, comparing two definitions without regard to order.

Private to the collection. Pure: text and elements in, values out. Keys follow libvirt's pages "Domain XML format",
"Network XML format" and "Storage pool and volume XML format".
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing as t
import uuid
import xml.etree.ElementTree as ET
from xml.parsers import expat

from ..._core.errors import MASK, InvalidInput

_SECRET_ATTRIBUTES = frozenset(["passwd"])
_MAX_NAME_LENGTH = 200
# libxml2's limit (xmlParserMaxDepth), with which libvirt reads XML.
_MAX_DEPTH = 256

# How a child of such a parent is told from its siblings: the first of these that it has. The rest are told by position.
_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "devices": {
        "disk": ("target@dev",),
        "interface": ("mac@address",),
        "controller": ("@type @index",),
        "serial": ("target@port",),
        "parallel": ("target@port",),
        "console": ("target@type target@port",),
        "channel": ("target@name", "target@type"),
        "filesystem": ("target@dir",),
        "graphics": ("@type",),
        "input": ("@type @bus",),
        "shmem": ("@name",),
        "sound": ("@model",),
        "audio": ("@id",),
    },
    "network": {
        "ip": ("@family @address", "@address"),
        "portgroup": ("@name",),
        "route": ("@family @address @prefix", "@address @prefix", "@address @netmask", "@address"),
    },
    "dns": {
        "forwarder": ("@domain @addr", "@domain", "@addr"),
        "txt": ("@name",),
        "srv": (
            "@service @protocol @domain @target",
            "@service @protocol @target",
            "@service @protocol @domain",
            "@service @protocol",
        ),
        "host": ("@ip",),
    },
    "dhcp": {"range": ("@start @end",), "host": ("@mac", "@id", "@name", "@ip")},
    "forward": {"interface": ("@dev",), "pf": ("@dev",), "address": ("@domain @bus @slot @function",)},
}
# The same below other parents.
_ATTRIBUTE_KEYS = ("name", "id", "vcpu", "vcpus")
# Where every child has its key even when it stands alone. Elsewhere those have it that have a key of their own.
_ALWAYS_KEYED = frozenset(["devices"])
_NAMESPACE = re.compile(r"""\bxmlns:([\w.-]+)\s*=\s*["']([^"'<&]+)["']""")
_RESERVED_PREFIX = re.compile(r"ns\d+\Z|xml")
# Their order has a meaning.
_ORDERED_TAGS = frozenset(["boot", "arg"])
_SIZE_ATTRIBUTES = ("memory", "size")
# Bytes in each of libvirt's units of size; without one, an element of a domain counts KiB.
SIZE_UNITS = {
    "": 1 << 10, "b": 1, "byte": 1, "bytes": 1, "KB": 10**3, "k": 1 << 10, "KiB": 1 << 10, "MB": 10**6, "M": 1 << 20,
    "MiB": 1 << 20, "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40,
    "PB": 10**15, "P": 1 << 50, "PiB": 1 << 50, "EB": 10**18, "E": 1 << 60, "EiB": 1 << 60,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Difference:
    """One place where two definitions differ: ``path`` as in ``devices/disk[vda]/source@file``; null: not there."""

    path: str
    before: str | None
    after: str | None
    secret: bool = False


def check_name(option: str, name: str | None) -> None:
    """Refuse what cannot be the name of a domain, network, pool or the like, before it is used anywhere.

    :raises InvalidInput: null, a path, a control character, white space at an end, empty or too long.
    """
    if name is None:
        raise InvalidInput(option, None, "A name is needed.")
    if "/" in name or name in (".", ".."):
        last = name.rstrip("/").rpartition("/")[2]
        problem = "A name cannot be a path: it has no '/', and it is not '.' or '..'."
        raise InvalidInput(option, name, problem, candidates=[last] if last.strip(".") else [])
    if not name or name != name.strip() or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        problem = f"A name has 1 to {_MAX_NAME_LENGTH} printable characters, and no space at its start or end."
        raise InvalidInput(option, name, problem)


def parse_definition(text: str, tag: str) -> ET.Element:
    """Return the root element of the option ``xml``, which has to be one of that tag.

    A document type is refused before it is read: entities could read files of the host or fill its memory.

    A UUID is returned as libvirt prints it, with dashes.

    :raises InvalidInput: not well-formed (line and column), a document type, nested too deeply, or another root.
    """
    scanner = expat.ParserCreate("utf-8")
    scanner.StartDoctypeDeclHandler = _refuse_document_type(scanner)
    scanner.StartElementHandler, scanner.EndElementHandler = _refuse_depth(scanner)
    try:
        scanner.Parse(text.encode("utf-8", "surrogateescape"), True)
    except expat.ExpatError as error:
        reason = f"{expat.errors.messages[error.code]} (column {error.offset + 1})"
        raise InvalidInput("xml", None, f"The XML cannot be parsed: {reason}.", line=error.lineno) from error
    for prefix, uri in _NAMESPACE.findall(text):
        if not _RESERVED_PREFIX.match(prefix):
            ET.register_namespace(prefix, uri)
    root = ET.fromstring(text)
    if root.tag != tag:
        raise InvalidInput("xml", None, f"The root element is <{root.tag}>, but it has to be <{tag}>.")
    element = root.find("uuid")
    if element is not None:
        # What is none is refused by libvirt's schema, or by libvirt.
        with contextlib.suppress(ValueError):
            element.text = str(uuid.UUID((element.text or "").strip()))
    return root


def _refuse_document_type(scanner: expat.XMLParserType) -> t.Callable[..., None]:
    def refuse(name: str, *_identifiers: t.Any) -> None:
        problem = f"<!DOCTYPE {name}> is not allowed: libvirt's XML has no document type and no entities."
        raise InvalidInput("xml", None, problem, line=scanner.CurrentLineNumber)

    return refuse


def _refuse_depth(scanner: expat.XMLParserType) -> tuple[t.Callable[..., None], t.Callable[..., None]]:
    names: list[str] = []

    def start(name: str, _attributes: t.Any) -> None:
        names.append(name)
        if len(names) > _MAX_DEPTH:
            problem = f"<{name}> is nested more than {_MAX_DEPTH} elements deep, which libvirt does not read."
            raise InvalidInput("xml", None, problem, line=scanner.CurrentLineNumber)

    def end(_name: str) -> None:
        names.pop()

    return start, end


def element_lines(text: str, tag: str, attribute: str | None = None) -> list[int]:
    """Return the lines, from 1, on which elements of a tag begin, of those with the attribute where one is given.

    ``text`` was accepted by :func:`parse_definition`.
    """
    scanner = expat.ParserCreate("utf-8")
    lines: list[int] = []

    def start(name: str, attributes: t.Mapping[str, str]) -> None:
        if name == tag and (attribute is None or attribute in attributes):
            lines.append(scanner.CurrentLineNumber)

    scanner.StartElementHandler = start
    scanner.Parse(text.encode("utf-8", "surrogateescape"), True)
    return lines


def fill_or_check_name(kind: str, name: str, root: ET.Element) -> None:
    """Put the name into the root of an option ``xml`` that leaves it out.

    :raises InvalidInput: the XML has another name.
    """
    inner = text_of(root, "name")
    if inner is None:
        element = root.find("name")
        if element is None:
            element = ET.Element("name")
            root.insert(0, element)
        element.text = name
    elif inner != name:
        problem = f"The <name> in the XML is {inner!r}, but the name of the {kind} is {name!r}."
        raise InvalidInput("xml", None, problem, "Use the same name, or leave <name> out of the XML.")


def text_of(element: ET.Element | None, path: str = "") -> str | None:
    """Return the stripped text of an element or of its descendant; null where there is none."""
    found = element.find(path) if element is not None and path else element
    if found is None or found.text is None:
        return None
    return found.text.strip() or None


def to_text(element: ET.Element) -> str:
    """Return an element as XML, as libvirt takes it."""
    return ET.tostring(element, encoding="unicode")


def size_bytes(element: ET.Element | None) -> int | None:
    """Return the bytes that an element such as <memory unit='MiB'> means; null where it does not say."""
    value = text_of(element)
    if element is None or value is None or not value.isdigit():
        return None
    factor = SIZE_UNITS.get(element.get("unit", ""))
    return None if factor is None else int(value) * factor


def children_by_key(element: ET.Element) -> dict[str, ET.Element]:
    """Return the children of an element by label, ``disk[vda]``: the tag where it stands alone, else tag and key."""
    by_tag: dict[str, list[ET.Element]] = {}
    for child in element:
        by_tag.setdefault(child.tag, []).append(child)
    labelled: dict[str, ET.Element] = {}
    for tag, children in by_tag.items():
        always = element.tag in _ALWAYS_KEYED or tag in _KEYS.get(element.tag, {})
        if len(children) == 1 and not always:
            labelled[tag] = children[0]
            continue
        for position, child in enumerate(children):
            label = f"{tag}[{key_of(element.tag, child) or position}]"
            if label in labelled:
                label = f"{tag}[{position}]"
            labelled[label] = child
    return labelled


def key_of(parent: str, child: ET.Element) -> str | None:
    """Return what tells a child of such a parent from its siblings; null where it has nothing of the kind."""
    for wanted in _KEYS.get(parent, {}).get(child.tag, ()):
        names = wanted.split()
        if child.tag == "controller" and is_ich9(child):
            names.append("@model")
        parts = [_attribute(child, name) for name in names]
        if all(part is not None for part in parts):
            return ":".join(part for part in parts if part)
    if parent in _KEYS or child.tag in _ORDERED_TAGS:
        return None
    return next((child.get(name) for name in _ATTRIBUTE_KEYS if child.get(name)), None)


def is_ich9(controller: ET.Element) -> bool:
    """Tell whether a controller is one of a set of USB 2 controllers, which share an index."""
    return controller.get("type") == "usb" and controller.get("model", "").startswith("ich9-")


def _attribute(element: ET.Element, name: str) -> str | None:
    path, _at, attribute = name.partition("@")
    found = element.find(path) if path else element
    return None if found is None else found.get(attribute)


def differences(before: ET.Element, after: ET.Element, subset: bool = False) -> list[Difference]:
    """Compare two definitions and return where they differ, in the order of the first, then of the second.

    With ``subset`` only what ``after`` says is compared: what libvirt filled in by itself is no difference.
    """
    return list(_compare("", before, after, subset))


def _compare(path: str, before: ET.Element, after: ET.Element, subset: bool) -> t.Iterator[Difference]:
    old_text, new_text = text_of(before), text_of(after)
    sizes = _sizes_kib(before, after)
    if sizes is not None:
        old_text, new_text = sizes
    old_values, new_values = _attributes(before), _attributes(after)
    for name in [*old_values, *(name for name in new_values if name not in old_values)]:
        old, new = old_values.get(name), new_values.get(name)
        if old != new and not (subset and new is None) and not (sizes is not None and name == "unit"):
            yield Difference(f"{path}@{name}", old, new, name in _SECRET_ATTRIBUTES)
    if old_text != new_text and not (subset and new_text is None):
        yield Difference(path, old_text, new_text)
    old_children, new_children = children_by_key(before), children_by_key(after)
    for label in [*old_children, *(label for label in new_children if label not in old_children)]:
        old_child, new_child = old_children.get(label), new_children.get(label)
        place = f"{path}/{label}" if path else label
        if old_child is not None and new_child is not None:
            yield from _compare(place, old_child, new_child, subset)
        elif not (subset and new_child is None):
            yield Difference(place, element_text(old_child), element_text(new_child))


def _attributes(element: ET.Element) -> dict[str, str]:
    """Return the attributes of an element, a size in libvirt's own unit, as in <cell memory='64' unit='MiB'/>."""
    values = dict(element.attrib)
    factor = SIZE_UNITS.get(values.get("unit", ""))
    for name in _SIZE_ATTRIBUTES:
        value = values.get(name, "")
        if value.isdigit() and factor is not None and "unit" in values:
            values.update({name: str(int(value) * factor // 1024), "unit": "KiB"})
    return values


def _sizes_kib(before: ET.Element, after: ET.Element) -> tuple[str, str] | None:
    """Return both sizes in libvirt's own unit, where the elements are sizes in units that differ."""
    if before.get("unit") == after.get("unit"):
        return None
    old, new = size_bytes(before), size_bytes(after)
    return None if old is None or new is None else (str(old // 1024), str(new // 1024))


def element_text(element: ET.Element | None) -> str | None:
    """Return an element as it may be shown: its text where that is all it has, else compact XML, secrets masked."""
    if element is None:
        return None
    if not element.attrib and not len(element):
        return text_of(element) or f"<{element.tag}/>"
    copied = ET.fromstring(ET.tostring(element))
    for part in copied.iter():
        part.tail = None
        part.text = text_of(part)
        for name in _SECRET_ATTRIBUTES.intersection(part.attrib):
            part.set(name, MASK)
    return to_text(copied)


def normal_form(element: ET.Element) -> t.Any:
    """Return what an element means as data that can be hashed: without the order of keyed elements."""
    children = {label: normal_form(child) for label, child in children_by_key(element).items()}
    return [element.attrib, text_of(element), children]
