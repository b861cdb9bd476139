# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root file systems: bootstrapped once, then made into the disks of guests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .commands import run
from .describe import Root
from .needs import DEBIAN_KEYRING
from .packages import debian_mirror

# Half of a minimal root is text that nobody reads in a lab.
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")

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

_INTERFACES = """auto lo
iface lo inet loopback
auto eth0
iface eth0 inet static
  address 10.0.2.15/24
  gateway 10.0.2.2
"""

FILES: dict[str, str] = {
    "etc/ssh/sshd_config.d/lab.conf": _SSHD,
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}

GUEST_FILES: dict[str, str] = {
    **FILES,
    "etc/fstab": "/dev/vda / ext4 rw,noatime 0 0\n",
    "etc/network/interfaces": _INTERFACES,
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    # Anything valid: the command line gives each guest its own. Without one, systemd enables every unit there is.
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/initramfs-tools/conf.d/lab": "MODULES=list\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\nvirtio_net\nvirtio_rng\next4\n",
    # The daemon ends itself after two idle minutes otherwise, and takes seconds to come back here.
    "etc/default/libvirtd": "LIBVIRTD_ARGS=\n",
}

# Nothing of this has a use in a lab, and each costs seconds of an emulated boot.
MASKED: tuple[str, ...] = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "logrotate.timer",
    "systemd-tmpfiles-clean.timer", "e2scrub_all.timer", "e2scrub_reap.service", "getty-static.service",
    "getty@tty1.service", "serial-getty@ttyS0.service", "ifupdown-pre.service", "ldconfig.service",
    "libvirt-guests.service", "sshd-keygen.service", "systemd-binfmt.service", "systemd-firstboot.service",
    "systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "systemd-machine-id-commit.service",
    "systemd-network-generator.service", "systemd-networkd.service", "systemd-pcrmachine.service",
    "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-pstore.service",
    "systemd-tpm2-setup-early.service", "systemd-tpm2-setup.service", "systemd-update-done.service",
)


def bootstrap_recipe(root: Root) -> object:
    return [root.suite, list(root.packages), list(_LEFT_OUT)]


def bootstrap(root: Root, folder: Path) -> None:
    """A root file system in the folder."""
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
    (tree / "root/.ssh").chmod(0o700)
    for unit in masked:
        path = tree / "etc/systemd/system" / unit
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/null")


def make_disk(root: Path, kernel_tree: Path, release: str, files: dict[str, str], keys: dict[str, str], out: Path) -> None:
    """The disk image of guests with this kernel, and beside it the kernel and initramfs to start it with."""
    tree = out / "tree"
    # Hard links: a second root costs a second and no space. Whatever is changed below is replaced, not written to.
    run(["cp", "-al", root, tree])
    configure(tree, files, MASKED, keys)
    run(["cp", "-a", f"{kernel_tree}/.", tree])
    run(["chroot", tree, "depmod", release])
    run(["chroot", tree, "update-initramfs", "-c", "-k", release])
    for name in ("vmlinuz", "initrd.img"):
        shutil.copyfile(tree / "boot" / f"{name}-{release}", out / name.split(".", maxsplit=1)[0])
    image = out / "root.ext4"
    with image.open("wb") as handle:
        os.truncate(handle.fileno(), 8 << 30)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", tree, image])
    shutil.rmtree(tree)
