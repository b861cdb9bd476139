# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When runs were armed, by one clock: a host's own time without the difference of its clock to the controller's.

Private to the collection.
"""

from __future__ import annotations

import typing as t

from .._transport.edge import NUMBER, Need, Odd, parse

Row = t.Mapping[str, t.Any]

_RUN = Need(
    {
        "run": Need(
            {
                "times": Need({"armed": Need(NUMBER)}),
                "clock": Need({"skew_seconds": Need(NUMBER), "uncertainty_seconds": Need(NUMBER)}),
            }
        ),
        "start_at": NUMBER,
    }
)


class Armed(t.NamedTuple):
    """When a run was armed, in seconds since 1970 by the controller's clock, and by how much that may be wrong."""

    at: float
    uncertainty_seconds: float
    start_at: float | None

    @property
    def offset_seconds(self) -> float:
        """How long after the start of its wave the run was armed; 0 for a run that had no wave."""
        return 0.0 if self.start_at is None else self.at - self.start_at


def armed(entry: Row) -> Armed | None:
    """Return when a run of ``trace_runs`` was armed; None where that is not known."""
    try:
        told = parse(entry, _RUN)
    except Odd:
        return None
    clock = told["run"]["clock"]
    at = told["run"]["times"]["armed"] - clock["skew_seconds"]
    return Armed(at, abs(clock["uncertainty_seconds"]), told.get("start_at"))


def wave_spreads(runs: t.Mapping[str, t.Sequence[Row]]) -> list[dict[str, t.Any]]:
    """Return how far apart the hosts of each wave were armed, in the order of the waves.

    :param runs: host -> its runs, as ``trace_runs`` has them.
    :returns: for each wave of two hosts or more ``hosts`` (how many), ``late_seconds`` (the last host after the start
        of the wave), ``spread_seconds`` (the last host after the first one) and ``uncertainty_seconds`` (of the
        spread).
    """
    waves: dict[float, list[Armed]] = {}
    for entries in runs.values():
        for moment in filter(None, map(armed, entries)):
            if moment.start_at is not None:
                waves.setdefault(moment.start_at, []).append(moment)
    found = []
    for start_at, moments in sorted(waves.items()):
        if len(moments) < 2:
            continue
        moments.sort()
        first, last = moments[0], moments[-1]
        found.append(
            {
                "hosts": len(moments),
                "late_seconds": round(last.at - start_at, 3),
                "spread_seconds": round(last.at - first.at, 3),
                "uncertainty_seconds": round(sum(sorted(row.uncertainty_seconds for row in moments)[-2:]), 3),
            }
        )
    return found
