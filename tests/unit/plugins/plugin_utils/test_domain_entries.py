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
        ({"vcpus": 8, "disks": []}, "disks, vcpus would be ignored"),
        ({"allow_device_removal": True}, "allow_device_removal would be ignored"),
        ({"xml": "<x/>", "memory_mib": 64}, "memory_mib cannot stand beside xml"),
        ({"memory_mib": "65", "max_memory_mib": 64}, "memory_mib 65 is more than max_memory_mib 64."),
        ({"memory_mib": 64, "vcpus": 3, "max_vcpus": "2"}, "vcpus 3 is more than max_vcpus 2."),
        ({"memory_mib": 64, "max_vcpus": 0}, "vcpus 1 is more than max_vcpus 0."),
        ({"memory_mib": 64, "disks": [{"target": "vda"}]}, "disk vda needs one of .* it has none."),
        ({"memory_mib": 64, "disks": [{"file": "/a", "device": "/b"}]}, "disk without a target .* file, device."),
        ({"memory_mib": 64, "disks": [{"pool": "p"}]}, "disk .* it has pool."),
        ({"memory_mib": 64, "interfaces": [{"bridge": "b"}, {}]}, "interface 2 needs one of network and bridge."),
    ],
)
def test_contradictions_are_named(entry: dict[str, t.Any], problem: str | None) -> None:
    found = domain_problems([{"name": "web", **entry}])
    if problem is None:
        assert found == []
    else:
        (line,) = found
        before, _dots, after = problem.partition(" .* ")
        assert line.startswith(f"web: {before}") and after in line
