# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace of many hosts in waves: what each host's run was, whether it stops the campaign, and all in one summary.

Private to the collection.
"""

from __future__ import annotations

import collections
import json
import re
import typing as t

from ...module_utils._core.errors import InvalidInput, TapvirtError, nearest_names
from ...module_utils._kernel.image.taints import taint_flags
from ...module_utils._systemtap.supervise.outcome import OUTCOMES
from .._transport.edge import ANY, COUNT, NUMBER, TEXT, WHOLE, Kind, Need, Odd, parse, parse_all
from .records import counter_plots, histogram_plots, valid_records
from .timeline import wave_spreads

SUMMARY_BYTES = 90_000
"""The size of a summary as JSON, below the 100 kB that an artifact of an AWX job may sensibly have."""

Row = t.Mapping[str, t.Any]
# Loading a module that is not the distribution's own sets these two, and says nothing about the kernel's health.
_EXPECTED_TAINTS = ("out_of_tree_module", "unsigned_module")
# What the kernel prints at an oops, BUG() and WARN() (lib/bug.c, kernel/panic.c, arch/*/kernel/traps.c).
TROUBLE = re.compile(
    r"\bBUG: |kernel BUG at |\bOops\b|Internal error: |\bWARNING: |general protection fault|Kernel panic"
)
FAILED_BEFORE_VERDICT = "it failed before its run was judged"
"""The reason of a host without a verdict whose wave has begun."""
# With these, or none, no probe was armed.
_NO_RUN = ("build_failed", "refused")
# What stap_run can be told to accept; a build is another module's.
_ACCEPTABLE = [name for name in OUTCOMES if name != "build_failed"]
_OUTCOME = Kind("an outcome of a run", lambda value: isinstance(value, str) and value in (*OUTCOMES, "planned"))
_NUMBERS = ("hits", "skipped", "record_count", "bytes", "duration_seconds")
# What is read of a run, of what procfs_info returned, and of a verdict.
_RUN = {
    "outcome": _OUTCOME,
    "reason": TEXT,
    "kernel": TEXT,
    "hints": [TEXT],
    "leftovers": [TEXT],
    **dict.fromkeys(_NUMBERS, NUMBER),
}
_RECORD = {"sequence": Need(WHOLE), "facility": Need(WHOLE), "message": Need(TEXT)}
_PROCFS = {"sysctls": {"kernel.tainted": COUNT}, "kmsg": [_RECORD]}
_READ = {"failed": ANY, "unreachable": ANY, "msg": ANY, "procfs": _PROCFS}
_SHOWN_NUMBERS = ("hits", "skipped", "records", "bytes", "duration_seconds")
_VERDICT = Need(
    {
        "outcome": Need(TEXT),
        "reason": Need(TEXT),
        "ran": Need(ANY),
        "accepted": Need(ANY),
        "stop_reasons": Need([TEXT]),
        "hints": [TEXT],
        "kernel": TEXT,
        **dict.fromkeys(_SHOWN_NUMBERS, NUMBER),
    }
)
_KERNEL_FACILITY = 0
_SHOWN_LINES = 3
_SHOWN_TEXT = 300
_SHOWN_HINT = 500
_SHOWN_PLOTS = 20


def trace_outcomes(value: t.Any, *, name: str) -> list[str]:
    """Return the outcomes that are no failure.

    :param value: a list, or a text with commas between them.
    :param name: the variable that the value comes from, for the message.
    :raises InvalidInput: one of them is no outcome.
    """
    outcomes = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    if not isinstance(outcomes, (list, tuple)):
        raise InvalidInput(name, value, "The value is not a list of outcomes, such as [ok, zero_hits].")
    for number, outcome in enumerate(outcomes):
        if outcome not in _ACCEPTABLE:
            path, given = (name, value) if isinstance(value, str) else (f"{name}[{number}]", outcome)
            raise InvalidInput(
                path,
                given,
                f"{outcome!r} is not an outcome of a run, which is one of {', '.join(_ACCEPTABLE)}.",
                candidates=nearest_names(str(outcome), _ACCEPTABLE),
            )
    return list(map(str, outcomes))


def trace_verdict(
    run: t.Any,
    *,
    before: t.Any = None,
    after: t.Any = None,
    failure: str | None = None,
    started: bool = False,
    accept: t.Sequence[str] = ("ok", "zero_hits"),
) -> dict[str, t.Any]:
    """Return a host's verdict: ``outcome``, ``reason``, ``ran``, ``accepted``, ``stop_reasons``, ``hints``, numbers.

    Reasons to stop are the outcome ``overloaded``, a host that no longer answers, a taint flag that the kernel did not
    have before (other than the two that a module from outside of the kernel's tree sets), a new line of an oops, a BUG
    or a WARNING in the kernel's log, a module that could not be removed, and a host where this could not be read. A
    host that returns something else than these modules do is ``lost``, or a reason to stop.

    :param run: the result contract of ``stap_run``; empty when it did not come that far.
    :param before: what ``procfs_info`` returned before the run: the last record of the kernel's log, and
        ``kernel.tainted``.
    :param after: the same afterwards: all records that may be trouble. Either may be a failed task's result, and None
        where nobody read it. Where it was read, a kernel whose state is not known is a reason to stop.
    :param failure: the message of the failed task; empty or None when none failed.
    :param started: whether the run was started; one that then has no outcome is lost, as after a reboot.
    :param accept: outcomes that are not a failure.
    :raises TapvirtError: a result is not a dictionary.
    """
    for name, value in (("run", run), ("before", before or {}), ("after", after or {})):
        if not isinstance(value, t.Mapping):
            raise TapvirtError(f"trace_verdict: {name}: {value!r} is not a result, which is a dictionary.")
    run, odd_run = _parsed(run, _RUN)
    before, odd_before = _parsed_read(before)
    after, odd_after = _parsed_read(after)
    has_failed_early = bool(failure) and not started and not before.get("failed")
    outcome = run.get("outcome") or ("build_failed" if has_failed_early else "lost")
    reason = run.get("reason") or failure or "the host answered before the trace, and no longer does"
    if before.get("unreachable") or after.get("unreachable"):
        outcome, reason = "lost", f"the host answered before the trace, and no longer does{_lost_message(after)}"
    if odd_run:
        outcome, reason = "lost", f"the host returned something else than a run: {odd_run}"
    stop_reasons = [f"it ended as {outcome}: {reason}"] if outcome in ("overloaded", "lost") else []
    stop_reasons += [
        f"its kernel's state {when} the trace is unknown: {odd}"
        for when, odd in (("before", odd_before), ("after", odd_after))
        if odd
    ]
    if after.get("failed"):
        stop_reasons.append(f"its kernel's state after the trace is unknown: {' '.join(str(after.get('msg')).split())}")
    stop_reasons += [f"the run left something behind: {text}" for text in run.get("leftovers") or ()]
    taints = _new_taints(before, after)
    if taints:
        stop_reasons.append(f"its kernel has become tainted: {', '.join(taints)}")
    stop_reasons += [f"its kernel logged: {line}" for line in _trouble(before, after)]
    return {
        "outcome": outcome,
        "reason": reason,
        "ran": (run.get("outcome") or "build_failed") not in _NO_RUN,
        "accepted": outcome in accept,
        "stop_reasons": [text[:_SHOWN_TEXT] for text in stop_reasons],
        "hints": [text[:_SHOWN_HINT] for text in run.get("hints") or ()][:_SHOWN_LINES],
        "hits": run.get("hits"),
        "skipped": run.get("skipped"),
        "records": run.get("record_count"),
        "bytes": run.get("bytes"),
        "duration_seconds": run.get("duration_seconds"),
        "kernel": run.get("kernel"),
    }


def _lost_message(after: Row) -> str:
    """Return why a host does not answer, after a colon: of a run that nobody collected, where its result is."""
    message = after.get("msg")
    return f": {' '.join(message.split())}" if isinstance(message, str) and message else ""


def _parsed(value: Row, shape: t.Any) -> tuple[dict[str, t.Any], str]:
    """Return what a host returned, empty where it cannot be read, and why it cannot."""
    try:
        return parse(value, Need(shape)), ""
    except Odd as error:
        return {}, str(error)


def _parsed_read(value: Row | None) -> tuple[dict[str, t.Any], str]:
    """Return the same of a result of ``procfs_info``; one without the kernel's taint or log cannot be read either."""
    if value is None:
        return {}, ""
    read, odd = _parsed(value, _READ)
    if odd or read.get("failed") or read.get("unreachable"):
        return read, odd
    if (_of(read, "sysctls") or {}).get("kernel.tainted") is None:
        return read, "kernel.tainted is missing"
    return read, "kmsg is missing" if _of(read, "kmsg") is None else ""


def _of(read: Row, key: str) -> t.Any:
    return (read.get("procfs") or {}).get(key)


def _new_taints(before: Row, after: Row) -> list[str]:
    old, new = ((_of(read, "sysctls") or {}).get("kernel.tainted") for read in (before, after))
    if old is None or new is None:
        return []
    return [flag for flag in taint_flags(new & ~old) if flag not in _EXPECTED_TAINTS]


def _trouble(before: Row, after: Row) -> list[str]:
    """Return the first lines of the kernel itself that are trouble and younger than what was read before."""
    last = max((record["sequence"] for record in _of(before, "kmsg") or ()), default=-1)
    lines = [
        record["message"]
        for record in _of(after, "kmsg") or ()
        if record["sequence"] > last and record["facility"] == _KERNEL_FACILITY and TROUBLE.search(record["message"])
    ]
    return lines[:_SHOWN_LINES]


def trace_campaign(hostvars: t.Mapping[str, Row], hosts: t.Iterable[str]) -> dict[str, t.Any]:
    """Return the summary of a campaign, from the variables of its hosts.

    :param hostvars: host -> its variables: ``trace_result`` (its verdict), ``trace_runs``, ``trace_not_ready_reason``
        (empty where it is ready) and ``trace_wave_hosts`` where its wave has begun.
    :param hosts: all hosts of the play.
    """
    known = {host: hostvars[host] for host in hosts}
    return trace_summary(
        {host: own["trace_result"] for host, own in known.items() if "trace_result" in own},
        {host: own["trace_runs"] for host, own in known.items() if "trace_runs" in own},
        {host: _left_out_reason(own) for host, own in known.items() if "trace_result" not in own},
    )


def _left_out_reason(variables: Row) -> t.Any:
    if "trace_wave_hosts" in variables:
        return FAILED_BEFORE_VERDICT
    reason = variables.get("trace_not_ready_reason", "it did not answer, or failed before the trace")
    return reason or "the campaign had stopped before"


def trace_summary(
    verdicts: t.Mapping[str, Row],
    runs: t.Mapping[str, t.Sequence[Row]],
    left_out: t.Mapping[str, str],
    limit_bytes: int = SUMMARY_BYTES,
) -> dict[str, t.Any]:
    """Return a campaign in a few kB: counts by outcome, hosts with trouble first, records merged over the hosts.

    - ``outcomes`` (how many hosts ended so), ``traced`` (how many had a run), ``left_out_count``, ``stopped``;
    - ``hosts``, the verdicts without what is None or empty, and ``left_out``, with hosts whose verdict cannot be read;
    - ``trouble``, hosts with records that are not merged, each with what is wrong with the first; ``trouble_count``;
    - ``histograms``, each with ``title, key, unit, count, p50, p99, buckets, outliers``, and ``counters``, each with
      ``title``, ``hosts`` (how many) and ``totals`` by key; at most 20 of each;
    - ``waves``, how far apart the hosts of each wave were armed (:func:`.timeline.wave_spreads`), at most 20;
    - ``truncated``, whether hosts were left out of the summary, those with a reason to stop or a failure last.

    :param verdicts: host -> what :func:`trace_verdict` returned.
    :param runs: host -> its runs, each ``{"title", "run": {"records": [...]}}``.
    :param left_out: host -> why it was not traced.
    """
    verdicts, odd = parse_all(verdicts, lambda verdict: parse(verdict, _VERDICT))
    reasons, unclear = parse_all(left_out, lambda reason: parse(reason, Need(TEXT)))
    left_out = {**reasons, **{host: f"its verdict cannot be read: {why}" for host, why in {**unclear, **odd}.items()}}
    runs, trouble = valid_records(runs)
    hosts = sorted(
        verdicts, key=lambda host: (not verdicts[host]["stop_reasons"], bool(verdicts[host]["accepted"]), host)
    )
    missing, troubled = sorted(left_out), sorted(trouble)
    summary: dict[str, t.Any] = {
        "outcomes": dict(collections.Counter(row["outcome"] for row in verdicts.values())),
        "traced": sum(bool(row["ran"]) for row in verdicts.values()),
        "left_out_count": len(left_out),
        "stopped": any(row["stop_reasons"] for row in verdicts.values()),
        "trouble_count": len(trouble),
        "histograms": _histograms(runs),
        "counters": _counters(runs),
        "waves": wave_spreads(runs)[:_SHOWN_PLOTS],
    }
    summary["truncated"] = False
    while True:
        summary["hosts"] = {host: _shown(verdicts[host]) for host in hosts}
        summary["left_out"] = {host: left_out[host][:_SHOWN_TEXT] for host in missing}
        summary["trouble"] = {host: trouble[host][:_SHOWN_TEXT] for host in troubled}
        if len(json.dumps(summary)) <= limit_bytes or not hosts + missing + troubled:
            return summary
        summary["truncated"] = True
        hosts, missing, troubled = (names[: len(names) * 3 // 4] for names in (hosts, missing, troubled))


def _shown(row: Row) -> dict[str, t.Any]:
    """Return a host's row; what is null or empty, and the reason of what went well, is left out."""
    told = {key: value for key, value in row.items() if key not in ("accepted", "ran", "reason")}
    left = {key: value for key, value in told.items() if value not in (None, [])}
    return left if row["accepted"] else {**left, "reason": row["reason"][:_SHOWN_TEXT]}


def _histograms(runs: t.Mapping[str, t.Sequence[Row]]) -> list[dict[str, t.Any]]:
    return [
        {
            **{key: plot[key] for key in ("title", "key", "unit")},
            **plot["merged"],
            "outliers": [row["host"] for row in plot["hosts"] if row["outlier"]][:_SHOWN_PLOTS],
        }
        for plot in histogram_plots(runs)[:_SHOWN_PLOTS]
    ]


def _counters(runs: t.Mapping[str, t.Sequence[Row]]) -> list[dict[str, t.Any]]:
    return [
        {
            "title": plot["title"],
            "hosts": len(plot["hosts"]),
            "totals": {row["key"]: row["total"] for row in plot["keys"][:_SHOWN_PLOTS]},
        }
        for plot in counter_plots(runs)[:_SHOWN_PLOTS]
    ]
