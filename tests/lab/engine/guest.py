# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests: booted once, saved while they run and are warm, and restored from then on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import process, qemu, ssh, state
from .commands import run, tail_of
from .describe import Host
from .errors import LabError
from .machines import Disk, images, warm_up, words
from .store import Store

BOOT_DEADLINE = 600.0
RESTORE_DEADLINE = 90.0


@dataclass(frozen=True)
class GuestMaker:
    """Starts guests of a lab."""

    store: Store
    emulator: qemu.Emulator
    accel: str
    login: Callable[[str, int], list[str]]
    say: Callable[[str], None]
    interrupted: threading.Event

    def start(self, host: Host, disk: Disk, fresh: bool) -> state.Started:
        """Start a guest from its snapshot, or boot it and save a snapshot; return when it answers."""
        began = time.monotonic()
        recipe = self._recipe(host, disk)
        saved = self.store.path(f"snapshot-{host.name}", recipe)
        if fresh:
            self.store.drop(saved)
        booted: list[state.Started] = []

        def boot_and_save(out: Path) -> None:
            booted.append(self._boot(host, disk))
            self._save(host, disk, out)

        self.store.ensure(f"snapshot-{host.name}", recipe, boot_and_save)
        started = booted[0] if booted else self._restore(host, disk, saved)
        started.ready = True
        started.seconds = round(time.monotonic() - began, 1)
        state.save(self.emulator.state, started)
        self.say(f"{host.name}: up on {disk.release} after {started.seconds:.0f} s (from {started.started_from})")
        return started

    def _recipe(self, host: Host, disk: Disk) -> object:
        return [host.name, disk.folder.name, self.emulator.root.name, self._words(host, disk, 0), warm_up(host)]

    def _words(self, host: Host, disk: Disk, port: int) -> list[str]:
        return words(host, disk, self.accel, port, self.emulator.inside)

    def _boot(self, host: Host, disk: Disk) -> state.Started:
        for image in images(host, disk):
            self.emulator.make_overlay(image.backing, image.name)
        self.say(f"{host.name}: booting {disk.release} ({self.accel})")
        started = self._run(host, disk, [], "boot")
        self._wait_for_ssh(started, BOOT_DEADLINE)
        self.say(f"{host.name}: ssh answers; warming up")
        ssh.command([*self.login(host.name, started.port), warm_up(host)], BOOT_DEADLINE)
        return started

    def _save(self, host: Host, disk: Disk, out: Path) -> None:
        folder = self.emulator.state
        qemu.hmp(folder, host.name, "stop", "savevm warm")
        # The emulator of a stopped guest has written all images; later guests start from the copies.
        for image in images(host, disk):
            run(["cp", "--sparse=always", folder / image.name, out / image.saved])
        qemu.hmp(folder, host.name, "cont")

    def _restore(self, host: Host, disk: Disk, saved: Path) -> state.Started:
        for image in images(host, disk):
            run(["cp", "--sparse=always", saved / image.saved, self.emulator.state / image.name])
        started = self._run(host, disk, ["-loadvm", "warm"], "snapshot")
        try:
            self._wait_for_ssh(started, RESTORE_DEADLINE)
            # The restored clock has the time of the snapshot.
            ssh.command([*self.login(host.name, started.port), f"date -s @{time.time():.3f}"], RESTORE_DEADLINE)
        except LabError as error:
            self.say(f"{host.name}: its snapshot does not come back ({error}); booting instead")
            process.end(started.pid, started.start_time)
            self.store.drop(saved)
            return self._boot(host, disk)
        return started

    def _run(self, host: Host, disk: Disk, extra: list[str], origin: str) -> state.Started:
        folder = self.emulator.state
        log = state.serial_log(folder, host.name)
        log.unlink(missing_ok=True)
        port = ssh.free_port()
        emulated = self.emulator.start([*self._words(host, disk, port), *extra], folder / f"{host.name}.err")
        started = state.Started(
            host.name,
            emulated.pid,
            process.start_time(emulated.pid) or 0,
            port,
            self.accel,
            origin,
            disk.release,
        )
        state.save(folder, started)
        return started

    def _wait_for_ssh(self, started: state.Started, deadline: float) -> None:
        folder = self.emulator.state

        def check_alive() -> None:
            if self.interrupted.is_set():
                raise LabError(f"{started.name}: interrupted while it was starting")
            if started.state(folder) == "died":
                raise LabError(died(folder, started.name))

        try:
            ssh.wait_until(lambda: ssh.greets(started.port), check_alive, deadline, f"{started.name} did not answer")
        except TimeoutError as error:
            last = tail_of(state.serial_log(folder, started.name))
            raise LabError(f"{error}; last on its serial port: {last}") from error


def died(folder: Path, name: str) -> str:
    """Return a message about a guest that ended."""
    last = tail_of(state.serial_log(folder, name)) or "nothing"
    emulator = tail_of(folder / f"{name}.err", 3)
    return f"{name} died; last on its serial port: {last}" + (f"; the emulator said: {emulator}" if emulator else "")
