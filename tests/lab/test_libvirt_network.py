# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_network on a lab host: a real daemon with a DHCP and DNS server, and a guest that must stay connected."""

from __future__ import annotations

import typing as t

import pytest

from .support.tasks import module_task

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts, PlaybookResult

# The unit tests use libvirt's test driver, which has no DHCP server and no stored definition of an active network. Here
# it is the daemon of a host, and takes minutes.
pytestmark = [pytest.mark.soak, pytest.mark.scenario]
HOST = "trace1"
LAB, SIDE, POOL, GUEST = "network-test", "network-test-side", "network-test-pool", "network-test-guest"
NAMES = [LAB, SIDE, POOL]
ADDRESS = "198.51.100.1"
NETWORK = """
<network>
  <forward mode='route'/>{more}
  <ip address='198.51.100.1' netmask='255.255.255.0'>
    <dhcp><range start='198.51.100.100' end='198.51.100.200'/>{hosts}</dhcp>
  </ip>
</network>
"""
HOST_1 = "<host mac='52:54:00:00:51:01' name='one' ip='198.51.100.11'/>"
HOST_2 = "<host mac='52:54:00:00:51:02' name='two' ip='198.51.100.12'/>"
DNS = "<dns><host ip='198.51.100.77'><hostname>lab.example</hostname></host></dns>"
VLAN = "<portgroup name='vlan'/>"
DOMAIN = f"""
<domain type='kvm'>
  <name>{GUEST}</name>
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><interface type='network'><source network='{LAB}'/></interface></devices>
</domain>
"""


def networks() -> list[dict[str, t.Any]]:
    """Return the networks as they are first defined."""
    pool = "<network><forward mode='bridge'><interface dev='net-a'/><interface dev='net-b'/></forward></network>"
    return [
        {"name": LAB, "xml": NETWORK.format(more="", hosts=HOST_1), "state": "active", "autostart": True},
        {"name": SIDE, "xml": "<network/>", "state": "active"},
        {"name": POOL, "xml": pool, "state": "active"},
    ]


def edited_networks() -> list[dict[str, t.Any]]:
    """Return changes of hosts, DNS, a port group and the pool, which apply at once, and of the domain name."""
    more = "<domain name='lab.example'/>" + DNS + VLAN
    hosts = HOST_1.replace(".11", ".21") + HOST_2
    pool = "<network><forward mode='bridge'><interface dev='net-b'/><interface dev='net-c'/></forward></network>"
    return [
        {"name": LAB, "xml": NETWORK.format(more=more, hosts=hosts), "state": "active"},
        {"name": POOL, "xml": pool, "state": "active"},
    ]


def network_task(name: str, wanted: list[dict[str, t.Any]], check: bool = False, **options: t.Any) -> dict[str, t.Any]:
    """Return a task whose failure does not end the play."""
    args = {"networks": wanted, **options}
    return module_task(name, "libvirt_network", args, check_mode=check, ignore_errors=True)


@pytest.fixture(scope="module")
def result(lab: LabHosts) -> t.Iterator[PlaybookResult]:
    """The result of a playbook that defines, changes, uses, restarts and removes three networks."""
    files = f"cat /var/lib/libvirt/dnsmasq/{LAB}.hostsfile /var/lib/libvirt/dnsmasq/{LAB}.addnhosts"
    guest = {"cmd": files + " && virsh create /dev/stdin", "stdin": DOMAIN}
    absent = [{"name": name, "state": "absent"} for name in (SIDE, LAB, POOL)]
    tasks: list[dict[str, t.Any]] = [
        network_task("Done", networks()),
        network_task("Edit planned", edited_networks(), check=True),
        network_task("Edit done", edited_networks()),
        network_task("Edit again", edited_networks()),
        {"name": "Served", "ansible.builtin.shell": guest},
        network_task("Refused", absent),
        {"name": "Info", "tapvirt.host.libvirt_network_info": {"names": NAMES}},
        network_task("Restart", edited_networks(), apply="restart_if_needed", disconnect=[GUEST]),
        network_task("Absent planned", absent, check=True, disconnect=[GUEST]),
        network_task("Absent", absent, disconnect=[GUEST]),
    ]
    try:
        yield lab.run_tasks(HOST, tasks)
    finally:
        clean = (
            f"virsh destroy {GUEST}; for n in {' '.join(NAMES)}; do virsh net-destroy $n; virsh net-undefine $n; done"
        )
        lab.run(HOST, "sh", "-c", clean)
        left = lab.run(HOST, "virsh", "net-list", "--all", "--name").stdout
        assert "network-test" not in left


def plan_of(result: PlaybookResult, name: str) -> list[tuple[str, str]]:
    """Return (what, how) of each row of the plan of a task."""
    done = result.of(HOST, name)
    assert not done.get("failed"), done
    return [(row["what"], row["how"]) for row in done["plan"]]


def pending_of(result: PlaybookResult, name: str) -> list[tuple[str, str]]:
    """Return (what, reason) of each pending change in the result of a task."""
    return [(row["what"], row["reason"]) for network in result.of(HOST, name)["networks"] for row in network["pending"]]


def test_changed_xml_is_stored_and_applied_to_the_running_network(result: PlaybookResult) -> None:
    """The files of the running DHCP and DNS server have the changes."""
    assert [row["state"] for row in result.of(HOST, "Done")["networks"]] == ["active"] * 3
    assert result.of(HOST, "Edit planned")["plan"] == result.of(HOST, "Edit done")["plan"]
    label = f"ip[{ADDRESS}]/dhcp/host[52:54:00:00:51:0{{0}}]"
    assert plan_of(result, "Edit done") == [
        (f"{LAB} {label.format(1)}@ip", "networkDefineXML"),
        (f"{LAB} {label.format(2)}", "networkDefineXML"),
        (f"{LAB} dns/host[198.51.100.77]", "networkDefineXML"),
        (f"{LAB} domain", "networkDefineXML"),
        (f"{LAB} portgroup[vlan]", "networkDefineXML"),
        (f"{LAB} running {label.format(1)}", "networkUpdate modify"),
        (f"{LAB} running dns/host[198.51.100.77]", "networkUpdate add"),
        (f"{LAB} running {label.format(2)}", "networkUpdate add"),
        (f"{LAB} running portgroup[vlan]", "networkUpdate add"),
        (f"{POOL} forward/interface[net-a]", "networkDefineXML"),
        (f"{POOL} forward/interface[net-c]", "networkDefineXML"),
        (f"{POOL} running forward/interface[net-c]", "networkUpdate add"),
        (f"{POOL} running forward/interface[net-a]", "networkUpdate delete"),
    ]
    served = result.of(HOST, "Served")["stdout"].split()
    assert "52:54:00:00:51:01,198.51.100.21,one" in served
    assert "52:54:00:00:51:02,198.51.100.12,two" in served
    assert "lab.example" in served


def test_second_run_plans_nothing_and_lists_pending_changes(result: PlaybookResult) -> None:
    assert plan_of(result, "Edit again") == []
    for name in ("Edit planned", "Edit done", "Edit again", "Info"):
        assert pending_of(result, name) == [("domain", "restart")]


def test_network_in_use_blocks_the_removal_of_all(result: PlaybookResult) -> None:
    refused = result.of(HOST, "Refused")
    assert f"{LAB}: running domains have an interface on it" in refused["msg"]
    assert GUEST in refused["msg"]
    assert refused["changed"] is False
    rows = result.of(HOST, "Info")["networks"]
    assert [(row["name"], row["active"], row["interfaces"]) for row in rows] == [
        (LAB, True, 1),
        (SIDE, True, 0),
        (POOL, True, 0),
    ]


def test_info_reports_bridges_addresses_and_leases(result: PlaybookResult) -> None:
    lab, side, pool = result.of(HOST, "Info")["networks"]
    assert (lab["forward_mode"], side["forward_mode"], pool["forward_mode"]) == ("route", None, "bridge")
    assert lab["bridge"].startswith("virbr")
    assert (lab["autostart"], side["autostart"], pool["bridge"]) == (True, False, None)
    assert lab["ips"] == [
        {
            "address": ADDRESS,
            "prefix": 24,
            "family": "ipv4",
            "dhcp_ranges": [{"start": "198.51.100.100", "end": "198.51.100.200"}],
            "dhcp_hosts": 2,
        }
    ]
    assert side["leases"] == []


def test_restart_with_a_named_guest_applies_pending_changes(result: PlaybookResult) -> None:
    assert plan_of(result, "Restart") == [(f"{LAB} restart", "destroy, create")]
    assert pending_of(result, "Restart") == []


def test_removal_is_done_as_check_mode_planned_it(result: PlaybookResult) -> None:
    planned, done = result.of(HOST, "Absent planned"), result.of(HOST, "Absent")
    assert planned["plan"] == done["plan"]
    assert [row["how"] for row in done["plan"]] == ["destroy", "undefine"] * 3
    assert [row["state"] for row in done["networks"]] == ["absent"] * 3
