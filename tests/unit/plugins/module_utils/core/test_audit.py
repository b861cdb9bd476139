# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of the audit trail, as a real datagram socket in the place of /dev/log receives them."""

from __future__ import annotations

import os
import pathlib
import pwd
import socket
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
from ansible_collections.tapvirt.host.tests.unit.support.system_log import Log

USER = pwd.getpwuid(os.geteuid()).pw_name
SHA256 = "9b2d" * 16


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
