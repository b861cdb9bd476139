# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recorded definitions as domains of a host: what they name as files lies in one folder there, and is made."""

from __future__ import annotations

import pathlib
import re
import typing as t

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "libvirt"
# Folders in the definitions that are not those of any system.
_ELSEWHERE = re.compile(r"/var/lib/nowhere/|/run/app/|/srv/")
_FILES = re.compile(r"(?:file='|<(?:kernel|initrd)>)([^'<]*)")
# These would take a device or an interface away from the host that runs the test: they stay off.
TAKE_FROM_THE_HOST = {"block_disks", "macvtap", "mediated_device", "passthrough", "pci_passthrough"}
# What others need that a host may not have, as libvirt or QEMU says it.
NEEDS = {
    "cloud": "br0",
    "cpu_features": "CPU",
    "efi_loader": "OVMF",
    "efi_tpm": "swtpm|UEFI|firmware",
    "filtered_nic": "network",
    "huge_pages": "hugetlbfs|hugepages|huge page|unable to map backing store",
    "many_nics": "network",
    "memory_devices": "acpi",
    "network_boot": "network",
    "network_disks": "secret",
    "nic_tuning": "br1",
    "open_vswitch": "ovs0",
    "pool_volumes": "storage|pool",
    "secure_boot": "UEFI|firmware",
    "shared_folder": "vsock",
    "shared_memory": "vsock",
    "tap_device": "specified dev doesn't exist",
    "tpm_crb": "swtpm|TPM",
    "two_networks": "network",
    "usb_hub": "4000",
    "vhost_user": "vhost.sock",
    "virtiofs": "virtiofsd",
}


def why_not(name: str, error: dict[str, t.Any] | None) -> str | None:
    """Return what is wrong with a start that failed otherwise than by what the host may lack; null where nothing is."""
    if error is None or re.search(NEEDS.get(name, r"\Z."), error["problem"]):
        return None
    return f"{name}: {error['problem']}"


def definitions(folder: str, type_: str = "qemu") -> dict[str, str]:
    """Return the definitions by name, their files in ``folder``; those of QEMU are of the given type."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FIXTURES.glob("*.xml"))}
    return {
        name: _ELSEWHERE.sub(f"{folder}/", text).replace("<domain type='qemu'", f"<domain type='{type_}'")
        for name, text in texts.items()
    }


def make_files(folder: str) -> str:
    """Return a shell script that makes the files and folders that the definitions name in ``folder``."""
    found = {path for text in definitions(folder).values() for path in _FILES.findall(text) if path.startswith(folder)}
    lines = ["set -e"]
    for path in sorted(found):
        form = "qcow2" if path.endswith(".qcow2") else "raw"
        lines.append(f"test -e {path} || qemu-img create -q -f {form} {path} 1M")
    # What QEMU takes for a kernel with a ram disk: name and version of its header, how high the ram disk may lie.
    for seek, octets in ((514, r"HdrS\014\002"), (556, r"\377\377\377\177")):
        lines.append(f"printf '{octets}' | dd of={folder}/vmlinuz bs=1 seek={seek} conv=notrunc status=none")
    return "\n".join([*lines, f"mkdir -p {folder}/a {folder}/b; chmod 755 {folder}/a {folder}/b"])
