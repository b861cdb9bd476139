# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running domain against its stored definition. Pure, on XML as libvirt 9.0 and QEMU 7.2 wrote it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.live.edits import (
    HostModel,
    LiveEdit,
    RefusedEdits,
    asked_of,
    live_edits,
    pending_differences,
    refused_reason,
)

STORED = """
<domain type='kvm'>
  <name>web1</name><memory unit='KiB'>65536</memory><currentMemory unit='KiB'>65536</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <cpu mode='host-model' check='partial'/>
  <devices>
    <disk type='file' device='disk'><source file='/a.raw'/><target dev='vda' bus='virtio'/></disk>
    <graphics type='vnc' port='-1' autoport='yes'><listen type='address'/></graphics>
    <serial type='pty'><target type='isa-serial' port='0'/></serial>
  </devices>
</domain>
"""
RUNNING = """
<domain type='kvm' id='4'>
  <name>web1</name><memory unit='KiB'>65536</memory><currentMemory unit='KiB'>65536</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <resource><partition>/machine</partition></resource>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>/nvram/web1.fd</nvram>
  </os>
  <cpu mode='custom' match='exact' check='full'><model>Skylake</model><feature policy='require' name='x'/></cpu>
  <devices>
    <disk type='file' device='disk'>
      <source file='/a.raw' index='1'/><backingStore/><target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>
    </disk>
    <graphics type='vnc' port='5900' autoport='yes' listen='127.0.0.1'>
      <listen type='address' address='127.0.0.1'/>
    </graphics>
    <serial type='pty'><source path='/dev/pts/1'/><target type='isa-serial' port='0'/><alias name='serial0'/></serial>
  </devices>
  <seclabel type='dynamic' model='dac' relabel='yes'/>
</domain>
"""


def pair(stored: tuple[str, str] = ("", ""), running: tuple[str, str] = ("", "")) -> tuple[ET.Element, ET.Element]:
    assert stored[0] in STORED
    assert running[0] in RUNNING
    return ET.fromstring(STORED.replace(*stored, 1)), ET.fromstring(RUNNING.replace(*running, 1))


def test_a_start_alone_leaves_nothing_pending() -> None:
    assert pending_differences(*pair()) == []
    assert live_edits(*pair()) == []


@pytest.mark.parametrize(
    ("stored", "running", "path"),
    [
        (("/a.raw", "/b.raw"), ("", ""), "devices/disk[vda]/source@file"),
        (("</devices>", "<sound model='ich9'/></devices>"), ("", ""), "devices/sound[ich9]"),
        (("", ""), ("</devices>", "<disk><target dev='vdb'/></disk></devices>"), "devices/disk[vdb]"),
        (("pc-q35-7.2", "pc-q35-8.0"), ("", ""), "os/type@machine"),
        (("", ""), ("static'>2", "static' current='1'>2"), "vcpu@current"),
        (("", ""), ("<target dev='vda'", "<readonly/><target dev='vda'"), "devices/disk[vda]/readonly"),
    ],
)
def test_what_waits_for_a_restart(stored: tuple[str, str], running: tuple[str, str], path: str) -> None:
    assert [row.path for row in pending_differences(*pair(stored, running))] == [path]


def test_memory_and_processors_can_be_edited_up_to_what_the_guest_booted_with() -> None:
    stored, running = pair(running=("static'>2", "static' current='1'>2"))
    assert live_edits(stored, running) == [LiveEdit("vcpus", "vcpu@current", 1, 2)]
    stored, running = pair(stored=("static'>2", "static'>4"))
    assert live_edits(stored, running) == []
    less = ("<currentMemory unit='KiB'>65536", "<currentMemory unit='KiB'>32768")
    assert live_edits(*pair(stored=less)) == [LiveEdit("memory", "currentMemory", 65536, 32768)]


def test_what_was_asked_without_effect_is_remembered_by_its_wish() -> None:
    edit = LiveEdit("memory", "currentMemory", 65536, 32768)
    text, _prefix, uri = RefusedEdits().with_key(edit.key()).note()
    note = text.replace("<asked", f"<asked xmlns='{uri}'")
    asked = asked_of(ET.fromstring(f"<domain><metadata>{note}</metadata></domain>"))
    assert edit.key() in asked.keys
    assert LiveEdit("memory", "currentMemory", 65536, 16384).key() not in asked.keys
    assert asked_of(ET.fromstring("<domain/>")) == RefusedEdits()


@pytest.mark.parametrize(
    ("stored", "running", "kinds"),
    [
        (("</devices>", "<disk><target dev='vdb' bus='virtio'/></disk></devices>"), ("", ""), ["attach"]),
        (("", ""), ("</devices>", "<disk><target dev='vdb' bus='virtio'/></disk></devices>"), ["detach"]),
        (("</devices>", "<disk><target dev='sdb' bus='sata'/></disk></devices>"), ("", ""), []),
        (("/a.raw", "/b.raw"), ("", ""), []),
    ],
)
def test_devices_are_plugged_where_they_can_be(
    stored: tuple[str, str], running: tuple[str, str], kinds: list[str]
) -> None:
    assert [edit.kind for edit in live_edits(*pair(stored, running))] == kinds


def test_a_medium_is_changed_while_it_runs() -> None:
    disk = "<disk type='file' device='cdrom'><source file='/{0}.iso'/><target dev='sda' bus='sata'/></disk></devices>"
    stored, running = pair(("</devices>", disk.format("b")), ("</devices>", disk.format("a")))
    (edit,) = live_edits(stored, running)
    assert (edit.kind, edit.path, edit.before, edit.after) == ("update", "devices/disk[sda]", "/a.iso", "/b.iso")


def test_an_empty_drive_has_no_format_while_it_runs_and_that_waits_for_nothing() -> None:
    drive = (
        "<disk type='file' device='cdrom'><driver name='qemu'{0}/>{1}<target dev='sda' bus='sata'/></disk></devices>"
    )
    empty = ("</devices>", drive.format("", "<source index='7'/>"))
    stored, running = pair(("</devices>", drive.format(" type='raw'", "")), empty)
    assert pending_differences(stored, running) == []
    medium = drive.format(" type='raw'", "<source file='/a.iso'/>")
    (edit,) = live_edits(*pair(("</devices>", medium), empty))
    assert (edit.kind, edit.path, edit.before) == ("update", "devices/disk[sda]", None)


def test_the_password_of_a_display_is_changed_where_it_listens_and_never_shown() -> None:
    listens = "<graphics type='vnc' port='5900' autoport='yes' listen='127.0.0.1'"
    stored = ("autoport='yes'>", "autoport='yes' passwd='hunter3'>")
    (edit,) = live_edits(*pair(stored, (listens, listens + " passwd='hunter2'")))
    assert (edit.kind, edit.before, edit.after) == ("update", "********", "********")
    assert 'passwd="hunter3"' in edit.xml
    assert 'port="5900"' in edit.xml
    assert "127.0.0.1" in edit.xml


def test_the_fallback_of_a_named_processor_is_set_by_each_start() -> None:
    named = "<cpu mode='custom' match='exact'{0}><model fallback='{1}'>Westmere</model></cpu>"
    stored = ET.fromstring(STORED.replace("<cpu mode='host-model' check='partial'/>", named.format("", "allow")))
    running = RUNNING.partition("<cpu")[0] + named.format(" check='full'", "forbid") + RUNNING.partition("</cpu>")[2]
    assert pending_differences(stored, ET.fromstring(running)) == []


def test_what_was_asked_without_effect_waits_for_the_guest_or_for_a_restart() -> None:
    kinds = ("memory", "vcpus", "attach", "detach", "update")
    edits = [LiveEdit(kind, "p", None, None) for kind in kinds]
    assert [refused_reason(edit, RefusedEdits()) for edit in edits] == [
        "guest",
        "restart",
        "restart",
        "detach_pending",
        "restart",
    ]
    refused = RefusedEdits().with_key(edits[3].key(), refused=True)
    assert refused_reason(edits[3], refused) == "restart"


def test_a_start_rounds_memory_up_and_that_waits_for_nothing() -> None:
    stored = ET.fromstring(STORED.replace(">65536<", ">65000<"))
    assert pending_differences(stored, ET.fromstring(RUNNING)) == []
    assert live_edits(stored, ET.fromstring(RUNNING)) == []


def test_processors_are_counted_however_a_definition_reports_how_many_are_on() -> None:
    stored, running = pair(stored=("static'>2", "static' current='2'>4"))
    assert [(row.path, row.before, row.after) for row in pending_differences(stored, running)] == [("vcpu", "2", "4")]


@pytest.mark.parametrize(
    ("host_model", "waits"), [(None, []), (("Skylake", None), []), (("EPYC", "AMD"), ["cpu@mode"])]
)
def test_the_host_s_processor_is_distinguished_from_another_one(host_model: HostModel | None, waits: list[str]) -> None:
    stored, running = pair()
    assert [row.path for row in pending_differences(stored, running, host_model)] == waits


@pytest.mark.parametrize("mode", ["maximum", "host-passthrough"])
def test_a_mode_that_a_start_keeps_waits_where_another_one_runs(mode: str) -> None:
    stored = ET.fromstring(STORED.replace("host-model", mode))
    assert [row.path for row in pending_differences(stored, ET.fromstring(RUNNING))] == ["cpu@mode"]


def test_title_and_description_are_changed_while_it_runs() -> None:
    stored, running = pair(("<name>", "<title>New</title><name>"), ("<name>", "<description>Old</description><name>"))
    assert pending_differences(stored, running) == []
    assert live_edits(stored, running) == [
        LiveEdit("title", "title", None, "New"),
        LiveEdit("description", "description", "Old", None),
    ]


def test_a_display_that_asks_for_a_password_does_so_until_a_restart() -> None:
    listens = "<graphics type='vnc' port='5900'"
    stored, running = pair(running=(listens, listens + " passwd='hunter2'"))
    assert live_edits(stored, running) == []
    (row,) = pending_differences(stored, running)
    assert (row.path, row.after, row.secret) == ("devices/graphics[vnc]@passwd", None, True)
