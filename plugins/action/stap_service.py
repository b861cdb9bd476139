# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ship the modules that the host does not keep yet, then have the tracers put right there."""

from __future__ import annotations

import os
import shlex
import typing as t

from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service.model import (
    directory_of,
    module_path,
    read_wanted,
)
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.modules import cache_path, has_file
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.module_action import (
    ModuleAction,
    OptionsError,
    refused,
)


class File(t.NamedTuple):
    """A module that a host is to keep: its name, its SHA-256, and the option that gave it."""

    name: str
    sha256: str
    option: str


class ActionModule(ModuleAction):
    def _run_task(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        args = dict(self._task.args)
        # In check mode the module only has to know that they are missing.
        if not self._task.check_mode:
            args["_shipped"] = self._ship(self._missing(self._wanted()))
        try:
            result = self._run_module(task_vars, module_args=args)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        # The modules' descriptions came from the task; a copy of them in every result helps nobody.
        result.pop("invocation", None)
        return result

    def _wanted(self) -> dict[str, File]:
        """Return the modules that the host is to keep, by their path there; none where the module refuses the task."""
        try:
            return files(self._checked_options(self._module())["services"])
        except (OptionsError, TapvirtError):
            return {}

    def _missing(self, wanted: t.Mapping[str, File]) -> list[File]:
        """Return those modules that the host does not have, one for each SHA-256."""
        if not wanted:
            return []
        answer = self._low_level_execute_command(f"sha256sum {shlex.join(wanted)}", sudoable=True)
        found = set(str(answer["stdout"]).splitlines())
        missing = {file.sha256: file for path, file in wanted.items() if f"{file.sha256}  {path}" not in found}
        return list(missing.values())

    def _ship(self, missing: t.Sequence[File]) -> dict[str, str]:
        """Copy modules from the controller's cache to the host; return where they are there, by hash."""
        if not missing:
            return {}
        folder = self._make_tmp_path()
        shipped = {}
        for file in missing:
            local = cache_path(file.sha256)
            if not has_file(local, file.sha256):
                problem = f"The controller's cache does not contain this module ({local})."
                raise refused(InvalidInput(file.option, file.name, problem, "Run stap_module in the same job."))
            shipped[file.sha256] = str(self._connection._shell.join_path(folder, os.path.basename(local)))
            self._transfer_file(local, shipped[file.sha256])
        self._fixup_perms2((self._connection._shell.tmpdir, *shipped.values()))
        return shipped


def files(services: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, File]:
    """Return the modules that a host is to keep for these services, by their path there.

    :raises InvalidInput: an entry is not acceptable.
    """
    found = {}
    for one in read_wanted(services):
        # A kernel has one module, so the builds are in the order of the option.
        for index, build in enumerate(one.builds.values()):
            path = f"{directory_of(one.name)}/{module_path(build)}"
            found[path] = File(build["name"], build["sha256"], f"{one.path}.modules[{index}]")
    return found
