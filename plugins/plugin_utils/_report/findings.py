# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report about a fleet says, as data that a template only has to lay out. Private to the collection.

Everything is optional: a section without data is empty. Sizes are bounded, so that the page of a thousand hosts stays
quick: what is left out is counted. A ``level`` is ``ok``, ``warn``, ``bad`` or ``none`` (nothing to judge).
"""

from __future__ import annotations

import collections
import json
import re
import typing as t

from .._fleet.fleet import SYMBOL, groups_of, symbol_diff
from .._format import listed, shown, word
from .._trace.records import valid_records
from .._transport.edge import ANY, TEXT, Need, Odd, parse
from . import traces as _report_traces

Row = t.Mapping[str, t.Any]
Rows = list[dict[str, t.Any]]

RESULTS = {
    "fleet_report_facts": "kernel facts",
    "fleet_report_readiness": "tracing readiness",
    "fleet_report_parameters": "module parameters",
    "fleet_report_symbols": "symbols",
    "fleet_report_domains": "domains",
    "fleet_report_console": "console",
}
"""The variables of a host that hold results of modules, and what each is about."""
VARIABLES = ("ansible_facts", *RESULTS, "fleet_report_preflight", "trace_runs", "trace_result")
"""All variables of a host that a report reads."""

# What is read of each of these variables; nothing else of them is.
_RESULT = {"failed": ANY, "unreachable": ANY, "truncated": ANY, "planned": ANY, "msg": ANY}
_KERNEL = {"release": ANY, "build_id": ANY, "arch": ANY, "symbols": {"core_fingerprint": ANY}}
_PARAM = {
    **dict.fromkeys(("module", "name"), Need(TEXT)),
    **dict.fromkeys(("before", "after", "value", "changed"), ANY),
    **dict.fromkeys(("value_status", "persisted_in"), TEXT),
    "pending": [ANY],
}
_DOMAIN = {"name": ANY, "state": ANY, "changed": ANY, "error": ANY, "pending": [ANY]}
_SHAPES: dict[str, t.Any] = {
    "ansible_facts": {"tapvirt_kernel": _KERNEL},
    "fleet_report_facts": _RESULT,
    "fleet_report_readiness": {**_RESULT, **dict.fromkeys(("verdict", "reason", "remedy"), TEXT)},
    "fleet_report_parameters": {**_RESULT, "params": [_PARAM]},
    "fleet_report_symbols": {**_RESULT, "symbols": [SYMBOL]},
    "fleet_report_domains": {**_RESULT, "domains": [_DOMAIN]},
    "fleet_report_console": {**_RESULT, "text": TEXT},
    "fleet_report_preflight": {"findings": [{"level": Need(TEXT), "text": Need(TEXT)}]},
    "trace_result": {"accepted": ANY, "stop_reasons": [ANY], "outcome": ANY, "reason": ANY},
}

_MOST_DOMAINS = 1500
_MOST_CELLS = 12000
_MOST_COLUMNS = 40
_LEAST_COLUMNS = 8
_MOST_VALUES = 6
_MOST_PENDING = 3
_MOST_KEPT = 2
_MOST_OF_A_SECTION = 15
_MOST_CONSOLES = 50
_MOST_SYMBOLS = 100
_CONSOLE_CHARACTERS = 2000
_REASON_CHARACTERS = 400
_RANK = {"bad": 0, "warn": 1, "ok": 2, "none": 3}
# What a reader is to see first among what is equally bad: many hosts may be lost for one dull reason.
_SECTIONS = ("traces", "kernels", "domains", "runs", "hosts", "parameters", "readiness", "symbols", "consoles")
# What only says which host it was that did not answer.
_ADDRESS = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b|(?<![\w:])[0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F.]*(?![\w:])")


def fleet_report(hosts: t.Mapping[str, Row], lost: t.Collection[str] = ()) -> dict[str, t.Any]:
    """Return the sections of a report: ``tiles``, ``findings``, ``hosts`` and what each of them is about.

    A variable without a result of its module becomes a finding of its host; the other hosts are not affected.

    :param hosts: host -> those of :data:`VARIABLES` that it has.
    :param lost: hosts that failed or did not answer, whose results may not tell why.
    """
    hosts, odd = _usable(hosts)
    kernels = _kernels(hosts)
    readiness = _readiness(hosts)
    params = _params(hosts)
    symbols = _symbols(hosts)
    domains = _domains(hosts)
    traces = _traces(hosts)
    trouble = _trouble(hosts, odd, lost)
    findings = [
        *_trouble_findings(trouble),
        *traces["findings"],
        *_fingerprint_findings(hosts),
        *_domain_findings(domains["every"]),
        *_param_findings(params["every"]),
        *_readiness_findings(readiness),
        *_preflight_findings(hosts),
        *_symbol_findings(symbols, hosts),
        *_cut_findings(hosts),
    ]
    findings.sort(key=lambda row: (_RANK[row["level"]], _SECTIONS.index(row["section"])))
    standing = {host for row in findings for host in row["hosts"]}
    shown_findings, more_findings = _first_of_each_section(findings)
    report = {
        "tiles": _tiles(hosts, kernels, readiness, params, domains, traces, trouble),
        "findings": findings,
        "shown_findings": shown_findings,
        "more_findings": more_findings,
        "hosts": _overview(hosts, findings, params["every"], domains["every"], traces, trouble),
        "kernels": kernels,
        "readiness": readiness,
        "params": {key: value for key, value in params.items() if key != "every"},
        "symbols": symbols,
        "domains": {key: value for key, value in domains.items() if key != "every"},
        "traces": {key: value for key, value in traces.items() if key not in ("findings", "levels")},
        "consoles": _consoles(hosts),
    }
    _mark(report, standing)
    return report


def _usable(hosts: t.Mapping[str, Row]) -> tuple[dict[str, Row], dict[str, list[str]]]:
    """Return what can be used of what hosts hold, and host -> what cannot, in words; a variable is used as a whole."""
    usable: dict[str, Row] = {}
    runs, odd_runs = valid_records(
        {host: known["trace_runs"] for host, known in hosts.items() if "trace_runs" in known}
    )
    odd: dict[str, list[str]] = {host: [problem] for host, problem in odd_runs.items()}
    for host, known in hosts.items():
        own: dict[str, t.Any] = {}
        for name, value in known.items():
            try:
                own[name] = runs[host] if name == "trace_runs" else parse(value, _SHAPES[name])
            except Odd as error:
                why = f"{name} holds no result of its module: {error}"[:_REASON_CHARACTERS]
                odd.setdefault(host, []).append(why)
        usable[host] = own
    return usable, odd


def _traces(hosts: t.Mapping[str, Row]) -> dict[str, t.Any]:
    runs = {host: known.get("trace_runs", []) for host, known in hosts.items()}
    verdicts = {host: verdict for host, known in hosts.items() if (verdict := _of(known, "trace_result"))}
    return _report_traces.traces(runs, verdicts)


def _first_of_each_section(findings: Rows) -> tuple[Rows, int]:
    """Return the findings that a page has room for, and how many there are more: no section hides another."""
    seen: collections.Counter[str] = collections.Counter()
    first = []
    for row in findings:
        seen[row["section"]] += 1
        if seen[row["section"]] <= _MOST_OF_A_SECTION:
            first.append(row)
    return first, len(findings) - len(first)


def _mark(part: t.Any, standing: t.Collection[str]) -> None:
    """Set ``has_findings`` in every row about one or several hosts: whether one of these hosts has a finding."""
    if isinstance(part, list):
        for entry in part:
            _mark(entry, standing)
    elif isinstance(part, dict):
        if "host" in part:
            part["has_findings"] = part["host"] in standing
        elif isinstance(part.get("hosts"), list):
            part["has_findings"] = any(isinstance(name, str) and name in standing for name in part["hosts"])
        for entry in list(part.values()):
            _mark(entry, standing)


def _finding(level: str, section: str, text: str, hosts: t.Iterable[str]) -> dict[str, t.Any]:
    return {"level": level, "section": section, "text": text, "hosts": sorted(set(hosts))}


def _of(known: Row, name: str) -> Row:
    """Return a result that a host has; empty where it has none."""
    value = known.get(name)
    return value if isinstance(value, t.Mapping) else {}


def _kernel(known: Row) -> Row:
    return _of(_of(known, "ansible_facts"), "tapvirt_kernel")


def _plural(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


# Trouble: what failed, and why.


def _trouble(
    hosts: t.Mapping[str, Row], odd: t.Mapping[str, t.Sequence[str]], lost: t.Collection[str]
) -> dict[str, list[str]]:
    """Return host -> why it failed, in words, for those that did."""
    why: dict[str, list[str]] = {host: list(told) for host, told in odd.items()}
    for host, known in hosts.items():
        for name, what in RESULTS.items():
            result = _of(known, name)
            text = str(result.get("msg") or "it does not say why").strip()[:_REASON_CHARACTERS]
            if result.get("unreachable"):
                why.setdefault(host, []).append(f"did not answer: {text}")
                break
            if result.get("failed") and not result.get("domains"):  # a failed domain has its own row
                why.setdefault(host, []).append(f"{what}: {text}")
        verdict = _of(known, "trace_result")
        if verdict and (verdict.get("stop_reasons") or not verdict.get("accepted", True)):
            stop_reasons = "; ".join(map(str, verdict.get("stop_reasons") or ()))
            told = stop_reasons or f"{verdict.get('outcome')}: {verdict.get('reason')}"
            why.setdefault(host, []).append(f"trace: {told}"[:_REASON_CHARACTERS])
        if host in lost:
            why.setdefault(host, ["failed or did not answer in this run"])
    return why


def _trouble_findings(trouble: t.Mapping[str, t.Sequence[str]]) -> Rows:
    """Tell each reason once, in the words of the first host: an address or a name in it is that host's."""
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for host, reasons in trouble.items():
        for reason in reasons:
            by_reason.setdefault(_ADDRESS.sub("", reason).replace(host, ""), []).append((host, reason))
    found = []
    for told in sorted(by_reason.values(), key=len, reverse=True):
        names = [host for host, _reason in told]
        found.append(_finding("bad", "hosts", f"{listed(names)}: {told[0][1]}", names))
    return found


def _cut_findings(hosts: t.Mapping[str, Row]) -> Rows:
    """Tell results that their modules have cut."""
    found = []
    sections = {"fleet_report_parameters": "parameters", "fleet_report_symbols": "symbols"}
    sections |= {"fleet_report_domains": "domains", "fleet_report_console": "consoles"}
    for name, section in sections.items():
        names = [host for host, known in hosts.items() if _of(known, name).get("truncated")]
        if names:
            text = f"{listed(names)}: {RESULTS[name]}: there are more than the module was asked to return."
            found.append(_finding("warn", section, text, names))
    return found


# Kernels.


def _kernels(hosts: t.Mapping[str, Row]) -> Rows:
    """Return ``release``, ``build_id``, ``arch``, ``symbols`` (their fingerprint) and ``hosts`` of each kernel."""
    values = {
        host: {key: word(kernel.get(key)) for key in ("release", "build_id", "arch")}
        | {"symbols": word(_of(kernel, "symbols").get("core_fingerprint"))}
        for host, known in hosts.items()
        if (kernel := _kernel(known))
    }
    return [{**group["value"], "hosts": group["hosts"]} for group in groups_of(values)]


def _fingerprint_findings(hosts: t.Mapping[str, Row]) -> Rows:
    """Tell hosts of one build-id whose symbol tables differ: they are one kernel only by name."""
    tables: dict[str, dict[str, t.Any]] = {}
    for host, known in hosts.items():
        kernel = _kernel(known)
        fingerprint = _of(kernel, "symbols").get("core_fingerprint")
        if fingerprint and kernel.get("build_id"):
            fingerprint = word(fingerprint)
            tables.setdefault(str(kernel["build_id"]), {})[host] = fingerprint
    found = []
    for build_id, fingerprints in tables.items():
        groups = groups_of(fingerprints)
        tied = len(groups) > 1 and len(groups[0]["hosts"]) == len(groups[1]["hosts"])  # nobody knows which is right
        for group in groups if tied else groups[1:]:
            text = f"{listed(group['hosts'])}: other core symbols than the other hosts of build-id {build_id[:12]}."
            found.append(_finding("bad", "kernels", text, group["hosts"]))
    return found


# Readiness.


def _readiness(hosts: t.Mapping[str, Row]) -> Rows:
    """Return ``verdict``, ``reason``, ``remedy``, ``level`` and ``hosts`` of each judgement."""
    values = {}
    for host, known in hosts.items():
        judged = _of(known, "fleet_report_readiness")
        if judged.get("verdict"):
            values[host] = {key: word(judged.get(key)) for key in ("verdict", "reason", "remedy")}
    rows = [
        {**group["value"], "level": "ok" if group["value"]["verdict"] == "ready" else "warn", "hosts": group["hosts"]}
        for group in groups_of(values)
    ]
    return sorted(rows, key=lambda row: row["level"] == "ok")


def _preflight_findings(hosts: t.Mapping[str, Row]) -> Rows:
    """Return what the playbook preflight found, each cause once."""
    causes: dict[tuple[str, str], list[str]] = {}
    for host, known in hosts.items():
        for row in _of(known, "fleet_report_preflight").get("findings") or ():
            causes.setdefault((row["level"] if row["level"] in _RANK else "warn", row["text"]), []).append(host)
    return [
        _finding(level, "hosts", f"{listed(names)}: {text}", names)
        for (level, text), names in sorted(causes.items(), key=lambda item: -len(item[1]))
    ]


def _readiness_findings(readiness: Rows) -> Rows:
    found = []
    for row in readiness:
        if row["level"] != "ok":
            reason = str(row["reason"])
            told = reason if "cannot be traced" in reason else f"cannot be traced: {reason}"
            if row["remedy"]:
                told = f"{told.rstrip('.')}. What helps: {str(row['remedy']).rstrip('.')}."
            found.append(_finding("warn", "readiness", f"{listed(row['hosts'])}: {told}", row["hosts"]))
    return found


# Module parameters.


def _params(hosts: t.Mapping[str, Row]) -> dict[str, t.Any]:
    """Return the ``columns`` (parameters and their values), a row of ``cells`` for each host, and ``every``.

    Of many parameters those that drift have a column; ``every`` is parameter -> host -> its cell, for all of them.
    """
    every: dict[str, dict[str, dict[str, t.Any]]] = {}
    for host, known in hosts.items():
        result = _of(known, "fleet_report_parameters")
        for row in result.get("params") or ():
            every.setdefault(f"{row['module']}.{row['name']}", {})[host] = _param(row, bool(result.get("planned")))
    drift = {label: sum(cell["level"] != "ok" for cell in cells.values()) for label, cells in every.items()}
    most = min(_MOST_COLUMNS, max(_LEAST_COLUMNS, _MOST_CELLS // max(len(hosts), 1)))
    columns = [_column(label, every[label]) for label in sorted(every, key=lambda label: -drift[label])[:most]]
    rows: Rows = []
    for host in hosts:
        levels = [cells[host]["level"] for cells in every.values() if host in cells]
        if levels:
            level = min(levels, key=_RANK.__getitem__)
            rows.append({"host": host, "level": level, "cells": [every[row["label"]].get(host) for row in columns]})
    rows.sort(key=lambda row: _RANK[row["level"]])
    return {"columns": columns, "more_columns": len(every) - len(columns), "rows": rows, "every": every}


def _column(label: str, cells: t.Mapping[str, dict[str, t.Any]]) -> dict[str, t.Any]:
    """Return the head of a parameter's column; what differs from the usual value is marked in its cell."""
    counts = collections.Counter(cell["value"] for cell in cells.values())
    ((usual, _number),) = counts.most_common(1)
    for cell in cells.values():
        cell["unusual"] = cell["value"] != usual
    kept = collections.Counter(cell["kept"] for cell in cells.values() if cell["kept"])
    return {
        "label": label,
        "values": [{"value": value, "count": number} for value, number in counts.most_common(_MOST_VALUES)],
        "more_values": max(len(counts) - _MOST_VALUES, 0),
        "kept": [{"file": file, "count": number} for file, number in kept.most_common(_MOST_KEPT)],
    }


def _param(row: Row, planned: bool) -> dict[str, t.Any]:
    """Return ``value``, ``note``, ``kept`` and ``level`` of a row of kernel_module_param, or of its info module.

    :param planned: the module ran in check mode, so that what was before still is.
    """
    notes = [str(text) for text in row.get("pending") or ()]
    if "value" in row:
        value = shown(row["value"]) if row.get("value_status", "known") == "known" else f"({row['value_status']})"
    else:
        value = shown(row.get("before" if planned else "after"))
        if row.get("changed") and row.get("before") != row.get("after"):
            notes.insert(0, f"wanted {shown(row.get('after'))}" if planned else f"{shown(row.get('before'))} before")
        elif row.get("changed") and planned:
            notes.insert(0, "nothing keeps it")
    return {
        "value": value,
        "note": "; ".join(notes)[:_REASON_CHARACTERS],
        "kept": str(row.get("persisted_in") or ""),
        "level": "warn" if row.get("pending") or row.get("changed") else "ok",
        "planned": planned,
    }


def _param_findings(every: t.Mapping[str, t.Mapping[str, Row]]) -> Rows:
    found = []
    for label, cells in every.items():
        for planned, what in ((True, "is not as wanted"), (False, "was changed or waits")):
            names = [host for host, cell in cells.items() if cell["level"] != "ok" and cell["planned"] == planned]
            if names:
                text = f"{label} {what} on {_plural(len(names), 'host', 'hosts')}: {listed(names)}."
                found.append(_finding("warn", "parameters", text, names))
    return sorted(found, key=lambda row: -len(row["hosts"]))


# Symbols.


def _symbols(hosts: t.Mapping[str, Row]) -> dict[str, t.Any]:
    """Return how many names were ``asked`` for, and the ``rows`` of those that are not the same on all hosts.

    Most symbols that differ do so between the same hosts, those of two kernels: they are one row, with ``names``.
    """
    tables = {
        host: result["symbols"]
        for host, known in hosts.items()
        if (result := _of(known, "fleet_report_symbols")).get("symbols")
    }
    asked = {row["name"] for rows in tables.values() for row in rows}
    alike: dict[str, dict[str, t.Any]] = {}
    for row in symbol_diff(tables):
        groups = [{"value": _symbol(group), "hosts": group["hosts"]} for group in row["groups"]]
        merged = {"names": [], "differs": row["differs"], "groups": groups}
        alike.setdefault(json.dumps([row["differs"], groups]), merged)["names"].append(row["name"])
    rows = list(alike.values())
    return {"asked": len(asked), "rows": rows[:_MOST_SYMBOLS], "more": len(rows[_MOST_SYMBOLS:])}


def _symbol(group: Row) -> str:
    if not group["present"]:
        return "not asked"
    value = group["value"]
    facts = [str(value["status"])]
    if value.get("probeable") is not None:
        facts.append("can be probed" if value["probeable"] else "cannot be probed")
    if (value.get("count") or 1) > 1:
        facts.append(f"{value['count']} of this name")
    return ", ".join(facts)


def _symbol_findings(symbols: t.Mapping[str, t.Any], hosts: t.Mapping[str, Row]) -> Rows:
    """Tell symbols that differ; about a host that differs from others of its kernel, since kernels differ anyway."""
    names = [name for row in symbols["rows"] for name in row["names"]]
    if not names:
        return []
    odd: list[str] = []
    for row in symbols["rows"]:
        of_kernel: dict[t.Any, dict[str, int]] = collections.defaultdict(dict)
        for number, group in enumerate(row["groups"]):
            for host in group["hosts"]:
                of_kernel[word(_kernel(hosts[host]).get("build_id"))][host] = number
        for numbers in of_kernel.values():
            odd += [host for group in groups_of(numbers)[1:] for host in group["hosts"]]
    return [_finding("warn", "symbols", f"Not the same on all hosts: {listed(names)}.", odd)]


# Domains.


def _domains(hosts: t.Mapping[str, Row]) -> dict[str, t.Any]:
    """Return how many domains are in each of the ``states``, the ``rows`` (worst first), and ``more``, not shown."""
    every = [
        _domain(host, row)
        for host, known in hosts.items()
        for row in _of(known, "fleet_report_domains").get("domains") or ()
    ]
    states = collections.Counter(row["state"] for row in every)
    rows = sorted(every, key=lambda row: _RANK[row["level"]])
    return {
        "every": every,
        "count": len(every),
        "states": [{"state": state, "count": number} for state, number in states.most_common()],
        "rows": rows[:_MOST_DOMAINS],
        "more": len(rows[_MOST_DOMAINS:]),
    }


def _domain(host: str, row: Row) -> dict[str, t.Any]:
    pending = [_pending(entry) for entry in row.get("pending") or ()]
    state = str(row.get("state"))
    level = "none"
    if row.get("error") or state == "crashed":
        level = "bad"
    elif pending:
        level = "warn"
    elif state == "running":
        level = "ok"
    done = "" if "changed" not in row else "changed" if row["changed"] else "unchanged"
    more = [f"and {len(pending) - _MOST_PENDING} more"] if len(pending) > _MOST_PENDING else []
    return {
        "host": host,
        "name": str(row.get("name")),
        "state": state,
        "done": done,
        "pending": [*pending[:_MOST_PENDING], *more],
        "error": _problem(row.get("error")),
        "level": level,
    }


def _problem(error: t.Any) -> str:
    """Return the problem of a row's error record; empty where the row did not fail."""
    problem = error.get("problem") if isinstance(error, t.Mapping) else error
    return str(problem)[:_REASON_CHARACTERS] if problem else ""


def _pending(entry: t.Any) -> str:
    if not isinstance(entry, t.Mapping):
        return str(entry)
    running, stored = shown(entry.get("running")), shown(entry.get("stored"))
    return f"{entry.get('what')}: {running}, stored {stored} ({entry.get('reason')})"


def _domain_findings(rows: Rows) -> Rows:
    found = [
        _finding(
            "bad", "domains", f"{row['host']}, domain {row['name']}: {row['error'] or row['state']}", [row["host"]]
        )
        for row in rows
        if row["level"] == "bad"
    ]
    waiting = [row for row in rows if row["level"] == "warn"]
    if waiting:
        names = [f"{row['name']} on {row['host']}" for row in waiting]
        text = f"{_plural(len(waiting), 'domain runs', 'domains run')} otherwise than defined: {listed(names)}."
        found.append(_finding("warn", "domains", text, [row["host"] for row in waiting]))
    return found


# The rest.


def _consoles(hosts: t.Mapping[str, Row]) -> dict[str, t.Any]:
    """Return the last characters of ``text`` of each ``host`` that read a console."""
    rows = [
        {"host": host, "text": str(text)[-_CONSOLE_CHARACTERS:]}
        for host, known in hosts.items()
        if (text := _of(known, "fleet_report_console").get("text"))
    ]
    return {"rows": rows[:_MOST_CONSOLES], "more": len(rows[_MOST_CONSOLES:])}


def _tiles(
    hosts: t.Mapping[str, Row],
    kernels: Rows,
    readiness: Rows,
    params: t.Mapping[str, t.Any],
    domains: t.Mapping[str, t.Any],
    traces: t.Mapping[str, t.Any],
    trouble: t.Mapping[str, t.Sequence[str]],
) -> Rows:
    def tile(value: t.Any, label: str, good: bool = True) -> dict[str, t.Any]:
        return {"value": str(value), "label": label, "level": "none" if good else "warn"}

    tiles = [tile(len(hosts), "host" if len(hosts) == 1 else "hosts")]
    if trouble:
        tiles.append(tile(len(trouble), "with trouble", good=False))
    if kernels:
        distinct = len({(row["release"], row["build_id"]) for row in kernels})
        tiles.append(tile(distinct, "kernel" if distinct == 1 else "kernels"))
    if readiness:
        judged = sum(len(row["hosts"]) for row in readiness)
        ready = sum(len(row["hosts"]) for row in readiness if row["level"] == "ok")
        tiles.append(tile(f"{ready} of {judged}", "can be traced", ready == judged))
    if traces["runs"]:
        tiles.append(tile(traces["count"], "trace run" if traces["count"] == 1 else "trace runs"))
    if params["rows"]:
        drifting = sum(row["level"] != "ok" for row in params["rows"])
        tiles.append(tile(drifting, "with parameters to look at", not drifting))
    if domains["count"]:
        waiting = sum(row["level"] in ("warn", "bad") for row in domains["every"])
        tiles.append(
            tile(
                domains["count"],
                f"{'domain' if domains['count'] == 1 else 'domains'}, {waiting} not as defined",
                not waiting,
            )
        )
    return tiles


def _overview(
    hosts: t.Mapping[str, Row],
    findings: Rows,
    params: t.Mapping[str, t.Mapping[str, Row]],
    domains: Rows,
    traces: t.Mapping[str, t.Any],
    trouble: t.Mapping[str, t.Sequence[str]],
) -> dict[str, t.Any]:
    """Return a row for each host: what it runs, and how it stands in each section."""
    drift: collections.Counter[str] = collections.Counter()
    for cells in params.values():
        drift.update({host: int(cell["level"] != "ok") for host, cell in cells.items()})
    found: dict[str, str] = {}
    for row in findings:  # the worst come first
        for host in row["hosts"]:
            found.setdefault(host, row["level"])
    of_host: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for domain in domains:
        of_host[domain["host"]][domain["level"]] += 1
    rows = []
    for host, known in hosts.items():
        verdict = _of(known, "fleet_report_readiness").get("verdict")
        counts = of_host.get(host)
        row = {
            "host": host,
            "kernel": word(_kernel(known).get("release")),
            "tracing": {"text": verdict, "level": "ok" if verdict == "ready" else "warn"} if verdict else None,
            "trace": traces["levels"].get(host),
            "params": {"text": drift[host], "level": "warn" if drift[host] else "ok"} if host in drift else None,
            "domains": _domain_counts(counts) if counts else None,
            "trouble": "; ".join(trouble.get(host, ())),
        }
        levels = [cell["level"] for cell in row.values() if isinstance(cell, dict)]
        row["level"] = min([*levels, found.get(host, "none")], key=_RANK.__getitem__)
        rows.append(row)
    rows.sort(key=lambda row: _RANK[row["level"]] if row["level"] in ("bad", "warn") else _RANK["ok"])
    shown_columns = [
        name for name in ("kernel", "tracing", "trace", "params", "domains", "trouble") if any(r[name] for r in rows)
    ]
    return {"columns": shown_columns, "rows": rows}


def _domain_counts(counts: collections.Counter[str]) -> dict[str, t.Any]:
    worst = min(counts, key=_RANK.__getitem__)
    words = {"bad": "with an error", "warn": "not as defined", "ok": "running", "none": "not running"}
    return {"text": ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts[key]), "level": worst}
