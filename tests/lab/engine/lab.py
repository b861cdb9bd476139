# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: real hosts to test against, brought up and taken down by name.

Run it on its own for trials: python3 tests/lab/engine/lab.py up|down|status|ssh [NAME...] [COMMAND...]
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from engine import describe, inventory, needs, process, qemu, ssh, state
from engine.describe import Host
from engine.errors import LabError
from engine.guest import died
from engine.making import Making
from engine.store import Store, locked

__all__ = ["Lab", "LabError"]

_CLOCK_SECONDS = 60


class Lab:
    """One lab: a description, a directory for its running hosts, and a cache that labs share."""

    def __init__(self, description: Path, state_dir: Path, cache_dir: Path, say: Callable[[str], None]) -> None:
        self.description = describe.read(description)
        self.state_dir = state_dir.resolve()
        self.cache_dir = cache_dir.resolve() / "images"
        speaking = threading.Lock()

        def one_at_a_time(sentence: str) -> None:
            with speaking:
                say(sentence)

        self.say = one_at_a_time

    def up(self, names: list[str] | None = None, fresh: bool = False) -> None:
        """Brings up the named hosts, all ordinary ones without names; fresh boots guests instead of restoring them."""
        needs.require()
        hosts = self.description.choose(names)
        with locked(self.state_dir / "lock"):
            # A lab that went down while we waited has deleted its directory.
            self.state_dir.mkdir(parents=True, exist_ok=True)
            keys = ssh.keys_in(self.cache_dir)
            # Only lab hosts are ever looked up in this file, and all of them have the cache's host key.
            self._known_hosts.write_text(f"[127.0.0.1]:* {keys.public('host')}\n", encoding="ascii")
            self._resume()
            store = Store(self.cache_dir, self.say)
            store.prune()
            try:
                Making(self.description, store, keys, self.state_dir, self.login, self.say, fresh).up(hosts)
            finally:
                self.inventory()

    def pause(self) -> None:
        """Stops the processors of all running guests: idle ones need a quarter of a core each without KVM."""
        if not self.state_dir.exists():
            return
        with locked(self.state_dir / "lock"):
            self._paused.touch()
            for host, _record in self._guests():
                with contextlib.suppress(LabError):  # it has just died, which the next start reports
                    qemu.hmp(self.state_dir, host.name, "stop")

    def resume(self) -> None:
        """Lets paused guests run again."""
        if self.state_dir.exists():
            with locked(self.state_dir / "lock"):
                self._resume()

    def _resume(self) -> None:
        if not self._paused.exists():
            return
        for host, record in self._guests():
            with contextlib.suppress(LabError):
                qemu.hmp(self.state_dir, host.name, "cont")
                # Its clock stood still.
                ssh.command([*self.login(host.name, record.port), f"date -s @{time.time():.3f}"], _CLOCK_SECONDS)
        self._paused.unlink()

    def _guests(self) -> list[tuple[Host, state.Started]]:
        return [(host, record) for host, record in self._running() if host.kind != "builder"]

    @property
    def _paused(self) -> Path:
        return self.state_dir / "paused"

    def down(self) -> None:
        """End the processes that this lab started and remove its directory."""
        if not self.state_dir.exists():
            return
        with locked(self.state_dir / "lock"):
            records = [record for name in self.description.hosts if (record := state.load(self.state_dir, name))]
            with ThreadPoolExecutor(max_workers=16) as pool:
                list(pool.map(lambda record: process.end(record.pid, record.start_time), records))
            shutil.rmtree(self.state_dir)
        self.say(f"lab down: {len(records)} hosts ended")

    def status(self) -> list[dict[str, object]]:
        """A row for each described host."""
        rows: list[dict[str, object]] = []
        for name in self.description.hosts:
            record = state.load(self.state_dir, name)
            row: dict[str, object] = {"name": name, "state": "stopped", "kernel": None, "port": None, "pid": None,
                                      "accel": None, "started_from": None, "seconds": None}  # fmt: skip
            if record is not None:
                row |= {key: getattr(record, key) for key in row if hasattr(record, key) and key != "state"}
                row["state"] = record.state(self.state_dir)
                if row["state"] == "died":
                    row["last_words"] = died(self.state_dir, name)
            rows.append(row)
        return rows

    def ssh_argv(self, name: str, *command: str) -> list[str]:
        """Return the command line that logs in to a running host, or runs a command there."""
        self.description.choose([name])
        record = state.load(self.state_dir, name)
        if record is None:
            raise LabError(f"{name} is not running in this lab; bring it up first")
        if record.state(self.state_dir) == "died":
            raise LabError(died(self.state_dir, name))
        return [*self.login(name, record.port), *command]

    def inventory(self) -> Path:
        """Writes the Ansible inventory of the running hosts."""
        key = ssh.keys_in(self.cache_dir).login
        return inventory.write(self.state_dir / "inventory.yml", self._running(), key, self._known_hosts)

    def login(self, name: str, port: int) -> list[str]:
        key = self.cache_dir / "keys" / "login_key"
        return ["ssh", *ssh.options(self._known_hosts), "-i", str(key), "-p", str(port), "root@127.0.0.1"]

    @property
    def _known_hosts(self) -> Path:
        return self.state_dir / "known_hosts"

    def _running(self) -> list[tuple[Host, state.Started]]:
        records = ((host, state.load(self.state_dir, host.name)) for host in self.description.hosts.values())
        return [(host, record) for host, record in records if record and record.state(self.state_dir) == "running"]


def main(words: list[str]) -> int:
    """The command line for trials; folders come from TAPVIRT_LAB_STATE and TAPVIRT_LAB_CACHE."""
    here = Path(__file__).resolve().parent.parent
    cache = Path(os.environ.get("TAPVIRT_LAB_CACHE", "~/.cache/tapvirt")).expanduser()
    folder = Path(os.environ.get("TAPVIRT_LAB_STATE", str(cache / "lab-by-hand")))
    began = time.monotonic()

    def say(sentence: str) -> None:
        print(f"{time.monotonic() - began:6.1f}  {sentence}", flush=True)

    lab = Lab(here / "lab.toml", folder, cache, say)
    try:
        match words:
            case ["up", *names]:
                lab.up([name for name in names if name != "--fresh"], fresh="--fresh" in names)
                print(lab.inventory())
            case ["down"]:
                lab.down()
            case ["status"]:
                for row in lab.status():
                    print("  ".join(f"{key}={value}" for key, value in row.items() if value is not None))
            case ["ssh", name, *command]:
                argv = lab.ssh_argv(name, *command)
                os.execvp(argv[0], argv)
            case _:
                print(__doc__)
                return 2
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
