# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The listing of stap_probe_info on the builder equals that of ``stap -l``, for the kernels of all hosts."""

from __future__ import annotations

import os

import pytest
import yaml

HOSTS = ("trace1", "trace2", "trace3")
PATTERNS = ['kernel.function("vfs_*").call', 'kernel.function("vfs_read").return', 'kernel.function("ksys_*").inline']
# All functions of a kernel take minutes of CPU time.
EVERYTHING = 'kernel.function("*")'
LONG = bool(os.environ.get("TAPVIRT_SOAK"))
LIMIT = 200_000 if LONG else 2000


@pytest.fixture(scope="module")
def listings(lab):
    """The rows for the kernel of each host, listed in one task: release -> probe -> row."""
    releases = [lab.release(host) for host in HOSTS]
    play = [
        {
            "hosts": "builder",
            "gather_facts": False,
            "tasks": [
                {
                    "name": "List",
                    "tapvirt.host.stap_probe_info": {
                        "probes": [*PATTERNS, *([EVERYTHING] if LONG else [])],
                        "list": True,
                        "kernel": "{{ item }}",
                        "variables": "{{ item == '" + releases[0] + "' }}",
                        "limit": LIMIT,
                    },
                    "loop": releases,
                }
            ],
        }
    ]
    results = lab.playbook(yaml.safe_dump(play)).of("builder", "List")["results"]
    return {result["item"]: {row["probe"]: row for row in result["probes"]} for result in results}


@pytest.mark.parametrize("pattern", [*PATTERNS, *([EVERYTHING] if LONG else [])])
def test_rows_equal_the_listing_of_stap(lab, listings, pattern):
    for release, rows in listings.items():
        plain = lab.run("builder", "nice", "stap", "-r", release, "-l", pattern, timeout=600)
        points = [point["point"] for point in rows[pattern]["points"]]
        assert set(points) == set(plain.stdout.splitlines()), release
        assert rows[pattern]["point_count"] == len(points)
        assert rows[pattern]["verdict"] == ("listed" if points else "missing")


def test_rows_are_typed(listings):
    first = next(iter(listings.values()))
    (read,) = first['kernel.function("vfs_read").return']["points"]
    assert (read["function"], read["source"], read["form"]) == ("vfs_read", "fs/read_write.c", "return")
    assert read["line"] > 0
    assert {"name": "$return", "type": "ssize_t"} in read["variables"]
    assert {"name": "$file", "type": "struct file*"} in read["variables"]
    for release, rows in listings.items():
        for point in rows['kernel.function("vfs_*").call']["points"]:
            assert point["function"].startswith("vfs_"), release
            assert point["form"] == "call"


def test_listing_is_limited_and_filtered(lab, listings):
    release = next(iter(listings))
    options = {"probes": [PATTERNS[0]], "list": True, "kernel": release, "match": r"@fs/read_write\.c:", "limit": 2}
    (result,) = lab.ansible("builder", "tapvirt.host.stap_probe_info", options).values()
    (row,) = result["probes"]
    whole = [point for point in listings[release][PATTERNS[0]]["points"] if point["source"] == "fs/read_write.c"]
    assert (len(row["points"]), row["point_count"], row["truncated"]) == (2, len(whole), True)


def test_missing_function_is_reported_with_the_nearest_names(lab, listings):
    options = {"probes": ['kernel.function("vfs_raed")'], "list": True, "kernel": next(iter(listings))}
    (result,) = lab.ansible("builder", "tapvirt.host.stap_probe_info", options).values()
    (row,) = result["probes"]
    assert (row["verdict"], row["points"]) == ("missing", [])
    assert "vfs_read" in row["candidates"]
