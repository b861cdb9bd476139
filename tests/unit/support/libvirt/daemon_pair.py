# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two libvirtds side by side, for root, that take each other for different hosts: by host name and host UUID."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import time
import typing as t
import uuid

from ansible_collections.tapvirt.host.tests.unit.support.libvirt.session_daemon import answers
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.system_daemon import (
    PRIVATE,
    START_SECONDS,
    SystemDaemon,
)

SOCKET = "/run/libvirt/libvirt-sock"


class OneOfTwo(SystemDaemon):
    """One of the daemons; ``uri`` reaches it from anywhere on this machine."""

    def _start(self) -> subprocess.Popen[bytes]:
        if "--uts" not in self.inside:
            self.inside.insert(1, "--uts")
        self.path(SOCKET).unlink(missing_ok=True)
        process = super()._start()
        give_up = time.monotonic() + START_SECONDS
        while not answers(self.path(SOCKET)):
            assert process.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)
        return process

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.path(SOCKET)}"


@contextlib.contextmanager
def _daemon(name: str) -> t.Iterator[OneOfTwo]:
    holder = subprocess.Popen(
        ["unshare", "--mount", "--uts", "sh", "-ec", f"hostname {name}; {PRIVATE}; echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        config = pathlib.Path(f"/proc/{holder.pid}/root/etc/libvirt/libvirtd.conf")
        config.write_text(f'host_uuid = "{uuid.uuid4()}"\n', encoding="utf-8")
        daemon = OneOfTwo(holder.pid)
        try:
            yield daemon
        finally:
            daemon.end()
            holder.stdin.close()


@contextlib.contextmanager
def daemon_pair() -> t.Iterator[tuple[OneOfTwo, OneOfTwo]]:
    """Start both, yield them, end them and all that they started."""
    with _daemon("tapvirt-one") as one, _daemon("tapvirt-other") as other:
        yield one, other
