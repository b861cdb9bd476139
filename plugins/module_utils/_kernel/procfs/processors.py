# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of CPUs, interrupts and time. Private to the collection.

Formats: the kernel's Documentation/filesystems/proc.rst and Documentation/scheduler/sched-stats.rst, fs/proc/stat.c,
fs/proc/interrupts.c with show_interrupts of each architecture, kernel/latencytop.c.
"""

from __future__ import annotations

import re
import typing as t

from .parse import (
    NotARow,
    at_least,
    decimal,
    integer,
    integers,
    labelled,
    lines_of,
    named,
    parse_rows,
    seconds,
    sized,
    words_of,
)

_CPU_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
_WORD_LISTS = ("flags", "Features", "features", "bugs", "isa", "vmx flags", "power management")
_SCHEDULER = ("yields", "legacy", "schedules", "idle_schedules", "wakeups", "local_wakeups")
_NANOSECONDS = 1_000_000_000
_MICROSECONDS = 1_000_000


def interrupts(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``irq``, ``total``, ``counts`` by CPU (``cpu0``; those with none left out) and ``description``.

    The first line names the CPUs that are online. ``ERR`` and ``MIS`` have one count for all CPUs; ``FIQ`` has none.
    """
    return _by_cpu(text, unparsed, "irq")


def softirqs(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``name``, ``total`` and ``counts`` by CPU (those with none left out)."""
    rows = _by_cpu(text, unparsed, "name")
    return [{key: value for key, value in row.items() if key != "description"} for row in rows]


def _by_cpu(text: str, unparsed: list[str], key: str) -> list[dict[str, t.Any]]:
    header = next(lines_of(text), "")
    cpus = words_of(header)
    if not all(re.fullmatch(r"CPU[0-9]{1,6}", cpu) for cpu in cpus):
        unparsed.extend(lines_of(text))
        return []

    def row(line: str) -> dict[str, t.Any]:
        name, rest = labelled(line)
        words = words_of(rest)
        count = 0
        while count < min(len(words), len(cpus)) and words[count].isascii() and words[count].isdigit():
            count += 1
        counts = integers(words[:count])
        single = count == 1 and len(words) == 1
        if count not in (0, len(cpus)) and not single:
            raise NotARow(line)
        by_cpu = {cpu.lower(): number for cpu, number in zip(cpus, counts) if number} if count == len(cpus) else {}
        return {
            key: name,
            "total": sum(counts) if counts else None,
            "counts": by_cpu,
            "description": " ".join(words[count:]),
        }

    return parse_rows(text, unparsed, row, skip=1)


def stat(text: str, unparsed: list[str]) -> dict[str, t.Any]:
    """Return ``cpu`` (times of all CPUs in seconds), ``cpus`` (those online), and the counters by name.

    Of ``intr`` and ``softirq`` the totals; the tables ``interrupts`` and ``softirqs`` have the rest.
    """
    table: dict[str, t.Any] = {"cpu": None, "cpus": []}

    def row(line: str) -> None:
        name, *rest = words_of(line)
        match = re.fullmatch(r"cpu([0-9]{0,6})", name)
        if match:
            times = _times(at_least(rest, 4))
            if match.group(1):
                table["cpus"].append({"cpu": int(match.group(1)), **times})
            else:
                table["cpu"] = times
        elif name in ("intr", "softirq"):
            table[name + "_total"] = integer(at_least(rest, 1)[0])
        elif len(rest) == 1:
            table["btime_seconds" if name == "btime" else name] = integer(rest[0])
        else:
            raise NotARow(line)

    parse_rows(text, unparsed, row)
    return table


def _times(words: t.Sequence[str]) -> dict[str, t.Any]:
    return named([name + "_seconds" for name in _CPU_TIMES], [seconds(ticks) for ticks in integers(words)])


def loadavg(text: str, unparsed: list[str]) -> dict[str, t.Any]:
    """Return ``load_1m``, ``load_5m``, ``load_15m``, ``runnable`` and ``entities`` (tasks), and ``last_pid``."""

    def row(line: str) -> dict[str, t.Any]:
        words = at_least(words_of(line), 5)
        runnable, _slash, entities = words[3].partition("/")
        loads = [decimal(word) for word in words[:3]]
        names = ("load_1m", "load_5m", "load_15m", "runnable", "entities", "last_pid")
        return dict(zip(names, [*loads, integer(runnable), integer(entities), integer(words[4])]))

    return _only(parse_rows(text, unparsed, row))


def uptime(text: str, unparsed: list[str]) -> dict[str, t.Any]:
    """Return ``uptime_seconds`` and ``idle_seconds``, the sum over all CPUs."""

    def row(line: str) -> dict[str, t.Any]:
        words = at_least(words_of(line), 2)
        return {"uptime_seconds": decimal(words[0]), "idle_seconds": decimal(words[1])}

    return _only(parse_rows(text, unparsed, row))


def _only(rows: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    return rows[0] if rows else {}


def cpuinfo(text: str, unparsed: list[str]) -> dict[str, t.Any]:
    """Return ``common`` (what all processors share), ``processors`` (where they differ) and ``machine`` (the rest).

    A block of lines is a processor if it says so; ARM, POWER and others add blocks about the whole machine.
    """
    processors: list[dict[str, t.Any]] = []
    machine: dict[str, t.Any] = {}
    for block in re.split(r"\n[ \t]*\n", text):
        found = _block(block, unparsed)
        if isinstance(found.get("processor"), int):
            processors.append(found)
        else:
            machine.update(found)
    common = dict(processors[0]) if processors else {}
    common.pop("processor", None)
    for processor in processors[1:]:
        common = {key: value for key, value in common.items() if key in processor and processor[key] == value}
    differing = [{key: value for key, value in row.items() if key not in common} for row in processors]
    return {"common": common, "processors": differing, "machine": machine}


def _block(block: str, unparsed: list[str]) -> dict[str, t.Any]:
    found: dict[str, t.Any] = {}
    for line in lines_of(block):
        try:
            name, value = labelled(line)
        except NotARow:
            unparsed.append(line)
            continue
        key, typed = (name, words_of(value)) if name in _WORD_LISTS else sized(name, value)
        if key in found:
            unparsed.append(line)
        else:
            found[key] = typed
    return found


def schedstat(text: str, unparsed: list[str]) -> dict[str, t.Any]:
    """Return ``version``, ``timestamp`` (jiffies) and ``cpus``, each with its ``domains``.

    The counters of a domain change with the version of the format: they stay a list, in the file's order.
    """
    table: dict[str, t.Any] = {"version": None, "timestamp": None, "cpus": []}

    def row(line: str) -> None:
        name, *rest = words_of(line)
        if name in ("version", "timestamp") and len(rest) == 1:
            table[name] = integer(rest[0])
        elif re.fullmatch(r"cpu[0-9]{1,6}", name):
            table["cpus"].append(_scheduler_of_cpu(int(name[3:]), integers(at_least(rest, 9))))
        elif re.fullmatch(r"domain[0-9]{1,6}", name) and table["cpus"]:
            # Version 17 names the domain before its CPU mask.
            has_name = (table["version"] or 0) >= 17
            at_least(rest, 2 if has_name else 1)
            domain: dict[str, t.Any] = {
                "domain": int(name[6:]),
                "name": rest[0] if has_name else None,
                "cpumask": rest[has_name],
            }
            domain["counters"] = integers(rest[has_name + 1 :])
            table["cpus"][-1]["domains"].append(domain)
        else:
            raise NotARow(line)

    parse_rows(text, unparsed, row)
    return table


def _scheduler_of_cpu(cpu: int, counters: list[int]) -> dict[str, t.Any]:
    found: dict[str, t.Any] = {"cpu": cpu, **dict(zip(_SCHEDULER, counters))}
    del found["legacy"]
    found["run_seconds"] = counters[6] / _NANOSECONDS
    found["wait_seconds"] = counters[7] / _NANOSECONDS
    found["timeslices"] = counters[8]
    found["domains"] = []
    return found


def latency_stats(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``count``, ``total_seconds``, ``maximum_seconds`` and ``trace``, functions, innermost first."""

    def row(line: str) -> dict[str, t.Any]:
        words = at_least(words_of(line), 3)
        count, total, maximum = integers(words[:3])
        return {
            "count": count,
            "total_seconds": total / _MICROSECONDS,
            "maximum_seconds": maximum / _MICROSECONDS,
            "trace": list(words[3:]),
        }

    return parse_rows(text, unparsed, row, skip=1)
