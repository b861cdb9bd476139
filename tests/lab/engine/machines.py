# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of an emulated machine of each kind: processor, kernel, devices, and commands that warm it up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .describe import Host

# Everything that is slow the first time: KVM, the daemons, libvirt's probe of its emulator, the start of Python.
_WARM_UP = {
    "guest": """
set -e
grep -q -w svm /proc/cpuinfo && modprobe kvm_amd || modprobe kvm_intel
test -c /dev/kvm
virsh -q -c qemu:///system list --all
virsh -q -c qemu:///system domcapabilities --virttype kvm > /dev/null
virsh -q -c qemu:///system capabilities > /dev/null
python3 -c 'import json, libvirt, platform, subprocess, tempfile, zipfile; libvirt.open("qemu:///system").getHostname()'
staprun -V
sync
""",
    "selinux": """
set -e
test "$(cat /sys/fs/selinux/enforce)" = 1
python3 -c 'import json, platform, subprocess, tempfile, zipfile'
staprun -V
sync
""",
    "xen": """
set -e
xl list
virsh -q -c xen:///system list --all
python3 -c 'import json, libvirt, platform, subprocess, tempfile, zipfile; libvirt.open("xen:///system").getHostname()'
sync
""",
}


@dataclass(frozen=True)
class Disk:
    """A disk image with its kernel beside it, and UEFI firmware or ``None``."""

    folder: Path
    release: str
    firmware: Path | None = None

    @property
    def image(self) -> Path:
        return self.folder / "root.ext4"


def warm_up(host: Host) -> str:
    """A script that a machine runs once before it is saved."""
    return _WARM_UP["selinux" if host.selinux else host.kind]


@dataclass(frozen=True)
class Image:
    """An image that a machine writes to: an overlay, its name in a snapshot, and its backing file."""

    name: str
    saved: str
    backing: Path


def images(host: Host, disk: Disk) -> list[Image]:
    """The images of a machine."""
    found = [Image(f"{host.name}.qcow2", "disk.qcow2", disk.image)]
    if disk.firmware is not None:
        found.append(Image(f"{host.name}.vars.qcow2", "vars.qcow2", disk.firmware / "vars.fd"))
    return found


def words(host: Host, disk: Disk, accel: str, port: int, inside: Callable[[Path], str]) -> list[str]:
    """Return the emulator's arguments; ``inside`` returns its name of a file. With port 0 they identify a snapshot."""
    return [
        "-name", host.name, "-nodefaults", "-no-user-config", "-display", "none",
        "-m", str(host.memory_mib), "-smp", str(host.cpus), *_processor(host, accel), *_kernel(host, disk, inside),
        "-drive", f"file={host.name}.qcow2,if=virtio,cache=unsafe", *_firmware(host, disk, inside),
        "-netdev", "user,id=n0" + (f",hostfwd=tcp:127.0.0.1:{port}-:22" if port else ""),
        "-device", "virtio-net-pci,netdev=n0", "-device", "virtio-rng-pci",
        "-serial", f"file:{host.name}.log", "-qmp", f"unix:{host.name}.qmp,server=on,wait=off",
    ]  # fmt: skip


def _processor(host: Host, accel: str) -> list[str]:
    if accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    # The largest emulated processor has SVM, so that guests are KVM hosts; page tables of four levels are walked faster
    # than of five. A Xen dom0 must not have SMAP, and libvirt's Xen driver must know the model's name.
    model = "Westmere" if host.kind == "xen" else "max,la57=off"
    return ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", model]


def _firmware(host: Host, disk: Disk, inside: Callable[[Path], str]) -> list[str]:
    if disk.firmware is None:
        return []
    code = inside(disk.firmware / "code.fd")
    return [
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
        "-drive", f"if=pflash,unit=1,format=qcow2,file={host.name}.vars.qcow2",
    ]  # fmt: skip


def _kernel(host: Host, disk: Disk, inside: Callable[[Path], str]) -> list[str]:
    identity = hashlib.sha256(host.name.encode()).hexdigest()[:32]
    console = "hvc0" if host.kind == "xen" else "ttyS0"
    line = (
        f"root=/dev/vda rw console={console} net.ifnames=0 mitigations=off audit={int(host.selinux)} rdinit=/lab-init "
        f"systemd.show_status=error systemd.hostname={host.name} systemd.machine_id={identity}"
    )
    if host.signed_modules:
        line += " module.sig_enforce=1"
    if host.selinux:
        line += " security=selinux enforcing=1"
    kernel, initrd = inside(disk.folder / "vmlinuz"), inside(disk.folder / "initrd")
    if host.kind == "xen":
        hypervisor = ["-kernel", inside(disk.folder / "xen"), "-append", "dom0_mem=2048M console=com1 com1=115200,8n1"]
        return [*hypervisor, "-initrd", f"{kernel} {line},{initrd}"]
    return ["-kernel", kernel, "-initrd", initrd, "-append", line]
