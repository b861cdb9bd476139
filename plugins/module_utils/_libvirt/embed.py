# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded QEMU driver's root directory: a whole libvirt below one folder, without a daemon.

Private to the collection. Source of the rules: libvirt's page "QEMU/KVM/HVF hypervisor driver", section on the embedded
driver, and its behaviour as measured with 9.0.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import stat
import time
from urllib.parse import parse_qs, urlsplit

from .._core.errors import InvalidInput, TapvirtError
from .._core.write import write_atomic

# A guest's monitor is a UNIX socket below ROOT/lib/qemu/domain-ID-NAME/; a socket's path ends at 107 bytes.
_MAX_ROOT_LENGTH = 54
_LOCK = ".tapvirt.lock"
_RETRY_SECONDS = 0.2
# The roots that this process has, by path: file descriptors, which hold their locks until the process ends.
_HELD: dict[str, int] = {}
SYSTEM_CACHE = "/var/cache/tapvirt/embed"
_CAPABILITIES = tuple(
    os.path.join(directory, "qemu", "capabilities", "*.xml")
    for directory in ("/var/cache/libvirt", os.path.join(SYSTEM_CACHE, "cache"))
)


class EmbedRoot:
    """One root directory of the embedded driver."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.config_path = os.path.join(path, "etc", "qemu.conf")

    def is_new(self) -> bool:
        """Tell whether nothing has used this root yet: no domain can be in it."""
        return not os.path.exists(os.path.join(self.path, "etc"))

    def config_text(self) -> str:
        """Return the driver's configuration for a new root.

        Without ``stdio_handler = "file"`` a start asks for virtlogd. Where /dev/kvm is root's alone, the driver would
        find it unusable for its ordinary user and probe QEMU anew, for seconds, at every step.
        """
        lines = ['stdio_handler = "file"']
        if os.geteuid() == 0 and _kvm_is_roots_alone():
            lines += ['user = "root"', 'group = "root"']
        return "\n".join(lines) + "\n"

    def prepare(self) -> None:
        """Make a new root with its configuration. Guests run as another user and must be able to pass."""
        os.makedirs(os.path.dirname(self.config_path), mode=0o755, exist_ok=True)
        write_atomic(self.config_path, self.config_text().encode("ascii"), mode=0o644)
        self.take_over_capabilities()

    def take_over_capabilities(self) -> None:
        """Start with QEMU's capabilities as another libvirt of this host found them: probing QEMU takes seconds.

        Libvirt throws such an answer away when QEMU, its own library, the kernel or the microcode is another one.
        """
        cache = os.path.join(self.path, "cache", "qemu", "capabilities")
        os.makedirs(cache, mode=0o755, exist_ok=True)
        for path in [path for pattern in _CAPABILITIES for path in glob.glob(pattern)]:
            target = os.path.join(cache, os.path.basename(path))
            if not os.path.exists(target) or os.stat(target).st_mtime < os.stat(path).st_mtime:
                shutil.copyfile(path, target)

    def acquire(self, deadline: float) -> None:
        """Make this process the only one that uses the root, until the process ends.

        The driver itself holds its root for as long as its process lives, and a process in which it once failed to get
        the root cannot try again: so whoever comes second has to wait before libvirt is asked.

        :raises TapvirtError: another process held it past the deadline (``time.monotonic()``).
        """
        if self.path in _HELD:
            return
        os.makedirs(self.path, mode=0o755, exist_ok=True)
        lock = os.open(os.path.join(self.path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        while not (_lock(lock) and self._driver_is_free()):
            if time.monotonic() > deadline:
                os.close(lock)
                raise TapvirtError(
                    "Another process uses the embedded driver's root {0} and did not end in time.".format(self.path)
                )
            time.sleep(_RETRY_SECONDS)
        _HELD[self.path] = lock

    def _driver_is_free(self) -> bool:
        """Tell whether no libvirt, of whatever program, has the root's pid file locked."""
        try:
            with open(os.path.join(self.path, "run", "qemu", "driver.pid"), "r+b") as pid_file:
                fcntl.lockf(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def _lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def embed_root(uri: str) -> EmbedRoot | None:
    """Return the root of a URI of the embedded driver, null for any other URI.

    :raises InvalidInput: no root, a relative one, or one whose sockets would not fit.
    """
    parts = urlsplit(uri)
    if parts.path != "/embed":
        return None
    roots = parse_qs(parts.query).get("root", [])
    rule = "must name a root, as in qemu:///embed?root=/var/lib/tapvirt/embed"
    if len(roots) != 1 or not roots[0].startswith("/") or os.path.normpath(roots[0]) == "/":
        raise InvalidInput("uri", uri, rule)
    path = os.path.normpath(roots[0])
    if len(path) > _MAX_ROOT_LENGTH:
        rule = "has a root longer than {0} characters; sockets below it would not fit".format(_MAX_ROOT_LENGTH)
        raise InvalidInput("uri", uri, rule)
    return EmbedRoot(path)


def _kvm_is_roots_alone() -> bool:
    try:
        status = os.stat("/dev/kvm")
    except OSError:
        return False
    return status.st_gid == 0 and not status.st_mode & stat.S_IWOTH
