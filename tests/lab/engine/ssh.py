# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's keys, and how its hosts are reached."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .commands import last_lines, run
from .errors import LabError
from .store import locked


@dataclass(frozen=True)
class Keys:
    """One pair for root's login and one for the hosts, made once for a cache, so that its images fit all its labs."""

    folder: Path

    @property
    def login(self) -> Path:
        return self.folder / "login_key"

    def public(self, name: str) -> str:
        return " ".join((self.folder / f"{name}_key.pub").read_text(encoding="ascii").split()[:2])

    def files(self) -> dict[str, str]:
        """The files of a root that let this lab in."""
        return {
            "root/.ssh/authorized_keys": self.public("login") + "\n",
            "etc/ssh/ssh_host_ed25519_key": (self.folder / "host_key").read_text(encoding="ascii"),
            "etc/ssh/ssh_host_ed25519_key.pub": self.public("host") + "\n",
        }

    def recipe(self) -> list[str]:
        return [self.public("login"), self.public("host")]


def keys_in(cache: Path) -> Keys:
    """Return the keys of a cache; make them if they do not exist."""
    folder = cache / "keys"
    with locked(cache / "locks" / "keys"):
        for name in ("login_key", "host_key"):
            if not (folder / f"{name}.pub").exists():
                folder.mkdir(mode=0o700, exist_ok=True)
                (folder / name).unlink(missing_ok=True)
                run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", folder / name])
    return Keys(folder)


def options(known_hosts: Path) -> list[str]:
    """Return options that make ssh trust exactly the lab's host key, independent of the user's configuration."""
    return [
        "-F", "/dev/null", "-o", f'UserKnownHostsFile="{known_hosts}"', "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR",
    ]  # fmt: skip


def free_port() -> int:
    """A port nothing listens on, below the range that outgoing connections are given ports from."""
    for port in range(20000 + time.time_ns() // 1000 % 10000, 32000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise LabError("no free port between 20000 and 32000 on 127.0.0.1")


def greets(port: int) -> bool:
    """Return whether an ssh server sends its first line (user-mode networking accepts connections before the guest)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.settimeout(10)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def wait_until(ready: Callable[[], bool], check_alive: Callable[[], None], deadline: float, what: str) -> None:
    """Polls until ready; check_alive raises when waiting has no point any more."""
    give_up = time.monotonic() + deadline
    while not ready():
        check_alive()
        if time.monotonic() > give_up:
            raise TimeoutError(f"{what} within {deadline:.0f} s")
        time.sleep(0.25)


def command(argv: list[str], timeout: float) -> str:
    """Runs a command on a host; argv is a whole ssh command line."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no answer over ssh within {timeout:.0f} s to: {argv[-1][:120]}") from error
    if done.returncode != 0:
        raise LabError(f"over ssh ({done.returncode}): {argv[-1][:120]}: {last_lines(done.stderr + done.stdout, 4)}")
    return done.stdout
