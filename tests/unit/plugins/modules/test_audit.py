# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of the audit trail that whole modules write, as a socket in the place of /dev/log receives them."""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.system_log import PROGRAM, Log

NETWORK = """
<network>
  <name>lan</name>
  <forward/>
  <bridge name='virbr9'/>
  <ip address='10.0.0.1' netmask='255.255.255.0'/>
</network>
"""
USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def log(tmp_path: pathlib.Path) -> t.Iterator[Log]:
    log = Log(tmp_path / "log")
    yield log
    log.channel.close()


def network(log: Log, **args: t.Any) -> dict[str, t.Any]:
    return log.run("libvirt_network", uri="test:///default", networks=[{"name": "lan", "xml": NETWORK}], **args)


def test_a_change_of_a_network_has_one_line_with_who_and_what(log: Log) -> None:
    result = network(log, env={"SUDO_USER": "alice", "SSH_CLIENT": "192.0.2.7 50514 22"})
    assert result["changed"], result
    (line,) = log.lines()
    assert line.startswith(f"libvirt_network user={USER} ") and " sudo_user=alice from=192.0.2.7 network=lan " in line
    assert f' changes={len(result["plan"])} plan="lan' in line and "->" in line


def test_the_address_is_found_though_sudo_took_it_from_the_environment(log: Log) -> None:
    env = {key: value for key, value in os.environ.items() if key != "SSH_CLIENT"}
    inner = ["env", "-u", "SSH_CLIENT", sys.executable, "-c", PROGRAM, str(log.path), "libvirt_network"]
    args = {"uri": "test:///default", "networks": [{"name": "lan", "xml": NETWORK}]}
    # A shell that waits is the parent, as sudo is.
    subprocess.run(
        ["sh", "-c", '"$@"; true', "sh", *inner],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": args}),
        env={**env, "SSH_CLIENT": "2001:db8::7 50514 22"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (line,) = log.lines()
    assert " from=2001:db8::7 " in line


@pytest.mark.parametrize("option", ["_ansible_check_mode", "_ansible_no_log"])
def test_check_mode_and_no_target_syslog_write_nothing(log: Log, option: str) -> None:
    network(log, **{option: True})
    assert log.lines() == []


def test_a_second_run_and_a_refused_one_write_nothing(log: Log) -> None:
    result = log.run("libvirt_domain", uri="test:///default", name="test", state="running")
    assert not result["changed"] and not result.get("failed"), result
    assert log.run("libvirt_domain", uri="test:///default", name="test", xml="<domain/>")["failed"]
    assert log.lines() == []


def test_a_domain_has_its_rows_and_a_failure_a_second_line(log: Log) -> None:
    result = log.run("libvirt_domain", uri="test:///default", name="test", state="shutdown", wait_seconds=1)
    lines = log.lines()
    assert "domain=test " in lines[0] and "test state: running -> shutoff" in lines[0]
    assert len(lines) == 1 + bool(result.get("failed"))


def test_the_info_of_ansible_is_in_the_line(log: Log) -> None:
    network(log, _ansible_target_log_info="job 4711")
    assert ' info="job 4711" ' in log.lines()[0]


def test_without_a_system_log_the_task_does_its_work(log: Log) -> None:
    log.path.unlink()
    result = network(log)
    assert result["changed"] and not result.get("failed")


def test_what_a_user_chooses_leaves_room_for_the_change(log: Log) -> None:
    network(log, env={"SUDO_USER": "\x01" * 500, "SSH_CLIENT": "\x02" * 500})
    (line,) = log.lines()
    assert " sudo_user=" in line and " network=lan " in line and " plan=" in line
