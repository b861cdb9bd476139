# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for snapshots: what is refused, and what a task's items make of each other. Pure."""

from __future__ import annotations

import dataclasses
import typing as t
import xml.etree.ElementTree as ET

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.snapshot.model import (
    Snapshot,
    overlay_path,
    parse_snapshot,
    snapshot_xml,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.snapshot.plan import plan_snapshot
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.snapshot.projection import (
    Observed,
    ProjectedState,
    SnapshotPlan,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.snapshot.run import read_wanted

DOMAIN = """
<domain type='kvm'>
  <name>web1</name>
  <os{efi}><type>hvm</type></os>
  <devices>
    <disk type='file'><driver type='qcow2'/><source file='/i/a.qcow2'/><target dev='vda'/></disk>
    <disk type='block'><driver type='{format}'/><source dev='/dev/vg/b'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><target dev='hdc'/><readonly/></disk>
    {devices}
  </devices>
</domain>
"""
AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='{0}'/></channel>"
SNAPSHOT = """
<domainsnapshot>
  <name>{name}</name>
  <state>{state}</state>
  <parent><name>{parent}</name></parent>
  <creationTime>1795454839</creationTime>
  <memory snapshot='{memory}'/>
  <disks>
    <disk name='vda' snapshot='{mode}' type='file'>{source}</disk>
    <disk name='vdb' snapshot='no'/>
  </disks>
  <domain type='kvm'>
    <name>web1</name>
    <devices><disk type='file'><source file='{image}'/><target dev='vda'/></disk></devices>
  </domain>
</domainsnapshot>
"""


def snapshot(name: str, parent: str = "", file: str | None = None, **options: str) -> Snapshot:
    values = {"state": "shutoff", "memory": "no", "image": "/i/a.qcow2", "mode": "external" if file else "internal"}
    source = f"<driver type='qcow2'/><source file='{file}'/>" if file else ""
    return parse_snapshot(SNAPSHOT.format(name=name, parent=parent, source=source, **{**values, **options}))


def observed(*snapshots: Snapshot, state: str = "shutoff", version: int = 11003000, **options: t.Any) -> Observed:
    saved = options.pop("managed_save", False)
    domain = ET.fromstring(DOMAIN.format(**{"efi": "", "format": "qcow2", "devices": "", **options}))
    return Observed(
        state=state,
        active=state != "shutoff",
        managed_save=saved,
        definition=domain,
        stored=domain,
        snapshots={one.name: one for one in snapshots},
        current=snapshots[-1].name if snapshots else None,
        library_version=version,
    )


def wanted(**options: t.Any) -> dict[str, t.Any]:
    names = ("kind", "description", "disks", "memory_file", "with_children")
    disks = [{"file": None, "include": True, **disk} for disk in options.pop("disks", [])]
    return {
        **dict.fromkeys(names),
        "domain": "web1",
        "name": "new",
        "state": "present",
        "quiesce": False,
        "disks": disks,
        **options,
    }


def plans(found: Observed, *items: dict[str, t.Any]) -> list[SnapshotPlan]:
    read = read_wanted(items)
    outlook = ProjectedState(found, read)
    return [plan_snapshot(one, outlook) for one in read]


def refusal(found: Observed, *items: dict[str, t.Any]) -> str:
    with pytest.raises(TapvirtError) as caught:
        plans(found, *items)
    return caught.value.message


VDB = {"target": "vdb", "file": "/i/b.new"}
EXTERNAL = {"kind": "external", "disks": [VDB]}


@pytest.mark.parametrize(
    ("options", "domain", "message"),
    [
        (
            {"name": "1"},
            {},
            (
                "name: QEMU would take this name for the number of another internal snapshot in the image. Did you "
                "mean s1?"
            ),
        ),
        (
            {},
            {"efi": " firmware='efi'"},
            (
                "kind: An internal snapshot cannot contain the firmware's variables (NVRAM), which are in a raw file "
                "beside the disks. Set kind: external."
            ),
        ),
        (
            {},
            {"format": "raw"},
            "kind: An internal snapshot needs qcow2 images, but disk vdb (/dev/vg/b) is raw. Set kind: external.",
        ),
        (
            {"disks": [{"target": "vdb", "include": False}]},
            {},
            (
                "disks[0].include: An internal snapshot is in the image of every writable disk, so disk vdb cannot "
                "have a file or be left out. Set kind: external."
            ),
        ),
        (
            {"memory_file": "/m"},
            {"state": "running"},
            (
                "memory_file: An internal snapshot has the memory in the image, so it cannot have a memory_file. Set "
                "kind: external."
            ),
        ),
        (
            {"kind": "external"},
            {},
            (
                "disks: Disk vdb (/dev/vg/b) is of type block, so no overlay can be placed beside it. Set a file for "
                "disk vdb in disks."
            ),
        ),
        (
            {**EXTERNAL, "memory_file": "/m"},
            {},
            "memory_file: Domain 'web1' does not run, so it has no memory to store.",
        ),
        (
            {"kind": "external", "disks": [{"target": "vdb", "include": False}], "memory_file": "/m"},
            {"state": "running"},
            "memory_file: A snapshot with memory needs every writable disk, but this one leaves out vdb.",
        ),
        (
            {**EXTERNAL, "quiesce": True},
            {},
            "quiesce: Only an external snapshot of a running domain without its memory can be quiesced.",
        ),
        (
            {**EXTERNAL, "quiesce": True},
            {"state": "running"},
            "quiesce: Domain 'web1' has no channel for the guest agent, which freezes the file systems.",
        ),
        (
            {**EXTERNAL, "quiesce": True},
            {"state": "running", "devices": AGENT.format("disconnected")},
            "quiesce: Domain 'web1' is not connected to its guest agent, which freezes the file systems.",
        ),
        (
            {"kind": "external", "disks": [{"target": "vdx"}]},
            {},
            "disks[0].target: Domain 'web1' has no such disk. Its disks are: vda, vdb, hdc. Did you mean vdb or vda?",
        ),
        (
            {"kind": "external", "disks": [VDB, {"target": "hdc", "file": "/x"}]},
            {},
            "disks[1].file: Disk hdc is read-only, removable or empty, so it cannot have an overlay.",
        ),
        (
            {"kind": "external", "disks": [{"target": name, "include": False} for name in ("vda", "vdb")]},
            {},
            "kind: The snapshot would have no disk of domain 'web1'.",
        ),
        (
            {"kind": "external", "disks": [{**VDB, "file": "b"}]},
            {},
            "disks[0].file: The file needs an absolute path of printable characters without '..'.",
        ),
        (
            {"kind": "external", "disks": [{**VDB, "file": "/i/../b"}]},
            {},
            "disks[0].file: The file needs an absolute path of printable characters without '..'.",
        ),
        (
            {"kind": "external", "disks": [{**VDB, "file": "/i/a.new"}]},
            {},
            "disks[0].file: The file already belongs to a disk or a snapshot.",
        ),
        (
            {"kind": "external", "disks": [{**VDB, "file": "/i/" + "b" * 256}]},
            {},
            "disks[0].file: The file has a name of more than 255 bytes.",
        ),
        (
            {"name": "../new"},
            {},
            ("snapshots[0].name: A name cannot be a path: it has no '/', and it is not '.' or '..'. Did you mean new?"),
        ),
        (
            {"name": ".new"},
            {},
            (
                "snapshots[0].name: The name of a snapshot cannot start with '.', because libvirt stores it in a file"
                " of this name."
            ),
        ),
        (
            {"description": "a\x00b"},
            {},
            ("snapshots[0].description: The description has a control character, and only printable text is allowed."),
        ),
        (
            {"name": "lod", "state": "reverted"},
            {},
            "name: No snapshot of domain 'web1' has this name. Did you mean old?",
        ),
        (
            {"name": "old", "kind": "external"},
            {},
            (
                "kind: The existing snapshot 'old' of domain 'web1' has 'internal', and a snapshot cannot be edited. "
                "Remove the snapshot first."
            ),
        ),
        (
            {"name": "old", "description": "other"},
            {},
            (
                "description: The existing snapshot 'old' of domain 'web1' has none, and a snapshot cannot be edited."
                " Remove the snapshot first."
            ),
        ),
        (
            {"name": "old", "disks": [{"target": "vda", "include": False}]},
            {},
            (
                "disks[0].include: The existing snapshot 'old' of domain 'web1' includes this disk, and a snapshot "
                "cannot be edited. Remove the snapshot first."
            ),
        ),
        (
            {"name": "old", "disks": [{"target": "vdb", "file": "/f"}]},
            {},
            (
                "disks[0].file: The existing snapshot 'old' of domain 'web1' has none, and a snapshot cannot be "
                "edited. Remove the snapshot first."
            ),
        ),
        (
            {"name": "old", "disks": [{"target": "vdx"}]},
            {},
            (
                "disks[0].target: The existing snapshot has no such disk. Its disks are: vda, vdb. Did you mean vdb or "
                "vda?"
            ),
        ),
        (
            {"name": "old", "state": "reverted"},
            {"managed_save": True},
            (
                "state: Domain 'web1' has saved memory (a managed save), which would resume on other disks after the "
                "revert. Start the domain first, or discard the saved memory."
            ),
        ),
        (
            {"name": "old", "state": "absent"},
            {"more": [snapshot("child", "old")]},
            (
                "with_children: A value is needed, because snapshot 'old' of domain 'web1' has children: child. Set "
                "with_children: true to remove them too, or with_children: false to keep them below its parent."
            ),
        ),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, t.Any], domain: dict[str, t.Any], message: str) -> None:
    found = observed(snapshot("old"), *domain.pop("more", []), **domain)
    assert refusal(found, wanted(**options)).endswith(f" for {message}")


def test_what_stands_in_its_own_way_is_refused() -> None:
    found = observed(snapshot("old"), snapshot("child", "old"))
    twice = refusal(found, wanted(), wanted())
    assert twice == "Invalid value 'new' for snapshots[1].name: snapshots[0] has the same domain and name."
    assert refusal(found, wanted(name="old", state="reverted"), wanted()) == (
        "Invalid value 'reverted' for snapshots[0].state: The task has other snapshots of domain 'web1', which cannot "
        "be planned before the revert. Revert in a task of its own."
    )
    away = wanted(name="old", state="absent", with_children=True)
    message = (
        "Invalid value True for with_children: Snapshot '{0}' would be removed as a child of 'old', but another item "
        "of the task has it as present."
    )
    assert refusal(found, wanted(name="child"), away) == message.format("child")
    # A snapshot that this task takes hangs below the current one.
    assert refusal(found, wanted(), away) == message.format("new")


def test_internal_state_is_not_touched_where_the_disks_are_others() -> None:
    over = snapshot("over", "old", file="/i/a.over")
    found = dataclasses.replace(observed(snapshot("old"), over), definition=ET.fromstring(
        DOMAIN.format(efi="", format="qcow2", devices="").replace("/i/a.qcow2", "/i/a.over")
    ))  # fmt: skip
    message = "The state of snapshot 'old' is in /i/a.qcow2, but disk vda of the domain now uses /i/a.over."
    assert message in refusal(found, wanted(name="old", state="reverted"))
    away = wanted(name="old", state="absent", with_children=False)
    assert message in refusal(dataclasses.replace(found, active=True), away)
    assert [one.name for one in plans(found, away)[0].delete] == ["old"]


def test_external_snapshots_go_as_far_as_the_library_can() -> None:
    over = snapshot("over", file="/i/a.over", state="disk-snapshot")
    away = wanted(name="over", state="absent", with_children=False)
    message = refusal(observed(over, version=8010000), away)
    assert message == (
        "Invalid value 'absent' for state: Snapshot 'over' is external. libvirt 8.10.0 would only forget it and leave "
        "its files with the domain's data (/i/a.over); 9.0.0 and later can merge them."
    )
    (plan,) = plans(observed(over, version=9000000), away)
    assert [row.what for row in plan.changes] == ["web1 snapshot over", "web1 file /i/a.over"]
    back = wanted(name="over", state="reverted")
    assert "libvirt 9.8.0 cannot revert to such a snapshot (9.9.0 and later can)" in refusal(
        observed(over, version=9008000), back
    )
    (plan,) = plans(observed(over, version=9009000), back)
    assert plan.revert
    children = [snapshot(name, "over", file=f"/i/a.{name}", image="/i/a.over") for name in ("one", "two")]
    assert refusal(observed(over, *children), away) == (
        "Invalid value 'absent' for state: libvirt cannot merge the external snapshot 'over', because its image has "
        "several users: snapshot 'one', snapshot 'two'."
    )
    inside = snapshot("inside", "over", image="/i/a.over")
    assert refusal(observed(over, inside), away) == (
        "Invalid value 'absent' for state: The removal would delete /i/a.over, which has the state of snapshot 'inside'"
        ". Remove 'inside' first."
    )


def test_after_a_revert_the_domain_and_the_children_stand_on_other_overlays() -> None:
    over = dataclasses.replace(snapshot("over", file="/i/a.over"), branch={"vda": "/i/a.1795454840"})
    child = snapshot("child", "over", file="/i/a.child", image="/i/a.over")
    found = dataclasses.replace(observed(over, child), current="over", missing=frozenset(["/i/a.child"]))
    assert over.files == ["/i/a.over", "/i/a.1795454840"]
    message = refusal(found, wanted(name="over", state="absent", with_children=False))
    assert message.endswith("because its image has several users: snapshot 'child', the domain.")
    (plan,) = plans(found, wanted(name="over", state="absent", with_children=True))
    assert [row.what.partition(" ")[2] for row in plan.changes] == [
        "snapshot child",
        "file /i/a.over",
        "snapshot over",
        "file /i/a.1795454840",
    ]
    assert plan.goes == ["/i/a.over", "/i/a.1795454840"]
    (plan,) = plans(found, wanted(name="child", state="reverted"))
    assert [(row.what, row.after) for row in plan.changes[1:3]] == [
        ("web1 disk vda", "a new overlay above /i/a.over, named by libvirt"),
        ("web1 file /i/a.1795454840", None),
    ]


def test_children_that_are_named_too_need_no_word() -> None:
    found = observed(snapshot("one"), snapshot("two", "one"))
    first, second = plans(found, wanted(name="one", state="absent"), wanted(name="two", state="absent"))
    assert [[one.name for one in plan.delete] for plan in (first, second)] == [["one"], ["two"]]


def test_a_task_that_takes_two_external_snapshots_stacks_the_overlays() -> None:
    items = [wanted(name=name, kind="external", disks=[{**VDB, "file": f"/i/b.{name}"}]) for name in ("one", "two")]
    first, second = plans(observed(), *items)
    assert [row.after["backing"] for row in first.changes[1:]] == ["/i/a.qcow2", "/dev/vg/b"]
    assert [(row.what, row.after["backing"]) for row in second.changes[1:]] == [
        ("web1 file /i/a.two", "/i/a.one"),
        ("web1 file /i/b.two", "/i/b.one"),
    ]


def test_a_file_is_for_one_snapshot_of_one_domain() -> None:
    there = dataclasses.replace(snapshot("there"), memory_file="/j/m")
    domain = ET.fromstring(DOMAIN.format(efi="", format="qcow2", devices="").replace("/i/", "/j/"))
    other = dataclasses.replace(observed(there, state="running"), definition=domain)
    taken: set[str] = set()
    first, second = ProjectedState(observed(state="running"), [], taken), ProjectedState(other, [], taken)

    def plan(outlook: ProjectedState, memory: str) -> SnapshotPlan:
        disks = [{**VDB, "file": memory + ".vdb"}, {"target": "vda", "file": memory + ".vda"}]
        (one,) = read_wanted([wanted(kind="external", disks=disks, memory_file=memory)])
        return plan_snapshot(one, outlook)

    for memory in ("/i/a.qcow2", "/j/a.qcow2", "/j/m"):
        with pytest.raises(
            TapvirtError, match=f"'{memory}' for memory_file: The file already belongs to a disk or a snapshot"
        ):
            plan(first, memory)
    assert plan(first, "/i/m").create is not None
    with pytest.raises(TapvirtError, match=r"'/i/m\.vda' for disks.1..file: The file already belongs to a disk"):
        plan(second, "/i/m")


def test_the_xml_names_every_disk_and_is_read_back_the_same() -> None:
    (plan,) = plans(observed(state="running"), wanted(**EXTERNAL, memory_file="/i/m", description="<&>"))
    assert plan.create is not None
    text = snapshot_xml(plan.create)
    again = parse_snapshot(text)
    assert (again.description, again.memory, again.memory_file) == ("<&>", "external", "/i/m")
    assert again.disks == plan.create.disks
    assert again.overlays == {"vda": "/i/a.new", "vdb": "/i/b.new"}
    assert again.kind == "external"


def test_a_memory_file_of_two_snapshots_stays_with_the_other() -> None:
    shared = [
        dataclasses.replace(snapshot(name, parent, file=f"/i/a.{name}"), memory="external", memory_file="/i/m")
        for name, parent in (("one", ""), ("two", "one"))
    ]
    (plan,) = plans(observed(*shared), wanted(name="two", state="absent"))
    assert [row.what for row in plan.changes] == ["web1 snapshot two", "web1 file /i/a.two"]


@pytest.mark.parametrize(
    ("image", "overlay"),
    [("/i/a.qcow2", "/i/a.s"), ("/i/a", "/i/a.s"), ("/i.d/a", "/i.d/a.s"), ("/i/.a", "/i/.a.s"), ("/a.b.c", "/a.b.s")],
)
def test_an_overlay_lies_beside_its_image(image: str, overlay: str) -> None:
    assert overlay_path(image, "s") == overlay


def test_revert_shows_every_device_that_the_domain_loses() -> None:
    channel = "<channel type='unix'><target type='virtio' name='c{0}'/></channel>"
    found = observed(snapshot("old"), devices="".join(channel.format(number) for number in range(25)))
    (plan,) = plans(found, wanted(name="old", state="reverted"))
    lost = {change.what for change in plan.changes if change.after is None}
    assert lost >= {f"web1 devices/channel[c{number}]" for number in range(25)}
