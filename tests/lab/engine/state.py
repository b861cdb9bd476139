# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes that a lab started: one small file for each host in its state directory."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import process
from .commands import tail_of


@dataclass
class Started:
    """A host that this lab started. It is ready once it has answered over ssh."""

    name: str
    pid: int
    start_time: int
    port: int
    accel: str
    started_from: str
    kernel: str = ""
    seconds: float = 0.0
    ready: bool = False
    kernels: list[str] = field(default_factory=list)

    def state(self, folder: Path) -> str:
        """starting, running or died; a guest that panicked has died, though its emulator has not."""
        panicked = "Kernel panic - not syncing" in tail_of(serial_log(folder, self.name), 40)
        if panicked or not process.is_running(self.pid, self.start_time):
            return "died"
        return "running" if self.ready else "starting"


def serial_log(folder: Path, name: str) -> Path:
    """Where a guest's serial port, or the builder's sshd, writes."""
    return folder / f"{name}.log"


def save(folder: Path, started: Started) -> None:
    (folder / "hosts").mkdir(parents=True, exist_ok=True)
    partial = folder / "hosts" / f".{started.name}"
    partial.write_text(json.dumps(asdict(started)), encoding="utf-8")
    os.replace(partial, folder / "hosts" / f"{started.name}.json")


def load(folder: Path, name: str) -> Started | None:
    try:
        return Started(**json.loads((folder / "hosts" / f"{name}.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def forget(folder: Path, name: str) -> None:
    (folder / "hosts" / f"{name}.json").unlink(missing_ok=True)
