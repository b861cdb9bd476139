# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirtd of one's own as qemu:///system, for root: a mount namespace hides the machine's files from it.

It can be killed, and so can what it started. Modules run beside it, in processes of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.session_daemon import answers

START_SECONDS = 60
END_SECONDS = 30
PATHS = "/etc/libvirt /run /var/cache/libvirt /var/lib/libvirt /var/log/libvirt"
PRIVATE = f"for path in {PATHS}; do mount -t tmpfs -o mode=755 tmpfs $path; done"
# The pipe of a test run that was killed ends; what it started is ended by whoever held the namespace for it.
HOLD = "echo ready; cat; kill -9 $(cat /run/libvirtd.pid /run/libvirt/qemu/*.pid)"
LIBVIRTD = "/usr/sbin/libvirtd"
MODULES = "ansible_collections.tapvirt.host.plugins.modules."


class SystemDaemon:
    """The daemon; ``root`` is where its files are seen from outside, ``inside`` begins a command beside it."""

    def __init__(self, holder: int) -> None:
        self.root = pathlib.Path(f"/proc/{holder}/root")
        self.inside = ["nsenter", "--mount", f"--target={holder}", "--"]
        self.write("/etc/libvirt/qemu.conf", 'stdio_handler = "file"\nuser = "root"\ngroup = "root"\n')
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        program = [LIBVIRTD]
        socket = self.path("/run/libvirt/libvirt-admin-sock")
        socket.unlink(missing_ok=True)
        process = subprocess.Popen([*self.inside, *program], stdin=null, stdout=null, stderr=null)
        give_up = time.monotonic() + START_SECONDS
        while not answers(socket):
            assert process.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)
        return process

    def path(self, name: str) -> pathlib.Path:
        """Return where a file of the daemon is seen from outside."""
        return self.root / name.lstrip("/")

    def write(self, name: str, text: str) -> None:
        """Write a file that the daemon sees."""
        self.path(name).write_text(text, encoding="utf-8")

    def run(self, *argv: str) -> str:
        """Run a command beside the daemon and return what it prints."""
        done = subprocess.run([*self.inside, *argv], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def begin(self, module: str, args: dict[str, t.Any], check: bool = False) -> subprocess.Popen[str]:
        """Start a module, to be killed or waited for."""
        argv = [*self.inside, sys.executable, "-m", MODULES + module]
        pipe = subprocess.PIPE
        process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": {**args, "_ansible_check_mode": check}}))
        process.stdin.close()
        process.stdin = None
        return process

    def module(self, module: str, /, check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        """Run a module and return its result, failed or not."""
        stdout, stderr = self.begin(module, args, check).communicate(timeout=120)
        assert stdout, stderr
        return t.cast("dict[str, t.Any]", json.loads(stdout))

    def done(self, module: str, /, check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        """Run a module, and fail if it does."""
        result = self.module(module, check=check, **args)
        assert not result.get("failed"), result["msg"]
        return result

    def guests(self) -> list[int]:
        """Return the processes of the running domains."""
        records = [path for path in self.path("/run/libvirt/qemu").glob("*.pid") if path.stem != "driver"]
        found = []
        for record in records:
            with contextlib.suppress(FileNotFoundError, ValueError):
                found.append(int(record.read_text(encoding="ascii")))
        return [pid for pid in found if pathlib.Path(f"/proc/{pid}").exists()]

    def kill_guests(self) -> None:
        """Kill every running domain's process."""
        for pid in self.guests():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill the daemon, and start another."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def end(self) -> None:
        """End the domains and the daemon."""
        self.kill_guests()
        self.process.terminate()
        self.process.wait(END_SECONDS)


@contextlib.contextmanager
def system_daemon() -> t.Iterator[SystemDaemon]:
    """Start a daemon, yield it, end it and all that it started."""
    if os.geteuid() != 0 or not pathlib.Path(LIBVIRTD).exists():
        pytest.skip(f"needs root and {LIBVIRTD}")
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-ec", f"{PRIVATE}; {HOLD}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        daemon = SystemDaemon(holder.pid)
        try:
            yield daemon
        finally:
            daemon.end()
            holder.kill()
