# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that a definition leaves out, or leaves without an index, on libvirt's real QEMU driver."""

from __future__ import annotations

import re
import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.tapvirt.host.tests.unit.support.libvirt.embed import Embed

MARK = "https://github.com/tapvirt/tapvirt.host/domain/1"
COMPANIONS = "".join(f"<controller type='usb' model='ich9-{model}'/>" for model in ("uhci3", "ehci1", "uhci1", "uhci2"))
CONTROLLERS = {
    "xhci": "<controller type='usb' model='qemu-xhci'/><controller type='scsi' model='virtio-scsi'/>",
    "companions": COMPANIONS + "<controller type='usb' model='qemu-xhci'/>",
}


def stored(embed: Embed, name: str) -> str:
    """Return a stored definition without our mark."""
    text = embed.libvirt(f"print(connection.lookupByName({name!r}).XMLDesc(2))")
    return re.sub(r"\s*<metadata[^>]*(/>|>.*</metadata>)", "", text, flags=re.DOTALL)


def adopt(embed: Embed, *names: str) -> None:
    """Take our mark from domains, as if somebody else had defined them."""
    embed.libvirt(
        f"""
        for name in {names!r}:
            domain = connection.lookupByName(name)
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, {MARK!r}, 2)
        """
    )


def test_controllers_without_an_index_stay_where_they_are(embed: Embed) -> None:
    """The set of one index, too. A comment is enough to make the definition another one."""
    xmls = {name: embed.talker(name, devices=devices) for name, devices in CONTROLLERS.items()}
    commented = [{"name": name, "xml": xml.replace("<devices>", "<devices><!-- new -->")} for name, xml in xmls.items()]
    described = [{"name": name, "xml": xml.replace(">one<", ">two<")} for name, xml in xmls.items()]
    for name in xmls:
        (embed.root / f"{name}.img").write_bytes(embed.image.read_bytes())
    for items in (commented, described):
        for item in items:
            item["xml"] = item["xml"].replace("talker.img", f"{item['name']}.img")
    wanted = [{"name": name, "xml": xml.replace("talker.img", f"{name}.img")} for name, xml in xmls.items()]
    embed.converge(*wanted)
    before = {name: stored(embed, name) for name in xmls}
    assert [text.count("type='usb'") for text in before.values()] == [1, 5]
    assert embed.converge(*commented)["plan"] == []
    adopt(embed, *xmls)
    assert embed.converge(*commented)["plan"] == []
    done = embed.converge(*described)
    assert [row["what"] for row in done["plan"]] == [f"{name} description" for name in xmls]
    assert {name: stored(embed, name).replace(">two<", ">one<") for name in xmls} == before
    assert embed.converge(*commented, check=True)["plan"] == [
        {**row, "before": row["after"], "after": row["before"]} for row in done["plan"]
    ]


def test_domain_of_others_keeps_its_devices(embed: Embed) -> None:
    (embed.root / "data.img").write_bytes(bytes(1 << 20))
    data = f"<disk type='file'><source file='{embed.root}/data.img'/><target dev='vdb' bus='virtio'/></disk>"
    added = (
        "<input type='tablet' bus='usb'/><video><model type='virtio' heads='1'/></video><controller type='usb' "
        "index='0' model='qemu-xhci'/><memballoon model='none'/>"
    )
    display = "<graphics type='vnc'/>"
    embed.converge({"name": "talker", "xml": embed.talker(devices=display + data + added)})
    adopt(embed, "talker")
    before = stored(embed, "talker")
    wanted = {"name": "talker", "xml": embed.talker(devices=display, description="two")}
    refused = embed.module("libvirt_domain", domains=[wanted])
    assert f"disk[vdb] (file={embed.root}/data.img)" in refused["msg"]
    assert "allow_device_removal: true" in refused["msg"]
    assert "tablet" not in refused["msg"]
    assert embed.module("libvirt_domain", domains=[wanted], check=True)["msg"] == refused["msg"]
    assert (refused["changed"], stored(embed, "talker")) == (False, before)
    # Declared, the disk stays, and so does what libvirt could have added.
    kept = embed.converge({"name": "talker", "xml": embed.talker(devices=display + data, description="two")})
    assert [row["what"] for row in kept["plan"]] == ["talker description"]
    assert stored(embed, "talker").replace(">two<", ">one<") == before
    adopt(embed, "talker")
    allowed = {**wanted, "allow_device_removal": True}
    planned = embed.converge(allowed, check=True)
    done = embed.converge(allowed)
    assert planned["plan"] == done["plan"]
    assert [(row["what"], row["after"]) for row in done["plan"]] == [("talker devices/disk[vdb]", None)]
    after = stored(embed, "talker")
    assert "data.img" not in after
    for device in ("type='tablet'", "<model type='virtio'", "qemu-xhci", "<memballoon model='none'/>"):
        assert device in after
    assert embed.converge(wanted)["plan"] == []


def test_xml_of_a_running_domain_is_accepted(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker()})
    text = stored(embed, "talker").replace("<domain type", "<domain id='7' type").replace(">one<", ">two<")
    planned = embed.converge({"name": "talker", "xml": text}, check=True)
    done = embed.converge({"name": "talker", "xml": text})
    assert planned["plan"] == done["plan"]
    assert [row["what"] for row in done["plan"]] == ["talker description"]


def test_disk_that_somebody_attached_to_a_running_domain_stays(embed: Embed) -> None:
    """A backup program or a cloud attaches it; nothing but the removal that a task has planned takes it away."""
    image = embed.root / "backup.img"
    image.write_bytes(bytes(1 << 20))
    disk = f"<disk type='file'><source file='{image}'/><target dev='vdb' bus='virtio'/></disk>"
    xml = embed.talker()
    embed.converge({"name": "talker", "xml": xml, "state": "running"})
    attach = f"connection.lookupByName('talker').attachDeviceFlags({disk!r}, libvirt.VIR_DOMAIN_AFFECT_LIVE)"
    embed.libvirt(attach)
    without_xml = {"name": "talker", "state": "running"}
    with_xml = {**without_xml, "xml": xml}
    for marked in (True, False):
        if not marked:
            adopt(embed, "talker")
        for wanted, reason in ((without_xml, "xml"), (with_xml, "permission")):
            for check in (True, False):
                result = embed.converge(wanted, check=check)
                assert result["plan"] == []
                (pending,) = result["domains"][0]["pending"]
                assert (pending["what"], pending["reason"]) == ("devices/disk[vdb]", reason)
    planned = embed.converge({**with_xml, "allow_device_removal": True}, check=True)
    assert [(row["what"], row["how"]) for row in planned["plan"]] == [
        ("talker running devices/disk[vdb]", "detachDevice")
    ]
    # Where this module has once defined the disk, its removal is planned.
    embed.converge({"name": "talker", "state": "shutdown"}, on_timeout="destroy", wait_seconds=1)
    embed.converge({"name": "talker", "xml": embed.talker(devices=disk), "state": "running"})
    embed.converge(with_xml, apply="config")
    planned = embed.converge(with_xml, check=True)
    assert [row["how"] for row in planned["plan"]] == ["detachDevice"]


def test_medium_of_a_running_domain_stays_without_xml(embed: Embed) -> None:
    image = embed.root / "install.iso"
    image.write_bytes(bytes(1 << 20))
    drive = "<disk type='file' device='cdrom'>{0}<target dev='hdc' bus='ide'/><readonly/></disk>"
    embed.converge({"name": "talker", "xml": embed.talker(devices=drive.format("")), "state": "running"})
    medium = drive.format(f"<source file='{image}'/>")
    embed.libvirt(f"connection.lookupByName('talker').updateDeviceFlags({medium!r}, libvirt.VIR_DOMAIN_AFFECT_LIVE)")
    done = embed.converge({"name": "talker", "state": "running"})
    assert done["plan"] == []
    assert [(row["what"], row["reason"]) for row in done["domains"][0]["pending"]] == [("devices/disk[hdc]", "xml")]
