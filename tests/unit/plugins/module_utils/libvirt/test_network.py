# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks as data: what is a difference, what can be changed while one runs, what stays when the XML does not say."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError, error_row
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.item_run import Item
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.live import live_edits
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.plan import (
    NetworkPlan,
    Observed,
    Options,
    Wanted,
    pending_of,
    plan_network,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.xml import differences, with_identity

UUID = "3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11"
NAT_PORTS = "<port start='1024' end='65535'/>"
HOST = "<host mac='52:54:00:00:00:{0}' name='{1}' ip='10.0.0.{2}'/>"


def network(
    dns: str = "",
    dhcp: str = "",
    more: str = "",
    forward: str = "<forward mode='nat'/>",
    ip: str = "address='10.0.0.1' prefix='24'",
) -> ET.Element:
    return ET.fromstring(
        f"<network><name>n</name><uuid>{UUID}</uuid>{forward}<bridge name='virbr7'/><dns>{dns}</dns>"
        f"<ip {ip}><dhcp>{dhcp}</dhcp></ip>{more}</network>"
    )


def dhcp_host(number: int, name: str, last: int) -> str:
    return HOST.format(f"{number:02x}", name, last)


def edits(target: ET.Element, running: ET.Element) -> list[tuple[str, str, int, str]]:
    return [(edit.command, edit.section, edit.parent, edit.path) for edit in live_edits(target, running)[0]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"ip": "address='10.0.0.1' netmask='255.255.255.0'"}, {"ip": "family='ipv4' address='10.0.0.1' prefix='24'"}),
        ({"dhcp": dhcp_host(1, "a", 5) + dhcp_host(2, "b", 6)}, {"dhcp": dhcp_host(2, "b", 6) + dhcp_host(1, "a", 5)}),
        ({"dhcp": "<host mac='AA:BB:CC:00:00:01'/>"}, {"dhcp": "<host mac='aa:bb:cc:00:00:01'/>"}),
        ({"forward": "<forward/>"}, {"forward": f"<forward mode='nat'><nat>{NAT_PORTS}</nat></forward>"}),
        (
            {"forward": "<forward mode='vepa' dev='a'><interface dev='a'/><interface dev='b'/></forward>"},
            {"forward": "<forward mode='vepa'><interface dev='b' connections='2'/><interface dev='a'/></forward>"},
        ),
        (
            {"forward": "<forward mode='hostdev'><pf dev='e'/></forward>"},
            {"forward": "<forward mode='hostdev' dev='e0'><pf dev='e'/><interface dev='e0'/></forward>"},
        ),
        (
            {"more": "<portgroup name='a'/><portgroup name='b'/>"},
            {"more": "<portgroup name='b'/><portgroup name='a'/>"},
        ),
    ],
)
def test_what_means_the_same_is_no_difference(one: dict[str, str], other: dict[str, str]) -> None:
    assert differences(network(**one), network(**other)) == []
    assert pending_of(network(**one), network(**other)) == []


def test_a_part_that_one_side_lacks_is_reported_entry_by_entry() -> None:
    bare = ET.fromstring("<network><name>n</name><ip address='10.0.0.1' prefix='24'/></network>")
    full = ET.fromstring(
        "<network><name>n</name><dns><txt name='t' value='v'/></dns>"
        "<ip address='10.0.0.1' prefix='24'><dhcp><range start='10.0.0.5' end='10.0.0.9'/></dhcp></ip></network>"
    )
    places = ["dns/txt[t]", "ip[10.0.0.1]/dhcp/range[10.0.0.5:10.0.0.9]"]
    assert sorted(row.path for row in differences(bare, full)) == places
    assert [(row.path, row.after) for row in differences(full, bare)] == [(place, None) for place in places]


def test_one_entry_against_two_is_one_more_entry() -> None:
    rows = differences(network(dhcp=dhcp_host(1, "a", 5)), network(dhcp=dhcp_host(1, "a", 5) + dhcp_host(2, "b", 6)))
    assert [row.path for row in rows] == ["ip[10.0.0.1]/dhcp/host[52:54:00:00:00:02]"]
    second = "<ip family='ipv6' address='fd00::1' prefix='64'/>"
    assert [row.path for row in differences(network(), network(more=second))] == ["ip[ipv6:fd00::1]"]


SRV = "<srv service='s' protocol='tcp' target='t' port='{0}'/>"
POOL = "<forward mode='bridge'>{0}</forward>"


@pytest.mark.parametrize(
    ("running", "target", "expected"),
    [
        ({}, {"dhcp": dhcp_host(1, "a", 5)}, [("add", "IP_DHCP_HOST", 0, "ip[10.0.0.1]/dhcp/host[52:54:00:00:00:01]")]),
        (
            {"dhcp": dhcp_host(1, "a", 5)},
            {"dhcp": dhcp_host(1, "b", 6)},
            [("modify", "IP_DHCP_HOST", 0, "ip[10.0.0.1]/dhcp/host[52:54:00:00:00:01]")],
        ),
        (
            {"dhcp": "<range start='10.0.0.5' end='10.0.0.9'/>"},
            {"dhcp": "<range start='10.0.0.5' end='10.0.0.8'/>"},
            [
                # Somebody can be served at any moment.
                ("add", "IP_DHCP_RANGE", 0, "ip[10.0.0.1]/dhcp/range[10.0.0.5:10.0.0.8]"),
                ("delete", "IP_DHCP_RANGE", 0, "ip[10.0.0.1]/dhcp/range[10.0.0.5:10.0.0.9]"),
            ],
        ),
        (
            {"dns": "<host ip='10.0.0.2'><hostname>a</hostname></host>"},
            {"dns": "<host ip='10.0.0.2'><hostname>b</hostname></host><txt name='t' value='v'/>"},
            [
                ("delete", "DNS_HOST", -1, "dns/host[10.0.0.2]"),
                ("add", "DNS_HOST", -1, "dns/host[10.0.0.2]"),
                ("add", "DNS_TXT", -1, "dns/txt[t]"),
            ],
        ),
        (
            {"dns": SRV.format(1)},
            {"dns": SRV.format(2)},
            [("delete", "DNS_SRV", -1, "dns/srv[s:tcp:t]"), ("add", "DNS_SRV", -1, "dns/srv[s:tcp:t]")],
        ),
        (
            {"forward": POOL.format("<interface dev='a'/>")},
            {"forward": POOL.format("<interface dev='b'/>")},
            [
                ("add", "FORWARD_INTERFACE", -1, "forward/interface[b]"),
                ("delete", "FORWARD_INTERFACE", -1, "forward/interface[a]"),
            ],
        ),
        (
            # Libvirt knows one default only: the old one gives it up before the new one takes it.
            {"more": "<portgroup name='new'/><portgroup name='old' default='yes'/>"},
            {"more": "<portgroup name='new' default='yes'/><portgroup name='old'/>"},
            [("modify", "PORTGROUP", -1, "portgroup[old]"), ("modify", "PORTGROUP", -1, "portgroup[new]")],
        ),
    ],
)
def test_what_libvirt_can_change_is_changed_by_the_command_that_it_knows(
    running: dict[str, str], target: dict[str, str], expected: list[tuple[str, str, int, str]]
) -> None:
    assert edits(network(**target), network(**running)) == expected
    assert differences(live_edits(network(**target), network(**running))[1], network(**target)) == []
    assert edits(network(**target), network(**target)) == []


def test_hosts_that_swap_their_names_are_taken_out_first() -> None:
    """To modify one, libvirt takes the first of the same MAC address or name: here it would be the other one."""
    running = network(dhcp=dhcp_host(1, "a", 5) + dhcp_host(2, "b", 6))
    target = network(dhcp=dhcp_host(1, "b", 5) + dhcp_host(2, "a", 6))
    assert [row[0] for row in edits(target, running)] == ["delete", "delete", "add", "add"]


def test_a_dns_host_is_taken_out_by_its_address_alone() -> None:
    """By its names libvirt would find the other host of the same name, too, and refuse."""
    twice = "<host ip='10.0.0.2'><hostname>a</hostname></host><host ip='10.0.0.3'><hostname>a</hostname></host>"
    (edit,) = live_edits(network(dns="<host ip='10.0.0.3'><hostname>a</hostname></host>"), network(dns=twice))[0]
    assert edit.xml == '<host ip="10.0.0.2" />'
    assert "<hostname>a</hostname>" in str(edit.before)


def test_the_right_address_is_updated_whatever_their_order_is() -> None:
    other = "<ip address='10.1.0.1' prefix='24'>{0}</ip>"
    running = network(more=other.format(""))
    target = network(more=other.format("<dhcp>" + dhcp_host(1, "a", 5).replace("10.0", "10.1") + "</dhcp>"))
    assert [row[2] for row in edits(target, running)] == [1]
    addresses = target.findall("ip")
    for element in addresses:
        target.remove(element)
    target.extend(reversed(addresses))
    assert [row[2] for row in edits(target, running)] == [1]


@pytest.mark.parametrize(
    ("running", "target", "place"),
    [
        ({}, {"more": "<domain name='d'/>"}, "domain"),
        ({}, {"more": "<ip address='10.2.0.1' prefix='24'/>"}, "ip[10.2.0.1]"),
        ({}, {"ip": "address='10.0.0.1' prefix='25'"}, "ip[10.0.0.1]@prefix"),
        ({}, {"forward": "<forward mode='route'/>"}, "forward@mode"),
        # The way out of NAT: taking it out before the other one is in would open all.
        (
            {"forward": "<forward mode='nat'><interface dev='a'/></forward>"},
            {"forward": "<forward mode='nat'><interface dev='b'/></forward>"},
            "forward/interface[a]",
        ),
        # A guest uses it.
        (
            {"forward": POOL.format("<interface dev='a' connections='1'/>")},
            {"forward": POOL.format("<interface dev='b'/>")},
            "forward/interface[a]",
        ),
        # Nothing tells these two apart for libvirt.
        ({"dns": SRV.format(1)}, {"dns": SRV.format(1) + SRV.format(2)}, "dns/srv[1]"),
    ],
)
def test_what_libvirt_cannot_change_waits_for_a_restart(
    running: dict[str, str], target: dict[str, str], place: str
) -> None:
    assert edits(network(**target), network(**running)) == []
    rows = pending_of(network(**target), network(**running))
    assert {row["reason"] for row in rows} == {"restart"}
    assert place in [row["what"] for row in rows]


def test_identity_stays_where_the_xml_does_not_say_it() -> None:
    existing = ET.fromstring(
        f"<network><name>n</name><uuid>{UUID}</uuid><forward mode='nat'/><bridge name='virbr7' stp='on'/>"
        "<mac address='52:54:00:01:02:03'/></network>"
    )

    def kept(xml: str) -> tuple[str | None, str | None, str | None]:
        result = with_identity(ET.fromstring(xml), existing)
        bridge, mac = result.find("bridge"), result.find("mac")
        return (
            result.findtext("uuid"),
            None if bridge is None else bridge.get("name"),
            None if mac is None else mac.get("address"),
        )

    mac = "52:54:00:01:02:03"
    assert kept("<network/>") == (UUID, "virbr7", mac)
    assert kept("<network><bridge stp='off'/></network>") == (UUID, "virbr7", mac)
    assert kept("<network><bridge name='virbr%d'/></network>") == (UUID, "virbr7", mac)
    assert kept("<network><bridge name='lab%d'/></network>") == (UUID, "lab%d", mac)
    assert kept("<network><bridge name='lab0'/><mac address='52:54:00:0a:0b:0c'/></network>") == (
        UUID,
        "lab0",
        "52:54:00:0a:0b:0c",
    )
    # A bridge of the host's own is not the one that libvirt made.
    assert kept("<network><forward mode='bridge'/><bridge name='br0'/></network>") == (UUID, "br0", None)
    assert kept("<network><forward mode='bridge'><interface dev='e'/></forward></network>") == (UUID, None, None)


def active(stored: ET.Element, running: ET.Element, attached: tuple[str, ...] = ()) -> Observed:
    return Observed(UUID, True, True, False, stored, running, attached=attached)


def planned(wanted: Wanted, found: Observed | None, target: ET.Element | None, apply: str = "both") -> NetworkPlan:
    return plan_network(wanted, found, target, target, Options(apply))


def test_apply_reports_what_is_stored_what_runs_and_what_waits() -> None:
    old, new = network(), network(dhcp=dhcp_host(1, "a", 5), more="<domain name='d'/>")
    wanted = Wanted("n", "active", new)
    label = "ip[10.0.0.1]/dhcp/host[52:54:00:00:00:01]"

    def plan_with(apply: str) -> tuple[list[str], list[tuple[str, str]]]:
        plan = planned(wanted, active(old, old), new, apply)
        return [change.how for change in plan.changes], [(row["what"], row["reason"]) for row in plan.pending]

    stored = ["networkDefineXML", "networkDefineXML"]
    assert plan_with("both") == ([*stored, "networkUpdate add"], [("domain", "restart")])
    assert plan_with("config") == (stored, [(label, "apply"), ("domain", "restart")])
    assert plan_with("live") == (["networkUpdate add"], [("domain", "apply"), (label, "apply")])
    assert plan_with("restart_if_needed") == ([*stored, "destroy, create"], [])
    # What is stored already waits for a restart, whatever may be applied now.
    kept = planned(wanted, active(new, old), new, "live")
    assert [(row["what"], row["reason"]) for row in kept.pending] == [("domain", "restart")]
    # And on every later run, by what is there alone.
    again = planned(Wanted("n", "active"), active(new, old), None)
    assert [change.how for change in again.changes] == ["networkUpdate add"]
    assert [row["what"] for row in again.pending] == ["domain"]


@pytest.mark.parametrize("state", ["inactive", "absent"])
@pytest.mark.parametrize("apply", ["both", "restart_if_needed"])
def test_a_network_in_use_is_not_stopped_unless_its_domains_are_named(state: str, apply: str) -> None:
    found = active(network(), network(), attached=("web1", "web2"))
    for named in ((), ("web1",)):
        with pytest.raises(TapvirtError, match=r"web2\. Name the domains in disconnect"):
            plan_network(Wanted("n", state), found, None, None, Options(apply, named))
    assert plan_network(Wanted("n", state), found, None, None, Options(apply, ("web2", "web1"))).steps[0] == "destroy"


def test_a_network_in_use_is_not_started_again() -> None:
    new = network(more="<domain name='d'/>")
    found = active(network(), network(), attached=("web1",))
    with pytest.raises(TapvirtError, match="web1") as caught:
        planned(Wanted("n", "active", new), found, new, "restart_if_needed")
    item: Item[Wanted, Observed, NetworkPlan] = Item(Wanted("n", "active", new), NetworkPlan(), "networks[1]")
    item.fail(caught.value)
    error = error_row(item.error)
    assert error is not None
    assert (error["option"], error["value"]) == ("apply", "restart_if_needed")
    assert "network 'n'" in error["problem"]
    assert planned(Wanted("n", "active", network()), found, network(), "restart_if_needed").changes == []
