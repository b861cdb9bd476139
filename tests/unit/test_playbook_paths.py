# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths of the controller: hosts do not choose them, and relative ones are where the command was started."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest
import yaml

PLAYBOOKS = pathlib.Path(__file__).resolve().parents[2] / "playbooks"
OUTSIDE = "../../../outside"


def variable(playbook: str, name: str) -> str:
    """Return a variable of a playbook, as it is written there."""
    plays = yaml.safe_load((PLAYBOOKS / f"{playbook}.yml").read_text(encoding="utf-8"))
    return next(play["vars"][name] for play in plays if name in play.get("vars", {}))


@pytest.mark.scenario
def test_a_host_that_lies_leaves_no_file_elsewhere_and_a_report_is_where_it_is_asked_for(tmp_path):
    row = {"state": "running", "console": {"type": "pty"}}
    names = [OUTSIDE, "/etc/outside", "web1"]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {
            "console_logs_domains": {"domains": [{**row, "name": name} for name in names]},
            "console_logs_domain_names": variable("console_logs", "console_logs_domain_names"),
            **{name: variable("gather", name) for name in ("gather_build_id", "gather_dest_path")},
            "console_logs_dest_path": variable("console_logs", "console_logs_dest_path"),
            "trace_dest": "report/index.html",
            "trace_dest_path": variable("trace", "trace_dest_path"),
            "report_dest_path": variable("report", "report_dest_path"),
        },
        "tasks": [
            {"ansible.builtin.set_fact": {"tapvirt_kernel": {"build_id": "{{ said }}"}, "cacheable": True}},
            {"ansible.builtin.assert": {"that": "console_logs_domain_names == ['web1'] and gather_build_id == wanted"}},
            {"ansible.builtin.assert": {"that": f"gather_dest_path == '{tmp_path}/' ~ dest_there"}},
            {"ansible.builtin.assert": {"that": f"console_logs_dest_path == '{tmp_path}/' ~ dest_there"}},
            {
                "ansible.builtin.assert": {
                    "that": f"trace_dest_path == report_dest_path == '{tmp_path}/report/index.html'"
                }
            },
        ],
    }
    path = tmp_path / "play.yml"
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")
    for said, wanted, dest, there in (
        (OUTSIDE, "", "outrel", "outrel"),
        ("0123abcd", "0123abcd", "~/kept", "home/kept"),
        ("", "", f"{tmp_path}/whole", "whole"),
    ):
        extra = {"said": said, "wanted": wanted, "gather_dest": dest, "console_logs_dest": dest, "dest_there": there}
        argv = ["ansible-playbook", str(path), "-e", json.dumps(extra)]
        env = os.environ | {"PWD": str(tmp_path), "HOME": f"{tmp_path}/home"}
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("playbook", ["gather", "report"])
def test_a_path_that_ansible_would_read_otherwise_is_refused_before_any_host_is_asked(tmp_path, playbook):
    folder = tmp_path / "it is $HOME"
    folder.mkdir()
    argv = ["ansible-playbook", "-i", "localhost,", "-c", "local", f"tapvirt.host.{playbook}"]
    env = os.environ | {"PWD": str(folder)}
    done = subprocess.run(
        argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    output = " ".join((done.stdout + done.stderr).split())
    assert f"Invalid value for {playbook}_dest: The path {folder}/" in output
    assert "contains $HOME, which Ansible replaces by a variable of the environment. Start the command in" in output
    assert "TASK [Gather" not in done.stdout
