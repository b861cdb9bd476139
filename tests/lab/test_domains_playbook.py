# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet's domains, described by variables, over two KVM hosts with other kernels."""

from __future__ import annotations

import json

import pytest

from .support.places import PLAYBOOKS

pytestmark = pytest.mark.soak  # it takes minutes; the role has a test on this machine
HOSTS = ["trace1", "trace2"]
# Paused: a guest without a system keeps an emulated host's processor busy for nothing.
WANTED = [
    {"name": "fleet-web", "state": "paused", "memory_mib": 32, "autostart": True},
    {"name": "fleet-db", "memory_mib": 32, "interfaces": [{"network": "default"}], "graphics": "vnc"},
]
# Without a disk, the firmware prints a message on the serial port each second.
TALKER = """
<domain type='kvm'>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type><bios useserial='yes' rebootTimeout='1000'/></os>
  <devices><serial type='pty'/></devices>
</domain>
"""
LISTED = "virsh -q list --all | grep fleet- | tr -s ' '; virsh -q list --all --autostart --name | grep fleet-"


@pytest.fixture
def run_playbook(lab):
    """A function that runs the playbook with domains; the domains are deleted afterwards."""

    def run(*options, wanted=None):
        variables = {"domains_wanted": wanted or WANTED, "domains_targets": ",".join(HOSTS)}
        done = lab.playbook(PLAYBOOKS / "domains.yml", "-e", json.dumps(variables), *options)
        assert done.rc == 0, done.stdout[-3000:]
        return done

    yield run
    gone = [{"name": row["name"], "state": "absent"} for row in WANTED]
    lab.ansible(
        ",".join(HOSTS), "tapvirt.host.libvirt_domain", {"domains": gone, "on_timeout": "destroy", "wait_seconds": 1}
    )
    assert [fleet_domains(lab, host) for host in HOSTS] == [[], []]


def fleet_domains(lab, host):
    """Return the rows of virsh about the domains of the fleet, then the names of those that start with the host."""
    return lab.shell(host, LISTED, check=False).splitlines()


@pytest.mark.scenario
def test_fleet_is_compared_and_converged(lab, run_playbook):
    planned = run_playbook("--check")
    assert planned.changes() == dict.fromkeys(HOSTS, 1)
    assert "0 of 2 hosts are as wanted." in planned.stdout
    assert fleet_domains(lab, HOSTS[0]) == []
    done = run_playbook()
    assert done.changes() == dict.fromkeys(HOSTS, 1)
    assert "trace2: fleet-web state is absent, wanted paused" in done.stdout
    assert "2 of 2 hosts are as wanted." in done.stdout
    for host in HOSTS:
        rows = fleet_domains(lab, host)
        assert {row.split(" ", 2)[-1] for row in rows[:2]} == {"fleet-web paused", "fleet-db shut off"}
        assert rows[2:] == ["fleet-web"]
    again = run_playbook("--tags", "report")
    assert again.changes() == dict.fromkeys(HOSTS, 0)
    assert "2 of 2 hosts are as wanted." in again.stdout


def test_console_logs_are_stored_on_the_controller(lab, run_playbook, tmp_path):
    wanted = [{"name": "fleet-web", "xml": TALKER, "state": "running"}, {"name": "fleet-db", "memory_mib": 32}]
    run_playbook("--tags", "converge", wanted=wanted)
    before = jobs(lab)
    variables = {
        "console_logs_targets": "trace1",
        "console_logs_dest": str(tmp_path),
        "console_logs_until": "No bootable",
    }
    done = lab.playbook(PLAYBOOKS / "console_logs.yml", "-e", json.dumps({**variables, "console_logs_seconds": 30}))
    assert done.rc == 0, done.stdout[-3000:]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.log")] == ["trace1/fleet-web.log"]
    assert "No bootable" in (tmp_path / "trace1" / "fleet-web.log").read_text(encoding="utf-8")
    assert "bytes, found" in done.stdout
    assert jobs(lab) == before


def test_console_in_use_is_reported_and_the_others_are_stored(lab, run_playbook, tmp_path):
    wanted = [{"name": row["name"], "xml": TALKER, "state": "running"} for row in WANTED]
    run_playbook("--tags", "converge", wanted=wanted)
    before = jobs(lab)
    variables = {"console_logs_targets": "trace1", "console_logs_dest": str(tmp_path), "console_logs_seconds": 5}
    console = "sleep 600 | script -qfc 'virsh console fleet-db' /dev/null"
    hold = f'setsid sh -c "{console}" > /dev/null 2>&1 & echo $!; sleep 5'
    reader = lab.run("trace1", "sh", "-c", hold).stdout.strip()
    try:
        done = lab.playbook(PLAYBOOKS / "console_logs.yml", "-e", json.dumps(variables))
    finally:
        lab.run("trace1", "sh", "-c", f"pkill --session {reader}")
    assert done.rc != 0
    assert [path.name for path in tmp_path.rglob("*.log")] == ["fleet-web.log"]
    assert "fleet-db" in done.of("trace1", "Report which consoles could not be read")["msg"]
    assert jobs(lab) == before


def jobs(lab):
    """Return the files of asynchronous tasks on the host."""
    return lab.shell("trace1", "ls ~/.ansible_async", check=False).split()
