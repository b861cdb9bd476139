# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration's domains on this machine alone: what is wrong with them is seen before a lab has started."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.tapvirt.host.tests.unit.support.libvirt.embed import Embed

PLAYBOOK = pathlib.Path(__file__).resolve().parents[4] / "playbooks" / "demo.yml"


def test_the_domains_of_the_demonstration_converge_and_then_need_nothing(embed: Embed) -> None:
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "demo_embed_root": str(embed.root / "e"),
        "demo_dest": str(embed.root / "report"),
    }
    inventory = embed.root / "inventory.yml"
    inventory.write_text(json.dumps({"this_machine": {"hosts": {"here": variables}}}), encoding="utf-8")
    argv = ["ansible-playbook", "-i", str(inventory), "--tags", "domains"]
    changed = []
    for playbook in (str(PLAYBOOK), "tapvirt.host.demo"):
        env = {**os.environ, "ANSIBLE_NOCOLOR": "1"}
        quiet: t.Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        done = subprocess.run([*argv, playbook], env=env, check=False, timeout=300, **quiet)
        assert done.returncode == 0, done.stdout + done.stderr
        recap = re.search(r"^here .*changed=(\d+) ", done.stdout, re.MULTILINE)
        assert recap is not None, done.stdout
        changed.append(int(recap[1]))
    assert changed[0] >= 3, changed
    assert changed[1] == 0
