# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The moment of a wave, the wait for its end, and when hosts with different clocks were armed."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace import timeline, wave

NOW = 1_764_540_000.0


class Clock:
    """A clock that a sleep moves on."""

    def __init__(self) -> None:
        self.now = NOW

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - NOW

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(wave, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("hosts", "forks", "round_seconds", "ahead"),
    [
        (2, 5, 0.2, 1.5),
        (4, 1, "0.8", 10.5),  # one after the other, and each may have to receive the module
        (200, 25, 15.0, 60.0),
        (200, 25, 400.0, 80.0),  # a host that did not answer in the measured task is not the measure
        (100_000, 1, 9.0, 600.0),
        (3, 0, 0.1, 7.5),
    ],
)
def test_a_wave_begins_when_its_last_host_has_been_started(
    clock: Clock, hosts: int, forks: int, round_seconds: float | str, ahead: float
) -> None:
    assert wave.trace_start_at(hosts, forks, round_seconds) == NOW + ahead


def test_only_the_moment_of_this_trace_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(wave.display, "warning", warnings.append)
    assert wave.trace_moment(NOW + 5, str(NOW)) == wave.trace_moment(str(NOW + 5), NOW) == NOW + 5
    assert [wave.trace_moment(none, NOW) for none in (None, "", "None")] == [None] * 3 and warnings == []
    # Of an earlier trace, or given to the play; not set, since the first host was skipped.
    assert [wave.trace_moment(stale, NOW) for stale in (NOW - 5, str(NOW - 1e6), 0)] == [None] * 3
    assert len(warnings) == 3 and "one after the other. Do not set trace_start_at" in warnings[0]


@pytest.mark.parametrize("given", ["soon", "nan", [5], float("inf")])
def test_a_moment_that_is_no_time_is_refused(given: t.Any) -> None:
    with pytest.raises(InvalidInput, match="for trace_start_at: The role chooses the moment itself. Remove the"):
        wave.trace_moment(given, NOW)


def test_one_host_begins_at_once() -> None:
    assert wave.trace_start_at(1, 5, 3.0) is None


@pytest.mark.parametrize(
    ("start_at", "duration", "seconds"),
    [(NOW + 5, 10, 15.5), (str(NOW - 4), "10", 6.5), (NOW - 60, 10, 0), (NOW + 1e9, 10, 610.5), (NOW, 1e9, 900.5)],
)
def test_the_wait_ends_with_the_runs(
    clock: Clock, start_at: float | str, duration: float | str, seconds: float
) -> None:
    assert wave.trace_wait(start_at, duration, 3, "h1") == "The time of the runs on 3 hosts is over."
    assert clock.now - NOW == pytest.approx(seconds)


def test_the_wait_tells_how_far_the_wave_is(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(wave, "IS_TERMINAL", True)
    monkeypatch.setattr(wave.display, "display", lines.append)
    wave.trace_wait(NOW + 2, 4, 40, "h1")
    assert lines == ["40 hosts begin in 2 s", "tracing on 40 hosts, 1 of 4 s", "tracing on 40 hosts, 4 of 4 s"]


def entry(armed: t.Any, skew: t.Any = 0.0, start_at: t.Any = NOW, uncertainty: t.Any = 0.02) -> dict[str, t.Any]:
    clock = {"skew_seconds": skew, "uncertainty_seconds": uncertainty}
    return {"title": "f", "run": {"times": {"armed": armed}, "clock": clock}, "start_at": start_at}


def test_a_clock_that_is_wrong_is_corrected() -> None:
    moment = timeline.armed(entry(NOW + 3600.5, skew=3600.0))
    assert moment is not None
    assert (moment.at, moment.uncertainty_seconds) == (NOW + 0.5, 0.02)
    assert moment.offset_seconds == pytest.approx(0.5)


@pytest.mark.parametrize(
    "told",
    [
        *(entry(None), entry("soon"), entry(NOW, skew=None), entry(1e400), entry(True), entry(NOW, start_at="x")),
        *({"run": {}}, {}, []),
    ],
)
def test_a_host_that_tells_no_time_has_none(told: t.Any) -> None:
    assert timeline.armed(told) is None


def test_waves_are_apart_and_hosts_without_a_time_do_not_count() -> None:
    later = NOW + 60
    runs = {
        "canary": [entry(NOW - 30, start_at=None)],
        "a": [entry(NOW + 0.25), entry(later, start_at=later)],
        "b": [entry(NOW - 100, skew=-100.5), entry(later + 2, start_at=later, uncertainty=-1.5)],
        "c": [entry(None)],
    }
    assert timeline.wave_spreads(runs) == [
        {"hosts": 2, "late_seconds": 0.5, "spread_seconds": 0.25, "uncertainty_seconds": 0.04},
        {"hosts": 2, "late_seconds": 2.0, "spread_seconds": 2.0, "uncertainty_seconds": 1.52},
    ]
