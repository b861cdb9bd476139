# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""XML against libvirt's own schema, in milliseconds and without a hypervisor.

Libvirt's test driver lives in its client library and validates exactly as the real drivers do; it keeps what it defines
in this process only. Private to the collection.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, nearest_names
from .connection import Connection, connected, libvirt
from .xml import element_lines, to_text

_SCHEMAS = "/usr/share/libvirt/schemas/*.rng"
_NAME = re.compile(r"""<(element|attribute) name=["']([\w:.-]+)["']""")
_CULPRIT = re.compile(r"(?:has extra content: |Did not expect element |Extra element )([\w:.-]+)")
_RNG = "{http://relaxng.org/ns/structure/1.0}"
_OPEN_SECONDS = 30.0


@contextlib.contextmanager
def empty_host() -> t.Iterator[Connection]:
    """Open a host of the test driver on which nothing is, and which no other connection shares."""
    node = os.memfd_create("node")
    try:
        os.write(node, b"<node/>")
        with connected(f"test:////proc/self/fd/{node}", _OPEN_SECONDS) as connection:
            yield connection
    finally:
        os.close(node)


def schema_errors(
    definitions: t.Mapping[str, ET.Element], texts: t.Mapping[str, str] | None = None
) -> dict[str, InvalidInput]:
    """Check definitions by domain name; return why libvirt's schema refuses them. ``texts`` are the options ``xml``."""
    wrong: dict[str, InvalidInput] = {}
    if not definitions:
        return wrong
    with empty_host() as connection:
        for name, root in definitions.items():
            try:
                connection.defineXMLFlags(to_text(root), libvirt.VIR_DOMAIN_DEFINE_VALIDATE).undefine()
            except libvirt.libvirtError as error:
                # Anything else is the test driver's own opinion; the driver that is asked for has its own.
                if error.get_error_code() == libvirt.VIR_ERR_XML_INVALID_SCHEMA:
                    wrong[name] = schema_error(root, str(error.get_error_message()), (texts or {}).get(name))
    return wrong


def schema_error(root: ET.Element, message: str, text: str | None = None) -> InvalidInput:
    """Return the error for an option ``xml`` that libvirt's schema refuses, with the line of the part.

    Deep in a definition the validator names only the part; a name that no schema knows says more.

    :param root: what libvirt was given: more than the user's XML.
    :param message: libvirt's message.
    :param text: the user's XML; without it the line is not known.
    """
    names = _schema_names()
    unknown = _unknown_name(root, {name for kind in names.values() for name in kind})
    kind = root.get("type")
    types = _root_types(root.tag) if unknown is None and kind is not None else []
    if types and kind not in types:
        lines = element_lines(text, root.tag, "type") if text else []
        problem = f"The type of a {root.tag} is one of {', '.join(types)}."
        likely = nearest_names(kind or "", types)
        return InvalidInput("xml", None, problem, candidates=likely, line=lines[0] if lines else None)
    if unknown is None:
        reason = "; ".join(message.rpartition(".rng")[2].strip().split("\n")) or "it does not match"
        found = _CULPRIT.search(message)
        lines = element_lines(text, found.group(1)) if found and text else []
        line = lines[0] if len(lines) == 1 else None
        part = f"<{found.group(1)}>" if found else "the definition"
        return InvalidInput("xml", None, f"libvirt's schema refuses {part}: {reason}.", line=line)
    tag, attribute = unknown
    lines = element_lines(text, tag, attribute) if text else []
    line = lines[0] if lines else None
    if attribute is None:
        problem = f"<{tag}> is not an element of a {root.tag}."
        return InvalidInput("xml", None, problem, candidates=nearest_names(tag, names["element"]), line=line)
    problem = f"{attribute} is not an attribute of <{tag}>."
    return InvalidInput("xml", None, problem, candidates=nearest_names(attribute, names["attribute"]), line=line)


def _unknown_name(root: ET.Element, names: t.Collection[str]) -> tuple[str, str | None] | None:
    """Return the first tag, or tag and attribute, that no schema knows.

    Metadata and other namespaces may hold anything.
    """
    if not names:
        return None
    waiting = [root]
    while waiting:
        element = waiting.pop(0)
        if element.tag not in names:
            return element.tag, None
        for name in element.attrib:
            if name not in names and not name.startswith("{"):
                return element.tag, name
        waiting += [child for child in element if child.tag != "metadata" and not child.tag.startswith("{")]
    return None


def _root_types(tag: str) -> list[str]:
    """Return the values that the attribute ``type`` of a definition's root element can have."""
    defined: dict[str, list[ET.Element]] = {}
    elements: list[ET.Element] = []
    for path in glob.glob(_SCHEMAS):
        grammar = ET.parse(path).getroot()
        for define in grammar.iter(f"{_RNG}define"):
            defined.setdefault(define.get("name", ""), []).append(define)
        elements += [element for element in grammar.iter(f"{_RNG}element") if element.get("name") == tag]
    types: dict[str, None] = {}
    waiting = [part for element in elements for part in element]
    while waiting:
        part = waiting.pop(0)
        if part.tag == f"{_RNG}attribute" and part.get("name") == "type":
            types.update(dict.fromkeys(value.text or "" for value in part.iter(f"{_RNG}value")))
        elif part.tag == f"{_RNG}ref":
            waiting += defined.pop(part.get("name", ""), [])
        elif part.tag not in (f"{_RNG}element", f"{_RNG}attribute"):
            waiting += part
    return sorted(types)


def _schema_names() -> dict[str, list[str]]:
    """Return the names that libvirt's schemas define, by kind: ``element`` and ``attribute``."""
    names: dict[str, set[str]] = {"element": set(), "attribute": set()}
    for path in glob.glob(_SCHEMAS):
        with open(path, encoding="utf-8") as stream:
            for kind, name in _NAME.findall(stream.read()):
                names[kind].add(name)
    return {kind: sorted(found) for kind, found in names.items()}
