# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt makes of a network's XML, found out in milliseconds and without a daemon.

Libvirt's test driver lives in its client library, and reads and checks networks with the code of the real driver. What
that adds to it when it defines one (UUID, bridge, MAC address) is identity. Private to the collection.
"""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput
from ..connection.connection import Connection, libvirt
from ..connection.schema import empty_host, schema_error
from ..connection.xml import to_text

# The binding's object for a network; it ships no types.
Network = t.Any

_VALIDATE_SINCE = 7008000


def define_network(connection: Connection, xml: str) -> Network:
    """Define a network, checked against the schema where the libvirt in question can do that."""
    if connection.getLibVersion() >= _VALIDATE_SINCE and hasattr(connection, "networkDefineXMLFlags"):
        return connection.networkDefineXMLFlags(xml, libvirt.VIR_NETWORK_DEFINE_VALIDATE)
    return connection.networkDefineXML(xml)


def canonical_networks(
    definitions: t.Mapping[str, ET.Element], texts: t.Mapping[str, str] | None = None
) -> dict[str, ET.Element | InvalidInput]:
    """Return what libvirt makes of definitions, by network name, or why it refuses them.

    ``texts`` are the options ``xml``.
    """
    if not definitions:
        return {}
    with empty_host() as connection:
        return {name: _canonical(connection, name, root, (texts or {}).get(name)) for name, root in definitions.items()}


def _canonical(connection: Connection, name: str, root: ET.Element, text: str | None) -> ET.Element | InvalidInput:
    try:
        network = define_network(connection, to_text(root))
        result = ET.fromstring(network.XMLDesc(0))
        network.undefine()
    except libvirt.libvirtError as error:
        message = str(error.get_error_message())
        if error.get_error_code() == libvirt.VIR_ERR_XML_INVALID_SCHEMA:
            return schema_error(root, message, text)
        problem = f"libvirt refuses the definition of network {name!r}: {' '.join(message.split())}"
        return InvalidInput("xml", None, problem)
    # Parts of other namespaces (options for dnsmasq) are the real driver's own.
    result.extend(ET.fromstring(ET.tostring(element)) for element in root if element.tag.startswith("{"))
    return result
