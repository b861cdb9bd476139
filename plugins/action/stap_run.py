# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a run on the host, ship a missing module, report the progress, and collect the result.

The run itself needs no controller: it is supervised on the host. So a connection that is cut is only tried again.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleAuthenticationFailure, AnsibleConnectionFailure
from ansible.utils.display import Display
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap import limits
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace.collect import run_directory, unit_of
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import progress as _progress
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.modules import cache_path, has_file
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.module_action import refused
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.pipelined import SourceAction

# The linear and free strategies load this file in the main process, before workers lose its standard output.
_TERMINAL = os.isatty(1)
_POLL_SECONDS = 3.0
# The host waits for the end itself from here on, so that it is noticed at once, and Python has started by then.
_LAST_SECONDS = 4.0
_COLLECT_SECONDS = 20.0
# How long an answer may take at first; each that took longer doubles it, so that a slow host is not asked on and on.
_ANSWER_SECONDS = 40.0
_RETRY_SECONDS = 2.0
# A start cleans up after older runs, waits for systemd, and may have to receive the module.
_START_SECONDS = 120.0
# For how long a host that does not answer is asked to start a run, and to remove what has been collected.
_PERSIST_SECONDS = 60.0
# How long a run may take to end after its duration: all signals and the removal, and some time to reach the host again.
_AFTER_SECONDS = 3 * limits.STOP_GRACE_SECONDS + 45

_Answer = t.TypeVar("_Answer")

display = Display()


def removal_command(directory: str, unit: str) -> str:
    """Return the shell command that removes the directory of a run, and the two above it if they are empty.

    First the unit has to be gone: systemd removes its file a moment after the result has been written. The directory
    stays as in :func:`.collect.remove_run_directory`.

    :param unit: the file of the unit.
    """
    base = os.path.dirname(directory)
    run, above, top, file = map(shlex.quote, (directory, base, os.path.dirname(base), unit))
    return (
        f"i=0; while [ $i -lt 50 ] && [ -e {file} ]; do i=$((i+1)); sleep 0.1; done;"
        f" [ -e {run}/holds ] || grep -qsF ' '{run}/debugfs' ' /proc/self/mounts || rm -rf --one-file-system -- {run};"
        f" rmdir -- {above} {top} 2>/dev/null; true"
    )


class ActionModule(SourceAction):
    _supports_async = False

    def _run_task(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        build = self._task.args.get("module")
        if not isinstance(build, dict) or not {"name", "sha256"} <= set(build):
            problem = "This is not a module that tapvirt.host.stap_module returned."
            raise refused(InvalidInput("module", build, problem))
        if self._task.check_mode:
            return self._run_module(task_vars)
        self._params = self._checked_options(self._module())
        self._task_vars = task_vars
        if self._params["output"] is not None:
            _progress.check_directory(self._output_directory())
        try:
            return self._traced(build)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _traced(self, build: dict[str, t.Any]) -> dict[str, t.Any]:
        # Named here, so that a start whose answer was lost can be asked for again and is the same run.
        stage = {"do": "start", "diff": self._task.diff, "run": secrets.token_hex(8)}
        begun = self._persist(lambda: self._ask(stage), _START_SECONDS)
        if (begun.get("run") or {}).get("ship"):
            begun = self._persist(lambda: self._ask(stage, _shipped=self._ship(build)), _START_SECONDS)
        # The module's description came from the task; a copy of it in every result helps nobody.
        begun.pop("invocation", None)
        if begun.get("failed") or "supervisor" not in (begun.get("run") or {}):
            return begun
        # It is removed in the end, so it is not the host's to name.
        directory = run_directory(build["name"], stage["run"])
        ended = self._collect(directory)
        ended.pop("invocation", None)
        if "outcome" in (ended.get("run") or {}):
            if self._params["output"] is not None:
                ended["run"]["output"] = self._fetch(build["name"], directory, ended["run"])
            self._forget(directory)
            ended["run"].update(begun["run"])
        return {**ended, **{key: begun[key] for key in ("changed", "plan", "diff") if key in begun}}

    def _ask(self, stage: dict[str, t.Any], **more: t.Any) -> dict[str, t.Any]:
        """Run a stage of the module, from its sources where that is possible."""
        interpreter = self._interpreter(self._task_vars)
        if self._why_not_pipelined(interpreter):
            args = {**self._task.args, **more, "_stage": stage}
            return self._run_module(self._task_vars, module_args=args)
        return self._run_sources({**self._params, **more, "_stage": stage}, interpreter)

    def _collect(self, directory: str) -> dict[str, t.Any]:
        """Wait for the run's end, and return its result.

        :raises AnsibleConnectionFailure: the host did not answer until the run must have ended.
        :raises AnsibleActionFail: the host says that the run goes on long after it must have ended.
        """
        name = self._task_vars.get("inventory_hostname", "")
        told = _progress.ProgressReporter(name, directory, _TERMINAL, display.display)
        started = time.monotonic()
        deadline = started + limits.LOAD_SECONDS + self._params["duration_seconds"] + _AFTER_SECONDS
        stage = {"do": "collect", "directory": directory, "wait": _COLLECT_SECONDS, "offset": 0}
        stage["output"] = self._params["output"] is not None
        left = self._params["duration_seconds"] + _POLL_SECONDS
        patience = _ANSWER_SECONDS
        while True:
            try:
                if left > _LAST_SECONDS:
                    time.sleep(min(_POLL_SECONDS, left - _LAST_SECONDS))
                    left = self._look(directory, told, patience)
                else:
                    with _progress.at_most(_COLLECT_SECONDS + patience, self._task.timeout):
                        answer = self._ask(stage)
                    progress = (answer.get("run") or {}).get("progress")
                    if progress is None:
                        return answer
                    left = told.tell(progress)
                if time.monotonic() > deadline + _AFTER_SECONDS:
                    raise AnsibleActionFail(_progress.endless(directory, time.monotonic() - started))
            except AnsibleConnectionFailure as error:
                if time.monotonic() > deadline:
                    raise AnsibleConnectionFailure(
                        _progress.unreachable_message(directory, time.monotonic() - started)
                    ) from error
                patience *= 2 if isinstance(error, _progress.NoAnswer) else 1
                told.cut(str(error))
                self._connect_again()

    def _look(self, directory: str, told: _progress.ProgressReporter, patience: float) -> float:
        """Read how far the run is, as cheaply as can be; return after how many seconds it is to end (0: it has)."""
        quoted = shlex.quote(directory)
        command = f"cd {quoted} && : >seen; cat {quoted}/progress.json"
        with _progress.at_most(patience, self._task.timeout):
            answer = self._low_level_execute_command(command, sudoable=True)
        try:
            progress = json.loads(str(answer["stdout"]))
        except (ValueError, RecursionError):
            # Not told yet, or nobody is there to tell: whatever it is, the host's own look says it in full.
            return 0.0
        return told.tell(progress)

    def _persist(self, ask: t.Callable[[], _Answer], patience: float) -> _Answer:
        """Ask a host until it answers; an answer may take so long at first.

        :raises AnsibleConnectionFailure: it has not for a while, or it lets nobody in.
        """
        deadline: float | None = None
        while True:
            try:
                with _progress.at_most(patience, self._task.timeout):
                    return ask()
            except AnsibleConnectionFailure as error:
                deadline = deadline or time.monotonic() + _PERSIST_SECONDS
                if isinstance(error, AnsibleAuthenticationFailure) or time.monotonic() > deadline:
                    raise
                patience *= 2 if isinstance(error, _progress.NoAnswer) else 1
                display.vv(f"stap_run: asking again: {error}")
                self._connect_again()

    def _connect_again(self) -> None:
        time.sleep(_RETRY_SECONDS)
        try:
            with _progress.at_most(_ANSWER_SECONDS, self._task.timeout):
                self._connection.reset()
        except AnsibleConnectionFailure:
            return

    def _output_directory(self) -> str:
        return str(self._loader.path_dwim(os.path.expanduser(self._params["output"])))

    def _fetch(self, name: str, directory: str, run: dict[str, t.Any]) -> dict[str, t.Any]:
        """Write the output of the run to the directory that the task names."""
        host = str(self._task_vars.get("inventory_hostname", ""))
        path = _progress.output_path(self._output_directory(), host, name)

        def more(offset: int) -> t.Any:
            stage = {"do": "collect", "directory": directory, "wait": 0, "output": True, "offset": offset}
            answer = self._ask(stage)
            if answer.get("failed"):
                raise _progress.not_saved(path, str(answer.get("msg")))
            return (answer.get("run") or {}).get("output")

        return _progress.save_output(path, run.pop("output", None), more, run, self._params["max_output_bytes"])

    def _forget(self, directory: str) -> None:
        """Remove the run's directory now that its result is here; the next run does it otherwise."""
        command = removal_command(directory, "/run/systemd/transient/" + unit_of(directory))
        try:
            self._persist(lambda: self._low_level_execute_command(command, sudoable=True), _ANSWER_SECONDS)
        except AnsibleConnectionFailure as error:
            display.vv(f"stap_run: {directory} is still there: {error}")

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
