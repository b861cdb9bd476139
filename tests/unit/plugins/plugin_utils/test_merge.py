# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of module parameters and of domains, merged: the later one wins, and a duplicate is refused."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.merge import (
    domain_origins,
    merge_domains,
    merge_params,
    param_origins,
)
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.origins import name_origins


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
        ([], r"for tables: The tables are a dictionary"),
        ({"mine": "kvm"}, "Invalid value 'kvm' for mine: A table is a list"),
        ({"mine": {"module": "kvm"}}, "for mine: A table is a list"),
        ({"mine": ["kvm"]}, r"Invalid value 'kvm' for mine\[0\]: An entry is a dictionary"),
        ({"mine": [{"module": "kvm"}]}, r"Invalid value for mine\[0\]\.name: An entry has a name"),
        ({"mine": [{"module": 7, "name": "x"}]}, r"Invalid value 7 for mine\[0\]\.module: An entry has a module"),
        (
            {"mine": [{"module": "a", "name": "x"}, {"module": "a", "name": "x"}]},
            r"Invalid value 'a\.x' for mine\[1\]: The table already contains a\.x, as mine\[0\]\.",
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
        ({"domains_host": {"name": "web"}}, "for domains_host: A table is a list"),
        ({"domains_host": ["web"]}, r"Invalid value 'web' for domains_host\[0\]: An entry is a dictionary"),
        ({"domains_host": [{"name": "a"}, {"state": "running"}]}, r"for domains_host\[1\]\.name: An entry has a name"),
        ({"domains_host": [{"name": True}]}, r"Invalid value True for domains_host\[0\]\.name"),
        (
            {"domains_group_kvm": [{"name": "web"}, {"name": "db"}, {"name": "web"}]},
            r"value 'web' for domains_group_kvm\[2\]: The table already contains web, as domains_group_kvm\[0\]\.",
        ),
    ],
)
def test_a_table_of_domains_that_cannot_be_used_is_refused(tables: t.Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        merge_domains(tables)


def test_the_origin_of_a_key_is_the_last_table_that_sets_it() -> None:
    tables = {
        "module_params_wanted": [{"module": "kvm", "name": "nx", "value": 1}, {"module": "kvm", "name": "halt-poll"}],
        "module_params_host": [{"module": "kvm", "name": "halt_poll", "value": 2, "persist": "none"}],
    }
    merged = merge_params(tables, persist="auto")
    poll, nx = param_origins([merged[1], merged[0]], tables, persist="module_params_persist")
    assert (poll["name"], poll["path"]) == ("kvm.halt_poll", "module_params_host[0]")
    assert poll["keys"]["value"] == "module_params_host[0].value"
    assert (nx["path"], nx["keys"]["persist"]) == ("module_params_wanted[0]", "module_params_persist")
    (web,) = domain_origins(
        [{"name": "7"}], {"domains_wanted": [{"name": 7, "xml": "<"}], "domains_host": [{"name": "7"}]}
    )
    assert (web["path"], web["keys"]["xml"]) == ("domains_host[0]", "domains_wanted[0].xml")


def test_a_failed_result_names_the_tables_and_the_entry() -> None:
    tables = {"domains_wanted": [{"name": "web"}], "domains_host": [{"name": "db7", "xml": "<"}]}
    origins = domain_origins(merge_domains(tables), tables)
    error: dict[str, t.Any] = {
        "option": "domains[1].xml",
        "value": "<",
        "problem": "As in domains[0].",
        "hint": None,
        "candidates": [],
    }
    row = {"name": "db7", "error": error}
    message = "Invalid value for domains[1].xml, line 2: No. Invalid value for domains[0].vcpus[3]: No. domains[2]"
    result = {"failed": True, "msg": message, "error": error, "exception": "old", "domains": [{"error": None}, row]}
    named = name_origins(result, "domains", origins)
    assert named["msg"] == (
        "Invalid value for domains_host[0].xml, line 2 (db7): No. "
        "Invalid value for domains_wanted[0].vcpus[3] (web): No. domains[2]"
    )
    assert named["error"] == {**error, "option": "domains_host[0].xml", "problem": "As in domains_wanted[0]."}
    assert named["domains"] == [{"error": None}, {"name": "db7", "error": named["error"]}]
    assert "exception" not in named
    crash = {"failed": True, "msg": "MODULE FAILURE", "exception": "traceback"}
    assert name_origins(crash, "domains", origins) == crash
