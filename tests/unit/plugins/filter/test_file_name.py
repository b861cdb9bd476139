# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of hosts and domains as names of files: never a path, and never longer than a file's name may be."""

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tapvirt.host.plugins.filter.file_name import file_name


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("web1.example.org", "web1.example.org.log"),
        ("../../escaped", "%2E.%2F..%2Fescaped.log"),
        ("..", "%2E..log"),
        ("a%2Fb", "a%252Fb.log"),
        ("größe", "gr%C3%B6%C3%9Fe.log"),
    ],
)
def test_a_name_is_never_a_path(name: str, wanted: str) -> None:
    assert file_name(name, suffix=".log") == wanted
    assert file_name(name) == wanted.removesuffix(".log")


@pytest.mark.parametrize("value", ["", None, 7, ["a"], "h" * 252, "ö" * 43])
def test_what_cannot_be_one_is_refused(value: t.Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"^tapvirt\.host\.file_name: "):
        file_name(value, suffix=".log")
