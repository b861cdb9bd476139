# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volume XML against libvirt's own schema, in milliseconds and without a daemon.

Private to the collection.
"""

from __future__ import annotations

import copy
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput
from ..connection.connection import libvirt
from ..connection.schema import empty_host, schema_error
from ..connection.xml import to_text
from .volume_data import WantedVolume

_POOL = "<pool type='dir'><name>pool</name><target><path>/pool</path></target></pool>"


def schema_errors(volumes: t.Iterable[WantedVolume]) -> dict[str, InvalidInput]:
    """Check the definitions of volumes; return why libvirt's schema refuses them, by volume."""
    # Libvirt can do it since 8.10.
    validate = getattr(libvirt, "VIR_STORAGE_VOL_CREATE_VALIDATE", None)
    defined = [(one, one.root) for one in volumes if one.root is not None]
    errors: dict[str, InvalidInput] = {}
    if not defined or validate is None:
        return errors
    with empty_host() as connection:
        pool = connection.storagePoolDefineXML(_POOL, 0)
        pool.create(0)
        for one, root in defined:
            try:
                pool.createXML(to_text(_complete(root)), validate)
            except libvirt.libvirtError as error:
                # Anything else is the test driver's own opinion; the driver that is asked for has its own.
                if error.get_error_code() == libvirt.VIR_ERR_XML_INVALID_SCHEMA:
                    errors[one.name] = schema_error(root, str(error.get_error_message()), one.xml)
    return errors


def _complete(root: ET.Element) -> ET.Element:
    """Add what the schema demands and libvirt itself does not."""
    complete = copy.deepcopy(root)
    for tag in ("capacity", "target"):
        if complete.find(tag) is None:
            element = ET.SubElement(complete, tag)
            element.text = "0" if tag == "capacity" else None
    return complete
