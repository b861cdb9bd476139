# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who signed a module, which keys a kernel trusts, and whether it would load the module.

Private to the collection. A signature is appended as include/linux/module_signature.h describes it (a PKCS#7 message,
12 bytes, a magic text); what is enforced is decided by ``module_sig_check`` in kernel/module/signing.c; how a key is
called in ``/proc/keys`` by ``x509_key_preparse`` in crypto/asymmetric_keys/x509_public_key.c.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import struct
import typing as t

from ..._core.files import open_regular
from ..._core.root import Root
from .der import common_name, take

_MAGIC = b"~Module signature appended~\n"
_TAIL = struct.Struct(">BBBBB3xI")
_PKCS7 = 2
_HASHES = {
    "1.3.14.3.2.26": "sha1",
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
    "2.16.840.1.101.3.4.2.8": "sha3-256",
    "2.16.840.1.101.3.4.2.9": "sha3-384",
    "2.16.840.1.101.3.4.2.10": "sha3-512",
}
# Debian's, Red Hat's and SUSE's kernels look into .platform as well; where one does not, the kernel itself refuses.
KEYRINGS = (".builtin_trusted_keys", ".secondary_trusted_keys", ".machine", ".platform")
_KEY_ROW = re.compile(r"^([0-9a-f]{8}) \S+ +\d+ +\S+ [0-9a-f]{8} +-?\d+ +-?\d+ (\S+) +(.*)$")
_X509_KEY = re.compile(r"^(.*): ([0-9a-f]+): X509\.")
_SHOWN_KEYS = 10
# keyctl(2) has no wrapper in the C library. Its number is that of each architecture's system call table.
_SYSTEM_CALLS = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_KEYCTL_READ = 11
_MOST_KEYS = 4096


@dataclasses.dataclass(frozen=True)
class Signature:
    """A module's signature.

    It names its key by ``key_id`` (the certificate's subject key identifier) or else by the ``issuer`` and ``serial``
    of its certificate; ids are hexadecimal digits, ``hash`` is null for one that is not known here.
    """

    key_id: str | None
    issuer: str | None
    serial: str | None
    hash: str | None


def read_signature(path: str) -> Signature | None:
    """Return the signature of a module's file, null when it has none.

    :raises ValueError: it has one that is damaged.
    """
    with open_regular(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - len(_MAGIC) - _TAIL.size, 0))
        end = stream.read()
        if not end.endswith(_MAGIC) or len(end) < len(_MAGIC) + _TAIL.size:
            return None
        _algorithm, _hash, kind, _signer, _key_id, length = _TAIL.unpack(end[: _TAIL.size])
        if kind != _PKCS7 or length > size - len(end):
            raise ValueError("its signature is damaged, or of a kind that kernels no longer take")
        stream.seek(size - len(end) - length)
        return parse_pkcs7(stream.read(length))


def parse_pkcs7(message: bytes) -> Signature:
    """Return who made the one signature of a message (RFC 5652, 5.1 and 5.3).

    :raises ValueError: it is no such message.
    """
    try:
        signed_data = take(message)[0].children()[1].children()[0].children()
        signer = signed_data[-1].children()[0].children()
        name, digest = signer[1], signer[2].children()[0].oid()
        if name.tag == 0x80:
            return Signature(name.content.hex(), None, None, _HASHES.get(digest))
        issuer, serial = name.children()
        return Signature(None, common_name(issuer), serial.content.hex(), _HASHES.get(digest))
    except IndexError:
        raise ValueError("its signature is no PKCS#7 message") from None


def parse_keys(text: str) -> tuple[dict[int, tuple[str, str]], dict[str, int]]:
    """Return the certificates and the keyrings in the text of ``/proc/keys``.

    Certificates are serial number to name and id (of the certificate, in hexadecimal digits), keyrings name to serial
    number.
    """
    certificates: dict[int, tuple[str, str]] = {}
    keyrings: dict[str, int] = {}
    for line in text.splitlines():
        row = _KEY_ROW.match(line)
        if row is None:
            continue
        number, kind, description = int(row.group(1), 16), row.group(2), row.group(3)
        certificate = _X509_KEY.match(description)
        if kind == "keyring":
            keyrings.setdefault(description.rpartition(": ")[0] or description, number)
        elif certificate is not None:
            certificates[number] = (certificate.group(1), certificate.group(2))
    return certificates, keyrings


def trusted_keys(root: Root) -> list[dict[str, str]] | None:
    """Return the certificates that modules may be signed with: ``name``, ``key_id``, ``keyring``; null: unknown."""
    text = root.read_text_or("proc/keys")
    if text is None:
        return None
    certificates, keyrings = parse_keys(text)
    rows = []
    for keyring in KEYRINGS:
        members = read_keyring(keyrings[keyring]) if keyring in keyrings else []
        if members is None:
            return None
        for number in members:
            if number in certificates:
                name, key_id = certificates[number]
                rows.append({"name": name, "key_id": key_id, "keyring": keyring})
    return rows


def read_keyring(number: int) -> list[int] | None:
    """Return the serial numbers of the keys in a keyring; null where this user, or this architecture, cannot."""
    call = _SYSTEM_CALLS.get(os.uname().machine)
    if call is None:
        return None
    numbers = (ctypes.c_int32 * _MOST_KEYS)()
    size = ctypes.CDLL(None).syscall(call, _KEYCTL_READ, number, numbers, ctypes.sizeof(numbers))
    if size < 0:
        return None
    return list(numbers[: min(size // ctypes.sizeof(ctypes.c_int32), _MOST_KEYS)])


def enforcement(root: Root) -> str | None:
    """Return why this kernel loads no module without a signature that it trusts; null when it loads any."""
    if (root.read_text_or("sys/module/module/parameters/sig_enforce") or "").strip() == "Y":
        return "module.sig_enforce is set"
    lockdown = re.search(r"\[(integrity|confidentiality)\]", root.read_text_or("sys/kernel/security/lockdown") or "")
    return f"kernel lockdown is in {lockdown.group(1)} mode" if lockdown else None


def refusal(
    enforced: str | None, signature: Signature | None, trusted: t.Sequence[t.Mapping[str, str]] | None
) -> str | None:
    """Return why the kernel would refuse a module, null when nothing speaks against it.

    What cannot be known (which keys are trusted, whose key an issuer and a serial number stand for) refuses nothing.
    """
    if enforced is None:
        return None
    rule = f"{enforced}: this kernel loads only modules signed with a key that it trusts"
    known = key_names(trusted)
    if signature is None:
        return f"{rule}, and this one is not signed; have stap_module sign it (its option sign) with {known}"
    if trusted is None or signature.key_id is None:
        return None
    if any(signature.key_id == row["key_id"] for row in trusted):
        return None
    return (
        f"{rule}, and {signature.key_id}, with which this one is signed, is not enrolled here; enrol it, or sign with "
        f"{known}"
    )


def key_names(trusted: t.Sequence[t.Mapping[str, str]] | None) -> str:
    """Return the keys to sign with, as the end of a sentence."""
    if not trusted:
        return "one that is enrolled" if trusted is None else "one, of which none is enrolled yet"
    names = [f"{row['name']} ({row['key_id']})" for row in trusted[:_SHOWN_KEYS]]
    more = f" and {len(trusted) - _SHOWN_KEYS} more" if len(trusted) > _SHOWN_KEYS else ""
    return f"one of those that are: {', '.join(names)}{more}"


def signature_refusal(root: Root, build: t.Mapping[str, t.Any], path: str) -> str | None:
    """Return why this host's kernel would refuse a module, null when nothing speaks against it.

    ``build`` is what ``stap_module`` returned; what the module's file says counts, once it is here.
    """
    enforced = enforcement(root)
    if enforced is None:
        return None
    signature = None
    if os.path.exists(path):
        try:
            signature = read_signature(path)
        except ValueError as error:
            return f"{enforced}, and this module cannot be loaded: {error}"
    elif build.get("signature"):
        told = build["signature"]
        signature = Signature(str(told.get("key_id")), None, None, told.get("hash"))
    return refusal(enforced, signature, trusted_keys(root))
