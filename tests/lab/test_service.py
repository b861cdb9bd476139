# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Persistent tracers: repaired after disturbances, bounded on disk, started after a reboot, and removed completely."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import subprocess
import textwrap
import typing as t

import pytest
import yaml

from .support.places import KEXEC, TREE
from .support.tasks import FACTS, RUNNING_KERNEL, module_task, shell_task

GUIDE = TREE / "docs/docsite/rst/guide_tracer_that_stays.rst"
pytestmark = [pytest.mark.soak, pytest.mark.scenario]
HOST, BESIDE = "trace3", "trace2"
FILE_BYTES, FILES = 4096, 3
# Each record has the next number: no record is lost or torn. The timer is slow because an emulated processor may stop
# in the middle of a handler, and the time counts as time of the handler.
RECORDER = """\
global step = 1
global calls, sequence
probe kernel.function("vfs_fsync_range").call { calls <<< 1 }
probe timer.ms(200) {
  for (number = 0; number < 10; number++) {
    sequence += step
    printf("{\\"kind\\": \\"tick\\", \\"sequence\\": %d, \\"syncs\\": %d}\\n", sequence, @count(calls))
  }
}
"""
# A handler that takes more than a hundredth of a CPU as soon as a process reads.
HEAVY = """\
global sum
probe kernel.function("vfs_read").call { for (number = 0; number < 900; number++) sum += number }
probe timer.s(1) { println(sum) }
"""
SYSCTLS = "sysctl -n kernel.kptr_restrict debug.kprobes-optimization"
LOAD = "timeout 10 dd if=/dev/zero of=/dev/null bs=1 2> /dev/null || true"
STATE = (
    "ls -A /proc/systemtap 2>/dev/null; ls -A /run/tapvirt 2>/dev/null; grep -c debugfs /proc/self/mounts;"
    f" {SYSCTLS}; grep -e vfs_read -e vfs_fsync /sys/kernel/debug/kprobes/list; pgrep -a stap;"
    " systemctl list-units --all --no-legend 'tapvirt*'; systemctl list-unit-files --no-legend 'tapvirt*';"
    " find /etc /opt /root /srv /usr/local /var/lib/tapvirt /var/log/tapvirt 2>/dev/null"
    " | grep -v -e /.ansible | sort"
)


# Waits until a test succeeds, for a limited number of seconds, and prints how many it took.
UNTIL = """begun=$(date +%s); until {test}; do test $(($(date +%s) - begun)) -lt {seconds} || exit 1; sleep 0.3; done
echo $(($(date +%s) - begun))"""
UNIT = "tapvirt-trace-recorder"
OUTPUT = "/var/log/tapvirt/recorder"
KILL = (
    "for pid in $(cat /sys/fs/cgroup/system.slice/{unit}.service/cgroup.procs);"
    " do grep -q {name} /proc/$pid/comm && kill -9 $pid; done; {until}"
)
AGAIN = 'test "$(echo $(systemctl show -P NRestarts -P ActiveState {unit}))" = "{count} active"'


def host_state(lab) -> list[str]:
    """Return the state of the host that removed tracers must not change."""
    return lab.shell(HOST, STATE, check=False).splitlines()


def service_task(name: str, *services: dict[str, t.Any], **keywords: t.Any) -> dict[str, t.Any]:
    """Return a task that converges tracers."""
    return module_task(name, "stap_service", {"services": list(services)}, **keywords)


def until(test: str, seconds: int) -> str:
    """Return a shell command that waits until a test succeeds and prints the time that this took."""
    return UNTIL.format(test=test, seconds=seconds)


def run_play(lab, folder, tasks: list[dict[str, t.Any]]):
    """Run tasks on the host in one playbook; return their results by name."""
    path = folder / f"play-{len(list(folder.iterdir()))}.yml"
    path.write_text(yaml.safe_dump([{"hosts": HOST, "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    done = lab.playbook(path)
    results = {row["task"]: row["result"] for row in done.results if row["host"] == HOST}
    missing = [task["name"] for task in tasks if task["name"] not in results]
    assert not missing, done.stdout[-3000:]
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The directory of the scripts and plays."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def modules(lab, folder) -> dict[str, dict[str, t.Any]]:
    """The modules of both scripts for the kernel of the host, by script."""
    tasks: list[dict[str, t.Any]] = [FACTS]
    for name, text, ceiling in (("recorder", RECORDER, 50), ("heavy", HEAVY, 1)):
        (folder / f"{name}.stp.j2").write_text(text, encoding="utf-8")
        tasks += [
            {
                "name": f"Render {name}",
                "tapvirt.host.stap_script": {"src": f"{name}.stp.j2"},
                "delegate_to": "builder",
                "register": "rendered",
            },
            {
                "name": f"Build {name}",
                "tapvirt.host.stap_module": {
                    "script": "{{ rendered.script }}",
                    **RUNNING_KERNEL,
                    "cpu_ceiling_percent": ceiling,
                },
                "delegate_to": "builder",
            },
        ]
    results = run_play(lab, folder, tasks)
    return {name: results[f"Build {name}"]["module"] for name in ("recorder", "heavy")}


@pytest.fixture(scope="module")
def recorder(modules) -> dict[str, t.Any]:
    """The tracer as an entry of the option services."""
    return {
        "name": "recorder",
        "modules": [modules["recorder"]],
        "output_file_bytes": FILE_BYTES,
        "output_files": FILES,
    }


@pytest.fixture(scope="module")
def scenario(lab, folder, modules, recorder):
    """One playbook with two tracers that are disturbed, killed, overloaded and removed; its results by task, and the
    state of the host before and after.
    """
    other = {**recorder, "globals": {"step": 1000}}
    heavy = {"name": "heavy", "modules": [modules["heavy"]]}
    name = modules["recorder"]["name"]
    tasks = [
        service_task("plan", recorder, check_mode=True),
        service_task("first", recorder),
        service_task("second", recorder),
        shell_task(
            "loaded", f"cat /sys/module/{name}/version; ls -A /sys/module/{name}/parameters 2>/dev/null; {SYSCTLS}"
        ),
        service_task("plan of another value", other, check_mode=True),
        service_task("another value", other),
        shell_task(
            "disturb",
            f"systemctl disable --now {UNIT}; sed -i s/RestartSec=5/RestartSec=50/ /etc/systemd/system/{UNIT}.service;"
            f" cd /var/lib/tapvirt/services/recorder/modules; mkdir 1.2.3; cp */{name}.ko 1.2.3;"
            f" echo >> $(uname -r)/{name}.ko",
        ),
        service_task("repaired", other),
        service_task("repaired again", other),
        shell_task(
            "kill stapio", KILL.format(unit=UNIT, name="stapio", until=until(AGAIN.format(unit=UNIT, count=1), 60))
        ),
        shell_task(
            "kill python", KILL.format(unit=UNIT, name="python3", until=until(AGAIN.format(unit=UNIT, count=2), 60))
        ),
        shell_task("sysctls after", SYSCTLS),
        service_task("after the kills", other),
        shell_task("ring", until(f"test $(ls {OUTPUT} | tail -n 1 | tr -dc 0-9) -ge 6", 60)),
        shell_task("sizes", f"stat -c %s {OUTPUT}/*"),
        shell_task("records", f"cat {OUTPUT}/trace.*"),
        service_task("two of them", other, heavy),
        shell_task("overload", f"{LOAD}; " + until("systemctl is-failed -q tapvirt-trace-heavy", 30) + "; sleep 7"),
        shell_task("overloaded", "systemctl status --no-pager tapvirt-trace-heavy; ls /proc/systemtap; true"),
        service_task("no second try", other, heavy, ignore_errors=True),
        shell_task("by hand", "systemctl restart tapvirt-trace-heavy || echo refused"),
        service_task("forgotten", {**heavy, "state": "stopped"}),
        service_task(
            "gone", *({"name": tracer, "state": "absent", "remove_output": True} for tracer in ("recorder", "heavy"))
        ),
        service_task(
            "gone again",
            *({"name": tracer, "state": "absent", "remove_output": True} for tracer in ("recorder", "heavy")),
        ),
    ]
    before = host_state(lab)
    try:
        results = run_play(lab, folder, tasks)
    except AssertionError:
        run_play(lab, folder, tasks[-2:-1])
        raise
    return results, before, host_state(lab)


def row_of(result: dict[str, t.Any], name: str = "recorder") -> dict[str, t.Any]:
    """Return the row of a tracer in the result of a task."""
    return next(row for row in result["services"] if row["name"] == name)


def plan_methods(result: dict[str, t.Any]) -> list[str]:
    """Return how each change of a plan is applied."""
    return [row["how"] for row in result["plan"]]


def test_tracer_is_started_as_planned(scenario, modules):
    results = scenario[0]
    first, digest = results["first"], modules["recorder"]["key"][:40]
    assert results["plan"]["plan"] == first["plan"]
    assert plan_methods(first) == [
        "copy",
        "write",
        "write",
        "write, daemon-reload",
        "systemctl enable",
        "systemctl start",
    ]
    row = row_of(first)
    assert (row["state"], row["enabled"], row["error"]) == ("running", True, None)
    assert row["digest"] == {"loaded": digest, "wanted": digest}
    assert row["probes"] == {"asked": 1, "armed": 1, "proved": 1, "missing": []}
    assert (results["second"]["changed"], results["second"]["plan"]) == (False, [])
    # A global variable has no file in sysfs, and the sysctls are back while the tracer runs.
    assert results["loaded"]["stdout"].split() == [digest, "0", "1"]


def test_another_value_restarts_the_tracer(scenario):
    results = scenario[0]
    changed = results["another value"]
    assert results["plan of another value"]["plan"] == changed["plan"]
    assert plan_methods(changed) == ["write", "systemctl restart"]
    assert "only while a module is loaded" in changed["plan"][-1]["why"]


def test_drift_is_repaired(scenario):
    results = scenario[0]
    drift = ["copy", "remove", "write, daemon-reload", "systemctl enable", "systemctl start"]
    assert plan_methods(results["repaired"]) == drift
    assert (row_of(results["repaired"])["state"], results["repaired again"]["plan"]) == ("running", [])


def test_killed_tracer_is_restarted(scenario, modules):
    """systemd starts the tracer again within 45 s after the reader of its output or its supervisor is killed."""
    results = scenario[0]
    for name in ("kill stapio", "kill python"):
        assert results[name]["rc"] == 0 and int(results[name]["stdout"]) < 45, results[name]
    assert results["sysctls after"]["stdout"].split() == ["0", "1"]
    row = row_of(results["after the kills"])
    assert (row["state"], row["restarts"], row["changed"]) == ("running", 2, False)
    assert row["digest"]["loaded"] == modules["recorder"]["key"][:40]


def test_output_is_a_ring_of_whole_records(scenario):
    results = scenario[0]
    sizes = [int(size) for size in results["sizes"]["stdout"].split()]
    assert len(sizes) == FILES and max(sizes) <= FILE_BYTES < sum(sizes)
    lines = results["records"]["stdout"].splitlines()
    numbers = [json.loads(line)["sequence"] for line in lines if line.startswith("{")]
    last = numbers[-50:]
    assert last == list(range(last[0], last[0] + 50 * 1000, 1000))
    output = row_of(results["two of them"])["output"]
    assert output["limit_bytes"] == FILE_BYTES * FILES >= output["bytes"] > FILE_BYTES
    assert output["dropped_bytes"] == 0


def test_overloaded_tracer_stays_stopped(scenario, modules):
    results = scenario[0]
    assert row_of(results["two of them"], "heavy")["state"] == "running"
    assert results["overload"]["rc"] == 0, results["overload"]
    status = results["overloaded"]["stdout"]
    assert "overloaded: the probes took more of a CPU than the build allows" in status, status
    assert status.splitlines()[-1] == modules["recorder"]["name"]
    again = results["no second try"]
    assert (again["plan"], row_of(again, "heavy")["state"], row_of(again)["state"]) == ([], "overloaded", "running")
    assert again["msg"].startswith("Service 'heavy' stays stopped, because it used more of a CPU")
    assert results["by hand"]["stdout"] == "refused"
    assert (row_of(results["forgotten"], "heavy")["state"], plan_methods(results["forgotten"])) == (
        "stopped",
        ["forget"],
    )


def test_removed_tracers_leave_nothing(scenario):
    results, before, after = scenario
    assert [row["state"] for row in results["gone"]["services"]] == ["absent", "absent"]
    assert results["gone again"]["plan"] == []
    assert after == before


@pytest.fixture
def other_kernel(lab):
    """The release of another kernel, copied from another host; it is deleted afterwards."""
    release = lab.release(BESIDE)
    files = f"lib/modules/{release} boot/vmlinuz-{release} boot/initrd.img-{release}"
    assert lab.shell(HOST, f"cd /; ls -d {files} 2>/dev/null || true") == ""
    packed = lab.run(BESIDE, "sh", "-c", f"tar -C / -c {files} | gzip -1 | base64", timeout=300).stdout
    lab.run(HOST, "sh", "-c", "base64 -d | tar -C / -xz", stdin=packed, timeout=300)
    yield release
    lab.shell(HOST, f"cd /; rm -r {files}")


@pytest.mark.timeout(2400)
def test_tracer_survives_a_reboot_and_a_kernel_upgrade(lab, folder, modules, recorder, other_kernel):
    """A tracer without a module for another kernel reports that as pending, before a restart into it and in it."""
    builder = {"delegate_to": "builder"}
    script = {"tapvirt.host.stap_script": {"src": "recorder.stp.j2"}, "register": "rendered", **builder}
    order = {"script": "{{ rendered.script }}", "kernel": other_kernel, "cpu_ceiling_percent": 50}
    both = {**recorder, "modules": [modules["recorder"], "{{ other.module }}"]}
    build = [
        {"name": "render", **script},
        {"name": "build", "tapvirt.host.stap_module": order, "register": "other", **builder},
    ]
    missing = f"kernel {other_kernel}: there is no module for it, so the tracer does not start with it"
    tasks = [
        service_task("kept", recorder),
        *build,
        service_task("built ahead", both),
        service_task("built again", both),
    ]
    before = host_state(lab)
    try:
        results = run_play(lab, folder, tasks)
        assert row_of(results["kept"])["pending"] == [missing]
        assert plan_methods(results["built ahead"]) == ["copy", "write"]
        assert (row_of(results["built ahead"])["pending"], results["built again"]["plan"]) == ([], [])
        run_play(lab, folder, [service_task("only one", recorder)])
        lab.run(HOST, "python3", "-", other_kernel, stdin=KEXEC, timeout=120)
        lab.restart(HOST, "kexec")
        assert lab.release(HOST) == other_kernel
        status = lab.run(HOST, "systemctl", "status", UNIT).stdout
        assert f"pending: there is no module for the running kernel {other_kernel}" in status, status
        results = run_play(lab, folder, [*build, service_task("in the other kernel", both)])
        row = row_of(results["in the other kernel"])
        assert (row["state"], row["digest"]["loaded"]) == ("running", results["build"]["module"]["key"][:40])
        assert plan_methods(results["in the other kernel"]) == ["copy", "write", "systemctl start"]
        lab.restart(HOST, "reboot")
        results = run_play(lab, folder, [*build, service_task("back", both)])
        assert (row_of(results["back"])["state"], results["back"]["plan"]) == ("running", [])
    finally:
        run_play(lab, folder, [service_task("gone", {"name": "recorder", "state": "absent", "remove_output": True})])
    assert host_state(lab) == before


def test_commands_of_the_guide_work(lab, tmp_path):
    """Every file of the page is written, and every command of it run, in their order."""
    groups = {"trace_hosts": HOST, "builders": "builder"}
    hosts = {group: {"hosts": {host: lab.variables(host)}} for group, host in groups.items()}
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
    blocks = re.findall(r"^\.\. code-block:: \w+\n\n((?:(?:    .*)?\n)+)", GUIDE.read_text(encoding="utf-8"), re.M)
    texts = [textwrap.dedent(block) for block in blocks]
    for text in texts:
        if text.startswith("# "):
            (tmp_path / text.split()[1]).write_text(text, encoding="utf-8")
    before = host_state(lab)
    outputs = [run_command(lab, line[2:], tmp_path) for text in texts for line in text.splitlines() if line[:2] == "$ "]
    first, planned, changed, info, records, gone = outputs
    assert "trace3 : ok=5 changed=2" in re.sub(" +", " ", first)
    assert "-slow_syncs: state: running\n" in planned and "+slow_syncs: state: running, started again\n" in planned
    assert "trace3 : ok=5 changed=1" in re.sub(" +", " ", planned), planned
    assert "trace3 : ok=5 changed=1" in re.sub(" +", " ", changed), changed
    answer = json.loads(info.partition("=>")[2])
    (row,) = answer["services"]
    assert (row["state"], row["name"], row["pending"]) == ("running", "slow_syncs", [])
    assert [kernel["ready"] for kernel in row["kernels"]] == [True]
    assert re.search(r'^\{"pid": \d+, "took_us": \d+\}$', records, re.M), records
    assert json.loads(gone.partition("=>")[2])["services"][0]["state"] == "absent"
    assert host_state(lab) == before


def run_command(lab, line: str, folder: pathlib.Path) -> str:
    """Run a command of the guide, where its files are."""
    if "tail" in line:
        written = "dd if=/dev/zero of=/root/synced count=8 conv=fsync 2> /dev/null && rm /root/synced && "
        lab.shell(HOST, until(written + "grep -q took_us /var/log/tapvirt/slow_syncs/*", 60))
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", "ANSIBLE_INJECT_FACT_VARS": "0"}
    done = subprocess.run(
        shlex.split(line), cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
