# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes, and plans for pools and volumes of kinds that a test cannot have everywhere. Pure."""

from __future__ import annotations

import dataclasses
import typing as t
import xml.etree.ElementTree as ET

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.xml import differences
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.pool_plan import (
    ObservedPool,
    WantedPool,
    comparable,
    plan_pool,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.storage import User, parse_size, shown_size
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.volume_data import (
    PoolSeen,
    Seen,
    SourceFile,
    VolumeSeen,
    WantedVolume,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.volume_plan import plan_volume

GIB = 1 << 30
# virScaleInteger of libvirt: a letter alone and with iB counts in 1024, with B in 1000, in any case.
SIZES = {
    "0": 0, "7": 7, "7b": 7, "7 byte": 7, "7bytes": 7, "1K": 1 << 10, "1k": 1 << 10, "1KiB": 1 << 10, "1kib": 1 << 10,
    "1KB": 1000, "1kb": 1000, "2M": 2 << 20, "2 MiB": 2 << 20, "2MB": 2000000, "3g": 3 << 30, "3GiB": 3 << 30,
    "3GB": 3 * 10**9, "4T": 4 << 40, "4TiB": 4 << 40, "4TB": 4 * 10**12, "5PiB": 5 << 50, "5PB": 5 * 10**15,
    " 6EiB ": 6 << 60, "6EB": 6 * 10**18, "1024": 1024,
}  # fmt: skip


def test_sizes_mean_what_libvirt_reads() -> None:
    assert {text: parse_size("capacity", text) for text in SIZES} == SIZES


def test_a_size_of_any_length_is_too_large_and_no_error_to_read() -> None:
    with pytest.raises(InvalidInput, match="The size is larger than libvirt's maximum, 9223372036854775807 bytes.$"):
        parse_size("capacity", "1" * 5000)
    assert parse_size("capacity", "0" * 5000 + "7KiB") == 7168


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("10GiBB", ["10GiB", "10GB"]), ("10Gigabyte", ["10GB", "10GiB"]), ("1Mob", ["1MB", "1MiB"]),
        ("1 QB", ["1MiB", "1GiB"]),
        ("1.5KiB", ["1536"]), ("1e9", []), ("", []), ("GiB", []), ("-1GiB", []), ("8EiB", []), ("0x10", []),
        ("1,000", []), ("10 Gi B", []),
    ],
)  # fmt: skip
def test_what_is_no_size_is_reported_with_the_nearest(text: str, nearest: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_size("capacity", text)
    assert caught.value.candidates == nearest
    assert caught.value.message.startswith(f"Invalid value {text!r} for capacity: ")


def test_sizes_are_shown_exactly() -> None:
    shown = [shown_size(size) for size in (0, 1, 1024, 1025, 3 << 20, 5 << 30, 7 << 40)]
    assert shown == ["0 bytes", "1 bytes", "1 KiB", "1025 bytes", "3 MiB", "5 GiB", "7 TiB"]


# ---- pools ----

LOGICAL = """<pool type='logical'><name>vg</name><source>
<device path='{0}'/><device path='{1}'/><name>vg</name></source><target><path>/dev/vg</path></target></pool>"""


def pool_plan(wanted: WantedPool, observed: ObservedPool | None, missing: bool | None = None) -> t.Any:
    return plan_pool(wanted, observed, wanted.root, lambda _path: missing)


def test_the_order_of_devices_is_no_difference() -> None:
    one, other = (ET.fromstring(LOGICAL.format(*paths)) for paths in (("/dev/a", "/dev/b"), ("/dev/b", "/dev/a")))
    assert differences(comparable(one), comparable(other)) == []
    third = ET.fromstring(LOGICAL.format("/dev/a", "/dev/c"))
    assert [row.after for row in differences(comparable(one), comparable(third))] == ["/dev/c"]


def test_permissions_that_the_xml_leaves_out_stay() -> None:
    text = "<pool type='dir'><name>d</name><target><path>/{0}</path>{1}</target></pool>"
    permissions = "<permissions><mode>0{0}</mode><owner>7</owner><group>7</group></permissions>"
    observed = ObservedPool("u", False, True, False, ET.fromstring(text.format("old", permissions.format(700))))
    for declared, mode in (("", "0700"), (permissions.format(711), "0711")):
        plan = pool_plan(WantedPool("d", "inactive", ET.fromstring(text.format("new", declared))), observed)
        assert [change.what for change in plan.changes] == ["d target/path"]
        assert [one.text for one in ET.fromstring(plan.define).iterfind("target/permissions/mode")] == [mode]


def test_only_a_directory_is_built_unasked_and_only_where_it_is_missing() -> None:
    directory = ET.fromstring("<pool type='dir'><name>d</name><target><path>/d</path></target></pool>")
    logical = ET.fromstring(LOGICAL.format("/dev/a", "/dev/b"))
    for root, build, missing, built in (
        (directory, False, True, True),
        (directory, False, False, False),
        (directory, True, False, False),
        (directory, False, None, False),
        (directory, True, None, True),
        (logical, False, True, False),
        (logical, True, True, True),
    ):
        plan = pool_plan(WantedPool("d", "active", root, build=build), None, missing)
        assert (plan.build, plan.start) == (built, True), (root.get("type"), build, missing)
        assert ("build" in [change.how for change in plan.changes]) is built


# ---- volumes ----

FILES = PoolSeen("dir", True, "/srv", 100 * GIB, 40 * GIB)
BLOCKS = dataclasses.replace(FILES, type="logical", path="/dev/vg")


def new(pool: PoolSeen, reserved: int = 0, **wanted: t.Any) -> t.Any:
    return plan_volume(WantedVolume("p", "v", **wanted), Seen(pool=pool), reserved)


def test_what_is_allocated_at_once_has_to_be_available() -> None:
    assert new(FILES, capacity=40 * GIB).needs == 40 * GIB
    assert new(FILES, capacity=90 * GIB, allocation=0).needs == 0
    assert new(FILES, capacity=90 * GIB, format="qcow2").needs == 0
    for refused in (
        {"capacity": 41 * GIB},
        {"capacity": 90 * GIB, "allocation": 41 * GIB},
        {"capacity": 101 * GIB, "format": "qcow2"},
        {"capacity": 40 * GIB, "reserved": 1},
    ):
        with pytest.raises(InvalidInput, match="capacity"):
            new(FILES, **refused)
    # Blocks are never thin.
    with pytest.raises(
        InvalidInput, match="^Invalid value '41 GiB' for capacity: Pool 'p' has 40 GiB available, and 41 GiB would be"
    ):
        new(BLOCKS, capacity=41 * GIB, allocation=0)


def test_volumes_of_blocks_are_not_resized_where_libvirt_cannot_and_have_no_format() -> None:
    rounded = Seen(pool=BLOCKS, volume=VolumeSeen("/dev/vg/v", 12 << 20, 12 << 20, None))
    assert plan_volume(WantedVolume("p", "v", capacity=10**7), rounded).changes == []
    for capacity, force_shrink in ((13 << 20, False), (10**7, True)):
        with pytest.raises(
            InvalidInput, match="The volume has 12 MiB, and libvirt cannot resize a volume in a pool of type logical"
        ):
            plan_volume(WantedVolume("p", "v", capacity=capacity, force_shrink=force_shrink), rounded)
    assert "format" not in new(BLOCKS, capacity=GIB).create


def test_an_image_takes_as_many_blocks_as_its_file_has() -> None:
    image = SourceFile("/i.qcow2", 2 * GIB, "qcow2", 60 * GIB)
    for capacity, asked in ((None, 2 * GIB), (3 * GIB, 3 * GIB)):
        plan = plan_volume(WantedVolume("p", "v", capacity=capacity), Seen(pool=BLOCKS, source=image))
        assert plan.needs == asked
        assert f"<capacity>{asked}</capacity>" in (plan.create or "")
    with pytest.raises(InvalidInput, match="'1 GiB' for capacity: The content of the volume needs at least 2 GiB[.]$"):
        plan_volume(WantedVolume("p", "v", capacity=GIB), Seen(pool=BLOCKS, source=image))


def test_volumes_of_a_cluster_grow_by_what_is_available() -> None:
    seen = Seen(pool=dataclasses.replace(BLOCKS, type="rbd"), volume=VolumeSeen("rbd/v", 10 * GIB, 10 * GIB, None))
    assert plan_volume(WantedVolume("p", "v", capacity=50 * GIB, format="raw"), seen).resize == 50 * GIB
    with pytest.raises(
        InvalidInput,
        match="'51 GiB' for capacity: Pool 'p' has 40 GiB available, and 41 GiB would be allocated at once",
    ):
        plan_volume(WantedVolume("p", "v", capacity=51 * GIB), seen)


def test_a_growth_behind_a_running_domain_is_refused_and_a_shrink_behind_any() -> None:
    volume = VolumeSeen("/srv/v", 8 * GIB, 0, "qcow2")
    running, off = User("web1", True, True), User("old1", False, False)
    for user, capacity, refused in (
        (running, 9 * GIB, True),
        (off, 9 * GIB, False),
        (off, 7 * GIB, True),
        (None, 7 * GIB, False),
    ):
        users = () if user is None else (user,)
        seen = Seen(pool=FILES, volume=dataclasses.replace(volume, users=users))
        wanted = WantedVolume("p", "v", capacity=capacity, force_shrink=True)
        if user is None or not refused:
            assert plan_volume(wanted, seen).resize == capacity
            continue
        with pytest.raises(TapvirtError, match=user.domain):
            plan_volume(wanted, seen)
        assert plan_volume(dataclasses.replace(wanted, allow_in_use=True), seen).resize == capacity


def test_a_driver_without_domains_names_the_option_that_the_task_has() -> None:
    seen = Seen(pool=FILES, volume=VolumeSeen("/srv/v", 8 * GIB, 0, "qcow2", users=None))
    for root, option in ((None, "capacity"), (ET.fromstring("<volume/>"), "xml")):
        for capacity in (7 * GIB, 9 * GIB):
            with pytest.raises(InvalidInput, match="it is not known whether a domain uses the volume") as caught:
                plan_volume(WantedVolume("p", "v", capacity=capacity, root=root, force_shrink=True), seen)
            assert caught.value.option == option


def test_less_than_a_sector_is_no_shrink() -> None:
    seen = Seen(pool=FILES, volume=VolumeSeen("/srv/v", 1024, 0, "qcow2"))
    assert plan_volume(WantedVolume("p", "v", capacity=513), seen).changes == []
    with pytest.raises(InvalidInput, match="Set force_shrink: true to shrink it[.]$"):
        plan_volume(WantedVolume("p", "v", capacity=512), seen)
