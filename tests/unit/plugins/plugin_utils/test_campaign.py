# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stops a campaign, what its summary says, and the survey of its job template."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace import campaign

ROOT = pathlib.Path(__file__).resolve().parents[4]
ACCEPT = ("ok", "zero_hits")
OK = {"outcome": "ok", "reason": "1 of 1 probes armed", "hits": 4, "record_count": 1, "kernel": "6.12.1"}


def reading(tainted, *messages, first=100, facility=0):
    rows = [
        {"sequence": first + number, "facility": facility, "level": "warning", "message": message}
        for number, message in enumerate(messages)
    ]
    return {"procfs": {"sysctls": {"kernel.tainted": tainted}, "kmsg": rows}}


def verdict(run=None, failure=None, before=None, after=None):
    run, before = OK if run is None else run, before or reading(0, "x")
    return campaign.trace_verdict(run, before=before, after=after or reading(0), failure=failure, accept=ACCEPT)


def test_a_good_run_stops_nothing():
    row = verdict(after=reading(12288, "tapvirt_x: loading out-of-tree module taints kernel.", first=101))
    assert (row["outcome"], row["accepted"], row["stop_reasons"], row["hits"], row["records"]) == ("ok", True, [], 4, 1)


def test_an_overloaded_run_stops():
    row = verdict({"outcome": "overloaded", "reason": "too much"}, "The run ended as overloaded: too much.")
    assert row["stop_reasons"] == ["it ended as overloaded: too much"]
    assert not row["accepted"]


def test_hints_are_kept_and_cut():
    row = verdict({"outcome": "script_error", "reason": "x", "hints": ["a" * 1000, "b", "c", "d"]}, "msg")
    assert row["hints"] == ["a" * 500, "b", "c"]
    summary = campaign.trace_summary({"h1": row, "h2": verdict()}, {}, {})
    assert summary["hosts"]["h1"]["hints"] == row["hints"] and "hints" not in summary["hosts"]["h2"]
    assert verdict({**OK, "hints": "no list"})["outcome"] == "lost"


@pytest.mark.parametrize("outcome", ["timeout", "refused", "script_error", "partial_arm"])
def test_other_failures_alone_do_not(outcome):
    row = verdict({"outcome": outcome, "reason": "x"}, "msg")
    assert (row["accepted"], row["stop_reasons"]) == (False, [])


def test_a_failed_build_is_reported_in_the_words_of_the_task():
    row = verdict({}, "pass 2: no such function")
    assert (row["outcome"], row["reason"], row["stop_reasons"]) == ("build_failed", "pass 2: no such function", [])


@pytest.mark.parametrize(
    "message",
    [
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "kernel BUG at mm/slub.c:447!",
        "Oops: 0002 [#1] PREEMPT SMP PTI",
        "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP NOPTI",
        "WARNING: CPU: 1 PID: 812 at kernel/kprobes.c:1064 kprobe_ftrace_handler+0x2a/0x1c0",
        "WARNING: possible circular locking dependency detected",
        "Internal error: Oops - undefined instruction: 0000000002000000 [#1] SMP",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [cat:812]",
        "Kernel panic - not syncing: Fatal exception",
    ],
)
def test_new_trouble_in_the_log_stops(message):
    (pattern,) = re.findall(r"kmsg: \{pattern: '(.*?)'", (ROOT / "playbooks/trace.yml").read_text(encoding="utf-8"))
    assert re.search(pattern, message), "the playbook does not read this from the host"
    assert verdict(after=reading(0, message, first=101))["stop_reasons"] == [f"its kernel logged: {message}"]


@pytest.mark.parametrize(
    "after",
    [
        reading(0, "WARNING: CPU: 1 PID: 812 at kernel/kprobes.c:1064", first=100),
        reading(0, "WARNING: a service says so", first=101, facility=3),
        reading(0, "ftrace: allocating 42 entries; DEBUG: on", first=101),
    ],
)
def test_what_was_there_before_or_is_not_the_kernels_does_not(after):
    assert verdict(after=after)["stop_reasons"] == []


def test_a_new_taint_stops_and_an_old_one_does_not():
    assert verdict(before=reading(512, "x"), after=reading(12288 | 512))["stop_reasons"] == []
    row = verdict(after=reading(12288 | 512 | 128))
    assert row["stop_reasons"] == ["its kernel has become tainted: died, warning"]


def test_a_run_that_was_started_and_has_no_outcome_stops():
    """The host was started again in between, and keeps no run of this name."""
    row = campaign.trace_verdict({}, failure="This host keeps no run of this name.", started=True)
    assert row["outcome"] == "lost" and len(row["stop_reasons"]) == 1
    assert campaign.trace_verdict({}, failure="pass 2: no such function")["stop_reasons"] == []


def test_a_module_that_stays_loaded_stops():
    row = campaign.trace_verdict({"outcome": "ok", "leftovers": ["the module tapvirt_x is still loaded"]})
    assert row["stop_reasons"] == ["the run left something behind: the module tapvirt_x is still loaded"]


def test_a_host_that_no_longer_answers_stops():
    for after in ({"unreachable": True, "msg": "ssh"}, {}):
        row = campaign.trace_verdict({}, before=reading(0), after=after)
        assert row["outcome"] == "lost"
        assert row["stop_reasons"][0].startswith("it ended as lost: ")


def test_a_host_that_fails_to_tell_stops_and_its_run_stays():
    killed = {"failed": True, "msg": "MODULE FAILURE\nkilled"}
    row = verdict(after=killed)
    assert (row["outcome"], row["accepted"], row["hits"]) == ("ok", True, 4)
    assert row["stop_reasons"] == ["its kernel's state after the trace is unknown: MODULE FAILURE killed"]
    row = campaign.trace_verdict({}, before=killed, after=reading(0), failure="MODULE FAILURE")
    assert (row["outcome"], row["stop_reasons"]) == ("lost", ["it ended as lost: MODULE FAILURE"])


@pytest.mark.parametrize(
    ("run", "ran"),
    [(OK, True), ({"outcome": "overloaded"}, True), ({"outcome": "planned"}, True), ({}, False)]
    + [({"outcome": outcome}, False) for outcome in ("refused", "build_failed")],
)
def test_traced_is_a_host_that_had_a_run(run, ran):
    row = verdict(run, failure="x")
    assert row["ran"] is ran
    assert campaign.trace_summary({"a": row}, {}, {})["traced"] == int(ran)


@pytest.mark.parametrize("value", ["ok,partial_arm", " ok , partial_arm", ["ok", "partial_arm"], ("ok", "partial_arm")])
def test_outcomes_are_a_list_or_a_text(value):
    assert campaign.trace_outcomes(value, name="trace_accept") == ["ok", "partial_arm"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "ok,partialarm",
            r"'ok,partialarm' for trace_accept: 'partialarm' is not an outcome of a run, .* Did you mean partial_arm\?",
        ),
        ("", r"Invalid value '' for trace_accept: '' is not an outcome of a run, which is one of ok, "),
        (["build_failed"], r"'build_failed' for trace_accept\[0\]: 'build_failed' is not an outcome"),
        ([{}], r"{} for trace_accept\[0\]: {} is not an outcome"),
        (7, "7 for trace_accept: The value is not a list"),
        ({"ok": True}, "{'ok': True} for trace_accept: The value is not a list"),
    ],
)
def test_what_is_no_outcome_is_refused_with_the_nearest(value, words):
    with pytest.raises(InvalidInput, match=words):
        campaign.trace_outcomes(value, name="trace_accept")


def test_what_cannot_be_read_is_no_reason():
    nothing = {"procfs": {"sysctls": None, "kmsg": None}}
    assert campaign.trace_verdict(OK, before=nothing, after={})["stop_reasons"] == [
        "its kernel's state before the trace is unknown: kernel.tainted is missing",
        "its kernel's state after the trace is unknown: kernel.tainted is missing",
    ]
    no_log = {"procfs": {"sysctls": {"kernel.tainted": 0}, "kmsg": None}}
    (line,) = campaign.trace_verdict(OK, before=reading(0), after=no_log)["stop_reasons"]
    assert line == "its kernel's state after the trace is unknown: kmsg is missing"
    assert campaign.trace_verdict(OK)["stop_reasons"] == []


def test_a_summary_counts_merges_and_names():
    verdicts = {"b": verdict(), "a": verdict(), "c": verdict({"outcome": "overloaded", "reason": "too much"}, "x")}
    records = [
        {"kind": "count", "key": "io", "count": 5},
        {"kind": "histogram", "key": "f", "unit": "us", "buckets": [[1, 2, 3]]},
    ]
    runs = {host: [{"title": "t", "run": {"records": records}}] for host in "ab"}
    summary = campaign.trace_summary(verdicts, runs, {"d": "no answer"})
    assert summary["outcomes"] == {"ok": 2, "overloaded": 1}
    assert (summary["traced"], summary["left_out_count"], summary["stopped"], summary["truncated"]) == (
        3,
        1,
        True,
        False,
    )
    assert list(summary["hosts"]) == ["c", "a", "b"]
    assert summary["hosts"]["a"] == {"outcome": "ok", "hits": 4, "records": 1, "kernel": "6.12.1"}
    assert summary["hosts"]["c"]["reason"] == "too much"
    assert summary["counters"] == [{"title": "t", "hosts": 2, "totals": {"io": 10}}]
    assert summary["histograms"][0]["buckets"] == [[1, 2, 6]]
    assert summary["left_out"] == {"d": "no answer"}


def test_a_summary_of_thousands_is_small_and_keeps_the_trouble():
    many = {f"host{number:05}.example.com": verdict() for number in range(5000)}
    many["zz"] = verdict({"outcome": "overloaded", "reason": "too much " * 200}, "x")
    left_out = {f"dead{number:05}": "no answer " * 100 for number in range(3000)}
    summary = campaign.trace_summary(many, {}, left_out)
    assert len(json.dumps(summary)) < 100_000
    assert summary["truncated"] and next(iter(summary["hosts"])) == "zz"
    assert (summary["traced"], summary["left_out_count"]) == (5001, 3000)


def test_what_is_no_dictionary_is_refused():
    with pytest.raises(TapvirtError, match="trace_verdict: run: "):
        campaign.trace_verdict([1])
    with pytest.raises(TapvirtError, match="trace_verdict: before: "):
        campaign.trace_verdict(OK, before=[1])
    with pytest.raises(TapvirtError, match="trace_verdict: after: "):
        campaign.trace_verdict(OK, after=[1])


def test_a_campaign_is_summed_up_from_the_variables_of_its_hosts():
    hosts = {
        "done": {
            "trace_result": verdict(),
            "trace_runs": [],
            "trace_wave_hosts": ["done"],
            "trace_not_ready_reason": "",
        },
        "broken": {"trace_wave_hosts": ["done"], "trace_not_ready_reason": ""},
        "unready": {"trace_not_ready_reason": "no staprun"},
        "waiting": {"trace_not_ready_reason": ""},
        "silent": {},
    }
    summary = campaign.trace_campaign({**hosts, "other": {}}, list(hosts))
    assert list(summary["hosts"]) == ["done"]
    assert summary["left_out"] == {
        "broken": "it failed before its run was judged",
        "silent": "it did not answer, or failed before the trace",
        "unready": "no staprun",
        "waiting": "the campaign had stopped before",
    }


def test_the_survey_asks_for_what_the_playbook_takes():
    survey = json.loads((ROOT / "docs" / "awx" / "trace_survey.json").read_text(encoding="utf-8"))
    playbook = (ROOT / "playbooks" / "trace.yml").read_text(encoding="utf-8")
    catalogue = yaml.safe_load((ROOT / "roles" / "trace" / "vars" / "main.yml").read_text(encoding="utf-8"))
    questions = {row["variable"]: row for row in survey["spec"]}
    assert list(questions) == [
        "trace_script",
        "trace_function",
        "trace_duration_seconds",
        "trace_targets",
        "trace_waves",
    ]
    assert all(name in playbook for name in questions)
    choices = questions["trace_script"]["choices"]
    assert set(choices) <= set(catalogue["trace_catalogue"])
    # One function is all that it asks for, and kvm_module is told from the host.
    needed = {name: catalogue["trace_catalogue"][name]["variables"] for name in choices}
    needed = {name: {key for key, row in rows.items() if row["required"]} for name, rows in needed.items()}
    assert all(keys in (set(), {"function"}, {"functions"}, {"kvm_module"}) for keys in needed.values())
    asked_for = questions["trace_function"]["question_description"]
    assert {name for name in choices if name in asked_for} == {
        name for name in choices if needed[name] & {"function", "functions"}
    }
    for row in questions.values():
        assert {"question_name", "question_description", "required", "type", "default"} <= set(row)
        assert row["type"] != "multiplechoice" or row["default"] in row["choices"]
