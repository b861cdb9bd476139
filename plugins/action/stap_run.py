# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a run on the host, ship a missing module, and wait for the result unless the task leaves that to another."""

from __future__ import annotations

import os
import secrets
import time
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap import limits
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace.collect import run_directory
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace.schedule import check_start_at
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import progress as _progress
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.modules import cache_path, has_file
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.run_action import (
    AFTER_SECONDS,
    ANSWER_SECONDS,
    PERSIST_SECONDS,
    POLL_SECONDS,
    WAVE_PERSIST_SECONDS,
    RunAction,
)
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.module_action import refused

# A start cleans up after older runs, and waits for systemd. In a wave, other hosts wait for the task.
_START_SECONDS = 120.0
_WAVE_START_SECONDS = 60.0
# A host whose clock is known less exactly than this gets a warning if it is to start at a moment.
_ROUGH_CLOCK_SECONDS = 0.5


class ActionModule(RunAction):
    def _run_task(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        build = self._task.args.get("module")
        if not isinstance(build, dict) or not {"name", "sha256"} <= set(build):
            problem = "This is not a module that tapvirt.host.stap_module returned."
            raise refused(InvalidInput("module", build, problem))
        self._params = self._checked_options(self._module())
        self._task_vars = task_vars
        try:
            check_start_at(self._params["start_at"], time.time())
        except InvalidInput as error:
            raise refused(error) from None
        if self._task.check_mode:
            return self._run_module(task_vars)
        self._check_output()
        try:
            return self._traced(build)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _traced(self, build: dict[str, t.Any]) -> dict[str, t.Any]:
        wait = self._params["wait"]
        patience, persist = (_START_SECONDS, PERSIST_SECONDS) if wait else (_WAVE_START_SECONDS, WAVE_PERSIST_SECONDS)
        clock = self._persist(self._measure_clock, ANSWER_SECONDS, persist)
        if self._params["start_at"] is not None and clock["skew_seconds"] is None:
            problem = "This host's command date does not print its time, so the host cannot start at a given moment."
            raise refused(InvalidInput("start_at", self._params["start_at"], problem, "Leave start_at out."))
        # Named here, so that a start whose answer was lost can be asked for again and is the same run.
        stage = {"do": "start", "diff": self._task.diff, "run": secrets.token_hex(8), "clock": clock}
        # It is removed in the end, so it is not the host's to name.
        directory = run_directory(build["name"], stage["run"])

        def start(**more: t.Any) -> dict[str, t.Any]:
            """Ask the host to start the run; a question that arrives when nobody waits any more starts nothing."""
            begun = time.monotonic()
            try:
                return self._persist(lambda: self._ask({**stage, "until": self._answer_due}, **more), patience, persist)
            except AnsibleConnectionFailure as error:
                seconds = time.monotonic() - begun
                message = _progress.unanswered_start_message(directory, seconds, str(error))
                raise AnsibleConnectionFailure(message) from error

        begun = start()
        if (begun.get("run") or {}).get("ship"):
            begun = start(_shipped=self._persist(lambda: self._ship(build), patience, persist))
        if begun.get("failed") or "run_id" not in (begun.get("run") or {}):
            return begun
        begun["run"].update(run_id=os.path.basename(directory), clock=clock)
        result = self._ended(directory, begun) if wait else begun
        uncertainty = clock["uncertainty_seconds"] or 0.0
        if self._params["start_at"] is not None and uncertainty >= _ROUGH_CLOCK_SECONDS:
            result["warnings"] = [*result.get("warnings", ()), _rough_clock(uncertainty)]
        return result

    def _ended(self, directory: str, begun: dict[str, t.Any]) -> dict[str, t.Any]:
        """Wait for the end of the run, and return its result."""
        stage = {"do": "collect", "directory": directory, "offset": 0, "output": self._params["output"] is not None}
        ahead = max((self._params["start_at"] or 0) - time.time(), 0)
        left = ahead + self._params["duration_seconds"] + POLL_SECONDS
        most = ahead + limits.LOAD_SECONDS + self._params["duration_seconds"] + AFTER_SECONDS
        ended = self._wait(lambda seconds: self._ask({**stage, "wait": seconds}), directory, left, most)
        run = ended.get("run") or {}
        if "outcome" in run:
            if stage["output"]:
                run["output"] = self._fetch(directory, run, self._params["max_output_bytes"], stage)
            self._forget(directory)
            run.update(run_id=begun["run"]["run_id"], clock=begun["run"]["clock"])
        return {**ended, **{key: begun[key] for key in ("changed", "plan", "diff") if key in begun}}

    def _ship(self, build: dict[str, t.Any]) -> str:
        local = cache_path(str(build["sha256"]))
        if not has_file(local, build["sha256"]):
            problem = f"The controller's cache does not contain this module ({local})."
            raise refused(InvalidInput("module", build["name"], problem, "Run stap_module in the same job."))
        # Made once, so that a second try leaves no second one behind.
        folder = self._connection._shell.tmpdir or self._make_tmp_path()
        remote = str(self._connection._shell.join_path(folder, os.path.basename(local)))
        self._transfer_file(local, remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return remote


def _rough_clock(seconds: float) -> str:
    """Return the warning for a host that cannot be told exactly when to start."""
    return (
        f"The clock of this host is known to {seconds:.1f} s only, because the host answers slowly or its command date"
        " prints whole seconds. Its start may differ from start_at by as much."
    )
