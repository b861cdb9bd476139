# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a fleet: made as a user makes it, by a play with the role, or quicker by its templates alone."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import subprocess
import sys
import time
import typing as t

import jinja2
from ansible.plugins.filter.core import FilterModule as CoreFilters
from ansible_collections.tapvirt.host.plugins.filter.report import fleet_report

_TEMPLATES = pathlib.Path(__file__).resolve().parents[4] / "roles" / "fleet_report" / "templates"
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


def lay_out(fleet: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
    """Return the page as the role's templates lay it out."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # as Ansible has it: the filter has made every text fit
    )
    environment.filters |= CoreFilters().filters() | {"tapvirt.host.fleet_report": fleet_report}
    environment.globals["now"] = lambda utc: datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
    return environment.get_template("report.html.j2").render(
        hostvars=fleet, fleet_report_hosts=list(fleet), fleet_report_lost=[], fleet_report_title="A made-up fleet"
    )
