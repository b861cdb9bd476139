# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run was: staprun's messages, the report of hits and the supervisor's state, made into one result contract.

Private to the collection. staprun's exit status is 1 for almost everything and 0 for a probe that did not register;
so the outcome is judged from messages (runtime/io.c, staprun/mainloop.c, translate.cxx) and from evidence.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing as t

from ..._core.errors import TapvirtError

_HIT = re.compile(
    r"^(?P<point>.+?), \(.*?\), hits: (?P<hits>\d{1,20}), \w+: \d+min/\d+avg/\d+max,(?P<chain>.*), index: \d+$"
)
_REPORT = "----- probe hit report:"
# staprun.h: print_stderr() of err() and warn(), and of _err(), which puts program, function and line before it.
_MESSAGE = re.compile(r"^(?P<program>sta(?:prun|pio):\w+:\d+: )?(?P<kind>ERROR|WARNING): (?P<text>.*)$")
_NUMBERS = re.compile(r"^Number of errors: (\d{1,20}), skipped probes: (\d{1,20})$")
_MISSED = re.compile(r"^Skipped due to missed \S+ on .*: (\d{1,20})$")
_TRANSPORT = re.compile(r"^There were (\d{1,20}) transport failures")
_NOT_SYNCHRONOUS = re.compile(r"^(begin|end|error|never|timer|procfs)\b")
_INSERT = re.compile(
    r"Couldn't insert module|Error inserting module|module version mismatch|Unable to send relocation|Can't resolve",
    re.IGNORECASE,
)
_SHOWN_MESSAGES = 20
_SHOWN_POINTS = 40
_NAMED_MISSING = 5
# Ansible walks through a result with a few frames of Python for each level.
_MOST_LEVELS = 32
_MOST_BITS = 64
_KERNEL_PLACE = re.compile(r"^_stext\+(0x[0-9a-f]+)$")
_MODULE_PLACE = re.compile(r"^(\w+):(\S+)\+(?:0x)?[0-9a-f]+$")
# kprobes moves a probe on a function's entry behind the entry's endbr64 or ftrace site (arch_adjust_kprobe_addr).
_ENTRY_SLACK_BYTES = 16

OUTCOMES = (
    "ok",
    "zero_hits",
    "partial_arm",
    "overloaded",
    "skipped",
    "script_error",
    "lost_output",
    "timeout",
    "refused",
    "build_failed",
)
#: The option ``accept`` of the modules that return a run; a build is another module's.
ACCEPT = {
    "type": "list",
    "elements": "str",
    "default": ["ok", "zero_hits"],
    "choices": [name for name in OUTCOMES if name != "build_failed"],
}


@dataclasses.dataclass
class Output:
    """staprun's standard output taken apart: the script's own text, and hits by probe point and kind.

    The kind tells a probe from the helper at a function's entry that stap makes for ``@entry`` in a ``.return`` probe.
    """

    text: str
    hits: dict[tuple[str, bool], int] | None

    def hits_by_point(self) -> dict[str, int]:
        """Return how often each probe point was hit, without the helpers."""
        return {point: count for (point, is_helper), count in (self.hits or {}).items() if not is_helper}


def split_output(text: str, tail: str) -> Output:
    """Part the script's own output from the report of hits that the module prints after it."""
    body, mark, report = text.partition(_REPORT)
    if not mark:
        _before, mark, report = tail.partition(_REPORT)
    if not mark:
        return Output(body, None)
    hits: dict[tuple[str, bool], int] = {}
    for line in report.splitlines():
        found = _HIT.match(line)
        if found is not None:
            point = found.group("point").rstrip("?!")
            probe = (point, ".return" in found.group("chain") and ".return" not in point)
            hits[probe] = hits.get(probe, 0) + int(found.group("hits"))
    return Output(body, hits)


@dataclasses.dataclass
class Messages:
    """The lines of staprun's standard error, each text once.

    ``others`` have no prefix: what a message of several lines goes on with, or what a command of ``system()`` printed.
    They are not errors, whatever they contain.
    """

    errors: list[str]
    warnings: list[str]
    others: list[str]
    error_count: int
    skipped: int
    lost: int

    def shown(self) -> list[str]:
        """Return the first messages of each kind, the errors first."""
        return [line for lines in (self.errors, self.warnings, self.others) for line in lines[:_SHOWN_MESSAGES]]

    def reason(self, default: str) -> str:
        """Return the first line that may explain why nothing was loaded."""
        return next(iter([*self.errors, *self.others]), default)


def read_messages(text: str, status: int | None) -> Messages:
    """Parse staprun's standard error.

    A line ``ERROR:`` without the name of a program may be a part of a script's own warning or the output of a
    command. It is an error only if SystemTap counted errors or staprun failed: stapio fails after every message of a
    module that begins with ``ERROR:`` (staprun/mainloop.c, error_detected).

    :param status: staprun's exit status, None where it is not known.

    The number of skipped probes is SystemTap's own total. The lines for each probe are parts of it
    (runtime/linux/kprobes.c: stapkp_add_missed adds nmissed to skipped_count); they count when the total is missing.
    """
    kept: dict[str, dict[str, None]] = {"ERROR": {}, "WARNING": {}, "": {}}
    error_count = lost = missed_count = 0
    total: int | None = None
    bare: dict[str, None] = {}
    for line in (row.strip() for row in text.split("\n")):
        message = _MESSAGE.match(line)
        kind, rest = (message.group("kind"), message.group("text")) if message else ("", line)
        if rest:
            kept[kind][rest] = None
        if message and kind == "ERROR" and not message.group("program"):
            bare[rest] = None
        if kind != "WARNING":
            continue
        numbers, missed, transport = _NUMBERS.match(rest), _MISSED.match(rest), _TRANSPORT.match(rest)
        if numbers:
            error_count, total = int(numbers.group(1)), int(numbers.group(2))
        elif missed:
            missed_count += int(missed.group(1))
        elif transport:
            lost += int(transport.group(1))
    if status == 0 and not error_count:
        kept[""].update((f"ERROR: {rest}", None) for rest in bare)
        kept["ERROR"] = {rest: None for rest in kept["ERROR"] if rest not in bare}
    errors, warnings, others = (list(lines) for lines in kept.values())
    return Messages(errors, warnings, others, error_count, missed_count if total is None else total, lost)


def parse_records(
    text: str, schema: t.Mapping[str, t.Mapping[str, str]], limit: int
) -> tuple[list[dict[str, t.Any]], int, list[str]]:
    """Return the records that a script printed as JSON lines, how many there were, and what does not fit its schema.

    Other lines are the script's own text and no concern here. Without a schema every JSON object is a record.
    """
    records: list[dict[str, t.Any]] = []
    count = 0
    wrong: list[str] = []
    for line in text.split("\n"):
        if not line.startswith("{"):
            continue
        try:
            record = json.loads(line)
        except ValueError:
            wrong.append(f"not JSON: {line[:80]}")
            continue
        except RecursionError:
            wrong.append(_TOO_DEEP)
            continue
        fault = _unfit_for_result(record) or _misfit(record, schema)
        if fault:
            wrong.append(fault)
            continue
        count += 1
        if len(records) < limit:
            records.append(record)
    return records, count, wrong[:_SHOWN_MESSAGES]


_TOO_DEEP = f"a record with more than {_MOST_LEVELS} levels of brackets"


def _unfit_for_result(record: dict[str, t.Any]) -> str | None:
    """Return why a record cannot travel in a module's result, or None.

    Another Python or ansible-core reads it there: with its own limit of levels and of digits, and without
    half characters (lone surrogates) and numbers that JSON does not have.
    """
    level: list[t.Any] = [record]
    for _depth in range(_MOST_LEVELS):
        deeper: list[t.Any] = []
        for value in level:
            if isinstance(value, dict):
                deeper += [*value, *value.values()]
            elif isinstance(value, list):
                deeper += value
            elif isinstance(value, str) and not _is_utf8(value):
                return "a record with a half character (a lone surrogate)"
            elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
                return f"a record with a number of more than {_MOST_BITS} bits"
            elif isinstance(value, float) and not math.isfinite(value):
                return f"a record with a number that JSON does not have: {value}"
        if not deeper:
            return None
        level = deeper
    return _TOO_DEEP


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_TYPES: dict[str, type] = {"string": str, "integer": int, "list": list}


def _misfit(record: dict[str, t.Any], schema: t.Mapping[str, t.Mapping[str, str]]) -> str | None:
    if not schema:
        return None
    kind = str(record.get("kind"))
    if kind not in schema:
        return f"a record of the undeclared kind {kind!r}"
    for field, name in schema[kind].items():
        value = record.get(field)
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
            return f"a record {kind!r} whose {field} is not a {name}"
    return None


@dataclasses.dataclass
class Arming:
    """Which of the asked probes are armed. ``proved`` counts those that debugfs kprobes/list shows."""

    asked: int
    armed: int
    proved: int
    missing: list[str]


def prove_arming(
    probes: t.Sequence[t.Mapping[str, t.Any]],
    sites: t.Sequence[t.Mapping[str, t.Any]],
    stext: int | None,
    running: bool,
) -> Arming:
    """Compare what the build expects with what the kernel shows as armed.

    Probes that leave no trace in kprobes/list (tracepoints, timers) count as armed when the module runs.
    """
    asked = [probe for probe in probes if not _NOT_SYNCHRONOUS.match(probe["point"])]
    free = list(sites)
    missing: list[str] = []
    proved = 0
    for probe in asked:
        if not probe.get("place") and not probe["point"].startswith("kprobe."):
            missing += [] if running else [probe["asked"]]
            continue
        site = next((site for site in free if _is_at(site, probe, stext)), None)
        if site is None:
            # Without its helper at the entry, a .return probe sees nothing.
            missing.append(probe["asked"] if probe.get("helper") else probe["point"])
            continue
        free.remove(site)
        proved += 0 if probe.get("helper") else 1
    count = sum(1 for probe in asked if not probe.get("helper"))
    return Arming(count, max(count - len(missing), 0), proved, missing)


def _is_at(site: t.Mapping[str, t.Any], probe: t.Mapping[str, t.Any], stext: int | None) -> bool:
    if "[GONE]" in site["rest"] or (site["kind"] == "r") != (".return" in probe["point"]):
        return False
    place = probe.get("place") or ""
    kernel = _KERNEL_PLACE.match(place)
    if kernel and stext:
        distance = int(site["address"], 16) - (stext + int(kernel.group(1), 16))
        return 0 <= distance <= _ENTRY_SLACK_BYTES
    module = _MODULE_PLACE.match(place)
    if module:
        return site["symbol"].split(".")[0] == module.group(2).split(".")[0] and module.group(1) in site["rest"]
    name = re.search(r'function\("([^"@]+)', probe["point"])
    return name is not None and site["symbol"].split(".")[0] == name.group(1)


def classify_outcome(
    state: t.Mapping[str, t.Any], messages: Messages, arming: Arming, hits: int | None, truncated: bool
) -> tuple[str, str]:
    """Return the outcome and its reason in words."""
    if "armed_seconds" not in state:
        if state.get("stop") == "load":
            return "timeout", "the module was not loaded and armed before the deadline"
        force = _forced(state)
        if force:
            return "timeout", f"the run was ended by force before the probes were armed: {force}"
        return "refused", f"the module was not loaded: {messages.reason('staprun gave no reason')}"
    return _judge_messages(messages) or _judge_evidence(state, messages, arming, hits, truncated)


def _judge_messages(messages: Messages) -> tuple[str, str] | None:
    for line in messages.errors:
        if "exceeded threshold" in line:
            return "overloaded", f"the probes took more of a CPU than the build allows: {line}"
        if "Skipped too many probes" in line:
            return "skipped", f"more probes were skipped than allowed ({messages.skipped})"
        if _INSERT.search(line):
            return "refused", line
    if messages.errors or messages.error_count:
        reason = messages.errors[0] if messages.errors else f"{messages.error_count} run-time errors"
        return "script_error", reason
    return None


def _judge_evidence(
    state: t.Mapping[str, t.Any], messages: Messages, arming: Arming, hits: int | None, truncated: bool
) -> tuple[str, str]:
    force = _forced(state)
    if force:
        return "timeout", f"the run was ended by force: {force}"
    if state.get("rc", 0) > 0:
        reason = messages.reason("it printed nothing else")
        return "script_error", f"staprun ended with status {state['rc']} and printed no error; {reason}"
    if arming.missing:
        missing = ", ".join(arming.missing[:_NAMED_MISSING])
        return "partial_arm", f"{arming.armed} of {arming.asked} probes are armed; missing: {missing}"
    if messages.lost or truncated or state.get("write_error"):
        printed, kept = state.get("bytes", 0), state.get("kept", 0)
        reason = f"output was lost: {messages.lost} transport failures, {printed} bytes printed, {kept} kept"
        if state.get("write_error"):
            reason += f"; writing it failed: {state['write_error']}"
        return "lost_output", reason
    if hits is not None and messages.skipped * 100 > hits:
        return "skipped", f"{messages.skipped} of {hits + messages.skipped} hits were skipped"
    if arming.asked and hits == 0:
        return "zero_hits", "every probe was armed and none was hit"
    return "ok", f"{arming.armed} of {arming.asked} probes armed"


def _forced(state: t.Mapping[str, t.Any]) -> str | None:
    """Return what ended a run that did not end by itself, or null."""
    if state.get("state") == "killed":
        return "its supervisor was killed"
    if state.get("stop") == "signal":
        return "its supervisor was told to stop"
    if state.get("signals_sent", 0) > 1:
        return "it did not end when it was asked to"
    if state.get("rc", 0) < 0:
        return f"staprun was killed by signal {-state['rc']}"
    return None


def answer(result: dict[str, t.Any], accept: t.Collection[str]) -> dict[str, t.Any]:
    """Return the answer of a module for a run; it fails where the outcome is not accepted."""
    row: dict[str, t.Any] = {"changed": False, "run": result}
    if "outcome" in result and result["outcome"] not in accept:
        failure = TapvirtError(f"The run ended as {result['outcome']}: {result['reason']}.")
        hint = " ".join(result.get("hints", ())) or None
        msg = f"{failure.message} {hint}" if hint else failure.message
        row.update(failed=True, msg=msg, error={**failure.row(), "hint": hint})
    return row


def contract(
    build: t.Mapping[str, t.Any],
    state: t.Mapping[str, t.Any],
    output: str,
    tail: str,
    errors: str,
    stext: int | None,
    record_limit: int,
) -> dict[str, t.Any]:
    """Return the result contract of a finished run."""
    parts = split_output(output, tail)
    messages = read_messages(errors, state.get("rc"))
    arming = prove_arming(build["probes"], state.get("sites", ()), stext, "armed_seconds" in state)
    # The list of a host where others disarm the same place meanwhile may not show a probe that was hit all the same.
    hit = {point for (point, helper), count in (parts.hits or {}).items() if count and not helper}
    missing = [point for point in arming.missing if point not in hit]
    arming.armed += len(arming.missing) - len(missing)
    arming.missing = missing
    hits = None
    if parts.hits is not None:
        hits = sum(
            count for (point, helper), count in parts.hits.items() if not helper and not _NOT_SYNCHRONOUS.match(point)
        )
    truncated = state.get("bytes", 0) > state.get("kept", 0)
    records, count, wrong = parse_records(parts.text, build.get("schema") or {}, record_limit)
    outcome, reason = classify_outcome(state, messages, arming, hits, truncated)
    if outcome in ("ok", "zero_hits") and wrong:
        outcome, reason = "script_error", f"the script printed {wrong[0]}"
    points = [
        {
            "point": probe["point"],
            "hits": (parts.hits or {}).get((probe["point"], False), 0),
            "armed": probe["point"] not in arming.missing,
        }
        for probe in build["probes"]
        if not probe.get("helper") and not _NOT_SYNCHRONOUS.match(probe["point"])
    ]
    return {
        "phase": "done" if "armed_seconds" in state else "load",
        "outcome": outcome,
        "reason": reason,
        "probes": {
            "asked": arming.asked,
            "armed": arming.armed,
            "proved": arming.proved,
            "missing": arming.missing[:_SHOWN_POINTS],
            "points": points[:_SHOWN_POINTS],
        },
        "hits": hits,
        "skipped": messages.skipped,
        "errors": messages.error_count,
        "messages": messages.shown(),
        "bytes": state.get("bytes", 0),
        "sha256": state.get("sha256"),
        "duration_seconds": state.get("ran_seconds"),
        "load_seconds": state.get("armed_seconds"),
        "records": records,
        "record_count": count,
        "truncated": truncated or count > len(records),
    }
