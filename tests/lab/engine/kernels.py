# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels: fetched from a Debian suite, unpacked for guests and for the builder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .commands import run
from .errors import LabError
from .packages import Apt
from .store import Store, digest

_METAPACKAGES = ("linux-image-cloud-amd64", "linux-headers-cloud-amd64", "linux-image-cloud-amd64-dbg")
_RUNTIME = ("linux-image-", "linux-base-", "linux-binary-", "linux-modules-")

# Debug information of all modules is 1.5 GB a kernel, of the rest without these families 0.4 GB: hardware and
# protocols that no guest of the lab has.
NOT_DEBUGGED: tuple[str, ...] = tuple(
    """
    drivers/ata drivers/comedi drivers/gpu drivers/hid drivers/hv drivers/iio drivers/infiniband drivers/md
    drivers/media drivers/net/ethernet drivers/net/wireless drivers/nvdimm drivers/nvme drivers/scsi drivers/staging
    drivers/target drivers/thermal drivers/usb fs/bcachefs fs/btrfs fs/ceph fs/cifs fs/dlm fs/f2fs fs/gfs2 fs/lockd
    fs/netfs fs/nfs fs/nfs_common fs/nfsd fs/nls fs/ntfs3 fs/ocfs2 fs/orangefs fs/smb fs/xfs net/9p net/batman-adv
    net/ceph net/dccp net/ipv4 net/ipv6 net/mpls net/netfilter net/openvswitch net/rds net/rxrpc net/sched net/sctp
    net/smc net/sunrpc net/tipc sound
    """.split()
)


@dataclass(frozen=True)
class Kernel:
    """A fetched kernel: tree has /boot and /usr/lib/modules as a guest has them."""

    suite: str
    release: str
    folder: Path

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def version(self) -> str:
        """Return the packages of the release, for the recipes of artifacts that are made from them."""
        return digest(sorted(path.name for path in (self.folder / "debs").iterdir()))


def fetch(store: Store, suite: str) -> Kernel:
    """The kernel of a suite: its packages, and the part a guest needs unpacked."""

    def build(out: Path) -> None:
        scratch = out / "apt"
        apt = Apt(suite, scratch)
        apt.download(apt.closure(list(_METAPACKAGES)), out / "debs")
        shutil.rmtree(scratch)
        for package in sorted((out / "debs").iterdir()):
            if package.name.startswith(_RUNTIME) and "-dbg_" not in package.name:
                run(["dpkg-deb", "-x", package, out / "tree"])
        _merge_usr(out / "tree")
        _fill_boot(out / "tree")
        shutil.rmtree(out / "tree/usr/share", ignore_errors=True)

    folder = store.ensure(f"kernel-{suite}", ["kernel", suite, list(_METAPACKAGES), _RUNTIME], build)
    releases = sorted(path.name for path in (folder / "tree/usr/lib/modules").iterdir())
    if len(releases) != 1:
        raise LabError(f"the packages of {suite} hold {len(releases)} kernels, not one: {' '.join(releases)}")
    return Kernel(suite, releases[0], folder)


def builder_layer(store: Store, kernel: Kernel) -> Path:
    """What a builder needs to compile for a kernel: headers, build tools, debug information."""

    def build(out: Path) -> None:
        for package in sorted((kernel.folder / "debs").iterdir()):
            if package.name.startswith(("linux-headers-", "linux-kbuild-")):
                run(["dpkg-deb", "-x", package, out])
        _merge_usr(out)
        _unpack_debug(next((kernel.folder / "debs").glob("*-dbg_*.deb")), kernel.release, out)
        run(["cp", "-a", kernel.tree / "boot", out])
        modules = out / "usr/lib/modules" / kernel.release
        run(["cp", "-a", f"{kernel.tree}/usr/lib/modules/{kernel.release}/.", modules])

    return store.ensure(f"layer-{kernel.suite}", ["layer", kernel.suite, kernel.version, list(NOT_DEBUGGED)], build)


def _unpack_debug(package: Path, release: str, out: Path) -> None:
    left_out = [f"--exclude=./usr/lib/debug/lib/modules/{release}/kernel/{family}" for family in NOT_DEBUGGED]
    shell = 'set -o pipefail; dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" "${@:3}"'
    run(["bash", "-c", shell, "-", package, out, *left_out])


def _fill_boot(tree: Path) -> None:
    """Copy files to /boot that newer packages ship beside the modules."""
    for modules in (tree / "usr/lib/modules").iterdir():
        (tree / "boot").mkdir(exist_ok=True)
        for name in ("vmlinuz", "config", "System.map"):
            if (modules / name).exists():
                shutil.copy2(modules / name, tree / "boot" / f"{name}-{modules.name}")


def _merge_usr(tree: Path) -> None:
    """Older packages ship /lib; every root here has /lib as a link to /usr/lib."""
    old = tree / "lib"
    if old.is_dir():
        (tree / "usr/lib").mkdir(parents=True, exist_ok=True)
        run(["cp", "-al", f"{old}/.", tree / "usr/lib"])
        shutil.rmtree(old)
