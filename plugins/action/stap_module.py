# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build on the builder, then fetch the module to the controller, where every host's run finds it."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.tapvirt.host.plugins.plugin_utils._systemtap import fetch_once


class ActionModule(ActionBase):
    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        result.update(self._execute_module(task_vars=task_vars))
        built = result.get("module")
        if built and not result.get("failed"):
            built["controller_path"] = fetch_once(self._connection, built["path"], built["sha256"])
        return result
