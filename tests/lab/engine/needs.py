# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab needs from the machine it runs on."""

from __future__ import annotations

import os
import shutil

from .errors import LabError

# The emulator is not here: it comes with the guests' root, so every machine runs the same one.
APT_PACKAGES: list[str] = ["mmdebstrap", "debian-archive-keyring", "e2fsprogs", "openssh-client", "util-linux"]

DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_COMMANDS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}


def require() -> None:
    """Refuses a machine on which the lab cannot run, naming everything that is missing at once."""
    if os.geteuid() != 0:
        raise LabError("the lab runs as root: it makes root file systems, mounts and namespaces")
    missing = {package for command, package in _COMMANDS.items() if shutil.which(command) is None}
    if not os.path.exists(DEBIAN_KEYRING):
        missing.add("debian-archive-keyring")
    if missing:
        raise LabError(f"the lab needs these packages of the machine: {' '.join(sorted(missing))} (apt-get install)")
    with open("/proc/filesystems", encoding="ascii") as known:
        if not any(line.split()[-1] == "overlay" for line in known):
            raise LabError("the lab's builder needs overlayfs, which this machine's kernel does not offer")
