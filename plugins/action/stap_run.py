# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ship the module to the host when it is not there, then run it there."""

from __future__ import annotations

import os
import shlex
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.tapvirt.host.plugins.plugin_utils._systemtap import cache_path, has_file

# Where stap_run keeps modules on a host (module_utils/_systemtap/run.py).
_HOST_CACHE = "/var/cache/tapvirt/modules"


class ActionModule(ActionBase):
    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        build = args.get("module")
        if not isinstance(build, dict) or not {"name", "sha256"} <= set(build):
            raise AnsibleActionFail("module: give what tapvirt.host.stap_module returned as its module.")
        if not self._task.check_mode and not self._host_has(build):
            args["shipped"] = self._ship(build)
        try:
            result.update(self._execute_module(module_args=args, task_vars=task_vars))
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        # The module's description came from the task; a copy of it in every result helps nobody.
        result.pop("invocation", None)
        return result

    def _host_has(self, build: dict[str, t.Any]) -> bool:
        path = "{0}/{1}/{2}.ko".format(_HOST_CACHE, build["sha256"], build["name"])
        answer = self._low_level_execute_command("sha256sum {0}".format(shlex.quote(path)), sudoable=True)
        return answer["rc"] == 0 and str(answer["stdout"]).split()[:1] == [build["sha256"]]

    def _ship(self, build: dict[str, t.Any]) -> str:
        local = cache_path(str(build["sha256"]))
        if not has_file(local, build["sha256"]):
            raise AnsibleActionFail(
                "module: {0} is not in the controller's cache ({1}); run stap_module in the same job.".format(
                    build["name"], local
                )
            )
        remote = str(self._connection._shell.join_path(self._make_tmp_path(), os.path.basename(local)))
        self._transfer_file(local, remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return remote
