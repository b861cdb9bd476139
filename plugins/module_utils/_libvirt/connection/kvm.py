# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A /dev/kvm that exists and does not work.

Such a node makes libvirt slow: ``virQEMUCapsIsValid`` finds it accessible, QEMU's stored capabilities lack KVM, and so
QEMU is started again for them at nearly every definition (libvirt 9.0: 40 starts for 5 definitions). udev makes the
node on every host with the module's file (``devname:kvm``), also where no CPU can virtualize. Private to the
collection.
"""

from __future__ import annotations

import fcntl
import os

KVM = "/dev/kvm"
# Linux, include/uapi/linux/kvm.h
_KVM_CREATE_VM = 0xAE01


def kvm_warning(path: str = KVM) -> str | None:
    """Return a sentence about a node that this user may open and that does not work; None for any other, or no node.

    :param path: the node.
    """
    if not os.access(path, os.R_OK | os.W_OK):
        return None
    try:
        step = "opening it"
        node = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            step = "KVM_CREATE_VM"
            os.close(fcntl.ioctl(node, _KVM_CREATE_VM, 0))
        finally:
            os.close(node)
    except OSError as error:
        return (
            f"{path} exists, but {step} fails: {error.strerror}. libvirt starts QEMU again for its capabilities at "
            "nearly every definition on such a host, which takes seconds each. Load the KVM module of this CPU "
            "(kvm_intel or kvm_amd on x86), or remove the node."
        )
    return None
