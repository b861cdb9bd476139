# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks keep of a run and say of it: bounded at a thousand hosts, whatever is wrong with them.

AWX leaves out the result of an event above 700,000 characters, and an artifact is copied into each job of a workflow.
"""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.filter import fleet, report
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import run_report
from ansible_collections.tapvirt.host.plugins.plugin_utils._report import summaries
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace import campaign_lines

ROOT = pathlib.Path(__file__).resolve().parents[3]
PLAYBOOKS = ROOT / "playbooks"
ARTIFACT_BYTES = 100_000
RESULT_CHARACTERS = 700_000
HOSTS = [f"{'h' * 200}{number:04}.example.com" for number in range(1000)]  # names as long as names may get
WORDS = "something is not as it should be, and this is told at some length; " * 20
PLAN = [{"what": f"domain d{number}", "before": None, "after": WORDS} for number in range(30)]
DIFFERS = {"wanted": 30, "differs": [WORDS] * 30, "absent": ["kvm.x"] * 30}
DOMAINS = {"wanted": 30, "plan": PLAN, "pending": [WORDS] * 30}
CONSOLES = {"read": 1, "bytes": 101, "matched": 1, "truncated": True, "failed": WORDS}
SILENT = "silent.example.com"
# Every host with a kernel of its own, and every fact different.
FACTS = [f"fact{number}" for number in range(150)]


def of_all(row: t.Any) -> dict[str, t.Any]:
    return {host: {**row, "inventory_hostname": host} for host in HOSTS}


def bounded(value: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return an artifact that is small enough."""
    assert len(json.dumps(value)) < ARTIFACT_BYTES
    return value


@pytest.fixture(scope="module")
def gathered() -> dict[str, t.Any]:
    """Return the facts of a thousand hosts."""
    return {
        host: {
            "release": f"6.12.{number}",
            "version": "#1",
            "build_id": f"{number:040x}",
            **dict.fromkeys(FACTS, number),
        }
        for number, host in enumerate(HOSTS)
    }


@pytest.fixture(params=["params", "domains"])
def playbook_run(request: pytest.FixtureRequest) -> tuple[run_report.Playbook, dict[str, t.Any]]:
    """Return a playbook and the variables of its hosts: one was changed, all failed, and all differ as before."""
    name: run_report.Playbook = request.param
    result = DIFFERS if name == "params" else DOMAINS
    hostvars = of_all({f"{name}_before": result, f"{name}_after": result, f"{name}_failed": WORDS})
    hostvars[HOSTS[-1]][f"{name}_started"] = True
    return name, hostvars


def test_drift_counts_all_and_names_the_first(playbook_run: tuple[run_report.Playbook, dict[str, t.Any]]) -> None:
    name, hostvars = playbook_run
    summary = bounded(run_report.run_artifact(name, HOSTS, hostvars))
    assert summary["hosts"] == summary["before_count"] == summary["after_count"] == summary["failed_count"] == 1000
    assert list(summary["before"]) == list(summary["after"]) == HOSTS[:150]
    assert summary["not_reached_count"] == 999
    assert list(summary["failed"]) == HOSTS[:30] and summary["not_reached"] == HOSTS[:20]
    assert {len(reason) for reason in summary["failed"].values()} == {300}


def test_what_was_gathered_is_counted_and_the_first_are_named(gathered: dict[str, t.Any]) -> None:
    kernels = fleet.group_hosts_by(gathered, ["release", "build_id"])
    summary = bounded(summaries.gather_summary(kernels, fleet.fact_diff(gathered), [*HOSTS, SILENT], HOSTS))
    assert (summary["hosts"], summary["no_answer_count"], summary["kernels_count"]) == (1000, 1, 1000)
    assert summary["no_answer"] == [SILENT]
    assert len(summary["kernels"]) == 50 and summary["kernels"][0]["hosts"] == [HOSTS[0]]
    assert summary["drift_count"] == len(FACTS) + 2 and len(summary["drift"]) == 100


def test_consoles_are_counted_and_trouble_is_named() -> None:
    summary = bounded(summaries.console_logs_summary(of_all({"console_logs_counts": CONSOLES}), HOSTS))
    assert (summary["hosts"], summary["read"], summary["bytes"], summary["matched"]) == (1000, 1000, 101_000, 1000)
    assert summary["failed_count"] == summary["truncated"] == 1000 and len(summary["failed"]) == 100
    assert summary["failed"][HOSTS[0]].startswith("something is not as it should be")


def test_findings_are_counted_and_the_first_are_kept() -> None:
    hostvars = of_all({"fleet_report_facts": {"failed": True, "msg": WORDS}})
    summary = bounded(summaries.report_summary(report.fleet_report(hostvars, HOSTS)))
    assert summary["numbers"] == ["1000 hosts", "1000 with trouble"]
    (finding,) = summary["findings"]
    assert (finding["level"], finding["hosts_count"], summary["findings_count"]) == ("bad", 1000, 1)
    assert len(finding["text"]) == 300


def check_message(lines: list[str], last: str, line_chars: int = 1000) -> None:
    """Check that a message is bounded, and that it ends with what was counted."""
    assert sum(map(len, lines)) < RESULT_CHARACTERS / 2
    assert last in lines[-1]
    assert any(line.startswith("And ") and line.endswith(" more, which are not shown.") for line in lines)
    assert all(len(line) <= line_chars for line in lines)


def test_what_gather_reports_is_bounded(gathered: dict[str, t.Any]) -> None:
    kernels = fleet.group_hosts_by(gathered, ["release", "version", "build_id"])
    lines = summaries.gather_lines(kernels, fleet.fact_diff(gathered), len(gathered), "/somewhere")
    last = "facts differ between 1000 hosts, of which the first 40 are shown here; all are in"
    check_message(lines, last, line_chars=10_000)


def test_what_trace_reports_is_bounded() -> None:
    unready = {host: {"trace_not_ready_reason": host + WORDS} for host in HOSTS}
    lines = campaign_lines.trace_unready_lines(unready, HOSTS, HOSTS)
    check_message(lines, "0 of 1000 hosts are ready to be traced.")
    stopped = of_all({"trace_wave_hosts": True, "trace_result": {"accepted": False, "stop_reasons": [WORDS] * 3}})
    lines = campaign_lines.trace_stop_lines(stopped, HOSTS, HOSTS)
    check_message(lines, "No further wave begins. Not traced: none.")


def test_the_report_of_a_run_is_bounded_and_counts_the_rest(
    playbook_run: tuple[run_report.Playbook, dict[str, t.Any]],
) -> None:
    name, hostvars = playbook_run
    lines = run_report.run_report(name, HOSTS, hostvars, when="before")
    check_message(lines, "0 of 1000 hosts are as wanted.")
    assert "And 970 hosts more that failed, which are not shown." in lines
    assert any(line.startswith("And ") and line.endswith(" lines more, which are not shown.") for line in lines)


@pytest.mark.parametrize("name", sorted({path.stem for path in PLAYBOOKS.glob("*.yml")} - {"awx", "demo"}))
def test_every_playbook_that_is_a_job_ends_with_an_artifact(name: str) -> None:
    plays = yaml.safe_load((PLAYBOOKS / f"{name}.yml").read_text(encoding="utf-8"))
    kept = [task for task in plays[-1].get("tasks", ()) if "ansible.builtin.set_stats" in task]
    assert len(kept) == 1 and kept[0]["run_once"] is True, "an artifact of the whole run, once"
    assert "per_host" not in kept[0]["ansible.builtin.set_stats"]
