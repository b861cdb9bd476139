# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of the role domains: what libvirt_domain gets, and the keys that contradict each other."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.domain_entries import domain_items, domain_problems

ITEM = {"name": "web", "state": "present", "autostart": None, "xml": None, "allow_device_removal": False}


@pytest.mark.parametrize(
    ("entry", "item"),
    [
        ({}, {}),
        ({"memory_mib": 64}, {"xml": "<made of web/>"}),
        ({"memory_mib": 64, "xml": "<own/>"}, {"xml": "<own/>"}),
        ({"memory_mib": 64, "xml": ""}, {"xml": "<made of web/>"}),
        ({"memory_mib": 64, "state": "absent"}, {"state": "absent"}),
        ({"autostart": True, "allow_device_removal": True}, {"autostart": True, "allow_device_removal": True}),
    ],
)
def test_an_entry_becomes_an_item(entry: dict[str, t.Any], item: dict[str, t.Any]) -> None:
    assert domain_items(lambda row: f"<made of {row['name']}/>", [{"name": "web", **entry}]) == [{**ITEM, **item}]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"state": "running", "autostart": True, "xml": "<x/>"}, None),
        ({"xml": "<x/>", "allow_device_removal": True}, None),
        ({"memory_mib": 64, "vcpus": 2, "disks": [{"file": "/a"}], "interfaces": [{"bridge": "br0"}]}, None),
        ({"state": "absent", "vcpus": 2}, None),
        ({"vcpus": 8, "disks": []}, "memory_mib: A size is needed, because disks, vcpus of "),
        ({"allow_device_removal": True}, "memory_mib: A size is needed, because allow_device_removal of "),
        (
            {"xml": "<x/>", "memory_mib": 64},
            "xml: The XML is the whole definition of .* so memory_mib cannot be combined with it. Write memory_mib",
        ),
        ({"memory_mib": "65", "max_memory_mib": 64}, "memory_mib: The memory of .* is more than max_memory_mib, 64."),
        (
            {"memory_mib": 64, "vcpus": 3, "max_vcpus": "2"},
            "vcpus: The number of virtual CPUs of .* is more than max_vcpus, 2.",
        ),
        ({"memory_mib": 64, "max_vcpus": 0}, "vcpus: The number of virtual CPUs of .* is more than max_vcpus, 0."),
        ({"memory_mib": 64, "disks": [{"target": "vda"}]}, "disks[0]: Disk vda of .* The disk has none."),
        (
            {"memory_mib": 64, "disks": [{"file": "/a", "device": "/b"}]},
            "disks[0]: Disk without a target of .* The disk has file, device.",
        ),
        ({"memory_mib": 64, "disks": [{"pool": "p"}]}, "disks[0]: Disk .* The disk has pool."),
        (
            {"memory_mib": 64, "interfaces": [{"bridge": "b"}, {}]},
            "interfaces[1]: An interface of .* needs one of network and bridge.",
        ),
    ],
)
def test_contradictions_are_named(entry: dict[str, t.Any], problem: str | None) -> None:
    found = domain_problems([{"name": "web", **entry}], {"domains_host": [{"name": "web", **entry}]})
    if problem is None:
        assert found == []
    else:
        (line,) = found
        before, _dots, after = problem.partition(" .* ")
        assert line.startswith("Invalid value ") and "domain 'web'" in line
        assert f" for domains_host[0].{before}" in line and after in line


def test_a_problem_has_the_path_of_the_table_with_the_key() -> None:
    tables = {
        "domains_wanted": [{"name": "db"}, {"name": "web", "max_memory_mib": 64}],
        "domains_host": [{"name": "web", "memory_mib": 65}],
    }
    merged: list[dict[str, t.Any]] = [{"name": "db"}, {"name": "web", "max_memory_mib": 64, "memory_mib": 65}]
    message = "for domains_host[0].memory_mib: The memory of domain 'web' is more than max_memory_mib, 64."
    assert domain_problems(merged, tables) == [f"Invalid value 65 {message}"]
