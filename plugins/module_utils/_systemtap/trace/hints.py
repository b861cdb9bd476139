# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which option helps where a run met a limit of SystemTap.

Private to the collection. The words are those of the translator and the runtime (translate.cxx, tapsets.cxx,
runtime/linux/kprobes.c).
"""

from __future__ import annotations

import math
import re
import typing as t

from ..._core.root import Root
from ..limits import count_cpus
from ..script_limits import SCRIPT_LIMITS

_MISSED_RETURNS = re.compile(r"^Skipped due to missed kretprobe/1 on '(.*)': (\d{1,20})$")
_MAXACTIVE = re.compile(r"\.maxactive\((\d{1,10})\)")
_LOCK_TIMEOUT = re.compile(r"^Skipped due to global '\w+' lock timeout: \d+$")
_DECLARED_SIZE = re.compile(r"^Array overflow, check size limit \((\d+)\)")
_MOST_HINTS = 5
_MOST_ACTIVE = SCRIPT_LIMITS["max_active"].most

# The begin of an error, the limit that it met, what happened, and what helps beside a higher limit.
_ERRORS = (
    (
        "Array overflow, check MAXMAPENTRIES",
        "max_map_entries",
        "An array of the script is full.",
        ", declare the array with its size (global NAME[SIZE]), or have its oldest entries replaced (global NAME%)",
    ),
    (
        "aggregation overflow in ",
        "max_map_entries",
        "An array of statistics has too many entries on all CPUs together.",
        ", or declare the array with its size (global NAME[SIZE])",
    ),
    ("MAXACTION exceeded", "max_action", "A handler executed too many statements.", ", or shorten its loops"),
    (
        "Skipped too many probes, check MAXSKIPPED",
        "max_skipped",
        "The run skipped too many hits.",
        " to go on",
    ),
)
_FAULT = re.compile(r"\bfault at 0x|\bcopy fault\b|^read fault\b")
_OVERHEAD = (
    "Set cpu_ceiling_percent of stap_module (trace_cpu_ceiling_percent of the role trace) to a higher percentage, at"
    " most 50, or have the probes hit less often."
)


def _option(name: str) -> str:
    return f"limits.{name} of stap_module (trace_limits.{name} of the role trace)"


def host_hints(
    errors: t.Iterable[str], warnings: t.Iterable[str], hits: t.Mapping[str, int], limits: t.Mapping[str, int]
) -> list[str]:
    """Return what helps a run of this host, as :func:`find_hints`."""
    cpus = count_cpus(Root().read_text_or("sys/devices/system/cpu/possible") or "0")
    return find_hints(errors, warnings, hits, limits, cpus)


def find_hints(
    errors: t.Iterable[str],
    warnings: t.Iterable[str],
    hits: t.Mapping[str, int],
    limits: t.Mapping[str, int],
    cpus: int,
) -> list[str]:
    """Return what helps a run that met a limit, in sentences; at most five.

    :param errors: the errors that staprun printed, each without its prefix.
    :param warnings: the warnings.
    :param hits: how often each probe point was hit.
    :param limits: the option ``limits`` of the build.
    :param cpus: how many CPUs the host may have, those that are offline too.
    """
    limits = {name: value for name, value in limits.items() if isinstance(value, int)}
    found: dict[str, None] = {}
    for line in errors:
        found.update(dict.fromkeys(_error_hints(line, limits)))
    for line in warnings:
        missed = _MISSED_RETURNS.match(line)
        if missed:
            found[_returns_hint(missed.group(1), int(missed.group(2)), hits, limits, cpus)] = None
        elif _LOCK_TIMEOUT.match(line):
            remedy = f"Set {_option('max_trylock')} to more than {_value('max_trylock', limits)}."
            found[f"Probes waited too long for a global variable. {remedy}"] = None
    return list(found)[:_MOST_HINTS]


def _value(name: str, limits: t.Mapping[str, int]) -> int:
    return limits.get(name, SCRIPT_LIMITS[name].default or 0)


def _error_hints(line: str, limits: t.Mapping[str, int]) -> list[str]:
    hints = [
        f"{problem} Set {_option(name)} to more than {_value(name, limits)}{more}."
        for start, name, problem, more in _ERRORS
        if line.startswith(start)
    ]
    declared = _DECLARED_SIZE.match(line)
    if declared:
        hints.append(
            f"An array that the script declares with {declared.group(1)} entries is full. Declare it larger, or have"
            " its oldest entries replaced (global NAME%)."
        )
    if line.startswith("global variable '") and "allocation failed" in line:
        option = _option("max_memory_mb")
        hints.append(
            f"The script's arrays did not fit into the module's memory. Set {option} higher, or use smaller arrays."
        )
    if line.startswith("probe overhead (") and "exceeded threshold" in line:
        hints.append(_OVERHEAD)
    if _FAULT.search(line) and "max_errors" not in limits:
        hints.append(
            f"The script read memory that does not exist. Set {_option('max_errors')} to let the run go on after such"
            " errors, or catch them (try { ... } catch { ... })."
        )
    return hints


def _returns_hint(point: str, missed: int, hits: t.Mapping[str, int], limits: t.Mapping[str, int], cpus: int) -> str:
    """Return what helps a return probe that missed calls, because too many were under way at once."""
    own = _MAXACTIVE.search(point)
    # runtime/linux/kprobes.c, KRETACTIVE.
    active = int(own.group(1)) if own else limits.get("max_active", max(15, 6 * cpus))
    enough = enough_active(active, hits.get(point, 0), missed)
    told = f"{missed} returns of {point} were missed, because at most {active} calls were followed at the same time."
    if enough <= active:
        return f"{told} No larger number is possible. Probe a function that is called less often at the same time."
    if own:
        return f"{told} Write .maxactive({enough}) in the script instead."
    return (
        f"{told} Write .maxactive({enough}) behind .return in the script, or set {_option('max_active')} to {enough}."
    )


def enough_active(active: int, hits: int, missed: int) -> int:
    """Return how many calls a return probe has to follow at the same time, to miss none of the same load.

    One more for each that was missed always suffices. Where all were in use all the time, the number grows with the
    calls (Little's law); twice that leaves room for bursts.
    """
    enough = active + missed
    if hits:
        enough = min(enough, math.ceil(2 * active * (hits + missed) / hits))
    return min(enough, _MOST_ACTIVE)
