# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write every task result of a play as one JSON line, so that a test reads results and not a screen."""

from __future__ import annotations

import json
import os
import typing as t

from ansible.module_utils.common.text.converters import to_text
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: json_lines
type: aggregate
short_description: Write task results as JSON lines
description: Appends a line for each task result to the file that E(TAPVIRT_RESULTS) names.
options: {}
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "json_lines"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, result: t.Any, status: str) -> None:
        row = {
            "host": result._host.get_name(),
            "task": result._task.get_name(),
            "status": status,
            "result": json.loads(self._dump_results(result._result, indent=0)),
        }
        with open(os.environ["TAPVIRT_RESULTS"], "a", encoding="utf-8") as stream:
            stream.write(to_text(json.dumps(row)) + "\n")

    def v2_runner_on_ok(self, result: t.Any) -> None:
        self._write(result, "ok")

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        self._write(result, "failed")

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        self._write(result, "unreachable")

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        self._write(result, "skipped")
