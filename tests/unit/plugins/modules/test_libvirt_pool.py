# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_pool and libvirt_pool_info against libvirt's real storage driver, in a daemon of its own."""

from __future__ import annotations

import os
import pathlib
import shutil
import stat
import tempfile
import typing as t
import uuid

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage import pool_run
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.pool_run import PoolRun, read_wanted
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.storage import list_pools
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.interference import interfering_run
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.node import node_uri
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.results import plan_changes
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.session_daemon import (
    SessionDaemon,
    run_here,
    session_daemon,
)

Run = t.Callable[..., dict[str, t.Any]]
# A host of libvirt's test driver: a running domain and one that is off, each on a volume.
NODE = """
<node>
  <pool type='dir'>
    <name>images</name><target><path>/nowhere/images</path></target>
    <volume><name>one</name><capacity>4096</capacity><target><path>/nowhere/images/one</path></target></volume>
    <volume><name>two</name><capacity>4096</capacity><target><path>/nowhere/images/two</path></target></volume>
    <volume><name>free</name><capacity>4096</capacity><target><path>/nowhere/images/free</path></target></volume>
  </pool>
  {domains}
</node>
"""
DOMAIN = """
<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
  <name>{name}</name><memory>65536</memory><os><type>hvm</type></os>
  <devices>{disk}</devices>
  <test:runstate>{state}</test:runstate>
</domain>
"""
BY_PATH = "<disk type='file'><source file='/nowhere/images/{0}'/><target dev='vda'/></disk>"
BY_VOLUME = "<disk type='volume'><source pool='images' volume='{0}'/><target dev='vda'/></disk>"
RUNNING, OFF = 1, 5


@pytest.fixture(scope="module")
def the_daemon() -> t.Iterator[SessionDaemon]:
    with session_daemon() as daemon:
        yield daemon


@pytest.fixture
def daemon(the_daemon: SessionDaemon) -> SessionDaemon:
    the_daemon.clear()
    return the_daemon


@pytest.fixture
def run_on_node(tmp_path: pathlib.Path) -> Run:
    """Run a module on a host of the test driver with some domains; nothing is kept from run to run."""

    def run(module: str, domains: str = "", check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        uri = node_uri(tmp_path, NODE.format(domains=domains))
        return run_here(module, {"uri": uri, **args}, check)

    return run


def pool_xml(path: pathlib.Path | str, more: str = "") -> str:
    return f"<pool type='dir'>{more}<target><path>{path}</path></target></pool>"


def test_pools_converge_in_one_task_and_a_second_run_plans_nothing(daemon: SessionDaemon) -> None:
    one, two = daemon.files / "one", daemon.files / "deep" / "two"
    wanted = [
        {"name": "one", "xml": pool_xml(one), "state": "active", "autostart": True},
        {"name": "two", "xml": pool_xml(two), "state": "present"},
    ]
    done = daemon.twice("libvirt_pool", pools=wanted)
    assert plan_changes(done) == [
        ("one definition", None, {"type": "dir", "path": str(one)}),
        ("one autostart", False, True),
        ("one directory", None, str(one)),
        ("one state", None, "active"),
        ("two definition", None, {"type": "dir", "path": str(two)}),
    ]
    assert [(row["state"], row["changed"], row["pending"]) for row in done["pools"]] == [
        ("active", True, []),
        ("inactive", True, []),
    ]
    assert (one.is_dir(), two.exists()) == (True, False)
    info = daemon.done("libvirt_pool_info")
    rows = {row["name"]: row for row in info["pools"]}
    assert [rows[name]["uuid"] for name in rows] == [row["uuid"] for row in done["pools"]]
    assert (rows["one"]["state"], rows["one"]["autostart"], rows["one"]["volumes"]) == ("active", True, 0)
    assert rows["one"]["capacity_bytes"] == rows["one"]["allocation_bytes"] + rows["one"]["available_bytes"] > 0
    assert (rows["two"]["state"], rows["two"]["volumes"], rows["two"]["capacity_bytes"]) == ("inactive", None, None)
    assert daemon.done("libvirt_pool", name="two", state="active")["pools"][0]["state"] == "active"
    assert two.is_dir()


def test_flaw_virt_pool_define_with_changed_xml_changed_false_not_applied(daemon: SessionDaemon) -> None:
    one, two, three = (str(daemon.files / name) for name in ("one", "two", "three"))
    uuid = daemon.done("libvirt_pool", name="pool", xml=pool_xml(one))["pools"][0]["uuid"]
    # Inactive: what is stored is all there is.
    changed = daemon.twice("libvirt_pool", name="pool", xml=pool_xml(two))
    assert plan_changes(changed) == [("pool target/path", one, two)]
    assert changed["pools"][0]["uuid"] == uuid
    assert daemon.connection.storagePoolLookupByName("pool").XMLDesc(1).count(two) == 1
    # Active: it is stored, and waits, on every run, with or without XML.
    daemon.done("libvirt_pool", name="pool", state="active")
    changed = daemon.twice("libvirt_pool", name="pool", xml=pool_xml(three), state="active")
    pending = [{"what": "target/path", "running": two, "stored": three, "reason": "restart"}]
    assert changed["pools"][0]["pending"] == pending
    asked: list[dict[str, t.Any]] = [{"xml": pool_xml(three)}, {"state": "active"}, {}]
    for args in asked:
        again = daemon.done("libvirt_pool", name="pool", **args)
        assert (again["plan"], again["pools"][0]["pending"]) == ([], pending)
    assert daemon.done("libvirt_pool_info")["pools"][0]["pending"] == pending
    daemon.done("libvirt_pool", name="pool", state="inactive")
    started = daemon.twice("libvirt_pool", name="pool", state="active")
    assert (started["pools"][0]["pending"], pathlib.Path(three).is_dir()) == ([], True)


def test_what_means_the_same_is_no_change_and_what_is_left_out_is_one(daemon: SessionDaemon) -> None:
    path = daemon.files / "one"
    path.mkdir()
    shutil.chown(path, daemon.top.stat().st_uid, daemon.top.stat().st_gid)
    path.chmod(0o750)
    cow = "<features><cow state='no'/></features>"
    daemon.done("libvirt_pool", name="pool", xml=pool_xml(path, cow), state="active")
    same = f"""<pool type="dir"><target><permissions><mode>0711</mode></permissions><path>{path}//</path></target>
        <capacity unit='GiB'>7</capacity><source/> {cow} <name>pool</name></pool>"""
    assert daemon.done("libvirt_pool", name="pool", xml=same)["plan"] == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    less = daemon.twice("libvirt_pool", name="pool", xml=pool_xml(path))
    assert [what for what, _before, _after in plan_changes(less)] == ["pool features"]


def test_absent_takes_no_volume_and_no_directory(daemon: SessionDaemon) -> None:
    path = daemon.files / "one"
    daemon.done("libvirt_pool", name="pool", xml=pool_xml(path), state="active", autostart=True)
    daemon.connection.storagePoolLookupByName("pool").createXML(
        "<volume><name>kept</name><capacity>4096</capacity></volume>", 0
    )
    content = (path / "kept").read_bytes()
    gone = daemon.twice("libvirt_pool", pools=[{"name": "pool", "state": "absent"}, {"name": "no", "state": "absent"}])
    assert [row["how"] for row in gone["plan"]] == ["destroy", "undefine"]
    assert [row["state"] for row in gone["pools"]] == ["absent", "absent"]
    assert (path / "kept").read_bytes() == content


def test_a_transient_pool_stays_one_until_xml_is_given(daemon: SessionDaemon) -> None:
    path = daemon.files / "one"
    daemon.connection.storagePoolCreateXML(f"<pool type='dir'><name>pool</name>{pool_xml(path)[17:]}", 1)
    assert daemon.done("libvirt_pool", name="pool", state="active")["plan"] == []
    assert daemon.module("libvirt_pool", name="pool", state="inactive")["msg"] == (
        "Invalid value 'inactive' for state: Pool 'pool' has no stored definition, so it would disappear when it stops."
        " Set state: absent, or set xml to define the pool."
    )
    assert daemon.module("libvirt_pool", name="pool", autostart=True)["msg"] == (
        "Invalid value True for autostart: Pool 'pool' has no stored definition, so it cannot start with the host. Set "
        "xml to define the pool."
    )
    kept = daemon.twice("libvirt_pool", name="pool", xml=pool_xml(path), autostart=True)
    assert plan_changes(kept) == [("pool persistent", False, True), ("pool autostart", False, True)]


def test_a_file_system_is_made_only_when_asked_for_and_never_over_something(daemon: SessionDaemon) -> None:
    device = daemon.files / "device"
    device.write_bytes(bytes(32 << 20))
    shutil.chown(device, daemon.top.stat().st_uid, daemon.top.stat().st_gid)
    source = f"<source><device path='{device}'/><format type='ext4'/></source>"
    wanted: dict[str, t.Any] = {
        "name": "fs",
        "xml": f"<pool type='fs'>{source}<target><path>{daemon.files}/mount</path></target></pool>",
        "state": "active",
    }

    def converge(**more: t.Any) -> bytes:
        # Only root could mount it.
        assert "Starting pool fs failed: " in daemon.module("libvirt_pool", **wanted, **more)["msg"]
        return device.read_bytes()

    assert not any(converge())
    made = converge(build=True)
    assert made[1080:1082] == b"\x53\xef"  # ext4's magic number
    assert converge(build=True) == made


UUID = "3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11"
WRONG = {
    "a path": ({"name": "../pool"}, "pools[1].name: A name cannot be a path"),
    "no xml": (
        {"name": "new", "state": "active"},
        "'new' for pools[1].name: No storage pool has this name, and the task has no xml to define one.",
    ),
    "another name": (
        {"name": "new", "xml": pool_xml("/x", "<name>other</name>")},
        "pools[1].xml: The <name> in the XML is 'other', but",
    ),
    "a typing error": (
        {"name": "new", "xml": pool_xml("/x").replace("path", "paht")},
        ", line 1: <paht> is not an element of a pool. Did you mean path",
    ),
    "a type": (
        {"name": "new", "xml": pool_xml("/x").replace("dir", "dri")},
        ", line 1: The type of a pool is one of dir, disk, fs",
    ),
    "no pool": ({"name": "new", "xml": "<volume/>"}, "The root element is <volume>, but it has to be <pool>."),
    "an entity": (
        {"name": "new", "xml": "<!DOCTYPE pool [<!ENTITY a 'b'>]>" + pool_xml("/x")},
        "pools[1].xml, line 1: <!DOCTYPE pool> is not allowed",
    ),
    "not XML": ({"name": "new", "xml": "<pool"}, "pools[1].xml, line 1: The XML cannot be parsed"),
    "a hole": ({"name": "new", "xml": "<pool>" + "<a>" * 3000 + "</a>" * 3000 + "</pool>"}, "more than 256 elements"),
    "another UUID": (
        {"name": "there", "xml": pool_xml("/x", f"<uuid>{UUID}</uuid>")},
        f"and the definition has {UUID}. Leave <uuid> out",
    ),
    "twice": ({"name": "fine"}, "'fine' for pools[1].name: pools[0] has the same name."),
}


def test_wrong_input_is_reported_and_nothing_is_changed(daemon: SessionDaemon) -> None:
    there = daemon.done("libvirt_pool", name="there", xml=pool_xml(daemon.files / "there"))["pools"][0]
    wrong = {
        **WRONG,
        "a taken UUID": (
            {"name": "new", "xml": pool_xml("/x", f"<uuid>{there['uuid']}</uuid>")},
            "is the one of pool 'there', and",
        ),
        "a taken path": (
            {"name": "new", "xml": pool_xml(daemon.files / "there/")},
            "there already belongs to pool 'there'.",
        ),
    }
    before = daemon.digest()
    own = str(uuid.uuid4())
    fine = {"name": "fine", "xml": pool_xml(daemon.files / "fine", f"<uuid>{own}</uuid>"), "state": "active"}
    wrong["one's UUID"] = (
        {"name": "new", "xml": pool_xml("/x", f"<uuid>{own}</uuid>")},
        "is the one of pool 'fine', and",
    )
    wrong["one's path"] = (
        {"name": "new", "xml": pool_xml(daemon.files / "fine/")},
        "fine already belongs to pool 'fine'.",
    )
    for what, (pool, message) in wrong.items():
        result = daemon.module("libvirt_pool", pools=[fine, pool])
        assert result.get("failed"), what
        assert message in result["msg"], (what, result["msg"])
        assert result["error"]["option"].startswith("pools[1]."), what
        assert "\n" not in result["msg"], what
        assert result.get("changed", False) is False, what
    assert daemon.digest() == before
    assert (
        daemon.module("libvirt_pool_info", names=["thre"])["msg"]
        == "Invalid value 'thre' for names[0]: No storage pool has this name. Did you mean there?"
    )


def test_info_by_name_and_glob_and_within_its_limit(daemon: SessionDaemon) -> None:
    daemon.done("libvirt_pool", pools=[{"name": n, "xml": pool_xml(daemon.files / n)} for n in ("a1", "a2", "b1")])
    for names, limit, found, truncated in (
        ([], 100, ["a1", "a2", "b1"], False),
        (["b1", "a*"], 2, ["a1", "a2"], True),
        (["?1"], 100, ["a1", "b1"], False),
    ):
        result = daemon.done("libvirt_pool_info", names=names, limit=limit)
        assert ([row["name"] for row in result["pools"]], result["truncated"]) == (found, truncated)


@pytest.mark.parametrize("disk", [BY_PATH, BY_VOLUME])
def test_a_pool_that_a_running_domain_stands_on_is_not_stopped(run_on_node: Run, disk: str) -> None:
    running = DOMAIN.format(name="web1", disk=disk.format("one"), state=RUNNING)
    for state in ("inactive", "absent"):
        refused = run_on_node("libvirt_pool", running, name="images", state=state)
        assert refused["msg"] == (
            f"Invalid value '{state}' for state: Running domains use pool 'images': web1. Stop the domains, or set "
            "allow_in_use: true to do it anyway."
        )
        assert refused["changed"] is False
    forced = run_on_node("libvirt_pool", running, name="images", state="absent", allow_in_use=True)
    assert (forced["pools"][0]["state"], forced["pools"][0]["error"]) == ("absent", None)
    off = DOMAIN.format(name="web1", disk=disk.format("one"), state=OFF)
    assert run_on_node("libvirt_pool", off, name="images", state="inactive")["pools"][0]["state"] == "inactive"


def start_late_domain(connection: t.Any) -> None:
    connection.createXML(DOMAIN.format(name="late", disk=BY_PATH.format("one"), state=RUNNING), 0)


def test_a_domain_that_came_during_the_run_keeps_the_pool(tmp_path: pathlib.Path) -> None:
    uri = node_uri(tmp_path, NODE.format(domains=""))
    for state in ("inactive", "absent"):
        run = interfering_run(PoolRun, start_late_domain)(
            read_wanted([{"name": "images", "state": state, "build": False, "allow_in_use": False}])
        )
        with pytest.raises(TapvirtError, match="Running domains use pool 'images': late[.]") as refused:
            run.converge(uri, 10, False, False)
        assert (refused.value.fields["changed"], refused.value.fields["pools"][0]["state"]) == (False, "active")


def test_a_pool_of_others_that_vanishes_during_the_run_is_no_failure(
    daemon: SessionDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = daemon.connection.storagePoolDefineXML(f"<pool type='dir'><name>other</name>{pool_xml('/x')[17:]}", 0)
    other.undefine()
    monkeypatch.setattr(pool_run, "list_pools", lambda connection: [other, *list_pools(connection)])
    daemon.twice("libvirt_pool", name="pool", xml=pool_xml(daemon.files / "one"))


def test_a_driver_without_storage_is_refused_in_words() -> None:
    root = pathlib.Path(tempfile.gettempdir(), f"tv-none-{os.getpid()}")
    result = run_here("libvirt_pool", {"uri": f"qemu:///embed?root={root}", "name": "a", "xml": pool_xml("/x")})
    assert result["msg"].endswith(
        " for uri: This libvirt driver has no storage. Connect to a daemon with a storage driver, such as qemu:///system."
    )
    assert not root.exists()


def test_the_modules_themselves_run(run_module: Run) -> None:
    args = {"uri": "test:///default", "name": "new", "xml": pool_xml("/nowhere/new"), "state": "active"}
    done = run_module("libvirt_pool", args, diff=True)
    assert (done["changed"], done["pools"][0]["state"]) == (True, "active")
    assert "new state: active" in done["diff"]["after"]
    assert "mutually exclusive" in run_module("libvirt_pool", {**args, "pools": []})["msg"]
    assert [row["name"] for row in run_module("libvirt_pool_info", {"uri": "test:///default"})["pools"]] == [
        "default-pool"
    ]
