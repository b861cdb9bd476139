# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_network on a lab host: a real daemon with its DHCP and DNS server, and a guest that must not be cut off."""

from __future__ import annotations

import typing as t

import pytest
import yaml

if t.TYPE_CHECKING:
    from .conftest import LabHosts, PlaybookResult

# The unit tests have libvirt's test driver only, with no DHCP server and nothing stored beside what runs; here it is
# the daemon of a host, and takes minutes.
pytestmark = pytest.mark.soak
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


def first() -> list[dict[str, t.Any]]:
    pool = "<network><forward mode='bridge'><interface dev='net-a'/><interface dev='net-b'/></forward></network>"
    return [
        {"name": LAB, "xml": NETWORK.format(more="", hosts=HOST_1), "state": "active", "autostart": True},
        {"name": SIDE, "xml": "<network/>", "state": "active"},
        {"name": POOL, "xml": pool, "state": "active"},
    ]


def edited() -> list[dict[str, t.Any]]:
    """Hosts, DNS, a port group and the pool can change while the networks run; the domain's name cannot."""
    more = "<domain name='lab.example'/>" + DNS + VLAN
    hosts = HOST_1.replace(".11", ".21") + HOST_2
    pool = "<network><forward mode='bridge'><interface dev='net-b'/><interface dev='net-c'/></forward></network>"
    return [
        {"name": LAB, "xml": NETWORK.format(more=more, hosts=hosts), "state": "active"},
        {"name": POOL, "xml": pool, "state": "active"},
    ]


def task(name: str, networks: list[dict[str, t.Any]], check: bool = False, **options: t.Any) -> dict[str, t.Any]:
    """Return a task that goes on where it fails, to be looked at afterwards."""
    module = {"networks": networks, **options}
    return {"name": name, "tapvirt.host.libvirt_network": module, "check_mode": check, "ignore_errors": True}


@pytest.fixture(scope="module")
def run(lab: LabHosts) -> t.Iterator[PlaybookResult]:
    """Three networks as they come, change, are in use, are started anew, and go."""
    files = f"cat /var/lib/libvirt/dnsmasq/{LAB}.hostsfile /var/lib/libvirt/dnsmasq/{LAB}.addnhosts"
    guest = {"cmd": files + " && virsh create /dev/stdin", "stdin": DOMAIN}
    absent = [{"name": name, "state": "absent"} for name in (SIDE, LAB, POOL)]
    tasks: list[dict[str, t.Any]] = [
        task("Done", first()),
        task("Edit planned", edited(), check=True),
        task("Edit done", edited()),
        task("Edit again", edited()),
        {"name": "Served", "ansible.builtin.shell": guest},
        task("Refused", absent),
        {"name": "Info", "tapvirt.host.libvirt_network_info": {"names": NAMES}},
        task("Restart", edited(), apply="restart_if_needed", disconnect=[GUEST]),
        task("Absent planned", absent, check=True, disconnect=[GUEST]),
        task("Absent", absent, disconnect=[GUEST]),
    ]
    try:
        yield lab.playbook(yaml.safe_dump([{"hosts": HOST, "gather_facts": False, "tasks": tasks}]))
    finally:
        clean = (
            f"virsh destroy {GUEST}; for n in {' '.join(NAMES)}; do virsh net-destroy $n; virsh net-undefine $n; done"
        )
        lab.run(HOST, "sh", "-c", clean)
        left = lab.run(HOST, "virsh", "net-list", "--all", "--name").stdout
        assert "network-test" not in left


def plan(run: PlaybookResult, name: str) -> list[tuple[str, str]]:
    result = run.of(HOST, name)
    assert not result.get("failed"), result
    return [(row["what"], row["how"]) for row in result["plan"]]


def pending(run: PlaybookResult, name: str) -> list[tuple[str, str]]:
    return [(row["what"], row["reason"]) for network in run.of(HOST, name)["networks"] for row in network["pending"]]


def test_virt_net_define_with_changed_xml_says_unchanged_and_applies_nothing(run: PlaybookResult) -> None:
    """What is served is read back from the files of the DHCP and DNS server that runs."""
    assert [row["state"] for row in run.of(HOST, "Done")["networks"]] == ["active"] * 3
    assert run.of(HOST, "Edit planned")["plan"] == run.of(HOST, "Edit done")["plan"]
    label = f"ip[{ADDRESS}]/dhcp/host[52:54:00:00:51:0{{0}}]"
    assert plan(run, "Edit done") == [
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
    served = run.of(HOST, "Served")["stdout"].split()
    assert "52:54:00:00:51:01,198.51.100.21,one" in served
    assert "52:54:00:00:51:02,198.51.100.12,two" in served
    assert "lab.example" in served


def test_a_second_run_plans_nothing_and_what_waits_is_told_each_time(run: PlaybookResult) -> None:
    assert plan(run, "Edit again") == []
    for name in ("Edit planned", "Edit done", "Edit again", "Info"):
        assert pending(run, name) == [("domain", "restart")]


def test_a_network_in_use_is_not_stopped_and_the_others_are_not_either(run: PlaybookResult) -> None:
    refused = run.of(HOST, "Refused")
    assert f"{LAB}: running domains have an interface on it" in refused["msg"]
    assert GUEST in refused["msg"]
    assert refused["changed"] is False
    rows = run.of(HOST, "Info")["networks"]
    assert [(row["name"], row["active"], row["interfaces"]) for row in rows] == [
        (LAB, True, 1),
        (SIDE, True, 0),
        (POOL, True, 0),
    ]


def test_info_tells_what_libvirt_chose_and_serves(run: PlaybookResult) -> None:
    lab, side, pool = run.of(HOST, "Info")["networks"]
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


def test_a_restart_in_spite_of_a_guest_that_is_named_brings_in_what_waited(run: PlaybookResult) -> None:
    assert plan(run, "Restart") == [(f"{LAB} restart", "destroy, create")]
    assert pending(run, "Restart") == []


def test_virt_net_check_mode_of_undefine_really_deletes_the_network(run: PlaybookResult) -> None:
    planned, done = run.of(HOST, "Absent planned"), run.of(HOST, "Absent")
    assert planned["plan"] == done["plan"]
    assert [row["how"] for row in done["plan"]] == ["destroy", "undefine"] * 3
    assert [row["state"] for row in done["networks"]] == ["absent"] * 3
