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
from .xml import to_text

_SCHEMAS = "/usr/share/libvirt/schemas/*.rng"
_NAME = re.compile(r"""<(?:element|attribute) name=["']([\w:.-]+)["']""")
_CULPRIT = re.compile(
    r"(?:has extra content: |Did not expect element |Invalid attribute |Expecting element )([\w:.-]+)"
)
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


def schema_errors(definitions: t.Mapping[str, ET.Element]) -> dict[str, InvalidInput]:
    """Check definitions by domain name; return what is wrong, with libvirt's reason and the schema's nearest names."""
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
                    wrong[name] = schema_error(f"{name}: xml", root, str(error.get_error_message()))
    return wrong


def schema_error(item: str, root: ET.Element, message: str) -> InvalidInput:
    """Return the error for XML that libvirt found invalid.

    Deep in a definition the validator names only the part; a name that no schema knows says more.
    """
    reason = " ".join(message.rpartition(".rng")[2].split()) or "it does not match"
    names = _schema_names()
    culprit = _unknown_name(root, names)
    found = _CULPRIT.search(message)
    if culprit is None and found:
        culprit = found.group(1)
    rule = f"is not valid {root.tag} XML, says libvirt's schema: {reason}"
    if culprit is None:
        return InvalidInput(item, f"<{root.tag}>", rule)
    return InvalidInput(item, culprit, rule, nearest_names(culprit, names))


def _unknown_name(root: ET.Element, names: t.Collection[str]) -> str | None:
    """Return the first element or attribute that no schema knows; metadata and other namespaces may hold anything."""
    if not names:
        return None
    waiting = [root]
    while waiting:
        element = waiting.pop(0)
        for name in (element.tag, *element.attrib):
            if name not in names and not name.startswith("{"):
                return name
        waiting += [child for child in element if child.tag != "metadata" and not child.tag.startswith("{")]
    return None


def _schema_names() -> list[str]:
    names: set[str] = set()
    for path in glob.glob(_SCHEMAS):
        with open(path, encoding="utf-8") as stream:
            names.update(_NAME.findall(stream.read()))
    return sorted(names)
