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
from ansible_collections.tapvirt.host.plugins.module_utils._core.files import kind_of, open_regular
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.module_action import ModuleAction, refused


class ActionModule(ModuleAction):
    def _run_task(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        args = dict(self._task.args)
        try:
            _check_types(args)
            args["_content"] = text = self._render(args["src"], args.get("variables") or {}, task_vars)
            if "\0" in text:
                line = text.count("\n", 0, text.index("\0")) + 1
                raise InvalidInput("src", args["src"], "The rendered script contains a NUL byte.", line=line)
        except InvalidInput as error:
            raise refused(error) from None
        return self._run_module(task_vars, module_args=args)

    def _check_file(self, src: str) -> None:
        """Check that a template can be read.

        :raises InvalidInput: it is not a regular file (reading a FIFO would wait for its writer), or not UTF-8.
        """
        try:
            path = self._find_needle("templates", src)
        except AnsibleError:
            return  # the lookup names the directories that it searched
        kind = kind_of(os.stat(path).st_mode)
        if kind:
            raise InvalidInput("src", path, f"The path is {kind}, not a regular file.")
        try:
            with open_regular(path) as stream:
                data = stream.read()
        except OSError as error:
            raise InvalidInput("src", path, f"The file cannot be read: {error.strerror}.") from error
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise InvalidInput("src", path, "The template is not UTF-8.", line=line) from error

    def _render(self, src: str, variables: dict[str, t.Any], task_vars: dict[str, t.Any]) -> str:
        """Return the rendered template.

        :raises InvalidInput: it cannot be read or rendered.
        """
        self._check_file(src)
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        try:
            return str(lookup.run([src], variables=task_vars, template_vars=variables)[0])
        except AnsibleError as error:
            # A cause with the same words would be printed again.
            raise InvalidInput("src", src, f"The template cannot be rendered: {error}") from None


def _check_types(args: t.Mapping[str, t.Any]) -> None:
    """Check the options that the controller reads.

    :raises InvalidInput: one is missing or has the wrong type.
    """
    src, variables = args.get("src"), args.get("variables")
    if src is None:
        raise InvalidInput("src", None, "The option is missing.", "Give the template of a SystemTap script.")
    if not isinstance(src, str):
        raise InvalidInput("src", src, "The value is not the path of a template.")
    if "\0" in src:
        raise InvalidInput("src", src, "A text cannot contain a NUL byte.")
    if variables is not None and not isinstance(variables, t.Mapping):
        raise InvalidInput("variables", variables, "The value is not a dictionary.")
