# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The emulator: run from the guests' root, spoken to by QMP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .commands import run, tail_of
from .errors import LabError
from .store import locked

# QEMU before 8.1 loses races of self-modifying code between emulated processors (a kernel patches itself whenever a
# probe is armed): guests with two of them crash. So it is not the machine's QEMU that runs but the root's, in a mount
# namespace that ends with it. /mnt is the lab's state, /srv the cache.
_ENTER = """
set -e
mount --bind "$2" "$1/mnt"
mount --bind "$3" "$1/srv"
mount --bind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/tmp"
root=$1
shift 3
exec chroot "$root" env -C /mnt "$@"
"""


@dataclass(frozen=True)
class Emulator:
    root: Path
    state: Path
    cache: Path

    def argv(self, *words: str) -> list[str]:
        """A command of the root with state and cache in reach."""
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        return [*enter, str(self.root), str(self.state), str(self.cache), *words]

    def inside(self, path: Path) -> str:
        """How the emulator names a file of the cache."""
        return f"/srv/{path.relative_to(self.cache)}"

    def start(self, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                self.argv("qemu-system-x86_64", *words), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def make_overlay(self, backing: Path, name: str) -> None:
        run(self.argv("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.inside(backing), name))


def accelerator(emulator: Emulator, kernel: Path) -> str:
    """kvm if a kernel really starts on it, else tcg. A /dev/kvm may exist and not run ordinary guests."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    note = emulator.cache / "accelerator.json"
    with locked(emulator.cache / "locks" / "accelerator"):
        try:
            known = json.loads(note.read_text(encoding="utf-8"))
            if known["boot_id"] == boot_id:
                return str(known["accelerator"])
        except (OSError, ValueError, KeyError):
            pass
        found = "kvm" if os.path.exists("/dev/kvm") and _starts_on_kvm(emulator, kernel) else "tcg"
        note.write_text(json.dumps({"boot_id": boot_id, "accelerator": found}), encoding="utf-8")
        return found


def _starts_on_kvm(emulator: Emulator, kernel: Path, deadline: float = 15.0) -> bool:
    """A kernel without a root that gets as far as missing it has started its processors, clock and devices."""
    log = emulator.state / "kvm-trial.log"
    log.unlink(missing_ok=True)
    trial = emulator.start(
        ["-accel", "kvm", "-cpu", "host", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none",
         "-serial", "file:kvm-trial.log", "-no-reboot",
         "-kernel", emulator.inside(kernel), "-append", "console=ttyS0 panic=-1"],
        emulator.state / "kvm-trial.err",
    )  # fmt: skip
    try:
        give_up = time.monotonic() + deadline
        while trial.poll() is None and time.monotonic() < give_up:
            time.sleep(0.1)
        return "VFS: Unable to mount root" in tail_of(log, 60)
    finally:
        trial.kill()
        trial.wait()


def hmp(state: Path, name: str, *lines: str) -> None:
    """Gives a guest's emulator commands; any answer of these commands is an error message."""
    # Through the descriptor of the directory: the path of a socket must be short, that of the lab may be long.
    folder = os.open(state, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(120)
            monitor.connect(f"/proc/self/fd/{folder}/{name}.qmp")
            with monitor.makefile("rw", encoding="utf-8") as stream:
                stream.readline()
                _execute(stream, {"execute": "qmp_capabilities"})
                for line in lines:
                    answer = _execute(stream, {"execute": "human-monitor-command", "arguments": {"command-line": line}})
                    if answer.strip():
                        raise LabError(f"{name}: the emulator's answer to {line}: {answer.strip()}")
    except OSError as error:
        raise LabError(f"{name}: the emulator does not answer: {error}") from error
    finally:
        os.close(folder)


def _execute(stream: Any, request: dict[str, Any]) -> str:
    stream.write(json.dumps(request) + "\n")
    stream.flush()
    while True:
        line = stream.readline()
        if not line:
            raise LabError(f"the emulator hung up on {request['execute']}")
        answer = json.loads(line)
        if "return" in answer:
            return str(answer["return"] or "")
        if "error" in answer:
            raise LabError(f"the emulator refused {request['execute']}: {answer['error'].get('desc')}")
