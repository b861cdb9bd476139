# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an inventory has a table, and names that are almost those of one."""

from __future__ import annotations

import collections.abc
import typing as t

import pytest
from ansible.errors import AnsibleUndefinedVariable
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.tables import missing_tables, near_tables

TABLE = [{"module": "kvm", "name": "halt_poll_ns", "value": 1}]


class Broken(dict[str, t.Any], collections.abc.Mapping[str, t.Any]):
    """Variables of which one cannot be evaluated."""

    def __getitem__(self, name: str) -> t.Any:
        raise AnsibleUndefinedVariable(f"{name} is undefined")


@pytest.mark.parametrize(
    ("given", "prefix", "ours"),
    [
        ("module_param_wanted", "module_params", "module_params_wanted"),
        ("modules_params_wanted", "module_params", "module_params_wanted"),
        ("module_parameters_wanted", "module_params", "module_params_wanted"),
        ("module_params", "module_params", "module_params_host"),
        ("module_params_hosts", "module_params", "module_params_host"),
        ("module_param_group_kvm", "module_params", "module_params_group_kvm"),
        ("domain_wanted", "domains", "domains_wanted"),
        ("domains_groups_kvm", "domains", "domains_group_kvm"),
    ],
)
def test_a_name_that_is_almost_ours_is_found(given: str, prefix: str, ours: str) -> None:
    assert near_tables({given: TABLE, "other": TABLE}, prefix) == {given: ours}


def test_names_of_ours_and_values_that_are_no_table_are_left() -> None:
    ours = ["module_params_wanted", "module_params_group", "module_params_group_kvm", "module_params_host"]
    assert near_tables(dict.fromkeys([*ours, "module_params_here", "domains_wanted"], TABLE), "module_params") == {}
    others = {"module_params_state": "present", "module_param_host": ["a"], "module_param_wanted": []}
    assert near_tables(others, "module_params") == {}
    assert near_tables({"domains_targets": TABLE, "domains": TABLE}, "domains") == {}


def test_one_host_with_an_entry_is_enough() -> None:
    empty: dict[str, t.Any] = {"module_params_wanted": [], "module_params_host": None}
    for name in ("module_params_wanted", "module_params_group_kvm", "module_params_host"):
        assert missing_tables({"a": empty, "b": {name: TABLE}}, ["a", "b"], "module_params") == ""
    assert missing_tables({"a": Broken(domains_wanted="{{ x }}")}, ["a"], "domains") == ""
    assert missing_tables({"a": empty, "b": {"domains_host": TABLE}}, ["a"], "domains").startswith(
        "No host has a table: "
    )


def test_variables_whose_names_are_no_texts_are_passed_over() -> None:
    variables: t.Any = {8080: ["foo"], None: 1, "module_param_wanted": [{"module": "kvm"}]}
    assert near_tables(variables, "module_params") == {"module_param_wanted": "module_params_wanted"}
    odd: t.Any = {"h1": {8080: [{}]}}
    assert missing_tables(odd, ["h1"], "module_params") != ""


def test_a_name_cannot_steer_a_terminal() -> None:
    name = "module_params_groups_\x1b[2J" + "x" * 500
    sentence = missing_tables({"h1": {name: TABLE}}, ["h1"], "module_params")
    assert "\\x1b[2J" in sentence and sentence.isprintable() and len(sentence) < 600
