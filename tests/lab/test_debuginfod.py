# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces with a builder that has no debug information of its own: a real debuginfod on loopback sends it."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

import pytest
import yaml

HOSTS = ["trace1", "trace2", "trace3", "trace4"]
# Of this run alone: the builder may serve another one.
FOLDER = f"/var/lib/tapvirt/debuginfod-test-{os.getpid()}"
PLAYBOOK = pathlib.Path(__file__).resolve().parents[2] / "playbooks" / "trace.yml"
BUILD = "tapvirt.host.trace : Build the module once for each distinct kernel"
# An interpreter in a mount namespace of its own: the builder's debug information is covered, and its only compiler is
# the distribution's own gcc, with which no kernel here but the newest was compiled.
BARE = """#!/bin/sh
exec unshare --mount sh -ec '
mount -t tmpfs tmpfs /usr/lib/debug
mount -t tmpfs tmpfs {folder}/top
mkdir {folder}/top/upper {folder}/top/work
mount -t overlay -o lowerdir=/usr/bin,upperdir={folder}/top/upper,workdir={folder}/top/work bare /usr/bin
mv "$(readlink -f /usr/bin/gcc)" {folder}/top/gcc
rm -f /usr/bin/*gcc /usr/bin/*gcc-[0-9]*
mv {folder}/top/gcc /usr/bin/gcc
exec /usr/bin/python3 "$@"' sh "$@"
"""
SERVE = """
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
setsid env HOME={folder} debuginfod -d :memory: -F -p "$port" -t 0 /usr/lib/debug \
    > {folder}/debuginfod.log 2>&1 < /dev/null &
echo "$!" "$port"
"""
WAIT = """
import sys, time, urllib.error, urllib.request
for url in sys.argv[1:]:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url).close()
            break
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
"""


def shell(lab, command: str, timeout: float = 60) -> str:
    done = lab.run("builder", "sh", "-ec", command, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def kernels(lab) -> dict[str, dict[str, t.Any]]:
    answers = lab.ansible(",".join(HOSTS), "tapvirt.host.kernel_facts", {"gather_subset": ["min"]})
    return {host: answer["ansible_facts"]["tapvirt_kernel"] for host, answer in answers.items()}


@pytest.fixture(scope="module")
def server(lab, kernels) -> t.Iterator[str]:
    """The URL of a debuginfod on the builder that knows the kernels of all hosts; ended afterwards."""
    shell(lab, f"mkdir -p {FOLDER}")
    pid, port = shell(lab, SERVE.format(folder=FOLDER)).split()
    url = f"http://127.0.0.1:{port}"
    urls = sorted({f"{url}/buildid/{kernel['build_id']}/debuginfo" for kernel in kernels.values()})
    try:
        waited = lab.run("builder", "python3", "-", *urls, stdin=WAIT, timeout=300)
        assert waited.returncode == 0, waited.stderr
        yield url
    finally:
        shell(lab, f"kill {pid}; rm -rf {FOLDER}")


@pytest.fixture(scope="module")
def builders(lab, server, tmp_path_factory) -> pathlib.Path:
    """An inventory with two builders that have a store each: with packages, and with nothing but the server."""
    machine = lab.variables("builder")
    path = f"{FOLDER}/python"
    done = lab.run(
        "builder", "sh", "-c", f"mkdir {FOLDER}/top; cat > {path}; chmod 755 {path}", stdin=BARE.format(folder=FOLDER)
    )
    assert done.returncode == 0
    bare = {"ansible_python_interpreter": path, "trace_builder_debuginfod": {"servers": [server]}}
    inventory = {
        name: {"hosts": {f"builder-{name}": {**machine, **more, "trace_builder_store": f"{FOLDER}/{name}"}}}
        for name, more in (("bare", bare), ("packaged", {}))
    }
    file = tmp_path_factory.mktemp("debuginfod") / "builders.yml"
    file.write_text(yaml.safe_dump(inventory), encoding="utf-8")
    return file


def trace(lab, builders: pathlib.Path, group: str, **variables: t.Any):
    given = {
        "trace_builders": group,
        "trace_targets": ",".join(HOSTS),
        "trace_duration_seconds": 3,
        "trace_waves": "100%",
        "trace_cpu_ceiling_percent": 50,  # emulated guests that have little of a CPU are overloaded soon
        "trace_accept": ["ok", "zero_hits", "partial_arm", "skipped"],  # ... and their probes wait for each other
        **variables,
    }
    return lab.playbook(PLAYBOOK, "-i", str(builders), "-e", json.dumps(given), timeout=1800)


def built(result, hosts: t.Iterable[str] = tuple(HOSTS)) -> dict[str, dict[str, t.Any]]:
    assert result.rc == 0, result.stdout[-3000:]
    return {host: result.of(host, BUILD) for host in hosts}


@pytest.fixture(scope="module")
def traces(lab, builders) -> dict[tuple[str, str], t.Any]:
    """Two traces with each builder: the first for its kernels, and one of another function."""
    return {
        (group, function): trace(lab, builders, group, trace_function=function)
        for group in ("packaged", "bare")
        for function in ("vfs_read", "vfs_write")
    }


@pytest.mark.soak
def test_a_builder_without_debug_packages_builds_for_all_kernels(traces, kernels):
    done = built(traces["bare", "vfs_read"])
    for host, result in done.items():
        assert result["module"]["debuginfo"] == "debuginfod", result
        assert result["module"]["build_id"] == kernels[host]["build_id"]
    for host in HOSTS:
        run = traces["bare", "vfs_read"].of(host, "tapvirt.host.trace : Collect the result")["run"]
        assert run["outcome"] in ("ok", "partial_arm", "skipped") and run["hits"] > 0, run
    fetched = {row["after"] for result in done.values() for row in result["plan"] if row["how"] == "debuginfod"}
    assert fetched == {kernel["build_id"] for kernel in kernels.values()}


@pytest.mark.soak
def test_plain_gcc_is_the_only_compiler(lab, builders, traces):
    task = {"name": "Look", "ansible.builtin.command": "sh -c 'ls /usr/bin/*gcc /usr/bin/*gcc-[0-9]* /usr/lib/debug'"}
    result = lab.run_tasks("bare", [task | {"failed_when": False}], "-i", str(builders)).of("builder-bare", "Look")
    assert result["stdout"].split() == ["/usr/bin/gcc", "/usr/lib/debug:"], result
    assert len(built(traces["bare", "vfs_read"])) == len(HOSTS)


@pytest.mark.soak
def test_the_second_trace_fetches_nothing(traces):
    plans = [row for result in built(traces["bare", "vfs_write"]).values() for row in result["plan"]]
    assert plans and {row["how"] for row in plans} == {"stap"}


@pytest.mark.soak
def test_the_same_functions_are_probed_as_with_packages(traces):
    for function in ("vfs_read", "vfs_write"):
        bare, packaged = (built(traces[group, function]) for group in ("bare", "packaged"))
        for host in HOSTS:
            assert bare[host]["module"]["probes"] == packaged[host]["module"]["probes"]
            assert packaged[host]["module"]["debuginfo"] == "package"


@pytest.mark.soak
def test_what_it_costs(traces):
    for (group, function), result in traces.items():
        seconds = {host: row["seconds"] for host, row in built(result).items() if row["built"]}
        print(f"{group}, {function}: {seconds}")


@pytest.mark.soak
def test_functions_of_a_module_that_is_loaded(lab, builders, traces):
    variables = {"function": "kvm_dev_ioctl", "module": "kvm"}
    result = trace(lab, builders, "bare", trace_targets="trace2", trace_variables=variables)
    (row,) = built(result, ["trace2"]).values()
    (key,) = {step["after"] for step in row["plan"] if step["how"] == "debuginfod"}
    notes = lab.run("trace2", "od", "-An", "-tx1", "-v", "/sys/module/kvm/notes/.note.gnu.build-id").stdout
    assert notes.replace("\n", "").replace(" ", "").endswith(key) and len(key) == 40
    assert any(probe["point"].startswith('module("kvm").function("kvm_dev_ioctl') for probe in row["module"]["probes"])


@pytest.mark.soak
def test_nothing_is_installed_on_such_a_builder(lab, builders, kernels):
    releases = sorted({kernel["release"] for kernel in kernels.values()})
    task = {"name": "Prepare", "ansible.builtin.import_role": {"name": "tapvirt.host.trace_builder"}}
    play = {"hosts": "bare", "gather_facts": False, "vars": {"trace_builder_kernels": releases}, "tasks": [task]}
    for _time in range(2):
        result = lab.playbook(yaml.safe_dump([play]), "-i", str(builders))
        assert result.rc == 0, result.stdout[-3000:]
        assert result.recap["builder-bare"]["changed"] == 0, result.stdout[-3000:]
