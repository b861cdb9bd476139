# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_volume and libvirt_volume_info against libvirt's real storage driver, in a daemon of its own."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.volume_run import VolumeRun, read_wanted
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.interference import interfering_run
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.node import node_uri
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.results import plan_changes
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.session_daemon import (
    SessionDaemon,
    run_here,
    session_daemon,
)

Run = t.Callable[..., dict[str, t.Any]]
MIB = 1 << 20
# A host of libvirt's test driver: volumes, and domains of which one runs.
NODE = """
<node>
  <pool type='dir'>
    <name>p</name><target><path>/nowhere/p</path></target>
    {volumes}
  </pool>
  {domains}
</node>
"""
VOLUME = "<volume><name>{0}</name><capacity>4096</capacity><target><path>/nowhere/p/{0}</path></target></volume>"
DOMAIN = """
<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
  <name>{name}</name><memory>65536</memory><os><type>hvm</type></os><devices>{disk}</devices>
  <test:runstate>{state}</test:runstate>
</domain>
"""
DISK = "<disk type='file'><source file='/nowhere/p/{0}'/><target dev='vda'/>{1}</disk>"
IN_POOL = "<disk type='volume'><source pool='p' volume='{0}'/><target dev='vda'/></disk>"
RUNNING, OFF = 1, 5


@pytest.fixture(scope="module")
def the_daemon() -> t.Iterator[SessionDaemon]:
    with session_daemon() as daemon:
        yield daemon


@pytest.fixture
def daemon(the_daemon: SessionDaemon) -> SessionDaemon:
    """Have an active pool ``p`` with nothing in it."""
    the_daemon.clear()
    pool = f"<pool type='dir'><target><path>{the_daemon.files}/p</path></target></pool>"
    the_daemon.done("libvirt_pool", name="p", xml=pool, state="active")
    return the_daemon


@pytest.fixture
def run_volume(tmp_path: pathlib.Path) -> Run:
    """Run libvirt_volume on a host of the test driver; nothing is kept from run to run."""

    def run(*domains: str, check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        volumes = "".join(VOLUME.format(name) for name in ("run", "lent", "off", "named", "free"))
        uri = node_uri(tmp_path, NODE.format(volumes=volumes, domains="".join(domains)))
        return run_here("libvirt_volume", {"uri": uri, "pool": "p", **args}, check)

    return run


def volumes(*items: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    return [{"pool": "p", **item} for item in items]


def image_size(path: pathlib.Path | str) -> int:
    argv = ["qemu-img", "info", "-U", str(path)]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return int(text.partition("virtual size:")[2].partition("(")[2].split()[0])


def qcow2(path: pathlib.Path, mib: int, fill_mib: int = 0) -> str:
    """Make an image with some content; return its SHA-256."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), f"{mib}M"], check=True)
    if fill_mib:
        fill = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P 7 0 {fill_mib}M", str(path)]
        subprocess.run(fill, check=True, capture_output=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_in(daemon: SessionDaemon, name: str) -> str:
    return hashlib.sha256((daemon.files / "p" / name).read_bytes()).hexdigest()


def test_flaw_virt_volume_capacity_unit_mib_8_created_then_cant_shrink(daemon: SessionDaemon) -> None:
    xml = "<volume><capacity unit='MiB'>8</capacity><target><format type='qcow2'/></target></volume>"
    wanted = volumes(
        {"name": "xml", "xml": xml},
        {"name": "mib", "capacity": "8MiB", "allocation": "0"},
        {"name": "mb", "capacity": "8 MB", "allocation": "4k"},
        {"name": "kib", "capacity": "8192 kib", "allocation": 0},
        {"name": "bytes", "capacity": 8 * MIB, "format": "qcow2"},
        # An image is made of sectors of 512 bytes; this is as much as it can be.
        {"name": "odd", "capacity": "1000001", "format": "qcow2"},
    )
    done = daemon.twice("libvirt_volume", volumes=wanted)
    sizes = {row["name"]: row["capacity_bytes"] for row in done["volumes"]}
    assert sizes == {"xml": 8 * MIB, "mib": 8 * MIB, "mb": 8000000, "kib": 8 * MIB, "bytes": 8 * MIB, "odd": 1000448}
    assert image_size(daemon.files / "p" / "xml") == 8 * MIB
    assert [row["format"] for row in done["volumes"]] == ["qcow2", "raw", "raw", "raw", "qcow2", "qcow2"]


def test_flaw_virt_volume_check_mode_unsupported(daemon: SessionDaemon) -> None:
    before = daemon.digest()
    planned = daemon.done("libvirt_volume", check=True, pool="p", name="new", capacity="1MiB")
    assert plan_changes(planned) == [("p/new volume", None, {"capacity_bytes": MIB, "format": "raw"})]
    assert (planned["changed"], planned["volumes"][0]["state"]) == (True, "present")
    assert daemon.digest() == before
    assert plan_changes(daemon.done("libvirt_volume", pool="p", name="new", capacity="1MiB")) == plan_changes(planned)
    planned = daemon.done("libvirt_volume", check=True, pool="p", name="new", state="absent")
    assert [row["how"] for row in planned["plan"]] == ["delete"]
    assert (daemon.files / "p" / "new").stat().st_size == MIB


def test_a_volume_grows_and_shrinks_only_on_request(daemon: SessionDaemon) -> None:
    for form in ("raw", "qcow2"):
        thin: dict[str, t.Any] = {"pool": "p", "name": form, "format": form, "allocation": "0"}
        daemon.done("libvirt_volume", **thin, capacity="8MiB")
        grown = daemon.twice("libvirt_volume", **thin, capacity="16MiB")
        assert plan_changes(grown) == [(f"p/{form} capacity", 8 * MIB, 16 * MIB)]
        assert image_size(daemon.files / "p" / form) == 16 * MIB
        refused = daemon.module("libvirt_volume", **thin, capacity="8MiB")
        assert refused["msg"] == (
            "Invalid value '8MiB' for capacity: The volume has 16 MiB, and shrinking it loses the data beyond its new "
            "end. Set force_shrink: true to shrink it."
        )
        shrunk = daemon.twice("libvirt_volume", **thin, capacity="8MiB", force_shrink=True)
        assert (shrunk["volumes"][0]["capacity_bytes"], shrunk["plan"][0]["how"]) == (8 * MIB, "resize")
        assert "lost" in shrunk["plan"][0]["why"]
    whole: dict[str, t.Any] = {"pool": "p", "name": "whole", "force_shrink": True}
    daemon.done("libvirt_volume", **whole, capacity="2MiB")
    before = daemon.digest()
    assert "The volume has 2 MiB allocated, and" in daemon.module("libvirt_volume", **whole, capacity="1MiB")["msg"]
    assert daemon.digest() == before


def test_what_cannot_change_in_place_is_refused(daemon: SessionDaemon) -> None:
    base, other = daemon.files / "p" / "base", daemon.files / "p" / "other"
    daemon.done(
        "libvirt_volume",
        volumes=volumes(
            {"name": "base", "format": "qcow2", "capacity": "8MiB"},
            {"name": "other", "format": "qcow2", "capacity": "8MiB"},
            {"name": "top", "backing": {"path": str(base), "format": "qcow2"}},
        ),
    )
    assert daemon.done("libvirt_volume_info", names=["top"])["volumes"][0]["backing"] == {
        "path": str(base),
        "format": "qcow2",
    }
    before = daemon.digest()
    for wanted, message in (
        ({"name": "base", "format": "raw"}, "for format: The volume has the format qcow2"),
        (
            {"name": "base", "backing": {"path": str(other), "format": "qcow2"}},
            "for backing.path: The volume has no backing file",
        ),
        (
            {"name": "top", "backing": {"path": str(other), "format": "qcow2"}},
            f"for backing.path: The volume has the backing file {base}",
        ),
        (
            {"name": "top", "backing": {"path": str(base), "format": "raw"}},
            "for backing.format: The volume has a backing file of the format qcow2",
        ),
    ):
        refused = daemon.module("libvirt_volume", pool="p", **wanted)
        assert message in refused["msg"], refused["msg"]
        assert "cannot change in place. Leave the option out to keep the volume, or delete" in refused["msg"]
    assert daemon.digest() == before


def test_absent_takes_only_what_is_named_and_nothing_that_others_stand_on(daemon: SessionDaemon) -> None:
    base = daemon.files / "p" / "base"
    wanted = volumes(
        {"name": "base", "format": "qcow2", "capacity": "8MiB"},
        {"name": "top", "backing": {"path": str(base), "format": "qcow2"}},
        {"name": "else", "capacity": "4KiB"},
    )
    daemon.twice("libvirt_volume", volumes=wanted)
    refused = daemon.module("libvirt_volume", pool="p", name="base", state="absent")
    assert refused["msg"] == (
        "Invalid value 'absent' for state: Volume 'p/base' would be deleted, but the volume is the backing file of "
        f"others: {daemon.files}/p/top. Set allow_in_use: true to do it anyway."
    )
    assert base.exists()
    gone = volumes({"name": "top", "state": "absent"}, {"name": "never", "state": "absent"})
    done = daemon.twice("libvirt_volume", volumes=gone)
    assert [row["state"] for row in done["volumes"]] == ["absent", "absent"]
    assert sorted(path.name for path in (daemon.files / "p").iterdir()) == ["base", "else"]
    daemon.twice("libvirt_volume", pool="p", name="base", state="absent")
    assert [path.name for path in (daemon.files / "p").iterdir()] == ["else"]
    without = [{"pool": "pp", "name": "base", "state": "absent"}, *volumes({"name": "else", "state": "absent"})]
    done = daemon.done("libvirt_volume", volumes=without)
    assert [row["how"] for row in done["plan"]] == ["delete"]
    assert done["warnings"] == ["Volume 'pp/base' is absent, because no storage pool is called 'pp'. Did you mean p?"]


def test_what_stands_on_a_volume_of_another_pool_counts_too(daemon: SessionDaemon) -> None:
    other = f"<pool type='dir'><target><path>{daemon.files}/q</path></target></pool>"
    daemon.done("libvirt_pool", name="q", xml=other, state="active")
    daemon.done("libvirt_volume", pool="p", name="base", format="qcow2", capacity="8MiB")
    backing = {"path": f"{daemon.files}/p/base", "format": "qcow2"}
    daemon.done("libvirt_volume", pool="q", name="top", backing=backing)
    assert "/q/top" in daemon.module("libvirt_volume", pool="p", name="base", state="absent")["msg"]
    forced = daemon.done("libvirt_volume", pool="p", name="base", state="absent", allow_in_use=True)
    assert forced["volumes"][0]["state"] == "absent"


def test_what_does_not_fit_is_refused_before_anything_is_made(daemon: SessionDaemon) -> None:
    pool = daemon.connection.storagePoolLookupByName("p")
    _state, capacity, _allocation, available = pool.info()
    most = available * 6 // 10
    for wanted, message in (
        ([{"name": "a", "capacity": str(available + MIB)}], "would be allocated at once"),
        (
            [{"name": "a", "capacity": str(capacity + MIB), "format": "qcow2"}],
            "The volume is larger than the whole pool 'p', ",
        ),
        ([{"name": "a", "capacity": "7EiB", "allocation": "0"}], "The volume is larger than the whole pool 'p', "),
        (
            [{"name": "a", "capacity": str(most)}, {"name": "b", "capacity": str(most)}],
            "would be allocated at once, including earlier volumes of the task",
        ),
    ):
        refused = daemon.module("libvirt_volume", volumes=volumes({"name": "fine", "capacity": "4KiB"}, *wanted))
        assert message in refused["msg"], refused["msg"]
        assert refused["changed"] is False
    assert list((daemon.files / "p").iterdir()) == []
    # Larger than what is left, smaller than the pool: it may be filled one day.
    daemon.twice("libvirt_volume", pool="p", name="thin", capacity=str(available + MIB), allocation="0")
    assert "whole pool" in daemon.module("libvirt_volume", pool="p", name="thin", capacity=str(capacity + 1))["msg"]


def test_a_raw_file_is_uploaded_once_and_again_when_its_content_is_pinned(
    daemon: SessionDaemon, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 5000 + b"end")
    first = hashlib.sha256(file.read_bytes()).hexdigest()
    wanted = {"pool": "p", "name": "up", "source": str(file), "checksum": "sha256:" + first.upper()}
    done = daemon.twice("libvirt_volume", **wanted)
    assert done["volumes"][0]["checksum"] == digest_in(daemon, "up") == first
    assert [row["how"] for row in done["plan"]] == ["createXML", "upload"]
    # Somebody writes to it. Without the checksum, its content is its own.
    path = daemon.files / "p" / "up"
    path.write_bytes(b"other" + path.read_bytes()[5:])
    changed = digest_in(daemon, "up")
    assert daemon.done("libvirt_volume", pool="p", name="up", source=str(file))["plan"] == []
    assert digest_in(daemon, "up") == changed
    again = daemon.twice("libvirt_volume", **wanted)
    assert plan_changes(again) == [("p/up content", changed, first)]
    assert digest_in(daemon, "up") == first
    # Room for more: what is pinned is the file's part of it.
    roomy = daemon.twice("libvirt_volume", **wanted, capacity="2MiB")
    assert plan_changes(roomy) == [("p/up capacity", len(file.read_bytes()), 2 * MIB)]


@pytest.mark.scenario
def test_an_image_is_uploaded_with_its_format_and_grows(daemon: SessionDaemon, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "image"
    digest = qcow2(file, 16, 3)
    wanted = volumes(
        {"name": "same", "source": str(file), "checksum": digest},
        {"name": "more", "source": str(file), "capacity": "32MiB", "format": "qcow2"},
        {"name": "copy", "clone_from": "same", "capacity": "24MiB"},
        {"name": "top", "backing": {"path": f"{daemon.files}/p/same", "format": "qcow2"}, "capacity": "64MiB"},
    )
    done = daemon.twice("libvirt_volume", volumes=wanted)
    assert [(row["name"], row["format"], row["capacity_bytes"] // MIB) for row in done["volumes"]] == [
        ("same", "qcow2", 16),
        ("more", "qcow2", 32),
        ("copy", "qcow2", 24),
        ("top", "qcow2", 64),
    ]
    assert digest_in(daemon, "same") == digest
    compare = ["qemu-img", "compare", "-q", str(file), f"{daemon.files}/p/copy"]
    assert subprocess.run(compare, check=False).returncode == 0
    # An image smaller than an empty one of libvirt's leaves nothing of that behind.
    small = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", str(tmp_path / "small"), "64K"]
    subprocess.run(small, check=True)
    daemon.twice("libvirt_volume", pool="p", name="small", source=str(tmp_path / "small"))
    assert (daemon.files / "p" / "small").read_bytes() == (tmp_path / "small").read_bytes()
    # What others stand on is not overwritten.
    changed = qcow2(file, 16, 4)
    pinned: dict[str, t.Any] = {"pool": "p", "name": "same", "source": str(file), "checksum": changed}
    assert (
        "The content does not have this checksum and would be overwritten, but the volume is"
        in daemon.module("libvirt_volume", **pinned)["msg"]
    )
    assert digest_in(daemon, "same") == digest
    assert (
        "The qcow2 image changes when it grows to 32 MiB"
        in daemon.module("libvirt_volume", **{**pinned, "name": "x"}, capacity="32MiB")["msg"]
    )


def test_a_copy_is_what_its_origin_is(daemon: SessionDaemon, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"origin" * 1000)
    daemon.done("libvirt_volume", pool="p", name="origin", source=str(file), capacity="4MiB")
    wanted = volumes(
        {"name": "raw", "clone_from": "origin"},
        {"name": "image", "clone_from": "raw", "format": "qcow2", "capacity": "8MiB"},
    )
    done = daemon.twice("libvirt_volume", volumes=wanted)
    assert [(row["format"], row["capacity_bytes"]) for row in done["volumes"]] == [
        ("raw", 4 * MIB),
        ("qcow2", 8 * MIB),
    ]
    assert digest_in(daemon, "raw") == digest_in(daemon, "origin")
    refused = daemon.module("libvirt_volume", pool="p", name="x", clone_from="orgin")
    assert refused["msg"] == (
        "Invalid value 'orgin' for clone_from: Pool 'p' has no such volume, and no earlier item of the task creates it."
        " Did you mean origin?"
    )
    assert (
        "Invalid value '1MiB' for capacity: The content of the volume needs at least 4 MiB."
        in daemon.module("libvirt_volume", pool="p", name="x", clone_from="origin", capacity="1MiB")["msg"]
    )


def test_a_half_made_volume_is_taken_back_by_the_run_that_made_it_only(
    daemon: SessionDaemon, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "broken"
    qcow2(file, 16)
    # Its header asks for a feature that no QEMU knows: it can be uploaded, not be resized.
    broken = bytearray(file.read_bytes())
    broken[72] |= 1 << 7
    file.write_bytes(broken)
    failed = daemon.module(
        "libvirt_volume",
        volumes=volumes({"name": "bad", "source": str(file), "capacity": "1GiB"}, {"name": "good", "capacity": "4KiB"}),
    )
    assert "was deleted again" in failed["msg"]
    assert [(row["state"], bool(row["error"])) for row in failed["volumes"]] == [("absent", True), ("present", False)]
    assert sorted(path.name for path in (daemon.files / "p").iterdir()) == ["good"]
    daemon.done("libvirt_volume", pool="p", name="bad", source=str(file))
    assert daemon.module("libvirt_volume", pool="p", name="bad", capacity="1GiB").get("failed")
    assert (daemon.files / "p" / "bad").exists()


def test_files_of_others_are_seen(daemon: SessionDaemon) -> None:
    file = daemon.files / "p" / "there"
    file.write_bytes(b"x" * 8192)
    refused = daemon.module("libvirt_volume", pool="p", name="there", capacity="4KiB")
    assert "force_shrink" in refused["msg"]
    assert daemon.done("libvirt_volume", pool="p", name="there", capacity="8KiB")["plan"] == []
    file.unlink()
    made = daemon.twice("libvirt_volume", pool="p", name="there", capacity="4KiB")
    assert [row["how"] for row in made["plan"]] == ["createXML"]


def test_wrong_input_is_reported_and_nothing_is_changed(daemon: SessionDaemon, tmp_path: pathlib.Path) -> None:
    file, empty = tmp_path / "file", tmp_path / "empty"
    file.write_bytes(b"content")
    empty.touch()
    digest = hashlib.sha256(b"content").hexdigest()
    below, above = tmp_path / "below", tmp_path / "above"
    qcow2(below, 4)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", "qcow2", str(above)], check=True)
    remote, pipe = tmp_path / "remote", tmp_path / "pipe"
    address = ["-u", "-b", "nbd://127.0.0.1:1/x", "-F", "raw", str(remote), "4M"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *address], check=True)
    os.mkfifo(pipe)
    backing = {"path": str(daemon.files / "p" / "none"), "format": "qcow2"}
    wrong: list[tuple[dict[str, t.Any], str]] = [
        ({"name": "../x", "capacity": "1MiB"}, "name: A name cannot be a path"),
        ({"name": "x", "pool": "../p", "capacity": "1MiB"}, "pool: A name cannot be a path"),
        ({"name": "x", "pool": "q", "capacity": "1MiB"}, "pool: No storage pool has this name."),
        ({"name": "fine", "capacity": "1MiB"}, "name: volumes[0] has the same pool and name."),
        ({"name": "x"}, "capacity: A capacity is needed, because volume 'p/x' does not exist."),
        ({"name": "x", "capacity": "1MiBB"}, "capacity: libvirt does not know the unit 'MiBB'. Did you mean 1MiB"),
        ({"name": "x", "capacity": "1.5GiB"}, "in bytes. Did you mean 1610612736?"),
        ({"name": "x", "capacity": "-1"}, "capacity: A size is a whole number"),
        ({"name": "x", "capacity": "99999999999EiB"}, "capacity: The size is larger than libvirt's maximum, "),
        (
            {"name": "x", "capacity": "1MiB", "allocation": "2MiB"},
            "allocation: The allocation is larger than the capacity, 1 MiB.",
        ),
        (
            {"name": "x", "capacity": "1MiB", "format": "qcow3"},
            "format: libvirt does not know this volume format. Did you mean qcow",
        ),
        ({"name": "x", "format": "qcow2", "backing": backing}, "backing.path: The backing file does not exist."),
        (
            {"name": "x", "format": "raw", "backing": backing},
            "format: A volume of this format cannot have a backing file. Did you mean qcow2?",
        ),
        ({"name": "x", "backing": {**backing, "path": "none"}}, "backing.path: The path is not absolute."),
        ({"name": "x", "source": "file"}, "source: The path is not absolute."),
        ({"name": "x", "source": str(tmp_path / "none")}, "source: The file cannot be read on this host: "),
        ({"name": "x", "source": str(tmp_path)}, "source: The file cannot be read on this host: "),
        ({"name": "x", "source": str(empty)}, "source: The file is empty."),
        (
            {"name": "x", "source": str(above)},
            f"source: The image has the backing file {below}, and only a standalone image",
        ),
        (
            {"name": "x", "source": str(remote)},
            "source: The image has a backing file on another host, and only a standalone",
        ),
        ({"name": "x", "source": str(pipe)}, "it is a FIFO, not a regular file"),
        (
            {"name": "x", "source": str(file), "format": "qcow2"},
            f"format: {file} has the format raw, and the upload does not",
        ),
        (
            {"name": "x", "source": str(file), "format": "vmdk"},
            "format: An image of this format cannot be uploaded. Did you mean raw or qcow2?",
        ),
        (
            {"name": "x", "source": str(file), "capacity": "2"},
            "capacity: The content of the volume needs at least 7 bytes.",
        ),
        ({"name": "x", "source": str(file), "checksum": "f" * 64}, f"checksum: The SHA-256 of {file} is {digest}."),
        (
            {"name": "x", "source": str(file), "checksum": "md5"},
            "checksum: The checksum is a SHA-256, which has 64 hexadecimal digits.",
        ),
        (
            {"name": "x", "capacity": "1MiB", "checksum": digest},
            "checksum: A checksum needs source, the file that it belongs to.",
        ),
        (
            {"name": "x", "source": str(file), "clone_from": "y"},
            "source: source and clone_from cannot be used together.",
        ),
        ({"name": "x", "clone_from": "../y"}, "clone_from: A name cannot be a path"),
        ({"name": "x", "capacity": "1MiB", "xml": "<volume/>"}, "capacity: xml and capacity cannot be used together"),
        ({"name": "x", "xml": "<volume><name>y</name></volume>"}, "xml: The <name> in the XML is 'y', but"),
        (
            {"name": "x", "xml": "<volume><capacity unit='Mob'>1</capacity></volume>"},
            "xml: libvirt does not know the unit 'Mob'. Did you mean 1MB",
        ),
        (
            {"name": "x", "xml": "<volume><capacitty>1</capacitty></volume>"},
            "xml, line 1: <capacitty> is not an element of a volume. Did you mean capacity",
        ),
        (
            {"name": "x", "xml": "<volume><capacity>1</capacity><target><mode>1</mode></target></volume>"},
            "xml, line 1: libvirt's schema refuses <mode>: ",
        ),
        ({"name": "x", "xml": "<pool/>"}, "xml: The root element is <pool>, but it has to be <volume>."),
    ]
    before = daemon.digest()
    for item, message in wrong:
        fine = {"name": "fine", "capacity": "4KiB"}
        result = daemon.module("libvirt_volume", volumes=volumes(fine, item))
        assert result.get("failed"), item
        assert message in result["msg"], (item, result["msg"])
        assert result["error"]["option"].startswith("volumes[1]."), item
        assert "\n" not in result["msg"], item
        assert result.get("changed", False) is False, item
    assert daemon.digest() == before
    daemon.done("libvirt_pool", name="p", state="inactive")
    for state in ("present", "absent"):
        refused = daemon.module("libvirt_volume", pool="p", name="x", capacity="1MiB", state=state)
        assert refused["msg"] == (
            "Invalid value 'p' for pool: The storage pool is inactive, so its volumes cannot be read. Start the pool "
            "with libvirt_pool and state: active."
        )


def test_what_a_domain_stands_on_is_left_alone(run_volume: Run) -> None:
    running = DOMAIN.format(name="web1", disk=DISK.format("run", ""), state=RUNNING)
    reading = DOMAIN.format(name="web2", disk=DISK.format("lent", "<readonly/>"), state=RUNNING)
    off = DOMAIN.format(name="old1", disk=DISK.format("off", ""), state=OFF)
    named = DOMAIN.format(name="old2", disk=IN_POOL.format("named"), state=OFF)
    domains = (running, reading, off, named)
    for name, domain in (("run", "web1"), ("lent", "web2"), ("off", "old1"), ("named", "old2")):
        refused = run_volume(*domains, name=name, state="absent")
        assert refused["msg"] == (
            f"Invalid value 'absent' for state: Volume 'p/{name}' would be deleted, but domains use the volume: "
            f"{domain}. Set allow_in_use: true to do it anyway."
        )
        assert refused["volumes"][0]["error"] == refused["error"]
        assert refused["changed"] is False
        forced = run_volume(*domains, name=name, state="absent", allow_in_use=True)
        assert (forced["volumes"][0]["state"], forced["volumes"][0]["error"]) == ("absent", None)
    assert run_volume(*domains, name="free", state="absent")["volumes"][0]["state"] == "absent"
    assert "web1" in run_volume(*domains, name="run", capacity="8KiB")["msg"]
    assert run_volume(*domains, check=True, name="off", capacity="8KiB")["plan"][0]["how"] == "resize"
    assert "would not be consistent" in run_volume(*domains, name="x", clone_from="run")["msg"]
    assert run_volume(*domains, name="x", clone_from="lent")["volumes"][0]["state"] == "present"


def test_info_reports_who_stands_on_a_volume_by_an_overlay_or_with_its_firmware(tmp_path: pathlib.Path) -> None:
    below = "<backingStore><path>/nowhere/p/base</path></backingStore></volume>"
    there = VOLUME.format("top").replace("</volume>", below) + VOLUME.format("base") + VOLUME.format("vars")
    nvram = "<loader type='pflash'>/l</loader><nvram type='file'><source file='/nowhere/p/vars'/></nvram></os>"
    domain = DOMAIN.format(name="web1", disk=IN_POOL.format("top"), state=OFF).replace("</os>", nvram)
    uri = node_uri(tmp_path, NODE.format(volumes=there, domains=domain))
    rows = run_here("libvirt_volume_info", {"uri": uri})["volumes"]
    assert {row["name"]: row["used_by"] for row in rows} == {"top": ["web1"], "base": ["web1"], "vars": ["web1"]}


def define_late_domain(connection: t.Any) -> None:
    connection.defineXML(DOMAIN.format(name="late", disk=DISK.format("free", ""), state=OFF))


def test_a_domain_that_came_during_the_run_keeps_its_disk(tmp_path: pathlib.Path) -> None:
    uri = node_uri(tmp_path, NODE.format(volumes=VOLUME.format("free"), domains=""))
    for allowed in (False, True):
        flags = {"force_shrink": False, "allow_in_use": allowed}
        run = interfering_run(VolumeRun, define_late_domain)(
            read_wanted([{"pool": "p", "name": "free", "state": "absent", **flags}]), print
        )
        if allowed:
            assert run.converge(uri, 10, False, False)["volumes"][0]["state"] == "absent"
            continue
        with pytest.raises(TapvirtError, match="but domains use the volume: late[.]") as refused:
            run.converge(uri, 10, False, False)
        assert (refused.value.fields["changed"], refused.value.fields["volumes"][0]["state"]) == (False, "present")


def test_a_driver_that_knows_no_domains_does_not_report_that_there_are_none(daemon: SessionDaemon) -> None:
    daemon.done("libvirt_volume", pool="p", name="v", capacity="4KiB")
    storage: dict[str, t.Any] = {"uri": daemon.uri.replace("qemu+", "storage+")}
    unknown = "This libvirt driver has no domains, so it is not known whether a domain uses "
    assert unknown in daemon.module("libvirt_volume", **storage, pool="p", name="v", state="absent")["msg"]
    assert unknown in daemon.module("libvirt_pool", **storage, name="p", state="inactive")["msg"]
    assert daemon.done("libvirt_volume_info", **storage)["volumes"][0]["used_by"] is None
    daemon.done("libvirt_volume", **storage, pool="p", name="v", state="absent", allow_in_use=True)
    daemon.done("libvirt_pool", **storage, name="p", state="inactive", allow_in_use=True)


def test_files_behind_a_socket_that_leads_anywhere_are_not_taken_for_those_of_this_host(
    daemon: SessionDaemon,
) -> None:
    backing = {"path": str(daemon.files / "p" / "none"), "format": "qcow2"}
    new = {"pool": "p", "name": "x", "format": "qcow2", "capacity": "1MiB", "backing": backing}
    assert "The backing file does not exist." in daemon.module("libvirt_volume", check=True, **new)["msg"]
    assert not run_here("libvirt_volume", {"uri": daemon.uri, **new}, check=True).get("failed")


def test_check_mode_stops_no_pool_and_a_run_reports_that_libvirt_did(daemon: SessionDaemon) -> None:
    pool = daemon.connection.storagePoolLookupByName("p")
    (daemon.files / "p").rmdir()
    (daemon.files / "p").touch()
    new: dict[str, t.Any] = {"pool": "p", "name": "v", "capacity": "4KiB"}
    daemon.module("libvirt_volume", check=True, **new)
    assert pool.isActive()
    assert (
        "libvirt could not read the content of pool 'p' and stopped the pool: "
        in daemon.module("libvirt_volume", **new)["msg"]
    )
    assert not pool.isActive()


def test_info_by_pool_name_and_glob_and_within_its_limit(daemon: SessionDaemon) -> None:
    other = f"<pool type='dir'><target><path>{daemon.files}/q</path></target></pool>"
    daemon.done("libvirt_pool", name="q", xml=other, state="present")
    made = volumes(*({"name": name, "capacity": "4KiB"} for name in ("a1", "a2", "b1")))
    daemon.done("libvirt_volume", volumes=made)
    for args, found, truncated in (
        ({}, ["a1", "a2", "b1"], False),
        ({"pools": ["p"], "names": ["a*", "b1"], "limit": 2}, ["a1", "a2"], True),
        ({"names": ["?2"]}, ["a2"], False),
    ):
        result = daemon.done("libvirt_volume_info", **args)
        assert ([row["name"] for row in result["volumes"]], result["truncated"]) == (found, truncated)
    path = f"{daemon.files}/p/a1"
    assert daemon.done("libvirt_volume_info", names=["a1"])["volumes"][0] == {
        "pool": "p",
        "name": "a1",
        "key": path,
        "path": path,
        "type": "file",
        "format": "raw",
        "capacity_bytes": 4096,
        "allocation_bytes": 4096,
        "backing": None,
        "used_by": [],
    }
    assert (
        "Invalid value 'c1' for names[0]: No volume of these pools has this name."
        in daemon.module("libvirt_volume_info", names=["c1"])["msg"]
    )
    assert (
        "Invalid value 'q' for pools[0]: The storage pool is inactive, so"
        in daemon.module("libvirt_volume_info", pools=["q"])["msg"]
    )
    assert "The limit is a number from 1 to 10000." in daemon.module("libvirt_volume_info", limit=0)["msg"]


def test_the_modules_themselves_run(daemon: SessionDaemon, run_module: Run) -> None:
    args = {"uri": daemon.uri, "pool": "p", "name": "new", "capacity": 4096}
    done = run_module("libvirt_volume", args, diff=True)
    assert (done["changed"], done["volumes"][0]["capacity_bytes"]) == (True, 4096)
    assert "new volume" in done["diff"]["after"]
    assert "mutually exclusive" in run_module("libvirt_volume", {**args, "volumes": []})["msg"]
    assert [row["name"] for row in run_module("libvirt_volume_info", {"uri": daemon.uri})["volumes"]] == ["new"]
