# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever one host returns, it is that host's trouble: the others' part of every output is what it is without it."""

from __future__ import annotations

import functools
import json
import typing as t

import pytest
from ansible.errors import AnsibleFilterError, AnsibleLookupError
from ansible_collections.tapvirt.host.playbooks.filter_plugins.boot_sector import boot_sector
from ansible_collections.tapvirt.host.plugins.filter import (
    fleet,
    params,
    records,
    report,
)
from ansible_collections.tapvirt.host.plugins.lookup.playbook import LookupModule
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import progress as _progress
from ansible_collections.tapvirt.host.plugins.plugin_utils._report import findings
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport import edge
from ansible_collections.tapvirt.host.tests.unit.support.mutations import GONE, ODD, mutations
from ansible_collections.tapvirt.host.tests.unit.support.report.render import lay_out

KERNEL = {"release": "6.12.1", "build_id": "ab" * 20, "arch": "x86_64", "symbols": {"core_fingerprint": "cd"}}
SYMBOL = {
    "name": "vfs_read",
    "status": "found",
    "count": 1,
    "probeable": True,
    "variants": [{"name": "vfs_read.cold"}],
    "matches": [{"name": "vfs_read", "type": "T", "owner": "vmlinux"}],
}
PARAM = {"module": "kvm", "name": "x", "before": 1, "after": 2, "wanted": 2, "changed": True, "pending": ["a reboot"]}
VALUE = {"module": "kvm", "name": "y", "value": 1, "value_status": "known", "persisted_in": "/etc/modprobe.d/x.conf"}
PENDING = {"what": "memory", "running": 1, "stored": 2, "reason": "restart"}
DOMAIN = {"name": "g", "state": "running", "changed": False, "pending": [PENDING, "x"], "error": None}
RECORDS = [
    {"kind": "count", "key": "io", "count": 700},
    {"kind": "histogram", "key": "f", "unit": "us", "buckets": [[1, 2, 300], [4, 8, 9]]},
    {"kind": "series", "key": "f", "unit": "calls", "step_ms": 100, "count": 7, "values": [3, 4]},
]
RUN = {
    "outcome": "ok",
    "reason": "2 of 2 probes armed",
    "probes": {"armed": 2, "asked": 2},
    "hits": 7,
    "skipped": 0,
    "bytes": 9,
    "duration_seconds": 1.5,
    "kernel": "6.12.1",
    "record_count": 3,
    "truncated": True,
    "records": RECORDS,
}
RUNS = [{"title": "t", "run": RUN, "msg": "x"}]
HOST = {
    "ansible_facts": {"tapvirt_kernel": KERNEL},
    "fleet_report_facts": {"failed": False, "msg": "x"},
    "fleet_report_readiness": {"verdict": "refused", "reason": "no staprun", "remedy": "install it"},
    "fleet_report_parameters": {"planned": True, "params": [PARAM, VALUE], "truncated": True},
    "fleet_report_symbols": {"symbols": [SYMBOL]},
    "fleet_report_domains": {"domains": [DOMAIN]},
    "fleet_report_console": {"text": "login:"},
    "trace_runs": RUNS,
    "trace_result": {"accepted": False, "stop_reasons": ["x"], "outcome": "lost", "reason": "y"},
}
VERDICT = {
    "outcome": "ok",
    "reason": "x",
    "ran": True,
    "accepted": False,
    "stop_reasons": ["x"],
    "hits": 7,
    "kernel": "6.12.1",
}
READ = {
    "failed": False,
    "msg": "x",
    "procfs": {
        "sysctls": {"kernel.tainted": 0},
        "kmsg": [{"sequence": 7, "facility": 0, "message": "WARNING: x"}],
    },
}
TRACEABLE = {
    "kernel": {"release": "6.12.1", "version": "#1"},
    "traceability": {"reasons": ["x"], "conditions": ["modules have to be signed"]},
    "trusted_keys": [{"name": "k", "key_id": "ab"}],
    "staprun": "5.1",
    "privilege": {"load_modules": False, "groups": ["stapusr"]},
    "memory": {"free_bytes": 1 << 30, "buffers_bytes": 0, "available_bytes": 1 << 30, "cpus_online": 2},
    "loaded": [{"name": "stap_x", "users": 0}],
}
BUILDER = {
    "stap": "5.6",
    "tested": ["3.10", "7.3"],
    "compilers": ["gcc-14"],
    "kernels": {"6.12.1": {"version": "#1", "compiler": "gcc-14", "debuginfo": True}},
}


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the warnings of filters."""
    lines: list[str] = []
    monkeypatch.setattr(edge.display, "warning", lines.append)
    return lines


def playbook(function_name: str, /, **arguments: t.Any) -> t.Any:
    """Return what a function of the playbooks returns."""
    (found,) = LookupModule().run([function_name], **arguments)
    return found


def check_output(value: t.Any) -> None:
    """Check that an output can be written to any file and be read by any program."""
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


OF_HOSTS: dict[str, tuple[t.Callable[[t.Any], t.Any], t.Any, t.Any]] = {
    "fact_diff": (fleet.fact_diff, KERNEL, {**KERNEL, "release": "7.0"}),
    "group_hosts_by": (functools.partial(fleet.group_hosts_by, names=["release"]), KERNEL, {"release": "7.0"}),
    "symbol_diff": (fleet.symbol_diff, [SYMBOL], [{**SYMBOL, "count": 2}]),
}


@pytest.mark.parametrize("name", OF_HOSTS)
def test_comparisons_leave_an_odd_host_out(name: str, warned: list[str]) -> None:
    compare, sample, other = OF_HOSTS[name]
    without = compare({"a": sample, "b": other})
    for what, odd in mutations(sample, 200):
        warned.clear()
        found = compare({"a": sample, "odd": odd, "b": other})
        check_output(found)
        if warned:
            assert len(warned) == 1 and ": odd is left out: " in warned[0], what
            assert found == without, what


@pytest.mark.parametrize("kind", ["histogram", "counter"])
def test_plots_leave_odd_records_out(kind: str, warned: list[str]) -> None:
    draw = records.FilterModule().filters()[f"{kind}_plots"]
    for what, odd in mutations(RUNS, 200):
        warned.clear()
        found = draw({"a": RUNS, "odd": odd, "b": RUNS})
        check_output(found)
        (plot,) = [plot for plot in found if plot["title"] == "t"][:1]
        hosts = [row if isinstance(row, str) else row["host"] for row in plot["hosts"]]
        assert {"a", "b"} <= set(hosts), what
        assert all("odd: " in line for line in warned), what


def test_a_page_reports_an_odd_host_and_shows_the_others() -> None:
    sections = ("kernels", "readiness", "params", "symbols", "domains", "traces", "consoles")
    fine = {"a": HOST, "b": HOST}

    def sound(report: dict[str, t.Any]) -> str:
        return (
            json.dumps([report[section] for section in sections])
            .replace('"has_findings": true', "")
            .replace('"has_findings": false', "")
        )

    def troubles(report: dict[str, t.Any]) -> str:
        return "; ".join(row["text"] for row in report["findings"] if row["section"] == "hosts")

    without = {name: sound(findings.fleet_report({**fine, "odd": {**HOST, name: None}})) for name in HOST}
    excluded = 0
    for what, changed in mutations(HOST, 300):
        if not isinstance(changed, dict):
            continue  # hostvars are always a dictionary
        odd = {name: value for name, value in changed.items() if name in HOST}
        found = report.fleet_report({**fine, "odd": odd}, ["a", "b", "odd"])
        check_output(found)
        named = [name for name in HOST if f"{name} holds no result" in troubles(found)]
        if len(named) == 1 and ";" not in what:
            excluded += 1
            assert sound(found) == without[named[0]], what
    assert excluded > 200


def test_a_page_can_be_laid_out_whatever_a_host_has() -> None:
    some = [odd for number, (_what, odd) in enumerate(mutations(HOST, 0)) if isinstance(odd, dict) and not number % 97]
    for odd in some:
        lay_out({"a": HOST, "odd": {name: value for name, value in odd.items() if name in HOST}}).encode()


def test_a_summary_names_an_odd_host() -> None:
    verdicts, runs = {"a": VERDICT, "b": VERDICT}, {"a": RUNS, "b": RUNS}

    def summary(verdicts: t.Any, runs: t.Any, left_out: t.Any = ()) -> t.Any:
        hosts = {host: {"trace_result": value} for host, value in verdicts.items()}
        hosts |= {host: {"trace_not_ready_reason": value} for host, value in dict(left_out).items()}
        for host, value in runs.items():
            hosts.setdefault(host, {})["trace_runs"] = value
        return playbook("trace_campaign", hostvars=hosts, hosts=list(hosts))

    without = summary(verdicts, runs=runs)
    for what, odd in mutations(VERDICT, 200):
        found = summary({**verdicts, "odd": odd}, runs=runs)
        check_output(found)
        assert {**found["hosts"], **found["left_out"]}.keys() == {"a", "b", "odd"}, what
        assert found["hosts"]["a"] == without["hosts"]["a"], what
        assert found["counters"] == without["counters"], what
    for what, odd in mutations(RUNS, 200):
        found = summary(verdicts, runs={**runs, "odd": odd})
        check_output(found)
        assert found["hosts"] == without["hosts"], what
    for value in ODD:
        if value is not GONE:
            check_output(summary(verdicts, runs=runs, left_out={"odd": value}))


def test_a_verdict_is_given_whatever_a_host_returned() -> None:
    judge = functools.partial(playbook, "trace_verdict")
    for _what, odd in mutations(RUN, 200):
        for run, before, after in ((odd, READ, READ), (RUN, odd, READ), (RUN, READ, odd)):
            if isinstance(run, dict) and isinstance(before, dict) and isinstance(after, dict):
                check_output(judge(run=run, before=before, after=after))
    for what, odd in mutations(READ, 200):
        if isinstance(odd, dict):
            row = judge(run=RUN, before=READ, after=odd)
            check_output(row)
            assert row["outcome"] in ("ok", "lost"), what
            check_output(judge(run=RUN, before=odd, after=READ))
    assert judge(run={**RUN, "outcome": 5})["stop_reasons"] == [
        "it ended as lost: the host returned something else than a run: outcome is 5, not an outcome of a run"
    ]
    assert judge(run=RUN, before=READ, after={"procfs": {"kmsg": [{"sequence": "7"}]}})["stop_reasons"] == [
        "its kernel's state after the trace is unknown: procfs.kmsg[0].sequence is '7', not a whole number"
    ]


def test_an_odd_builder_is_one_that_cannot_build() -> None:

    def choose(host: t.Any, builders: t.Any) -> t.Any:
        return playbook("trace_builder_for", host=host, builders=builders)

    host = {**TRACEABLE, "traceability": {"reasons": [], "conditions": []}}
    for what, odd in mutations(BUILDER, 200):
        found = choose(host, {"odd": odd, "fine": BUILDER})
        check_output(found)
        assert found["builder"] in ("fine", "odd"), what
        alone = choose(host, {"odd": odd})
        check_output(alone)
        assert alone["verdict"] in ("ready", "refused"), what
    assert (
        "what the builder odd returned cannot be read: stap is 5"
        in choose(host, {"odd": {**BUILDER, "stap": 5}})["reason"]
    )
    for _what, odd in mutations(TRACEABLE, 200):
        in_words(choose, odd, {"fine": BUILDER})


def in_words(call: t.Callable[..., t.Any], *values: t.Any) -> None:
    """Check that a filter or a function gives an output or refuses its input in a sentence."""
    try:
        call(*values)
    except (AnsibleFilterError, AnsibleLookupError) as error:
        assert len(str(error)) > 20


@pytest.mark.parametrize(
    "odd", [pytest.param(odd, id=str(number)) for number, odd in enumerate(ODD) if odd is not GONE]
)
def test_other_filters_refuse_an_odd_value_in_words(odd: t.Any) -> None:
    catalogue = {"s": {"variables": {"function": {"required": True, "pattern": "^[a-z]+$"}}}}
    request = functools.partial(playbook, "trace_request", catalogue=catalogue)
    for value in (odd, [odd]):
        in_words(lambda value: playbook("waves", value=value, default=[1], name="x"), value)
    groups = {"all": ["a"]}
    in_words(lambda value: playbook("play_hosts", value=value, default="all", name="x", groups=groups), odd)
    in_words(lambda value: playbook("near_tables", inventory={"domain_wanted": value}, prefix="domains"), odd)
    hostvars = {"h": {"domain_host": odd}}
    in_words(lambda value: playbook("missing_tables", hostvars=value, hosts=["h"], prefix="domains"), hostvars)
    for value in (odd, [odd]):
        in_words(lambda value: playbook("trace_outcomes", value=value, name="x"), value)
    in_words(lambda value: request(given={"function": value}, script="s", duration=10), odd)
    in_words(lambda value: request(given=value, script="s", duration=10), odd)
    in_words(lambda value: request(given={"function": "f"}, script="s", duration=value), odd)
    in_words(lambda value: request(given={"function": "f"}, script=value, duration=10), odd)
    in_words(lambda value: playbook("trace_points", script=value, release="6.1"), odd)
    in_words(lambda value: playbook("trace_points", script={"text": value}, release="6.1"), odd)
    in_words(lambda value: playbook("trace_refusal", probes=value, release="6.1"), odd)
    in_words(lambda value: playbook("file_name", value=value), odd)
    for value in (odd, f"~{odd}" if isinstance(odd, str) else ""):
        in_words(lambda value: playbook("controller_path", value=value, name="x", facts={}), value)
    check_output(
        playbook("console_logs_counts", results=[odd, {"text": odd, "bytes": odd, "matched": odd}], truncated=odd)
    )
    in_words(fleet.kernel_version_code, odd)
    in_words(fleet.kernel_version_from_code, odd)
    in_words(boot_sector, odd)
    in_words(params.params_drift, odd)
    entries = [{"name": "x", "memory_mib": odd, "vcpus": odd}]
    in_words(lambda value: playbook("domain_problems", entries=value, tables={"t": value}), entries)
    for name in ("merge_params", "merge_domains"):
        for tables in (odd, {"t": odd}, {"t": [odd]}):
            in_words(lambda name, tables: playbook(name, tables=tables), name, tables)


def test_tables_and_drift_are_refused_in_words() -> None:
    for _what, odd in mutations({"params": [PARAM, VALUE]}, 200):
        in_words(params.params_drift, odd)
    for _what, odd in mutations({"t": [{"module": "kvm", "name": "x", "value": 1}]}, 50):
        in_words(lambda tables: playbook("merge_params", tables=tables), odd)
        in_words(lambda tables: playbook("merge_domains", tables=tables), odd)


RESULTS: dict[str, dict[str, t.Any]] = {
    "params": {"wanted": 1, "differs": ["kvm.x is 1"], "absent": ["nbd.y"]},
    "domains": {"wanted": 1, "plan": [{"what": "web state", "before": None, "after": 1}], "pending": ["x"]},
}


@pytest.mark.parametrize("name", ["params", "domains"])
def test_a_run_is_reported_whatever_a_host_has(name: str) -> None:
    fine: dict[str, t.Any] = {f"{name}_before": RESULTS[name], f"{name}_failed": "could not be set: x"}

    def report_lines(odd: t.Any) -> list[str]:
        hostvars = {"a": fine, "odd": odd, "b": fine}
        check_output(playbook("run_artifact", playbook=name, hosts=list(hostvars), hostvars=hostvars))
        lines: list[str] = playbook("run_report", playbook=name, hosts=list(hostvars), hostvars=hostvars, when="before")
        check_output(lines)
        return lines

    without = [line for line in report_lines({}) if line.startswith(("a: ", "b: "))]
    assert len(without) >= 4
    for what, odd in mutations({**fine, f"{name}_started": True, f"{name}_after": RESULTS[name]}, 200):
        if isinstance(odd, dict):
            assert [line for line in report_lines(odd) if line.startswith(("a: ", "b: "))] == without, what


def test_progress_of_any_shape_ends_the_wait() -> None:
    progress = {"state": "running", "elapsed_seconds": 4, "of_seconds": 10, "bytes": 8, "armed": 2, "sites": 2}
    for what, odd in mutations(progress, 200):
        reporter = _progress.ProgressReporter("h", "/run/tapvirt/stap/x-1", True, lambda _line: None)
        assert reporter.tell(odd) >= 0.0, what
