# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook trace in real runs, over hosts whose modules answer what a test says."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import typing as t

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAM = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
# In place of every module of the collection that the playbook runs.
ACTION = """
import json, os, pathlib
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        folder = pathlib.Path(os.environ["STUBS"])
        name = self._task.action.split(".")[-1]
        if name == "procfs_info":
            name += "_after" if "pattern" in self._task.args["kmsg"] else "_before"
        host = self._task.delegate_to or task_vars["inventory_hostname"]
        with open(folder / "calls", "a", encoding="utf-8") as calls:
            print(json.dumps([name, host, self._task.args]), file=calls)
        answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))[name]
        answer = answers.get(host, answers["*"])
        if answer == "unreachable":
            raise AnsibleConnectionFailure("nobody is there")
        return answer
"""
RELEASE = os.uname().release
KERNEL = {"release": RELEASE, "version": os.uname().version, "cpus": {"virtualization_flags": []}}
HOST = {
    "kernel": {"release": RELEASE},
    "traceability": {"reasons": [], "conditions": []},
    "staprun": "5.1",
    "privilege": {"load_modules": True, "groups": []},
    "memory": {"free_bytes": 1 << 30, "buffers_bytes": 0, "cpus_online": 2},
    "loaded": [],
}
BUILDER = {
    "stap": "5.6",
    "tested": ["3.10", "99"],
    "compilers": ["gcc-14"],
    "kernels": {RELEASE: {"version": "#1", "compiler": "gcc-14", "debuginfo": True}},
}
RUN = {"outcome": "ok", "reason": "1 of 1 probes armed", "hits": 4, "record_count": 1, "kernel": RELEASE}
RECORDS = [{"kind": "count", "key": "io", "count": 5}]
ANSWERS: dict[str, dict[str, t.Any]] = {
    "kernel_facts": {"*": {"ansible_facts": {"tapvirt_kernel": KERNEL}}},
    "stap_host_info": {"*": {"host": HOST, "builder": None}, "b1": {"host": HOST, "builder": BUILDER}},
    "procfs_info_before": {"*": {"procfs": {"sysctls": {"kernel.tainted": 0}, "kmsg": []}}},
    "procfs_info_after": {"*": {"procfs": {"sysctls": {"kernel.tainted": 0}, "kmsg": []}}},
    "stap_script": {"*": {"script": {}}},
    "stap_probe_info": {"*": {"probes": []}},
    "stap_module": {"*": {"module": {}, "plan": []}},
    "stap_run": {"*": {"run": {"phase": "started", "run_id": "tapvirt_x-1", "finished": False}}},
    "stap_run_result": {"*": {"run": {**RUN, "records": RECORDS}}},
}
INVENTORY = """
all:
  vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
trace_hosts: {hosts: {h1: {}, h2: {}, h3: {}}}
builders: {hosts: {b0: {}, b1: {}}}
"""
# The second trace leaves out the host on which the role chooses the moment.
TWICE = """
- hosts: trace_hosts
  gather_facts: false
  vars: {trace_builder: b1, trace_variables: {function: vfs_read}}
  tasks:
    - ansible.builtin.include_role: {name: tapvirt.host.trace}
    - ansible.builtin.import_role: {name: tapvirt.host.trace}
      when: inventory_hostname != 'h1'
    - ansible.builtin.debug: {msg: "{{ trace_runs | map(attribute='start_at') | map('default', 'none', true) | list }}"}
"""
KILLED = {"failed": True, "msg": "MODULE FAILURE: the Python there was killed"}
REFUSED = {"failed": True, "msg": "the builder's disk is full"}


@dataclasses.dataclass
class Done:
    """What became of a run."""

    code: int
    output: str
    calls: list[tuple[str, str, dict[str, t.Any]]]

    @property
    def campaign(self) -> dict[str, t.Any]:
        (summary,) = re.findall(r"^\s*RUN: (.*)$", self.output, re.MULTILINE)
        return t.cast("dict[str, t.Any]", json.loads(summary)["trace_campaign"])

    def asked(self, name: str) -> list[str]:
        return [host for module, host, _args in self.calls if module == name]


class Play:
    """A copy of the collection, with stubs for modules."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        place = folder / "ansible_collections/tapvirt/host"
        (place / "plugins/action").mkdir(parents=True)
        for name in ("playbooks", "roles", "galaxy.yml", "meta"):
            (place / name).symlink_to(ROOT / name)
        for name in ("filter", "lookup", "plugin_utils", "module_utils"):
            (place / "plugins" / name).symlink_to(ROOT / "plugins" / name)
        for name in {name.removesuffix("_before").removesuffix("_after") for name in ANSWERS}:
            (place / "plugins/action" / f"{name}.py").write_text(ACTION, encoding="utf-8")
        (folder / "inventory.yml").write_text(INVENTORY, encoding="utf-8")
        (folder / "twice.yml").write_text(TWICE, encoding="utf-8")

    def run(
        self,
        *options: str,
        answers: dict[str, dict[str, t.Any]] | None = None,
        playbook: str = "tapvirt.host.trace",
        **variables: t.Any,
    ) -> Done:
        merged = {name: {**rows, **(answers or {}).get(name, {})} for name, rows in ANSWERS.items()}
        (self._folder / "answers.json").write_text(json.dumps(merged), encoding="utf-8")
        calls = self._folder / "calls"
        calls.write_text("", encoding="utf-8")
        env = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(self._folder),
            "ANSIBLE_SHOW_CUSTOM_STATS": "1",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOME": str(self._folder / "home"),
            "STUBS": str(self._folder),
        }
        env.pop("PYTHONPATH", None)
        argv = [PROGRAM, "-i", str(self._folder / "inventory.yml"), playbook]
        quick = {"trace_duration_seconds": 0.1, "trace_round_seconds": 0}
        argv += ["-e", json.dumps({"trace_function": "vfs_read", **quick, **variables}), *options]
        done = subprocess.run(
            argv,
            cwd=self._folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        output = done.stdout + done.stderr
        assert "Unexpected Exception" not in output and "Traceback" not in output, output
        rows = [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]
        return Done(done.returncode, output, [(row[0], row[1], row[2]) for row in rows])


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Play:
    return Play(tmp_path_factory.mktemp("trace"))


def test_a_limit_to_traced_hosts_leaves_the_builders_and_a_dead_builder_ends_nothing(play: Play) -> None:
    done = play.run(
        "--limit", "h1,h2", trace_accept="ok, partial_arm", answers={"stap_host_info": {"b0": "unreachable"}}
    )
    assert done.code == 0, done.output
    asked = done.asked("stap_host_info")
    assert asked[:2] == ["b0", "b1"] and sorted(asked[2:]) == ["h1", "h2"]
    assert "nobody is there" in done.output and "2 of 2 hosts were traced." in done.output
    assert done.asked("stap_module") == ["b1", "b1"] and done.asked("stap_run") == ["h1", "h2"]
    summary = done.campaign
    assert (summary["traced"], summary["stopped"], summary["counters"][0]["totals"]) == (2, False, {"io": 10})


@pytest.mark.parametrize("waves", ["1,2", pytest.param("1", marks=pytest.mark.soak)])
def test_a_host_that_fails_to_tell_stops_the_campaign_and_keeps_its_run(play: Play, waves: str) -> None:
    bad = "h2" if waves == "1,2" else "h1"
    done = play.run("-f", "1", trace_waves=waves, answers={"procfs_info_after": {bad: KILLED}})
    assert done.code != 0
    summary = done.campaign
    assert summary["stopped"], done.output
    assert summary["hosts"][bad]["outcome"] == "ok" and summary["hosts"][bad]["hits"] == 4
    assert KILLED["msg"] in summary["hosts"][bad]["stop_reasons"][0]
    assert summary["left_out"] == (
        {} if bad == "h2" else dict.fromkeys(["h2", "h3"], "the campaign had stopped before")
    )
    assert f"{bad}: its kernel's state after the trace is unknown: {KILLED['msg']}" in done.output
    assert "No further wave begins. Not traced: " in done.output


def test_what_failed_on_the_builder_is_no_trace_and_a_host_that_cannot_be_looked_at_is_lost(play: Play) -> None:
    answers = {"procfs_info_before": {"h2": KILLED}, "stap_module": {"b1": REFUSED}}
    done = play.run(trace_waves="100%", answers=answers)
    summary = done.campaign
    assert summary["outcomes"] == {"build_failed": 2, "lost": 1} and summary["traced"] == 0
    assert summary["hosts"]["h1"]["reason"] == REFUSED["msg"]
    assert "0 of 3 hosts were traced." in done.output
    assert summary["stopped"] and KILLED["msg"] in summary["hosts"]["h2"]["stop_reasons"][0]


def test_all_hosts_of_a_wave_are_started_before_any_is_collected(play: Play) -> None:
    done = play.run("-f", "1", trace_waves="1,100%")
    assert done.code == 0, done.output
    order = [(name, host) for name, host, _args in done.calls if name in ("stap_run", "stap_run_result")]
    assert order == [
        ("stap_run", "h1"),
        ("stap_run_result", "h1"),
        ("stap_run", "h2"),
        ("stap_run", "h3"),
        ("stap_run_result", "h2"),
        ("stap_run_result", "h3"),
    ]
    starts = {host: args for name, host, args in done.calls if name == "stap_run"}
    assert "start_at" not in starts["h1"], "a single host begins at once"
    assert float(starts["h2"]["start_at"]) == float(starts["h3"]["start_at"])
    assert [args["wait"] for args in starts.values()] == [False, False, False]
    assert done.output.count("The time of the runs on 2 hosts is over.") == 1
    collected = [args for name, _host, args in done.calls if name == "stap_run_result"]
    assert collected == [{"run_id": "tapvirt_x-1", "accept": ["ok", "zero_hits"], "remove": True}] * 3


LATE = "The role trace could not choose the moment at which the hosts begin"


@pytest.mark.soak  # 11 s
def test_a_trace_without_the_first_host_does_not_take_the_moment_of_the_one_before(play: Play) -> None:
    done = play.run(playbook="twice.yml")
    assert done.code == 0, done.output
    starts = [(host, "start_at" in args) for name, host, args in done.calls if name == "stap_run"]
    assert sorted(starts[:3]) == [("h1", True), ("h2", True), ("h3", True)]
    assert sorted(starts[3:]) == [("h2", False), ("h3", False)]
    assert done.output.count(LATE) == 1, done.output
    assert len(re.findall(r'"none"', done.output)) == 2
    assert len(done.asked("stap_run_result")) == 5


def test_a_moment_that_the_user_gives_is_not_taken_when_it_is_over(play: Play) -> None:
    done = play.run(trace_waves="100%", trace_start_at=1764540000)
    assert done.code == 0, done.output
    assert all("start_at" not in args for name, _host, args in done.calls if name == "stap_run")
    assert LATE in done.output and done.campaign["waves"] == []


@pytest.mark.parametrize("step", ["stap_run", "stap_run_result"])
def test_a_host_that_dies_in_between_costs_the_others_nothing(play: Play, step: str) -> None:
    done = play.run(trace_waves="100%", answers={step: {"h2": "unreachable"}})
    assert done.code == 2, done.output
    campaign = done.campaign
    assert (campaign["outcomes"], campaign["traced"]) == ({"ok": 2, "lost": 1}, 2)
    assert campaign["counters"][0]["totals"] == {"io": 10}
    (reason,) = campaign["hosts"]["h2"]["stop_reasons"]
    assert reason.startswith("it ended as lost: the host answered before the trace, and no longer does: ")
    assert "nobody is there" in reason
    assert "has no attribute" not in done.output
    assert sorted(done.asked("stap_run_result")) == (["h1", "h3"] if step == "stap_run" else ["h1", "h2", "h3"])
    assert done.output.count("h2: it ended as lost: ") == 1


def test_a_start_that_is_refused_is_not_collected(play: Play) -> None:
    refused = {"run": {"phase": "check", "outcome": "refused", "reason": "no room"}}
    failed = {**refused, "failed": True, "msg": "The run was refused before anything was loaded: no room."}
    done = play.run(trace_waves="100%", answers={"stap_run": {"h1": failed}})
    assert done.code == 2, done.output
    assert sorted(done.asked("stap_run_result")) == ["h2", "h3"]
    assert done.campaign["outcomes"] == {"ok": 2, "refused": 1}
    assert done.campaign["hosts"]["h1"]["reason"] == "no room"
    accepted = play.run(trace_waves="100%", trace_accept="ok, refused", answers={"stap_run": {"h1": refused}})
    assert accepted.code == 0, accepted.output
    assert sorted(accepted.asked("stap_run_result")) == ["h2", "h3"]


def test_check_mode_neither_waits_nor_collects(play: Play) -> None:
    checked = {"run": {"phase": "check", "outcome": "ok", "reason": "nothing forbids the run", "records": []}}
    done = play.run("--check", trace_waves="100%", trace_duration_seconds=600, answers={"stap_run": {"*": checked}})
    assert done.code == 0, done.output
    assert done.asked("stap_run_result") == []
    assert all("start_at" not in args for name, _host, args in done.calls if name == "stap_run")
    assert done.campaign["outcomes"] == {"planned": 3}


NO_FUNCTION = (
    '"msg": "Invalid value for trace_function: The script function_latency needs it. '
    'Set it, for example trace_function=vfs_read."'
)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"trace_waves": 0}, "Invalid value 0 for trace_waves: The size of a wave is a number of hosts"),
        (
            {"trace_limits": {"max_action": 10**6}},
            "Invalid value 1000000 for trace_limits.max_action: max_action takes a whole number from 1 to 100000.",
        ),
        ({"trace_limits": {"max_actions": "5"}}, "Invalid value 5 for trace_limits.max_actions: There is no limit"),
        ({"trace_guru": "yes", "trace_guru_reason": " "}, "for trace_guru_reason: The script may contain embedded C"),
        ({"trace_stack_modules": ["kvm", "ext*"]}, "Invalid value 'ext*' for trace_stack_modules[1]: The name of a"),
        (
            {"trace_accept": "ok,partialarm"},
            "Invalid value 'ok,partialarm' for trace_accept: 'partialarm' is not an outcome of a run",
        ),
        ({"trace_function": ""}, NO_FUNCTION),
        (
            {"trace_function": "a b"},
            "Invalid value 'a b' for trace_function: The script function_latency takes a value",
        ),
        ({"trace_function": "vfs_read\n"}, "takes a value that matches"),
        ({"trace_function": "", "trace_script": "module_functions"}, "for example trace_module=kvm."),
        (
            {"trace_targets": "nix"},
            "for trace_targets: The pattern matches no host of the inventory. Its groups are builders",
        ),
        (
            {"trace_builders": "building"},
            "for trace_builders: The pattern matches no host of the inventory. Its groups",
        ),
        (
            {"trace_function": "", "trace_variables": {"funtion": "f"}},
            "'funtion' for trace_variables: The script function_latency takes the variables function, module. Did you",
        ),
        (
            {"trace_function": "", "trace_variables": {"function": "a b"}},
            '"msg": "Invalid value \'a b\' for trace_variables.function: The script function_latency takes a value',
        ),
        (
            {"trace_function": "", "trace_variables": {"function": None}},
            '"msg": "Invalid value for trace_variables.function: The script function_latency takes a value',
        ),
        (
            {"trace_function": "", "trace_variables": {}},
            '"msg": "Invalid value for trace_variables.function: The script function_latency needs it.',
        ),
        ({"trace_script": "function_latncy"}, "for trace_script: The catalogue does not contain this script"),
        (
            {"trace_duration_seconds": "tenn"},
            "Invalid value 'tenn' for trace_duration_seconds: The duration is a number of seconds",
        ),
        ({"trace_duration_seconds": 1000}, "a number of seconds, more than 0 and at most 900"),
        ({"trace_output": "/srv/$HOME/x"}, "Invalid value '/srv/$HOME/x' for trace_output: The path contains $HOME"),
        ({"trace_dest": "/srv/$HOME/x.html"}, "'/srv/$HOME/x.html' for trace_dest: The path contains $HOME"),
    ],
)
def test_what_cannot_be_is_refused_before_any_host_is_asked(
    play: Play, variables: dict[str, t.Any], words: str
) -> None:
    done = play.run(**variables)
    assert done.code != 0 and done.calls == []
    assert words in done.output, done.output


def test_one_function_is_what_the_script_calls_it_and_a_module_is_for_the_kernel_that_runs(play: Play) -> None:
    old = {"ansible_facts": {"tapvirt_kernel": {**KERNEL, "release": "0.0.1"}}}
    answers = {"kernel_facts": {"h1": old}}
    done = play.run("--tags", "trace", trace_script="function_count", trace_waves=3, answers=answers)
    assert done.code == 0, done.output
    given = [args["variables"] for name, _host, args in done.calls if name == "stap_script"]
    assert given == [{"functions": "vfs_read", "kvm_module": "kvm_intel"}] * 5, "two kernels to judge, three hosts"
    assert sorted(done.asked("kernel_facts")) == ["h1", "h1", "h2", "h3"], "facts of another kernel alone are replaced"
    assert done.campaign["traced"] == 3


def test_build_ids_and_debuginfod_servers_reach_the_builder(play: Play) -> None:
    build_ids = {"kvm": "bdf16e8f4359efc9e9f854e651c18b49829ffdbd"}
    answers: dict[str, dict[str, t.Any]] = {
        "kernel_facts": {"*": {"ansible_facts": {"tapvirt_kernel": {**KERNEL, "build_id": "3bde3ce0"}}}},
        "stap_script": {"*": {"script": {"modules": ["kvm", "kvm_*"]}}},
        "stap_probe_info": {"*": {"probes": [], "module_build_ids": build_ids}},
    }
    servers = {"servers": ["http://127.0.0.1:8002"], "timeout_seconds": 60}
    done = play.run("--limit", "h1", answers=answers, trace_builder_debuginfod=servers)
    assert done.code == 0, done.output
    asked = {host: args.get("debuginfod") for name, host, args in done.calls if name == "stap_host_info"}
    assert asked == {"b0": servers, "b1": servers, "h1": None}
    (probes,) = [args["probes"] for name, host, args in done.calls if name == "stap_probe_info" and host == "h1"]
    assert probes == ['module("kvm").function("*")', 'module("kvm_*").function("*")']
    (build,) = [args for name, _host, args in done.calls if name == "stap_module"]
    assert (build["build_id"], build["module_build_ids"], build["debuginfod"]) == ("3bde3ce0", build_ids, servers)
    plain = play.run("--limit", "h1", answers=answers)
    (build,) = [args for name, _host, args in plain.calls if name == "stap_module"]
    assert build["build_id"] == "3bde3ce0" and not {"module_build_ids", "debuginfod"} & set(build)
    assert "stap_probe_info" not in {name for name, _host, _args in plain.calls}


def test_options_of_the_build_reach_the_builder(play: Play) -> None:
    options: dict[str, t.Any] = {
        "trace_limits": {"max_map_entries": 20000, "max_action": 5000},
        "trace_skip_badvars": True,
        "trace_stack_modules": ["kernel", "ext4"],
        "trace_tapsets": ["/etc/tapvirt/tapset"],
        "trace_guru": True,
        "trace_guru_reason": "a counter in C",
    }
    answers: dict[str, dict[str, t.Any]] = {
        "stap_script": {"*": {"script": {"modules": ["kvm"]}}},
        "stap_probe_info": {"*": {"probes": [], "module_build_ids": {}}},
    }
    servers = {"servers": ["http://127.0.0.1:8002"]}
    done = play.run("--limit", "h1", answers=answers, trace_builder_debuginfod=servers, **options)
    assert done.code == 0, done.output
    (build,) = [args for name, _host, args in done.calls if name == "stap_module"]
    assert {name: build[name.replace("trace_", "")] for name in list(options)[:4]} == {
        name: options[name] for name in list(options)[:4]
    }
    scripts = [(args["guru"], args["guru_reason"]) for name, _host, args in done.calls if name == "stap_script"]
    assert set(scripts) == {(True, "a counter in C")}
    # Stacks need debug information, too; the kernel's own is named by its build-id.
    (probes,) = [args["probes"] for name, host, args in done.calls if name == "stap_probe_info" and host == "h1"]
    assert probes == ['module("kvm").function("*")', 'module("ext4").function("*")']
    plain = play.run("--limit", "h1")
    (build,) = [args for name, _host, args in plain.calls if name == "stap_module"]
    assert [build[name] for name in ("limits", "skip_badvars", "stack_modules", "tapsets")] == [{}, False, [], []]
    rendered = [args for name, _host, args in plain.calls if name == "stap_script"]
    assert not any(args["guru"] or "guru_reason" in args for args in rendered)


def test_hints_of_a_run_are_in_the_last_lines(play: Play) -> None:
    hint = "An array of the script is full. Set limits.max_map_entries of stap_module to more than 2048."
    full = {"outcome": "script_error", "reason": "Array overflow, check MAXMAPENTRIES", "hints": [hint]}
    answers = {"stap_run": {"h2": {"failed": True, "msg": "x", "run": {**RUN, **full}}}}
    done = play.run(trace_waves="100%", answers=answers)
    assert done.code == 2 and done.campaign["hosts"]["h2"]["hints"] == [hint], done.output
    assert f"4 hits, 1 records; Array overflow, check MAXMAPENTRIES. {hint}" in done.output
    assert "hints" not in done.campaign["hosts"]["h1"]


def test_ready_reports_which_hosts_are_ready_and_no_more(play: Play) -> None:
    done = play.run("--tags", "ready", trace_function="", answers={"stap_host_info": {"h3": "unreachable"}})
    assert "2 of 3 hosts are ready to be traced." in done.output
    assert {name for name, _host, _args in done.calls} == {"kernel_facts", "stap_host_info"}, done.output


def test_a_run_of_another_shape_is_lost_and_the_campaign_is_reported(play: Play) -> None:
    odd = {"run": {"outcome": ["x"], "hits": "7", "records": 5}}
    done = play.run(trace_waves="100%", answers={"stap_run_result": {"h2": odd}})
    assert done.code == 2, done.output
    campaign = done.campaign
    assert campaign["outcomes"] == {"ok": 2, "lost": 1}
    assert campaign["hosts"]["h2"]["stop_reasons"] == [
        "it ended as lost: the host returned something else than a run: outcome is a list, not an outcome of a run"
    ]
    why = "trace_runs has an entry that is no run of a trace: run.records is not a list"
    assert campaign["trouble"] == {"h2": why}
    assert campaign["counters"][0]["totals"] == {"io": 10}


def test_a_missing_function_is_named_once_and_nothing_is_built(play: Play) -> None:
    lacks = {
        "probe": 'kernel.function("vfs_raed").call',
        "family": "function",
        "verdict": "missing",
        "reason": "no such function here",
        "candidates": ["vfs_read"],
    }
    script = {"name": "x", "sha256": "1", "text": 'probe kernel.function("vfs_raed").call {}'}
    done = play.run(
        "--check", answers={"stap_script": {"*": {"script": script}}, "stap_probe_info": {"*": {"probes": [lacks]}}}
    )
    assert done.code == 2, done.output
    message = (
        f'kernel {RELEASE} does not have kernel.function("vfs_raed").call: no such function here (nearest: vfs_read)'
    )
    assert json.dumps(f"No host was traced. h1, h2, h3: {message}")[1:-1] in done.output
    assert done.asked("stap_module") == [] and done.asked("stap_probe_info") == ["h1", "h2"], "h2 confirms it"
    assert done.campaign["outcomes"] == {"refused": 3} and done.campaign["hosts"]["h3"]["reason"] == message
    assert done.output.count("fatal: [") == 1, "the run"


def test_hosts_of_a_kernel_without_the_function_are_left_out_and_count_as_failed(play: Play) -> None:
    point = {"probe": 'kernel.function("f")', "family": "function", "reason": "no", "candidates": []}
    gone, there = {**point, "verdict": "missing"}, {**point, "verdict": "armable"}
    script = {"name": "x", "sha256": "1", "text": 'probe kernel.function("f") {}'}
    old = {"ansible_facts": {"tapvirt_kernel": {**KERNEL, "version": "#0"}}}
    answers: dict[str, dict[str, t.Any]] = {
        "kernel_facts": {"h3": old},
        "stap_script": {"*": {"script": script}},
        # Debug information may know a function that the symbol table lacks, so the builder is asked.
        "stap_probe_info": {"h1": {"probes": [there]}, "h3": {"probes": [gone]}, "b1": {"probes": [gone]}},
    }
    done = play.run(trace_waves="100%", answers=answers)
    assert done.code == 2, done.output
    assert sorted(done.asked("stap_probe_info")) == ["b1", "h1", "h3"]
    assert sorted(done.asked("stap_run")) == ["h1", "h2"]
    assert done.campaign["outcomes"] == {"ok": 2, "refused": 1}
    assert "2 of 3 hosts were traced." in done.output


POINT = {"probe": 'kernel.function("f").call', "family": "function", "reason": "no such function", "candidates": []}
ARMABLE, MISSING = {**POINT, "verdict": "armable"}, {**POINT, "verdict": "missing"}
SCRIPT = {"script": {"name": "x", "sha256": "1", "text": 'probe kernel.function("f").call {}'}}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"failed": True, "msg": "No space left on device"}, "No space left on device"),
        pytest.param({"probes": [{"probe": 1}]}, "[0].probe is 1, not a probe point", marks=pytest.mark.soak),
        pytest.param({}, "is not what stap_probe_info returns: it is missing", marks=pytest.mark.soak),
        ({"probes": [MISSING]}, f'kernel {RELEASE} does not have kernel.function("f").call'),
    ],
)
def test_a_judge_that_fails_alone_refuses_no_other_host(play: Play, answer: dict[str, t.Any], words: str) -> None:
    answers = {"stap_script": {"*": SCRIPT}, "stap_probe_info": {"h1": answer, "*": {"probes": [ARMABLE]}}}
    done = play.run(trace_waves="100%", answers=answers)
    assert done.code == 2, done.output
    assert done.asked("stap_probe_info") == ["h1", "h2"], "h2 judges for h3"
    assert sorted(done.asked("stap_run")) == ["h2", "h3"]
    assert done.campaign["outcomes"] == {"ok": 2, "refused": 1}
    assert words in done.campaign["hosts"]["h1"]["reason"]


def test_hosts_judge_for_themselves_where_a_judge_is_lost_and_the_other_fails(play: Play) -> None:
    rows = {"h1": "unreachable", "h2": {"failed": True, "msg": "No space left on device"}, "h3": {"probes": [ARMABLE]}}
    answers = {"stap_script": {"*": SCRIPT}, "stap_probe_info": t.cast("dict[str, t.Any]", rows)}
    done = play.run(trace_waves="100%", answers=answers)
    assert done.asked("stap_probe_info")[:2] == ["h1", "h2"], done.output
    assert sorted(done.asked("stap_probe_info")[2:]) == ["h1", "h3"], "h3 is not taken for judged"
    assert done.campaign["hosts"]["h2"]["outcome"] == "refused" and "h3" in done.asked("stap_run")


def test_a_lost_judge_is_replaced(play: Play) -> None:
    answers: dict[str, dict[str, t.Any]] = {
        "stap_script": {"*": SCRIPT},
        "stap_probe_info": {"h1": "unreachable", "*": {"probes": [MISSING]}},
    }
    done = play.run(trace_waves="100%", answers=answers)
    assert done.asked("stap_probe_info") == ["h1", "h2"], done.output
    assert done.campaign["outcomes"] == {"refused": 3} and done.asked("stap_module") == []


def test_a_kernel_that_cannot_be_looked_at_after_its_run_stops_the_campaign(play: Play) -> None:
    nothing = {"procfs": {"sysctls": {"kernel.tainted": None}, "kmsg": None}}
    done = play.run("--limit", "h1", answers={"procfs_info_after": {"*": nothing}})
    assert done.code == 2, done.output
    assert done.campaign["hosts"]["h1"]["stop_reasons"] == [
        "its kernel's state after the trace is unknown: kernel.tainted is missing"
    ]


def test_a_dead_builder_is_reported_once(play: Play) -> None:
    done = play.run(answers={"stap_host_info": {"b0": "unreachable", "b1": "unreachable"}})
    assert done.code == 2, done.output
    message = "the builder b1 did not answer, or has no SystemTap"
    assert f'"h1, h2, h3: the builder b0 did not answer, or has no SystemTap; {message}' in done.output
    assert "{'" not in done.output, "no Python dictionary is printed"
    assert '"msg": "No host was traced. h1, h2, h3: ' in done.output
