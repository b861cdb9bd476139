# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hide /dev/kvm from the tests of this process and from all that they start.

Where the node may be opened and KVM does not work, libvirt starts QEMU again for its capabilities at nearly every
definition (``virQEMUCapsIsValid``): 5 definitions started QEMU 40 times with libvirt 9.0, and once without the node.
"""

from __future__ import annotations

import ctypes
import os
import subprocess

KVM = "/dev/kvm"
_CLONE_NEWNS = 0x00020000
# All of /dev is replaced: libvirt cannot start a domain where something is mounted on /dev/kvm itself.
# The caches are empty at first: what QEMU can do with KVM is not valid without, and would be asked for at every root.
_WITHOUT_KVM = """
mount --make-rslave /
new=$(mktemp -d)
mount -t tmpfs -o mode=755 devices "$new"
cp -ax /dev/. "$new"
rm "$new/kvm"
for path in /dev/*; do
    if mountpoint -q "$path" && test -d "$path"; then mount --rbind "$path" "$new/${path#/dev/}"; fi
done
umount -l /dev
mount --move "$new" /dev
rmdir "$new"
mkdir -p /var/cache/tapvirt
for path in /var/cache/tapvirt /var/cache/libvirt; do
    if test -d $path; then mount -t tmpfs -o mode=755 cache $path; fi
done
"""


def hide_kvm() -> str | None:
    """Give this process a mount namespace with a copy of /dev that lacks the node, and caches of its own.

    :return: why the node is still visible, for example because this user must not do that; None where it is hidden.
    """
    if not os.path.exists(KVM):
        return None
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        return f"{KVM} is not hidden: {os.strerror(ctypes.get_errno())}"
    done = subprocess.run(["sh", "-ec", _WITHOUT_KVM], capture_output=True, text=True, check=False)
    return f"{KVM} is not hidden: {done.stderr}" if done.returncode else None
