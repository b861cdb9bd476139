# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Damaged files of procfs: whatever is in them, there is a result, and a small one."""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import tempfile
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.gather import gather
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.processes import SECTIONS
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.tables import TABLES
from hypothesis import given, settings
from hypothesis import strategies as st

FIXTURES = next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures" / "procfs"
NEW = FIXTURES / "7.2.12+deb14-cloud-amd64"
MAX_BYTES = 8000
EXAMPLES = 100_000 if os.environ.get("TAPVIRT_SOAK") else 2_000
# Each part is one test, so that a long run is spread over the machine and none takes too long.
PARTS = 8
LATENCY_STATS = b"Latency Top version : v0.1\n3 4000000 2500000 do_select core_sys_select\n"
JUNK = [
    b"",
    b"\n",
    b" ",
    b":",
    b")",
    b"(",
    b"-",
    b"\\",
    b"\\040",
    b"0",
    b"kB",
    b"\0",
    b"\xff",
    b"9" * 25,
    b"\n\n",
    b"\xc2\x85",
]
OPTIONS: dict[str, t.Any] = {
    "tables": [],
    "sysctls": [],
    "processes": None,
    "kmsg": None,
    "limit": 20,
    "max_bytes": MAX_BYTES,
}


def files():
    """Return path below the root -> content, of every file that is read."""
    found = {table.path: NEW / table.path[len("proc/") :] for table in TABLES.values()}
    contents = {path: source.read_bytes() for path, source in found.items() if source.exists()}
    contents["proc/latency_stats"] = LATENCY_STATS
    for section in SECTIONS:
        contents["proc/1/" + section] = (NEW / "pid" / section).read_bytes()
    contents["dev/kmsg"] = (NEW / "kmsg").read_bytes()
    contents["proc/sys/kernel/printk"] = b"4\t4\t1\t7\n"
    return contents


CONTENTS = files()


def mutation(seed):
    """Return a file's path and its content after some damage; drawn by hand, as hypothesis itself takes longer."""
    chance = random.Random(seed)
    path = chance.choice(sorted(CONTENTS))
    data = bytearray(CONTENTS[path])
    for _number in range(chance.randint(1, 6)):
        start = chance.randint(0, len(data))
        end = start + chance.choice([0, 0, 1, 3, 40, 400])
        junk = bytes(chance.randrange(256) for _byte in range(chance.randint(1, 12)))
        data[start:end] = chance.choice([*JUNK, junk, junk, junk, data[start : start + 60]])
    if chance.random() < 0.1:
        data *= chance.randint(2, 9)
    return path, bytes(data)


@pytest.fixture(scope="module")
def undamaged_tree():
    """A root with all files undamaged, in memory where there is such a place."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    top = pathlib.Path(tempfile.mkdtemp(prefix="tapvirt-", dir=memory))
    for path, data in CONTENTS.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(data)
    yield top
    shutil.rmtree(str(top))


def wanted(path):
    """Return the options with which the file is read."""
    tables = [name for name, table in TABLES.items() if table.path == path]
    if tables:
        return dict(OPTIONS, tables=tables)
    if path.startswith("proc/1/"):
        section = path[len("proc/1/") :]
        return dict(OPTIONS, processes={"sections": [section], "cgroup": "/*", "sort": "cpu", "limit": 5})
    return dict(OPTIONS, kmsg={"limit": 20}) if path == "dev/kmsg" else dict(OPTIONS, sysctls=["kernel.*"])


@pytest.mark.parametrize("part", range(PARTS))
@settings(
    max_examples=EXAMPLES // PARTS,
    deadline=None,
    database=None,
)
@given(seed=st.integers(0, 2**64 - 1))
def test_damaged_files_give_small_results_and_no_exceptions(undamaged_tree, part, seed):
    path, data = mutation(seed)
    (undamaged_tree / path).write_bytes(data)
    try:
        result = gather(Root(str(undamaged_tree)), wanted(path))
    finally:
        (undamaged_tree / path).write_bytes(CONTENTS[path])
    assert len(json.dumps(result)) <= MAX_BYTES
    assert set(result) == {"procfs", "status", "truncated", "unparsed"}


def test_undamaged_files_are_known(undamaged_tree):
    for path in CONTENTS:
        if path != "dev/kmsg":
            assert gather(Root(str(undamaged_tree)), wanted(path))["unparsed"] == {}
