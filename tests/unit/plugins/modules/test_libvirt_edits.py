# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edits of every kind, of domains that are off and that run, against libvirt's real QEMU driver without a daemon."""

from __future__ import annotations

import os
import pathlib
import random
import subprocess
import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.definitions import (
    NEEDS,
    TAKE_FROM_THE_HOST,
    definitions,
    make_files,
    why_not,
)
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.domain_edits import (
    DISK_BYTES,
    KINDS,
    Edit,
    World,
    edits,
)
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.edit_checks import (
    READ,
    Made,
    items,
    read_definitions,
    wrong_edits,
)

if t.TYPE_CHECKING:
    from ansible_collections.tapvirt.host.tests.unit.support.libvirt.embed import Embed

# Domains at once: what runs costs 40 MiB each.
BATCH = 20
EACH = 20 if os.environ.get("TAPVIRT_SOAK") else 2
SEED = int(os.environ.get("TAPVIRT_SEED", random.randrange(10_000)))
FORGET = """
for domain in connection.listAllDomains():
    if domain.isActive():
        domain.memoryStats()  # waits until the driver has met its guest again
        domain.destroy()
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
"""
UNMARK = """
mark = "https://github.com/tapvirt/tapvirt.host/domain/1"
for domain in connection.listAllDomains():
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, mark, 2)
"""


def make_edits(embed: Embed, world: World, some: t.Sequence[Edit], running: bool) -> Made:
    """Make edits of domains, whose files are there before, and which are gone afterwards."""
    for edit in some:
        pathlib.Path(edit.before.image(world)).write_bytes(embed.image.read_bytes())
        for file in edit.files():
            pathlib.Path(file).write_bytes(bytes(DISK_BYTES))

    def converge(after: bool, check: bool = False) -> dict[str, t.Any]:
        result = embed.module("libvirt_domain", check=check, domains=items(world, some, after, running))
        assert not result.get("failed"), result["msg"]
        return result

    read = READ.replace("NAMES", repr([edit.name for edit in some]))
    try:
        converge(after=False)
        before = read_definitions(embed.libvirt(read))
        planned, done = converge(after=True, check=True), converge(after=True)
        return Made(before, planned, done, read_definitions(embed.libvirt(read)), converge(after=True))
    finally:
        embed.libvirt(FORGET)


@pytest.mark.timeout(3600)  # of a soak test
@pytest.mark.parametrize("running", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["stopped", "running"])
def test_each_edit_gives_its_rows_and_an_effect_or_what_waits(embed: Embed, running: bool) -> None:
    world = World("qemu", str(embed.root), ("qemu64", "Westmere", "Nehalem"), ("maximum", "host-model"))
    some = [edit for kind in KINDS for edit in edits(world, kind, EACH, SEED)]
    assert len(some) == EACH * len(KINDS)
    wrong: list[str] = []
    for start in range(0, len(some), BATCH):
        batch = some[start : start + BATCH]
        wrong += wrong_edits(batch, make_edits(embed, world, batch, running), running)
    assert not wrong, "\n".join([f"seed {SEED}", *wrong])


def test_every_definition_that_can_run_here_is_reported_exactly_once(embed: Embed) -> None:
    """Started and paused: a second run plans nothing and nothing waits, with our mark and without it."""
    folder = str(embed.root)
    subprocess.run(["sh", "-c", make_files(folder)], check=True, timeout=60)
    found = definitions(folder)
    names = sorted(set(found) - TAKE_FROM_THE_HOST)
    if EACH == 2:
        names = sorted(set(names) - set(NEEDS))[::9]
    ran = 0
    for start in range(0, len(names), BATCH):
        wanted = [{"name": name, "xml": found[name], "state": "paused"} for name in names[start : start + BATCH]]
        planned = embed.converge(*wanted, check=True)
        done = embed.module("libvirt_domain", domains=wanted)
        assert planned["plan"] == done["plan"]
        assert [problem for problem in (why_not(row["name"], row["error"]) for row in done["domains"]) if problem] == []
        run = {row["name"] for row in done["domains"] if row["error"] is None}
        assert all(row["state"] == ("paused" if row["name"] in run else "shutoff") for row in done["domains"])
        wanted = [one for one in wanted if one["name"] in run]
        for unmarked in (False, True):
            if unmarked:
                embed.libvirt(UNMARK)
            again = embed.converge(*wanted)
            assert (again["changed"], again["plan"]) == (False, [])
            assert [row["pending"] for row in again["domains"]] == [[]] * len(run)
        embed.libvirt(FORGET)
        ran += len(run)
    assert ran > len(names) // 2
