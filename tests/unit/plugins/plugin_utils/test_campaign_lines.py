# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The messages of the playbook trace."""

from __future__ import annotations

import typing as t

from ansible_collections.tapvirt.host.plugins.plugin_utils._trace import campaign_lines

CAMPAIGN: dict[str, t.Any] = {
    "hosts": {
        "a": {"outcome": "overloaded", "reason": "too much", "stop_reasons": ["x", "y"], "kernel": "6.1"},
        "b": {"outcome": "ok", "hits": 4, "records": 0, "bytes": 9, "kernel": "6.1"},
        "c": {"outcome": "ok", "hits": 0, "records": 2, "bytes": 9},
        "d": {"outcome": "planned"},
    },
    "left_out": {"e": "Not ready", "f": "no answer", "g": "no answer"},
    "trouble": {"b": "a record\nis odd"},
    "histograms": [
        {"title": "reads", "key": "vda", "unit": "us", "count": 7, "p50": 8, "p99": 16, "outliers": ["a", "b"]},
        {"title": "calls of f", "key": "f", "unit": "us", "count": 7, "p50": 8, "p99": 16, "outliers": []},
    ],
    "counters": [{"title": "exits", "hosts": 2, "totals": {"hlt": 3, "exits": 4}}],
    "waves": [{"hosts": 3, "late_seconds": 0.312, "spread_seconds": 0.3, "uncertainty_seconds": 0.024}],
    "outcomes": {"ok": 2, "overloaded": 1, "planned": 1},
    "left_out_count": 3,
    "traced": 3,
}


def test_a_campaign_has_a_line_for_each_host_and_for_what_all_recorded() -> None:
    assert campaign_lines.trace_summary_lines(CAMPAIGN, page="/x.html") == [
        "a (6.1): overloaded; too much; stopped the campaign: x; y",
        "b (6.1): ok, 4 hits, 0 records (it printed 9 bytes of other text, which trace_output keeps)",
        "c: ok, 0 hits, 2 records",
        "d: planned",
        "f, g: not traced: no answer",
        "e: not traced: Not ready",
        "b: a record",
        "is odd",
        "reads, vda: 7 values, half of them below 8 us, 99 % below 16 us; outliers: a, b",
        "calls of f: 7 values, half of them below 8 us, 99 % below 16 us",
        "exits, hlt: counted 3 times",
        "exits: counted 4 times",
        "3 hosts were armed within 0.30 s of each other, with an error of at most 0.02 s; the last one 0.31 s after the"
        " start of the wave",
        "3 of 7 hosts were traced.",
        "The page: /x.html",
    ]


def test_check_mode_has_no_page() -> None:
    assert campaign_lines.trace_summary_lines(CAMPAIGN, planned=True, page="/x")[-1] == "3 of 7 hosts were planned."


def test_what_went_wrong_everywhere_is_reported_once_for_each_reason() -> None:
    assert campaign_lines.trace_failure_lines(CAMPAIGN) == [
        "f, g: no answer",
        "e: Not ready",
        "b, c: ok",
        "d: planned",
        "a: too much",
    ]


def test_hosts_that_are_not_ready_are_named_with_the_reason() -> None:
    hosts: dict[str, dict[str, t.Any]] = {f"h{number}": {"trace_not_ready_reason": "no staprun"} for number in range(7)}
    hosts |= {"ready": {"trace_not_ready_reason": ""}, "silent": {}}
    answered = [host for host in hosts if host != "silent"]
    assert campaign_lines.trace_unready_lines(hosts, list(hosts), answered) == [
        "h0, h1, h2, h3, h4 and 2 more: no staprun",
        "1 of 9 hosts are ready to be traced.",
        "No answer from silent.",
    ]
    assert campaign_lines.trace_unready_lines(hosts, ["ready"], ["ready"]) == ["1 of 1 hosts are ready to be traced."]


def test_why_no_further_wave_begins() -> None:
    failed = {"stop_reasons": [], "accepted": False, "outcome": "timeout", "reason": "too slow"}
    hosts: dict[str, dict[str, t.Any]] = {
        "a": {"trace_wave_hosts": 1, "trace_result": {**failed, "stop_reasons": ["x", "y"]}},
        "b": {"trace_wave_hosts": 1, "trace_result": failed},
        "c": {"trace_wave_hosts": 1, "trace_result": {**failed, "accepted": True}},
        "d": {"trace_wave_hosts": 1},
        "e": {},
    }
    assert campaign_lines.trace_stop_lines(hosts, list("abcd"), list(hosts)) == [
        "a: x",
        "a: y",
        "b: timeout: too slow",
        "d: it failed before its run was judged",
        "No further wave begins. Not traced: e.",
    ]
    assert campaign_lines.trace_stop_lines(hosts, [], ["a"]) == ["No further wave begins. Not traced: none."]
