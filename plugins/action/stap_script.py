# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Render the template on the controller, as ansible.builtin.template does; the rest is done on the host."""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleError
from ansible.plugins.loader import lookup_loader
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.files import kind_of
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.module_action import ModuleAction, refused


class ActionModule(ModuleAction):
    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        if "src" not in args:
            raise refused(
                InvalidInput("src", None, "The option is missing.", "Give the template of a SystemTap script.")
            )
        args["_content"] = self._render(args["src"], args.get("variables") or {}, task_vars or {})
        result.update(self._run_module(task_vars or {}, module_args=args))
        return result

    def _check_regular(self, src: str) -> None:
        """Refuse what is not a regular file: reading a FIFO would wait for its writer."""
        try:
            path = self._find_needle("templates", src)
        except AnsibleError:
            return  # the lookup names the directories that it searched
        kind = kind_of(os.stat(path).st_mode)
        if kind:
            raise refused(InvalidInput("src", path, f"The path is {kind}, not a regular file."))

    def _render(self, src: str, variables: dict[str, t.Any], task_vars: dict[str, t.Any]) -> str:
        self._check_regular(src)
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        try:
            return str(lookup.run([src], variables=task_vars, template_vars=variables)[0])
        except AnsibleError as error:
            raise refused(InvalidInput("src", src, f"The template cannot be rendered: {error}")) from error
