# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of many trace runs, merged and ready to be drawn. Private to the collection.

A record is a row that a script printed: a histogram (``{"kind": "histogram", "key", "unit", "count", "buckets":
[[low, high, count], ...]}``, buckets closed below and open above), a counter (``{"kind": "count", "key", "count"}``),
or a series (``{"kind": "series", "key", "unit", "step_ms", "count", "values": [...]}``, counts in steps of time since
the probes were armed). Buckets of one script have the same bounds on every host, so they add; so do steps. A script may
print anything: :func:`valid_records` leaves out what is no such row, and tells of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import typing as t

from .._transport.edge import ANY, Kind, Need, Odd, parse
from .timeline import armed

OUTLIER_FACTOR = 4.0
"""A host stands out when what is compared is this many times the median of all hosts' (three or more)."""
LEAST_VALUES = {"p50": 20, "p99": 100}
"""A percentile of fewer values is that of one value by chance, and is not compared."""
LEAST_TOTAL = 100
"""Fewer than this is not much of anything, whatever the others count."""

Bounds = tuple[int, int]
Runs = t.Mapping[str, t.Sequence[t.Mapping[str, t.Any]]]
_MOST = 1 << 64
# Of an entry and of its run, what a report shows; the records are parsed one by one.
_SHOWN = ("outcome", "reason", "hits", "skipped", "bytes", "kernel", "truncated", "record_count", "times", "clock")
_RUN = {"probes": {"armed": ANY, "asked": ANY}, **dict.fromkeys(_SHOWN, ANY)}
_ENTRY = Need({"title": ANY, "msg": ANY, "start_at": ANY, "run": _RUN})
# A host that was armed later than that many steps after its wave is drawn from its own start.
_MOST_SHIFT = 10_000


@dataclasses.dataclass
class Histogram:
    """Counts by bucket; percentiles are the upper bound of the bucket that holds them."""

    buckets: dict[Bounds, int] = dataclasses.field(default_factory=dict)

    def add(self, rows: t.Iterable[t.Sequence[int]]) -> None:
        """Add ``[low, high, count]`` rows."""
        for low, high, count in rows:
            bounds = (low, high)
            self.buckets[bounds] = self.buckets.get(bounds, 0) + count

    @property
    def count(self) -> int:
        return sum(self.buckets.values())

    def percentile(self, share: float) -> int | None:
        """Return the upper bound of the bucket in which the share (0 to 1) of all values is reached."""
        wanted, seen = share * self.count, 0
        for (_low, high), count in sorted(self.buckets.items()):
            seen += count
            if count and seen >= wanted:
                return high
        return None

    def rows(self, axis: t.Iterable[Bounds] | None = None) -> list[list[int]]:
        """Return ``[low, high, count]`` rows, ascending; with an axis, a row for each of its buckets."""
        return [[*bounds, self.buckets.get(bounds, 0)] for bounds in (sorted(self.buckets) if axis is None else axis)]

    def axis(self) -> list[Bounds]:
        """Return the buckets' bounds with the gaps between them filled, so that distance is seen as distance."""
        bounds: list[Bounds] = []
        for low, high in sorted(self.buckets):
            while bounds and 0 < bounds[-1][1] < low:
                start = bounds[-1][1]
                bounds.append((start, min(2 * start, low)))
            bounds.append((low, high))
        return bounds


def valid_records(runs: t.Mapping[str, t.Any]) -> tuple[dict[str, list[dict[str, t.Any]]], dict[str, str]]:
    """Return the runs with the records that can be merged, and host -> what is wrong with the first that cannot."""
    good: dict[str, list[dict[str, t.Any]]] = {}
    odd: dict[str, str] = {}
    for host, entries in runs.items():
        good[host] = []
        for entry in entries if isinstance(entries, (list, tuple)) else [entries] if entries else []:
            try:
                run, problem = _run(entry)
            except Odd as error:
                odd.setdefault(host, f"trace_runs has an entry that is no run of a trace: {error}")
                continue
            good[host].append(run)
            if problem:
                odd.setdefault(host, f"the trace {run['title']} has a record that cannot be used: {problem}")
    return good, odd


def _run(entry: t.Any) -> tuple[dict[str, t.Any], str]:
    """Return a run with its records that can be merged, and what is wrong with the first that cannot.

    :raises Odd: it is no run.
    """
    head = parse(entry, _ENTRY)
    run = head.get("run") or {}
    records = (entry.get("run") or {}).get("records") or ()
    if not isinstance(records, (list, tuple)):
        raise Odd("is not a list", "run.records")
    kept, first = [], ""
    for number, record in enumerate(records):
        try:
            kept.append(parse(record, _RECORDS.get(_kind_of(record), _OTHER)))
        except Odd as error:
            first = first or str(error.below(number).below("records"))
    title = "" if head.get("title") is None else str(head["title"])
    return {**head, "title": title, "run": {**run, "records": kept}}, first


def _kind_of(record: t.Any) -> str:
    return str(record.get("kind")) if isinstance(record, t.Mapping) and isinstance(record.get("kind"), str) else ""


def _is_number(value: t.Any) -> bool:
    return isinstance(value, int) and value is not True and value is not False and -_MOST < value < _MOST


def _is_count(value: t.Any) -> bool:
    return _is_number(value) and value >= 0


def _is_bucket(row: t.Any) -> bool:
    return (
        isinstance(row, (list, tuple))
        and len(row) == 3
        and all(map(_is_number, row))
        and row[0] <= row[1]
        and row[2] >= 0
    )


def _is_step(value: t.Any) -> bool:
    return _is_count(value) and value > 0


_COUNT = Kind("a count", _is_count)
_BUCKET = Kind("a bucket, which is [low, high, count]", _is_bucket)
_OTHER = Need({"kind": ANY, "key": ANY})
_RECORDS: dict[str, t.Any] = {
    "histogram": Need({"kind": ANY, "key": ANY, "unit": ANY, "buckets": Need([_BUCKET])}),
    "count": Need({"kind": ANY, "key": ANY, "count": Need(_COUNT)}),
    "series": Need(
        {
            "kind": ANY,
            "key": ANY,
            "unit": ANY,
            "count": ANY,
            "step_ms": Need(Kind("a length in ms", _is_step)),
            "values": Need([_COUNT]),
        }
    ),
}


def histogram_plots(runs: Runs) -> list[dict[str, t.Any]]:
    """Merge the histograms of many hosts.

    :param runs: host -> its runs, each ``{"title", "run": {"records": [...]}}``, as :func:`valid_records` returns them.
    :returns: a plot for each (title, key): ``{title, key, unit, merged, usual: {p50, p99}, hosts: [{host, count, p50,
        p99, buckets, outlier, outlier_in}]}``, in order of first appearance; all buckets of a plot lie on one axis.
        ``outlier_in`` is ``p99`` or ``p50`` of a host that stands out, else null.
    """
    plots: dict[tuple[str, str, str], dict[str, Histogram]] = {}
    for host, title, record in _records(runs, "histogram"):
        name = (title, str(record.get("key", "")), str(record.get("unit", "")))
        plots.setdefault(name, {}).setdefault(host, Histogram()).add(record["buckets"])
    return [_histogram_plot(name, hosts) for name, hosts in plots.items()]


def counter_plots(runs: Runs) -> list[dict[str, t.Any]]:
    """Merge the counters of many hosts.

    :returns: a plot for each title: ``{title, keys: [{key, total, hosts: {host: count}}], hosts, usual, outliers}``,
        the largest key first; ``outliers`` is host -> its sum over all keys, of those that stand out by it.
    """
    plots: dict[str, dict[str, dict[str, int]]] = {}
    for host, title, record in _records(runs, "count"):
        by_host = plots.setdefault(title, {}).setdefault(str(record.get("key", "")), {})
        by_host[host] = by_host.get(host, 0) + record["count"]
    return [
        {
            "title": title,
            "hosts": sorted({host for by_host in keys.values() for host in by_host}),
            # A host that was traced and counted nothing is a usual one, perhaps.
            **_totals_that_stand_out(_host_totals([dict.fromkeys(_traced(runs, title), 0), *keys.values()])),
            "keys": sorted(
                ({"key": key, "total": sum(by_host.values()), "hosts": by_host} for key, by_host in keys.items()),
                key=lambda row: (-t.cast("int", row["total"]), row["key"]),
            ),
        }
        for title, keys in plots.items()
    ]


def _traced(runs: Runs, title: str) -> list[str]:
    return [host for host, entries in runs.items() if any(entry["title"] == title for entry in entries)]


def _host_totals(counts: t.Iterable[t.Mapping[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for by_host in counts:
        for host, count in by_host.items():
            totals[host] = totals.get(host, 0) + count
    return totals


def _totals_that_stand_out(totals: t.Mapping[str, int]) -> dict[str, t.Any]:
    """Return ``usual``, and ``outliers``, host -> its total."""
    usual = statistics.median(totals.values()) if totals else 0
    far = max(OUTLIER_FACTOR * usual, LEAST_TOTAL)
    outliers = {host: total for host, total in totals.items() if total >= far} if len(totals) >= 3 else {}
    return {"usual": usual, "outliers": outliers}


def series_plots(runs: Runs) -> list[dict[str, t.Any]]:
    """Merge the series of many hosts.

    The values of a run that began with its wave are moved by as many steps as the host was armed later, so that one
    step is one time on all hosts.

    :returns: a plot for each (title, key, unit, length of a step): ``{title, key, unit, step_ms, values, hosts: [{host,
        count, values, late_seconds}], usual, outliers, uncertainty_seconds}``; all values of a plot have one length,
        the longest run's. ``late_seconds`` is None for a host that was not moved, and ``uncertainty_seconds``, the
        largest of the hosts that were, is None where no host was.
    """
    plots: dict[tuple[str, str, str, int], dict[str, dict[str, t.Any]]] = {}
    uncertain: dict[tuple[str, str, str, int], float] = {}
    for host, entry, record in _entry_records(runs, "series"):
        step_ms = record["step_ms"]
        name = (entry["title"], str(record.get("key", "")), str(record.get("unit", "")), step_ms)
        row = plots.setdefault(name, {}).setdefault(
            host, {"host": host, "count": 0, "values": [], "late_seconds": None}
        )
        row["count"] += record["count"] if _is_count(record.get("count")) else sum(record["values"])
        shift, moment = 0, armed(entry)
        if moment is not None and moment.start_at is not None:
            steps = moment.offset_seconds * 1000 / step_ms
            if -0.5 <= steps <= _MOST_SHIFT:
                shift = round(steps)
                row["late_seconds"] = moment.offset_seconds
                uncertain[name] = max(uncertain.get(name, 0.0), moment.uncertainty_seconds)
        row["values"] = _sums([row["values"], [0] * shift + list(record["values"])])
    found = []
    for name, hosts in plots.items():
        merged = _sums([row["values"] for row in hosts.values()])
        rows = [row | {"values": _sums([row["values"], [0] * len(merged)])} for row in hosts.values()]
        named = dict(zip(("title", "key", "unit", "step_ms"), name, strict=True))
        standing = _totals_that_stand_out({row["host"]: row["count"] for row in rows})
        found.append(named | {"values": merged, "hosts": rows, "uncertainty_seconds": uncertain.get(name)} | standing)
    return found


def _sums(rows: t.Sequence[t.Sequence[int]]) -> list[int]:
    return [sum(column) for column in itertools.zip_longest(*rows, fillvalue=0)]


def _records(runs: Runs, kind: str) -> t.Iterator[tuple[str, str, t.Mapping[str, t.Any]]]:
    for host, entry, record in _entry_records(runs, kind):
        yield host, entry["title"], record


def _entry_records(runs: Runs, kind: str) -> t.Iterator[tuple[str, t.Mapping[str, t.Any], t.Mapping[str, t.Any]]]:
    for host, host_runs in runs.items():
        for entry in host_runs:
            for record in entry["run"]["records"]:
                if record.get("kind") == kind:
                    yield host, entry, record


def _histogram_plot(name: tuple[str, str, str], hosts: t.Mapping[str, Histogram]) -> dict[str, t.Any]:
    merged = Histogram()
    for histogram in hosts.values():
        merged.add(histogram.rows())
    axis = merged.axis()
    rows = [dict(_drawn(histogram, axis), host=host) for host, histogram in hosts.items()]
    usual = {key: _usual(rows, key) for key in ("p99", "p50")}
    for row in rows:
        row["outlier_in"] = next((key for key, bound in usual.items() if bound and _is_far(row, key, bound)), None)
        row["outlier"] = row["outlier_in"] is not None
    title, key, unit = name
    return {"title": title, "key": key, "unit": unit, "merged": _drawn(merged, axis), "usual": usual, "hosts": rows}


def _usual(rows: t.Iterable[t.Mapping[str, t.Any]], key: str) -> float | None:
    """Return the median of a percentile over the hosts; null where too few have enough values, or it has no factor."""
    values = [row[key] for row in rows if row["count"] >= LEAST_VALUES[key]]
    usual = statistics.median(values) if len(values) >= 3 else 0
    return usual if usual > 0 else None


def _is_far(row: t.Mapping[str, t.Any], key: str, usual: float) -> bool:
    return bool(row["count"] >= LEAST_VALUES[key] and row[key] >= OUTLIER_FACTOR * usual)


def _drawn(histogram: Histogram, axis: list[Bounds]) -> dict[str, t.Any]:
    return {
        "count": histogram.count,
        "p50": histogram.percentile(0.5),
        "p99": histogram.percentile(0.99),
        "buckets": histogram.rows(axis),
    }
