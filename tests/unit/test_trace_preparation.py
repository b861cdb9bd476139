# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles that prepare hosts and builders refuse, they refuse before they change something."""

from __future__ import annotations

import pathlib
import subprocess

import yaml

ROLES = pathlib.Path(__file__).resolve().parents[2] / "roles"


def test_users_who_do_not_exist_are_refused_before_packages_are_installed() -> None:
    tasks = yaml.safe_load((ROLES / "trace_host/tasks/main.yml").read_text(encoding="utf-8"))
    names = [task["name"] for task in tasks]
    assert names.index("Refuse users who do not exist") < names.index("Install the runtime")


def test_a_key_without_its_certificate_is_refused(tmp_path: pathlib.Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    key.write_text("a key", encoding="utf-8")
    task = {"ansible.builtin.include_tasks": str(ROLES / "trace_builder/tasks/signing.yml")}
    variables = {"trace_builder_signing_key": str(key), "trace_builder_signing_certificate": str(certificate)}
    play = {"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [task]}
    path = tmp_path / "play.yml"
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")

    def run() -> subprocess.CompletedProcess[str]:
        argv = ["ansible-playbook", str(path)]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)

    done = run()
    assert done.returncode != 0
    assert f"{certificate} does not exist, and the key {key} is" in done.stdout + done.stderr
    certificate.write_text("a certificate", encoding="utf-8")
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (key.read_text(encoding="utf-8"), certificate.read_text(encoding="utf-8")) == ("a key", "a certificate")
