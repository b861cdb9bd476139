# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many hosts at a time: what Ansible takes as every host at once, or fails over, is refused with what would do."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import waves as _waves

DEFAULT: list[int | str] = [1, "25%", "100%"]


def waves(value: t.Any) -> list[int | str]:
    return _waves.waves(value, default=DEFAULT, name="site_waves")


@pytest.mark.parametrize(
    ("value", "sizes"),
    [
        ("", DEFAULT),
        (" ", DEFAULT),
        (None, DEFAULT),
        ([], DEFAULT),
        (5, [5]),
        ("5", [5]),
        ("100%", ["100%"]),
        ("1, 5%,25%", [1, "5%", "25%"]),
        ([1, "2", "05%"], [1, 2, "5%"]),
    ],
)
def test_sizes_in_every_form(value: t.Any, sizes: list[int | str]) -> None:
    assert waves(value) == sizes


@pytest.mark.parametrize(
    "value",
    [
        *(0, "0", -1, "-1", "0%", "-5%", "101%", "1000%", "5.5%", "abc", "1,,2", "1,", ",", "1 2", "٣"),
        *(True, False, 1.0, {}, {"a": 1}, 10**10),
    ],
)
def test_what_is_no_size_is_refused(value: t.Any) -> None:
    check_refusal(value, f"Invalid value {value!r} for site_waves")


def test_bytes_are_refused() -> None:
    check_refusal(b"1", "Invalid value '1' for site_waves")


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ([1, 0], "value 0 for site_waves[1]"),
        ([1, "101%"], "value '101%' for site_waves[1]"),
        ([[1]], "value [1] for site_waves[0]"),
        (["1,2"], "value '1,2' for site_waves[0]"),
        ([None], "value for site_waves[0]"),
    ],
)
def test_the_path_of_an_element_has_its_index(value: t.Any, refused: str) -> None:
    check_refusal(value, f"Invalid {refused}")


def check_refusal(value: t.Any, beginning: str) -> None:
    with pytest.raises(InvalidInput) as error:
        waves(value)
    assert str(error.value) == (
        f"{beginning}: The size of a wave is a number of hosts, at least 1, or a whole "
        "percentage from 1% to 100%. Several sizes are a list, or a string with commas, such as 1, 25%, 100%."
    )
