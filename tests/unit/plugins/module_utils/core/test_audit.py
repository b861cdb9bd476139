# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of the audit trail, as a real datagram socket in the place of /dev/log receives them."""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import re
import socket
import subprocess
import sys
import time
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core import audit
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import TaskModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.plan import Change, Plan
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.daemon import logging as daemon_logging
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service import run as service_run
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service.model import Wanted
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service.plan import Step
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import start
from ansible_collections.tapvirt.host.tests.unit.support.kernel.parameters import set_parameters

COLLECTION = "ansible_collections.tapvirt.host.plugins."
# A module as Ansible runs it, with another socket.
PROGRAM = f"""
import importlib, sys
from {COLLECTION}module_utils._core import audit
audit.SOCKET, name = sys.argv.pop(1), sys.argv.pop(1)
importlib.import_module("{COLLECTION}modules." + name).main()
"""
NETWORK = """
<network>
  <name>lan</name>
  <forward/>
  <bridge name='virbr9'/>
  <ip address='10.0.0.1' netmask='255.255.255.0'/>
</network>
"""
USER = pwd.getpwuid(os.geteuid()).pw_name
SHA256 = "9b2d" * 16
LINE = re.compile(r"<(\d+)>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d tapvirt\[\d+\]: (.*)\Z")


class Log:
    """A system log: what it received, without date and process id."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(str(path))
        self.channel.setblocking(False)

    def raw(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.channel.recv(1 << 16))
            except BlockingIOError:
                return found

    def lines(self) -> list[str]:
        found = [LINE.match(data.decode("ascii")) for data in self.raw()]
        assert all(match is not None and match[1] == "13" for match in found), "user.notice"  # 1 << 3 | 5
        return [match[2] for match in found if match]

    def run(self, module: str, /, env: t.Mapping[str, str] | None = None, **args: t.Any) -> dict[str, t.Any]:
        """Run a module; ``_ansible_`` options as Ansible sets them."""
        text = json.dumps({"ANSIBLE_MODULE_ARGS": {"_ansible_module_name": f"tapvirt.host.{module}", **args}})
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(self.path), module],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **(env or {})},
        )
        assert done.stdout, done.stderr
        return t.cast("dict[str, t.Any]", json.loads(done.stdout))


class Task:
    """What the audit trail asks of a module that runs."""

    def __init__(self) -> None:
        self.check_mode = self.is_silent = False
        self.on_failure: t.Callable[[str], None] | None = None
        self.short_name, self.syslog_facility, self.log_info = "a_module", "LOG_USER", ""

    def masked(self, text: str) -> str:
        return text


@pytest.fixture
def log(tmp_path: pathlib.Path) -> t.Iterator[Log]:
    log = Log(tmp_path / "log")
    yield log
    log.channel.close()


@pytest.fixture
def task(log: Log, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Be a module that runs."""
    task = Task()
    monkeypatch.setattr(audit, "SOCKET", str(log.path))
    monkeypatch.setattr(audit, "RUNNING", [task])
    monkeypatch.setattr(audit, "broken", [])
    monkeypatch.setattr(audit, "who", lambda _module: {"user": "root"})
    return task


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


@pytest.mark.usefixtures("task")
def test_a_log_that_hangs_delays_a_task_for_a_second_once(log: Log) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        other.connect(str(log.path))
        with pytest.raises(BlockingIOError):
            while True:
                other.send(b"x" * 1000)
    began = time.monotonic()
    for number in range(5):
        audit.log_change(change=number)
    assert time.monotonic() - began < 2.5
    assert not any(b"change=" in data for data in log.raw())


def test_a_line_is_bounded_and_cannot_look_like_another_one(log: Log, task: Task) -> None:
    audit.log_change(change="a\nb", before='x" after=forged', after="\x1b[31m\udcff\u00e4\0", how="y" * 5000)
    (data,) = log.raw()
    assert len(data) <= 1024 and all(0x20 <= byte < 0x7F for byte in data)
    text = data.decode("ascii")
    assert r'change="a\nb" before="x\" after=forged" after="\u001b[31m\udcff\u00e4\u0000" how=' in text
    assert text.endswith("...")
    assert task.on_failure is audit.log_failure


@pytest.mark.usefixtures("task")
def test_secrets_of_a_plan_are_masked(log: Log) -> None:
    audit.log_plan({"domain": "web"}, [Change("web passwd", "old-one", "new-one", "defineXML", "", secret=True)])
    (line,) = log.lines()
    assert "old-one" not in line and "new-one" not in line and "web passwd: " in line


def test_secrets_of_options_are_masked(log: Log, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    module = TaskModule.__new__(TaskModule)
    module.no_log_values = {"hunter2"}
    monkeypatch.setattr(task, "masked", module.masked)
    audit.log_change(change="x", after=["a hunter2 b"])
    (line,) = log.lines()
    assert "hunter2" not in line and "a ******** b" in line


@pytest.mark.usefixtures("task")
def test_parameters_have_a_line_each_with_old_and_new(log: Log, tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "host/sys/module/twin/parameters"
    directory.mkdir(parents=True)
    (directory.parent / "initstate").write_text("live\n", encoding="ascii")
    (directory / "size").write_text("4\n", encoding="ascii")
    (tmp_path / "host/proc").symlink_to("/proc")
    root = Root(str(tmp_path / "host"))
    set_parameters(root, {"twin.size": 5}, check=True)
    assert log.lines() == []
    set_parameters(root, {"twin.size": 5})
    assert log.lines() == ["a_module user=root change=twin.size before=4 after=5 how=sysfs"]


@pytest.mark.usefixtures("task")
def test_a_trace_has_the_digest_and_the_run(log: Log) -> None:
    build = {"name": "tapvirt_x", "sha256": SHA256}
    start.log_load(start.Request(build, {}, 1, 1, 1, 1), "/run/tapvirt/stap/tapvirt_x-1f")
    assert log.lines() == [f"a_module user=root load=tapvirt_x sha256={SHA256} run=tapvirt_x-1f"]


@pytest.mark.usefixtures("task")
def test_a_tracer_has_the_digest_when_it_loads_a_module(log: Log) -> None:
    build = {"name": "tapvirt_x", "sha256": SHA256}
    wanted = [
        Wanted("services[0]", "reads", "started", True, {"6.12": build}, {}, 1, 1, 1, False),
        Wanted("services[1]", "writes", "stopped", True, {}, {}, 1, 1, 1, False),
    ]

    def step(service: str, action: str) -> Step:
        return Step(f"{service}: state", "stopped", "running", "systemctl start", "", service=service, action=action)

    service_run.log_steps(wanted, Plan([step("reads", "start"), step("writes", "stop")]), "6.12")
    first, second = log.lines()
    assert first == (
        f"a_module user=root tracer=reads load=tapvirt_x sha256={SHA256} changes=1"
        ' plan="reads: state: stopped -> running (systemctl start)"'
    )
    assert "tracer=writes changes=1" in second


@pytest.mark.usefixtures("task")
def test_a_daemon_has_its_rows(log: Log) -> None:
    change = Change("virtxend log_filters", [], ["1:qemu"], "virt-admin", "as wanted")
    with pytest.raises(TapvirtError):
        daemon_logging.apply(Root(), "virtxend", Plan([change]))
    assert log.lines() == [
        'a_module user=root daemon=virtxend changes=1 plan="virtxend log_filters: [] -> [\\"1:qemu\\"] (virt-admin)"'
    ]
