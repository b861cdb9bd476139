# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The difference between a table of module parameters and a host, in words."""

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tapvirt.host.plugins.filter.params import params_drift


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
def test_the_difference_is_reported_in_a_line(values: dict[str, t.Any], line: str | None) -> None:
    found = params_drift({"params": [row(), row(**values)]})
    assert found == ([] if line is None else ["kvm.halt_poll_ns " + line])


def test_a_task_that_was_skipped_reports_nothing() -> None:
    assert params_drift({"changed": False, "skipped": True}) == []
    with pytest.raises(AnsibleFilterError):
        params_drift("a result")
