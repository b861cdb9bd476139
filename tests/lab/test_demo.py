# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration on three trace hosts with two kernels: its output agrees with the hosts and the builder."""

from __future__ import annotations

import pathlib
import shutil
import tempfile

import pytest
from ansible_collections.tapvirt.host.tests.tools.demo import end_domains, told
from ansible_collections.tapvirt.host.tests.unit.support.documents import sample, shown_in

from .support.places import PLAYBOOKS

pytestmark = pytest.mark.scenario
HOSTS = ["trace1", "trace2", "trace4"]
TRACES = {"function_latency": "hrtimer_start_range_ns", "kvm_exits": "kvm_exits of demo-talker"}
UNDO = """
- hosts: trace1:trace2:trace4
  gather_facts: false
  tasks:
    - tapvirt.host.libvirt_domain:
        domains:
          - {name: demo-talker, state: absent}
          - {name: demo-spare, state: absent}
        on_timeout: destroy
        wait_seconds: 5
    - tapvirt.host.kernel_module_param:
        params: [{module: kvm, name: halt_poll_ns}]
        state: restored
"""
# What a trace must not leave behind, except the module in its result.
LEFT = (
    "cat /proc/sys/kernel/kptr_restrict /proc/sys/debug/kprobes-optimization; ls /proc/systemtap 2>/dev/null;"
    " pgrep -a 'stap(run|io)'; ls /run/systemd/transient | grep -v ^machine-qemu;"
    " mount | grep -c debugfs; ls /tmp /run /root /var/tmp"
)


@pytest.fixture(scope="module")
def passes(lab, tmp_path_factory):
    """Run the demonstration twice; return both results, the report, and the hosts before and after."""
    report = tmp_path_factory.mktemp("report")
    embed = pathlib.Path(tempfile.mkdtemp(prefix="tvdemo", dir="/var/tmp"))
    embed.chmod(0o711)
    undo(lab)  # it may have run on this lab before
    before = {host: left_on(lab, host) for host in HOSTS}
    options = [
        "-i",
        str(PLAYBOOKS / "inventory" / "this_machine.yml"),
        "--limit",
        ",".join([*HOSTS, "builder", "localhost"]),
    ]
    options += ["-e", f"demo_dest={report}", "-e", f"demo_embed_root={embed}"]
    try:
        runs = [lab.playbook(PLAYBOOKS / "demo.yml", *options) for _number in range(2)]
        after = {host: left_on(lab, host) for host in HOSTS}
        yield runs, (report / "index.html").read_text(encoding="utf-8"), before, after
    finally:
        end_domains(embed)
        shutil.rmtree(embed, ignore_errors=True)
        undo(lab)


def undo(lab):
    """Remove what the demonstration made on the hosts."""
    undone = lab.playbook(UNDO)
    assert undone.rc == 0, undone.stdout[-2000:]


def left_on(lab, host):
    """Return the state of a host that a trace must not change."""
    return lab.shell(host, LEFT, check=False)


def trace_runs(result, host):
    """Return the last run of each trace on a host, by title."""
    rows = [row for row in result.results if row["host"] == host and row["task"].endswith("earlier traces")]
    return {entry["title"]: entry["run"] for entry in rows[-1]["result"]["ansible_facts"]["trace_runs"]}


def test_both_passes_succeed_and_the_second_changes_nothing(passes):
    (first, second), *_rest = passes
    assert first.rc == 0, first.stdout[-3000:]
    assert second.rc == 0, second.stdout[-3000:]
    assert set(second.recap) == {*HOSTS, "builder", "localhost"}
    assert second.changes() == dict.fromkeys(second.recap, 0)
    assert all(first.changes()[host] for host in [*HOSTS, "localhost"])


def test_output_matches_the_page(passes):
    (first, _second), *_rest = passes
    shown = sample("docs/docsite/rst/examples.rst", "Where the time went")
    sentences = shown[shown.index("\ntrace1 (") : shown.index("\nThe lab is still up")]
    assert shown_in(sentences, "\n".join(told(first.stdout)), numbers_differ=True)


def test_each_script_was_compiled_once_for_each_distinct_kernel(passes, lab):
    (first, _second), *_rest = passes
    builds = lab.builds()
    for title in TRACES.values():
        (name,) = {trace_runs(first, host)[title]["module"]["name"] for host in HOSTS}
        kernels = sorted(row["kernel"] for row in builds if row["name"] == name)
        wanted = {trace_runs(first, host)[title]["kernel"] for host in HOSTS}
        assert set(kernels) >= wanted and len(kernels) == len(set(kernels)), builds
        assert len(wanted) == 2


def test_records_are_plausible_and_differ_from_host_to_host(passes):
    (first, _second), *_rest = passes
    sums = []
    for host in HOSTS:
        run = trace_runs(first, host)[TRACES["function_latency"]]
        assert run["outcome"] == "ok" and run["probes"]["armed"] == run["probes"]["asked"] == 2
        (histogram,) = (row for row in run["records"] if row["kind"] == "histogram")
        assert histogram["count"] == sum(count for _low, _high, count in histogram["buckets"]) > 0
        sums.append((histogram["count"], histogram["sum"]))
    assert len(set(sums)) == len(HOSTS)


@pytest.mark.parametrize("host", HOSTS)
def test_exits_agree_with_the_console(passes, host):
    """A line costs a port write for each byte, one to acknowledge the timer, and one hlt (boot_sector.py)."""
    for result in passes[0]:
        run = trace_runs(result, host)[TRACES["kvm_exits"]]
        exits = {row["key"]: row["count"] for row in run["records"]}
        assert exits["hlt"] > 10
        assert abs(exits["io"] - exits["hlt"] * (len(host) + 3)) <= len(host) + 3, exits
        assert host in result.of(host, "Read the running domain's console")["text"]


def test_demonstration_leaves_the_trace_hosts_unchanged(passes):
    _runs, _report, before, after = passes
    assert after == before


def test_report_shows_hosts_domains_and_traces(passes):
    report = passes[1]
    for word in [
        *HOSTS,
        "demo-talker",
        "here-talker",
        "halt_poll_ns",
        "hrtimer_start_range_ns",
        "hlt",
        "cannot be traced",
    ]:
        assert word in report, word
    assert report.count('class="bar"') > 20
