# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said to a guest's agent and what its answers mean, and every way in which there is no agent.

A real agent in a real guest: ``tests/lab/test_libvirt_agent.py``.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import re
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.plugin_utils._agent.agent import WRITE_BYTES, Guest, place
from ansible_collections.tapvirt.host.plugins.plugin_utils._agent.messages import (
    MOST_REQUEST,
    NEEDED,
    NotReached,
    answer,
    done,
    message,
    missing,
)
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.short_directory import short_directory
from hypothesis import given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["return", "exited", "exitcode", "signal", "out-data", "supported_commands", "name"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    {channel}
  </devices>
</domain>
"""
CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


def test_the_inventory_reports_the_domain_unless_something_else_does() -> None:
    row = {"name": "web", "uri": "qemu+ssh://hv1/system"}
    assert place(None, None, row, "web.hv1") == ("qemu+ssh://hv1/system", "web")
    assert place("qemu:///session", "db", row, "web.hv1") == ("qemu:///session", "db")
    assert place(None, None, None, "web") == ("qemu:///system", "web")
    masked = {**row, "uri": "qemu+tcp://admin:********@hv1/system"}
    with pytest.raises(InvalidInput, match="for libvirt_uri: The inventory does not contain the password"):
        place(None, None, masked, "web")
    assert place("qemu+tcp://admin:known@hv1/system", None, masked, "web")[0] == "qemu+tcp://admin:known@hv1/system"


def test_a_request_fits_and_has_only_what_an_agent_can_read() -> None:
    full = base64.b64encode(bytes(WRITE_BYTES)).decode("ascii")
    assert json.loads(message("guest-file-write", {"handle": 10**12, "buf-b64": full}))["arguments"]["buf-b64"] == full
    with pytest.raises(TapvirtError, match=f"guest-exec: the request has 7.* {MOST_REQUEST}\\."):
        message("guest-exec", {"path": "/bin/sh", "arg": ["x" * 70_000]})
    for wrong in ("a\0b", "a\udc80b"):
        for arguments in ({"path": wrong}, {"path": "/bin/sh", "arg": ["-c", wrong]}):
            with pytest.raises(InvalidInput, match="only UTF-8 without NUL"):
                message("guest-exec", arguments)
    assert json.loads(message("guest-file-open", {"path": "ä\u2028\n"}))["arguments"] == {"path": "ä\u2028\n"}


def test_what_a_command_did() -> None:
    encoded = base64.b64encode(b"said").decode("ascii")
    assert done({"exited": False}) is None
    ended = done({"exited": True, "exitcode": 3, "err-data": encoded})
    assert ended is not None
    assert (ended.status, ended.stdout, ended.stderr) == (3, b"", b"said")
    assert done({"exited": True, "signal": 15}).status == 143
    with pytest.raises(NotReached, match="makes no sense"):
        done({"exited": True, "exitcode": float("inf")})
    with pytest.raises(TapvirtError, match="on stdout.*with status 7"):
        done({"exited": True, "exitcode": 7, "out-data": encoded, "out-truncated": True})


def test_commands_that_are_off_are_found() -> None:
    rows = [{"name": name, "enabled": name != "guest-exec"} for name in NEEDED if name != "guest-file-read"]
    assert missing({"supported_commands": rows}) == ["guest-exec", "guest-file-read"]


@given(JSON)
def test_whatever_a_guest_answers_is_an_error_of_ours(value: t.Any) -> None:
    for read in (done, missing, lambda nested: answer(json.dumps(nested)), answer):
        try:
            read(value)
        except TapvirtError as error:
            assert len(error.message) < 500


def test_a_libvirt_without_agents_and_one_that_does_not_exist() -> None:
    with pytest.raises(NotReached, match="The agent of test .*Only domains of libvirt's QEMU driver"):
        Guest("test:///default", "test", 30, 60).open()
    with pytest.raises(NotReached, match="Invalid value 'tset' for domain: No domain has this name. Did you mean test"):
        Guest("test:///default", "tset", 30, 60).open()
    with pytest.raises(NotReached, match=r"admin:\*+@127.0.0.1:1") as caught:
        Guest("qemu+tcp://admin:secret@127.0.0.1:1/system", "web", 30, 60).open()
    assert "secret" not in str(caught.value)
    with pytest.raises(NotReached, match="Invalid value 'no uri' for libvirt_uri: A libvirt URI begins with"):
        Guest("no uri", "web", 30, 60).open()
    with pytest.raises(
        InvalidInput, match="Invalid value 1 for answer_timeout_seconds: The least number of seconds is 10"
    ):
        Guest("test:///default", "test", 1, 60)


def test_a_guest_does_not_choose_the_libvirt(tmp_path: pathlib.Path) -> None:
    (tmp_path / "library").mkdir()
    module = tmp_path / "library" / "lies"
    facts = {"tapvirt_libvirt_uri": "test:///default", "tapvirt_domain": {"name": "test", "uri": "test:///default"}}
    module.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps({'ansible_facts': facts})}\nEND\n", encoding="ascii")
    (tmp_path / "play.yml").write_text(
        """
- hosts: all
  connection: tapvirt.host.libvirt_agent
  gather_facts: false
  tasks:
    - lies:
      connection: local
    - ansible.builtin.raw: "true"
""",
        encoding="ascii",
    )
    command = ["ansible-playbook", "-i", "guest,", "play.yml"]
    env = os.environ | {"ANSIBLE_NOCOLOR": "1", "TAPVIRT_LIBVIRT_URI": "qemu:///embed?root=/nowhere"}
    finished = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    output = " ".join((finished.stdout + finished.stderr).split())
    assert (
        "Invalid value 'test:///default' for libvirt_uri: The value is that of tapvirt_libvirt_uri among the facts of "
        "the guest" in output
    ), output
    assert "Only domains of libvirt's QEMU driver" not in output, "it connected"


def test_a_controller_without_the_binding_names_the_package() -> None:
    code = """
import sys
sys.modules["libvirt"] = sys.modules["libvirt_qemu"] = None
from ansible_collections.tapvirt.host.plugins.plugin_utils._agent import agent as _agent
try:
    _agent.Guest("test:///default", "test", 30, 60).open()
except _agent.NotReached as error:
    print(error.message)
"""
    argv = [sys.executable, "-c", code]
    finished = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert finished.stdout.startswith(f"The Python that Ansible runs under ({sys.executable}) cannot import")
    assert "libvirt-python" in finished.stdout


@pytest.fixture
def guests_uri(run_module: t.Callable[..., dict[str, t.Any]]) -> t.Iterator[str]:
    """The URI of an embedded driver with a guest that listens to nobody, one without a channel, and one that is off."""
    with short_directory() as top:
        uri = f"qemu:///embed?root={top}/e"
        domains = [
            {"name": name, "xml": DOMAIN.format(name=name, channel=channel), "state": state}
            for name, channel, state in (("deaf", CHANNEL, "running"), ("bare", "", "running"), ("off", "", "present"))
        ]
        result = run_module("libvirt_domain", {"uri": uri, "domains": domains}, timeout=120)
        assert not result.get("failed"), result["msg"]
        yield uri


def test_guests_without_an_agent_are_unreachable_each_for_its_reason(guests_uri: str) -> None:
    env = os.environ | {"TAPVIRT_LIBVIRT_URI": guests_uri, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "500"}
    argv = ["ansible", "-i", "deaf,bare,off,dafe", "-c", "tapvirt.host.libvirt_agent", "all", "-m", "raw", "-a", "true"]
    finished = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    rows = re.findall(r"^(\w+) \| UNREACHABLE! => (\{.*?^\})", finished.stdout, re.MULTILINE | re.DOTALL)
    messages = {host: json.loads(row)["msg"] for host, row in rows}
    assert sorted(messages) == ["bare", "dafe", "deaf", "off"], finished.stdout + finished.stderr
    assert "Is qemu-guest-agent installed and running in the guest?" in messages["deaf"]
    assert "The domain needs <channel type='unix'>" in messages["bare"]
    assert "the domain is not running" in messages["off"]
    assert "Did you mean deaf" in messages["dafe"]
    assert all(guests_uri in text for text in messages.values())
    assert "Traceback" not in finished.stdout + finished.stderr
