# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain XML as data: reading, comparing, marking, carrying identity over. Pure."""

from __future__ import annotations

import pathlib
import random
import xml.etree.ElementTree as ET

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.xml import (
    check_name,
    parse_definition,
    size_bytes,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.identity import (
    complete,
    result_mark,
    with_identity,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.mark import (
    Mark,
    definition_hash,
    differences,
    mark_of,
    with_mark,
    without_mark,
)

FIXTURES = pathlib.Path(__file__).resolve().parents[3] / "fixtures" / "libvirt"

EXISTING = """
<domain type='kvm'>
  <name>web1</name><uuid>3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11</uuid>
  <metadata><note xmlns='urn:other'>kept</note></metadata>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><nvram>/nvram/web1.fd</nvram></os>
  <devices>
    <disk><target dev='vda' bus='virtio'/><address type='pci' bus='0x04'/></disk>
    <disk><target dev='sda' bus='sata'/><address type='drive' unit='0'/></disk>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='4' model='pcie-root-port'><address type='pci' bus='0x00'/></controller>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/><source network='front'/><model type='virtio'/>
      <address type='pci' bus='0x01'/>
    </interface>
    <interface type='network'>
      <mac address='52:54:00:00:00:02'/><source network='back'/><model type='virtio'/>
    </interface>
    <memballoon model='virtio'><address type='pci' bus='0x05'/></memballoon>
  </devices>
</domain>
"""


def element(text: str) -> ET.Element:
    return ET.fromstring(text)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.xml")), ids=lambda path: path.stem)
def test_order_means_nothing_where_there_are_keys(path: pathlib.Path) -> None:
    root = complete(parse_definition(path.read_text(encoding="utf-8"), "domain"))
    shuffled = element(ET.tostring(root, encoding="unicode"))
    devices = shuffled.find("devices")
    if devices is not None:
        children_by_key = [
            child for child in devices if child.tag in ("disk", "interface", "controller", "graphics", "input")
        ]
        for child in children_by_key:
            devices.remove(child)
        random.Random(7).shuffle(children_by_key)
        devices.extend(children_by_key)
    shuffled[:] = [*shuffled[3:], *shuffled[:3]]
    assert differences(root, shuffled) == []
    assert definition_hash(root) == definition_hash(shuffled)


def test_order_of_boot_devices_and_arguments_has_a_meaning() -> None:
    first = element("<domain><os><boot dev='hd'/><boot dev='cdrom'/></os></domain>")
    second = element("<domain><os><boot dev='cdrom'/><boot dev='hd'/></os></domain>")
    assert [row.path for row in differences(first, second)] == ["os/boot[0]@dev", "os/boot[1]@dev"]
    assert definition_hash(first) != definition_hash(second)


def test_a_difference_is_one_field_or_one_whole_device() -> None:
    before = element("<domain><devices><disk><source file='/a'/><target dev='vda'/></disk></devices></domain>")
    after = element("<domain><devices><disk><source file='/b'/><target dev='vda'/></disk><tpm/></devices></domain>")
    rows = [(row.path, row.before, row.after) for row in differences(before, after)]
    assert rows == [("devices/disk[vda]/source@file", "/a", "/b"), ("devices/tpm[0]", None, "<tpm/>")]


def test_a_password_inside_a_whole_device_is_masked() -> None:
    after = element("<domain><devices><graphics type='vnc' passwd='hunter2'/></devices></domain>")
    (row,) = differences(element("<domain><devices/></domain>"), after)
    assert row.after is not None
    assert "hunter2" not in row.after


def test_subset_asks_only_for_what_is_requested() -> None:
    existing = element("<domain><memory unit='KiB'>65536</memory><on_crash>destroy</on_crash></domain>")
    output = element("<domain><memory unit='MiB'>64</memory></domain>")
    assert differences(existing, output, subset=True) == []
    more = element("<domain><memory unit='MiB'>65</memory></domain>")
    assert [row.path for row in differences(existing, more, subset=True)] == ["memory"]


def test_the_mark_is_no_difference_and_can_be_read_back() -> None:
    root = element(EXISTING)
    marked = with_mark(root, Mark("abc", "def", ("controller[pci:0]", "memballoon[0]"), ("disk[vda]",)))
    assert mark_of(marked) == Mark("abc", "def", ("controller[pci:0]", "memballoon[0]"), ("disk[vda]",))
    assert differences(root, marked) == []
    assert definition_hash(root) == definition_hash(marked)
    assert mark_of(without_mark(marked)) is None
    assert mark_of(root) is None


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("<m>1</m>", 1024), ("<m unit='b'>5</m>", 5), ("<m unit='MB'>2</m>", 2000000), ("<m unit='GiB'>3</m>", 3 << 30)],
)
def test_sizes_in_every_unit(text: str, bytes_: int) -> None:
    assert size_bytes(element(text)) == bytes_


@pytest.mark.parametrize("name", ["a/b", "..", "/etc/passwd", "", " a", "a\n", "x" * 201])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name("name", name)


@pytest.mark.parametrize("name", ["web1", "Domain-0", "a b", "grün", ".hidden"])
def test_names_that_are_some(name: str) -> None:
    check_name("name", name)


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain/>",
        "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><domain><name>&b;</name></domain>",
        "<!DOCTYPE d [<!ENTITY % p SYSTEM 'http://127.0.0.1/'> %p;]><domain/>",
    ],
)
def test_document_types_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="line 1: <!DOCTYPE d> is not allowed: libvirt's XML has no document type"):
        parse_definition(text, "domain")


def test_another_root_and_broken_xml_are_reported_with_their_place() -> None:
    with pytest.raises(
        InvalidInput, match="^Invalid value for xml: The root element is <network>, but it has to be <domain>.$"
    ):
        parse_definition("<network/>", "domain")
    with pytest.raises(
        InvalidInput, match="^Invalid value for xml, line 2: The XML cannot be parsed: mismatched tag .column 5.[.]$"
    ):
        parse_definition("<domain>\n  </wrong>", "domain")


def test_identity_is_carried_over_where_the_user_gives_nothing() -> None:
    wanted = element("""
        <domain type='kvm'>
          <name>web1</name>
          <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os>
          <devices>
            <interface type='network'><source network='back'/><model type='virtio'/></interface>
            <interface type='network'><source network='new'/><model type='virtio'/></interface>
            <interface type='network'><source network='front'/><model type='e1000'/></interface>
            <disk><target dev='vda' bus='virtio'/></disk>
            <disk><target dev='sda' bus='scsi'/></disk>
          </devices>
        </domain>""")
    carried = with_identity(wanted, element(EXISTING))
    assert carried.findtext("uuid") == "3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11"
    assert carried.find("os/type").get("machine") == "pc-q35-7.2"
    assert carried.findtext("os/nvram") == "/nvram/web1.fd"
    assert carried.findtext("metadata/{urn:other}note") == "kept"
    macs = [interface.find("mac").get("address") for interface in carried.findall("devices/interface")]
    assert (macs[0], macs[2]) == ("52:54:00:00:00:02", "52:54:00:00:00:01")
    assert macs[1] not in (macs[0], macs[2])
    places = [disk.find("address") is not None for disk in carried.findall("devices/disk")]
    assert places == [True, False], "a disk on another bus cannot keep its place"
    assert [controller.get("index") for controller in carried.findall("devices/controller")] == ["0", "4"]
    assert with_identity(wanted, element(EXISTING), with_addresses=False).find("devices/disk/address") is None


def test_the_users_value_wins() -> None:
    wanted = element("""
        <domain type='kvm'>
          <name>web1</name>
          <os><type arch='x86_64' machine='pc-q35-6.0'>hvm</type></os>
          <devices>
            <interface type='network'><mac address='52:54:00:00:00:09'/><source network='front'/></interface>
          </devices>
        </domain>""")
    carried = with_identity(wanted, element(EXISTING))
    assert carried.find("os/type").get("machine") == "pc-q35-6.0"
    assert carried.find("os/nvram") is None
    assert carried.find("devices/interface/mac").get("address") == "52:54:00:00:00:09"
    assert carried.find("devices/controller") is None, "another machine has other buses"


def test_a_device_that_the_user_took_back_does_not_come_again() -> None:
    output = element("<domain><devices><controller type='usb' index='0' model='qemu-xhci'/></devices></domain>")
    result = element(
        "<domain><uuid>u</uuid><os><type arch='a' machine='m'/></os><devices><memballoon/>"
        "<controller type='usb' index='0' model='qemu-xhci'/></devices></domain>"
    )
    existing = with_mark(result, result_mark(Mark("w", None), output, result))
    wanted = element("<domain><os><type arch='a' machine='m'/></os><devices/></domain>")
    carried = with_identity(wanted, existing)
    assert [device.tag for device in carried.find("devices")] == ["memballoon"]


def test_random_values_follow_from_the_uuid() -> None:
    text = "<domain type='{0}'><uuid>{1}</uuid><genid/><devices><interface/><interface/></devices></domain>"
    first, again, other = (complete(element(text.format("kvm", uuid))) for uuid in ("a", "a", "b"))
    assert ET.tostring(first) == ET.tostring(again)
    assert first.findtext("genid") != other.findtext("genid")
    macs = [mac.get("address") for root in (first, other) for mac in root.iterfind("devices/interface/mac")]
    assert len(set(macs)) == 4
    assert all(str(mac).startswith("52:54:00:") for mac in macs)
    xen = complete(element(text.format("xen", "a")))
    assert str(xen.find("devices/interface/mac").get("address")).startswith("00:16:3e:")


def test_the_identity_of_a_virtual_port_follows_from_the_uuid_and_stays() -> None:
    text = "<domain type='kvm'><uuid>{0}</uuid><devices><interface type='bridge'><source bridge='{1}'/>"
    text += "<virtualport type='openvswitch'>{2}</virtualport></interface></devices></domain>"
    place = "devices/interface/virtualport/parameters"
    first, again, other = (complete(element(text.format(uuid, "b", ""))) for uuid in ("a", "a", "b"))
    ids = [root.find(place).get("interfaceid") for root in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    existing = element(text.format("a", "b", "<parameters interfaceid='kept' profileid='p'/>"))
    carried = with_identity(element(text.format("a", "b", "<parameters profileid='q'/>")), existing)
    assert carried.find(place).attrib == {"interfaceid": "kept", "profileid": "q"}
    output = with_identity(element(text.format("a", "b", "<parameters interfaceid='said'/>")), existing)
    assert output.find(place).get("interfaceid") == "said"
    plain = element("<domain><uuid>a</uuid><devices><interface type='user'/></devices></domain>")
    assert complete(plain).find("devices/interface/virtualport") is None


def test_consoles_that_libvirt_has_counted_again_are_the_same_ones() -> None:
    text = "<domain><devices><console type='pty'><target type='serial' port='0'/></console>"
    text += "<console type='pty'><target type='virtio' port='{0}'/></console>{1}</devices></domain>"
    first, again = (element(text.format(port, "")) for port in (0, 1))
    assert differences(first, again) == []
    assert definition_hash(first) == definition_hash(again)
    more = element(text.format(1, "<console type='pty'><target type='virtio' port='2'/></console>"))
    assert [row.path for row in differences(first, more)] == ["devices/console[virtio:1]"]
