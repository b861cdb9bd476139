# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tracers that stay: as wanted after every disturbance, bounded on disk, there after a reboot, and gone for good."""

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

GUIDE = pathlib.Path(__file__).parents[2] / "docs/docsite/rst/guide_tracer_that_stays.rst"
KEXEC = (pathlib.Path(__file__).parent / "files" / "kexec.py").read_text(encoding="utf-8")
pytestmark = pytest.mark.soak
HOST, BESIDE = "trace3", "trace2"
MODULE = "tapvirt.host.stap_service"
FILE_BYTES, FILES = 4096, 3
# Every record has the number of the one before it and one more: nothing is lost, nothing torn. It runs seldom, since an
# emulated processor may be taken away in the middle of a handler, and the time counts as the handler's.
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
# A handler that takes more than a hundredth of a CPU as soon as somebody reads.
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


# Waits until a command on the host says what it should, for at most so many seconds; tells how long that took.
UNTIL = """begun=$(date +%s); until {test}; do test $(($(date +%s) - begun)) -lt {seconds} || exit 1; sleep 0.3; done
echo $(($(date +%s) - begun))"""
UNIT = "tapvirt-trace-recorder"
OUTPUT = "/var/log/tapvirt/recorder"
KILL = (
    "for pid in $(cat /sys/fs/cgroup/system.slice/{unit}.service/cgroup.procs);"
    " do grep -q {name} /proc/$pid/comm && kill -9 $pid; done; {until}"
)
AGAIN = 'test "$(echo $(systemctl show -P NRestarts -P ActiveState {unit}))" = "{count} active"'


def sh(lab, command: str, timeout: float = 120) -> str:
    done = lab.run(HOST, "sh", "-ec", command, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state_of_host(lab) -> list[str]:
    return lab.run(HOST, "sh", "-c", STATE, timeout=120).stdout.splitlines()


def shell(name: str, command: str) -> dict[str, t.Any]:
    return {"name": name, "ansible.builtin.shell": command, "changed_when": False}


def keep(name: str, *services: dict[str, t.Any], **words: t.Any) -> dict[str, t.Any]:
    return {"name": name, MODULE: {"services": list(services)}, **words}


def until(test: str, seconds: int) -> str:
    return UNTIL.format(test=test, seconds=seconds)


def play(lab, folder, tasks: list[dict[str, t.Any]]):
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
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def built(lab, folder) -> dict[str, dict[str, t.Any]]:
    """The modules of both scripts for the host's kernel, by the script's name."""
    tasks: list[dict[str, t.Any]] = [{"name": "Facts", "tapvirt.host.kernel_facts": {"gather_subset": ["min"]}}]
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
                    "kernel": "{{ ansible_facts.tapvirt_kernel.release }}",
                    "kernel_version": "{{ ansible_facts.tapvirt_kernel.version }}",
                    "cpu_ceiling_percent": ceiling,
                },
                "delegate_to": "builder",
            },
        ]
    results = play(lab, folder, tasks)
    return {name: results[f"Build {name}"]["module"] for name in ("recorder", "heavy")}


@pytest.fixture(scope="module")
def recorder(built) -> dict[str, t.Any]:
    """A tracer as a task's entry."""
    return {
        "name": "recorder",
        "modules": [built["recorder"]],
        "output_file_bytes": FILE_BYTES,
        "output_files": FILES,
    }


@pytest.fixture(scope="module")
def story(lab, folder, built, recorder):
    """One playbook in which much happens to two tracers; the results by task, and the host before and after."""
    other = {**recorder, "globals": {"step": 1000}}
    heavy = {"name": "heavy", "modules": [built["heavy"]]}
    name = built["recorder"]["name"]
    tasks = [
        keep("plan", recorder, check_mode=True),
        keep("first", recorder),
        keep("second", recorder),
        shell("loaded", f"cat /sys/module/{name}/version; ls -A /sys/module/{name}/parameters 2>/dev/null; {SYSCTLS}"),
        keep("plan of another value", other, check_mode=True),
        keep("another value", other),
        shell(
            "disturb",
            f"systemctl disable --now {UNIT}; sed -i s/RestartSec=5/RestartSec=50/ /etc/systemd/system/{UNIT}.service;"
            f" cd /var/lib/tapvirt/services/recorder/modules; mkdir 1.2.3; cp */{name}.ko 1.2.3;"
            f" echo >> $(uname -r)/{name}.ko",
        ),
        keep("repaired", other),
        keep("repaired again", other),
        shell("kill stapio", KILL.format(unit=UNIT, name="stapio", until=until(AGAIN.format(unit=UNIT, count=1), 60))),
        shell("kill python", KILL.format(unit=UNIT, name="python3", until=until(AGAIN.format(unit=UNIT, count=2), 60))),
        shell("sysctls after", SYSCTLS),
        keep("after the kills", other),
        shell("ring", until(f"test $(ls {OUTPUT} | tail -n 1 | tr -dc 0-9) -ge 6", 60)),
        shell("sizes", f"stat -c %s {OUTPUT}/*"),
        shell("records", f"cat {OUTPUT}/trace.*"),
        keep("two of them", other, heavy),
        shell("overload", f"{LOAD}; " + until("systemctl is-failed -q tapvirt-trace-heavy", 30) + "; sleep 7"),
        shell("overloaded", "systemctl status --no-pager tapvirt-trace-heavy; ls /proc/systemtap; true"),
        keep("no second try", other, heavy, ignore_errors=True),
        shell("by hand", "systemctl restart tapvirt-trace-heavy || echo refused"),
        keep("forgotten", {**heavy, "state": "stopped"}),
        keep("gone", *({"name": one, "state": "absent", "remove_output": True} for one in ("recorder", "heavy"))),
        keep("gone again", *({"name": one, "state": "absent", "remove_output": True} for one in ("recorder", "heavy"))),
    ]
    before = state_of_host(lab)
    try:
        results = play(lab, folder, tasks)
    except AssertionError:
        play(lab, folder, tasks[-2:-1])
        raise
    return results, before, state_of_host(lab)


def row_of(result: dict[str, t.Any], name: str = "recorder") -> dict[str, t.Any]:
    return next(row for row in result["services"] if row["name"] == name)


def means(result: dict[str, t.Any]) -> list[str]:
    return [row["how"] for row in result["plan"]]


def test_what_is_planned_is_done_once(story, built):
    results = story[0]
    first, digest = results["first"], built["recorder"]["key"][:40]
    assert results["plan"]["plan"] == first["plan"]
    assert means(first) == ["copy", "write", "write", "write, daemon-reload", "systemctl enable", "systemctl start"]
    row = row_of(first)
    assert (row["state"], row["enabled"], row["error"]) == ("running", True, None)
    assert row["digest"] == {"loaded": digest, "wanted": digest}
    assert row["probes"] == {"asked": 1, "armed": 1, "proved": 1, "missing": []}
    assert (results["second"]["changed"], results["second"]["plan"]) == (False, [])
    # A global variable has no file in sysfs, and the sysctls are back while the tracer runs.
    assert results["loaded"]["stdout"].split() == [digest, "0", "1"]


def test_another_value_restarts_and_says_why(story):
    results = story[0]
    changed = results["another value"]
    assert results["plan of another value"]["plan"] == changed["plan"]
    assert means(changed) == ["write", "systemctl restart"]
    assert "only while a module is loaded" in changed["plan"][-1]["why"]


def test_drift_is_repaired(story):
    results = story[0]
    drift = ["copy", "remove", "write, daemon-reload", "systemctl enable", "systemctl start"]
    assert means(results["repaired"]) == drift
    assert (row_of(results["repaired"])["state"], results["repaired again"]["plan"]) == ("running", [])


def test_what_is_killed_comes_back(story, built):
    """What reads the module's output, and what keeps that: systemd starts the tracer again, within 45 s."""
    results = story[0]
    for name in ("kill stapio", "kill python"):
        assert results[name]["rc"] == 0 and int(results[name]["stdout"]) < 45, results[name]
    assert results["sysctls after"]["stdout"].split() == ["0", "1"]
    row = row_of(results["after the kills"])
    assert (row["state"], row["restarts"], row["changed"]) == ("running", 2, False)
    assert row["digest"]["loaded"] == built["recorder"]["key"][:40]


def test_the_output_is_a_ring_of_whole_records(story):
    results = story[0]
    sizes = [int(size) for size in results["sizes"]["stdout"].split()]
    assert len(sizes) == FILES and max(sizes) <= FILE_BYTES < sum(sizes)
    lines = results["records"]["stdout"].splitlines()
    numbers = [json.loads(line)["sequence"] for line in lines if line.startswith("{")]
    last = numbers[-50:]
    assert last == list(range(last[0], last[0] + 50 * 1000, 1000))
    output = row_of(results["two of them"])["output"]
    assert output["limit_bytes"] == FILE_BYTES * FILES >= output["bytes"] > FILE_BYTES
    assert output["dropped_bytes"] == 0


def test_an_overloaded_tracer_stays_stopped_and_says_so(story, built):
    results = story[0]
    assert row_of(results["two of them"], "heavy")["state"] == "running"
    assert results["overload"]["rc"] == 0, results["overload"]
    told = results["overloaded"]["stdout"]
    assert "overloaded: the probes took more of a CPU than the build allows" in told, told
    assert told.splitlines()[-1] == built["recorder"]["name"]
    again = results["no second try"]
    assert (again["plan"], row_of(again, "heavy")["state"], row_of(again)["state"]) == ([], "overloaded", "running")
    assert again["msg"].startswith("Service 'heavy' stays stopped, because it used more of a CPU")
    assert results["by hand"]["stdout"] == "refused"
    assert (row_of(results["forgotten"], "heavy")["state"], means(results["forgotten"])) == ("stopped", ["forget"])


def test_what_is_absent_leaves_nothing(story):
    results, before, after = story
    assert [row["state"] for row in results["gone"]["services"]] == ["absent", "absent"]
    assert results["gone again"]["plan"] == []
    assert after == before


@pytest.fixture
def other_kernel(lab):
    """Another kernel is installed on the host, that of a host beside it, and gone afterwards."""
    release = lab.run(BESIDE, "uname", "-r").stdout.strip()
    files = f"lib/modules/{release} boot/vmlinuz-{release} boot/initrd.img-{release}"
    assert sh(lab, f"cd /; ls -d {files} 2>/dev/null || true") == ""
    packed = lab.run(BESIDE, "sh", "-c", f"tar -C / -c {files} | gzip -1 | base64", timeout=300).stdout
    lab.run(HOST, "sh", "-c", "base64 -d | tar -C / -xz", stdin=packed, timeout=300)
    yield release
    sh(lab, f"cd /; rm -r {files}")


@pytest.mark.timeout(2400)
def test_a_tracer_is_there_after_a_restart_and_with_the_next_kernel(lab, folder, built, recorder, other_kernel):
    """With a module for one kernel it says what it waits for, before a restart into the other one and in it."""
    builder = {"delegate_to": "builder"}
    script = {"tapvirt.host.stap_script": {"src": "recorder.stp.j2"}, "register": "rendered", **builder}
    order = {"script": "{{ rendered.script }}", "kernel": other_kernel, "cpu_ceiling_percent": 50}
    both = {**recorder, "modules": [built["recorder"], "{{ other.module }}"]}
    build = [
        {"name": "render", **script},
        {"name": "build", "tapvirt.host.stap_module": order, "register": "other", **builder},
    ]
    missing = f"kernel {other_kernel}: there is no module for it, so the tracer does not start with it"
    tasks = [keep("kept", recorder), *build, keep("built ahead", both), keep("built again", both)]
    before = state_of_host(lab)
    try:
        results = play(lab, folder, tasks)
        assert row_of(results["kept"])["pending"] == [missing]
        assert means(results["built ahead"]) == ["copy", "write"]
        assert (row_of(results["built ahead"])["pending"], results["built again"]["plan"]) == ([], [])
        play(lab, folder, [keep("only one", recorder)])
        lab.run(HOST, "python3", "-", other_kernel, stdin=KEXEC, timeout=120)
        lab.restart(HOST, "kexec")
        assert sh(lab, "uname -r") == other_kernel
        told = lab.run(HOST, "systemctl", "status", UNIT).stdout
        assert f"pending: there is no module for the running kernel {other_kernel}" in told, told
        results = play(lab, folder, [*build, keep("in the other kernel", both)])
        row = row_of(results["in the other kernel"])
        assert (row["state"], row["digest"]["loaded"]) == ("running", results["build"]["module"]["key"][:40])
        assert means(results["in the other kernel"]) == ["copy", "write", "systemctl start"]
        lab.restart(HOST, "reboot")
        results = play(lab, folder, [*build, keep("back", both)])
        assert (row_of(results["back"])["state"], results["back"]["plan"]) == ("running", [])
    finally:
        play(lab, folder, [keep("gone", {"name": "recorder", "state": "absent", "remove_output": True})])
    assert state_of_host(lab) == before


def test_the_guide_does_what_it_says(lab, tmp_path):
    """Every file of the page is written, and every command of it run, in their order."""
    tree = yaml.safe_load(lab.inventory.read_text(encoding="utf-8"))
    hosts = {"trace_hosts": {"hosts": {HOST: tree["trace_hosts"]["hosts"][HOST]}}, "builders": tree["builders"]}
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
    blocks = re.findall(r"^\.\. code-block:: \w+\n\n((?:(?:    .*)?\n)+)", GUIDE.read_text(encoding="utf-8"), re.M)
    texts = [textwrap.dedent(block) for block in blocks]
    for text in texts:
        if text.startswith("# "):
            (tmp_path / text.split()[1]).write_text(text, encoding="utf-8")
    before = state_of_host(lab)
    said = [run_command(lab, line[2:], tmp_path) for text in texts for line in text.splitlines() if line[:2] == "$ "]
    first, planned, changed, told, records, gone = said
    assert "trace3 : ok=5 changed=2" in re.sub(" +", " ", first)
    assert "-slow_syncs: state: running\n" in planned and "+slow_syncs: state: running, started again\n" in planned
    assert "trace3 : ok=5 changed=1" in re.sub(" +", " ", planned), planned
    assert "trace3 : ok=5 changed=1" in re.sub(" +", " ", changed), changed
    answer = json.loads(told.partition("=>")[2])
    (row,) = answer["services"]
    assert (row["state"], row["name"], row["pending"]) == ("running", "slow_syncs", [])
    assert [kernel["ready"] for kernel in row["kernels"]] == [True]
    assert re.search(r'^\{"pid": \d+, "took_us": \d+\}$', records, re.M), records
    assert json.loads(gone.partition("=>")[2])["services"][0]["state"] == "absent"
    assert state_of_host(lab) == before


def run_command(lab, line: str, folder: pathlib.Path) -> str:
    """Run a command of the guide, where its files are."""
    if "tail" in line:
        written = "dd if=/dev/zero of=/root/synced count=8 conv=fsync 2> /dev/null && rm /root/synced && "
        sh(lab, until(written + "grep -q took_us /var/log/tapvirt/slow_syncs/*", 60))
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", "ANSIBLE_INJECT_FACT_VARS": "0"}
    done = subprocess.run(
        shlex.split(line), cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
