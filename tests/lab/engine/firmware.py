# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UEFI firmware whose variables hold a certificate, and the key that belongs to it: both come in Debian's package.

Secure Boot itself is not in this firmware. A kernel reads the certificates of the variable db all the same, and trusts
modules that are signed with their keys.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from .commands import run
from .packages import Apt
from .store import Store

# Names in the package -> names here. The key is encrypted; its passphrase is "snakeoil".
_FILES = {
    "usr/share/OVMF/OVMF_CODE_4M.fd": "code.fd",
    "usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd": "vars.fd",
    "usr/share/ovmf/PkKek-1-snakeoil.key": "key.pem",
    "usr/share/ovmf/PkKek-1-snakeoil.pem": "certificate.pem",
}


def fetch(store: Store, suite: str) -> Path:
    """Return a directory with the firmware, its variables, and a key pair."""

    def build(out: Path) -> None:
        scratch = out / "scratch"
        Apt(suite, scratch).download(["ovmf"], scratch / "debs")
        run(["dpkg-deb", "-x", next((scratch / "debs").iterdir()), scratch / "tree"])
        for name, short in _FILES.items():
            shutil.copyfile(scratch / "tree" / name, out / short)
        shutil.rmtree(scratch)

    return store.ensure("firmware", ["firmware", suite, _FILES], build)
