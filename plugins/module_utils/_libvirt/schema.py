# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain XML against libvirt's own schema, in milliseconds and without a hypervisor.

Libvirt's test driver lives in its client library and validates exactly as the real drivers do; it keeps what it defines
in this process only. Private to the collection.
"""

from __future__ import annotations

import glob
import re
import typing as t

from .._core.errors import InvalidInput, nearest_names
from .connection import connected, libvirt

_SCHEMAS = "/usr/share/libvirt/schemas/*.rng"
_NAME = re.compile(r"""<(?:element|attribute) name=["']([\w:.-]+)["']""")
_CULPRIT = re.compile(
    r"(?:has extra content: |Did not expect element |Invalid attribute |Expecting element )([\w:.-]+)"
)
_OPEN_SECONDS = 30.0


def validate(items: t.Sequence[tuple[str, str]]) -> None:
    """Check (item, XML text) pairs against the schema.

    :raises InvalidInput: the first that is wrong, with libvirt's reason and the nearest names of the schema.
    """
    if not items:
        return
    with connected("test:///default", _OPEN_SECONDS) as connection:
        for item, text in items:
            try:
                connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).undefine()
            except libvirt.libvirtError as error:
                # Anything else is the test driver's own opinion; the driver that is asked for has its own.
                if error.get_error_code() == libvirt.VIR_ERR_XML_INVALID_SCHEMA:
                    raise _wrong(item, str(error.get_error_message())) from error


def _wrong(item: str, message: str) -> InvalidInput:
    reason = " ".join(message.rpartition(".rng")[2].split()) or "it does not match the schema"
    found = _CULPRIT.search(message)
    culprit = found.group(1) if found else item
    return InvalidInput(
        item,
        culprit,
        "is not valid domain XML, says libvirt's schema: {0}".format(reason),
        nearest_names(culprit, _schema_names()) if found else (),
    )


def _schema_names() -> list[str]:
    names: set[str] = set()
    for path in glob.glob(_SCHEMAS):
        with open(path, encoding="utf-8") as stream:
            names.update(_NAME.findall(stream.read()))
    return sorted(names)
