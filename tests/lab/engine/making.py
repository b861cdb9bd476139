# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each host is made of, each part made once and as early as it can be."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from . import builder, firmware, kernels, process, qemu, roots, state
from .describe import Description, Host
from .errors import LabError
from .guest import GuestMaker, died
from .kernels import Kernel
from .machines import Disk
from .ssh import Keys
from .store import Store

Made = TypeVar("Made")


class Making:
    """One start of hosts. Each part is a future with a name; all that need the part wait for the same future."""

    def __init__(
        self,
        description: Description,
        store: Store,
        keys: Keys,
        state_dir: Path,
        login: Callable[[str, int], list[str]],
        say: Callable[[str], None],
        fresh: bool,
    ) -> None:
        self._description = description
        self._store = store
        self._keys = keys
        self._state_dir = state_dir
        self._login = login
        self._say = say
        self._fresh = fresh
        self._parts: dict[str, Future[Any]] = {}
        self._guard = threading.Lock()
        self._interrupted = threading.Event()
        # More threads than parts, since parts wait for each other.
        self._pool = ThreadPoolExecutor(max_workers=64)

    def up(self, hosts: list[Host]) -> None:
        """Brings up these hosts side by side; one that fails does not stop the others."""
        try:
            # Start the longest downloads first; the rest is made while they run.
            if any(host.kind != "xen" for host in hosts):
                for suite in self._kernels_for(hosts):
                    self._kernel(suite)
            wanted = [self._part(f"host {host.name}", partial(self._host, host, hosts)) for host in hosts]
            errors = [error for error in (part.exception() for part in wanted) if error is not None]
        finally:
            # After Ctrl-C: all that wait for a guest stop waiting.
            self._interrupted.set()
            self._pool.shutdown(cancel_futures=True)
        for error in errors:
            if not isinstance(error, LabError):
                raise error
        if errors:
            raise LabError("; ".join(dict.fromkeys(str(error) for error in errors)))

    def _part(self, name: str, make: Callable[[], Made]) -> Future[Made]:
        with self._guard:
            if name not in self._parts:
                self._parts[name] = self._pool.submit(make)
            return self._parts[name]

    def _host(self, host: Host, hosts: list[Host]) -> None:
        record = state.load(self._state_dir, host.name)
        kernels_wanted = self._kernels_for(hosts) if host.kind == "builder" else []
        if record is not None:
            condition = record.state(self._state_dir)
            if condition == "running" and set(kernels_wanted) <= set(record.kernels):
                return
            if condition == "died":
                self._say(f"{died(self._state_dir, host.name)}; starting it again")
            elif condition == "starting":
                self._say(f"{host.name}: an earlier start was interrupted; starting it again")
            else:
                self._say(f"{host.name}: starting again, to serve more kernels")
                kernels_wanted = list(dict.fromkeys([*record.kernels, *kernels_wanted]))
            process.end(record.pid, record.start_time)
            state.forget(self._state_dir, host.name)
        if host.kind == "builder":
            self._start_builder(host, kernels_wanted)
        else:
            self._start_guest(host)

    def _kernels_for(self, hosts: list[Host]) -> list[str]:
        """Return the kernels that these hosts need; a builder without other hosts serves the kernels of all."""
        return self._description.kernels_for(hosts)

    def _kernel(self, suite: str) -> Future[Kernel]:
        return self._part(f"kernel {suite}", partial(kernels.fetch, self._store, suite))

    def _root(self, name: str) -> Future[Path]:
        root = self._description.roots[name]
        recipe = roots.bootstrap_recipe(root)
        return self._part(
            f"root {name}",
            lambda: self._store.ensure(f"root-{name}", recipe, lambda out: roots.bootstrap(root, out)),
        )

    def _start_builder(self, host: Host, suites: list[str]) -> None:
        root = self._root("builder")
        layers = [self._part(f"layer {suite}", partial(self._layer, suite)) for suite in suites]
        config = self._store.ensure(
            "builder-config",
            [roots.FILES, self._keys.recipe()],
            lambda out: roots.configure(out, roots.FILES, (), self._keys.files()),
        )
        systemtap_cache = self._store.folder / f"systemtap-{root.result().name}"
        systemtap_cache.mkdir(exist_ok=True)
        systemtap_cache.touch()
        started = builder.start(
            self._store.folder, self._state_dir, host.name,
            [config, *(layer.result() for layer in layers), root.result()],
            systemtap_cache, suites, self._login,
        )  # fmt: skip
        self._say(f"{host.name}: up after {started.seconds:.0f} s, for the kernels of {', '.join(suites)}")

    def _layer(self, suite: str) -> Path:
        return kernels.builder_layer(self._store, self._kernel(suite).result())

    def _start_guest(self, host: Host) -> None:
        if host.kind == "xen":
            # Xen is only known to run on an emulated processor.
            disk, accel = self._part("disk xen", self._xen_disk), "tcg"
        else:
            suite = host.kernel or ""
            root = "selinux" if host.selinux else "guest"
            disk = self._part(f"disk {suite} {root}", partial(self._disk, suite, root))
            accel = self._part("accelerator", partial(self._accelerator, suite)).result()
        maker = GuestMaker(self._store, self._emulator(), accel, self._login, self._say, self._interrupted)
        made = disk.result()
        if host.signed_modules:
            made = dataclasses.replace(made, firmware=self._firmware(host))
        maker.start(host, made, self._fresh)

    def _firmware(self, host: Host) -> Path:
        """Return the firmware; copy the key that it trusts beside the inventory, to sign modules with."""
        made = firmware.fetch(self._store, self._description.roots["guest"].suite)
        for name in ("key", "certificate"):
            shutil.copyfile(made / f"{name}.pem", self._state_dir / f"{host.name}.{name}.pem")
        return made

    def _emulator(self) -> qemu.Emulator:
        return qemu.Emulator(self._root("guest").result(), self._state_dir, self._store.folder)

    def _accelerator(self, suite: str) -> str:
        kernel = self._kernel(suite).result()
        accel = qemu.accelerator(self._emulator(), kernel.tree / f"boot/vmlinuz-{kernel.release}")
        self._say(f"guests run by {accel}")
        return accel

    def _disk(self, suite: str, root_name: str) -> Disk:
        kernel = self._kernel(suite)
        root = self._root(root_name).result()
        fetched = kernel.result()
        name = suite if root_name == "guest" else f"{suite}-{root_name}"
        return self._make_disk(name, root, fetched.tree, fetched.release, fetched.version)

    def _xen_disk(self) -> Disk:
        root = self._root("xen").result()
        return self._make_disk("xen", root, None, roots.installed_kernel(root), "")

    def _make_disk(self, name: str, root: Path, kernel_tree: Path | None, release: str, version: str) -> Disk:
        recipe = [root.name, release, version, roots.GUEST_FILES, list(roots.MASKED), self._keys.recipe()]
        folder = self._store.ensure(
            f"disk-{name}",
            recipe,
            lambda out: roots.make_disk(root, kernel_tree, release, self._keys.files(), out),
        )
        return Disk(folder, release)
