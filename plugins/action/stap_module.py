# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build on the builder, then fetch the module to the controller, where every host's run finds it."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.modules import fetch_once
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.edge import TEXT, Need, Odd, parse
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.module_action import ModuleAction


class ActionModule(ModuleAction):
    def _run_task(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        result = self._run_module(task_vars)
        built = result.get("module")
        if built and not result.get("failed"):
            try:
                file = parse(built, {"path": Need(TEXT), "sha256": Need(TEXT)})
            except Odd as error:
                raise AnsibleActionFail(f"The builder returned a module that cannot be fetched: {error}.") from None
            built["controller_path"] = fetch_once(self._connection, file["path"], file["sha256"])
        return result
