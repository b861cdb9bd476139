# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A datagram socket in the place of a host's system log."""

from __future__ import annotations

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import typing as t

COLLECTION = "ansible_collections.tapvirt.host.plugins."
# A module as Ansible runs it, with another socket.
PROGRAM = f"""
import importlib, sys
from {COLLECTION}module_utils._core import audit
audit.SOCKET, name = sys.argv.pop(1), sys.argv.pop(1)
importlib.import_module("{COLLECTION}modules." + name).main()
"""
LINE = re.compile(r"<(\d+)>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d tapvirt\[\d+\]: (.*)\Z")


class Log:
    """A system log: what it received, without date and process id."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(str(path))
        self.channel.setblocking(False)

    def raw(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.channel.recv(1 << 16))
            except BlockingIOError:
                return found

    def lines(self) -> list[str]:
        found = [LINE.match(data.decode("ascii")) for data in self.raw()]
        assert all(match is not None and match[1] == "13" for match in found), "user.notice"  # 1 << 3 | 5
        return [match[2] for match in found if match]

    def run(self, module: str, /, env: t.Mapping[str, str] | None = None, **args: t.Any) -> dict[str, t.Any]:
        """Run a module; ``_ansible_`` options as Ansible sets them."""
        text = json.dumps({"ANSIBLE_MODULE_ARGS": {"_ansible_module_name": f"tapvirt.host.{module}", **args}})
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(self.path), module],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **(env or {})},
        )
        assert done.stdout, done.stderr
        return t.cast("dict[str, t.Any]", json.loads(done.stdout))
