# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collect the result of a run that a task of stap_run started and did not wait for."""

from __future__ import annotations

import typing as t

from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap import limits
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace.collect import directory_of
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.run_action import (
    ANSWER_SECONDS,
    WAVE_PERSIST_SECONDS,
    RunAction,
)
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.module_action import refused


class ActionModule(RunAction):
    def _run_task(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        self._params = self._checked_options(self._module())
        self._task_vars = task_vars
        try:
            directory = directory_of(self._params["run_id"])
        except InvalidInput as error:
            raise refused(error) from None
        self._check_output()
        wants_output = self._params["output"] is not None and not self._task.check_mode
        stage = {"offset": 0, "output": wants_output}

        def ask(seconds: float) -> dict[str, t.Any]:
            return self._ask({**stage, "wait": seconds})

        if self._params["wait"] and not self._task.check_mode:
            result = self._wait(ask, directory, 0, WAVE_PERSIST_SECONDS)
        else:
            result = self._persist(lambda: ask(0), ANSWER_SECONDS, WAVE_PERSIST_SECONDS)
        run = result.get("run") or {}
        run.pop("left_seconds", None)
        if "outcome" in run and not self._task.check_mode:
            if wants_output:
                run["output"] = self._fetch(directory, run, limits.KEPT_BYTES, stage)
            # From here on the result is on the controller.
            if self._params["remove"]:
                self._forget(directory, WAVE_PERSIST_SECONDS)
            else:
                self._note_collected(directory)
        return result
