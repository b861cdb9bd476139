# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest without a network, through its agent: a domain of a libvirtd of one's own on this machine, emulated.

The kernel is the lab's; the agent, Python and all other programs in the guest are this machine's.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pathlib
import subprocess
import time
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.plugin_utils._agent.agent import Guest
from ansible_collections.tapvirt.host.plugins.plugin_utils._agent.messages import MOST_STDOUT, NotReached
from ansible_collections.tapvirt.host.tests.unit.support.documents import example
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.short_directory import short_directory
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.system_daemon import system_daemon

from .support import agent_guest

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts

NAME = "agent-test"
BOOT_SECONDS = 120
SHELL = "/bin/sh"


def open_guest(uri: str) -> Guest:
    """Open the guest as soon as its agent answers."""
    give_up = time.monotonic() + BOOT_SECONDS
    while True:
        guest = Guest(uri, NAME, 30, 60)
        try:
            guest.open()
        except NotReached:
            assert time.monotonic() < give_up
            time.sleep(0.2)
        else:
            return guest


@pytest.fixture(scope="module")
def uri(lab: LabHosts) -> t.Iterator[str]:
    """The URI of the libvirt daemon whose guest runs."""
    read = lab.run("builder", "sh", "-c", "base64 /boot/vmlinuz-6.12.*")
    assert read.returncode == 0, read.stderr
    with short_directory() as top, system_daemon() as daemon:
        (top / "vmlinuz").write_bytes(base64.b64decode(read.stdout))
        agent_guest.write_initrd(top / "initrd")
        files = {"kernel": top / "vmlinuz", "initrd": top / "initrd", "log": top / "serial.log"}
        (top / "domain.xml").write_text(agent_guest.DOMAIN.format(name=NAME, **files), encoding="ascii")
        daemon.run("virsh", "create", str(top / "domain.xml"))
        uri = f"qemu+unix:///system?socket={daemon.path('/run/libvirt/libvirt-sock')}"
        open_guest(uri).close()
        yield uri


@pytest.fixture
def guest(uri: str) -> t.Iterator[Guest]:
    """The open guest."""
    guest = open_guest(uri)
    yield guest
    guest.close()


@pytest.fixture(scope="module")
def run_in_guest(lab: LabHosts, uri: str, tmp_path_factory: pytest.TempPathFactory) -> t.Callable[..., t.Any]:
    """A function that runs tasks in the guest as a host of the inventory plugin and returns name -> result."""
    inventory = tmp_path_factory.mktemp("agent") / "guest.libvirt.yml"
    inventory.write_text(json.dumps({"plugin": "tapvirt.host.libvirt", "uris": [uri]}), encoding="utf-8")
    variables = {
        "ansible_connection": "tapvirt.host.libvirt_agent",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_host": "192.0.2.1",  # no address is used
    }

    def run(**tasks: dict[str, t.Any]) -> dict[str, dict[str, t.Any]]:
        entries = [
            {"name": name, "ignore_errors": True, "ignore_unreachable": True, **task} for name, task in tasks.items()
        ]
        done = lab.run_tasks(NAME, entries, "-i", str(inventory), vars=variables)
        assert "Traceback" not in done.stdout
        return {row["task"]: row["result"] for row in done.results}

    return run


def test_ansible_works_in_a_guest_without_a_network(run_in_guest, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script"
    script.write_text('#!/bin/sh\npwd; echo "$1" >&2; kill -9 $$\n', encoding="ascii")
    done = run_in_guest(
        script={"ansible.builtin.script": {"cmd": f"{script} words"}},
        ping={"ansible.builtin.ping": {"data": "x" * 50_000}},
        late={"ansible.builtin.raw": "sleep 9", "vars": {"tapvirt_agent_command_timeout_seconds": 1}},
    )
    assert (done["script"]["rc"], done["script"]["stdout_lines"]) == (137, ["/root"])
    assert done["script"]["stderr_lines"][0] == "words"
    assert done["ping"]["ping"] == "x" * 50_000
    assert "has not ended within 1 s. It continues as process " in done["late"]["msg"]
    assert f"The agent of {NAME} (qemu+unix:///system?" in done["late"]["msg"]


def test_command_of_the_guide_reaches_the_guest(uri: str, tmp_path: pathlib.Path) -> None:
    guide = "docs/docsite/rst/guide_domains.rst"
    shown = example(guide, "plugin: tapvirt.host.libvirt")
    assert shown.file
    (tmp_path / shown.file).write_text(json.dumps({**shown.data, "uris": [uri]}), encoding="utf-8")
    ((words, _output),) = example(guide, "libvirt_agent").commands
    env = os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3"}
    done = subprocess.run(
        words, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{NAME} | SUCCESS" in done.stdout


@pytest.mark.soak
def test_files_become_and_pipelining_work(run_in_guest, tmp_path: pathlib.Path) -> None:
    text = "a line of it\n" * 60_000
    content = os.urandom(150_000)
    (tmp_path / "source").write_bytes(content)
    dest = '/root/it\'s a "copy"'
    nobody = {"become": True, "become_method": "ansible.builtin.su", "become_user": "nobody"}
    plain = {"vars": {"ansible_pipelining": False}}
    done = run_in_guest(
        piped={"ansible.builtin.ping": {}},
        plain={"ansible.builtin.ping": {}, **plain},
        binary={"ansible.builtin.copy": {"src": str(tmp_path / "source"), "dest": dest, "mode": "0640"}, **plain},
        fetch={"ansible.builtin.fetch": {"src": dest, "dest": f"{tmp_path}/fetched", "flat": True}},
        copy={"ansible.builtin.copy": {"content": text, "dest": "/root/text"}},
        again={"ansible.builtin.copy": {"content": text, "dest": "/root/text"}},
        slurp={"ansible.builtin.slurp": {"src": "/root/text"}},
        nobody={"ansible.builtin.command": "id -un", **nobody},
        unprivileged={"ansible.builtin.ping": {}, **nobody, **plain},
        refused={"ansible.builtin.slurp": {"src": "/root/text"}, **nobody},
        stdin={"ansible.builtin.command": {"cmd": "wc -c", "stdin": text, "stdin_add_newline": False}},
        job={"ansible.builtin.command": "sleep 2", "async": 60, "poll": 1},
    )
    assert done["piped"]["ping"] == done["plain"]["ping"] == "pong"
    assert (done["binary"]["changed"], done["binary"]["mode"]) == (True, "0640")
    assert (tmp_path / "fetched").read_bytes() == content
    assert (done["copy"]["changed"], done["again"]["changed"]) == (True, False)
    assert base64.b64decode(done["slurp"]["content"]).decode("ascii") == text
    assert done["nobody"].get("stdout") == "nobody", done["nobody"]
    assert done["unprivileged"].get("ping") == "pong", done["unprivileged"]
    assert "content" not in done["refused"], done["refused"]
    assert done["stdin"]["stdout"] == str(len(text))
    assert (done["job"]["finished"], done["job"]["rc"]) == (1, 0), done["job"]


def test_commands_have_input_output_and_limits(guest: Guest) -> None:
    done = guest.run(SHELL, "cat; echo more >&2; exit 5", b"\0\xff one\n")
    assert (done.status, done.stdout, done.stderr) == (5, b"\0\xff one\n", b"more\n")
    assert guest.run(SHELL, "wc -c; ls /run/tapvirt.*", bytes(1_000_000)).stdout == b"1000000\n"
    # The largest output is returned, and one byte more is an error; the agent still answers.
    assert len(guest.run(SHELL, f"head -c {MOST_STDOUT} /dev/zero", None).stdout) == MOST_STDOUT
    with pytest.raises(TapvirtError, match="more than 2500000 bytes on stdout.*with status 4"):
        guest.run(SHELL, f"head -c {MOST_STDOUT + 1} /dev/zero; exit 4", None)
    with pytest.raises(TapvirtError, match="more than 500000 bytes on stderr"):
        guest.run(SHELL, "head -c 600000 /dev/zero >&2", None)
    with pytest.raises(TapvirtError, match="the request has"):
        guest.run(SHELL, "echo " + "x" * 70_000, None)
    assert guest.run("/bin/none", "true", None).status == 127
    assert guest.run(SHELL, "kill -15 $$", None).status == 143


def test_files_are_copied_whole_and_private(guest: Guest) -> None:
    data, back = os.urandom(300_001), io.BytesIO()
    path = "/tmp/a b'$(c)"
    guest.put(io.BytesIO(data), path)
    guest.fetch(path, back)
    assert back.getvalue() == data
    assert guest.run(SHELL, "stat -c %a /tmp/a*c*", None).stdout == b"600\n"
    guest.put(io.BytesIO(b""), path)
    assert guest.run(SHELL, "stat -c %s /tmp/a*c*", None).stdout == b"0\n"
    changing = io.BytesIO()
    guest.fetch("/proc/uptime", changing)
    assert changing.getvalue()
    for attempt, why in {
        lambda: guest.fetch("/none", io.BytesIO()): "reading /none: .*No such file",
        lambda: guest.fetch("/tmp", io.BytesIO()): "reading /tmp: .*Is a directory",
        lambda: guest.put(io.BytesIO(b"x"), "/none/x"): "writing /none/x: .*nonexistent",
        lambda: guest.put(io.BytesIO(b"x"), "/dev/full"): "writing /dev/full: .*No space left",
        lambda: guest.put(io.BytesIO(b"x"), "/dev/null"): "1 bytes were sent, and 0 bytes",
        lambda: guest.put(io.BytesIO(b"x"), "/tmp/a\0b"): "only UTF-8 without NUL",
    }.items():
        with pytest.raises(TapvirtError, match=why):
            attempt()


@pytest.mark.soak
def test_hanging_agent_is_reported_and_recovers(uri: str, guest: Guest) -> None:
    stop = "(sleep 1; kill -STOP $(cat /run/agent.pid); sleep 20; kill -CONT $(cat /run/agent.pid)) >/dev/null 2>&1 &"
    guest.run(SHELL, stop, None)
    time.sleep(2)
    hasty = Guest(uri, NAME, 10, 60)
    with pytest.raises(NotReached, match=rf"The agent of {NAME} \(.*guest-info.*not (responding|available)"):
        hasty.open()
    with pytest.raises(NotReached, match="running a command"):
        guest.run(SHELL, "true", None)
    guest.close()
    again = open_guest(uri)
    assert again.run(SHELL, "echo back", None).stdout == b"back\n"
    again.close()


@pytest.mark.soak
def test_blocked_agent_commands_are_reported_with_the_setting(uri: str, guest: Guest) -> None:
    restart = "sleep 1; kill $(cat /run/agent.pid)"
    guest.run(
        SHELL,
        f"echo '-b guest-exec,guest-file-open' > /run/agent-options; ({restart}; sleep 9; {restart}) >/dev/null 2>&1 &",
        None,
    )
    time.sleep(3)
    refused = Guest(uri, NAME, 30, 60)
    with pytest.raises(NotReached, match="does not allow guest-exec, guest-file-open. .*/etc/sysconfig/qemu-ga"):
        refused.open()
    with pytest.raises(TapvirtError, match="/etc/sysconfig/qemu-ga"):
        guest.run(SHELL, "true", None)
    guest.close()
    open_guest(uri).close()
