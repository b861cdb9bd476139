# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merging the records of many hosts."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tapvirt.host.plugins.filter.records import FilterModule


def run_of(*records):
    return [{"title": "read", "run": {"records": list(records)}}]


def merged(kind, runs):
    return FilterModule().filters()[f"{kind}_plots"](runs)


def histogram(*buckets):
    return {"kind": "histogram", "key": "vfs_read", "unit": "us", "buckets": [list(row) for row in buckets]}


def test_buckets_of_hosts_add_up_on_one_axis():
    runs = {"a": run_of(histogram((1, 2, 5), (2, 4, 10))), "b": run_of(histogram((2, 4, 1), (16, 32, 4)))}
    (plot,) = merged("histogram", runs)
    assert plot["merged"]["buckets"] == [[1, 2, 5], [2, 4, 11], [4, 8, 0], [8, 16, 0], [16, 32, 4]]
    assert plot["merged"]["count"] == 20
    assert [row["count"] for row in plot["hosts"]] == [15, 5]
    assert [len(row["buckets"]) for row in plot["hosts"]] == [5, 5]


def test_percentiles_are_the_bound_of_their_bucket():
    (plot,) = merged("histogram", {"a": run_of(histogram((1, 2, 98), (2, 4, 1), (4, 8, 1)))})
    assert (plot["merged"]["p50"], plot["merged"]["p99"]) == (2, 4)


def test_the_slow_host_of_three_stands_out_and_one_of_two_does_not():
    fast, slow = histogram((1, 2, 100)), histogram((64, 128, 100))
    three = merged("histogram", {"a": run_of(fast), "b": run_of(fast), "c": run_of(slow)})
    assert [row["outlier"] for row in three[0]["hosts"]] == [False, False, True]
    two = merged("histogram", {"a": run_of(fast), "c": run_of(slow)})
    assert not any(row["outlier"] for row in two[0]["hosts"])


def test_counters_are_summed_largest_first():
    runs = {
        "a": run_of({"kind": "count", "key": "hlt", "count": 3}, {"kind": "count", "key": "io", "count": 60}),
        "b": run_of({"kind": "count", "key": "io", "count": 40}),
    }
    (plot,) = merged("counter", runs)
    assert [(row["key"], row["total"]) for row in plot["keys"]] == [("io", 100), ("hlt", 3)]
    assert plot["keys"][0]["hosts"] == {"a": 60, "b": 40}


def test_an_empty_or_failed_run_draws_nothing():
    assert merged("histogram", {"a": [{"title": "read", "run": None}], "b": run_of()}) == []


def test_a_wrong_input_is_named():
    with pytest.raises(AnsibleFilterError, match="The runs are a dictionary"):
        FilterModule().filters()["histogram_plots"](["a"])
