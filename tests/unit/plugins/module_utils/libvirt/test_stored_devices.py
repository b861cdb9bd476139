# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that the XML leaves out, and devices that it leaves without a key. Pure."""

from __future__ import annotations

import itertools
import typing as t
import xml.etree.ElementTree as ET

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.xml import (
    children_by_key,
    parse_definition,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.identity import result_mark, with_identity
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.lifecycle import Waiting
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.mark import Mark, differences, with_mark
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.plan import (
    DomainPlan,
    Observed,
    Options,
    Wanted,
    desired_definition,
    plan_domain,
)

UUID = "3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11"
TEXT = """
<domain type='xen'><name>guest</name><uuid>{uuid}</uuid><memory unit='KiB'>65536</memory>
<os><type arch='x86_64' machine='xenfv'>hvm</type></os>{more}<devices>{devices}</devices></domain>
"""
SYSTEM = "<disk type='file' device='disk'><source file='/a.qcow2'/><target dev='vda' bus='xen'/></disk>"
DATA = "<disk type='file' device='disk'><source file='/b.qcow2'/><target dev='vdb' bus='xen'/></disk>"
NIC = "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='front'/></interface>"
HOST_DEVICE = (
    "<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x06' slot='0x{0}' function='0x0'/>"
    "</source></hostdev>"
)
SERIAL = "<serial type='pty'><target port='0'/></serial>"
CONSOLE = "<console type='pty'><target type='serial' port='0'/></console>"
#: What libvirt adds to a domain with a display and a serial port.
ADDED = (
    "<emulator>/usr/lib/xen/bin/qemu</emulator><controller type='xenbus' index='0'/><controller type='usb' index='0'/>"
    "<input type='mouse' bus='ps2'/><video><model type='vga' vram='16384'/></video><audio id='1' type='none'/>"
    "<memballoon model='xen'/>" + CONSOLE
)
BASE = SYSTEM + SERIAL + "<graphics type='vnc' port='-1'/>"


def definition(devices: str, more: str = "") -> ET.Element:
    return ET.fromstring(TEXT.format(uuid=UUID, devices=devices, more=more))


def plan_devices(stored: ET.Element, devices: str, more: str = "", allow: bool = False) -> DomainPlan:
    """Return the plan without libvirt's own reading of the XML."""
    text = TEXT.format(uuid=UUID, devices=devices, more=more)
    root = parse_definition(text, "domain")
    wanted = Wanted("guest", "present", text, root, allow_device_removal=allow)
    observed = Observed(UUID, "shutoff", False, True, False, False, stored, None)
    options = Options("both", Waiting(60, "fail"))
    return plan_domain(wanted, observed, desired_definition(wanted, observed, UUID), None, options)


def device_rows(planned: DomainPlan) -> list[tuple[str, t.Any]]:
    """Return what changes, without the row that says that the XML is another one."""
    found = [(change.what.partition(" ")[2], change.after) for change in planned.changes]
    return [row for row in found if row[0] != "xml"]


def ours(devices: str) -> ET.Element:
    """Return a domain that this collection defined with these devices, and what libvirt added to them."""
    stored = definition(devices + ADDED)
    return with_mark(stored, result_mark(Mark("earlier", None), definition(devices), stored))


REMOVABLE = {
    "disk[vdb]": DATA,
    "interface[52:54:00:00:00:01]": NIC,
    "hostdev[0]": HOST_DEVICE.format("12"),
    "channel[agent.0]": "<channel type='unix'><target type='virtio' name='agent.0'/></channel>",
    "filesystem[share]": "<filesystem type='mount'><source dir='/srv'/><target dir='share'/></filesystem>",
    "tpm[0]": "<tpm model='tpm-crb'><backend type='emulator'/></tpm>",
    "rng[0]": "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
    "sound[ac97]": "<sound model='ac97'/>",
    "console[virtio:0]": "<console type='pty'><target type='virtio' port='0'/></console>",
}


@pytest.mark.parametrize("label", REMOVABLE)
@pytest.mark.parametrize("more", ["", "<description>new</description>"])
def test_undeclared_device_is_a_removal_row(label: str, more: str) -> None:
    stored = ours(BASE + REMOVABLE[label])
    planned = plan_devices(stored, BASE, more)
    removals = [what for what, after in device_rows(planned) if after is None]
    assert removals == [f"devices/{label}"]
    assert planned.define is not None
    devices = ET.fromstring(planned.define).find("devices")
    assert devices is not None
    assert label not in children_by_key(devices)


@pytest.mark.parametrize("label", REMOVABLE)
def test_removal_from_a_domain_of_others_needs_permission(label: str) -> None:
    stored = definition(BASE + ADDED + REMOVABLE[label])
    with pytest.raises(TapvirtError) as refused:
        plan_devices(stored, BASE, "<description>new</description>")
    assert label in refused.value.message
    assert "allow_device_removal: true" in refused.value.message
    allowed = plan_devices(stored, BASE, allow=True)
    assert device_rows(allowed) == [(f"devices/{label}", None)]


def test_refusal_names_every_device_and_what_is_behind_it() -> None:
    with pytest.raises(TapvirtError) as refused:
        plan_devices(definition(BASE + ADDED + DATA + NIC + HOST_DEVICE.format("12")), BASE)
    for words in ("disk[vdb] (file=/b.qcow2)", "interface[52:54:00:00:00:01] (network=front)", "slot=0x12"):
        assert words in refused.value.message


@pytest.mark.parametrize("mark", [False, True])
def test_devices_that_libvirt_added_stay(mark: bool) -> None:
    stored = ours(BASE) if mark else definition(BASE + ADDED)
    planned = plan_devices(stored, BASE, "<description>new</description>")
    assert [what for what, _after in device_rows(planned)] == ["description"]
    assert planned.define is not None
    tags = {device.tag for device in ET.fromstring(planned.define).iterfind("devices/*")}
    assert {"controller", "input", "video", "audio", "memballoon"} <= tags


def test_video_is_not_kept_without_a_display() -> None:
    stored = ours(BASE)
    assert set(device_rows(plan_devices(stored, SYSTEM + SERIAL))) >= {
        ("devices/graphics[vnc]", None),
        ("devices/video[0]", None),
    }


def test_device_that_a_driver_added_at_a_start_is_no_removal() -> None:
    stored = ours(BASE)
    devices = stored.find("devices")
    assert devices is not None
    devices.append(ET.fromstring("<controller type='virtio-serial' index='0'/>"))
    devices.append(ET.fromstring("<console type='pty'><target type='xen' port='0'/></console>"))
    assert [what for what, _after in device_rows(plan_devices(stored, BASE, "<description>new</description>"))] == [
        "description"
    ]


def test_second_video_is_a_users_own() -> None:
    two = "<video><model type='vga'/></video><video><model type='virtio'/></video>"
    with pytest.raises(TapvirtError, match=r"video\[1\]"):
        plan_devices(definition(BASE + two), BASE + "<video><model type='vga'/></video>")


def test_device_of_the_host_is_found_by_its_source() -> None:
    stored = definition(BASE + HOST_DEVICE.format("12") + HOST_DEVICE.format("13"))
    as_number = (
        "<hostdev mode='subsystem' type='pci'><source><address bus='6' slot='{0}' function='0'/></source></hostdev>"
    )
    plan_devices(stored, BASE + as_number.format(0x13) + as_number.format(0x12))
    with pytest.raises(TapvirtError, match="slot=0x12"):
        plan_devices(stored, BASE + as_number.format(0x13) + as_number.format(0x14))


def test_devices_without_a_key_are_the_stored_ones() -> None:
    stored = definition(
        SERIAL
        + CONSOLE
        + "<console type='pty'><target type='virtio' port='1'/></console><input type='tablet' bus='usb'/>"
        "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>"
        "<controller type='scsi' index='0' model='virtio-scsi'/>" + NIC
    )
    devices = (
        "<serial type='pty'/><console type='pty'/><console type='pty'><target type='virtio'/></console>"
        "<input type='tablet'/><channel type='spicevmc'><target type='virtio'/></channel>"
        "<controller type='scsi' model='virtio-scsi'/><interface type='network'><source network='front'/></interface>"
    )
    assert device_rows(plan_devices(stored, devices)) == []
    assert result_mark(Mark("w", None), definition(devices), stored).filled == ()


@pytest.mark.parametrize(
    ("more", "devices", "path"),
    [
        ("<description>d</description>", "", "description"),
        ("<vcpu>2</vcpu>", "", "vcpu"),
        ("<cputune><shares>2048</shares></cputune>", "", "cputune"),
        ("<memoryBacking><hugepages/></memoryBacking>", "", "memoryBacking"),
        ("", NIC.replace("</interface>", "<filterref filter='clean-traffic'/></interface>"), "filterref"),
        ("", NIC.replace("</interface>", "<bandwidth><inbound average='1'/></bandwidth></interface>"), "bandwidth"),
        ("", DATA.replace("</disk>", "<readonly/></disk>"), "readonly"),
        ("", DATA.replace("</disk>", "<iotune><total_iops_sec>9</total_iops_sec></iotune></disk>"), "iotune"),
        ("", "<graphics type='vnc' passwd='hunter2'/>", "passwd"),
        ("<resource><partition>/x</partition></resource>", "", "resource"),
        ("<pm><suspend-to-mem enabled='no'/></pm>", "", "pm"),
        ("", NIC.replace("</interface>", "<backenddomain name='netvm'/></interface>"), "backenddomain"),
        ("", NIC.replace("</interface>", "<script path='vif-bridge'/></interface>"), "script"),
        ("", NIC.replace("</interface>", "<driver name='vhost' queues='4'/></interface>"), "driver"),
        ("", NIC.replace("</interface>", "<alias name='ua-nic'/></interface>"), "alias"),
        ("", DATA.replace("</disk>", "<backenddomain name='storage'/></disk>"), "backenddomain"),
        ("", DATA.replace("</disk>", "<driver name='qemu' type='raw' cache='none'/></disk>"), "driver"),
        ("", DATA.replace("</disk>", "<alias name='ua-data'/></disk>"), "alias"),
        ("", DATA.replace("<source ", "<source startupPolicy='optional' "), "startupPolicy"),
        ("", DATA.replace("b.qcow2'/>", "b.qcow2'><seclabel model='dac' relabel='no'/></source>"), "seclabel"),
    ],
)
def test_undeclared_part_that_libvirt_never_adds_is_a_row(more: str, devices: str, path: str) -> None:
    stored = definition(SYSTEM + devices, more)
    declared = NIC if "<interface" in devices else DATA if devices else ""
    declared = "<graphics type='vnc'/>" if path == "passwd" else declared
    (row,) = device_rows(plan_devices(stored, SYSTEM + declared))
    assert row[0].endswith(path)
    assert row[1] in (None, "********")
    assert device_rows(plan_devices(stored, SYSTEM + devices, more)) == []


def test_drive_is_read_only_by_itself() -> None:
    drive = "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/>{0}</disk>"
    assert device_rows(plan_devices(definition(drive.format("<readonly/>")), drive.format(""))) == []


def marked(devices: str, declared: tuple[str, ...] | None, filled: tuple[str, ...] = ()) -> ET.Element:
    return with_mark(definition(devices), Mark("earlier", None, filled, declared))


DECLARED = {
    "controller[scsi:0]": "<controller type='scsi' index='0' model='virtio-scsi'/>",
    "controller[usb:1]": "<controller type='usb' index='1' model='qemu-xhci'/>",
    "controller[usb:0:ich9-ehci1]": "<controller type='usb' index='0' model='ich9-ehci1'/>",
    "controller[virtio-serial:0]": "<controller type='virtio-serial' index='0'/>",
    "controller[xenbus:0]": "<controller type='xenbus' index='0' maxGrantFrames='64'/>",
    "controller[ccid:0]": "<controller type='ccid' index='0'/>",
    "memballoon[0]": "<memballoon model='none'/>",
    "emulator[0]": "<emulator>/usr/local/bin/qemu</emulator>",
    "console[lxc:1]": "<console type='pty'><target type='lxc' port='1'/></console>",
    "console[xen:0]": "<console type='pty'><target type='xen' port='0'/></console>",
}
SCSI_DISK = "<disk type='file' device='disk'><source file='/a'/><target dev='sda' bus='scsi'/></disk>"


@pytest.mark.parametrize("label", DECLARED)
@pytest.mark.parametrize("known", [True, False])
def test_device_that_was_declared_is_a_row_or_stays(label: str, known: bool) -> None:
    """An older mark does not have what was declared: the device stays then."""
    first = "<console type='pty'><target type='lxc' port='0'/></console>" if "lxc" in label else ""
    stored = marked(SCSI_DISK + first + DECLARED[label], (label,) if known else None)
    planned = plan_devices(stored, SCSI_DISK + first, "<title>new</title>")
    assert planned.define is not None
    devices = ET.fromstring(planned.define).find("devices")
    assert devices is not None
    is_row, stays = (f"devices/{label}", None) in device_rows(planned), label in children_by_key(devices)
    # Only one of LXC's consoles can be told from those of others without a mark.
    assert (is_row, stays) == ((True, False) if known or "lxc" in label else (False, True))


def test_mark_notes_what_was_declared() -> None:
    noted = result_mark(Mark("w", None), definition(BASE), definition(BASE + ADDED))
    assert noted.declared == ("disk[vda]", "serial[0]", "graphics[vnc]")
    assert noted.filled is not None
    assert {"emulator[0]", "memballoon[0]", "console[serial:0]"} <= set(noted.filled)


@pytest.mark.parametrize(("label", "text"), [("hub[0]", "<hub type='usb'/>"), ("iommu[0]", "<iommu model='intel'/>")])
def test_hub_and_iommu_of_libvirt_stay(label: str, text: str) -> None:
    for stored in (definition(SYSTEM + text), marked(SYSTEM + text, (), (label,))):
        planned = plan_devices(stored, SYSTEM, "<title>new</title>")
        assert device_rows(planned) == [("title", "new")]
        assert planned.define is not None
        assert f"<{label[:3]}" in planned.define
    assert device_rows(plan_devices(marked(SYSTEM + text, (label,)), SYSTEM)) == [(f"devices/{label}", None)]


@pytest.mark.parametrize(
    ("serial", "console", "lost"),
    [
        ("<serial type='pty'><target port='0'/></serial>", "<console type='pty'/>", False),
        (
            "<serial type='file'><source path='/log'/><target port='0'/></serial>",
            "<console type='file'><source path='/log'/></console>",
            False,
        ),
        ("<serial type='file'><source path='/log'/><target port='0'/></serial>", "<console type='pty'/>", True),
        ("<serial type='pty'><log file='/log'/><target port='0'/></serial>", "<console type='pty'/>", True),
    ],
)
def test_serial_device_is_libvirts_own_where_it_is_the_console(serial: str, console: str, lost: bool) -> None:
    kind = "file" if "type='file'" in serial else "pty"
    source = "<source path='/log'/>" if kind == "file" else ""
    stored = definition(f"{serial}<console type='{kind}'>{source}<target type='serial' port='0'/></console>")
    found = device_rows(plan_devices(stored, console, "<title>new</title>", allow=True))
    assert (("devices/serial[0]", None) in found) is lost
    if lost:
        with pytest.raises(TapvirtError, match=r"serial\[0\]"):
            plan_devices(stored, console)


def test_moved_disk_is_named_under_both_targets() -> None:
    with pytest.raises(TapvirtError) as refused:
        plan_devices(definition(SYSTEM + DATA), SYSTEM + DATA.replace("vdb", "vdc"))
    assert "disk[vdb] (file=/b.qcow2), which it declares as disk[vdc]" in refused.value.message
    with pytest.raises(TapvirtError) as refused:
        plan_devices(definition(SYSTEM + DATA), SYSTEM)
    assert "which it declares" not in refused.value.message


def test_replaced_device_of_the_host_is_one_row() -> None:
    old, new, kept = (HOST_DEVICE.format(slot) for slot in ("12", "13", "14"))
    (change,) = plan_devices(definition(SYSTEM + old + kept), SYSTEM + new + kept, allow=True).changes[:-1]
    assert change.what == "guest devices/hostdev[0]"
    assert ('slot="0x12"' in change.before, 'slot="0x13"' in change.after) == (True, True)
    assert device_rows(plan_devices(definition(SYSTEM + old + kept), SYSTEM + kept, allow=True)) == [
        ("devices/hostdev[0]", None)
    ]


def test_pending_rows_name_every_lost_device() -> None:
    cells = "".join(f"<vcpupin vcpu='{number}' cpuset='0'/>" for number in range(30))
    stored = marked(BASE + DATA, ("disk[vdb]",))
    text = TEXT.format(uuid=UUID, devices=BASE, more=f"<cputune>{cells}</cputune>")
    more = "".join(f"<disk type='file'><target dev='vd{letter}'/></disk>" for letter in "cdefghijklmnopqrstuvwxyz")
    stored.find("devices").extend(ET.fromstring(f"<devices>{more}</devices>"))
    root = parse_definition(text, "domain")
    wanted = Wanted("guest", "present", text, root)
    observed = Observed(UUID, "shutoff", False, True, False, False, stored, None)
    options = Options("live", Waiting(60, "fail"))
    planned = plan_domain(wanted, observed, desired_definition(wanted, observed, UUID), None, options)
    lost = [row["what"] for row in planned.pending if row["stored"] is None]
    assert lost == [f"devices/disk[vd{letter}]" for letter in "bcdefghijklmnopqrstuvwxyz"]


def test_xml_that_is_not_the_one_applied_last_is_a_row() -> None:
    """The rest of what it leaves out is not shown; libvirt may have added it."""
    nic = NIC.replace("</interface>", "<model type='netfront'/></interface>")
    for stored in (ours(BASE + nic), definition(BASE + nic + ADDED)):
        planned = plan_devices(stored, BASE + NIC, "<title>new</title>")
        assert [change.what for change in planned.changes] == ["guest title", "guest xml"]
    assert plan_devices(definition(BASE + nic + ADDED), BASE + NIC).changes == []


# ---- controllers -----------------------------------------------------------------------------------------------------

XHCI = "<controller type='usb' {0}model='qemu-xhci'/>"
ICH9 = ["ich9-ehci1", "ich9-uhci1", "ich9-uhci2", "ich9-uhci3"]


def controllers(devices: t.Sequence[str], stored: str) -> list[tuple[str, ...]]:
    result = with_identity(definition("".join(devices)), definition(stored))
    found = result.findall("devices/controller")
    return sorted(tuple(one.get(name, "") for name in ("type", "index", "model")) for one in found)


def test_controller_without_an_index_is_the_stored_one() -> None:
    assert controllers([XHCI.format("")], XHCI.format("index='0' ")) == [("usb", "0", "qemu-xhci")]
    both = "<controller type='usb' index='0' model='piix3-uhci'/>" + XHCI.format("index='1' ")
    assert controllers([XHCI.format("")], both) == [("usb", "0", "piix3-uhci"), ("usb", "1", "qemu-xhci")]
    replaced = "<controller type='usb' index='0' model='piix3-uhci'/>"
    assert controllers([XHCI.format("")], replaced) == [("usb", "0", "qemu-xhci")]
    assert controllers([XHCI.format(""), XHCI.format("")], XHCI.format("index='0' ")) == [
        ("usb", "0", "qemu-xhci"),
        ("usb", "1", "qemu-xhci"),
    ]


def test_bus_without_an_index_does_not_take_the_place_of_another() -> None:
    bridge = "<controller type='pci' model='pcie-to-pci-bridge'/>"
    stored = (
        "<controller type='pci' index='0' model='pcie-root'/><controller type='pci' index='1' model='pcie-root-port'/>"
    )
    assert ("pci", "2", "pcie-to-pci-bridge") in controllers([bridge], stored)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("index", ["", "index='0' "])
def test_set_of_one_index_is_matched_by_model(order: tuple[int, ...], index: str) -> None:
    place = "<address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x{0}'/>"
    stored = definition(
        "".join(
            f"<controller type='usb' index='0' model='{model}'>{place.format(number)}</controller>"
            for number, model in enumerate(ICH9)
        )
    )
    wanted = definition("".join(f"<controller type='usb' {index}model='{ICH9[number]}'/>" for number in order))
    assert differences(stored, with_identity(wanted, stored)) == []
    assert result_mark(Mark("w", None), wanted, stored).filled == ()
