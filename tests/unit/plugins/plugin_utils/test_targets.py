# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns of hosts that match none."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.targets import Pattern, check_hosts

GROUPS = {"all": ["web1", "web2", "b1"], "web": ["web1", "web2"], "builder": ["b1"], "ungrouped": [], "empty": []}
NONE = "matches no host of the inventory. Its groups are builder, web."


@pytest.mark.parametrize("pattern", ["all", "web:&web1", "web*", ["web1", "b1"], "~w.b2", "web[1]", "localhost"])
def test_a_pattern_that_matches_is_returned(pattern: Pattern) -> None:
    assert check_hosts(pattern, name="x_hosts", default="all", groups=GROUPS) == pattern
    assert check_hosts("", name="x_hosts", default=pattern, groups=GROUPS) == pattern


@pytest.mark.parametrize(
    ("pattern", "limit", "message"),
    [
        ("", None, f"Invalid value for x: The default pattern 'builders' {NONE} Did you mean builder?"),
        ("empty", None, f"Invalid value 'empty' for x: The pattern {NONE}"),
        ("web:!web", None, f"Invalid value 'web:!web' for x: The pattern {NONE}"),
        (["web3"], None, f"Invalid value ['web3'] for x: The pattern {NONE}"),
        ("web", "b1", "Invalid value 'web' for x: The pattern has no host in common with --limit b1."),
        ("localhost", "web", "Invalid value 'localhost' for x: The pattern has no host in common with --limit web."),
    ],
)
def test_a_pattern_that_matches_no_host_is_refused(pattern: Pattern, limit: str | None, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_hosts(pattern, name="x", default="builders", groups=GROUPS, limit=limit)
    assert caught.value.message == message


def test_an_empty_inventory_is_named() -> None:
    with pytest.raises(
        InvalidInput,
        match="for x: The default pattern 'all' matches no host: the inventory is empty. Give an inventory",
    ):
        check_hosts("", name="x", default="all", groups={"all": [], "ungrouped": []})


@pytest.mark.parametrize("pattern", [{"a": 1}, ["web", 5], 7])
def test_what_is_no_pattern_is_refused(pattern: t.Any) -> None:
    with pytest.raises(InvalidInput, match="The hosts are a pattern, or a list of patterns"):
        check_hosts(pattern, name="x", default="all", groups=GROUPS)
