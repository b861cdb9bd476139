# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""params and domains over hosts of which one is lost or fails: what is said, what is kept, who is no longer touched."""

from __future__ import annotations

import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.stubs import Stubs, artifact

# ``trouble`` of a host: what goes wrong when it is compared, set, and compared once more ("left").
TROUBLE = """
tried = FOLDER / ("tried " + host)
step = "set" if not checked else "left" if tried.exists() else "compare"
if step == "set":
    tried.touch()
reason = told.get("trouble", {}).get(step)
if reason and reason.startswith("Lost"):
    return {"unreachable": True, "msg": reason}
if reason:
    return {"failed": True, "msg": reason}
as_wanted = step == "left" and "set" not in told.get("trouble", {})
"""
PARAMS = (
    TROUBLE
    + """
row = {"module": "kvm", "name": "halt_poll_ns", "pending": [], "changed": not as_wanted, "wanted": 2}
row.update(before=2 if as_wanted else 1, after=2)
return {"changed": not as_wanted, "plan": [] if as_wanted else [{}], "params": [row]}
"""
)
DOMAINS = (
    TROUBLE
    + """
plan = [] if as_wanted else [{"what": "web state", "before": None, "after": "running"}]
return {"changed": bool(plan), "plan": plan, "domains": []}
"""
)
WANTED: dict[str, dict[str, t.Any]] = {
    "params": {"module_params_wanted": [{"module": "kvm", "name": "halt_poll_ns", "value": 2}]},
    "domains": {"domains_wanted": [{"name": "web", "state": "running"}]},
}
MODULE = {"params": "kernel_module_param", "domains": "libvirt_domain"}
DIFFERS = {"params": "kvm.halt_poll_ns is 1, wanted 2", "domains": "web state is absent, wanted running"}
ONE = {"params": 1, "domains": {"changes": 1, "pending": 0}}
NOT_DONE = {"params": "could not be set: ", "domains": "could not be converged: "}


@pytest.fixture
def stubs(tmp_path: pathlib.Path) -> Stubs:
    return Stubs(tmp_path, kernel_module_param=PARAMS, libvirt_domain=DOMAINS)


def run_playbook(
    stubs: Stubs, playbook: str, trouble: dict[str, dict[str, str]], *options: str
) -> subprocess.CompletedProcess[str]:
    hosts = {f"h{number}": {"told": {"trouble": trouble.get(f"h{number}", {})}} for number in range(1, 5)}
    return stubs.run(playbook, hosts, *options, **WANTED[playbook])


def changed(stubs: Stubs, playbook: str) -> list[str]:
    return [host for host, checked, _options in stubs.calls(MODULE[playbook]) if not checked]


@pytest.mark.parametrize(("playbook", "options"), [("params", []), ("domains", ["--tags", "report"])])
def test_hosts_that_cannot_be_compared_are_named_and_none_is_changed(
    stubs: Stubs, playbook: str, options: list[str]
) -> None:
    trouble = {"h1": {"compare": "Lost: no route"}, "h3": {"compare": "no such thing here"}}
    done = run_playbook(stubs, playbook, trouble, *options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert changed(stubs, playbook) == []
    assert sorted(host for host, _checked, _options in stubs.calls(MODULE[playbook])) == ["h1", "h2", "h3", "h4"]
    assert '"h1: could not be compared: Lost: no route"' in done.stdout
    assert '"h3: could not be compared: no such thing here"' in done.stdout
    assert f'"h2: {DIFFERS[playbook]}"' in done.stdout
    assert '"0 of 4 hosts are as wanted."' in done.stdout
    differ = {"h2": ONE[playbook], "h4": ONE[playbook]}
    reasons = {"h1": "could not be compared: Lost: no route", "h3": "could not be compared: no such thing here"}
    counts = {"hosts": 4, "before_count": 2, "after_count": 2, "failed_count": 2}
    assert artifact(done)[f"{playbook}_drift"] == {"before": differ, "after": differ, "failed": reasons, **counts}


@pytest.mark.parametrize(("playbook", "reason"), [("params", "Lost: gone"), ("domains", "the first is refused")])
def test_after_a_canary_that_fails_the_others_are_named_and_left(stubs: Stubs, playbook: str, reason: str) -> None:
    done = run_playbook(stubs, playbook, {"h1": {"set": reason}})
    assert done.returncode == 2, done.stdout + done.stderr
    assert changed(stubs, playbook) == ["h1"]
    assert f'"h1: {NOT_DONE[playbook]}{reason}"' in done.stdout
    assert '"Not reached (3): h2, h3, h4"' in done.stdout
    summary = artifact(done)[f"{playbook}_drift"]
    assert summary["after_count"] == 4
    assert summary["failed"] == {"h1": NOT_DONE[playbook] + reason}
    assert (summary["not_reached"], summary["not_reached_count"]) == (["h2", "h3", "h4"], 3)
    assert done.stdout.count("failed=1") == 1


def test_a_run_without_trouble_ends_well_and_reports_no_more_than_before(stubs: Stubs) -> None:
    done = run_playbook(stubs, "params", {})
    assert done.returncode == 0, done.stdout + done.stderr
    assert changed(stubs, "params")[0] == "h1" and sorted(changed(stubs, "params")) == ["h1", "h2", "h3", "h4"]
    assert '"4 of 4 hosts are as wanted."' in done.stdout
    differ = dict.fromkeys(("h1", "h2", "h3", "h4"), 1)
    assert artifact(done)["params_drift"] == {
        "hosts": 4,
        "before": differ,
        "before_count": 4,
        "after": {},
        "after_count": 0,
    }
    assert done.stdout.count("changed=1") == 4


def test_a_host_that_is_lost_after_it_was_set_is_named(stubs: Stubs) -> None:
    done = run_playbook(stubs, "domains", {"h2": {"left": "Lost: gone"}}, "-e", "domains_waves=2")
    assert done.returncode == 2, done.stdout + done.stderr
    assert sorted(changed(stubs, "domains")[:2]) == ["h1", "h2"]
    assert '"h2: could not be compared afterwards: Lost: gone"' in done.stdout
    assert '"3 of 4 hosts are as wanted."' in done.stdout
    assert "Not reached" not in done.stdout
    assert artifact(done)["domains_drift"]["failed_count"] == 1


@pytest.mark.parametrize("name", ["params", "domains"])
def test_waves_that_cannot_be_are_refused_before_any_host_is_asked(stubs: Stubs, name: str) -> None:
    done = run_playbook(stubs, name, {}, "-e", f"{name}_waves=abc")
    assert done.returncode != 0
    assert f"Invalid value 'abc' for {name}_waves: The size of a wave is a number of hosts" in done.stdout + done.stderr
    assert "TASK [Compare" not in done.stdout and changed(stubs, name) == []
