# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host says never chooses a path of the controller."""

from __future__ import annotations

import pathlib
import subprocess

import yaml

PLAYBOOKS = pathlib.Path(__file__).resolve().parents[2] / "playbooks"
OUTSIDE = "../../../outside"


def variable(playbook: str, name: str) -> str:
    """Return a variable of a playbook, as it is written there."""
    plays = yaml.safe_load((PLAYBOOKS / f"{playbook}.yml").read_text(encoding="utf-8"))
    return next(play["vars"][name] for play in plays if name in play.get("vars", {}))


def test_a_host_that_lies_leaves_no_file_elsewhere(tmp_path):
    row = {"state": "running", "console": {"type": "pty"}}
    names = [OUTSIDE, "/etc/outside", "web1"]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {
            "console_logs_domains": {"domains": [{**row, "name": name} for name in names]},
            "console_logs_found": variable("console_logs", "console_logs_found"),
            "gather_build_id": variable("gather", "gather_build_id"),
        },
        "tasks": [
            {"ansible.builtin.set_fact": {"tapvirt_kernel": {"build_id": "{{ said }}"}, "cacheable": True}},
            {"ansible.builtin.assert": {"that": ["console_logs_found == ['web1']", "gather_build_id == wanted"]}},
        ],
    }
    path = tmp_path / "play.yml"
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")
    for said, wanted in ((OUTSIDE, ""), ("0123abcd", "0123abcd")):
        argv = ["ansible-playbook", str(path), "-e", f"said={said}", "-e", f"wanted={wanted}"]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
