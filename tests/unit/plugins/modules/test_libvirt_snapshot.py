# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_snapshot and libvirt_snapshot_info against libvirt's real QEMU driver and qcow2 images, without a daemon."""

from __future__ import annotations

import pathlib
import subprocess
import typing as t

import libvirt
import pytest
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.node import node_uri
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.results import plan_changes

if t.TYPE_CHECKING:
    from ansible_collections.tapvirt.host.tests.unit.support.libvirt.embed import Embed

REVERTS_EXTERNAL_SINCE = 9009000
SUBJECT = """
<domain type='qemu'>
  <name>subject</name>
  <memory unit='MiB'>16</memory>
  <vcpu>{vcpus}</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file'><driver name='qemu' type='qcow2'/><source file='{root}/a.qcow2'/><target dev='vda'/></disk>
    <disk type='file'><driver name='qemu' type='{format}'/><source file='{root}/b.{format}'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class Subject:
    """A domain with two disks, whose first bytes tell what was written last."""

    def __init__(self, embed: Embed) -> None:
        self.embed = embed
        self.root = embed.root
        for name in ("a.qcow2", "b.qcow2"):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.root / name, "1M"], check=True)
        (self.root / "b.raw").write_bytes(bytes(1 << 20))
        self.define()

    def define(self, state: str = "present", **changes: t.Any) -> None:
        xml = SUBJECT.format(**{"root": self.root, "vcpus": 1, "format": "qcow2", **changes})
        self.embed.converge({"name": "subject", "xml": xml, "state": state}, wait_seconds=1, on_timeout="destroy")

    def be(self, state: str) -> None:
        self.embed.converge({"name": "subject", "state": state}, wait_seconds=1, on_timeout="destroy")

    def module(self, *snapshots: dict[str, t.Any], check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        wanted = [{"domain": "subject", **one} for one in snapshots]
        return self.embed.module("libvirt_snapshot", check=check, snapshots=wanted, **args)

    def converge(self, *snapshots: dict[str, t.Any], again: bool = True) -> dict[str, t.Any]:
        """Converge in check mode, for real, and once more: the plan is the same, and then empty."""
        files = self.files()
        planned = self.module(*snapshots, check=True)
        assert not planned.get("failed"), planned["msg"]
        assert self.files() == files
        done = self.module(*snapshots)
        assert not done.get("failed"), done["msg"]
        assert planned["plan"] == done["plan"]
        assert planned["snapshots"] == done["snapshots"]
        if again:
            assert self.module(*snapshots)["plan"] == []
        return done

    def refused(self, *snapshots: dict[str, t.Any]) -> str:
        """Return why a task is refused, and make sure that it changed nothing."""
        before = self.files()
        result = self.module(*snapshots)
        assert result["failed"]
        assert not result.get("changed")
        assert self.files() == before
        assert "\n" not in result["msg"]
        return str(result["msg"])

    def rows(self) -> dict[str, dict[str, t.Any]]:
        result = self.embed.module("libvirt_snapshot_info", domains=["subject"])
        assert not result["truncated"]
        return {row["name"]: row for row in result["snapshots"]}

    def files(self) -> list[str]:
        """Return the names of all images, and of libvirt's files that are the snapshots."""
        kept = self.root / "e" / "lib" / "qemu" / "snapshot" / "subject"
        return sorted(
            path.name for directory in (self.root, kept) if directory.exists() for path in directory.iterdir()
        )

    def write(self, image: str, value: int) -> None:
        self._image(image, f"write -P {value} 0 64k")

    def holds(self, image: str) -> int:
        """Return the byte that an image begins with."""
        return int(self._image(image, "read -v 0 1").split()[1], 16)

    def _image(self, image: str, command: str) -> str:
        argv = ["qemu-io", "-f", "qcow2", "-c", command, str(self.root / image)]
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        assert "ailed" not in done.stdout, done.stdout
        return done.stdout


@pytest.fixture
def subject(embed: Embed) -> Subject:
    return Subject(embed)


# ---- internal --------------------------------------------------------------------------------------------------------


def test_an_internal_snapshot_of_a_domain_that_is_off_brings_disks_and_definition_back(subject: Subject) -> None:
    subject.write("a.qcow2", 1)
    done = subject.converge({"name": "first", "description": "the <first>"})
    modes = {"vda": "internal", "vdb": "internal", "hdc": "no"}
    after = {"kind": "internal", "state": "shutoff", "memory": "no", "disks": modes}
    assert plan_changes(done) == [("subject snapshot first", None, after)]
    subject.write("a.qcow2", 2)
    subject.define(vcpus=2)
    reverted = subject.converge({"name": "first", "state": "reverted"}, again=False)
    assert subject.holds("a.qcow2") == 1
    assert [(row["what"], row["before"], row["after"]) for row in reverted["plan"][1:]] == [("subject vcpu", "2", "1")]
    assert subject.embed.module("libvirt_domain_info")["domains"][0]["max_vcpus"] == 1
    row = subject.rows()["first"]
    assert (row["description"], row["kind"], row["current"], row["memory"]) == ("the <first>", "internal", True, None)
    assert (row["parent"], row["children"], row["files"]) == (None, 0, [])
    assert row["disks"][0] == {
        "target": "vda",
        "snapshot": "internal",
        "file": None,
        "image": f"{subject.root}/a.qcow2",
    }


def test_memory_of_a_running_domain_is_inside_and_states_are_reached_again(subject: Subject) -> None:
    subject.converge({"name": "off"})
    subject.be("running")
    done = subject.converge({"name": "on"})
    assert (done["plan"][0]["after"]["memory"], done["snapshots"][0]["domain_state"]) == ("internal", "running")
    subject.be("paused")
    subject.converge({"name": "still"})
    assert {name: row["state"] for name, row in subject.rows().items()} == {
        "off": "shutoff",
        "on": "running",
        "still": "paused",
    }
    for name, before, after in (
        ("off", "paused", "shutoff"),
        ("on", "shutoff", "running"),
        ("still", "running", "paused"),
    ):
        result = subject.converge({"name": name, "state": "reverted"}, again=False)
        assert (result["plan"][0]["before"]["state"], result["plan"][0]["after"]["state"]) == (before, after)
        assert (result["snapshots"][0]["domain_state"], result["snapshots"][0]["current"]) == (after, True)
        assert subject.embed.module("libvirt_domain_info")["domains"][0]["state"] == after


def test_a_snapshot_with_children_is_deleted_only_as_requested(subject: Subject) -> None:
    subject.converge({"name": "one"}, {"name": "two"}, {"name": "three"}, {"name": "four"}, again=False)
    assert "snapshot 'one' of domain 'subject' has children: two, three, four." in subject.refused(
        {"name": "one", "state": "absent"}
    )
    subject.converge({"name": "one", "state": "absent", "with_children": False})
    assert {name: row["parent"] for name, row in subject.rows().items()} == {
        "two": None,
        "three": "two",
        "four": "three",
    }
    done = subject.converge({"name": "two", "state": "absent", "with_children": True})
    gone = [row["what"] for row in done["plan"]]
    assert gone == ["subject snapshot four", "subject snapshot three", "subject snapshot two"]
    assert subject.rows() == {}
    listed = subprocess.run(
        ["qemu-img", "snapshot", "-l", subject.root / "a.qcow2"], check=True, capture_output=True, text=True
    )
    assert listed.stdout.strip() == ""


# ---- external --------------------------------------------------------------------------------------------------------


def test_an_external_snapshot_puts_named_overlays_above_and_its_removal_keeps_the_newer_data(subject: Subject) -> None:
    root = subject.root
    subject.write("a.qcow2", 1)
    wanted = {"name": "x", "kind": "external", "disks": [{"target": "vdb", "file": f"{root}/over.b"}]}
    done = subject.converge(wanted)
    rows = {row["what"]: row["after"] for row in done["plan"][1:]}
    assert rows == {
        f"subject file {root}/a.x": {"disk": "vda", "format": "qcow2", "backing": f"{root}/a.qcow2"},
        f"subject file {root}/over.b": {"disk": "vdb", "format": "qcow2", "backing": f"{root}/b.qcow2"},
    }
    row = done["snapshots"][0]
    assert row["files"] == [f"{root}/a.x", f"{root}/over.b"]
    assert [disk["source"] for disk in row["disks"]] == [f"{root}/a.x", f"{root}/over.b", None]
    found = subject.embed.module("libvirt_domain_info")["domains"][0]["disks"]
    assert [disk["source"] for disk in found] == [f"{root}/a.x", f"{root}/over.b", None]
    subject.write("a.x", 2)
    removed = subject.converge({"name": "x", "state": "absent"})
    assert [row["what"] for row in removed["plan"]] == ["subject snapshot x", *rows]
    assert subject.holds("a.qcow2") == 2
    assert "a.x" not in subject.files()
    assert "over.b" not in subject.files()


def test_external_snapshots_of_a_running_domain_with_its_memory(subject: Subject) -> None:
    root = subject.root
    subject.be("running")
    subject.converge(
        {"name": "disks", "kind": "external", "disks": [{"target": "vdb", "include": False}]},
        {"name": "whole", "kind": "external", "memory_file": f"{root}/whole.memory"},
    )
    rows = subject.rows()
    assert (rows["disks"]["state"], rows["whole"]["state"]) == ("disk-snapshot", "running")
    assert (rows["disks"]["memory"], rows["whole"]["memory"]) == (None, "external")
    assert rows["whole"]["parent"] == "disks"
    assert rows["whole"]["files"] == [f"{root}/a.whole", f"{root}/b.whole", f"{root}/whole.memory"]
    assert rows["whole"]["disks"][0]["image"] == f"{root}/a.disks"
    if libvirt.getVersion() < REVERTS_EXTERNAL_SINCE:
        refused = subject.refused({"name": "whole", "state": "reverted"})
        assert "cannot revert to such a snapshot (9.9.0 and later can)" in refused
    done = subject.converge({"name": "disks", "state": "absent", "with_children": True})
    assert [row["what"].rpartition("/")[2] for row in done["plan"] if " file " in row["what"]] == [
        "a.whole",
        "b.whole",
        "whole.memory",
        "a.disks",
    ]
    assert {path for path in subject.files() if path.startswith(("a.", "b.", "whole"))} == {
        "a.qcow2",
        "b.qcow2",
        "b.raw",
    }


def test_internal_state_below_an_overlay_is_left_alone_while_the_domain_runs(subject: Subject) -> None:
    subject.converge({"name": "inside"}, {"name": "over", "kind": "external"}, {"name": "above"}, again=False)
    going = {"name": "over", "state": "absent", "with_children": False}
    assert "Snapshot 'over' is external and its parent 'inside' is internal" in subject.refused(going)
    image = f"{subject.root}/a.qcow2"
    assert f"The state of snapshot 'inside' is in {image}, but" in subject.refused(
        {**going, "name": "inside", "state": "reverted"}
    )
    subject.be("running")
    assert f"The state of snapshot 'inside' is in {image}, but" in subject.refused({**going, "name": "inside"})
    subject.be("shutdown")
    subject.converge({**going, "name": "inside"}, again=False)
    assert ", which has the state of snapshot 'above'. Remove 'above' first." in subject.refused(going)
    subject.converge({**going, "with_children": True})
    assert subject.rows() == {}


def test_a_file_that_exists_is_never_written_to(subject: Subject) -> None:
    (subject.root / "memory").write_text("precious", encoding="ascii")
    subject.be("running")
    external = {"name": "x", "kind": "external"}
    assert "/memory' for snapshots[0].memory_file: The file already exists" in subject.refused(
        {**external, "memory_file": f"{subject.root}/memory"}
    )
    assert "The file cannot be created, because its directory does not exist." in subject.refused(
        {**external, "memory_file": f"{subject.root}/no/memory"}
    )
    (subject.root / "a.x").symlink_to("nowhere")
    assert subject.refused({"name": "fine"}, external) == (
        f"Invalid value for snapshots[1].disks: The overlay {subject.root}/a.x of disk vda already exists and is not "
        "overwritten. Set another file for this disk."
    )


def test_two_domains_do_not_write_to_one_memory_file(subject: Subject) -> None:
    other = subject.embed.talker("other")
    subject.embed.converge({"name": "other", "xml": other, "state": "running"})
    subject.be("running")
    memory = {"kind": "external", "memory_file": f"{subject.root}/memory"}
    both = [{"name": "x", **memory}, {"domain": "other", "name": "y", **memory}]
    assert (
        "/memory' for snapshots[1].memory_file: The file already belongs to a disk or a snapshot."
        in subject.refused(*both)
    )


def test_absent_without_a_snapshot_or_domain_or_root_is_a_no_op(subject: Subject, embed: Embed) -> None:
    subject.converge({"name": "first", "state": "absent"}, {"domain": "other", "name": "x", "state": "absent"})
    result = embed.module("libvirt_snapshot", uri=f"{embed.uri}2", domain="x", name="x", state="absent")
    assert (result["changed"], result["plan"]) == (False, [])
    assert (
        "No domain has this name, because nothing is in"
        in embed.module("libvirt_snapshot", uri=f"{embed.uri}2", domain="x", name="x")["msg"]
    )
    assert not pathlib.Path(f"{embed.root}/e2").exists()


def test_one_snapshot_that_fails_does_not_hide_the_others(subject: Subject) -> None:
    (subject.root / "b.qcow2").unlink()
    result = subject.module(
        {"name": "x", "kind": "external"},
        {"name": "y", "kind": "external", "disks": [{"target": "vdb", "include": False}]},
    )
    assert result["failed"]
    assert [(row["name"], row["state"], bool(row["error"])) for row in result["snapshots"]] == [
        ("x", "absent", True),
        ("y", "present", False),
    ]
    assert result["changed"]


# ---- the test driver -------------------------------------------------------------------------------------------------


NODE = """
<node>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>guest</name><memory>65536</memory><os><type>hvm</type></os>
    <devices><disk type='file'><source file='/guest.img'/><target dev='vda'/></disk></devices>
    <test:runstate>1</test:runstate>
    {snapshots}
  </domain>
</node>
"""
SNAPSHOT = """
<test:domainsnapshot>
  <name>s{number}</name>{parent}<state>running</state><creationTime>{number}</creationTime><active>0</active>
</test:domainsnapshot>
"""


@pytest.fixture
def node(tmp_path: pathlib.Path, run_module: t.Callable[..., dict[str, t.Any]]) -> t.Callable[..., dict[str, t.Any]]:
    """Run a module on the test driver's host, whose domain has three snapshots, each the child of the one before."""
    parents = {number: f"<parent><name>s{number - 1}</name></parent>" if number > 1 else "" for number in (1, 2, 3)}
    snapshots = "".join(SNAPSHOT.format(number=number, parent=parents[number]) for number in parents)
    uri = node_uri(tmp_path, NODE.format(snapshots=snapshots))
    return lambda module, **args: run_module(module, {"uri": uri, **args})


def test_info_is_bounded_and_parents_come_first(node: t.Callable[..., dict[str, t.Any]]) -> None:
    whole = node("libvirt_snapshot_info")
    assert [(row["name"], row["parent"], row["created_seconds"]) for row in whole["snapshots"]] == [
        ("s1", None, 1),
        ("s2", "s1", 2),
        ("s3", "s2", 3),
    ]
    assert not whole["truncated"]
    assert node("libvirt_snapshot_info", domains=["guest", "gue*", "x*"])["snapshots"] == whole["snapshots"]
    assert "The limit is a number from 1 to 10000." in node("libvirt_snapshot_info", limit=0)["msg"]
    cut = node("libvirt_snapshot_info", domains=["guest"], limit=2)
    assert ([row["name"] for row in cut["snapshots"]], cut["truncated"]) == (["s1", "s2"], True)
    assert (
        "Invalid value 'guset' for domains[0]: No domain has this name. Did you mean guest?"
        in node("libvirt_snapshot_info", domains=["guset"])["msg"]
    )


def test_a_mistyped_domain_is_reported_once_though_nothing_is_to_do(node: t.Callable[..., dict[str, t.Any]]) -> None:
    gone = {"name": "s3", "state": "absent"}
    done = node("libvirt_snapshot", snapshots=[{"domain": "guset", **gone}, {"domain": "guest", **gone}])
    assert [row["state"] for row in done["snapshots"]] == ["absent", "absent"]
    (warning,) = done["warnings"]
    assert "'s3' of domain 'guset' is absent, because no domain has this name. Did you mean guest?" in str(warning)


def test_other_drivers_take_and_remove_too(node: t.Callable[..., dict[str, t.Any]]) -> None:
    taken = node("libvirt_snapshot", domain="guest", name="new")
    assert (taken["snapshots"][0]["state"], taken["snapshots"][0]["current"]) == ("present", True), taken
    gone = node("libvirt_snapshot", domain="guest", name="s2", state="absent", with_children=True)
    assert [row["what"] for row in gone["plan"]] == ["guest snapshot s3", "guest snapshot s2"]
    back = node("libvirt_snapshot", domain="guest", name="s1", state="reverted")
    assert "The definition of domain 'guest' is not in the snapshot" in back["msg"]
