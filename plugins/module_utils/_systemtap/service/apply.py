# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry out the steps of a plan for tracers that stay. Private to the collection."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ..._core import command
from ..._core.disk import disk_failure
from ..._core.errors import TapvirtError, as_sentence
from ..._core.plan import Plan
from ..._core.write import make_directories, sync_directory, write_atomic
from ..supervise import cleanup, supervisor
from ..supervise.tracer_daemon import SysctlGuard
from .model import (
    UNITS,
    Wanted,
    directory_of,
    module_path,
    output_directory,
    sha256_of,
    spec_of,
    spec_text,
    unit_name,
    unit_text,
)
from .plan import Program, Step

_START_SECONDS = 150
_STOP_SECONDS = 120


class Applier:
    """Takes the steps of one task. ``shipped`` says where the modules that came with it lie, by their SHA-256."""

    def __init__(self, wanted: t.Sequence[Wanted], program: Program, shipped: t.Mapping[str, str]) -> None:
        self._wanted = {one.name: one for one in wanted}
        self._program = program
        self._shipped = shipped
        self._actions: dict[str, t.Callable[[Wanted, Step], None]] = {
            "module": self._module,
            "remove": self._remove,
            "program": self._write_program,
            "spec": self._spec,
            "unit": self._unit,
            "enable": self._enable,
            "disable": self._disable,
            "start": self._start,
            "restart": self._restart,
            "stop": self._stop,
            "forget": self._forget,
            "unload": self._unload,
            "release": self._release,
            "remove_unit": self._remove_unit,
            "remove_directory": self._remove_directory,
            "remove_output": self._remove_output,
        }
        #: Why a tracer's steps could not be taken, by its name.
        self.errors: dict[str, TapvirtError] = {}

    def apply(self, planned: Plan) -> None:
        """Take the steps; when one fails, the further ones of its tracer are left out, and those of others are not."""
        for step in planned:
            if not isinstance(step, Step) or step.service in self.errors:
                continue
            try:
                self._actions[step.action](self._wanted[step.service], step)
            except (TapvirtError, OSError) as error:
                text = disk_failure(error) if isinstance(error, OSError) else None
                self.errors[step.service] = step_failure(step, f"failed: {text or error}")

    def _module(self, one: Wanted, step: Step) -> None:
        build = one.builds[step.argument]
        source = self._shipped.get(build["sha256"])
        if source is None:
            raise TapvirtError("The module was not shipped to this host.")
        with open(source, "rb") as stream:
            data = stream.read()
        if sha256_of(data) != build["sha256"]:
            raise TapvirtError("The module arrived with a sha256 that differs from that of its build.")
        self._write(one, module_path(build), data)

    def _write(self, one: Wanted, name: str, data: bytes) -> None:
        path = os.path.join(directory_of(one.name), name)
        make_directories(directory_of(one.name), 0o700)
        make_directories(os.path.dirname(path))
        write_atomic(path, data, mode=0o644)

    def _remove(self, one: Wanted, step: Step) -> None:
        path = os.path.join(directory_of(one.name), step.argument)
        os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(path))

    def _write_program(self, one: Wanted, _step: Step) -> None:
        self._write(one, "program.pyz", self._program.data)

    def _spec(self, one: Wanted, _step: Step) -> None:
        self._write(one, "service.json", spec_text(spec_of(one, self._program.sha256)).encode())

    def _unit(self, one: Wanted, _step: Step) -> None:
        write_atomic(f"/{UNITS}/{unit_name(one.name)}", unit_text(one.name, self._program.python).encode())
        _systemctl("daemon-reload")

    def _enable(self, one: Wanted, _step: Step) -> None:
        _systemctl("enable", unit_name(one.name))

    def _disable(self, one: Wanted, _step: Step) -> None:
        _systemctl("disable", unit_name(one.name))

    def _start(self, one: Wanted, _step: Step) -> None:
        self._begin(one, "start")

    def _restart(self, one: Wanted, _step: Step) -> None:
        self._begin(one, "restart")

    def _begin(self, one: Wanted, verb: str) -> None:
        unit = unit_name(one.name)
        # Failed starts of before do not count for this one.
        command.run(["systemctl", "reset-failed", unit])
        result = command.run(["systemctl", verb, unit], timeout_seconds=_START_SECONDS)
        if result.rc != 0:
            state = supervisor.read_json(os.path.join(directory_of(one.name), "state.json"))
            raise TapvirtError(state.get("reason") or result.stderr.strip())

    def _stop(self, one: Wanted, step: Step) -> None:
        _systemctl("stop", unit_name(one.name), timeout_seconds=_STOP_SECONDS)
        command.run(["systemctl", "reset-failed", unit_name(one.name)])
        # Where systemd killed the tracer's own cleanup, nothing else gives the sysctls back.
        self._release(one, step)

    def _forget(self, one: Wanted, _step: Step) -> None:
        path = os.path.join(directory_of(one.name), "state.json")
        supervisor.write_json(path, dict(supervisor.read_json(path), state="stopped"))
        command.run(["systemctl", "reset-failed", unit_name(one.name)])

    def _unload(self, _one: Wanted, step: Step) -> None:
        with cleanup.hold_module(str(step.before)):
            result = command.run(["staprun", "-d", str(step.before)])
        if result.rc != 0:
            raise TapvirtError(result.stderr.strip() or f"staprun -d ended with status {result.rc}")

    def _release(self, one: Wanted, _step: Step) -> None:
        left = SysctlGuard(one.name).leave()
        if left:
            raise TapvirtError("; ".join(left))

    def _remove_unit(self, one: Wanted, _step: Step) -> None:
        os.unlink(f"/{UNITS}/{unit_name(one.name)}")
        sync_directory("/" + UNITS)
        _systemctl("daemon-reload")
        command.run(["systemctl", "reset-failed", unit_name(one.name)])

    def _remove_directory(self, one: Wanted, _step: Step) -> None:
        left = cleanup.unmount(directory_of(one.name))
        if left:
            raise TapvirtError("; ".join(left))
        cleanup.remove_tree(directory_of(one.name))

    def _remove_output(self, one: Wanted, _step: Step) -> None:
        cleanup.remove_tree(output_directory(one.name), parents=1)


def step_failure(step: Step, outcome: str) -> TapvirtError:
    """Return the error of a step; ``outcome`` is the rest of the sentence."""
    what = step.what.partition(": ")[2]
    return TapvirtError(as_sentence(f"Service {step.service!r}: the step {what!r} ({step.how}) {outcome}"))


def _systemctl(*words: str, timeout_seconds: float = command.DEFAULT_TIMEOUT_SECONDS) -> None:
    result = command.run(["systemctl", *words], timeout_seconds=timeout_seconds)
    if result.rc != 0:
        raise TapvirtError(result.stderr.strip() or f"systemctl ended with status {result.rc}")
