# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_network and libvirt_network_info on libvirt's test driver, whose networks live as long as a process does."""

from __future__ import annotations

import pathlib
import typing as t
import xml.etree.ElementTree as ET

import libvirt
import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.canonical import canonical_networks
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.info import network_rows
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.plan import Options
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.run import NetworkRun, read_wanted
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.xml import (
    differences,
    summary,
    with_identity,
)
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.interference import interfering_run
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.node import node_uri

URI = "test:///default"
XML = """
<network>
  <forward/>{more}
  <bridge name='virbr9'/>
  <ip address='10.0.0.1' netmask='255.255.255.0'>
    <dhcp><range start='10.0.0.100' end='10.0.0.200'/>{hosts}</dhcp>
  </ip>
</network>
"""
HOST = "<host mac='52:54:00:00:00:0{0}' name='h{0}' ip='10.0.0.{0}'/>"
Run = t.Callable[..., dict[str, t.Any]]


def network_xml(hosts: str = "", more: str = "") -> str:
    return XML.format(hosts=hosts, more=more)


def plan_rows(result: dict[str, t.Any]) -> list[tuple[str, t.Any, t.Any, str]]:
    return [(row["what"], row["before"], row["after"], row["how"]) for row in result["plan"]]


class Host:
    """A host of the test driver that stays while the test looks, and networks converged on it."""

    def __init__(self) -> None:
        self.connection: t.Any = libvirt.open(URI)

    def converge(
        self, *networks: dict[str, t.Any], check: bool = False, apply: str = "both", disconnect: tuple[str, ...] = ()
    ) -> dict[str, t.Any]:
        """Converge as the module does; what fails is a result, too."""
        wanted = read_wanted([{"state": "present", **network} for network in networks])
        try:
            return NetworkRun(URI, 10, wanted, Options(apply, disconnect)).converge(check, False)
        except TapvirtError as error:
            return {"error": error.row(), **error.fields, "msg": error.message, "failed": True}

    def twice(self, *networks: dict[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
        """Converge in check mode, for real, and once more; all three have to agree."""
        before = self.everything()
        planned = self.converge(*networks, check=True, **options)
        assert self.everything() == before, "check mode changes nothing"
        done = self.converge(*networks, **options)
        assert not done.get("failed"), done["msg"]
        assert planned["plan"] == done["plan"]
        assert [row["state"] for row in planned["networks"]] == [row["state"] for row in done["networks"]]
        again = self.converge(*networks, **options)
        assert (again["changed"], again["plan"]) == (False, [])
        return done

    def everything(self) -> list[tuple[str, int, int, int]]:
        """Return each network's XML and whether it is active, starts with the host, and is defined."""
        networks = self.connection.listAllNetworks()
        found = [(one.XMLDesc(0), one.isActive(), one.autostart(), one.isPersistent()) for one in networks]
        return sorted(found)


@pytest.fixture
def host() -> t.Iterator[Host]:
    host = Host()
    assert [network.name() for network in host.connection.listAllNetworks()] == ["default"]
    yield host
    for network in host.connection.listAllNetworks():
        if network.name() != "default":
            if network.isActive():
                network.destroy()
            network.undefine()
    host.connection.close()


def test_networks_come_run_change_and_go(host: Host) -> None:
    lab = {"name": "lab", "xml": network_xml(), "state": "active", "autostart": True}
    off = {"name": "off", "xml": "<network/>"}
    done = host.twice(lab, off)
    assert plan_rows(done)[0] == (
        "lab definition",
        None,
        {"forward": "nat", "bridge": "virbr9", "ips": ["10.0.0.1/24"], "dhcp_hosts": 0},
        "networkDefineXML",
    )
    assert [row["state"] for row in done["networks"]] == ["active", "inactive"]
    assert [row["how"] for row in host.twice({**lab, "state": "inactive", "autostart": False})["plan"]] == [
        "setAutostart",
        "destroy",
    ]
    gone = host.twice({"name": "lab", "state": "absent"}, {"name": "off", "state": "absent"})
    assert [row["state"] for row in gone["networks"]] == ["absent", "absent"]


def test_virt_net_define_with_changed_xml_reports_unchanged_and_applies_nothing(host: Host) -> None:
    host.twice({"name": "lab", "xml": network_xml(HOST.format(1) + HOST.format(2)), "state": "active"})
    uuid = host.connection.networkLookupByName("lab").UUIDString()
    label = "ip[10.0.0.1]/dhcp/host[52:54:00:00:00:0{0}]"
    changed = HOST.format(2).replace("10.0.0.2", "10.0.0.22") + HOST.format(3)
    done = host.twice({"name": "lab", "xml": network_xml(changed)})
    assert done["changed"]
    assert [(row["what"], row["how"]) for row in done["plan"]] == [
        ("lab " + label.format(1), "networkDefineXML"),
        ("lab " + label.format(2) + "@ip", "networkDefineXML"),
        ("lab " + label.format(3), "networkDefineXML"),
        ("lab running " + label.format(1), "networkUpdate delete"),
        ("lab running " + label.format(2), "networkUpdate modify"),
        ("lab running " + label.format(3), "networkUpdate add"),
    ]
    network = host.connection.networkLookupByName("lab")
    assert network.UUIDString() == uuid
    assert "10.0.0.22" in network.XMLDesc(0)
    assert "00:00:01" not in network.XMLDesc(0)


def test_virt_net_check_mode_of_undefine_really_deletes_the_network(host: Host) -> None:
    host.converge({"name": "lab", "xml": network_xml(), "state": "active"})
    planned = host.converge({"name": "lab", "state": "absent"}, check=True)
    assert planned["changed"]
    assert planned["networks"][0]["state"] == "absent"
    assert host.connection.networkLookupByName("lab").isActive()
    assert host.twice({"name": "lab", "state": "absent"})["plan"] == planned["plan"]


def test_absent_and_inactive_refuse_to_cut_guests_off(host: Host) -> None:
    """The test driver's own domain has an interface on its own network."""
    for state in ("absent", "inactive"):
        for check in (True, False):
            refused = host.converge(
                {"name": "lab", "xml": "<network/>"}, {"name": "default", "state": state}, check=check
            )
            assert refused["msg"] == (
                f"Invalid value '{state}' for networks[1].state: These running domains have an interface on network "
                "'default' and would lose their link: test. Name the domains in disconnect to allow that."
            )
            assert refused["changed"] is False
    assert [network.name() for network in host.connection.listAllNetworks()] == ["default"]
    done = host.converge({"name": "default", "state": "inactive"}, disconnect=("test",))
    assert done["networks"][0]["state"] == "inactive"
    host.converge({"name": "default", "state": "active"})


def test_a_network_that_is_not_defined_is_defined_as_it_runs_or_stopped(host: Host) -> None:
    transient = "<network><name>t</name><ip address='10.7.0.1' prefix='24'/></network>"
    host.connection.networkCreateXML(transient)
    done = host.twice({"name": "t", "autostart": True})
    assert plan_rows(done)[0] == ("t persistent", False, True, "networkDefineXML")
    host.twice({"name": "t", "state": "absent"})
    host.connection.networkCreateXML(transient)
    assert [row["how"] for row in host.twice({"name": "t", "state": "absent"})["plan"]] == ["destroy"]


def test_this_driver_does_not_show_what_is_stored_of_a_network_that_runs(host: Host) -> None:
    host.converge({"name": "lab", "xml": network_xml(), "state": "active"})
    other = {"name": "lab", "xml": network_xml(more="<domain name='d'/>")}
    for network, apply in ((other, "both"), ({**other, "state": "inactive"}, "both"), (other, "config")):
        refused = host.converge(network, apply=apply)
        assert refused["msg"] == (
            "This libvirt driver does not show the stored definition of an active network, so a change of domain of "
            "network 'lab' could not be read back. Nothing was changed. Stop the network to change it."
        )
    host.twice({"name": "lab", "state": "inactive"})
    assert [row[:3] for row in plan_rows(host.twice(other))] == [("lab domain", None, '<domain name="d" />')]


def test_the_name_uuid_or_bridge_of_another_network_is_refused(host: Host) -> None:
    default = host.connection.networkLookupByName("default")
    fine = {"name": "fine", "xml": "<network/>"}
    for text, message in (
        (
            f"<network><uuid>{default.UUIDString()}</uuid></network>",
            "is that of network 'default'. A new name does not rename a network.",
        ),
        (
            "<network><bridge name='virbr0'/></network>",
            "Invalid value for networks[1].xml: The bridge virbr0 is that of network 'default'.",
        ),
        (
            "<network><forward mode='bridg'/></network>",
            "Invalid value for networks[1].xml, line 1: libvirt's schema refuses <forward>: ",
        ),
        (None, "'lab' for networks[1].name: No network has this name, and the task has no xml to define one."),
    ):
        refused = host.converge(fine, {"name": "lab", "xml": text})
        assert message in refused["msg"]
        assert "\n" not in refused["msg"]
        assert [bool(row["error"]) for row in refused["networks"]] == [False, True]
    wrong = host.converge(
        {"name": "default", "xml": "<network><uuid>3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11</uuid></network>"}
    )
    assert (
        "xml: The UUID in the XML is 3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11, but that of network 'default'"
        in wrong["msg"]
    )
    misspelt = host.converge({"name": "defualt", "state": "active"})
    assert misspelt["error"]["candidates"] == ["default"]
    assert [network.name() for network in host.connection.listAllNetworks()] == ["default"]


def test_a_uuid_and_a_bridge_are_free_once_their_network_goes_and_for_one_only(host: Host) -> None:
    old = host.converge({"name": "lab", "xml": network_xml(), "state": "active"})["networks"][0]
    gone = {"name": "lab", "state": "absent"}
    for more in (f"<uuid>{old['uuid']}</uuid>", "<bridge name='virbr9'/>"):
        one, two = ({"name": name, "xml": f"<network>{more}</network>"} for name in ("one", "two"))
        refused = host.converge(one, two, gone)
        assert [bool(row["error"]) for row in refused["networks"]] == [False, True, False]
        assert "network 'one'" in refused["msg"]
    done = host.twice({"name": "one", "xml": network_xml(more=f"<uuid>{old['uuid']}</uuid>"), "state": "active"}, gone)
    assert [(row["uuid"], row["state"]) for row in done["networks"]] == [(old["uuid"], "active"), (None, "absent")]


def remove_dns_host(connection: t.Any) -> None:
    network = connection.networkLookupByName("lab")
    command, section = libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, libvirt.VIR_NETWORK_SECTION_DNS_HOST
    network.update(command, section, -1, "<host ip='10.0.0.9'/>", libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE)


def test_a_network_that_fails_does_not_hide_the_others(host: Host) -> None:
    more = "<dns><host ip='10.0.0.9'><hostname>a</hostname></host></dns>"
    host.converge({"name": "lab", "xml": network_xml(more=more), "state": "active"})
    wanted = [
        {"name": "lab", "state": "active", "xml": network_xml()},
        {"name": "b", "state": "present", "xml": "<network/>"},
    ]
    with pytest.raises(
        TapvirtError, match=r"Deleting dns/host\[10\.0\.0\.9\] of the active network lab failed: "
    ) as failure:
        interfering_run(NetworkRun, remove_dns_host)(URI, 10, read_wanted(wanted), Options("both")).converge(
            False, False
        )
    assert failure.value.fields["changed"] is True
    assert [(row["name"], bool(row["error"]), row["state"]) for row in failure.value.fields["networks"]] == [
        ("lab", True, "active"),
        ("b", False, "inactive"),
    ]


def test_info_rows_are_typed_and_bounded(host: Host) -> None:
    host.converge({"name": "lab", "xml": network_xml(HOST.format(1), "<domain name='d'/>"), "autostart": True})
    (row,), truncated = network_rows(host.connection, ["la*"], 10)
    assert truncated is False
    assert {key: row[key] for key in row if key != "uuid"} == {
        "name": "lab",
        "active": False,
        "persistent": True,
        "autostart": True,
        "bridge": "virbr9",
        "forward_mode": "nat",
        "domain": "d",
        "ips": [
            {
                "address": "10.0.0.1",
                "prefix": 24,
                "family": "ipv4",
                "dhcp_ranges": [{"start": "10.0.0.100", "end": "10.0.0.200"}],
                "dhcp_hosts": 1,
            }
        ],
        "interfaces": 0,
        "pending": [],
        "leases": None,
        "leases_truncated": False,
    }
    few, truncated = network_rows(host.connection, [], 1)
    assert ([row["name"] for row in few], truncated) == (["default"], True)


def test_libvirt_itself_reads_a_definition_and_reports_what_is_wrong() -> None:
    options = "<d:options xmlns:d='http://libvirt.org/schemas/network/dnsmasq/1.0'><d:option value='x'/></d:options>"
    answers = canonical_networks(
        {
            "good": ET.fromstring(
                "<network><name>good</name><forward/><ip address='FD00:0::1' family='ipv6' prefix='64'/>"
                f"{options}</network>"
            ),
            "typo": ET.fromstring("<network><name>typo</name><ip adress='10.0.0.1'/></network>"),
            "range": ET.fromstring(
                "<network><name>range</name><ip address='10.0.0.1' prefix='24'>"
                "<dhcp><range start='10.1.0.1' end='10.1.0.9'/></dhcp></ip></network>"
            ),
        }
    )
    good = answers["good"]
    assert isinstance(good, ET.Element)
    assert summary(good) == {"forward": "nat", "bridge": None, "ips": ["fd00::1/64"], "dhcp_hosts": 0}
    # The driver that knows these is not asked; they are kept as they were said.
    assert [element.tag.rpartition("}")[2] for element in good if element.tag.startswith("{")] == ["options"]
    typo, wrong_range = answers["typo"], answers["range"]
    assert isinstance(typo, InvalidInput)
    assert typo.message.startswith("Invalid value for xml: adress is not an attribute of <ip>. Did you mean address")
    assert isinstance(wrong_range, InvalidInput)
    assert wrong_range.message.startswith("Invalid value for xml: libvirt refuses the definition of network 'range': ")
    assert "not entirely within network" in wrong_range.message


def test_the_modules_as_they_are_run(run_module: Run, tmp_path: pathlib.Path) -> None:
    uri = node_uri(tmp_path, "<node><network><name>lab</name><bridge name='virbr9'/></network></node>")
    assert run_module("libvirt_network", {"uri": uri, "name": "lab", "state": "active"})["plan"] == []
    one = run_module("libvirt_network", {"uri": uri, "name": "n", "xml": "<network/>", "autostart": True}, diff=True)
    assert [row["how"] for row in one["plan"]] == ["networkDefineXML", "setAutostart"]
    assert "n autostart: true" in one["diff"]["after"]
    result = run_module("libvirt_network_info", {"uri": uri, "names": ["lav"]})
    assert result["msg"] == "Invalid value 'lav' for names[0]: No network has this name. Did you mean lab?"
    none = run_module("libvirt_network_info", {"uri": "qemu:///embed?root=/tmp/tapvirt-none"})
    assert none["msg"] == (
        "Invalid value 'qemu:///embed?root=/tmp/tapvirt-none' for uri: libvirt's embedded driver has no networks. Use "
        "the URI of a daemon, such as qemu:///system."
    )
    typo = run_module(
        "libvirt_network", {"uri": uri, "name": "n", "xml": "<network>\n<ip adress='10.0.0.1'/></network>"}
    )
    assert typo["msg"].startswith("Invalid value for xml, line 2: adress is not an attribute of <ip>.")
    assert typo["error"] == typo["networks"][0]["error"]
    assert (typo["error"]["option"], typo["error"]["candidates"][0]) == ("xml", "address")
    assert not pathlib.Path("/tmp/tapvirt-none").exists()
    both = run_module("libvirt_network", {"uri": uri, "name": "n", "networks": []})
    assert "mutually exclusive" in both["msg"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("../n", "<network/>", "Invalid value '../n' for networks[1].name: A name cannot be a path: "),
        (
            "n",
            "<network><name>m</name></network>",
            "networks[1].xml: The <name> in the XML is 'm', but the name of the network is 'n'.",
        ),
        (
            "n",
            "<!DOCTYPE network [<!ENTITY a 'b'>]><network/>",
            "networks[1].xml, line 1: <!DOCTYPE network> is not allowed",
        ),
        ("n", "<domain/>", "networks[1].xml: The root element is <domain>, but it has to be <network>."),
        ("n", "<network>", "networks[1].xml, line 1: The XML cannot be parsed: no element found (column 10)."),
    ],
)
def test_bad_input_is_refused_before_a_connection_is_opened(name: str, text: str, message: str) -> None:
    networks = [{"name": "fine", "xml": "<network/>"}, {"name": name, "xml": text}]
    with pytest.raises(InvalidInput) as refused:
        read_wanted([{"state": "present", **network} for network in networks])
    assert message in refused.value.message


FULL = """
<network xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0' trustGuestRxFilters='yes'>
  <name>full</name><uuid>3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11</uuid>
  {forward}
  <bridge name='virbr7' stp='on' delay='2'/><mtu size='9000'/><mac address='52:54:00:00:00:99'/>
  <domain name='lab.example' localOnly='yes'/>
  <dns forwardPlainNames='no'>
    <forwarder addr='192.0.2.53'/><txt name='t' value='v'/><host ip='10.0.0.2'><hostname>a</hostname></host>
    <srv service='s' protocol='tcp' domain='d' target='t' port='1'/>
  </dns>
  <bandwidth><inbound average='1000'/><outbound average='1000'/></bandwidth>
  <ip address='10.0.0.1' prefix='24'>
    <tftp root='/srv/tftp'/>
    <dhcp>
      <range start='10.0.0.100' end='10.0.0.200'/><host mac='52:54:00:00:00:01' ip='10.0.0.5'/><bootp file='b'/>
    </dhcp>
  </ip>
  <ip family='ipv6' address='2001:db8::1' prefix='64'/>
  <route address='192.0.2.0' prefix='24' gateway='10.0.0.9'/>
  <portgroup name='g' default='yes'><bandwidth><inbound average='9'/></bandwidth></portgroup>
  <dnsmasq:options><dnsmasq:option value='log-queries'/></dnsmasq:options>
</network>
"""
NAT = (
    "<forward mode='nat'><nat><address start='192.0.2.1' end='192.0.2.2'/><port start='500' end='999'/></nat></forward>"
)
INTERFACES = """
<network><name>full</name><uuid>3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11</uuid>
<forward mode='passthrough'><interface dev='eth0'/><interface dev='eth1'/></forward>
<vlan><tag id='7'/></vlan><virtualport type='802.1Qbh'><parameters profileid='p'/></virtualport></network>
"""


@pytest.mark.parametrize("text", [FULL.format(forward=NAT), FULL.format(forward="<forward mode='open'/>"), INTERFACES])
def test_whatever_the_xml_leaves_out_is_a_row(text: str) -> None:
    full = ET.fromstring(text)
    stored = canonical_networks({"full": full})["full"]
    assert isinstance(stored, ET.Element), stored
    assert differences(stored, stored) == []
    wanted = {}
    for number in range(1, sum(1 for _element in full.iter())):
        less = ET.fromstring(text)
        element = list(less.iter())[number]
        parent = next(one for one in less.iter() if element in list(one))
        if element.tag not in ("name", "uuid", "bridge", "mac"):
            parent.remove(element)
            wanted[f"{number} {element.tag}"] = with_identity(less, stored)
    silent = []
    for label, root in wanted.items():
        canonical = canonical_networks({"full": root})["full"]
        if isinstance(canonical, ET.Element) and not differences(stored, canonical):
            silent.append(label)
    assert silent == []
    assert len(wanted) > 5
