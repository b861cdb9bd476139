# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The campaign: three kernels and a dead host in waves, one build a kernel, a canary that stops it, an idle check."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.tests.unit.support.documents import sample, shown_in

from .support.places import PLAYBOOKS

HOSTS = ["trace1", "trace2", "trace3"]
# Those of the wave that is one moment.
WAVE = [*HOSTS, "trace4"]
START = "tapvirt.host.trace : Start the module"
RUN = "tapvirt.host.trace : Collect the result"
# How far apart four emulated hosts that share two CPUs may be armed, on any run of the tests.
APART_SECONDS = 3.0
BUILD = "tapvirt.host.trace : Build the module once for each distinct kernel"
COUNT = """# {{ stamp }}
#: record count key:string count:integer
global least = 0
global calls
probe kprobe.function("vfs_read") { calls <<< 1 }
probe end { printf("{\\"kind\\":\\"count\\",\\"key\\":\\"least %d\\",\\"count\\":%d}\\n", least, @count(calls)) }
"""
# Works nearly thirty thousand times a second, each time for nearly as long as one probe may.
BUSY = """# {{ stamp }}
global sum
probe timer.us(100), timer.us(103), timer.us(107) { for (number = 0; number < 400; number++) sum += number }
"""
# All files of a run have the name of the script in theirs.
FILES = "find / -xdev -name '*campaign_count*' ! -path '/proc/*'; ls -A /proc/systemtap 2>/dev/null | grep campaign"


class Campaign:
    """The playbook with scripts that were never built, and with hosts that do not answer."""

    def __init__(self, lab, folder: pathlib.Path) -> None:
        self.lab = lab
        self._folder = folder
        self._more = folder / "more.yml"
        trace2 = lab.variables("trace2")
        hosts = {
            "dead": {"ansible_host": "127.0.0.1", "ansible_port": 9, "ansible_user": "root"},
            # The builder has no headers for its kernel.
            "here": {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"},
            # Does not answer after its run has begun.
            "leaving": {
                **trace2,
                "ansible_port": f"{{{{ 9 if trace_before is defined else {trace2['ansible_port']} }}}}",
            },
        }
        self._more.write_text(yaml.safe_dump({"more": {"hosts": hosts}}), encoding="utf-8")

    def run(self, hosts: list[str], script: str, waves: str, *options: str, **more):
        """Run the playbook with a script on some hosts."""
        name = "campaign_busy" if script == BUSY else "campaign_count"
        path = self._folder / f"{name}.stp.j2"
        path.write_text(script, encoding="utf-8")
        variables = {
            "trace_targets": ",".join(hosts),
            "trace_script": str(path),
            "trace_variables": {"stamp": str(self._folder)},
            "trace_title": name,
            "trace_duration_seconds": 3,
            "trace_waves": waves,
            **more,
        }
        return self.lab.playbook(PLAYBOOKS / "trace.yml", "-i", str(self._more), "-e", json.dumps(variables), *options)

    def builds(self) -> list[dict[str, t.Any]]:
        """Return the compilations of these scripts in the store of the builder."""
        return self.lab.builds("tapvirt_campaign_")

    def files(self) -> dict[str, str]:
        """Return the files of these scripts on each host and on the builder."""
        return {host: self.lab.shell(host, FILES, check=False, timeout=180) for host in [*HOSTS, "builder"]}


@pytest.fixture(scope="module")
def campaign(lab, tmp_path_factory):
    """The campaign."""
    return Campaign(lab, tmp_path_factory.mktemp("campaign"))


def campaign_summary(result):
    """Return the summary of the campaign, an artifact of the job."""
    stats = result.stats()
    assert len(json.dumps(stats)) < 100_000
    return stats["trace_campaign"]


@pytest.fixture(scope="module")
def checked(campaign):
    """The result of check mode, and the files and builds before and after it."""
    before = campaign.files(), campaign.builds()
    result = campaign.run(HOSTS, COUNT, "100%", "--check", trace_globals={"least": 7})
    return result, before, (campaign.files(), campaign.builds())


@pytest.fixture(scope="module")
def traced(campaign, checked):
    """The result for three hosts, a dead one and one that is not ready, and the builds that it needed."""
    before = campaign.builds()
    result = campaign.run([*HOSTS, "dead", "here"], COUNT, "1, 100%", trace_globals={"least": 7})
    return result, campaign.builds()[len(before) :]


def test_check_mode_plans_the_builds_and_changes_nothing(checked):
    result, before, after = checked
    assert result.rc == 0, result.stdout[-3000:]
    assert after == before
    assert result.hosts_of(RUN) == []
    summary = campaign_summary(result)
    assert summary["outcomes"] == {"planned": 3}
    assert all(result.of(host, BUILD)["built"] for host in HOSTS)


def test_dead_host_is_left_out_and_the_others_are_traced(traced):
    result, _built = traced
    assert result.recap["dead"]["unreachable"] == 1
    assert {host: result.recap[host]["failed"] for host in HOSTS} == dict.fromkeys(HOSTS, 0), result.stdout[-3000:]
    summary = campaign_summary(result)
    assert summary["outcomes"] == {"ok": 3}
    assert list(summary["left_out"]) == ["dead", "here"]
    runs = {host: result.of(host, RUN)["run"] for host in HOSTS}
    counted = {host: run["records"][0]["count"] for host, run in runs.items()}
    assert all(counted.values())
    assert summary["counters"] == [
        {"title": "campaign_count", "hosts": 3, "totals": {"least 7": sum(counted.values())}},
    ]
    assert {host: row["hits"] for host, row in summary["hosts"].items()} == {host: runs[host]["hits"] for host in HOSTS}


def test_host_that_is_not_ready_is_left_out_with_a_reason(traced):
    result, _built = traced
    lines = result.of("trace1", "Report which hosts are not ready, with remedies")["msg"]
    (line,) = [text for text in lines if "here: " in text]
    assert "the builder has no headers for " in line and "install the package linux-headers-" in line
    assert campaign_summary(result)["left_out"]["here"] in line
    assert result.recap["here"]["failed"] == 0


def test_canary_runs_first_and_each_kernel_is_built_once(traced):
    result, built = traced
    order = result.hosts_of(RUN)
    assert order[0] == "trace1" and sorted(order) == HOSTS
    assert len(built) == 3
    assert len({row["kernel"] for row in built}) == 3


def test_another_value_needs_no_build(campaign, traced):
    before = campaign.builds()
    result = campaign.run(["trace1"], COUNT, "100%", trace_globals={"least": 8})
    assert result.rc == 0, result.stdout[-3000:]
    assert campaign.builds() == before
    assert [row["task"] for row in result.results if row["result"].get("changed")] == []
    assert list(campaign_summary(result)["counters"][0]["totals"]) == ["least 8"]


def test_hosts_of_a_wave_are_armed_at_one_moment_with_one_fork(campaign, traced):
    result = campaign.run(WAVE, COUNT, "100%", "-f", "1", trace_globals={"least": 9})
    assert result.rc == 0, result.stdout[-3000:]
    starts, results = (result.hosts_of(task) for task in (START, RUN))
    assert starts == results == WAVE
    order = [row["task"] for row in result.results if row["task"] in (START, RUN)]
    assert order == [START] * len(WAVE) + [RUN] * len(WAVE)
    (wave,) = campaign_summary(result)["waves"]
    assert wave["hosts"] == len(WAVE)
    # test_wave.py has the bound of a second. The print shows how far apart the starts were, one after the other.
    assert wave["spread_seconds"] + wave["uncertainty_seconds"] <= APART_SECONDS, wave
    accepted = [result.of(host, RUN)["run"]["times"]["accepted"] for host in WAVE]
    print("accepted over", max(accepted) - min(accepted), "s; armed over", wave)
    for host in WAVE:
        times = result.of(host, RUN)["run"]["times"]
        assert times["accepted"] <= times["start"] <= times["armed"] <= times["end"], times


def test_unknown_function_is_refused_before_a_build(campaign):
    script = COUNT.replace('kprobe.function("vfs_read")', 'kernel.function("vfs_raed").call')
    result = campaign.run(["trace2"], script, "100%", "--check")
    assert result.rc != 0
    assert result.hosts_of(BUILD) == []
    kernel = campaign.lab.release("trace2")
    names = {"web1, web2": "trace2", "6.12.108+deb13-amd64": kernel}
    expected = sample("docs/docsite/rst/guide_campaign.rst", "No host was traced", names)
    message = result.of("trace2", "Fail if no host could be traced")["msg"]
    assert shown_in(expected, message), message
    assert campaign_summary(result)["outcomes"] == {"refused": 1}


def test_overloaded_canary_stops_the_campaign(campaign):
    result = campaign.run(["trace2", "trace1"], BUSY, "1", trace_cpu_ceiling_percent=1)
    assert result.rc != 0
    assert result.hosts_of(RUN) == ["trace2"]
    assert result.of("trace2", RUN)["run"]["outcome"] == "overloaded", result.of("trace2", RUN)
    lines = result.of("trace2", "Report why no further wave starts")["msg"]
    assert lines[1] == "No further wave begins. Not traced: trace1."
    hosts = {"web1": "trace2", "web2, web3": "trace1"}
    expected = sample("docs/docsite/rst/guide_campaign.rst", "No further wave begins", hosts)
    assert shown_in(expected, result.stdout)
    summary = campaign_summary(result)
    assert summary["stopped"] and summary["left_out"] == {"trace1": "the campaign had stopped before"}
    assert result.recap["trace2"]["failed"] == 1 and result.recap["trace1"]["failed"] == 0
    counted = result.of("trace2", "Fail each host whose run was not accepted")["msg"]
    assert counted.startswith("overloaded: it ended as overloaded: "), counted


def test_unreachable_canary_stops_the_campaign(campaign):
    result = campaign.run(["leaving", "trace1"], COUNT, "1")
    assert result.rc != 0
    assert result.hosts_of("Find the end of the kernel's log") == ["leaving"]
    summary = campaign_summary(result)
    assert summary["hosts"]["leaving"]["outcome"] == "lost", result.stdout[-3000:]
    assert list(summary["left_out"]) == ["trace1"]
    assert result.recap["leaving"]["failed"] == 1
