# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of many trace runs, merged and ready to be drawn. Private to the collection.

A record is a row that a script printed: a histogram (``{"kind": "histogram", "key", "unit", "count", "buckets":
[[low, high, count], ...]}``, buckets closed below and open above), a counter (``{"kind": "count", "key", "count"}``),
or a series (``{"kind": "series", "key", "unit", "step_ms", "count", "values": [...]}``, counts in steps of time since
the probes were armed). Buckets of one script have the same bounds on every host, so they add; so do steps.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import typing as t

OUTLIER_FACTOR = 4.0
"""A host stands out when its 99th percentile is this many times the median of all hosts' (three or more)."""

Bounds = tuple[int, int]


@dataclasses.dataclass
class Histogram:
    """Counts by bucket; percentiles are the upper bound of the bucket that holds them."""

    buckets: dict[Bounds, int] = dataclasses.field(default_factory=dict)

    def add(self, rows: t.Iterable[t.Sequence[int]]) -> None:
        """Add ``[low, high, count]`` rows."""
        for low, high, count in rows:
            bounds = (int(low), int(high))
            self.buckets[bounds] = self.buckets.get(bounds, 0) + int(count)

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


def histogram_plots(runs: t.Mapping[str, t.Sequence[t.Mapping[str, t.Any]]]) -> list[dict[str, t.Any]]:
    """Merge the histograms of many hosts.

    :param runs: host -> its runs, each ``{"title", "run": {"records": [...]}}``.
    :returns: a plot for each (title, key): ``{title, key, unit, merged, hosts: [{host, count, p50, p99, buckets,
        outlier}]}``, in order of first appearance; all buckets of a plot lie on one axis.
    """
    plots: dict[tuple[str, str, str], dict[str, Histogram]] = {}
    for host, title, record in _records(runs, "histogram"):
        name = (title, str(record.get("key", "")), str(record.get("unit", "")))
        plots.setdefault(name, {}).setdefault(host, Histogram()).add(record.get("buckets", ()))
    return [_histogram_plot(name, hosts) for name, hosts in plots.items()]


def counter_plots(runs: t.Mapping[str, t.Sequence[t.Mapping[str, t.Any]]]) -> list[dict[str, t.Any]]:
    """Merge the counters of many hosts: ``{title, keys: [{key, total, hosts: {host: count}}], hosts}``, sorted."""
    plots: dict[str, dict[str, dict[str, int]]] = {}
    for host, title, record in _records(runs, "count"):
        by_host = plots.setdefault(title, {}).setdefault(str(record.get("key", "")), {})
        by_host[host] = by_host.get(host, 0) + int(record.get("count", 0))
    return [
        {
            "title": title,
            "hosts": sorted({host for by_host in keys.values() for host in by_host}),
            "keys": sorted(
                ({"key": key, "total": sum(by_host.values()), "hosts": by_host} for key, by_host in keys.items()),
                key=lambda row: (-t.cast("int", row["total"]), row["key"]),
            ),
        }
        for title, keys in plots.items()
    ]


def series_plots(runs: t.Mapping[str, t.Sequence[t.Mapping[str, t.Any]]]) -> list[dict[str, t.Any]]:
    """Merge the series of many hosts.

    :returns: a plot for each (title, key, unit, length of a step): ``{title, key, unit, step_ms, values, hosts: [{host,
        count, values}]}``; all values of a plot have one length, the longest run's.
    """
    plots: dict[tuple[str, str, str, int], dict[str, dict[str, t.Any]]] = {}
    for host, title, record in _records(runs, "series"):
        name = (title, str(record.get("key", "")), str(record.get("unit", "")), int(record.get("step_ms", 0)))
        row = plots.setdefault(name, {}).setdefault(host, {"host": host, "count": 0, "values": []})
        row["count"] += int(record.get("count", 0))
        row["values"] = _sums([row["values"], [int(value) for value in record.get("values", ())]])
    found = []
    for (title, key, unit, step_ms), hosts in plots.items():
        merged = _sums([row["values"] for row in hosts.values()])
        rows = [row | {"values": _sums([row["values"], [0] * len(merged)])} for row in hosts.values()]
        named = {"title": title, "key": key, "unit": unit, "step_ms": step_ms}
        found.append(named | {"values": merged, "hosts": rows})
    return found


def _sums(rows: t.Sequence[t.Sequence[int]]) -> list[int]:
    return [sum(column) for column in itertools.zip_longest(*rows, fillvalue=0)]


def _records(
    runs: t.Mapping[str, t.Sequence[t.Mapping[str, t.Any]]], kind: str
) -> t.Iterator[tuple[str, str, t.Mapping[str, t.Any]]]:
    for host, host_runs in runs.items():
        for entry in host_runs:
            for record in (entry.get("run") or {}).get("records") or ():
                if record.get("kind") == kind:
                    yield host, str(entry.get("title", "")), record


def _histogram_plot(name: tuple[str, str, str], hosts: t.Mapping[str, Histogram]) -> dict[str, t.Any]:
    merged = Histogram()
    for histogram in hosts.values():
        merged.add(histogram.rows())
    tails = [tail for tail in (histogram.percentile(0.99) for histogram in hosts.values()) if tail is not None]
    usual = statistics.median(tails) if len(tails) >= 3 else None
    axis = merged.axis()
    rows = []
    for host, histogram in hosts.items():
        tail = histogram.percentile(0.99)
        stands_out = bool(usual and tail is not None and tail >= OUTLIER_FACTOR * usual)
        rows.append(dict(_drawn(histogram, axis), host=host, outlier=stands_out))
    return {"title": name[0], "key": name[1], "unit": name[2], "merged": _drawn(merged, axis), "hosts": rows}


def _drawn(histogram: Histogram, axis: list[Bounds]) -> dict[str, t.Any]:
    return {
        "count": histogram.count,
        "p50": histogram.percentile(0.5),
        "p99": histogram.percentile(0.99),
        "buckets": histogram.rows(axis),
    }
