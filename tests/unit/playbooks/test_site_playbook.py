# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site's own playbook that imports playbooks of the collection, or uses its roles in batches."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.tests.unit.support.stubs import Stubs

SAME = 'return {"changed": False, "plan": [], "params": [], "domains": []}'
TABLES: dict[str, tuple[str, str, list[dict[str, t.Any]]]] = {
    "module_params": ("module_params_wanted", "kernel_module_param", [{"module": "kvm", "name": "x", "value": 2}]),
    "domains": ("domains_wanted", "libvirt_domain", [{"name": "web", "state": "running"}]),
}
LAST = {"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.debug": {"msg": "the last play"}}]}


@pytest.fixture
def stubs(tmp_path: pathlib.Path) -> Stubs:
    return Stubs(tmp_path, kernel_module_param=SAME, libvirt_domain=SAME)


def site(stubs: Stubs, *plays: dict[str, t.Any]) -> str:
    (stubs.top / "site.yml").write_text(yaml.safe_dump(list(plays)), encoding="utf-8")
    return str(stubs.top / "site.yml")


def test_an_imported_playbook_without_hosts_does_not_end_the_run(stubs: Stubs) -> None:
    params = {"import_playbook": "tapvirt.host.params", "vars": {"params_targets": "web2"}}
    trace = {"import_playbook": "tapvirt.host.trace", "when": False}
    done = stubs.run(site(stubs, params, trace, LAST), {"web1": {}, "web2": {}}, "--limit", "web1")
    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0 and "the last play" in output, output
    message = (
        "for params_targets: The pattern has no host in common with --limit web1. The playbook tapvirt.host.params"
    )
    assert message in output
    assert "for trace_targets: The default pattern 'trace_hosts' matches no host of the inventory" in output


def test_a_playbook_that_is_started_by_its_path_is_refused_as_by_its_name(stubs: Stubs) -> None:
    path = stubs.top / "ansible_collections/tapvirt/host/playbooks/params.yml"
    done = stubs.run(str(path), {"web1": {}}, params_targets="web3")
    assert done.returncode != 0 and "PLAY [" not in done.stdout
    assert "for params_targets: The pattern matches no host of the inventory" in " ".join(
        (done.stdout + done.stderr).split()
    )


@pytest.mark.parametrize(("playbook", "role"), [("params", "module_params"), ("domains", "domains")])
def test_a_table_in_the_variables_of_an_import_is_found(stubs: Stubs, playbook: str, role: str) -> None:
    name, module, table = TABLES[role]
    imported = {"import_playbook": f"tapvirt.host.{playbook}", "vars": {name: table}}
    done = stubs.run(site(stubs, imported), {"h1": {}})
    assert done.returncode == 0, done.stdout + done.stderr
    assert {host for host, _checked, _options in stubs.calls(module)} == {"h1"}


@pytest.mark.parametrize("role", ["module_params", "domains"])
def test_a_batch_without_a_table_is_no_run_without_one_and_a_later_misspelt_use_is(stubs: Stubs, role: str) -> None:
    name, module, table = TABLES[role]
    later = f"{{{{ [] if inventory_hostname == 'h1' else {table!r} }}}}"
    play = {"hosts": "all", "gather_facts": False, "serial": 1, "roles": [f"tapvirt.host.{role}"]}
    misspelt = {f"{name}s": table}
    done = stubs.run(site(stubs, {**play, "vars": {name: later}}, {**play, "vars": misspelt}), {"h1": {}, "h2": {}})
    assert [host for host, _checked, _options in stubs.calls(module)] == ["h2"], done.stdout + done.stderr
    assert done.returncode == 2 and "No host has a table: " in done.stdout + done.stderr
