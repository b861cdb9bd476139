# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook preflight for real, over hosts that are only names."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest
import yaml
from ansible_collections.tapvirt.host.tests.unit.support.stubs import Stubs, artifact

RELEASE = "6.12.107-amd64"
HOST_INFO = """
debian = {"name": "debian", "family": "Debian"}
staprun = None if "no_staprun" in told else "5.1"
host = {
    "distribution": debian, "kernel": {"release": "6.12.107-amd64"}, "staprun": staprun, "loaded": [],
    "traceability": {"reasons": [], "conditions": []}, "privilege": {"load_modules": True, "groups": []},
    "memory": {"free_bytes": 1 << 30, "buffers_bytes": 0, "cpus_online": 2},
}
kernel = {"version": "#1", "compiler": "gcc-14", "debuginfo": True}
builder = {"distribution": debian, "stap": "5.6", "tested": ["3.10", "7.3"], "kernels": {"6.12.107-amd64": kernel}}
return {"changed": False, "host": host, "builder": builder, "missing": []}
"""
FACTS = 'return {"changed": False, "ansible_facts": {"tapvirt_kernel": {"release": "6.12.107-amd64"}}}'
LOST = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
GROUPS = {"trace_hosts": ["web1", "web2", "web3"], "builders": ["builder1"]}


@pytest.fixture
def preflight_stubs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Stubs:
    """Return stubs whose hosts have root and 8 GiB of free space."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, printed in (("id", "0"), ("df", "/dev/sda 9 1 8388608 1% /")):
        (programs / name).write_text(f"#!/bin/sh\necho '{printed}'\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return Stubs(tmp_path, kernel_facts=FACTS, stap_host_info=HOST_INFO)


def groups_file(stubs: Stubs) -> tuple[str, str]:
    """Return the options for an inventory of groups."""
    path = stubs.top / "groups.yml"
    path.write_text(yaml.safe_dump({name: {"hosts": dict.fromkeys(hosts)} for name, hosts in GROUPS.items()}))
    return "-i", str(path)


def output(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stdout + done.stderr).split())


def test_a_fleet_that_is_ready(preflight_stubs: Stubs) -> None:
    hosts: dict[str, dict[str, str]] = {name: {} for name in ("web1", "web2", "web3", "builder1")}
    done = preflight_stubs.run("preflight", hosts, *groups_file(preflight_stubs))
    assert done.returncode == 0, output(done)
    assert "Trace: can be done on 3 of 3 hosts, with 1 builder. Next: ansible-playbook tapvirt.host.trace" in output(
        done
    )
    assert artifact(done)["preflight"]["jobs"]["trace"] == {"asked": 3, "ready": 3, "can": True}
    assert sorted(call[0] for call in preflight_stubs.calls("stap_host_info")) == [
        "builder1",
        "web1",
        "web2",
        "web3",
    ]
    assert "changed=0" in done.stdout and "changed=1" not in done.stdout


def test_hosts_that_lack_something_or_do_not_answer(preflight_stubs: Stubs) -> None:
    hosts = {
        "web1": LOST,
        "web2": {"told": {"no_staprun": True}},
        "web3": {"told": {"no_staprun": True}},
        "builder1": {},
    }
    page = preflight_stubs.top / "page.html"
    done = preflight_stubs.run("preflight", hosts, *groups_file(preflight_stubs), preflight_dest=str(page))
    assert done.returncode == 2, output(done)
    text = output(done)
    missing = "Missing on 2 hosts: web2, web3: staprun is not installed. Fix: install the package systemtap-runtime"
    assert missing in text
    assert "Missing on 1 host: web1: no answer: Connection refused. Fix: start the host" in text
    assert "Trace: cannot be done: 0 of 3 hosts ready, with 1 builder." in text
    assert text.count("fatal: [") == 1 and "ignoring" not in text and "UNREACHABLE" not in text
    assert artifact(done)["preflight"]["causes_count"] == 2
    assert "web2, web3: staprun is not installed. Fix:" in page.read_text(encoding="utf-8")


def test_a_limit_to_one_host_still_reads_its_builder(preflight_stubs: Stubs) -> None:
    hosts: dict[str, dict[str, str]] = {name: {} for name in ("web1", "web2", "web3", "builder1")}
    done = preflight_stubs.run("preflight", hosts, *groups_file(preflight_stubs), "--limit", "web2", "--check")
    assert done.returncode == 0, output(done)
    assert "Trace: can be done on 1 of 1 host, with 1 builder." in output(done)


def test_nothing_to_do_and_nothing_to_read(preflight_stubs: Stubs) -> None:
    done = preflight_stubs.run("preflight", {"web1": {}})
    assert done.returncode == 2
    assert "Missing in the inventory: the inventory asks for no job. Fix: put hosts to trace into" in output(done)
    assert preflight_stubs.calls("kernel_facts") == []
    done = preflight_stubs.run("preflight", {})
    assert done.returncode != 0
    assert "the inventory is empty. Give an inventory with -i." in output(done)
