# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running KVM domain migrates to another host and back, through the ssh connection of the two daemons.

It is the example of the documentation with the names of the lab. It is tunnelled because these hosts reach each other
only by ssh. The unit tests cover the other modes, between two daemons of one machine.
"""

from __future__ import annotations

import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.tests.unit.support.documents import example

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts

pytestmark = [pytest.mark.soak, pytest.mark.scenario]
HOST, OTHER = "trace1", "trace2"
NAME = "migration-test"
KEY = "/root/.migration-test-key"
XML = f"""
<domain type='kvm'>
  <name>{NAME}</name>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><memballoon model='none'/></devices>
</domain>
"""


def daemon_uri(host: str) -> str:
    """Return the URI by which the daemon of one guest reaches that of another: through its gateway, this machine."""
    port = f"{{{{ hostvars['{host}'].ansible_port }}}}"
    return f"qemu+ssh://root@10.0.2.2:{port}/system?keyfile={KEY}&no_verify=1"


def migration_args(destination: str) -> dict[str, t.Any]:
    """Return the options of the documented example for this domain and a host."""
    ((_module, shown),) = example("docs/docsite/rst/examples.rst", "libvirt_migration").steps
    return {**shown, "domains": [NAME], "destination": daemon_uri(destination), "mode": "tunnelled"}


STEPS: list[tuple[str, str, str, dict[str, t.Any]]] = [
    (HOST, "Start", "domain", {"name": NAME, "xml": XML, "state": "running", "autostart": True}),
    (HOST, "There, planned", "migration", migration_args(OTHER)),
    (HOST, "There", "migration", migration_args(OTHER)),
    (HOST, "There again", "migration", migration_args(OTHER)),
    (OTHER, "Found there", "domain_info", {"names": [NAME]}),
    (OTHER, "Back", "migration", migration_args(HOST)),
    (HOST, "Found back", "domain_info", {"names": [NAME]}),
]


@pytest.fixture(scope="module")
def steps(lab: LabHosts) -> t.Iterator[dict[str, t.Any]]:
    """The results of one playbook by step; the domain and the key are deleted afterwards."""
    key = {"src": "{{ ansible_ssh_private_key_file }}", "dest": KEY, "mode": "0600"}
    plays: list[dict[str, t.Any]] = [
        {"hosts": f"{HOST},{OTHER}", "tasks": [{"name": "Key", "ansible.builtin.copy": key}]}
    ]
    plays += [
        {
            "hosts": host,
            "tasks": [{"name": name, f"tapvirt.host.libvirt_{module}": args, "check_mode": name.endswith("planned")}],
        }
        for host, name, module, args in STEPS
    ]
    try:
        run = lab.playbook(yaml.safe_dump([{**play, "gather_facts": False} for play in plays]))
        assert run.rc == 0, run.stdout
        yield run.by_task()
    finally:
        gone = {"name": NAME, "state": "absent", "on_timeout": "destroy", "wait_seconds": 1}
        end = [
            {"name": "Key gone", "ansible.builtin.file": {"path": KEY, "state": "absent"}},
            {"name": "Gone", "tapvirt.host.libvirt_domain": gone},
        ]
        lab.run_tasks(f"{HOST},{OTHER}", end)


def test_running_domain_migrates_to_another_host_and_back(steps: dict[str, t.Any]) -> None:
    there, back = steps["There"], steps["Back"]
    assert there["plan"] == steps["There, planned"]["plan"]
    assert [row["what"].split()[1] for row in there["plan"]] == ["place", "definition", "autostart"]
    assert (steps["There again"]["changed"], steps["There again"]["plan"]) == (False, [])
    for result in (there, back):
        row = result["domains"][0]
        assert (row["location"], row["state"]) == ("destination", "running")
        assert row["transferred_bytes"] > 0
        assert row["elapsed_seconds"] >= row["downtime_seconds"] > 0
    uuid = steps["Start"]["domains"][0]["uuid"]
    for name in ("Found there", "Found back"):
        found = steps[name]["domains"][0]
        assert (found["uuid"], found["state"], found["autostart"]) == (uuid, "running", True)
