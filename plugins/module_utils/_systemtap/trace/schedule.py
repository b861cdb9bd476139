# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a run starts staprun, so that its probes are armed at a moment that many hosts have in common.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import typing as t

from ..._core.errors import InvalidInput
from .. import limits

_LOAD_FILE = "load.json"
# How many other modules tell how long one takes that was never loaded here.
_ASKED_MODULES = 5
_EARLIER_HINT = "Give a moment that leaves time to start the run on every host, such as 30 seconds from now."


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When a run starts and is expected to end, in seconds since 1970 by the host's clock.

    ``start`` is when staprun is started; ``is_planned`` whether the supervisor waits for that.
    """

    accepted: float
    start: float
    end: float
    is_planned: bool

    @property
    def wait_seconds(self) -> float:
        """Return for how long the supervisor waits."""
        return self.start - self.accepted if self.is_planned else 0.0

    def times(self) -> dict[str, float]:
        """Return the part of the result that is known before the run."""
        return {"accepted": self.accepted, "start": self.start, "end": self.end}


def check_start_at(start_at: float | None, now: float) -> None:
    """Check the option ``start_at``: None, or a moment of the same clock as ``now`` that is not far from it.

    A moment that has just passed is no mistake: of many hosts, the last ones may be reached too late. They start at
    once.

    :raises InvalidInput: it is neither.
    """
    if start_at is None:
        return
    ahead = start_at - now
    if not math.isfinite(ahead):
        raise InvalidInput("start_at", start_at, "The start is not a number of seconds since 1970.")
    if ahead < -limits.MAX_AHEAD_SECONDS:
        problem = f"The start was {-ahead:.0f} seconds ago, and at most {limits.MAX_AHEAD_SECONDS} are possible."
        raise InvalidInput("start_at", start_at, problem, _EARLIER_HINT)
    if ahead > limits.MAX_AHEAD_SECONDS:
        problem = f"The start is {ahead:.0f} seconds ahead, and at most {limits.MAX_AHEAD_SECONDS} are possible."
        raise InvalidInput("start_at", start_at, problem)


def plan_schedule(armed_at: float | None, duration_seconds: float, load_seconds: float, now: float) -> Schedule:
    """Return the schedule of a run whose probes are to be armed at a moment of the host's clock, or at once (None)."""
    start = now if armed_at is None else max(now, armed_at - load_seconds)
    return Schedule(now, start, start + load_seconds + duration_seconds, armed_at is not None)


def load_file(module_path: str) -> str:
    """Return the file that keeps how long loading and arming a module took on this host."""
    return os.path.join(os.path.dirname(module_path), _LOAD_FILE)


def estimate_load(module_path: str) -> float:
    """Return how many seconds loading and arming a module takes on this host.

    That is the median of the last times, else of the modules that were loaded last, else a constant. A single time
    would often be that of a busy moment. staprun cannot load a module before its probes are armed (staprun(8): ``-L``
    and ``-A`` concern running probes), so the time has to be known.

    :param module_path: where the host keeps the module: CACHE/SHA256/NAME.ko.
    """
    measured = _read_loads(load_file(module_path))
    if measured:
        return _median(measured)
    cache = os.path.dirname(os.path.dirname(module_path))
    others: list[tuple[float, str]] = []
    with contextlib.suppress(OSError):
        for name in os.listdir(cache):
            path = os.path.join(cache, name, _LOAD_FILE)
            with contextlib.suppress(OSError):
                others.append((os.stat(path).st_mtime, path))
    known = filter(None, (_read_loads(path) for _time, path in sorted(others, reverse=True)))
    last = [loads[-1] for loads in itertools.islice(known, _ASKED_MODULES)]
    return _median(last) if last else limits.FIRST_LOAD_SECONDS


def _median(values: t.Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _read_loads(path: str) -> list[float]:
    """Return how long the last loads of a module took, the newest last; empty where the file does not tell."""
    try:
        with open(path, encoding="utf-8") as stream:
            loads = [float(seconds) for seconds in json.load(stream)["seconds"]]
    except (OSError, LookupError, TypeError, ValueError, RecursionError):
        return []
    return loads if all(0 <= seconds <= limits.LOAD_SECONDS for seconds in loads) else []
