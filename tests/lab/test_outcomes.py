# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One crafted script for each outcome of a run; the fetched output; a probe in a module that is not loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
import typing as t

import pytest

pytestmark = pytest.mark.soak
CALLED = "__x64_sys_sched_rr_get_interval"
TUN = 'module("tun").function("tun_chr_open").call'
# Calls a system call that only these tests use, as often as possible or a hundred times a second.
CALLS = "import os, time\nwhile True: os.sched_rr_get_interval(0); time.sleep({0})"
SLEEPS = """
import threading, time
def sleep():
    while True: time.sleep(0.05)
for number in range(8): threading.Thread(target=sleep).start()
"""
# Its globals make it good or bad, so that one build does for most outcomes.
SHARED = """
#: record count key:string count:integer
global divisor = 1, lines = 0
global calls, sum
probe kprobe.function("%s") { calls <<< 1 }
probe timer.ms(100) { sum += 1 / divisor; for (number = 0; number < lines; number++) printf("%%100s\\n", "") }
probe begin { warn("a warning\\nof two lines") }
probe end {
  if (@count(calls)) printf("{\\"kind\\":\\"count\\",\\"key\\":\\"calls\\",\\"count\\":%%d}\\n", @count(calls))
}
"""
SCRIPTS = {
    "shared": SHARED % CALLED,
    # More threads sleep than the probe has room for.
    "sleepers": 'global slept\nprobe kprobe.function("hrtimer_nanosleep").return.maxactive(1) { slept <<< 1 }\n',
    "unloaded": f'global calls\nprobe {TUN}, kprobe.function("{CALLED}") {{ calls <<< 1 }}\n',
    # Its end takes longer than a run's end may (the second signal comes after 15 s), or its hits more than half a CPU.
    "slow": "%{\n#include <linux/delay.h>\n%}\nglobal end_ms = 0\nfunction wait(ms:long) %{ mdelay(STAP_ARG_ms); %}\n"
    f'probe kprobe.function("{CALLED}") {{ wait(5) }}\nprobe end {{ wait(end_ms) }}\n',
    "unbuildable": 'probe kernel.function("no_such_function_anywhere") { next }\n',
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A run, its expected outcome, and a part of the expected reason."""

    outcome: str
    script: str
    host: str
    reason: str
    options: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    load: str | None = None
    built: dict[str, str] = dataclasses.field(default_factory=dict)
    """Wrong values in the description of the module."""

    @property
    def name(self) -> str:
        return f"Run to {self.outcome}"


CASES = [
    Case("ok", "shared", "trace2", "1 of 1 probes armed", load=CALLS.format(0.01)),
    Case("zero_hits", "shared", "trace2", "none was hit"),
    Case("script_error", "shared", "trace2", "division by 0", {"globals": {"divisor": 0}}),
    Case("lost_output", "shared", "trace2", "1000 kept", {"globals": {"lines": 50}, "max_output_bytes": 1000}),
    Case(
        "overloaded",
        "slow",
        "trace2",
        "more of a CPU than the build allows",
        {"duration_seconds": 20},
        CALLS.format(0),
    ),
    Case("refused", "shared", "trace2", "the module was built for kernel 6.0.0", built={"kernel": "6.0.0"}),
    Case("skipped", "sleepers", "trace4", "hits were skipped", load=SLEEPS),
    Case("partial_arm", "unloaded", "trace4", f"1 of 2 probes are armed; missing: {TUN.partition('.')[0]}"),
    Case(
        "timeout",
        "slow",
        "trace4",
        "did not end when it was asked to",
        {"duration_seconds": 1, "globals": {"end_ms": 16500}},
    ),
]


@dataclasses.dataclass(frozen=True)
class CaseRuns:
    """The runs by outcome, the builds, the verdict of a probe before the runs, and the directory of their output."""

    runs: dict[str, dict[str, t.Any]]
    builds: dict[str, dict[str, dict[str, t.Any]]]
    before: dict[str, t.Any]
    folder: pathlib.Path


def tasks_of(case: Case, module: dict[str, t.Any], folder: pathlib.Path) -> list[dict[str, t.Any]]:
    """Return the tasks of a case: start the load, run, end the load."""
    args = {
        "module": {**module, **case.built},
        "duration_seconds": 3,
        "output": str(folder / case.outcome),
        **case.options,
    }
    here = f"inventory_hostname == '{case.host}'"
    run = {"name": case.name, "tapvirt.host.stap_run": args, "when": here, "ignore_errors": True}
    if case.load is None:
        return [run]
    load = f"nohup timeout 60 python3 - >/dev/null 2>&1 <<'END' & echo $!\n{case.load}\nEND\n"
    return [
        {"name": "Load", "ansible.builtin.shell": load, "when": here, "register": "load"},
        run,
        {"name": "End the load", "ansible.builtin.command": "kill {{ load.stdout }}", "when": here},
    ]


@pytest.fixture(scope="module")
def case_runs(lab, tmp_path_factory):
    """The runs of all cases, each on one of two hosts with the same kernel."""
    folder = tmp_path_factory.mktemp("outcomes")
    files = {name: folder / f"outcome_{name}.stp" for name in SCRIPTS}
    for name, text in SCRIPTS.items():
        files[name].write_text(text, encoding="utf-8")
    builds = lab.build("trace2:trace4", files, guru={"slow": "its probes have to take long"})
    loaded = "modprobe -r tun; modprobe -n tun && ! grep -q '^tun ' /proc/modules"
    tasks: list[dict[str, t.Any]] = [
        {"name": "No tun", "ansible.builtin.shell": loaded, "when": "inventory_hostname == 'trace4'"},
        {"name": "Before", "tapvirt.host.stap_probe_info": {"probes": [TUN]}},
    ]
    for case in CASES:
        tasks += tasks_of(case, builds[case.host][case.script]["module"], folder)
    done = lab.run_tasks("trace2:trace4", tasks, strategy="free")
    runs = {case.outcome: done.of(case.host, case.name) for case in CASES}
    return CaseRuns(runs, builds, done.of("trace4", "Before")["probes"][0], folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.outcome)
def test_crafted_script_ends_with_its_outcome(case_runs, case):
    result = case_runs.runs[case.outcome]
    run = result["run"]
    assert (run["outcome"], case.reason in run["reason"]) == (case.outcome, True), result
    # A task that failed has a message.
    assert ("msg" in result) == (case.outcome not in ("ok", "zero_hits")), result
    if case.outcome != "refused":
        assert run["leftovers"] == [], run


def test_failed_build_reports_the_line(case_runs):
    for host in case_runs.builds:
        result = case_runs.builds[host]["unbuildable"]
        assert result["outcome"] == "build_failed", result
        assert (result["line"], "no_such_function_anywhere" in result["msg"]) == (1, True), result


def test_every_outcome_has_a_script():
    from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise.outcome import OUTCOMES

    assert sorted([*(case.outcome for case in CASES), "build_failed"]) == sorted(OUTCOMES)


def test_probe_in_an_unloaded_module_is_reported_before_and_after_the_run(case_runs):
    assert case_runs.before["verdict"] == "module_not_loaded", case_runs.before
    assert "tun is not loaded" in case_runs.before["reason"]
    run = case_runs.runs["partial_arm"]["run"]
    assert "ended as partial_arm" in case_runs.runs["partial_arm"]["msg"]
    assert run["probes"]["armed"] == 1 and len(run["probes"]["missing"]) == 1, run
    assert "tun_chr_open" in run["probes"]["missing"][0]


def test_two_line_warning_is_not_an_error(case_runs):
    run = case_runs.runs["ok"]["run"]
    assert (run["outcome"], run["errors"]) == ("ok", 0), run
    assert {"a warning", "of two lines"} <= set(run["messages"]), run


def test_skipped_probes_equal_the_count_of_systemtap(case_runs):
    run = case_runs.runs["skipped"]["run"]
    totals = [re.match(r"Number of errors: 0, skipped probes: (\d+)$", message) for message in run["messages"]]
    assert [run["skipped"]] == [int(total.group(1)) for total in totals if total] != [0], run
    (hint,) = run["hints"]
    assert "at most 1 calls were followed at the same time. Write .maxactive(" in hint, run


def test_output_is_stored_on_the_controller(case_runs):
    ok = case_runs.runs["ok"]["run"]
    path = pathlib.Path(ok["output"]["path"])
    assert path == case_runs.folder / "ok" / f"trace2.{ok['module']['name']}.txt"
    data = path.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (ok["output"]["bytes"], ok["output"]["sha256"])
    assert (len(data), ok["output"]["sha256"], ok["output"]["truncated"]) == (ok["bytes"], ok["sha256"], False)
    assert [json.loads(line) for line in data.splitlines() if line.startswith(b"{")] == ok["records"]


def test_truncated_output_is_reported(case_runs):
    lost = case_runs.runs["lost_output"]["run"]
    data = pathlib.Path(lost["output"]["path"]).read_bytes()
    assert (len(data), lost["output"]["bytes"], lost["output"]["truncated"]) == (1000, 1000, True)
    assert hashlib.sha256(data).hexdigest() == lost["output"]["sha256"] != lost["sha256"]
    assert lost["bytes"] > 1000 and lost["hits"] == 0
