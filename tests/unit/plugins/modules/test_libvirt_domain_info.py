# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_domain_info: what it gathers, from the QEMU driver in bulk and from the test driver part by part."""

from __future__ import annotations

import collections
import json
import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import libvirt
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.info.gather import PARTS, Gather, domain_rows
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.node import node_uri

if t.TYPE_CHECKING:
    from ansible_collections.tapvirt.host.tests.unit.support.libvirt.embed import Embed

HERE = pathlib.Path(__file__).resolve().parent
DEFINITIONS = sorted((HERE.parents[1] / "fixtures" / "libvirt").glob("*.xml"))
Run = t.Callable[..., dict[str, t.Any]]
GUEST = """
<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
  <name>{name}</name>
  <memory>65536</memory><currentMemory>32768</currentMemory>
  <os><type>hvm</type></os>
  <devices>
    {devices}
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/><source network='default'/><target dev='net0'/>
    </interface>
  </devices>
  <test:runstate>{state}</test:runstate>
</domain>
"""
DISK = "<disk type='file' device='disk'><source file='{0}'/><target dev='{1}'/></disk>"
NETWORK = """
<network>
  <name>default</name><forward mode='nat'/>
  <ip address='192.168.122.1' netmask='255.255.255.0'>
    <dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp>
  </ip>
</network>
"""
RUNNING, OFF = 1, 5


def guest(name: str, devices: str = "", state: int = OFF) -> str:
    return GUEST.format(name=name, devices=devices, state=state)


@pytest.fixture
def info_of(tmp_path: pathlib.Path, run_module: Run) -> Run:
    """Run libvirt_domain_info on a host of the test driver with the given items."""

    def run(*items: str, **args: t.Any) -> dict[str, t.Any]:
        uri = node_uri(tmp_path, "<node>" + "".join(items) + NETWORK + "</node>")
        return run_module("libvirt_domain_info", {"uri": uri, **args})

    return run


def test_domains_are_chosen_by_name_and_glob_and_bounded(info_of: Run) -> None:
    items = [guest(name) for name in ("web1", "web2", "db1")]
    assert [row["name"] for row in info_of(*items)["domains"]] == ["db1", "web1", "web2"]
    some = info_of(*items, names=["web*", "db1"], limit=2)
    assert ([row["name"] for row in some["domains"]], some["truncated"]) == (["web1", "web2"], True)
    unknown = info_of(*items, names=["web*", "wbe1"])["msg"]
    assert unknown.startswith("Invalid value 'wbe1' for names[1]: No domain has this name. Did you mean web1")
    assert info_of(*items, limit=0)["msg"] == "Invalid value 0 for limit: The limit is a number from 1 to 10000."


def test_a_driver_without_bulk_statistics_is_asked_part_by_part(info_of: Run) -> None:
    items = guest("on", DISK.format("/a.img", "vda"), RUNNING), guest("off")
    result = info_of(*items, gather=["stats"], trace_api=True)
    counts = {row["call"]: row["count"] for row in result["api_trace"]["totals"]}
    assert counts["virConnect.domainListGetStats"] == 1
    off, on = result["domains"]
    assert off["stats"] is None
    stats = on["stats"]
    assert stats["cpu"]["time_seconds"] > 0
    assert stats["cpu"]["user_seconds"] is None
    assert (stats["memory"]["current_bytes"], stats["memory"]["maximum_bytes"]) == (32 << 20, 64 << 20)
    assert [disk["target"] for disk in stats["disks"]] == ["vda"]
    assert stats["disks"][0]["read_bytes"] > 0
    assert stats["disks"][0]["physical_bytes"] == 1 << 40
    assert [interface["device"] for interface in stats["interfaces"]] == ["net0"]
    assert stats["interfaces"][0]["sent_packets"] > 0
    assert "addresses" not in on
    assert "backing" not in on


def test_an_address_is_reported_once_by_the_most_trusted_source(info_of: Run) -> None:
    off, on = info_of(guest("on", state=RUNNING), guest("off"), gather=["addresses"])["domains"]
    assert (off["addresses"], off["agent"]) == ([], "absent")
    (address,) = on["addresses"]
    assert address.pop("address").startswith("192.168.122.")
    assert address == {
        "prefix": 24,
        "family": "ipv4",
        "mac": "52:54:00:00:00:01",
        "interface": "net0",
        "source": "lease",
    }
    assert on["agent"] == "absent"


def test_images_below_the_disks_of_a_stopped_domain_are_looked_up_in_its_pools(info_of: Run) -> None:
    volume = """
        <volume><name>{0}</name><capacity>1024</capacity><target><path>/images/{0}</path></target>{1}</volume>
    """
    below = "<backingStore><path>{0}</path><format type='{1}'/></backingStore>"
    pool = "<pool type='dir'><name>images</name><target><path>/images</path></target>{}</pool>".format(
        volume.format("top.qcow2", below.format("/images/mid.qcow2", "qcow2"))
        + volume.format("mid.qcow2", below.format("/images/base.raw", "raw"))
        + volume.format("base.raw", "")
        + volume.format("leaves.qcow2", below.format("/elsewhere/base.qcow2", "qcow2"))
        + volume.format("circle.qcow2", below.format("/images/circle.qcow2", "qcow2"))
    )
    devices = "".join(
        [
            DISK.format("/images/top.qcow2", "vda"),
            "<disk type='volume' device='disk'><source pool='images' volume='mid.qcow2'/><target dev='vdb'/></disk>",
            DISK.format("/images/leaves.qcow2", "vdc"),
            DISK.format("/elsewhere/own.img", "vdd"),
            "<disk type='file' device='cdrom'><target dev='hdc'/></disk>",
            DISK.format("/images/circle.qcow2", "vde"),
        ]
    )
    (row,) = info_of(guest("off", devices), pool, gather=["backing"])["domains"]
    mid, base = {"source": "/images/mid.qcow2", "format": "qcow2"}, {"source": "/images/base.raw", "format": "raw"}
    found = {disk.pop("target"): disk for disk in row["backing"]}
    circle = found.pop("vde")
    assert found == {
        "vda": {"images": [mid, base], "complete": True},
        "vdb": {"images": [base], "complete": True},
        "vdc": {"images": [{"source": "/elsewhere/base.qcow2", "format": "qcow2"}], "complete": False},
        "vdd": {"images": None, "complete": False},
        "hdc": {"images": [], "complete": True},
    }
    assert (len(circle["images"]), circle["complete"]) == (64, False)


@pytest.mark.scenario
def test_bulk_statistics_and_backing_chains_of_a_running_domain(embed: Embed) -> None:
    base, mid, top = (str(embed.root / name) for name in ("base.raw", "mid.qcow2", "top.qcow2"))
    for args in (
        ["raw", base, "1M"],
        ["qcow2", "-b", base, "-F", "raw", mid],
        ["qcow2", "-b", mid, "-F", "qcow2", top],
    ):
        subprocess.run(["qemu-img", "create", "-q", "-f", *args], check=True)
    disk = f"""
        <disk type='file' device='disk'>
          <driver name='qemu' type='qcow2'/><source file='{top}'/><target dev='vda' bus='virtio'/>
        </disk>
        <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/></disk>
        <interface type='user'/>
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    """
    embed.converge({"name": "talker", "xml": embed.talker(devices=disk), "state": "running"})
    heard = embed.module("libvirt_console", name="talker", until=embed.line, timeout_seconds=60)
    assert heard["matched"], heard
    # An agent channel that nobody has opened in the guest is not waited for.
    (row,) = embed.module("libvirt_domain_info", gather=list(PARTS))["domains"]
    assert (row["addresses"], row["agent"]) == ([], "absent")
    assert {disk.pop("target"): disk for disk in row["backing"]} == {
        "hda": {"images": [], "complete": True},
        "hdc": {"images": [], "complete": True},
        "vda": {
            "images": [{"source": mid, "format": "qcow2"}, {"source": base, "format": "raw"}],
            "complete": True,
        },
    }
    stats = row["stats"]
    assert stats["cpu"]["time_seconds"] > stats["cpu"]["user_seconds"] > 0
    assert stats["memory"]["current_bytes"] == 16 << 20
    assert stats["memory"]["resident_bytes"] > 1 << 20
    disks = {disk["target"]: disk for disk in stats["disks"]}
    assert set(disks) == {"hda", "hdc", "vda"}
    assert (disks["hda"]["read_bytes"], disks["hda"]["capacity_bytes"]) == (512, 512)
    assert 0 < disks["hda"]["read_seconds"] < 60
    assert disks["hdc"]["capacity_bytes"] is None
    # The same counters, asked part by part.
    one_by_one = json.loads(
        embed.libvirt(
            """
            import json
            import xml.etree.ElementTree as ET
            from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.info.stats import stats_row
            domain = connection.lookupByName("talker")
            domain.memoryStats()
            print(json.dumps(stats_row(domain, ET.fromstring(domain.XMLDesc(0)), None)))
            """
        )
    )
    assert set(one_by_one) == set(stats)
    assert set(one_by_one["memory"]) == set(stats["memory"])
    assert one_by_one["memory"]["current_bytes"] == stats["memory"]["current_bytes"]
    assert 0 < one_by_one["cpu"]["time_seconds"] < 3600
    again = {disk["target"]: disk for disk in one_by_one["disks"]}
    for name in ("read_bytes", "read_requests", "capacity_bytes"):
        assert again["hda"][name] == disks["hda"][name]
    assert set(again["hda"]) == set(disks["hda"])
    # Below the disks of a domain that is off there is nothing to be known without pools.
    embed.libvirt("connection.lookupByName('talker').memoryStats(); connection.lookupByName('talker').destroy()")
    (row,) = embed.module("libvirt_domain_info", gather=["backing"])["domains"]
    assert {disk["target"]: disk["images"] for disk in row["backing"]} == {"hda": None, "hdc": [], "vda": None}


def test_the_default_result_of_a_handful_of_domains_is_small(embed: Embed) -> None:
    names = [path.stem for path in DEFINITIONS[:6]]
    embed.converge(*[{"name": path.stem, "xml": path.read_text(encoding="utf-8")} for path in DEFINITIONS[:6]])
    result = embed.module("libvirt_domain_info", names=names)
    assert [row["name"] for row in result["domains"]] == names
    assert len(json.dumps(result)) < 8192


class Counted:
    """The binding's C module, with its calls counted."""

    def __init__(self, real: t.Any) -> None:
        self._real = real
        self.calls: collections.Counter[str] = collections.Counter()

    def __getattr__(self, name: str) -> t.Any:
        self.calls[name] += 1
        return getattr(self._real, name)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted(libvirt.libvirtmod)
    monkeypatch.setattr(libvirt, "libvirtmod", counted)
    return counted


def test_many_domains_take_one_list_one_bulk_call_and_a_few_calls_each(
    counted: Counted, tmp_path: pathlib.Path
) -> None:
    names = [f"guest{number:03}" for number in range(150)]
    uri = node_uri(tmp_path, "<node>" + "".join(guest(name, state=OFF) for name in names) + "</node>")
    connection = libvirt.open(uri)
    counted.calls.clear()
    rows, truncated = domain_rows(connection, [*names, "guest*"], 1000, ["stats"])
    assert ([row["name"] for row in rows], truncated) == (names, False)
    assert counted.calls["virConnectListAllDomains"] == 1
    assert counted.calls["virDomainListGetStats"] == 1
    local = ("virDomainFree", "virDomainGetName", "virDomainGetUUIDString", "virDomainGetID", "virDomainGetConnect")
    each = {name: count for name, count in counted.calls.items() if count > 10 and name not in local}
    assert sum(each.values()) <= 8 * len(names), each


def test_a_domain_that_vanishes_during_the_run_is_left_out() -> None:
    connection = libvirt.open("test:///default")
    domain = connection.lookupByName("test")
    gather = Gather(connection, [domain], PARTS)
    before = gather.row(domain)
    assert before is not None
    assert before["name"] == "test"
    domain.destroy()
    domain.undefine()
    assert gather.row(domain) is None
