# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The moment at which the hosts of a wave begin, and the wait for its end.

Private to the collection.
"""

from __future__ import annotations

import math
import os
import time
import typing as t

from ansible.utils.display import Display

from ...module_utils._core.errors import InvalidInput
from ...module_utils._systemtap.limits import MAX_DURATION_SECONDS
from .._fleet.status import CHANNEL

#: How far ahead the start of a wave is at most, in seconds; ``stap_run`` takes 900.
MOST_AHEAD_SECONDS = 600.0
# A start is a module of Python and may ship the kernel module; the measured task is a shell command.
_STARTS_PER_ROUND = 4.0
_FIRST_TURN_SECONDS = 1.5
_TURN_SECONDS = 3.0
_MOST_TURN_SECONDS = 10.0
# What a host needs after the end of a run to remove the module and to write the result.
_REMOVAL_SECONDS = 0.5
_STEP_SECONDS = 1.0
_TERMINAL_SECONDS = 2.5
_LOG_SECONDS = 30.0
# The controller loads this file in the main process, before workers lose its standard output.
IS_TERMINAL = os.isatty(1)
display = Display()


def trace_start_at(hosts: int, forks: int, round_seconds: float | str) -> float | None:
    """Return when the hosts of a wave are to be armed, in seconds since 1970; None where a single host begins at once.

    It is so far ahead that the last host has been started by then. A host that was not is armed later.

    :param hosts: how many hosts are started.
    :param forks: how many of them Ansible works on at a time.
    :param round_seconds: how long a short task took on all of them.
    """
    if hosts < 2:
        return None
    turns = math.ceil(hosts / max(forks, 1))
    measured = min(_STARTS_PER_ROUND * float(round_seconds), _MOST_TURN_SECONDS * turns)
    ahead = max(_FIRST_TURN_SECONDS + _TURN_SECONDS * (turns - 1), measured)
    return time.time() + min(ahead, MOST_AHEAD_SECONDS)


def trace_moment(start_at: t.Any, began: float | str) -> float | None:
    """Return when the hosts of this trace are to be armed; None where they begin at once.

    A moment before the trace itself is that of an earlier trace, or was given as a variable: then the role did not
    choose one, because a condition skipped its first host, or could not set it. This is a warning.

    :param start_at: the fact ``trace_start_at``; 0 where it is not set, None or empty where the hosts need none.
    :param began: when the role began on this host, in seconds since 1970.
    :raises InvalidInput: the variable is no time.
    """
    if start_at is None or start_at in ("", "None"):
        return None
    try:
        moment = float(start_at)
    except (TypeError, ValueError):
        moment = math.nan
    if not math.isfinite(moment):
        raise InvalidInput("trace_start_at", start_at, "The role chooses the moment itself.", "Remove the variable.")
    if moment > float(began):
        return moment
    display.warning(
        "The role trace could not choose the moment at which the hosts begin, so they begin one after the other. Do not"
        " set trace_start_at. If a condition (when) of roles or import_role skips the first host of the play, use"
        " include_role instead."
    )
    return None


def trace_wait(start_at: float | str, duration: float | str, hosts: int, host: str) -> str:
    """Wait until the runs of a wave are over, and report the progress; return a sentence.

    The progress goes to the callback plugin tapvirt.host.progress, else it is a line now and then.

    :param start_at: when they were to be armed, in seconds since 1970.
    :param duration: for how many seconds they trace.
    :param host: the host whose task waits for all of them.
    """
    begins = min(max(float(start_at) - time.time(), -MAX_DURATION_SECONDS), MOST_AHEAD_SECONDS)
    seconds = min(float(duration), MAX_DURATION_SECONDS)
    begun = time.monotonic() + begins
    end = begun + seconds + _REMOVAL_SECONDS
    shown = time.monotonic() - (_TERMINAL_SECONDS if IS_TERMINAL else 0.0)
    while (now := time.monotonic()) < end:
        text = wait_text(now - begun, seconds, hosts)
        if not CHANNEL.tell(host, text) and now - shown >= (_TERMINAL_SECONDS if IS_TERMINAL else _LOG_SECONDS):
            display.display(text)
            shown = now
        time.sleep(min(_STEP_SECONDS, end - now))
    return f"The time of the runs on {hosts} hosts is over."


def wait_text(elapsed: float, seconds: float, hosts: int) -> str:
    """Return how far a wave is, from the time since its start (negative before)."""
    if elapsed < 0:
        return f"{hosts} hosts begin in {-elapsed:.0f} s"
    return f"tracing on {hosts} hosts, {min(elapsed, seconds):.0f} of {seconds:g} s"
