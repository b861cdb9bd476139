# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of module parameters and of domains, merged: the later one wins, and a duplicate is refused."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.merge import merge_domains, merge_params


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
    assert merge_params({"module_params_wanted": [], "module_params_host": None}, persist="auto") == []


def test_domains_are_merged_by_their_names() -> None:
    tables = {
        "domains_wanted": [{"name": "web", "memory_mib": 64, "disks": [{"target": "vda"}]}, {"name": 101}],
        "domains_group": None,
        "domains_host": [{"name": "101", "state": "absent"}, {"name": "web", "disks": [], "vcpus": 2}],
    }
    assert merge_domains(tables) == [
        {"name": "web", "memory_mib": 64, "disks": [], "vcpus": 2},
        {"name": "101", "state": "absent"},
    ]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], r"for tables: the tables are a dictionary"),
        ({"mine": "kvm"}, "Invalid value 'kvm' for mine: a table is a list"),
        ({"mine": {"module": "kvm"}}, "for mine: a table is a list"),
        ({"mine": ["kvm"]}, r"Invalid value 'kvm' for mine\[0\]: an entry is a dictionary"),
        ({"mine": [{"module": "kvm"}]}, r"Invalid value for mine\[0\]\.name: an entry has a name"),
        ({"mine": [{"module": 7, "name": "x"}]}, r"Invalid value 7 for mine\[0\]\.module: an entry has a module"),
        (
            {"mine": [{"module": "a", "name": "x"}, {"module": "a", "name": "x"}]},
            r"Invalid value 'a\.x' for mine\[1\]: the table already contains a\.x, as mine\[0\]\.",
        ),
        ({"mine": [{"module": "a_b", "name": "x"}, {"module": "a-b", "name": "x"}]}, r"contains a_b\.x, as mine\[0\]"),
    ],
)
def test_a_table_of_parameters_that_cannot_be_used_is_refused(tables: t.Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        merge_params(tables)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"domains_host": {"name": "web"}}, "for domains_host: a table is a list"),
        ({"domains_host": ["web"]}, r"Invalid value 'web' for domains_host\[0\]: an entry is a dictionary"),
        ({"domains_host": [{"name": "a"}, {"state": "running"}]}, r"for domains_host\[1\]\.name: an entry has a name"),
        ({"domains_host": [{"name": True}]}, r"Invalid value True for domains_host\[0\]\.name"),
        (
            {"domains_group_kvm": [{"name": "web"}, {"name": "db"}, {"name": "web"}]},
            r"value 'web' for domains_group_kvm\[2\]: the table already contains web, as domains_group_kvm\[0\]\.",
        ),
    ],
)
def test_a_table_of_domains_that_cannot_be_used_is_refused(tables: t.Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        merge_domains(tables)
