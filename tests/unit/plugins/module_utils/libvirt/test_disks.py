# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of a definition, where they are, what they stand on, and what an undefine would lose."""

from __future__ import annotations

import json
import os
import pathlib
import struct
import xml.etree.ElementTree as ET

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.lookup import is_host
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.disk.disks import Disk, Source, disks_of
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.disk.images import (
    ImageLocator,
    Use,
    backing_file,
    is_of_this_host,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.disk.removal import (
    DiskToDelete,
    find_disks_to_delete,
    refuse_unsafe_deletes,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.identity import with_disks_of
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.undefine import (
    DomainArtifacts,
    loss_changes,
    refuse_unnamed_losses,
)

DEVICES = """
<domain><devices>
  <disk type='file'><source file='/a.qcow2'/>
    <backingStore type='file'><format type='raw'/><source file='/b.raw'/>
      <backingStore type='volume'><source pool='p' volume='c'/><backingStore/></backingStore>
    </backingStore>
    <target dev='vda'/></disk>
  <disk type='volume'><source pool='p' volume='v'/><target dev='vdb'/><shareable/></disk>
  <disk type='network'><source protocol='rbd' name='pool/image'><host name='h'/></source><target dev='vdc'/></disk>
  <disk type='block' device='lun'><source dev='/dev/sdz'/><target dev='sda'/></disk>
  <disk type='file' device='cdrom'><target dev='hda'/></disk>
  <disk type='nvme'><source type='pci' namespace='1'/><target dev='vdd'/></disk>
  <disk type='file'><source file='/no-target'/></disk>
</devices></domain>
"""


def qcow2(path: pathlib.Path, backing: str) -> pathlib.Path:
    name = backing.encode()
    path.write_bytes(struct.pack(">4sIQI", b"QFI\xfb", 3, 104, len(name)).ljust(104, b"\0") + name)
    return path


def test_disks_and_what_they_stand_on() -> None:
    disks = {disk.target: disk for disk in disks_of(ET.fromstring(DEVICES))}
    assert list(disks) == ["vda", "vdb", "vdc", "sda", "hda", "vdd"]
    assert disks["vda"].backing == (Source("file", "/b.raw"), Source("volume", None, "p", "c"))
    shown = [None if disk.source is None else disk.source.shown() for disk in disks.values()]
    assert shown == ["/a.qcow2", "p/v", "pool/image", "/dev/sdz", None, "nvme"]
    assert [target for target, disk in disks.items() if disk.own] == ["vda", "vdc", "sda", "vdd"]
    assert disks_of(None) == []


@pytest.mark.parametrize(
    ("uri", "here"),
    [
        ("qemu:///system", True),
        ("qemu:///embed?root=/x", True),
        ("xen:///system", True),
        ("qemu:///session", True),
        ("qemu+ssh://host/system", False),
        ("qemu://host/system", False),
        ("qemu+unix:///system?socket=/tmp/forwarded", False),
        ("qemu:///system?socket=/tmp/forwarded", False),
        ("test:///default", False),
        ("test:///node.xml", False),
    ],
)
def test_files_are_deleted_of_this_host_only(uri: str, here: bool) -> None:
    assert is_of_this_host(uri) is here


def test_the_header_of_an_overlay_names_what_is_below(tmp_path: pathlib.Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"data")
    messages = {
        "base.raw": str(base),
        str(base): str(base),
        f"file:{base}": str(base),
        "json:" + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(base)}}): str(base),
        "json:" + json.dumps({"driver": "qcow2", "file.filename": str(base)}): str(base),
        "json:{broken": None,
        "nbd://host/export": None,
    }
    for number, (name, below) in enumerate(messages.items()):
        assert backing_file(str(qcow2(tmp_path / f"{number}.qcow2", name))) == below
    for content in (b"", b"QFI\xfb", b"QFI\xfb" + bytes(100), b"plain data, longer than a header of an image"):
        other = tmp_path / "other"
        other.write_bytes(content)
        assert backing_file(str(other)) is None
    assert backing_file(str(tmp_path / "missing")) is None
    places = ImageLocator(None, local=True)
    top = qcow2(tmp_path / "top", "middle")
    qcow2(tmp_path / "middle", "base.raw")
    assert [source.path for source in places.below(Source("file", str(top)))] == [str(tmp_path / "middle"), str(base)]
    loop = qcow2(tmp_path / "loop", "loop")
    assert len(places.below(Source("file", str(loop)))) < 1000
    link, twin = tmp_path / "link", tmp_path / "twin"
    link.symlink_to(base)
    os.link(base, twin)
    for same in (link, twin):
        assert places.names(Source("file", str(same))) & places.names(Source("file", str(base)))
    assert not places.names(Source("file", str(top))) & places.names(Source("file", str(base)))


def test_other_servers_and_devices_are_other_data_and_another_way_there_is_not() -> None:
    def word(disk: str) -> str:
        (found,) = disks_of(
            ET.fromstring(f"<domain><devices><disk {disk}<target dev='vda'/></disk></devices></domain>")
        )
        assert found.source is not None
        return found.source.word()

    nvme = "type='nvme'><source type='pci' namespace='1'{0}><address bus='0x0{1}' slot='0x00'/></source>"
    assert word(nvme.format("", 1)) != word(nvme.format("", 2))
    assert word(nvme.format("", 1)) == word(nvme.format(" index='2'", 1))
    vhost = "type='vhostuser'><source type='unix' path='/{0}.sock'/>"
    assert word(vhost.format("a")) != word(vhost.format("b"))
    network = "type='network'><source protocol='{0}' name='x'><host name='{1}' port='1'/></source>"
    assert word(network.format("nbd", "a")) == word(network.format("nbd", "a"))
    assert len({word(network.format(*one)) for one in (("nbd", "a"), ("nbd", "b"), ("ssh", "a"))}) == 3
    # Its hosts all lead to one cluster.
    assert word(network.format("rbd", "a")) == word(network.format("rbd", "b")) == "network:rbd:x"


def refusal(disk: Disk, uses: tuple[Use, ...] = (), local: bool = True) -> str | None:
    (found,) = find_disks_to_delete("web1", [disk.target], [disk], [], ImageLocator(None, local), uses)
    return found.refusal


def test_what_stays_although_it_was_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(b"data")
    link = tmp_path / "link.raw"
    link.symlink_to(file)
    plain = Disk("vda", "disk", Source("file", str(file)), False, False)
    assert refusal(plain) is None
    assert "a file of another host" in (refusal(plain, local=False) or "")
    assert "needed by vdx of 'web2'" in (refusal(plain, (Use("web2", "vdx", frozenset([str(file)])),)) or "")
    assert "needed by vdb of 'web1'" in (refusal(plain, (Use("web1", "vdb", frozenset([str(file)])),)) or "")
    assert refusal(plain, (Use("web1", "vda", frozenset([str(file)])),)) is None
    blind = Use("web2", "vdx", frozenset(["/overlay"]), "/overlay cannot be read: Permission denied")
    assert "may be needed by vdx of 'web2': /overlay cannot be read" in (refusal(plain, (blind,)) or "")
    assert refusal(plain, (Use("web1", "vda", frozenset(), "closed"),)) is None
    kinds = {
        "is a cdrom": Disk("hda", "cdrom", plain.source, True, False),
        "is a floppy": Disk("fda", "floppy", plain.source, False, False),
        "passed through": Disk("sda", "lun", Source("block", "/dev/sda"), False, False),
        "read-only": Disk("vdb", "disk", plain.source, True, False),
        "shareable": Disk("vdc", "disk", plain.source, False, True),
        "symbolic link": Disk("vdd", "disk", Source("file", str(link)), False, False),
        "not a plain file": Disk("vde", "disk", Source("file", str(tmp_path)), False, False),
        "neither a plain file": Disk("vdf", "disk", Source("block", "/dev/zero"), False, False),
        "no medium": Disk("vdg", "disk", None, False, False),
    }
    for words, disk in kinds.items():
        assert words in (refusal(disk) or ""), words
    moved = [Disk("vda", "disk", Source("file", "/overlay"), False, False)]
    (found,) = find_disks_to_delete("web1", ["vda"], [plain], moved, ImageLocator(None, True), [])
    assert "another file in the running domain" in (found.refusal or "")
    gone = Disk("vda", "disk", Source("file", str(tmp_path / "gone")), False, False)
    (found,) = find_disks_to_delete("web1", ["vda", "vda"], [gone], [], ImageLocator(None, True), [])
    assert (found.there, found.refusal) == (False, None)
    with pytest.raises(
        InvalidInput, match=r"^Invalid value 'vda' for remove_disks\[1\]: Disk vda \(/x\) of domain 'web1' is it\.$"
    ):
        refuse_unsafe_deletes("web1", ["vdb", "vda"], [DiskToDelete("vda", "/x", refusal="is it")])


def test_an_older_libvirt_cannot_keep_the_state_of_a_tpm_and_that_is_reported() -> None:
    with pytest.raises(TapvirtError, match="TPM state"):
        refuse_unnamed_losses("web1", DomainArtifacts(tpm="/tpm", keeps_tpm=False), ["nvram"])
    refuse_unnamed_losses("web1", DomainArtifacts(tpm="/tpm", keeps_tpm=False), ["tpm"])
    refuse_unnamed_losses("web1", DomainArtifacts(tpm="/tpm", keeps_tpm=True), [])


def test_everything_that_goes_has_a_row_and_what_stays_has_none() -> None:
    found = DomainArtifacts("/save", ("s1", "s2"), ("c1",), "/nvram", "/tpm")
    every = ["managed_save", "snapshots", "checkpoints", "nvram", "tpm"]
    rows = [(change.what, change.before) for change in loss_changes("web1", found, every)]
    assert rows == [
        ("web1 managed_save", "/save"),
        ("web1 snapshots", ["s1", "s2"]),
        ("web1 checkpoints", ["c1"]),
        ("web1 nvram", "/nvram"),
        ("web1 tpm", "/tpm"),
    ]
    assert loss_changes("web1", found, []) == []
    assert loss_changes("web1", DomainArtifacts(), every) == []


def test_of_many_names_the_first_are_shown_and_the_rest_counted() -> None:
    names = tuple(f"s{number}" for number in range(23))
    (row,) = loss_changes("web1", DomainArtifacts(snapshots=names), ("snapshots",))
    assert row.before == [*names[:20], "and 3 more"]


def test_a_disk_stays_on_its_overlay_with_the_format_of_that() -> None:
    wanted = ET.fromstring(
        "<domain><devices><disk type='file'><driver name='qemu' type='raw' cache='none'/><source file='/base'/>"
        "<target dev='vda'/></disk><disk type='file'><source file='/new'/><target dev='vdb'/></disk></devices></domain>"
    )
    existing = ET.fromstring(
        "<domain><devices><disk type='file'><driver name='qemu' type='qcow2'/><source file='/over'/>"
        "<target dev='vda'/></disk><disk type='file'><source file='/old'/><target dev='vdb'/></disk></devices></domain>"
    )
    first, second = with_disks_of(wanted, existing, ["vda"]).findall("devices/disk")
    assert [source.get("file") for source in first.findall("source")] == ["/over"]
    driver = first.find("driver")
    assert driver is not None
    assert driver.attrib == {"name": "qemu", "type": "qcow2", "cache": "none"}
    assert [source.get("file") for source in second.findall("source")] == ["/new"]


def test_domain_0_is_the_host_and_no_guest() -> None:
    assert is_host("Xen", 0)
    assert not is_host("Xen", 1)
    assert not is_host("QEMU", 0)
