# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""As much of DER (ITU-T X.690) as certificates, keys and module signatures are read with.

Private to the collection.
"""

from __future__ import annotations

import base64
import dataclasses
import re

_CONSTRUCTED = 0x20
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s+(.*?)-----END \1-----", re.DOTALL)
_COMMON_NAME = "2.5.4.3"
_SUBJECT_KEY_ID = "2.5.29.14"
_RSA_ENCRYPTION = "1.2.840.113549.1.1.1"


@dataclasses.dataclass(frozen=True)
class Node:
    """One element: its tag, its content, and the elements in it where it is made of such."""

    tag: int
    content: bytes

    def children(self) -> list[Node]:
        """Return the elements that this one is made of.

        :raises ValueError: it is damaged.
        """
        nodes = []
        rest = self.content if self.tag & _CONSTRUCTED else b""
        while rest:
            node, rest = take(rest)
            nodes.append(node)
        return nodes

    def oid(self) -> str:
        """Return an object identifier in dotted numbers (X.690, 8.19)."""
        numbers = []
        value = 0
        for byte in self.content:
            value = value << 7 | byte & 0x7F
            if not byte & 0x80:
                numbers.append(value)
                value = 0
        first = min(numbers[0] // 40, 2) if numbers else 0
        return ".".join(str(number) for number in [first, (numbers or [0])[0] - 40 * first, *numbers[1:]])

    def number(self) -> int:
        """Return an integer."""
        return int.from_bytes(self.content, "big", signed=True)


def take(data: bytes) -> tuple[Node, bytes]:
    """Return the first element, and what comes after it.

    :raises ValueError: it is damaged, or ends early.
    """
    if len(data) < 2 or data[0] & 0x1F == 0x1F or data[1] == 0x80:
        raise ValueError("an element of DER is damaged")
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if not 2 <= start <= 6 or start + length > len(data):
        raise ValueError("an element of DER ends early")
    return Node(data[0], data[start : start + length]), data[start + length :]


def unpack_pem(data: bytes) -> tuple[str, bytes]:
    """Return the label and the content of the first PEM block; an empty label and the data if it has no PEM block.

    :raises ValueError: a block is damaged.
    """
    found = _PEM.search(data)
    if found is None:
        return "", data
    body = found.group(2)
    if b":" in body:  # headers, as in RFC 1421: it is encrypted
        return "ENCRYPTED " + found.group(1).decode(), b""
    return found.group(1).decode(), base64.b64decode(b"".join(body.split()), validate=True)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """An X.509 certificate: the subject's common name, ids in hexadecimal digits, the modulus of an RSA key or null."""

    name: str
    key_id: str | None
    serial: str
    modulus: int | None


def read_certificate(data: bytes) -> Certificate:
    """Read a certificate in DER (RFC 5280, 4.1).

    :raises ValueError: the data is not a certificate.
    """
    try:
        fields = take(data)[0].children()[0].children()
        if fields[0].tag == 0xA0:
            fields = fields[1:]
        serial, subject, public_key = fields[0], fields[4], fields[5]
        extensions = [field for field in fields[6:] if field.tag == 0xA3]
        return Certificate(
            name=common_name(subject),
            key_id=_subject_key_id(extensions[0]) if extensions else None,
            serial=serial.content.hex(),
            modulus=_modulus(public_key),
        )
    except IndexError:
        raise ValueError("it is no certificate") from None


def common_name(name: Node) -> str:
    """Return the common name in a distinguished name; empty if it has no common name."""
    for attributes in name.children():
        for attribute in attributes.children():
            kind, value = attribute.children()[:2]
            if kind.oid() == _COMMON_NAME:
                return value.content.decode("utf-8", "replace")
    return ""


def _subject_key_id(extensions: Node) -> str | None:
    for extension in extensions.children()[0].children():
        parts = extension.children()
        if parts[0].oid() == _SUBJECT_KEY_ID:
            return take(parts[-1].content)[0].content.hex()
    return None


def _modulus(public_key: Node) -> int | None:
    algorithm, bits = public_key.children()[:2]
    if algorithm.children()[0].oid() != _RSA_ENCRYPTION:
        return None
    return take(bits.content[1:])[0].children()[0].number()


def private_modulus(label: str, data: bytes) -> int | None:
    """Return the modulus of an RSA private key (RFC 5208 or RFC 8017, A.1.2); null for a key of another kind.

    :raises ValueError: it is no private key.
    """
    try:
        parts = take(data)[0].children()
        if label == "PRIVATE KEY":
            if parts[1].children()[0].oid() != _RSA_ENCRYPTION:
                return None
            parts = take(parts[2].content)[0].children()
        elif label != "RSA PRIVATE KEY":
            return None
        return parts[1].number()
    except IndexError:
        raise ValueError("it is no private key") from None
