# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds: one for each distinct key, identical on every builder, by a builder that has the headers, within limits."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import typing as t
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from .support.hosts import STORE
from .support.places import PLAYBOOKS

HOSTS = ["trace1", "trace2", "trace3", "trace4"]
PLAYS = 8 if os.environ.get("TAPVIRT_SOAK") else 3
PREFIX = "tapvirt_builds_test_"  # of the names of the modules that are built here
# Only for this test run: the builder may serve another run.
FOLDER = f"/var/lib/tapvirt/builds-test-{os.getpid()}"
STARTS_WITHIN_SECONDS = 5
# 85 s in all. Each ./dev test has builds for several kernels in test_demo.py and test_systemtap.py.
pytestmark = pytest.mark.soak
SCRIPT = """# {{ stamp }}
#: record count key:string count:integer
global least = 0
global calls
probe kprobe.function("{{ function }}") { calls <<< 1 }
probe end { printf("{\\"kind\\":\\"count\\",\\"key\\":\\"least %d\\",\\"count\\":%d}\\n", least, @count(calls)) }
"""
# Other tests check that each probe was armed.
ACCEPTED = ["ok", "zero_hits", "partial_arm"]
FUNCTIONS = {"reads": "vfs_read", "writes": "vfs_write"}
# The limits of a compiler in /proc: the processes that stap starts inherit its limits.
LIMITS = """
until limits=$(for name in $(grep -lxs cc1 /proc/[0-9]*/comm); do
    grep -hsE '^Max (cpu time|address space)' "${name%comm}limits"
done) && test -n "$limits"; do sleep 0.05; done
echo "$limits"
"""


@pytest.fixture(scope="module")
def scripts(lab, tmp_path_factory):
    """A directory with two scripts that were never built; the files on the builder are deleted afterwards."""
    folder = tmp_path_factory.mktemp("builds")
    for name, function in FUNCTIONS.items():
        text = SCRIPT.replace("{{ function }}", function)
        (folder / f"builds_test_{name}.stp.j2").write_text(text, encoding="utf-8")
    lab.shell("builder", f"mkdir -p {FOLDER}")
    yield folder
    lab.shell("builder", f"rm -rf {FOLDER}")


def build_tasks(name: str, **globals_: int) -> list[dict[str, t.Any]]:
    return [
        {
            "name": f"Render {name}",
            "tapvirt.host.stap_script": {
                "src": f"builds_test_{name}.stp.j2",
                "variables": {"stamp": "{{ playbook_dir }}"},
                "globals": globals_,
            },
            "delegate_to": "builder",
            "run_once": True,
            "register": f"rendered_{name}",
        },
        {
            "name": f"Build {name}",
            "tapvirt.host.stap_module": {
                "script": f"{{{{ rendered_{name}.script }}}}",
                "kernel": "{{ kernels[inventory_hostname].release }}",
                "kernel_version": "{{ kernels[inventory_hostname].version }}",
            },
            "delegate_to": "builder",
            "register": f"built_{name}",
        },
    ]


@pytest.fixture(scope="module")
def kernels(lab) -> dict[str, dict[str, str]]:
    """The running kernel of each host: host -> release and version."""
    answers = lab.ansible(",".join(HOSTS), "tapvirt.host.kernel_facts", {"gather_subset": ["min"]})
    found = {host: answer["ansible_facts"]["tapvirt_kernel"] for host, answer in answers.items()}
    return {host: {"release": found[host]["release"], "version": found[host]["version"]} for host in HOSTS}


def write_play(path: pathlib.Path, kernels: dict[str, t.Any], tasks: list[dict[str, t.Any]]) -> pathlib.Path:
    play = {"hosts": ",".join(HOSTS), "gather_facts": False, "vars": {"kernels": kernels}, "tasks": tasks}
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")
    return path


def timestamp_task(name: str) -> dict[str, t.Any]:
    return {
        "name": name,
        "ansible.builtin.debug": {"msg": "{{ '%.3f' | format(now().timestamp()) }}"},
        "run_once": True,
    }


@pytest.fixture(scope="module")
def concurrent_plays(lab, scripts, kernels):
    """The results of concurrent plays, each with two scripts on four hosts, and the builds that they needed."""
    before = lab.builds(PREFIX)
    play = write_play(scripts / "ask.yml", kernels, [*build_tasks("reads"), *build_tasks("writes")])
    plays = [lab.begin(play) for _number in range(PLAYS)]
    results = [running.end() for running in plays]
    return results, lab.builds(PREFIX)[len(before) :]


def test_concurrent_plays_with_two_scripts_and_three_kernels_need_six_builds(concurrent_plays, kernels):
    results, compiled = concurrent_plays
    assert [result.rc for result in results] == [0] * PLAYS, results[0].stdout[-3000:]
    assert len(compiled) == 6, compiled
    assert len({row["key"] for row in compiled}) == 6
    releases = sorted({kernel["release"] for kernel in kernels.values()})
    assert len(releases) == 3
    assert sorted(row["kernel"] for row in compiled) == sorted([*releases, *releases])
    # A task that waited for the build of another one does not count as a build.
    rows = [row for result in results for row in result.results if row["task"].startswith("Build ")]
    assert len(rows) == PLAYS * len(HOSTS) * len(FUNCTIONS)
    assert sum(row["result"]["built"] for row in rows) == 6


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hosts_with_the_same_kernel_get_the_same_module(concurrent_plays, name):
    modules = [(result.of(host, f"Build {name}")["module"], host) for result in concurrent_plays[0] for host in HOSTS]
    sums: dict[str, set[str]] = {}
    for module, _host in modules:
        sums.setdefault(module["kernel"], set()).add(module["sha256"])
    assert len(sums) == 3 and all(len(each) == 1 for each in sums.values()), sums
    assert len({next(iter(each)) for each in sums.values()}) == 3
    for module, _host in modules:
        assert pathlib.Path(module["controller_path"]).stat().st_size == module["bytes"]


def test_another_threshold_builds_nothing_and_starts_at_once(lab, scripts, kernels, concurrent_plays):
    before = lab.builds(PREFIX)
    run = {"module": "{{ built_reads.module }}", "duration_seconds": 2, "accept": ACCEPTED}
    tasks = [timestamp_task("Begun"), *build_tasks("reads", least=250), timestamp_task("Starts")]
    tasks.append({"name": "Run", "tapvirt.host.stap_run": run})
    result = lab.playbook(write_play(scripts / "again.yml", kernels, tasks))
    assert result.rc == 0, result.stdout[-3000:]
    assert lab.builds(PREFIX) == before
    for host in HOSTS:
        assert result.of(host, "Build reads")["changed"] is False
        outcome = result.of(host, "Run")["run"]
        assert [row["key"] for row in outcome["records"]] == ["least 250"], outcome
    begun, starts = (float(result.of("trace1", task)["msg"]) for task in ("Begun", "Starts"))
    print(f"the runs start {starts - begun:.1f} s after the campaign began")
    assert starts - begun <= STARTS_WITHIN_SECONDS


FAULTS = {
    "a name that no function has": (
        'probe begin { }\nprobe kprobe.function("vfs_raed") { exit() }\n',
        {"phase": "analysis", "line": 2, "column": 7},
        "vfs_read",
    ),
    "a variable that the function has not": (
        'probe kernel.function("vfs_read") {\n  println($cuont) }\n',
        {"phase": "analysis", "line": 2, "column": 11},
        "$count",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_error_of_stap_is_reported_in_one_paragraph(lab, scripts, concurrent_plays, fault):
    text, place, nearest = FAULTS[fault]
    script = lab.write("builder", f"{FOLDER}/faulty.stp", text)
    args = {"script": script, "kernel": concurrent_plays[0][0].of("trace2", "Build reads")["module"]["kernel"]}
    before = lab.shell("builder", f"ls -A {STORE} {STORE}/.work")
    (refused,) = lab.ansible("builder", "tapvirt.host.stap_module", args).values()
    assert refused["failed"] and refused["outcome"] == "build_failed", refused
    assert {key: refused[key] for key in place} == place, refused
    assert nearest in refused["error"]["candidates"] and refused["error"]["option"] == "script"
    assert re.search(rf" Did you mean .*{re.escape(nearest)}\b.*\?$", refused["msg"]), refused
    assert refused["msg"].startswith(
        f"Script faulty, line {place['line']}, column {place['column']}: The analysis of stap "
    )
    assert "\n" not in refused["msg"]
    assert lab.shell("builder", f"ls -A {STORE} {STORE}/.work") == before


# An interpreter in its own mount namespace, which hides the headers of other kernels.
BLINDED = """#!/bin/sh
exec unshare --mount sh -c '
for folder in /usr/lib/modules/*; do case $folder in {seen}) ;; *) mount -t tmpfs tmpfs "$folder" ;; esac; done
exec /usr/bin/python3 "$@"' sh "$@"
"""


@pytest.fixture(scope="module")
def two_builders(lab, scripts):
    """An inventory with two builders; each can build for one kernel and has its own store."""
    machine = lab.variables("builder")
    hosts = {}
    for name, seen in {"builder-old": "*/6.1.*", "builder-new": "*/6.12.*"}.items():
        path, store = f"{FOLDER}/{name}-python", f"{FOLDER}/{name}"
        text = BLINDED.replace("{seen}", seen)
        lab.write("builder", path, text, "755")
        hosts[name] = {**machine, "ansible_python_interpreter": path, "trace_builder_store": store}
    path = scripts / "two.yml"
    path.write_text(yaml.safe_dump({"two_builders": {"hosts": hosts}}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def two_builder_campaign(lab, scripts, concurrent_plays, two_builders):
    """The result of a campaign with two builders, and the limits of the compilers."""
    variables = {
        "trace_builders": "two_builders",
        "trace_script": str(scripts / "builds_test_reads.stp.j2"),
        "trace_variables": {"stamp": str(scripts)},
        "trace_targets": ",".join(HOSTS),
        "trace_duration_seconds": 5,
        "trace_waves": "100%",
        "trace_accept": ACCEPTED,
    }
    before = lab.builds(PREFIX)
    with ThreadPoolExecutor(1) as pool:
        watch = pool.submit(lab.shell, "builder", f"timeout 280 sh -c {shlex.quote(LIMITS)}", timeout=300)
        result = lab.playbook(PLAYBOOKS / "trace.yml", "-i", str(two_builders), "-e", json.dumps(variables))
        limits = watch.result()
    assert lab.builds(PREFIX) == before
    return result, limits


def test_kernel_is_built_by_the_builder_that_has_its_headers(lab, two_builder_campaign):
    result, _limits = two_builder_campaign
    campaign = result.stats()["trace_campaign"]
    assert sorted(campaign["hosts"]) == ["trace1", "trace2", "trace4"], result.stdout[-3000:]
    assert {row["outcome"] for row in campaign["hosts"].values()} <= set(ACCEPTED), result.stdout[-3000:]
    done = {
        name: [row["kernel"][:4] for row in lab.builds(PREFIX, f"{FOLDER}/{name}")]
        for name in ("builder-old", "builder-new")
    }
    assert done == {"builder-old": ["6.1."], "builder-new": ["6.12"]}
    # A host that neither builder can build for is left out, with the reason of each builder.
    reason = campaign["left_out"]["trace3"]
    for name in ("builder-old", "builder-new"):
        assert f"{name}: the builder has no headers for 7.2" in reason
    assert "install the package linux-headers-7.2" in reason


@pytest.mark.parametrize("host", ["trace1", "trace2", "trace4"])
def test_build_is_identical_in_another_store(concurrent_plays, two_builder_campaign, host):
    elsewhere = two_builder_campaign[0].of(host, "tapvirt.host.trace : Build the module once for each distinct kernel")[
        "module"
    ]
    module = concurrent_plays[0][0].of(host, "Build reads")["module"]
    assert elsewhere["path"] != module["path"] and elsewhere["path"].startswith(FOLDER)
    assert (elsewhere["sha256"], elsewhere["key"]) == (module["sha256"], module["key"])


def test_limits_apply_to_compilers(two_builder_campaign):
    cpu, memory = (
        {int(line.split()[-3]) for line in two_builder_campaign[1].splitlines() if line.startswith(f"Max {name}")}
        for name in ("cpu time", "address space")
    )
    assert cpu == {600} and memory == {4 << 30}, two_builder_campaign[1]
