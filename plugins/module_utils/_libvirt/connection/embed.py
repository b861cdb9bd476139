# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded QEMU driver's root directory: a whole libvirt below one folder, without a daemon.

Private to the collection. Source of the rules: libvirt's page "QEMU/KVM/HVF hypervisor driver", section on the embedded
driver, and its behaviour as measured with 9.0.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import time
from urllib.parse import parse_qs, urlsplit

from ..._core import lock
from ..._core.disk import disk_errors
from ..._core.errors import InvalidInput, TapvirtError
from ..._core.files import foreign_level, user_name
from ..._core.root import Root
from ..._core.write import make_directories, write_atomic

# A guest's monitor is a UNIX socket below ROOT/lib/qemu/domain-ID-NAME/; a socket's path ends at 107 bytes.
_MAX_ROOT_LENGTH = 54
_LOCK = os.path.join(".tapvirt", "lock")
_RETRY_SECONDS = 0.2
# The roots that this process has, by path: file descriptors, which hold their locks until the process ends.
_HELD: dict[str, int] = {}
CACHE = "/var/cache/tapvirt"
HOST_CAPABILITIES = "/var/cache/libvirt/qemu/capabilities"
OUR_CAPABILITIES = os.path.join(CACHE, "capabilities")


class EmbedRoot:
    """One root directory of the embedded driver."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.config_path = os.path.join(path, "etc", "qemu.conf")

    def is_new(self) -> bool:
        """Tell whether nothing has used this root yet: no domain can be in it.

        The directory ``etc`` alone does not count: it is what :meth:`prepare` leaves when it is killed. libvirt keeps
        definitions in ``etc/qemu`` and opens the root only after the configuration is written.

        :raises PermissionError: the user may not look into it.
        """
        for name in (self.config_path, os.path.join(os.path.dirname(self.config_path), "qemu")):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.stat(name)
                return False
        return True

    def config_text(self) -> str:
        """Return the driver's configuration for a new root.

        Without ``stdio_handler = "file"`` a start asks for virtlogd. Guests run as the user who runs the driver: a
        user without access to /dev/kvm would make the driver probe QEMU anew, for a minute, at every definition
        (libvirt 9.0, virQEMUCapsIsValid). Who wants another user writes the file first.
        """
        lines = ['stdio_handler = "file"']
        if os.geteuid() == 0:
            lines += ['user = "root"', 'group = "root"']
        return "\n".join(lines) + "\n"

    def prepare(self) -> None:
        """Make a new root with its configuration; finish one whose preparation was killed."""
        with disk_errors("No domain was changed."):
            make_directories(os.path.dirname(self.config_path))
            write_atomic(self.config_path, self.config_text().encode("ascii"), mode=0o644)
        self.take_over_capabilities()

    def take_over_capabilities(self) -> None:
        """Start with QEMU's capabilities as another libvirt of this host found them: probing QEMU takes seconds.

        Libvirt throws such an answer away when QEMU, its own library, the kernel or the microcode is another one.
        """
        for directory in (HOST_CAPABILITIES, OUR_CAPABILITIES):
            copy_newer(directory, self._capabilities)

    def hand_over_capabilities(self) -> None:
        """Keep what the driver found out about QEMU for the next root."""
        copy_newer(self._capabilities, OUR_CAPABILITIES)

    @property
    def _capabilities(self) -> str:
        return os.path.join(self.path, "cache", "qemu", "capabilities")

    def acquire(self, deadline: float) -> None:
        """Make this process the only one that uses the root, until the process ends.

        The driver itself holds its root for as long as its process lives, and a process in which it once failed to get
        the root cannot try again: so whoever comes second has to wait before libvirt is asked.

        :raises TapvirtError: another process held it past the deadline (``time.monotonic()``).
        """
        if self.path in _HELD:
            return
        self._check_owner()
        path = os.path.join(self.path, _LOCK)
        what = f"the root {self.path} of the embedded driver"
        with disk_errors("No domain was changed."):
            descriptor = lock.take(path, what, max(0.0, round(deadline - time.monotonic(), 1)))
        while not self._driver_is_free():
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise TapvirtError(
                    f"Another libvirt uses the embedded driver's root {self.path} and did not end in time."
                )
            time.sleep(_RETRY_SECONDS)
        _HELD[self.path] = descriptor

    def _check_owner(self) -> None:
        """Refuse a root of another user, whose configuration says as whom guests run.

        :raises InvalidInput: another user owns it or a directory above it.
        """
        found = foreign_level(self.path)
        if found:
            owner, user = user_name(found[1]), user_name(os.geteuid())
            problem = f"{owner} owns {found[0]}, but this task runs as {user}."
            hint = f"Run the task with become_user: {owner}."
            raise InvalidInput("uri", f"qemu:///embed?root={self.path}", problem, hint)

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


def copy_newer(source: str, target: str) -> None:
    """Copy the capability files that the target directory lacks or has older; what may not be read or written stays."""
    with contextlib.suppress(OSError):
        make_directories(target)
        for path in glob.glob(os.path.join(glob.escape(source), "*.xml")):
            copy = os.path.join(target, os.path.basename(path))
            if not os.path.exists(copy) or os.stat(copy).st_mtime < os.stat(path).st_mtime:
                write_atomic(copy, Root(source).read_bytes(os.path.basename(path)), mode=0o600)


def embed_root(uri: str) -> EmbedRoot | None:
    """Return the root of a URI of the embedded driver, null for any other URI.

    :raises InvalidInput: no root, a relative one, or one whose sockets would not fit.
    """
    parts = urlsplit(uri)
    if parts.path != "/embed":
        return None
    roots = parse_qs(parts.query).get("root", [])
    if len(roots) != 1 or not roots[0].startswith("/") or os.path.normpath(roots[0]) == "/":
        problem = "The embedded driver needs one root, an absolute path below /."
        raise InvalidInput("uri", uri, problem, "Use a URI such as qemu:///embed?root=/var/lib/tapvirt/embed.")
    path = os.path.normpath(roots[0])
    if len(path) > _MAX_ROOT_LENGTH:
        problem = f"The root has more than {_MAX_ROOT_LENGTH} characters, so the path of a socket below it is too long."
        raise InvalidInput("uri", uri, problem, "Use a shorter root.")
    return EmbedRoot(path)
