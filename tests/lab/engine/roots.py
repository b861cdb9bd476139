# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root file systems: bootstrapped once, then made into the disks of guests."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

from .commands import run
from .describe import Root
from .needs import DEBIAN_KEYRING
from .packages import debian_mirror

# Half of a minimal root is documentation, and libvirt probes every emulator that it finds.
_LEFT_OUT = (
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/bin/qemu-system-i386",
)

_SSHD = """UseDNS no
UsePAM no
PrintMotd no
PrintLastLog no
MaxSessions 50
MaxStartups 100
HostKey /etc/ssh/ssh_host_ed25519_key
# The usual first choice is a post-quantum exchange, which an emulated processor takes seconds for.
KexAlgorithms curve25519-sha256
"""

# Addresses of the emulator's user-mode network. Two commands instead of a network manager's start.
_NETWORK = """\
[Unit]
Description=The lab's network
Wants=network.target
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip address add 10.0.2.15/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.2.2'
[Install]
WantedBy=multi-user.target
"""

# Of all the devices at boot only these matter here; the others cost seconds of an emulated processor.
_COLDPLUG = """\
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=all --action=add --subsystem-match=net --subsystem-match=block \\
  --subsystem-match=cpu --subsystem-match=misc
"""

# Replaces the init of the initramfs, which starts udev to find the root: here the root is the first disk.
_FIRST_INIT = """\
#!/bin/sh
mkdir -p /proc /sys /dev /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
modprobe -a virtio_pci virtio_blk virtio_net virtio_rng ext4
until [ -b /dev/vda ]; do sleep 0.1; done
mount -t ext4 -o noatime /dev/vda /root
for folder in dev sys proc; do mount -o move /$folder /root/$folder; done
exec run-init /root /sbin/init < /root/dev/console > /root/dev/console 2>&1
"""

_FIRST_INIT_HOOK = """\
#!/bin/sh
[ "$1" = prereqs ] || install -m 755 /etc/initramfs-tools/lab-init "$DESTDIR/lab-init"
"""

# Of a root with SELinux: the label of each file.
_FILE_CONTEXTS = "etc/selinux/default/contexts/files/file_contexts"

FILES: dict[str, str] = {
    "etc/ssh/sshd_config.d/lab.conf": _SSHD,
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}

GUEST_FILES: dict[str, str] = {
    **FILES,
    "etc/fstab": "/dev/vda / ext4 rw,noatime 0 0\n",
    "etc/systemd/system/lab-network.service": _NETWORK,
    "etc/systemd/system/systemd-udev-trigger.service.d/lab.conf": _COLDPLUG,
    "etc/initramfs-tools/lab-init": _FIRST_INIT,
    "etc/initramfs-tools/hooks/lab": _FIRST_INIT_HOOK,
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    # Any valid identifier: the command line gives each guest its own. Without one, systemd enables every unit.
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/initramfs-tools/conf.d/lab": "MODULES=list\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\nvirtio_net\nvirtio_rng\next4\n",
    # The daemon ends itself after two idle minutes otherwise, and takes seconds to come back here.
    "etc/default/libvirtd": "LIBVIRTD_ARGS=\n",
}

# Nothing of this has a use in a lab, and each costs seconds of an emulated boot.
MASKED: tuple[str, ...] = tuple(
    f"system/{unit}"
    for unit in """
    apt-daily-upgrade.timer apt-daily.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    getty-static.service getty@tty1.service ldconfig.service libvirt-guests.service logrotate.timer
    networking.service serial-getty@ttyS0.service sshd-keygen.service systemd-binfmt.service
    systemd-firstboot.service systemd-hwdb-update.service systemd-journal-catalog-update.service
    systemd-machine-id-commit.service systemd-network-generator.service systemd-networkd.service
    systemd-pcrmachine.service systemd-pcrphase-sysinit.service systemd-pcrphase.service systemd-pstore.service
    systemd-tmpfiles-clean.timer systemd-tpm2-setup-early.service systemd-tpm2-setup.service
    systemd-update-done.service
    """.split()
) + tuple(
    # Some of these need devices that a guest here does not have, and log errors at each boot.
    f"system-generators/systemd-{name}-generator"
    for name in "debug gpt-auto hibernate-resume import rc-local run ssh tpm2".split()
)


def bootstrap_recipe(root: Root) -> object:
    return [root.suite, list(root.packages), list(_LEFT_OUT)]


def bootstrap(root: Root, folder: Path) -> None:
    """Make a root file system in the directory."""
    mirror = debian_mirror()
    run([
        "mmdebstrap", "--mode=root", "--variant=minbase", "--quiet", "--architectures=amd64",
        f"--keyring={DEBIAN_KEYRING}",
        '--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude={glob}" for glob in _LEFT_OUT),
        f"--include={','.join(root.packages)}",
        root.suite, folder, *([mirror] if mirror else []),
    ])  # fmt: skip


def configure(tree: Path, files: dict[str, str], masked: tuple[str, ...], keys: dict[str, str]) -> None:
    """The lab's own files in a root file system; never written through a hard link."""
    for name, text in {**files, **keys}.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
        if name.endswith("_key") or "/.ssh/" in name:
            path.chmod(0o600)
        elif text.startswith("#!"):
            path.chmod(0o755)
    (tree / "root/.ssh").chmod(0o700)
    for name in masked:
        path = tree / "etc/systemd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/null")


def make_disk(root: Path, kernel_tree: Path | None, release: str, keys: dict[str, str], out: Path) -> None:
    """Make the disk image of machines with this root and kernel; beside it the kernel that the emulator starts.

    Without the tree of a kernel, the kernel in the root is used.
    """
    tree = out / "tree"
    # Hard links: a second root costs a second and no space. Whatever is changed below is replaced, not written to.
    run(["cp", "-al", root, tree])
    configure(tree, GUEST_FILES, MASKED, keys)
    if kernel_tree:
        run(["cp", "-a", f"{kernel_tree}/.", tree])
    run(["chroot", tree, "systemctl", "enable", "lab-network.service"])
    run(["chroot", tree, "depmod", release])
    run(["chroot", tree, "update-initramfs", "-c", "-k", release])
    if (tree / _FILE_CONTEXTS).exists():
        run(["chroot", tree, "setfiles", "-F", f"/{_FILE_CONTEXTS}", "/"])
    shutil.copyfile(tree / "boot" / f"vmlinuz-{release}", out / "vmlinuz")
    shutil.copyfile(tree / "boot" / f"initrd.img-{release}", out / "initrd")
    for hypervisor in (tree / "boot").glob("xen-*-amd64.gz"):
        # A multiboot loader, which the emulator is here, takes the plain ELF file.
        (out / "xen").write_bytes(gzip.decompress(hypervisor.read_bytes()))
    image = out / "root.ext4"
    with image.open("wb") as handle:
        os.truncate(handle.fileno(), 8 << 30)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", tree, image])
    shutil.rmtree(tree)


def installed_kernel(root: Path) -> str:
    """The release of the kernel that a root has."""
    return next((root / "usr/lib/modules").iterdir()).name
