# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run on a host, from the controller: ask until the host answers, report the progress, collect the result.

The run itself needs no controller: it is supervised on the host. So a connection that is cut is only tried again.
Private to the collection.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import time
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleAuthenticationFailure, AnsibleConnectionFailure
from ansible.utils.display import Display

from ...module_utils._systemtap import limits
from ...module_utils._systemtap.trace.collect import COLLECTED, unit_of
from .._fleet import progress as _progress
from .._transport.edge import NUMBER
from .._transport.pipelined import SourceAction

# The linear and free strategies load this file in the main process, before workers lose its standard output.
_TERMINAL = os.isatty(1)
POLL_SECONDS = 3.0
# The host waits for the end itself from here on, so that it is noticed at once, and Python has started by then.
_LAST_SECONDS = 4.0
_COLLECT_SECONDS = 20.0
# How long an answer may take at first; each that took longer doubles it, so that a slow host is not asked on and on.
ANSWER_SECONDS = 40.0
RETRY_SECONDS = 2.0
# For how long a host that does not answer is asked to start a run, and to remove what has been collected.
PERSIST_SECONDS = 60.0
# The same where other hosts of a wave wait for the task.
WAVE_PERSIST_SECONDS = 20.0
# How long a run may take to end after its duration: all signals and the removal, and some time to reach the host again.
AFTER_SECONDS = 3 * limits.STOP_GRACE_SECONDS + 45
# A shell may print a line of its own before it.
_HOST_TIME = re.compile(r"^(\d{1,12})(\.\d{9})?\s*\Z", re.MULTILINE)
# The command date of busybox may lack nanoseconds: then it prints anything for %N, and the second is not over.
_DATE, _DATE_SECONDS = "date +%s.%N", "date +%s"
_HALF_SECOND = 0.5
# A measurement of the host's clock that is worse than this is made again, and the better one counts. The first command
# on a host also makes the connection.
_GOOD_CLOCK_SECONDS = 0.1
_CLOCK_TRIES = 2
# How long a chunk of the output may take: at most 4 MiB, compressed.
_CHUNK_SECONDS = 60.0

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


class RunAction(SourceAction):
    """The base of the actions that start a run, and that collect it."""

    _supports_async = False
    # When the answer to the question under way is given up, in seconds since 1970.
    _answer_due = 0.0
    _params: dict[str, t.Any]
    _task_vars: dict[str, t.Any]

    def _ask(self, stage: dict[str, t.Any], **more: t.Any) -> dict[str, t.Any]:
        """Run a stage of the module, from its sources where that is possible; return its result."""
        interpreter = self._interpreter(self._task_vars)
        if self._why_not_pipelined(interpreter):
            args = {**self._task.args, **more, "_stage": stage}
            answer = self._run_module(self._task_vars, module_args=args)
        else:
            answer = self._run_sources({**self._params, **more, "_stage": stage}, interpreter, self._task_vars)
        # The module's description came from the task; a copy of it in every result helps nobody.
        answer.pop("invocation", None)
        return answer

    def _measure_clock(self) -> dict[str, float | None]:
        """Return how far the host's clock is ahead of this one, and by how much that may be wrong at most.

        The host reads its clock at some moment between sending the command and receiving its output. A host that tells
        whole seconds read it half a second later than it says, give or take as much.

        :raises AnsibleConnectionFailure: the host does not answer.
        """
        best: dict[str, float | None] = {"skew_seconds": None, "uncertainty_seconds": None}
        least = float("inf")
        command = _DATE
        for _try in range(_CLOCK_TRIES):
            sent, sent_at = time.time(), time.monotonic()
            answer = self._low_level_execute_command(command, sudoable=False)
            half = (time.monotonic() - sent_at) / 2
            found = _HOST_TIME.search(str(answer["stdout"]))
            if found is None:
                command = _DATE_SECONDS
                continue
            rest = 0.0 if found.group(2) else _HALF_SECOND
            if half + rest < least:
                least = half + rest
                skew = float(found.group()) + rest - (sent + half)
                best = {"skew_seconds": round(skew, 4), "uncertainty_seconds": round(least, 4)}
            if half <= _GOOD_CLOCK_SECONDS:
                break
        return best

    def _wait(
        self, ask: t.Callable[[float], dict[str, t.Any]], directory: str, left: float, most: float
    ) -> dict[str, t.Any]:
        """Wait for the end of a run; return the answer of the host that has no progress.

        :param ask: asks the host to wait for so many seconds and for its result.
        :param left: in how many seconds the run is expected to end; 0 asks the host first.
        :param most: in how many seconds it must have ended; an answer of the host that says less or more replaces it.
        :raises AnsibleConnectionFailure: the host did not answer until the run must have ended.
        :raises AnsibleActionFail: the host says that the run goes on long after it must have ended.
        """
        name = self._task_vars.get("inventory_hostname", "")
        told = _progress.ProgressReporter(name, directory, _TERMINAL, display.display)
        started = time.monotonic()
        deadline = started + most
        seconds = _COLLECT_SECONDS if left else _LAST_SECONDS
        patience = ANSWER_SECONDS
        known = left > 0
        while True:
            try:
                if left > _LAST_SECONDS:
                    time.sleep(min(POLL_SECONDS, left - _LAST_SECONDS))
                    left = self._look(directory, told, patience)
                else:
                    with _progress.at_most(seconds + patience, self._task.timeout):
                        answer = ask(seconds)
                    run = answer.get("run") or {}
                    if run.get("progress") is None:
                        return answer
                    seconds = _COLLECT_SECONDS
                    if not known:
                        known = True
                        deadline = time.monotonic() + most_seconds(run.get("left_seconds")) + AFTER_SECONDS
                    left = told.tell(run["progress"])
                if known and time.monotonic() > deadline + AFTER_SECONDS:
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

    def _persist(
        self, ask: t.Callable[[], _Answer], patience: float, persist_seconds: float = PERSIST_SECONDS
    ) -> _Answer:
        """Ask a host until it answers; an answer may take so long at first, until ``_answer_due``.

        :raises AnsibleConnectionFailure: it has not for a while, or it lets nobody in.
        """
        deadline: float | None = None
        while True:
            self._answer_due = time.time() + (self._task.timeout or patience)
            try:
                with _progress.at_most(patience, self._task.timeout):
                    return ask()
            except AnsibleConnectionFailure as error:
                deadline = deadline or time.monotonic() + persist_seconds
                if isinstance(error, AnsibleAuthenticationFailure) or time.monotonic() > deadline:
                    raise
                if isinstance(error, _progress.NoAnswer):
                    # Other hosts of a wave do not wait for one that is silent.
                    patience = 2 * patience if persist_seconds >= PERSIST_SECONDS else persist_seconds
                display.vv(f"{self._task.action}: asking again: {error}")
                self._connect_again()

    def _connect_again(self) -> None:
        time.sleep(RETRY_SECONDS)
        try:
            with _progress.at_most(ANSWER_SECONDS, self._task.timeout):
                self._connection.reset()
        except AnsibleConnectionFailure:
            return

    def _check_output(self) -> None:
        """Check the option ``output`` before anything is asked.

        :raises AnsibleActionFail: it is not a place for files.
        """
        if self._params["output"] is not None:
            _progress.check_directory(self._output_directory())

    def _output_directory(self) -> str:
        return str(self._loader.path_dwim(os.path.expanduser(self._params["output"])))

    def _fetch(
        self, directory: str, run: dict[str, t.Any], limit_bytes: int, stage: t.Mapping[str, t.Any]
    ) -> dict[str, t.Any]:
        """Write the output of the run to the directory that the task names; return the result's ``output``.

        :param stage: what asks the host for a part of the output, without its ``offset``.
        """
        host = str(self._task_vars.get("inventory_hostname", ""))
        name = os.path.basename(directory).rpartition("-")[0]
        path = _progress.output_path(self._output_directory(), host, name)

        def more(offset: int) -> t.Any:
            part = {**stage, "wait": 0, "output": True, "offset": offset}
            answer = self._persist(lambda: self._ask(part), _CHUNK_SECONDS, WAVE_PERSIST_SECONDS)
            if answer.get("failed"):
                raise _progress.not_saved(path, str(answer.get("msg")))
            return (answer.get("run") or {}).get("output")

        return _progress.save_output(path, run.pop("output", None), more, run, limit_bytes)

    def _forget(self, directory: str, persist_seconds: float = PERSIST_SECONDS) -> None:
        """Remove the run's directory now that its result is here; the next run does it otherwise."""
        self._try_command(removal_command(directory, "/run/systemd/transient/" + unit_of(directory)), persist_seconds)

    def _note_collected(self, directory: str) -> None:
        """Have the host know that the result is here: until then, it keeps the result as one that nobody collected."""
        path = shlex.quote(directory)
        self._try_command(f"[ ! -d {path} ] || touch {path}/{COLLECTED}", WAVE_PERSIST_SECONDS)

    def _try_command(self, command: str, persist_seconds: float) -> None:
        """Run a shell command as root that the result does not depend on."""
        patience = min(ANSWER_SECONDS, persist_seconds)
        try:
            self._persist(lambda: self._low_level_execute_command(command, sudoable=True), patience, persist_seconds)
        except AnsibleConnectionFailure as error:
            display.vv(f"{self._task.action}: the host did not answer to {command!r}: {error}")


def most_seconds(value: t.Any) -> float:
    """Return for how long a run goes on at most, from what its host says of that, within what is possible."""
    most = limits.MAX_AHEAD_SECONDS + limits.LOAD_SECONDS + limits.MAX_DURATION_SECONDS
    return min(max(float(value), 0.0), most) if NUMBER.fits(value) and not math.isnan(value) else most
