# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks that would look at nothing: no host matches, no host answers, no host has a table."""

from __future__ import annotations

import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.stubs import Stubs, artifact

LOST = 'return {"unreachable": True, "msg": "no route"}'
SAME = 'return {"changed": False, "plan": [], "params": [], "domains": []}'
TABLE = [{"module": "kvm", "name": "halt_poll_ns", "value": 2}]


def output(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a run has printed, with the line breaks of warnings taken out."""
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def lost_stubs(tmp_path: pathlib.Path) -> Stubs:
    return Stubs(
        tmp_path,
        kernel_facts=LOST,
        kernel_module_param=SAME,
        libvirt_domain=SAME,
        libvirt_domain_info='return {"changed": False, "domains": [], "truncated": False}',
    )


@pytest.mark.parametrize("playbook", ["params", "domains", "gather", "report", "console_logs"])
def test_a_pattern_without_hosts_is_refused(lost_stubs: Stubs, playbook: str) -> None:
    done = lost_stubs.run(playbook, {"web1": {}}, **{f"{playbook}_targets": "web3"})
    assert done.returncode != 0
    message = (
        f"Invalid value 'web3' for {playbook}_targets: The pattern matches no host of the inventory. It has no groups."
    )
    assert f"{message} Did you mean web1?" in output(done)
    assert "PLAY [" not in done.stdout


def test_a_limit_that_leaves_no_host_is_refused(lost_stubs: Stubs) -> None:
    done = lost_stubs.run("params", {"web1": {}, "web2": {}}, "--limit", "web2", params_targets="web1")
    assert done.returncode != 0
    assert "Invalid value 'web1' for params_targets: The pattern has no host in common with --limit web2." in output(
        done
    )


def test_reading_a_playbook_needs_no_hosts(lost_stubs: Stubs) -> None:
    assert lost_stubs.run("params", {}, "--syntax-check").returncode == 0


def test_no_table_on_any_host_is_refused_and_the_misspelt_name_is_named(lost_stubs: Stubs) -> None:
    done = lost_stubs.run("params", {"h1": {}, "h2": {"module_param_wanted": TABLE}})
    assert done.returncode == 2, output(done)
    names = "module_params_wanted, module_params_group, module_params_host and module_params_group_NAME"
    assert f"No host has a table: {names} are empty or not set on 2 of 2 hosts." in output(done)
    assert "Did you mean module_params_wanted? The inventory sets module_param_wanted." in output(done)
    assert "set module_params_allow_empty: true" in output(done)
    assert output(done).count("fatal: [") == 1
    assert lost_stubs.calls("kernel_module_param") == []


def test_an_empty_list_of_domains_is_refused_unless_it_is_intended(lost_stubs: Stubs) -> None:
    hosts: dict[str, t.Any] = {"h1": {"domains_wanted": []}}
    done = lost_stubs.run("domains", hosts, "--tags", "report")
    assert done.returncode == 2
    assert "No host has a table: domains_wanted, " in output(done)
    done = lost_stubs.run("domains", hosts, "--tags", "report", domains_allow_empty=True)
    assert done.returncode == 0, output(done)
    assert '"0 of 0 hosts are as wanted."' in done.stdout
    assert artifact(done)["domains_drift"]["without_table_count"] == 1


def test_hosts_without_a_table_are_counted_apart_and_a_misspelt_table_is_a_warning(lost_stubs: Stubs) -> None:
    hosts = {"h1": {"module_params_group_kvm": TABLE}, "h2": {"module_params_hosts": TABLE}, "h3": {}}
    done = lost_stubs.run("params", hosts, "--tags", "report")
    assert done.returncode == 0, output(done)
    assert '"1 of 1 hosts are as wanted."' in done.stdout
    assert '"Without a table (2): h2, h3"' in done.stdout
    warning = "[WARNING]: The variable module_params_hosts is not used. Did you mean module_params_host?"
    assert output(done).count(warning) == 1
    assert artifact(done)["params_drift"]["without_table_count"] == 2
    assert [host for host, _checked, _options in lost_stubs.calls("kernel_module_param")] == ["h1"]


def test_a_report_without_an_answer_fails_after_the_page_was_written(lost_stubs: Stubs) -> None:
    done = lost_stubs.run("report", {"h1": {}, "h2": {}})
    assert done.returncode == 2, output(done)
    assert "No host of 2 gave its kernel facts. The first reason: no route" in output(done)
    assert (lost_stubs.top / "report" / "index.html").exists()
    assert artifact(done)["report_summary"]["numbers"][0] == "2 hosts"


def test_facts_of_a_failed_task_are_no_answer(tmp_path: pathlib.Path) -> None:
    facts = '{"discovered_interpreter_python": "/x", "tapvirt_kernel": {"release": "6.12.0"}}'
    failed = f'return {{"failed": True, "msg": "no module", "ansible_facts": {facts}}}'
    done = Stubs(tmp_path, kernel_facts=failed, stap_host_info=failed).run("report", {"h1": {}})
    assert done.returncode == 2, output(done)
    assert "No host of 1 gave its kernel facts. The first reason: no module" in output(done)


@pytest.mark.parametrize("names", ["web", ""])
def test_names_that_match_no_domain_fail(lost_stubs: Stubs, names: str) -> None:
    done = lost_stubs.run("console_logs", {"h1": {}}, console_logs_names=names)
    assert done.returncode == (2 if names else 0), output(done)
    message = "console_logs_names: web matches no running domain with a console on any host that answered."
    assert (message in output(done)) == bool(names)


def test_that_domains_were_left_out_is_reported_where_no_name_matches(tmp_path: pathlib.Path) -> None:
    listed = 'return {"domains": [{"name": "a", "state": "running", "console": {"a": 1}}], "truncated": True}'
    done = Stubs(tmp_path, libvirt_domain_info=listed).run("console_logs", {"h1": {}}, console_logs_names="web")
    message = (
        "matches no running domain with a console on any host that answered. Of 1 of the hosts, only the first 500"
    )
    assert done.returncode == 2 and message in output(done), output(done)


def test_gather_without_an_answer_fails(lost_stubs: Stubs) -> None:
    assert lost_stubs.run("gather", {"h1": {}}).returncode != 0
