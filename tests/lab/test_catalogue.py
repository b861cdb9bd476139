# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The trace role's catalogue: scripts build for three kernels, and each counts a load of a known size.

``function_latency`` and ``kvm_exits`` have their known loads in test_systemtap.py.
"""

from __future__ import annotations

import json

import pytest
import yaml

from .support.places import FILES, TREE
from .support.tasks import FACTS, RUNNING_KERNEL

pytestmark = pytest.mark.soak  # minutes of builds; the demonstration runs two of the scripts

TEMPLATES = TREE / "roles/trace/templates"
# Each kernel runs some: 6.1, 6.12 and 7.2.
RUNS = {
    "trace1": ["function_count", "syscall_latency", "tcp_retransmits"],
    "trace2": ["block_io_latency", "lock_contention", "page_faults", "function_rate"],
    "trace3": ["run_queue_latency", "module_functions"],
}
SCRIPTS = [name for names in RUNS.values() for name in names]
VARIABLES = {
    "function_count": {"functions": "vfs_read vfs_w*"},
    "function_rate": {"function": "vfs_read"},
    "module_functions": {"module": "tun"},
}
BUILT = dict.fromkeys(RUNS, SCRIPTS)


def catalogue_play():
    """Return a play that builds all scripts for the kernel of each host, and runs some of them with their loads."""
    narrowed = "{{ {} if item == 'tcp_retransmits' else {'target_pid': (loads.stdout | from_json)[item]} }}"
    names = "{{ runs[inventory_hostname] | join(' ') }}"
    return [
        {
            "hosts": ":".join(RUNS),
            "gather_facts": False,
            "vars": {"templates": str(TEMPLATES), "built_for": BUILT, "runs": RUNS, "variables": VARIABLES},
            "tasks": [
                FACTS,
                {
                    "name": "Render",
                    "tapvirt.host.stap_script": {
                        "src": "{{ templates }}/{{ item }}.stp.j2",
                        "variables": "{{ variables[item] | default({}) }}",
                    },
                    "loop": "{{ built_for[inventory_hostname] }}",
                    "delegate_to": "builder",
                    "register": "rendered",
                },
                {
                    "name": "Build",
                    "tapvirt.host.stap_module": {
                        "script": "{{ item.script }}",
                        **RUNNING_KERNEL,
                        # Emulated hosts pay more for a probe.
                        "cpu_ceiling_percent": 50,
                    },
                    "loop": "{{ rendered.results }}",
                    "loop_control": {"label": "{{ item.item }}"},
                    "delegate_to": "builder",
                    "register": "built",
                },
                {
                    "name": "Loads",
                    "ansible.builtin.shell": {
                        "cmd": "if grep -q '^tun ' /proc/modules; then touch /run/catalogue-tun; fi; modprobe tun;"
                        " cat > /run/catalogue_load.py;"
                        f" python3 /run/catalogue_load.py {names}",
                        "stdin": "{{ lookup('ansible.builtin.file', '" + str(FILES / "catalogue_load.py") + "') }}",
                    },
                    "register": "loads",
                },
                {
                    "name": "Trace",
                    "tapvirt.host.stap_run": {
                        "module": "{{ built.results[built_for[inventory_hostname].index(item)].module }}",
                        "duration_seconds": 8,
                        "globals": narrowed,
                    },
                    "loop": "{{ runs[inventory_hostname] }}",
                    "register": "traced",
                    "ignore_errors": True,
                },
                {
                    "name": "Sizes",
                    "ansible.builtin.shell": {
                        "cmd": f"cd /run; for try in 1 2 3 4 5; do set -- {names};"
                        " [ $(ls catalogue-*_*.json | wc -l) = $# ] && break; sleep 1; done;"
                        " for name; do cat catalogue-$name.json; echo; done;"
                        " [ -e catalogue-tun ] || rmmod tun; rm -f catalogue*"
                    },
                },
            ],
        }
    ]


@pytest.fixture(scope="module")
def catalogue_runs(lab):
    """The run of each script, the size of its load, and the builds of each host."""
    done = lab.playbook(yaml.safe_dump(catalogue_play()))
    runs, sizes = {}, {}
    for host, names in RUNS.items():
        for name, result in zip(names, done.of(host, "Trace")["results"], strict=True):
            runs[name] = result.get("run") or result
        for name, line in zip(names, done.of(host, "Sizes")["stdout"].splitlines(), strict=True):
            sizes[name] = json.loads(line)
    builds = {host: done.of(host, "Build")["results"] for host in RUNS}
    return runs, sizes, builds


def counts(run):
    return {row["key"]: row["count"] for row in run["records"] if row["kind"] == "count"}


def only_record(run, kind="count"):
    """Return the only record of a kind in a run that traces one process."""
    (row,) = [row for row in run["records"] if row["kind"] == kind]
    return row


def allowed_counts(run, wanted):
    """Return the allowed counts: the wanted count, reduced by at most the hits that the run reports as skipped."""
    return range(wanted - run["skipped"], wanted + 1)


def test_scripts_build_for_three_kernels(catalogue_runs):
    for host, results in catalogue_runs[2].items():
        names = {result["module"]["script"]: result["module"]["kernel"] for result in results}
        assert sorted(names) == sorted(BUILT[host]), host
        assert len(set(names.values())) == 1
    kernels = {results[0]["module"]["kernel"] for results in catalogue_runs[2].values()}
    assert [sorted(kernels)[number].startswith(name) for number, name in enumerate(("6.1.", "6.12.", "7.2."))]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_probe_is_armed_and_every_bucket_counted(catalogue_runs, name):
    run = catalogue_runs[0][name]
    # On 7.2 the debug information of a module lists its own init and exit functions, and neither can be armed.
    own = ('"tun_init@', '"tun_cleanup@')
    missing = [point for point in run["probes"]["missing"] if not any(name in point for name in own)]
    assert (run["outcome"], missing) == ("partial_arm" if run["probes"]["missing"] else "ok", []), run
    for row in run["records"]:
        if row["kind"] == "histogram":
            assert sum(bucket[2] for bucket in row["buckets"]) == row["count"]


def test_functions_by_name_and_wildcard(catalogue_runs):
    run = catalogue_runs[0]["function_count"]
    size = catalogue_runs[1]["function_count"]["size"]
    found = counts(run)
    assert all(found[function] in allowed_counts(run, wanted) for function, wanted in size.items()), run["records"]


def test_calls_over_time(catalogue_runs):
    run = catalogue_runs[0]["function_rate"]
    size = catalogue_runs[1]["function_rate"]["size"]
    row = only_record(run, "series")
    assert row["count"] in allowed_counts(run, size["vfs_read"])
    assert sum(row["values"]) == row["count"]
    # The load was done in bursts, a second apart, in the midst of the run.
    assert len(row["values"]) >= 7
    assert sorted(row["values"])[-3:] == pytest.approx([100, 100, 100], abs=run["skipped"])
    assert row["values"][0] == 0


def test_system_calls_of_a_process(catalogue_runs):
    run = catalogue_runs[0]["syscall_latency"]
    assert counts(run)["getppid"] in allowed_counts(run, 1000)
    histogram = only_record(run, "histogram")
    assert sum(counts(run).values()) == histogram["count"]
    # It slept 20 times for 10 ms. SystemTap keeps a clock for each CPU, and under emulation two of them may differ by
    # milliseconds: a sleep that ends on another CPU than it began on may look shorter.
    assert histogram["sum"] >= 20 * 10_000
    assert sum(bucket[2] for bucket in histogram["buckets"] if bucket[1] > 10_000) >= 17 - run["skipped"]


def test_retransmitted_segments_by_peer(catalogue_runs):
    run = catalogue_runs[0]["tcp_retransmits"]
    size = catalogue_runs[1]["tcp_retransmits"]["size"]
    assert size["segments"] >= 10
    assert counts(run)[f"127.0.0.1:{size['port']}"] in allowed_counts(run, size["segments"])


def test_block_reads_of_a_device(catalogue_runs):
    run = catalogue_runs[0]["block_io_latency"]
    size = catalogue_runs[1]["block_io_latency"]["size"]
    # The process may write as well: an allocation may clean a page first. When memory is short, the process reads
    # pages of its own program again, in requests of any size.
    rows = {(row["kind"], row["key"]): row for row in run["records"]}
    row = rows["count", "vda read"]
    assert row["count"] >= size["vda read"] - run["skipped"], run["records"]
    assert row["bytes"] >= row["count"] * 4096 and (row["count"] > size["vda read"] or row["bytes"] <= size["bytes"])
    assert rows["histogram", "vda read"]["count"] == row["count"]


def test_waits_for_a_mutex(catalogue_runs):
    run = catalogue_runs[0]["lock_contention"]
    (mutex,) = [row for row in run["records"] if row["kind"] == "histogram" and row["key"] == "mutex"]
    # Four threads wait for the reader before them; the process may use another mutex of the kernel by chance.
    assert 4 - run["skipped"] <= mutex["count"] <= 8
    # Its 0.5 s begin when the last of the threads was started, so all four wait most of them.
    assert sum(bucket[2] for bucket in mutex["buckets"] if bucket[1] > 262_144) >= 4 - run["skipped"]


def account_bounds(catalogue_runs, name, account):
    """Return the bounds of a count from the accounts of the kernel: of the load, and of the process around it."""
    run = catalogue_runs[0][name]
    inner, outer = catalogue_runs[1][name]["accounts"][account]
    return inner - run["skipped"], outer + 1


def test_page_faults_agree_with_the_account_of_the_kernel(catalogue_runs):
    row = only_record(catalogue_runs[0]["page_faults"])
    least, most = account_bounds(catalogue_runs, "page_faults", "faults")
    assert 1000 - catalogue_runs[0]["page_faults"]["skipped"] <= least <= row["count"] <= most
    assert row["user"] >= 1000 - catalogue_runs[0]["page_faults"]["skipped"]
    assert row["user"] + row["kernel"] == row["minor"] + row["major"] == row["count"]


def test_waits_for_a_cpu_agree_with_the_switches_of_the_process(catalogue_runs):
    # A process waits once between two switches to it, after sleep and after preemption.
    row = only_record(catalogue_runs[0]["run_queue_latency"])
    least, most = account_bounds(catalogue_runs, "run_queue_latency", "switches")
    assert 100 - catalogue_runs[0]["run_queue_latency"]["skipped"] <= least <= row["count"] <= most
    assert only_record(catalogue_runs[0]["run_queue_latency"], "histogram")["sum"] == row["sum"]


def test_functions_of_a_module(catalogue_runs):
    run = catalogue_runs[0]["module_functions"]
    size = catalogue_runs[1]["module_functions"]["size"]
    found = counts(run)
    assert all(found[function] in allowed_counts(run, wanted) for function, wanted in size.items()), run["records"]
    assert run["probes"]["asked"] > 20
