# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report says of a fleet whose trouble is known."""

from __future__ import annotations

import copy
import json
import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tapvirt.host.plugins.filter.report import fleet_report as report_filter
from ansible_collections.tapvirt.host.plugins.plugin_utils._format import escaped, listed, measured, short, shown, word
from ansible_collections.tapvirt.host.plugins.plugin_utils._report.findings import fleet_report
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.records import series_plots, valid_records
from ansible_collections.tapvirt.host.tests.unit.support.report import fleet

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
        (fleet.BROKEN_DOMAIN, "bad", "domains", "domain guest1: Disk <vda> of domain 'guest1' does not exist."),
        (fleet.PENDING_DOMAIN, "warn", "domains", "1 domain runs otherwise than defined: guest0 on host0002"),
    ],
)
def test_a_problem_is_reported_with_its_host(host: str, level: str, section: str, text: str) -> None:
    row = finding(text)
    assert (row["hosts"], row["level"], row["section"]) == ([host], level, section)


def test_nothing_else_is_reported_and_the_worst_comes_first() -> None:
    assert len(REPORT["findings"]) == 11  # more: two overloaded runs, the symbol
    levels = [row["level"] for row in REPORT["findings"]]
    assert levels == sorted(levels)


def test_symbols_that_differ_are_reported_with_the_hosts_of_each_kind() -> None:
    (row,) = REPORT["symbols"]["rows"]
    assert row["names"] == ["vfs_read"]
    assert row["differs"] == ["probeable"]
    assert [group["value"] for group in row["groups"]] == ["found, can be probed", "found, cannot be probed"]
    assert sum(len(group["hosts"]) for group in row["groups"]) == 29


def test_a_symbol_stands_out_on_a_host_that_differs_from_others_of_its_kernel() -> None:
    assert finding("Not the same on all hosts: vfs_read")["hosts"] == []
    other = copy.deepcopy(FLEET)
    alike = [host for host in other if REPORT["hosts"]["rows"][-1]["kernel"] == kernel_of(other[host])]
    symbol = other[alike[0]]["fleet_report_symbols"]["symbols"][0]
    symbol["probeable"] = not symbol["probeable"]
    (row,) = [row for row in fleet_report(other)["findings"] if row["section"] == "symbols"]
    assert row["hosts"] == [alike[0]]


def kernel_of(known: dict[str, t.Any]) -> str:
    return str(known.get("ansible_facts", {}).get("tapvirt_kernel", {}).get("release"))


def test_the_hosts_with_trouble_come_first() -> None:
    rows = REPORT["hosts"]["rows"]
    assert len(rows) == 30
    assert [row["level"] for row in rows[:5]] == ["bad"] * 5
    bad = {fleet.SLOW, fleet.LOST, fleet.OVERLOADED, fleet.BROKEN_DOMAIN, fleet.OTHER_TABLE}
    assert {row["host"] for row in rows[:5]} == bad
    assert {row["host"] for row in rows if row["has_findings"]} == {
        host for row in REPORT["findings"] for host in row["hosts"]
    }
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
    assert slow.startswith("-----") and not slow.endswith("-")
    assert not usual.startswith("-") and usual.endswith("-----")
    assert "e" in slow and "e" in usual
    assert [row["host"] for row in plot["alone"]] == [fleet.SLOW]


def test_a_time_line_shows_when_a_host_was_busy() -> None:
    (plot,) = REPORT["traces"]["series"]
    first = plot["hosts"][0]
    assert (first["host"], first["at"], plot["end"]) == (fleet.SLOW, "4 s", "9 s")
    assert first["strip"] == "bbbbebbbb"
    assert plot["hosts"][-1]["strip"] == "b" * 9, "it is no busier than the others"
    assert len(plot["bars"]["bars"]) == 9


def test_time_lines_of_unlike_length_are_added_step_by_step() -> None:
    def run(values: list[int]) -> list[dict[str, t.Any]]:
        record = {"kind": "series", "key": "f", "unit": "calls", "step_ms": 100, "count": 9, "values": values}
        return [{"title": "f", "run": {"outcome": "ok", "records": [record, record]}}]

    (plot,) = series_plots(valid_records({"a": run([1, 2, 3]), "b": run([1])})[0])
    assert plot["values"] == [4, 4, 6]
    assert [row["values"] for row in plot["hosts"]] == [[2, 4, 6], [2, 0, 0]]
    assert [row["count"] for row in plot["hosts"]] == [18, 18]


def armed_run(values: list[int], late_seconds: float, skew_seconds: float = 0.0) -> dict[str, t.Any]:
    """Return a run with a time line that was armed so long after its wave, on a host with a wrong clock."""
    record = {"kind": "series", "key": "f", "unit": "calls", "step_ms": 100, "count": sum(values), "values": values}
    times = {"armed": 1000.0 + late_seconds + skew_seconds}
    clock = {"skew_seconds": skew_seconds, "uncertainty_seconds": 0.024 if skew_seconds else 0.011}
    return {
        "title": "f",
        "start_at": 1000.0,
        "run": {"outcome": "ok", "records": [record], "times": times, "clock": clock},
    }


def test_time_lines_of_a_wave_lie_over_each_other_whatever_the_clocks_say() -> None:
    runs = {
        "a": [armed_run([5, 1, 1], 0.0)],
        "b": [armed_run([5, 1, 1], 0.21, skew_seconds=-3600.0)],
        "wrong": [armed_run([7], -30.0)],
        "far": [armed_run([7], 1e30)],
        "odd": [{**armed_run([7], 0.0), "start_at": "x"}],
    }
    (plot,) = series_plots(valid_records(runs)[0])
    values = {row["host"]: row["values"] for row in plot["hosts"]}
    assert values["a"] == [5, 1, 1, 0, 0] and values["b"] == [0, 0, 5, 1, 1]
    assert values["wrong"] == values["far"] == values["odd"] == [7, 0, 0, 0, 0]
    assert plot["uncertainty_seconds"] == 0.024
    (drawn,) = fleet_report({host: {"trace_runs": entries} for host, entries in runs.items()})["traces"]["series"]
    assert drawn["summary"] == (
        "35 calls on 5 hosts, in steps of 100 ms; the differences of the hosts' clocks are taken out, with an error of "
        "at most 24 ms; from their own start: wrong, far, odd"
    )
    assert {row["host"]: row["late"] for row in drawn["hosts"]} == {
        "a": "0.00 s", "b": "0.21 s", "wrong": "-", "far": "-", "odd": "-"
    }  # fmt: skip


def test_parameters_are_a_matrix_with_what_was_before() -> None:
    params = REPORT["params"]
    labels = [column["label"] for column in params["columns"]]
    assert labels == ["kvm.halt_poll_ns", "kvm_amd.nested", "zswap.compressor"]
    first = params["rows"][0]
    assert (first["host"], first["level"]) == (fleet.DRIFTED, "warn")
    assert first["cells"][0]["note"] == "0 before"
    assert params["columns"][0]["kept"] == [{"file": "/etc/modprobe.d/zz-tapvirt.conf", "count": 29}]
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


def test_hosts_that_were_lost_without_a_word_are_reported() -> None:
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
    assert (len(found["rows"]), found["more"], found["count"]) == (1500, 1000, 2500)
    assert found["rows"][0]["name"] == "g2499"


def test_the_filter_takes_hosts_by_name_and_escapes_for_a_page() -> None:
    page = report_filter(FLEET, [fleet.BROKEN_DOMAIN], html=True)
    assert any("&lt;vda&gt;" in row["text"] for row in page["findings"])
    assert "&lt;" not in str(report_filter(FLEET, [fleet.BROKEN_DOMAIN]))


SYMBOL = {"name": "vfs_read", "status": "found", "count": 1, "matches": []}
COUNT = {"kind": "count", "key": "x", "count": 7}
HISTOGRAM = {"kind": "histogram", "key": "x", "unit": "us", "count": 7, "buckets": [[1, 2, 7]]}
SERIES = {"kind": "series", "key": "x", "unit": "calls", "step_ms": 100, "count": 7, "values": [3, 4]}


def traced(*records: t.Any, **run: t.Any) -> dict[str, t.Any]:
    return {"trace_runs": [{"title": "f", "run": {"outcome": "ok", "records": list(records), **run}}]}


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (
            traced(COUNT | {"count": "a lot"}),
            "the trace f has a record that cannot be used: records[0].count is 'a lot', not a count",
        ),
        (traced(COUNT | {"count": None}), "records[0].count is missing"),
        (traced(COUNT | {"count": float("inf")}), "records[0].count is inf"),
        (traced(COUNT | {"count": 10**400}), "records[0].count is a number of 1329 bits, not a count"),
        (traced(COUNT | {"count": -7}), "records[0].count is -7"),
        (traced(HISTOGRAM | {"buckets": [[1, 2]]}), "buckets[0] is a list, not a bucket, which is [low, high, count]"),
        (traced(HISTOGRAM | {"buckets": [[1, 2, -7]]}), "buckets[0] is a list, not a bucket"),
        (traced(SERIES | {"step_ms": None}), "records[0].step_ms is missing"),
        (traced(SERIES | {"values": [1, "b"]}), "records[0].values[1] is 'b', not a count"),
        (traced("x"), "records[0] is 'x', not a dictionary"),
        ({"trace_runs": 7}, "trace_runs has an entry that is no run of a trace: it is 7, not a dictionary"),
        ({"trace_runs": [None]}, "no run of a trace: it is missing"),
        ({"trace_runs": [{"title": "f", "run": "x"}]}, "is no run of a trace: run is 'x'"),
        (traced(COUNT, probes=7), "is no run of a trace: run.probes is 7, not a dictionary"),
        (
            {"fleet_report_parameters": {"params": [{}]}},
            "fleet_report_parameters holds no result of its module: params[0].module is missing",
        ),
        ({"fleet_report_symbols": {"symbols": [{"name": "vfs_read"}]}}, "fleet_report_symbols holds no result"),
        ({"fleet_report_domains": {"domains": [7]}}, "fleet_report_domains holds no result"),
        ({"trace_result": {"accepted": False, "stop_reasons": 7}}, "trace_result holds no result"),
        ({"ansible_facts": "x"}, "ansible_facts holds no result of its module: it is 'x', not a dictionary"),
        ({"ansible_facts": {"tapvirt_kernel": 5}}, "tapvirt_kernel is 5, not a dictionary"),
        ({"ansible_facts": {"tapvirt_kernel": {"release": "6\ud800"}}}, "which is not UTF-8"),
        ({"fleet_report_symbols": {"symbols": [SYMBOL | {"count": "7"}]}}, "symbols[0].count is '7', not a"),
        ({"fleet_report_symbols": {"symbols": [SYMBOL | {"name": 5}]}}, "symbols[0].name is 5, not a text"),
    ],
)
def test_what_one_host_holds_instead_of_a_result_is_its_trouble_alone(known: dict[str, t.Any], why: str) -> None:
    fine = {**traced(COUNT, HISTOGRAM, SERIES), "fleet_report_symbols": {"symbols": [SYMBOL]}}
    report = fleet_report({"a": fine, "odd": known, "b": fine})
    assert len(json.dumps(report, ensure_ascii=False, allow_nan=False).encode()) > 1000
    (row,) = report["findings"]
    assert (row["hosts"], row["section"], row["level"]) == (["odd"], "hosts", "bad")
    assert why in row["text"]
    assert report["traces"]["counters"][0]["rows"][0]["total"] == 14
    assert [len(report["traces"][kind]) for kind in ("histograms", "series", "counters")] == [1, 1, 1]


def test_all_that_failed_on_a_host_is_reported() -> None:
    failed = {"failed": True, "msg": "no"}
    known = {"fleet_report_readiness": failed, "fleet_report_domains": failed, "fleet_report_symbols": failed}
    texts = [row["text"] for row in fleet_report({"a": known})["findings"]]
    assert texts == ["a: tracing readiness: no", "a: symbols: no", "a: domains: no"]


def test_hosts_that_are_lost_for_one_reason_are_one_finding_and_hide_no_slow_host() -> None:
    many = fleet.fleet(30)
    for number in range(70):
        message = f"ssh: connect to host 10.0.0.{number} port 22: Connection timed out"
        many[f"lost{number}"] = {"fleet_report_facts": {"unreachable": True, "msg": message}}
    report = fleet_report(many)
    assert "stands out in hrtimer_start_range_ns" in report["findings"][0]["text"]
    (lost,) = [row for row in report["findings"] if "port 22" in row["text"]]
    assert lost["text"].startswith(
        "lost0, lost1, lost2 and 67 more: did not answer: ssh: connect to host 10.0.0.0 port"
    )
    assert len(lost["hosts"]) == 70


@pytest.mark.parametrize("address", ["fe80::{}", "::{}", "::ffff:10.0.0.{}", "2001:db8::a{}:1", "10.0.0.{}"])
def test_addresses_do_not_part_one_reason(address: str) -> None:
    message = {f"lost{number}": f"connect to host {address.format(number)} port 22: refused" for number in range(5)}
    report = fleet_report(
        {host: {"fleet_report_facts": {"unreachable": True, "msg": text}} for host, text in message.items()}
    )
    (lost,) = [row for row in report["findings"] if "port 22" in row["text"]]
    assert len(lost["hosts"]) == 5


def test_no_section_of_the_page_hides_another() -> None:
    many: dict[str, dict[str, t.Any]] = {
        f"h{number}": {"fleet_report_domains": {"failed": True, "msg": f"reason {number} of many"}}
        for number in range(40)
    }
    many["b"] = {"fleet_report_readiness": {"verdict": "refused", "reason": "no staprun", "remedy": "install it"}}
    report = fleet_report(many)
    sections = [row["section"] for row in report["shown_findings"]]
    assert (sections.count("hosts"), sections.count("readiness"), report["more_findings"]) == (15, 1, 25)
    assert "What helps: install it." in report["shown_findings"][-1]["text"]


def test_a_host_that_is_slow_in_all_but_its_tail_stands_out() -> None:
    tail = [1 << 20, 2 << 20, 20]
    usual = traced(HISTOGRAM | {"buckets": [[8, 16, 980], tail]})
    slow = traced(HISTOGRAM | {"buckets": [[32768, 65536, 980], tail]})
    report = fleet_report({f"h{number}": usual for number in range(9)} | {"slow": slow})
    (row,) = report["findings"]
    assert (
        row["text"] == "slow stands out in f, x: half of its values are below 65.5 ms, of a usual host's below 16 us."
    )
    assert report["traces"]["histograms"][0]["hosts"][0]["host"] == "slow"


@pytest.mark.parametrize(
    "odd", [[[64, 128, 1]], [], [[-16, -8, 1000]]], ids=["one value", "no value", "values below zero"]
)
def test_chance_and_signs_make_no_host_stand_out(odd: list[list[int]]) -> None:
    usual = traced(HISTOGRAM | {"buckets": odd if odd and odd[0][0] < 0 else [[8, 16, 10000]]})
    hosts = {f"h{number}": usual for number in range(4)} | {"odd": traced(HISTOGRAM | {"buckets": odd})}
    assert fleet_report(hosts)["findings"] == []


def test_a_host_that_does_much_more_than_the_others_is_reported_without_blame() -> None:
    usual = traced(COUNT | {"count": 100}, SERIES | {"values": [50, 50], "count": 100})
    busy = traced(COUNT | {"count": 9000}, SERIES | {"values": [4500, 4500], "count": 9000})
    report = fleet_report({"a": usual, "b": usual, "c": usual, "busy": busy})
    assert [(row["level"], row["text"]) for row in report["findings"]] == [
        ("warn", "busy stands out in f, x: 9000 calls, of a usual host 100."),
        ("warn", "busy stands out in f: 9000 in all, of a usual host 100."),
    ]
    strips = {row["host"]: row["strip"] for row in report["traces"]["series"][0]["hosts"]}
    assert (strips["busy"], strips["a"]) == ("ee", "aa")


def test_what_is_rare_stands_out_where_it_is_not_and_little_does_not() -> None:
    hosts = {f"h{number}": traced() for number in range(18)} | {"few": traced(COUNT | {"count": 30})}
    report = fleet_report(hosts | {"many": traced(COUNT | {"count": 9000})})
    assert [row["text"] for row in report["findings"]] == ["many stands out in f: 9000 in all, of a usual host 0."]


def test_a_run_after_which_the_kernel_logged_something_is_trouble_though_it_went_well() -> None:
    verdict = {"outcome": "ok", "accepted": True, "stop_reasons": ["its kernel logged: BUG: x"]}
    report = fleet_report({"a": traced(COUNT) | {"trace_result": verdict}})
    assert [row["text"] for row in report["findings"]] == ["a: trace: its kernel logged: BUG: x"]
    assert report["traces"]["runs"][0]["level"] == "bad"


def test_a_strip_has_no_more_parts_than_can_be_distinguished() -> None:
    (plot,) = fleet_report({"a": traced(SERIES | {"values": [1] * 600})})["traces"]["series"]
    assert plot["hosts"][0]["strip"] == "e" * 60


def test_plots_of_one_title_are_distinguished() -> None:
    both = traced(
        HISTOGRAM | {"key": "vfs_read"}, HISTOGRAM | {"key": "vfs_write"}, HISTOGRAM | {"unit": "ms", "key": "vfs_read"}
    )
    both["trace_runs"][0]["title"] = "vfs_read and vfs_write"
    names = [plot["name"] for plot in fleet_report({"a": both})["traces"]["histograms"]]
    assert len(set(names)) == 3
    assert names[1] == "vfs_read and vfs_write, vfs_write"


def test_the_worst_run_of_a_host_is_reported_and_a_campaign_knows_which_is_good() -> None:
    runs = [{"title": "f", "run": {"outcome": outcome}} for outcome in ("zero_hits", "overloaded")]
    report = fleet_report({"a": {"trace_runs": runs}})
    assert report["hosts"]["rows"][0]["trace"] == {"text": "overloaded", "level": "bad"}
    skipped = traced(outcome="skipped")
    assert fleet_report({"a": skipped | {"trace_result": {"accepted": True}}})["findings"] == []
    refused = skipped | {"trace_result": {"accepted": False, "outcome": "skipped", "reason": "too many"}}
    assert [row["text"] for row in fleet_report({"a": refused})["findings"]] == ["a: trace: skipped: too many"]


def test_what_modules_have_cut_is_reported() -> None:
    known = {"fleet_report_domains": {"truncated": True, "domains": [{"name": "g", "state": "running"}]}}
    known |= traced(COUNT, truncated=True, record_count=500)
    assert [row["text"] for row in fleet_report({"a": known})["findings"]] == [
        "a: domains: there are more than the module was asked to return.",
        "a: of the trace f 1 of 500 records were kept.",
    ]


def test_all_runs_are_counted() -> None:
    runs = traced()["trace_runs"] * 3000
    report = fleet_report({"a": {"trace_runs": runs}})
    assert {"value": "3000", "label": "trace runs", "level": "none"} in report["tiles"]
    assert (len(report["traces"]["runs"]), report["traces"]["more_runs"]) == (1000, 2000)


def test_parameters_that_drift_have_a_column_and_all_are_judged() -> None:
    row = {"module": "kvm", "before": 0, "after": 1, "pending": []}
    params = [row | {"name": f"p{number}", "changed": number >= 150} for number in range(200)]
    report = fleet_report({"a": {"fleet_report_parameters": {"params": params, "planned": True}}})
    assert len(report["findings"]) == 50
    assert (len(report["params"]["columns"]), report["params"]["more_columns"]) == (40, 160)
    assert report["params"]["columns"][0]["label"] == "kvm.p150"
    assert report["hosts"]["rows"][0]["params"] == {"text": 50, "level": "warn"}


def test_of_two_symbol_tables_that_are_as_frequent_nobody_knows_which_is_right() -> None:
    def host(fingerprint: str) -> dict[str, t.Any]:
        kernel = {"release": "6.1", "build_id": "1f" * 20, "symbols": {"core_fingerprint": fingerprint}}
        return {"ansible_facts": {"tapvirt_kernel": kernel}}

    report = fleet_report({"a": host("1"), "b": host("2")})
    assert [row["hosts"] for row in report["findings"]] == [["a"], ["b"]]
    assert [row["symbols"] for row in report["kernels"]] == ["1", "2"]
    assert {"value": "1", "label": "kernel", "level": "none"} in report["tiles"]


@pytest.mark.parametrize("name", ["release", "build_id", "arch"])
def test_what_a_host_reports_instead_of_a_word_is_no_part_of_the_page(name: str) -> None:
    kernel = {"release": "6.1", "build_id": "1f", "arch": "x86_64", name: {"<img src=x>": 1}}
    ready = {"verdict": {"<img src=x>": 1}, "reason": ["<b>"], "remedy": {"<i>": 1}}
    run = traced(hits={"<u>": 1}, kernel={"<s>": 1}, probes={"armed": {"<p>": 1}, "asked": 2})
    known = {"a": {"ansible_facts": {"tapvirt_kernel": kernel}, "fleet_report_readiness": ready} | run}
    assert "<" not in str(report_filter(known, ["a"], html=True))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("x", []), "^Invalid value 'x' for fleet_report: The input is a dictionary of hosts"),
        (({}, "web1"), "^Invalid value 'web1' for hosts: The option is a list of hosts"),
        (
            ({"web2": {}}, ["web1"]),
            r"'web1' for hosts\[0\]: The inventory does not contain this host. Did you mean web2\?",
        ),
        (({"web2": {}}, ["web2"], ["web1"]), r"'web1' for lost\[0\]: The inventory does not contain this host"),
        (({"web2": {}}, [["web2"]]), "for hosts: The option is a list of hosts"),
    ],
)
def test_what_is_no_input_is_refused_in_words(arguments: tuple[t.Any, ...], why: str) -> None:
    with pytest.raises(AnsibleFilterError, match=why):
        report_filter(*arguments)


def test_words() -> None:
    assert listed(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert [short(number) for number in (999, 12345, 1234567, 2.5e9)] == ["999", "12k", "1.2M", "2.5G"]
    assert [measured(16384, "us"), measured(3, "us"), measured(2048, "pages")] == ["16.4 ms", "3 us", "2048 pages"]
    assert [measured(5_000_000_000, "ns"), measured(0, "us")] == ["5 s", "0 us"]
    assert [word(""), word(None), word(7), word({"a": 1})] == [None, None, 7, '{"a": 1}']
    assert [shown("x"), shown(""), shown(None), shown(True)] == ["x", '""', "null", "true"]
    assert escaped({"<": ["<", 1, None]}) == {"&lt;": ["&lt;", 1, None]}
