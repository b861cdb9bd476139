# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sign modules on the builder, with a key that stays there.

Private to the collection. The kernel's own tool does it (scripts/sign-file of the headers). RSA signatures with the
padding of PKCS#1 v1.5 and without a time in them are the same each time, so that a signed build is reproducible too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import stat
import typing as t

from ..._core import command
from ..._core.errors import InvalidInput, NoEffect, TapvirtError
from ..._core.files import open_regular
from ..._core.root import Root
from ..signature.der import Certificate, private_modulus, read_certificate, unpack_pem
from ..signature.signature import read_signature
from .toolchain import headers_of

_SIGNATURE_HASH = re.compile(r'^CONFIG_MODULE_SIG_HASH="([a-z0-9-]+)"', re.MULTILINE)
_SIGN_SECONDS = 60
_MOST_BYTES = 65536


@dataclasses.dataclass(frozen=True)
class Signer:
    """A key pair on the builder: the paths of the private key and of the certificate, and what the certificate says."""

    key: str
    certificate: str
    fingerprint: str
    details: Certificate

    def row(self) -> dict[str, t.Any]:
        """Return the signer for results, without any part of the key."""
        return {
            "name": self.details.name,
            "key_id": self.details.key_id or self.details.serial,
            "certificate_sha256": self.fingerprint,
        }


def read_signer(sign: t.Mapping[str, str]) -> Signer:
    """Check the option ``sign``: a key that only its owner can read, and the certificate that belongs to it.

    :raises InvalidInput: one of them is missing, open to others, of the wrong kind, or they do not belong together.
    """
    key, certificate = sign["key"], sign["certificate"]
    _check_private(key)
    label, data = _read_pem("sign.key", key)
    if "ENCRYPTED" in label:
        raise InvalidInput(
            "sign.key", key, "The key is encrypted, and a task cannot enter its passphrase", "Use a key without one"
        )
    modulus = _parse("sign.key", key, "a private key in PEM", lambda: private_modulus(label, data))
    if modulus is None:
        problem = "The key must be an RSA key, because keys of other kinds never sign a module twice in the same way"
        raise InvalidInput("sign.key", key, problem)
    content = _read_pem("sign.certificate", certificate)[1]
    details = _parse("sign.certificate", certificate, "a certificate in PEM or DER", lambda: read_certificate(content))
    if details.modulus != modulus:
        raise InvalidInput("sign.certificate", certificate, f"The certificate does not belong to the key {key}")
    return Signer(key, certificate, hashlib.sha256(content).hexdigest(), details)


def _check_private(path: str) -> None:
    if not path.startswith("/"):
        raise InvalidInput("sign.key", path, "The path on the builder must be absolute")
    try:
        status = os.stat(path)
    except PermissionError:
        raise
    except OSError as error:
        raise InvalidInput("sign.key", path, f"The file cannot be used: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput("sign.key", path, "The path is not a regular file")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        problem = f"Other users can read or write the key (mode {mode:04o})"
        raise InvalidInput("sign.key", path, problem, "Set its mode to 0600")
    if status.st_uid not in (0, os.geteuid()):
        problem = f"The key belongs to the user with uid {status.st_uid}, not to root or to the user of this task"
        raise InvalidInput("sign.key", path, problem)


def _read_pem(option: str, path: str) -> tuple[str, bytes]:
    try:
        with open_regular(path) as stream:
            return unpack_pem(stream.read(_MOST_BYTES))
    except OSError as error:
        raise InvalidInput(option, path, f"The file cannot be read: {error.strerror}") from None
    except ValueError:
        raise InvalidInput(option, path, "The file contains a damaged PEM block") from None


Parsed = t.TypeVar("Parsed")


def _parse(option: str, path: str, what: str, parse: t.Callable[[], Parsed]) -> Parsed:
    try:
        return parse()
    except ValueError:
        raise InvalidInput(option, path, f"The file is not {what}") from None


def sign_file(root: Root, release: str, signer: Signer, module: str, target: str) -> dict[str, t.Any]:
    """Write a signed copy of a module; return who signed it, and with which ``hash``, as read from the copy.

    :raises TapvirtError: the headers contain no sign-file, or it failed.
    :raises NoEffect: it succeeded, and the copy's signature is another one.
    """
    headers = headers_of(root, release)
    tool = root.path(headers + "/scripts/sign-file")
    if not os.access(tool, os.X_OK):
        raise TapvirtError(f"The headers of {release} contain no program that signs modules ({tool}).", phase="sign")
    algorithm = _SIGNATURE_HASH.search(root.read_text_or(headers + "/.config") or "")
    name = algorithm.group(1) if algorithm else "sha256"
    # With -k the signature names the key as /proc/keys does, by its id; that has to be in the certificate.
    options = ["-k"] if signer.details.key_id else []
    result = command.run([tool, *options, name, signer.key, signer.certificate, module, target], _SIGN_SECONDS)
    if result.rc != 0:
        lines = (result.stderr + result.stdout).strip().splitlines()
        raise TapvirtError(
            f"sign-file could not sign the module for {release}: {lines[-1] if lines else 'it gave no reason'}.",
            phase="sign",
        )
    signature = read_signature(target)
    ids = (signature.key_id, signature.serial) if signature else ()
    if (signer.details.key_id or signer.details.serial) not in ids:
        raise NoEffect(f"sign-file reported success, but the copy is not signed with {signer.details.name}.")
    return {**signer.row(), "hash": signature.hash if signature else None}
