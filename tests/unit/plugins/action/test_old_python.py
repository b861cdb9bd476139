# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host whose Python is too old, where Ansible itself sends the module."""

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.plugins.action import kernel_facts
from ansible_collections.tapvirt.host.tests.unit.support.actions import Result, run_action

# What Ansible returns of Python 3.6 and of 3.7.
FAILURES = [
    '  File "<frozen importlib._bootstrap>", line 1\nSyntaxError: future feature annotations is not defined\n',
    '  File "x.py", line 3\n    if (a := 1):\n         ^\nSyntaxError: invalid syntax\n',
]


def fail(printed: str) -> Result:
    def run_module(_options: Result) -> Result:
        return {"failed": True, "changed": False, "msg": "MODULE FAILURE", "module_stderr": printed, "rc": 1}

    def execute(command: str, _in_data: bytes | None) -> str:
        raise AssertionError(command)

    return run_action(kernel_facts.ActionModule, {"transport": "module"}, execute, run_module)


@pytest.mark.parametrize("printed", FAILURES)
def test_a_traceback_becomes_a_sentence(printed: str) -> None:
    result = fail(printed)
    message = "The host's Python is too old to compile this module: this collection needs Python 3.8 or newer."
    assert result["failed"] is True and result["msg"].startswith(message)
    assert result["error"]["problem"] == result["msg"] and "module_stderr" not in result


def test_another_failure_stays_as_it_is() -> None:
    assert fail("Killed: out of memory, SyntaxError: no\n")["msg"] == "MODULE FAILURE"
