# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module procfs_info, run for real on this machine."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.tables import TABLES


def test_everything_with_defaults_is_small_and_reports_what_was_cut(run_module):
    result = run_module(
        "procfs_info",
        {"tables": ["all"], "sysctls": ["kernel.*", "vm.*"], "processes": {"sections": ["status", "maps"]}, "kmsg": {}},
    )
    assert "failed" not in result and result["changed"] is False
    assert len(json.dumps({name: result[name] for name in ("procfs", "status", "truncated", "unparsed")})) < 48000
    assert set(result["procfs"]) == {*TABLES, "sysctls", "processes", "kmsg"} <= set(result["status"])
    assert result["truncated"]["slabinfo"] > 0 or os.geteuid() != 0
    assert result["procfs"]["uptime"]["uptime_seconds"] > 0 and "uptime" not in result["truncated"]


def test_what_was_asked_is_what_is_there(run_module):
    result = run_module(
        "procfs_info", {"tables": ["loadavg", "meminfo"], "processes": {"pid": [os.getpid()], "sections": ["cmdline"]}}
    )
    assert set(result["procfs"]) == {"loadavg", "meminfo", "processes"}
    assert result["procfs"]["processes"][0]["pid"] == os.getpid()
    assert (result["truncated"], result["unparsed"]) == ({}, {})


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "one of the following is required: tables, sysctls, processes, kmsg"),
        ({"tables": ["meminfos"]}, "value of tables must be one or more of"),
        ({"sysctls": ["../x"]}, "Invalid value '../x' for sysctls[0]: An entry names a value below /proc/sys"),
        ({"processes": {"sections": ["environ"]}}, "must be one or more of"),
        ({"kmsg": {"pattern": "["}}, "Invalid value '[' for kmsg.pattern: The regular expression is not valid: "),
        (
            {"processes": None},
            "Invalid value for processes: The task needs one of tables, sysctls, ",
        ),
        ({"kmsg": {"since": "nan"}}, "Invalid value 'nan' for kmsg.since: The time is a finite number of seconds."),
        ({"kmsg": {"since": "-inf"}}, "Invalid value '-inf' for kmsg.since: The time is a finite number"),
        ({"tables": ["meminfo"], "limit": 0}, "Invalid value 0 for limit: The limit must be 1 or more."),
    ],
)
def test_wrong_input_is_refused(run_module, args, words):
    result = run_module("procfs_info", args)
    assert result["failed"] and words in result["msg"]
