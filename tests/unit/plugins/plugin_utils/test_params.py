# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of module parameters: merged, and the difference to a host in words."""

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tapvirt.host.plugins.filter.params import merge_params, params_drift


def test_later_tables_win_key_by_key_and_the_order_stays() -> None:
    tables = {
        "module_params_wanted": [
            {"module": "kvm", "name": "halt_poll_ns", "value": 200000, "reload": "if_unused"},
            {"module": "snd-pcm", "name": "preallocate-dma", "value": True, "persist": "none"},
        ],
        "module_params_group": [{"module": "nbd", "name": "max_part", "value": 8}],
        "module_params_host": [
            {"module": "snd_pcm", "name": "preallocate_dma", "value": False},
            {"module": "kvm", "name": "halt_poll_ns", "value": 0},
        ],
    }
    assert merge_params(tables, persist="auto") == [
        {"module": "kvm", "name": "halt_poll_ns", "value": 0, "reload": "if_unused", "persist": "auto"},
        {"module": "snd_pcm", "name": "preallocate_dma", "value": False, "persist": "none"},
        {"module": "nbd", "name": "max_part", "value": 8, "persist": "auto"},
    ]
    assert merge_params({"module_params_wanted": []}, persist="auto") == []


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "is not a dictionary"),
        ({"mine": "kvm"}, "mine: 'kvm' is not a list"),
        ({"mine": {"module": "kvm"}}, "mine: .* is not a list"),
        ({"mine": ["kvm"]}, "mine, entry 1: 'kvm' is none of"),
        ({"mine": [{"module": "kvm"}]}, "mine, entry 1: .* has no name"),
        ({"mine": [{"module": 7, "name": "x"}]}, "mine, entry 1: .* has no module"),
        ({"mine": [{"module": "a", "name": "x"}, {"module": "a", "name": "x"}]}, r"mine, entry 2: a\.x is named twice"),
        ({"mine": [{"module": "a_b", "name": "x"}, {"module": "a-b", "name": "x"}]}, r"entry 2: a_b\.x is named twice"),
    ],
)
def test_what_is_no_table_is_refused_by_its_name(tables: t.Any, message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        merge_params(tables)


def row(**values: t.Any) -> dict[str, t.Any]:
    base = {"module": "kvm", "name": "halt_poll_ns", "before": 1, "after": 1, "wanted": 1, "pending": []}
    return {**base, "changed": False, **values}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, None),
        ({"wanted": 2, "changed": True}, "is 1, wanted 2"),
        ({"before": True, "wanted": False, "changed": True}, "is true, wanted false"),
        ({"before": "lzo", "wanted": "lz4", "changed": True}, "is lzo, wanted lz4"),
        ({"before": "", "wanted": [1, 2], "changed": True}, 'is "", wanted [1, 2]'),
        ({"changed": True}, "is 1, and nothing keeps it"),
        ({"before": None, "wanted": 2, "changed": True, "pending": ["not yet"]}, "shall be 2; not yet"),
        ({"pending": ["add x=1 and reboot", "and more"]}, "add x=1 and reboot; and more"),
        ({"wanted": None, "after": 5, "changed": True}, "is 1, and was 5 before it was first set"),
        ({"wanted": None, "changed": True}, "is 1 and still kept in modprobe.d"),
    ],
)
def test_the_difference_is_said_in_a_line(values: dict[str, t.Any], line: str | None) -> None:
    found = params_drift({"params": [row(), row(**values)]})
    assert found == ([] if line is None else ["kvm.halt_poll_ns " + line])


def test_a_task_that_was_skipped_says_nothing() -> None:
    assert params_drift({"changed": False, "skipped": True}) == []
    with pytest.raises(AnsibleFilterError):
        params_drift("a result")
