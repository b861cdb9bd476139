# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks for real, over hosts that are only names: what would run on a host is an action of the test's own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
# Each stand-in for a module is the body of a function of the module's name, its options and the host's variables.
ACTION = """
import json
import os
import pathlib

from ansible.plugins.action import ActionBase

FOLDER = pathlib.Path(os.environ["STUBS_FOLDER"])


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        name, options, host = {name!r}, self._task.args, task_vars["inventory_hostname"]
        told = task_vars.get("told", {{}})
        checked = bool(self._task.check_mode)
        with (FOLDER / "calls").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([host, name, checked, dict(options)]) + "\\n")
{body}
"""


class Stubs:
    """A copy of the collection that has stand-ins for some of its modules, and runs of its playbooks."""

    def __init__(self, top: pathlib.Path, **bodies: str) -> None:
        self.top = top
        tree = top / "ansible_collections" / "tapvirt" / "host"
        (tree / "plugins" / "action").mkdir(parents=True)
        for name in ("playbooks", "roles", "docs", "meta", "galaxy.yml"):
            if (ROOT / name).exists():
                (tree / name).symlink_to(ROOT / name)
        for name in ("filter", "lookup", "modules", "module_utils", "plugin_utils"):
            (tree / "plugins" / name).symlink_to(ROOT / "plugins" / name)
        for name, body in bodies.items():
            self.put(tree, name, body)

    def put(self, tree: pathlib.Path, name: str, body: str) -> None:
        lines = "".join(f"        {line}\n" for line in body.strip("\n").split("\n"))
        path = tree / "plugins" / "action" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ACTION.format(name=name, body=lines), encoding="utf-8")

    def run(
        self, playbook: str, hosts: t.Mapping[str, t.Any], *options: str, **extra: t.Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a playbook over hosts, each with its variables, in the folder ``top``; ``extra`` are extra variables.

        The playbook is one of the collection by its name, or a file whose name ends with ``.yml``.
        """
        common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        inventory = self.top / "inventory.yml"
        rows = {host: {**common, **variables} for host, variables in hosts.items()}
        inventory.write_text(yaml.safe_dump({"all": {"hosts": rows}}), encoding="utf-8")
        (self.top / "calls").write_text("", encoding="utf-8")
        argv = [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), "-f", "4"]
        env = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(self.top),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_SHOW_CUSTOM_STATS": "1",
            "ANSIBLE_ASYNC_DIR": str(self.top / "async"),
            "HOME": str(self.top / "home"),
            "PWD": str(self.top),
            "STUBS_FOLDER": str(self.top),
        }
        return subprocess.run(
            [
                *argv,
                playbook if playbook.endswith(".yml") else f"tapvirt.host.{playbook}",
                "-e",
                json.dumps(extra),
                *options,
            ],
            env=env,
            cwd=self.top,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def calls(self, name: str) -> list[tuple[str, bool, dict[str, t.Any]]]:
        """Return of each call of a stand-in in the last run: the host, whether in check mode, the options."""
        rows = [json.loads(line) for line in (self.top / "calls").read_text(encoding="utf-8").splitlines()]
        return [(host, checked, options) for host, called, checked, options in rows if called == name]


def artifact(done: subprocess.CompletedProcess[str]) -> dict[str, t.Any]:
    """Return what a run has kept for the next job."""
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("\tRUN: ")]
    return t.cast("dict[str, t.Any]", json.loads(line.partition(": ")[2]))
