# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks gather, report and console_logs keep and print."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.plugin_utils._report import summaries

KERNELS: list[dict[str, t.Any]] = [
    {"value": {"release": "6.1", "version": "#1", "build_id": "ab" * 20}, "hosts": ["a"]},
    {"value": {"release": "6.12", "version": "#1", "build_id": None}, "hosts": ["b", "c", "d", "e"]},
]


def group(value: t.Any, *hosts: str, present: bool = True) -> dict[str, t.Any]:
    return {"value": value, "present": present, "hosts": list(hosts)}


DRIFT: list[dict[str, t.Any]] = [
    {"fact": "release", "groups": [group("6.1", "a"), group("6.12", "b")]},
    {"fact": "cmdline", "groups": [group("quiet splash " * 9, "a"), group(None, "b", present=False)]},
    {"fact": "cpus.online", "groups": [group(number, f"h{number}") for number in range(6)]},
]


def test_kernels_are_counted_the_most_frequent_first() -> None:
    summary = summaries.gather_summary(KERNELS, DRIFT, list("abcdef"), list("abcde"))
    assert (summary["hosts"], summary["no_answer"], summary["no_answer_count"], summary["kernels_count"]) == (
        5,
        ["f"],
        1,
        2,
    )
    assert summary["kernels"][0] == {
        "release": "6.12",
        "version": "#1",
        "build_id": None,
        "count": 4,
        "hosts": ["b", "c", "d"],
    }
    assert (summary["drift"][0], summary["drift_count"]) == ({"fact": "release", "values": 2}, 3)


def test_without_a_comparison_the_drift_is_not_known() -> None:
    summary = summaries.gather_summary(KERNELS, None, ["a"], ["a"])
    assert (summary["drift"], summary["drift_count"]) == (None, None)


def test_facts_that_differ_have_a_line_each() -> None:
    assert summaries.gather_lines(KERNELS, DRIFT, 5, "/to") == [
        "1 x 6.1 (build-id abababababab): a",
        "4 x 6.12 (build-id not visible): b, c, d, e",
        'cmdline differs: "quiet splash quiet splash quiet splash quiet splash... on a; absent on b',
        "cpus.online differs: 0 on h0; 1 on h1; 2 on h2; 3 on h3; and 2 other values",
        "3 facts differ between 5 hosts; all are in /to/drift.json.",
    ]


def test_the_head_of_a_report_and_its_findings_are_kept() -> None:
    report = {
        "tiles": [{"value": 3, "label": "hosts"}],
        "findings": [{"level": "bad", "text": "x" * 301, "hosts": ["a", "b"], "section": "hosts"}],
    }
    assert summaries.report_summary(report) == {
        "numbers": ["3 hosts"],
        "findings": [{"level": "bad", "text": "x" * 298 + "..", "hosts_count": 2}],
        "findings_count": 1,
    }


def test_consoles_are_added_up_and_hosts_with_trouble_are_named() -> None:
    fine = {"read": 2, "bytes": 10, "matched": 1, "truncated": False, "failed": ""}
    hosts: dict[str, dict[str, t.Any]] = {
        "b": {"console_logs_counts": {**fine, "failed": "y" * 301}},
        "a": {"console_logs_counts": fine},
        "C": {"console_logs_counts": {**fine, "truncated": True, "failed": "x"}},
        "silent": {},
    }
    summary = summaries.console_logs_summary(hosts, list(hosts))
    assert (summary["hosts"], summary["read"], summary["bytes"], summary["matched"], summary["truncated"]) == (
        4,
        6,
        30,
        3,
        1,
    )
    assert list(summary["failed"]) == ["b", "C", "silent"] and summary["failed_count"] == 3
    assert summary["failed"]["b"] == "y" * 297 + " .."
    assert summary["failed"]["silent"].startswith("no answer, or ")


def test_a_console_that_was_taken_over_counts_as_failed_and_its_bytes_are_counted() -> None:
    results = [
        {"text": "a", "bytes": 1, "matched": True},
        {"text": "ab", "bytes": "2", "matched": "x", "msg": "taken over"},
        {"failed": True},
    ]
    assert summaries.console_logs_counts(results, True) == {
        "read": 1,
        "bytes": 3,
        "matched": 1,
        "truncated": True,
        "failed": "taken over",
    }
    for odd in ({"failed": True}, {"text": "a"}, "x"):
        summary = summaries.console_logs_counts([odd], None)
        assert (summary["read"], summary["failed"]) == (0, "no answer")


@pytest.mark.parametrize("odd", [None, [], "x", "9" * 5000, -1, 1 << 200, True, 0.5])
def test_an_odd_count_is_none(odd: t.Any) -> None:
    assert summaries.console_logs_counts([{"text": "a", "bytes": odd, "matched": False}], False)["bytes"] == 0
