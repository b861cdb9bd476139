# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ship the modules that the host does not keep yet, then have the tracers put right there."""

from __future__ import annotations

import os
import shlex
import typing as t

from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.modules import cache_path, has_file
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.module_action import ModuleAction, refused

# Where stap_service keeps modules on a host (module_utils/_systemtap/service/model.py).
_HOST_PATH = "/var/lib/tapvirt/services/{0}/modules/{1}/{2}.ko"


class ActionModule(ModuleAction):
    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        # In check mode the module only has to know that they are not there.
        if not self._task.check_mode:
            args["_shipped"] = self._ship(self._missing(_wanted(args.get("services"))))
        try:
            result.update(self._run_module(task_vars or {}, module_args=args))
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        # The modules' descriptions came from the task; a copy of them in every result helps nobody.
        result.pop("invocation", None)
        return result

    def _missing(self, wanted: dict[str, str]) -> dict[str, str]:
        """Return those modules (path on the host to SHA-256) that the host does not have: SHA-256 to file name."""
        if not wanted:
            return {}
        answer = self._low_level_execute_command(f"sha256sum {shlex.join(wanted)}", sudoable=True)
        found = set(str(answer["stdout"]).splitlines())
        return {sha256: os.path.basename(path) for path, sha256 in wanted.items() if f"{sha256}  {path}" not in found}

    def _ship(self, missing: dict[str, str]) -> dict[str, str]:
        """Copy modules from the controller's cache to the host; return where they are there, by hash."""
        if not missing:
            return {}
        folder = self._make_tmp_path()
        shipped = {}
        for sha256, name in missing.items():
            local = cache_path(sha256)
            if not has_file(local, sha256):
                problem = f"The controller's cache does not contain this module ({local})."
                raise refused(InvalidInput("services", name, problem, "Run stap_module in the same job."))
            shipped[sha256] = str(self._connection._shell.join_path(folder, os.path.basename(local)))
            self._transfer_file(local, shipped[sha256])
        self._fixup_perms2((self._connection._shell.tmpdir, *shipped.values()))
        return shipped


def _wanted(services: t.Any) -> dict[str, str]:
    """Return what the host is to keep: path to SHA-256. What is wrong in an entry is for the module to say."""
    wanted = {}
    for service in services if isinstance(services, list) else []:
        entry = service if isinstance(service, dict) else {}
        builds = entry.get("modules") if entry.get("state") != "absent" else []
        for build in builds if isinstance(builds, list) else []:
            if isinstance(build, dict) and {"name", "kernel", "sha256"} <= set(build):
                path = _HOST_PATH.format(entry.get("name"), build["kernel"], build["name"])
                # No command line can carry a NUL byte.
                if "\0" not in path:
                    wanted[path] = str(build["sha256"])
    return wanted
