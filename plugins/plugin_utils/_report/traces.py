# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The traces of a report: histograms, heat maps over hosts, counters, and how each run went. Private to the collection.

A heat map has a strip for each host: the share of its values in each bucket, as one of five tones. Strips lie on one
axis, so that a host whose values lie elsewhere is seen without reading a number. Those of a time line have one scale as
well, so that a host that is busier than the others is darker.
"""

from __future__ import annotations

import collections
import math
import statistics
import typing as t

from .._format import listed, measured, short, word
from .._trace.records import counter_plots, histogram_plots, series_plots

Row = t.Mapping[str, t.Any]
Rows = list[dict[str, t.Any]]

TONES = "abcde"
"""The tones of a heat map from few to most, as the style sheet calls them; ``-`` means an empty cell."""

_MOST_STRIPS = 2000
_MOST_PARTS = 60
_MOST_PLOTS = 30
_MOST_RUNS = 1000
_MOST_KEYS = 50
_OWN_PLOTS = 8
_WIDE_TABLE = 12
_REASON_CHARACTERS = 400
_GOOD = ("ok", "zero_hits", "planned")
_BY_LEVEL = ("bad", "none", "ok")


def traces(runs: t.Mapping[str, t.Sequence[Row]], verdicts: t.Mapping[str, Row] | None = None) -> dict[str, t.Any]:
    """Return the traces of many hosts, ready to be laid out.

    :param runs: host -> its runs, each ``{"title", "run"}``, as :func:`._records.sound` returns them.
    :param verdicts: host -> what a campaign made of its last run (``accepted``), where there was one.
    :returns: ``histograms``, ``series``, ``counters``, ``runs`` (those that did not go well first), how many of each
        are not shown (``more_...``), ``findings``, and ``levels``, host -> ``{text, level}`` of its runs.
    """
    recorded = {host: entries for host, entries in runs.items() if entries}
    plots = histogram_plots(recorded)
    series = series_plots(recorded)
    counters = counter_plots(recorded)
    strips = max(_MOST_STRIPS // max(len(plots[:_MOST_PLOTS]) + len(series[:_MOST_PLOTS]), 1), 1)
    every = [
        run_row(host, entry, (verdicts or {}).get(host) if entry is entries[-1] else None)
        for host, entries in recorded.items()
        for entry in entries
    ]
    every.sort(key=lambda row: _BY_LEVEL.index(row["level"]))
    name = _names([*plots, *series])
    return {
        "histograms": [_histogram(plot, name(plot), strips) for plot in plots[:_MOST_PLOTS]],
        "more_histograms": len(plots[_MOST_PLOTS:]),
        "series": [_series(plot, name(plot), strips) for plot in series[:_MOST_PLOTS]],
        "more_series": len(series[_MOST_PLOTS:]),
        "counters": [_counter(plot) for plot in counters[:_MOST_PLOTS]],
        "more_counters": len(counters[_MOST_PLOTS:]),
        "runs": every[:_MOST_RUNS],
        "more_runs": len(every[_MOST_RUNS:]),
        "findings": [
            *_outliers(plots, name),
            *(finding for plot in series for finding in _busy(plot, name(plot), plot["unit"])),
            *(finding for plot in counters for finding in _busy(plot, plot["title"], "in all")),
            *_bad_runs(every),
            *_cut(every),
        ],
        "count": len(every),
        "levels": _levels(every, plots),
    }


def _names(plots: t.Sequence[Row]) -> t.Callable[[Row], str]:
    """Return what names a plot: its title, with the key and the unit where the title alone does not tell it apart."""
    titles = collections.Counter(plot["title"] for plot in plots)
    keyed = collections.Counter((plot["title"], plot["key"]) for plot in plots)

    def name(plot: Row) -> str:
        title, key, unit = plot["title"], plot["key"], plot["unit"]
        parts = [title] + [key] * bool(key and (key not in title or titles[title] > 1))
        return ", ".join(parts + [unit] * (keyed[title, key] > 1))

    return name


def _histogram(plot: Row, name: str, strips: int) -> dict[str, t.Any]:
    unit = plot["unit"]
    hosts = sorted(plot["hosts"], key=lambda row: (not row["outlier"], -(row["p99"] or 0), -(row["p50"] or 0)))
    axis = plot["merged"]["buckets"]
    # Few hosts are all drawn by themselves; of many, those that stand out.
    alone = hosts if len(hosts) <= _OWN_PLOTS else [row for row in hosts if row["outlier"]][:_OWN_PLOTS]
    return {
        "name": name,
        "summary": f"{short(plot['merged']['count'])} values of {len(hosts)} hosts" + _spread(plot["merged"], unit),
        "low": measured(axis[0][0], unit) if axis else "",
        "high": measured(axis[-1][1], unit) if axis else "",
        "bars": _bars(axis, unit, 760, 58),
        "alone": [
            {
                "host": row["host"],
                "outlier": row["outlier"],
                "summary": f"{short(row['count'])} values" + _spread(row, unit),
                "bars": _bars(row["buckets"], unit, 340, 60),
            }
            for row in alone
        ],
        "hosts": [
            {
                "host": row["host"],
                "outlier": row["outlier"],
                "count": row["count"],
                "p50": row["p50"],
                "p99": row["p99"],
                "p50_text": _below(row["p50"], unit),
                "p99_text": _below(row["p99"], unit),
                "strip": _strip([count for _low, _high, count in row["buckets"]]),
            }
            for row in hosts[:strips]
        ],
        "more_hosts": len(hosts[strips:]),
    }


def _series(plot: Row, name: str, strips: int) -> dict[str, t.Any]:
    """Return a time line: bars and strips as those of a histogram, whose buckets are steps of time."""
    step = plot["step_ms"]

    def buckets(values: t.Sequence[int]) -> list[list[int]]:
        return [[number * step, (number + 1) * step, value] for number, value in enumerate(values)]

    hosts = sorted(plot["hosts"], key=lambda row: (row["host"] not in plot["outliers"], -max(row["values"], default=0)))
    most = max((max(_parts(row["values"]), default=0) for row in hosts), default=0)
    total = sum(row["count"] for row in hosts)
    return {
        "name": name,
        "summary": f"{short(total)} {plot['unit']} on {len(hosts)} hosts, in steps of {measured(step, 'ms')}"
        + _clocks(plot),
        "has_late": plot["uncertainty_seconds"] is not None,
        "end": measured(len(plot["values"]) * step, "ms"),
        "bars": _bars(buckets(plot["values"]), "ms", 760, 58),
        "hosts": [
            {
                "host": row["host"],
                "outlier": row["host"] in plot["outliers"],
                "count": row["count"],
                "most": max(row["values"], default=0),
                "at_ms": (at := row["values"].index(max(row["values"])) * step if row["values"] else 0),
                "at": measured(at, "ms"),
                "late_ms": "" if row["late_seconds"] is None else round(1000 * row["late_seconds"]),
                "late": "-" if row["late_seconds"] is None else f"{row['late_seconds']:.2f} s",
                "strip": _strip(row["values"], most),
            }
            for row in hosts[:strips]
        ],
        "more_hosts": len(hosts[strips:]),
    }


def _clocks(plot: Row) -> str:
    """Return how far the hosts of a time line can be laid over each other, as the end of a sentence."""
    if plot["uncertainty_seconds"] is None:
        return ""
    wrong = measured(plot["uncertainty_seconds"] * 1000, "ms")
    text = f"; the differences of the hosts' clocks are taken out, with an error of at most {wrong}"
    own = [row["host"] for row in plot["hosts"] if row["late_seconds"] is None]
    return f"{text}; from their own start: {listed(own)}" if own else text


def _below(bound: int | None, unit: str) -> str:
    return "-" if bound is None else f"< {measured(bound, unit)}"


def _spread(drawn: Row, unit: str) -> str:
    if drawn["p50"] is None:
        return ""
    return f"; half of them below {measured(drawn['p50'], unit)}, 99 % below {measured(drawn['p99'], unit)}"


def _bars(buckets: t.Sequence[t.Sequence[int]], unit: str, width: int, apart: int) -> dict[str, t.Any]:
    """Return where the bars of a histogram of this width (and a height of 150) are, and the labels below it."""
    highest = max((count for _low, _high, count in buckets), default=0)
    step = width / max(len(buckets), 1)
    every = max(math.ceil(apart / step), 1)
    bars, labels = [], []
    for number, (low, high, count) in enumerate(buckets):
        if count:
            tall = max(round(108 * count / highest, 1), 1)
            bars.append(
                {
                    "x": round(number * step + 1, 1),
                    "y": round(126 - tall, 1),
                    "width": round(max(step - 2, 1), 1),
                    "height": tall,
                    "title": f"{measured(low, unit)} to {measured(high, unit)}: {count}",
                }
            )
        if number % every == 0:
            labels.append({"x": round(number * step + 1, 1), "text": measured(low, unit)})
    return {"width": width, "bars": bars, "labels": labels}


def _parts(counts: t.Sequence[int]) -> list[int]:
    """Return sums of neighbours, so that a strip has no more parts than can be told apart."""
    wide = math.ceil(len(counts) / _MOST_PARTS)
    return [sum(counts[start : start + wide]) for start in range(0, len(counts), wide)] if counts else []


def _strip(counts: t.Sequence[int], most: int | None = None) -> str:
    """Return the tone of each part of a strip, a letter each.

    :param most: what has the darkest tone; without it, the largest part of this strip.
    """
    parts = _parts(counts)
    highest = max(parts, default=0) if most is None else most
    # A root, since a latency's tail of a few values is what is looked for.
    return "".join(TONES[math.ceil(math.sqrt(part / highest) * len(TONES)) - 1] if part else "-" for part in parts)


def _counter(plot: Row) -> dict[str, t.Any]:
    hosts, keys = plot["hosts"], plot["keys"]
    everything = sum(row["total"] for row in keys)
    rows = []
    for row in keys[:_MOST_KEYS]:
        counts = [row["hosts"].get(host, 0) for host in hosts]
        most = max(counts)
        rows.append(
            {
                "key": row["key"],
                "total": row["total"],
                "share": round(100 * row["total"] / everything, 1) if everything else 0,
                "counts": counts if len(hosts) <= _WIDE_TABLE else [],
                "median": round(statistics.median(counts)),
                "most": most,
                "most_host": hosts[counts.index(most)],
            }
        )
    return {
        "name": plot["title"],
        "hosts": hosts if len(hosts) <= _WIDE_TABLE else [],
        "host_count": len(hosts),
        "rows": rows,
        "more_rows": len(keys[_MOST_KEYS:]),
    }


def run_row(host: str, entry: Row, verdict: Row | None = None) -> dict[str, t.Any]:
    """Return a run as a row; a campaign that has judged it knows better whether it is good."""
    run = entry["run"]
    outcome = str(run.get("outcome") or "no result")
    probes = run.get("probes") or {}
    good = bool(verdict.get("accepted", True) and not verdict.get("stop_reasons")) if verdict else outcome in _GOOD
    return {
        "host": host,
        "title": entry["title"],
        "outcome": outcome,
        "level": ("ok" if outcome == "ok" else "none") if good else "bad",
        "reason": "" if good else str(run.get("reason") or entry.get("msg") or "")[:_REASON_CHARACTERS],
        "judged": verdict is not None,
        "cut": f"{len(run['records'])} of {run.get('record_count')}" if run.get("truncated") else "",
        **{key: word(probes.get(key)) for key in ("armed", "asked")},
        **{key: word(run.get(key)) for key in ("hits", "skipped", "bytes", "kernel")},
    }


def _outliers(plots: t.Sequence[Row], name: t.Callable[[Row], str]) -> Rows:
    found = []
    for plot in plots:
        for row in plot["hosts"]:
            key = row["outlier_in"]
            if key:
                share = {"p99": "99 %", "p50": "half"}[key]
                here, usual = (measured(value, plot["unit"]) for value in (row[key], plot["usual"][key]))
                where = f"{row['host']} stands out in {name(plot)}"
                text = f"{where}: {share} of its values are below {here}, of a usual host's below {usual}."
                found.append({"level": "bad", "section": "traces", "text": text, "hosts": [row["host"]]})
    return found


def _busy(plot: Row, name: str, what: str) -> Rows:
    """Tell hosts whose counts are far from the usual ones: that may be their work, and so is no fault."""
    return [
        {
            "level": "warn",
            "section": "traces",
            "text": f"{host} stands out in {name}: {short(total)} {what}, of a usual host {short(plot['usual'])}.",
            "hosts": [host],
        }
        for host, total in plot["outliers"].items()
    ]


def _cut(runs: Rows) -> Rows:
    hosts: dict[str, list[str]] = {}
    for run in runs:
        if run["cut"]:
            hosts.setdefault(f"of the trace {run['title']} {run['cut']} records were kept", []).append(run["host"])
    return [
        {"level": "warn", "section": "runs", "text": f"{listed(names)}: {text}.", "hosts": sorted(set(names))}
        for text, names in hosts.items()
    ]


def _bad_runs(runs: Rows) -> Rows:
    hosts: dict[str, list[str]] = {}
    for run in runs:
        if run["level"] == "bad" and not run["judged"]:  # a campaign's verdict covers the run
            hosts.setdefault(f"the trace {run['title']} ended as {run['outcome']}: {run['reason']}", []).append(
                run["host"]
            )
    return [
        {"level": "bad", "section": "runs", "text": f"{listed(names)}: {text}", "hosts": sorted(set(names))}
        for text, names in hosts.items()
    ]


def _levels(runs: Rows, plots: t.Sequence[Row]) -> dict[str, dict[str, str]]:
    levels: dict[str, dict[str, str]] = {}
    for run in reversed(runs):  # those that went wrong come first, and so are kept
        levels[run["host"]] = {"text": run["outcome"], "level": run["level"]}
    for plot in plots:
        for row in plot["hosts"]:
            if row["outlier"] and levels[row["host"]]["level"] != "bad":
                levels[row["host"]] = {"text": "stands out", "level": "bad"}
    return levels
