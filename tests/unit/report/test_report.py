# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report says of a fleet whose trouble is known."""

from __future__ import annotations

import copy
import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tapvirt.host.plugins.filter.report import fleet_report as report_filter
from ansible_collections.tapvirt.host.plugins.plugin_utils._records import series_plots
from ansible_collections.tapvirt.host.plugins.plugin_utils._report import fleet_report
from ansible_collections.tapvirt.host.plugins.plugin_utils._text import escaped, listed, measured, short, shown

from . import fleet

FLEET = fleet.fleet(30)
REPORT = fleet_report(FLEET)


def finding(text: str) -> dict[str, t.Any]:
    (row,) = [row for row in REPORT["findings"] if text in row["text"]]
    return row


@pytest.mark.parametrize(
    ("host", "level", "section", "text"),
    [
        (fleet.SLOW, "bad", "traces", "stands out in hrtimer_start_range_ns: 99 % of its values are below 16.4 ms"),
        (fleet.LOST, "bad", "hosts", "did not answer: Connection timed out"),
        (fleet.UNREADY, "warn", "readiness", "cannot be traced: staprun is not installed"),
        (fleet.DRIFTED, "warn", "parameters", "kvm.halt_poll_ns was changed or waits on 1 host"),
        (fleet.OTHER_TABLE, "bad", "kernels", "other core symbols than the other hosts of build-id 1f1f1f1f1f1f"),
        (fleet.OVERLOADED, "bad", "runs", "the trace kvm_exits demo-talker ended as overloaded"),
        (fleet.BROKEN_DOMAIN, "bad", "domains", "domain guest1: guest1: its disk <vda> is not there"),
        (fleet.PENDING_DOMAIN, "warn", "domains", "1 domain runs otherwise than defined: guest0 on host0002"),
    ],
)
def test_what_is_wrong_is_told_of_the_host_that_has_it(host: str, level: str, section: str, text: str) -> None:
    row = finding(text)
    assert (row["hosts"], row["level"], row["section"]) == ([host], level, section)


def test_nothing_else_is_told_and_the_worst_comes_first() -> None:
    assert len(REPORT["findings"]) == 11  # more: two overloaded runs, the symbol
    levels = [row["level"] for row in REPORT["findings"]]
    assert levels == sorted(levels)


def test_symbols_that_differ_are_told_with_the_hosts_of_each_kind() -> None:
    (row,) = REPORT["symbols"]["rows"]
    assert row["name"] == "vfs_read"
    assert row["differs"] == ["probeable"]
    assert [group["value"] for group in row["groups"]] == ["found, can be probed", "found, cannot be probed"]
    assert sum(len(group["hosts"]) for group in row["groups"]) == 29


def test_the_hosts_with_trouble_come_first() -> None:
    rows = REPORT["hosts"]["rows"]
    assert len(rows) == 30
    assert [row["level"] for row in rows[:7]] == ["bad"] * 4 + ["warn"] * 3
    assert {row["host"] for row in rows[:4]} == {fleet.SLOW, fleet.LOST, fleet.OVERLOADED, fleet.BROKEN_DOMAIN}
    assert REPORT["hosts"]["columns"] == ["kernel", "tracing", "trace", "params", "domains", "trouble"]


def test_a_fleet_without_trouble_has_nothing_to_tell() -> None:
    fine = {name: FLEET[name] for name in ("host0008", "host0009")}
    for known in (fine := copy.deepcopy(fine)).values():
        known["fleet_report_symbols"]["symbols"][0]["probeable"] = True
    assert fleet_report(fine)["findings"] == []


def test_a_strip_shows_where_the_values_of_a_host_lie() -> None:
    plot = REPORT["traces"]["histograms"][0]
    assert plot["hosts"][0]["host"] == fleet.SLOW
    slow, usual = plot["hosts"][0]["strip"], plot["hosts"][-1]["strip"]
    assert slow.startswith("#0000 0 ") and slow.endswith("100%")
    assert usual.startswith("var(--") and usual.endswith("#0000 0 100%")
    assert "var(--e)" in slow and "var(--e)" in usual
    assert [row["host"] for row in plot["alone"]] == [fleet.SLOW]


def test_a_time_line_shows_when_a_host_was_busy() -> None:
    (plot,) = REPORT["traces"]["series"]
    first = plot["hosts"][0]
    assert (first["host"], first["at"], plot["end"]) == (fleet.SLOW, "4 s", "9 s")
    assert first["strip"].startswith("var(--b) 0 44.4%,var(--e) 0 55.6%,")
    assert len(plot["bars"]["bars"]) == 9


def test_time_lines_of_unlike_length_are_added_step_by_step() -> None:
    def run(values: list[int]) -> list[dict[str, t.Any]]:
        record = {"kind": "series", "key": "f", "unit": "calls", "step_ms": 100, "count": 9, "values": values}
        return [{"title": "f", "run": {"outcome": "ok", "records": [record, record]}}]

    (plot,) = series_plots({"a": run([1, 2, 3]), "b": run([1])})
    assert plot["values"] == [4, 4, 6]
    assert [row["values"] for row in plot["hosts"]] == [[2, 4, 6], [2, 0, 0]]
    assert [row["count"] for row in plot["hosts"]] == [18, 18]


def test_parameters_are_a_matrix_with_what_was_before() -> None:
    params = REPORT["params"]
    labels = [column["label"] for column in params["columns"]]
    assert labels == ["kvm.halt_poll_ns", "kvm_amd.nested", "zswap.compressor"]
    first = params["rows"][0]
    assert (first["host"], first["level"]) == (fleet.DRIFTED, "warn")
    assert first["cells"][0]["note"] == "0 before; kept in /etc/modprobe.d/zz-tapvirt.conf"
    assert params["columns"][1]["values"] == [{"value": "true", "count": 29}]


def test_parameters_that_were_only_compared_are_as_they_were_before() -> None:
    row = {"module": "kvm", "name": "nx", "before": "off", "after": "on", "changed": True, "pending": []}
    kept = row | {"name": "mp", "before": "on"}
    report = fleet_report({"a": {"fleet_report_parameters": {"params": [row, kept], "planned": True}}})
    cells = report["params"]["rows"][0]["cells"]
    assert [(cell["value"], cell["note"]) for cell in cells] == [("off", "wanted on"), ("on", "nothing keeps it")]
    assert report["findings"][0]["text"] == "kvm.nx is not as wanted on 1 host: a."


def test_results_of_info_modules_will_do() -> None:
    params: list[dict[str, t.Any]] = [
        {"module": "kvm", "name": "nx", "value": None, "value_status": "restricted", "pending": []}
    ]
    domains = [{"name": "web1", "state": "shutoff", "pending": [], "vcpus": 2}]
    known = {"fleet_report_parameters": {"params": params}, "fleet_report_domains": {"domains": domains}}
    report = fleet_report({"a": known})
    assert report["params"]["rows"][0]["cells"][0]["value"] == "(restricted)"
    assert report["domains"]["rows"][0]["done"] == ""
    assert report["findings"] == []


def test_hosts_that_were_lost_without_a_word_are_told() -> None:
    report = fleet_report({"a": {}, "b": {}}, {"b"})
    (row,) = report["findings"]
    assert row["text"] == "b: failed or did not answer in this run"
    assert report["hosts"]["columns"] == ["trouble"]


def test_nothing_at_all_is_a_report() -> None:
    report = fleet_report({})
    assert report["findings"] == []
    assert report["tiles"] == [{"value": "0", "label": "hosts", "level": "none"}]


def test_many_domains_are_cut_behind_those_that_matter() -> None:
    domains = [{"name": f"g{number}", "state": "running", "pending": []} for number in range(2500)]
    domains[-1]["state"] = "crashed"
    found = fleet_report({"a": {"fleet_report_domains": {"domains": domains}}})["domains"]
    assert (len(found["rows"]), found["more"], found["count"]) == (2000, 500, 2500)
    assert found["rows"][0]["name"] == "g2499"


def test_the_filter_takes_hosts_by_name_and_escapes_for_a_page() -> None:
    page = report_filter(FLEET, [fleet.BROKEN_DOMAIN], html=True)
    assert any("&lt;vda&gt;" in row["text"] for row in page["findings"])
    assert "&lt;" not in str(report_filter(FLEET, [fleet.BROKEN_DOMAIN]))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("x", []), "'x' is not a dictionary of hosts"),
        (({}, "web1"), "hosts: 'web1' is not a list of hosts"),
        (({}, ["web1"]), "hosts: 'web1' is not a host of the inventory"),
        (({"web1": {"trace_runs": 7}}, ["web1"]), "a variable holds no result of its module"),
        (
            ({"web1": {"fleet_report_parameters": {"params": [{}]}}}, ["web1"]),
            "a variable holds no result of its module",
        ),
    ],
)
def test_what_is_no_input_is_refused_in_words(arguments: tuple[t.Any, t.Any], why: str) -> None:
    with pytest.raises(AnsibleFilterError, match=why):
        report_filter(*arguments)


def test_words() -> None:
    assert listed(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert [short(number) for number in (999, 12345, 1234567, 2.5e9)] == ["999", "12k", "1.2M", "2.5G"]
    assert [measured(16384, "us"), measured(3, "us"), measured(2048, "pages")] == ["16.4 ms", "3 us", "2048 pages"]
    assert [measured(5_000_000_000, "ns"), measured(0, "us")] == ["5 s", "0 us"]
    assert [shown("x"), shown(""), shown(None), shown(True)] == ["x", '""', "null", "true"]
    assert escaped({"a": ["<", 1, None]}) == {"a": ["&lt;", 1, None]}
