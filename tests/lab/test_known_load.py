# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads of an exactly known size: system calls on four hosts beside a dead host, port writes of one of two domains."""

from __future__ import annotations

import base64
import shlex
import warnings

import pytest
import yaml
from ansible_collections.tapvirt.host.playbooks.filter_plugins.boot_sector import boot_sector

from .support.tasks import trace_task

pytestmark = pytest.mark.soak  # test_systemtap.py counts a known load of one host on every run

# A system call that nothing else makes, so that no hit waits for another one's lock.
CALLED = "__x64_sys_sched_rr_get_interval"
CALLS = {"trace1": 100_000, "trace2": 100_000, "trace3": 100_000, "trace4": 1_000}
MERGED = ["trace1", "trace2", "trace3"]
# One process makes the calls, another wakes it when the probes are armed. It sleeps after every hundred calls, since
# what probes may take of a CPU has a ceiling.
LOAD = """
import glob, json, os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
worker = os.fork()
if worker:
    print(worker, flush=True)
    if os.fork():
        os._exit(0)
os.setsid()
for descriptor in (0, 1, 2):
    os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
if not worker:
    signal.sigwait({signal.SIGUSR1})
    for _batch in range(CALLS // 100):
        begun = time.monotonic()
        for _number in range(100):
            os.sched_rr_get_interval(0)
        time.sleep(2 * (time.monotonic() - begun))
    os._exit(0)
for _second in range(600):
    for path in glob.glob("/run/tapvirt/stap/tapvirt_function_latency_*/state.json"):
        try:
            state = json.load(open(path))
        except (OSError, ValueError):
            continue
        if state["state"] == "running":
            os.kill(worker, signal.SIGUSR1)
            os._exit(0)
    time.sleep(0.2)
"""
RUN = "tapvirt.host.trace : Collect the result"
SECONDS = 30
TURNS = 3


@pytest.fixture(scope="module")
def traced_calls(lab, tmp_path_factory):
    """The result of a trace of the calls on four hosts at once, beside a dead host; the runs of three are merged."""
    inventory = tmp_path_factory.mktemp("known") / "dead.yml"
    dead = {"ansible_host": "127.0.0.1", "ansible_port": 9, "ansible_user": "root"}
    inventory.write_text(yaml.safe_dump({"more": {"hosts": {"dead": dead}}}), encoding="utf-8")
    known = "{{ lookup('tapvirt.host.playbook', 'trace_campaign', hostvars=hostvars, hosts=merged) }}"
    plays = [
        {
            "hosts": ["dead", *CALLS],
            "gather_facts": False,
            "vars": {"calls": {"dead": 0, **CALLS}},
            "tasks": [
                {
                    "name": "Load",
                    "ansible.builtin.command": {
                        "cmd": "python3 -",
                        "stdin": LOAD.replace("CALLS", "{{ calls[inventory_hostname] }}"),
                    },
                    "register": "load",
                },
                trace_task(
                    title="calls",
                    variables={"function": CALLED},
                    globals={"target_pid": "{{ load.stdout }}"},
                    duration_seconds=SECONDS,
                    cpu_ceiling_percent=50,
                ),
            ],
        },
        {
            "hosts": MERGED[0],
            "gather_facts": False,
            "vars": {"merged": MERGED},
            "tasks": [{"name": "Merge", "ansible.builtin.set_fact": {"known": known}}],
        },
    ]
    for _turn in range(TURNS):
        done = lab.playbook(yaml.safe_dump(plays), "-i", str(inventory))
        runs = [row["result"].get("run", {}) for row in done.results if row["task"] == RUN]
        outcomes = [(run.get("outcome"), run.get("skipped")) for run in runs]
        if outcomes == [("ok", 0)] * len(CALLS):
            break
        # An emulated processor that stops within a probe makes its host look overloaded; the run reports that.
        warnings.warn(f"once more: {outcomes}", stacklevel=1)
    return done


@pytest.mark.parametrize("host", CALLS)
def test_every_call_is_counted_once(traced_calls, host):
    run = traced_calls.of(host, RUN)["run"]
    assert (run["outcome"], run["skipped"]) == ("ok", 0), run
    count, histogram = run["records"]
    assert (count["kind"], histogram["kind"]) == ("count", "histogram")
    assert count["count"] == histogram["count"] == CALLS[host], run
    assert sum(bucket[2] for bucket in histogram["buckets"]) == CALLS[host]


def test_runs_of_three_hosts_are_merged_without_loss(traced_calls):
    known = traced_calls.of(MERGED[0], "Merge")["ansible_facts"]["known"]
    wanted = sum(CALLS[host] for host in MERGED)
    assert wanted == 300_000
    assert known["counters"] == [{"title": "calls", "hosts": 3, "totals": {CALLED: wanted}}]
    (histogram,) = known["histograms"]
    assert histogram["count"] == sum(bucket[2] for bucket in histogram["buckets"]) == wanted


def test_dead_host_does_not_affect_the_others(traced_calls):
    assert traced_calls.recap["dead"]["unreachable"] == 1
    assert {
        host: traced_calls.recap[host]["failed"] + traced_calls.recap[host]["unreachable"] for host in CALLS
    } == dict.fromkeys(CALLS, 0)
    assert {host: traced_calls.of(host, RUN)["run"]["record_count"] for host in CALLS} == dict.fromkeys(CALLS, 2)


WRITES = 20_000
READY = "ready"
# Runs in real mode at 0000:7c00: prints that it is ready and halts; an NMI starts its work.
SECTOR = bytes([
    0xFA, 0x31, 0xC0, 0x8E, 0xD8, 0x8E, 0xD0,        # cli; xor ax, ax; mov ds, ax; mov ss, ax
    0xBC, 0x00, 0x7C,                                # mov  sp, 0x7c00
    0xC7, 0x06, 0x08, 0x00, 0x28, 0x7C,              # mov  word [2*4], handler
    0xC7, 0x06, 0x0A, 0x00, 0x00, 0x00,              # mov  word [2*4+2], 0
    0xBE, 0x36, 0x7C, 0xB9, len(READY), 0x00,        # mov  si, text; mov cx, length
    0xFC, 0xBA, 0xF8, 0x03,                          # cld; mov dx, 0x3f8
    0xAC, 0xEE, 0xE2, 0xFC,                          # next: lodsb; out dx, al; loop next
    0xF4, 0xEB, 0xFD, 0x90,                          # stop: hlt; jmp stop; nop
    # 0x7c28, handler: the port of the POST code takes whatever is written to it.
    0xB9, WRITES & 0xFF, WRITES >> 8,                # mov  cx, WRITES
    0xE6, 0x80, 0xE2, 0xFC,                          # again: out 0x80, al; loop again
    0xF4, 0xEB, 0xFD,                                # hlt; jmp to it
    0x90, 0x90, 0x90, 0x90,
])  # fmt: skip
assert len(SECTOR) == 0x36
DOMAINS = {"known-writer": READY, "known-talker": "a line for each tick"}
# Seconds that each is traced: 20,000 emulated exits take some.
SECONDS_OF = {"known-writer": 15, "known-talker": 2}
# Both domains run; the NMI comes when the probes are armed.
WAKE = """
for try in $(seq 1500); do
  grep -q '"state": "running"' /run/tapvirt/stap/tapvirt_kvm_exits_*/state.json 2>/dev/null && break
  sleep 0.2
done
virsh inject-nmi known-writer
"""


@pytest.fixture
def domains(lab):
    """Two domains on one host: the first writes to a port after an NMI, the second prints all the time."""
    text = SECTOR + READY.encode()
    writer = base64.b64encode(text + bytes(510 - len(text)) + b"\x55\xaa").decode()
    tasks = [
        {
            "name": "Disk",
            "ansible.builtin.shell": "base64 -d > /var/lib/libvirt/images/{{ item.key }}.img <<< {{ item.value }}",
            "args": {"executable": "/bin/bash"},
            "loop": "{{ disks | dict2items }}",
            "vars": {
                "disks": {
                    "known-writer": writer,
                    "known-talker": boot_sector(DOMAINS["known-talker"]),
                }
            },
        },
        {
            "name": "Domains",
            "tapvirt.host.libvirt_domain": {
                "uri": "qemu:///system",
                "domains": [{"name": name, "xml": lab.small_domain(name), "state": "running"} for name in DOMAINS],
            },
        },
        *(
            {
                "name": f"Console of {name}",
                "tapvirt.host.libvirt_console": {
                    "uri": "qemu:///system",
                    "name": name,
                    "until": line,
                    "timeout_seconds": 60,
                },
            }
            for name, line in DOMAINS.items()
        ),
    ]
    done = lab.run_tasks("trace2", tasks)
    yield done
    for name in DOMAINS:
        remove = f"virsh destroy {name}; virsh undefine {name}; rm -f /var/lib/libvirt/images/{name}.img"
        lab.run("trace2", "sh", "-c", remove)


def test_exits_of_one_domain_equal_its_port_writes(lab, domains):
    assert domains.rc == 0, domains.stdout
    tasks = [
        {"name": "Wake", "ansible.builtin.shell": f"nohup sh -c {shlex.quote(WAKE)} >/dev/null 2>&1 &"},
        {
            **trace_task(script="kvm_exits", domain="{{ item }}", duration_seconds="{{ seconds[item] }}"),
            "loop": list(SECONDS_OF),
        },
    ]
    done = lab.run_tasks("trace2", tasks, vars={"seconds": SECONDS_OF})
    runs = [row["result"]["run"] for row in done.results if row["task"] == RUN]
    assert [(run["outcome"], run["skipped"]) for run in runs] == [("ok", 0), ("ok", 0)], done.stdout
    written, beside = ({record["key"]: record["count"] for record in run["records"]} for run in runs)
    assert written["io"] == WRITES, written
    # The other one ran, and is not in it.
    assert beside["hlt"] > 0 and beside["io"] > 0
