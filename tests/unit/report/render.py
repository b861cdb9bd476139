# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a fleet, made as a user makes it: by a play with the role, whose hosts have the variables."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
import typing as t

_PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Facts, as the module would have kept them
      ansible.builtin.set_fact:
        tapvirt_kernel: "{{ known_kernel }}"
        cacheable: true
      when: known_kernel is defined

    - name: Page
      ansible.builtin.import_role:
        name: tapvirt.host.fleet_report
      vars:
        fleet_report_dest: "{{ playbook_dir }}/index.html"
        fleet_report_title: A made-up fleet
"""


def render(fleet: t.Mapping[str, t.Mapping[str, t.Any]], folder: pathlib.Path) -> tuple[str, float]:
    """Return the page, and how many seconds the playbook took."""
    hosts = {}
    for name, known in fleet.items():
        own = dict(known, ansible_connection="local")
        if "ansible_facts" in own:
            own["known_kernel"] = own.pop("ansible_facts")["tapvirt_kernel"]
        hosts[name] = own
    (folder / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}), encoding="utf-8")
    (folder / "play.yml").write_text(_PLAY, encoding="utf-8")
    playbook = pathlib.Path(sys.executable).parent / "ansible-playbook"
    argv = [str(playbook), "-i", str(folder / "inventory.json"), str(folder / "play.yml")]
    env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "0"}
    began = time.monotonic()
    quiet: t.Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(argv, timeout=600, check=False, env=env, cwd=folder, **quiet)
    took = time.monotonic() - began
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "WARN" not in done.stderr, done.stderr[-2000:]
    return (folder / "index.html").read_text(encoding="utf-8"), took
