# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that are started on every host first, and collected later: hosts trace at the same moment, with one fork."""

from __future__ import annotations

import time
import typing as t

import pytest

from .support.hosts import LabHosts

pytestmark = pytest.mark.soak  # 160 s; test_trace_playbook.py has a wave with one fork on every run
HOSTS = ("trace1", "trace2", "trace3", "trace4")
# The host that cannot be reached while the others are collected.
AWAY = "trace2"
DURATION = 10
# Long enough to start four runs one after the other, also on emulated hosts.
AHEAD_SECONDS = 90
APART_SECONDS = 1.0
SCRIPT = """
#: record tick number:integer
global number
probe timer.ms(500) { printf("{\\"kind\\":\\"tick\\",\\"number\\":%d}\\n", number++) }
probe kprobe.function("vfs_read") { next }
"""
LEFT = (
    "ls -A /proc/systemtap /run/tapvirt 2>/dev/null; pgrep -a 'stap(run|io)';"
    " systemctl list-units --all --no-legend --plain 'tapvirt-stap-*'; sysctl kernel.kptr_restrict; true"
)
Results = dict[str, dict[str, t.Any]]


def collect_task(name: str, **options: t.Any) -> dict[str, t.Any]:
    """Return a task that collects the run of the first task."""
    return {
        "name": name,
        "tapvirt.host.stap_run_result": {"run_id": "{{ started.run.run_id }}", **options},
        "register": "collected",
    }


@pytest.fixture(scope="module")
def wave(lab: LabHosts, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Results], dict[str, t.Any]]:
    """Run a wave with one fork; return task -> host -> result, and the moments and the states of the hosts."""
    script = tmp_path_factory.mktemp("wave") / "wave.stp"
    script.write_text(SCRIPT, encoding="utf-8")
    builds = lab.build(":".join(HOSTS), {"wave": script}, module={"cpu_ceiling_percent": 50})
    modules = {host: builds[host]["wave"]["module"] for host in HOSTS}
    run = {"module": "{{ modules[inventory_hostname] }}", "duration_seconds": DURATION, "accept": ["ok", "skipped"]}
    warm = lab.run_tasks(
        ":".join(HOSTS), [{"name": "Measure", "tapvirt.host.stap_run": run}], vars={"modules": modules}
    )
    assert warm.rc == 0, warm.stdout
    before = {host: lab.shell(host, LEFT, check=False) for host in HOSTS}
    start_at = time.time() + AHEAD_SECONDS
    away = {
        "ansible_port": f"{{{{ 1 if inventory_hostname == '{AWAY}' else hostvars[inventory_hostname].ansible_port }}}}"
    }
    tasks: list[dict[str, t.Any]] = [
        {
            "name": "Start",
            "tapvirt.host.stap_run": {**run, "wait": False, "start_at": "{{ start_at }}"},
            "register": "started",
        },
        collect_task("Look", wait=False),
        {**collect_task("Collect", accept=["ok", "skipped"]), "vars": away, "ignore_unreachable": True},
        collect_task("Collect again", accept=["ok", "skipped"], remove=True),
    ]
    done = lab.run_tasks(":".join(HOSTS), tasks, "--forks=1", vars={"modules": modules, "start_at": start_at})
    assert done.rc == 0, done.stdout
    results: dict[str, Results] = {task["name"]: {} for task in tasks}
    for row in done.results:
        results[row["task"]][row["host"]] = row["result"]
    after = {host: lab.shell(host, LEFT, check=False) for host in HOSTS}
    return results, {"start_at": start_at, "before": before, "after": after}


def test_handles_come_before_the_trace(wave: tuple[dict[str, Results], dict[str, t.Any]]) -> None:
    results, _facts = wave
    for host in HOSTS:
        early = results["Look"][host]["run"]
        assert (early["finished"], early["progress"]["state"], early["times"]["armed"]) == (False, "waiting", None), (
            host
        )


def test_four_hosts_are_armed_within_a_second_with_one_fork(
    wave: tuple[dict[str, Results], dict[str, t.Any]],
) -> None:
    results, facts = wave
    armed = {}
    for host in HOSTS:
        run = results["Collect again"][host]["run"]
        assert run["clock"]["uncertainty_seconds"] < APART_SECONDS
        armed[host] = run["times"]["armed"] - run["clock"]["skew_seconds"]
        assert run["outcome"] in ("ok", "skipped") and run["record_count"] >= DURATION
    print({host: round(moment - facts["start_at"], 2) for host, moment in armed.items()})
    assert max(armed.values()) - min(armed.values()) < APART_SECONDS, armed
    assert all(abs(moment - facts["start_at"]) < 2 for moment in armed.values()), armed


def test_a_host_that_is_away_costs_nothing(wave: tuple[dict[str, Results], dict[str, t.Any]]) -> None:
    """The others were collected, and its own result waits for the next task."""
    results, _facts = wave
    first, second = results["Collect"], results["Collect again"]
    assert "run" not in first[AWAY] or first[AWAY].get("unreachable")
    assert second[AWAY]["run"]["finished"] is True
    for host in set(HOSTS) - {AWAY}:
        assert first[host]["run"] == second[host]["run"]


def test_nothing_is_left(wave: tuple[dict[str, Results], dict[str, t.Any]]) -> None:
    _results, facts = wave
    assert facts["after"] == facts["before"]
