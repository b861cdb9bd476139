# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.envelope import Memory, buffer_check, count_cpus
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.host import judge_versions, parse_tested_range


@pytest.mark.parametrize(
    ("release", "stap", "staprun", "tested", "refused"),
    [
        ("6.1.0-56-amd64", "4.8", "4.8", "6.1-rc3", ["stap"]),
        ("6.12.117+deb13-cloud-amd64", "5.1", "5.1", "6.9-rc0", ["stap"]),
        ("6.12.117+deb13-cloud-amd64", "5.6", "5.1", "7.3.0-rc3", []),
        ("6.12.117+deb13-cloud-amd64", "5.6", "5.6", "7.3.0-rc3", []),
        ("7.2.12+deb14-cloud-amd64", "5.6", "5.1", "7.3.0-rc3", []),
        ("6.1.0-50-cloud-amd64", "5.6", "4.8", "7.3.0-rc3", ["staprun"]),
        ("6.1.0-50-cloud-amd64", "5.6", None, "7.3.0-rc3", []),
    ],
)
def test_four_versions_are_judged_together(release, stap, staprun, tested, refused):
    assert [finding.check for finding in judge_versions(release, stap, staprun, tested)] == refused


def test_the_tested_range_is_read():
    assert parse_tested_range("x\ntested kernel versions: 3.10 ... 7.3.0-rc3\n") == ("3.10", "7.3.0-rc3")
    assert parse_tested_range("") is None


def test_buffers_are_measured_against_free_memory():
    assert buffer_check(Memory(64 << 20, 0, 4)) is not None
    assert buffer_check(Memory(2048 << 20, 0, 4)) is None
    assert count_cpus("0-3,8\n") == 5
