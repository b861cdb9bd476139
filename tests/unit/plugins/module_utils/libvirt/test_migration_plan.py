# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a migration is refused for, where the tests' own hosts do not show it."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.disk.disks import Disk, Source
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.migration.observe import file_system_of
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.migration.plan import (
    DiskSeen,
    MigrationPlan,
    Observed,
    Passage,
    Seen,
    Wanted,
    plan_migration,
)

SHARE = "Put a writable disk on storage that both hosts share."
HERE = Seen("web", "c7a5fdbd-edaf-9455-926a-d65c16db1809", "running", active=True, persistent=True, autostart=False)
MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 22 0:35 / /srv rw shared:9 - xfs /dev/vdb rw
41 40 0:36 / /srv/disk\\040images rw - nfs4 store:/images rw
42 22 0:37 / /srv/old rw - nfs store:/old rw
43 22 0:38 / /srv/old rw - tmpfs tmpfs rw
"""


def plan_passage(**passage: t.Any) -> MigrationPlan:
    observed = Observed(HERE, None, passage=Passage(**passage))
    return plan_migration(Wanted("web"), observed, ("qemu:///system", "qemu+ssh://b/system"), "client")


def disk(file_system: str | None, there: bool | None, **changes: t.Any) -> DiskSeen:
    own = Disk("vda", "disk", Source("file", "/srv/a.img"), readonly=False, shareable=False)
    return DiskSeen(dataclasses.replace(own, **changes), there, file_system)


@pytest.mark.parametrize(
    ("passage", "message"),
    [
        (
            {"job": True},
            "The domain has an active job, such as a migration or a backup. Wait until the job ends, or abort it.",
        ),
        (
            {"snapshots": 2},
            "The domain has 2 snapshots, and libvirt does not migrate snapshots. Remove the snapshots first.",
        ),
        ({"machine": "no such machine"}, "The domain cannot run at the destination: no such machine."),
        ({"processor": "avx512f"}, "The domain needs a processor that the destination does not offer: avx512f."),
        ({"disks": (disk("xfs", None),)}, f"Disk vda (/srv/a.img) is on xfs, which only the source has. {SHARE}"),
        (
            {"disks": (disk("xfs", None, shareable=True),)},
            f"Disk vda (/srv/a.img) is on xfs, which only the source has. {SHARE}",
        ),
        ({"disks": (disk("nfs4", False),)}, "Disk vda (/srv/a.img) does not exist at the destination."),
        (
            {"disks": (disk("xfs", False, device="cdrom"),)},
            "Disk vda (/srv/a.img) does not exist at the destination. Copy the medium to the destination, or eject it "
            "first.",
        ),
    ],
)
def test_what_stands_in_the_way_is_a_refusal_in_words(passage: dict[str, t.Any], message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        plan_passage(**passage)
    assert refused.value.below("name").message == f"Invalid value 'web' for name: {message}"


@pytest.mark.parametrize("seen", [disk("nfs4", None), disk(None, None), disk("ext4", None, readonly=True)])
def test_what_nobody_can_tell_is_a_doubt(seen: DiskSeen) -> None:
    found = plan_passage(disks=(seen,))
    assert found.move
    assert len(found.doubts) == 1


def test_what_is_known_to_be_there_is_no_doubt() -> None:
    assert plan_passage(disks=(disk("nfs4", True),)).doubts == []


@pytest.mark.parametrize("state", ["crashed", "pmsuspended", "shutdown"])
def test_only_what_runs_or_is_paused_moves(state: str) -> None:
    observed = Observed(dataclasses.replace(HERE, state=state), None, passage=Passage())
    with pytest.raises(
        InvalidInput, match=f"The domain is {state} at the source, and only a running or paused domain can move"
    ):
        plan_migration(Wanted("web"), observed, ("a:///", "b:///"), "client")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/a.img", "ext4"),
        ("/srv/a.img", "xfs"),
        ("/srv/disk images/a.img", "nfs4"),
        ("/srv/disk images2/a.img", "xfs"),
        ("/srv/old/a.img", "tmpfs"),
    ],
)
def test_a_file_is_on_the_last_mount_of_the_deepest_point(path: str, kind: str) -> None:
    assert file_system_of(path, MOUNTS) == kind
