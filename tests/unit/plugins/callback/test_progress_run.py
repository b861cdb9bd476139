# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The callback plugin in real runs: in front of people, in a log, and where nothing can be shown."""

from __future__ import annotations

import fcntl
import os
import pathlib
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
import typing as t

import pyte
import pytest
from ansible.playbook.role_include import IncludeRole
from ansible_collections.tapvirt.host.plugins.callback.progress import CallbackModule
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import status as _status

COLLECTIONS = pathlib.Path(_status.__file__).resolve().parents[6]
ROWS, COLUMNS = 24, 132
PROGRAM = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
PLAY = """
- name: Hosts that take their time
  hosts: all
  gather_facts: false
  connection: local
  strategy: "{{ strategy | default('linear') }}"
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - name: Fail at once
      ansible.builtin.assert:
        that: inventory_hostname != 'bad'
    - name: Take a while
      take_a_while:
        seconds: "{{ {'slow': 2, 'slower': 4}[inventory_hostname] | default(0) }}"
"""
# A task that tells of itself, as tapvirt.host.stap_run does.
ACTION = """
import time
from ansible.plugins.action import ActionBase
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.status import CHANNEL

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        CHANNEL.tell(task_vars["inventory_hostname"], "7 of 9 things")
        time.sleep(float(self._task.args["seconds"]))
        return {"changed": False}
"""
HOSTS = "quick,bad,slow,slower"
# What the plugin writes to a terminal, and nothing else of a run does.
OURS = re.compile(r"\x1b7\x1b\[r\x1b8\x1bD\x1b\[A\x1b7\x1b\[[\d;]*r\x1b8|\x1b7\x1b\[(?:r\x1b\[)?[\d;]*H.*?\x1b\[K\x1b8")


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("play")
    play = folder / "play.yml"
    play.write_text(PLAY, encoding="utf-8")
    (folder / "action_plugins").mkdir()
    (folder / "action_plugins" / "take_a_while.py").write_text(ACTION, encoding="utf-8")
    return [PROGRAM, "-i", HOSTS, "-f", "4", str(play)]


@pytest.fixture(scope="module")
def logged(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return piped(argv, environment(TAPVIRT_PROGRESS_LOG_SECONDS="1"))


def test_a_task_that_includes_a_role_is_shown_by_its_name() -> None:
    plugin = CallbackModule()
    task = IncludeRole.load({"name": "Trace the hosts", "ansible.builtin.include_role": {"name": "trace"}})
    plugin.v2_playbook_on_task_start(task, False)
    assert plugin.status.line(80, time.monotonic()).startswith("Trace the hosts 0:00: ")


def environment(**more: str) -> dict[str, str]:
    env = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_NOCOLOR": "1", "TERM": "xterm"}
    env.pop("AWX_ISOLATED_DATA_DIR", None)
    return {**env, "ANSIBLE_CALLBACKS_ENABLED": "tapvirt.host.progress", **more}


def piped(argv: list[str], env: dict[str, str], **options: t.Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
        **{"stderr": subprocess.PIPE, **options},
    )


def before_people(argv: list[str], env: dict[str, str]) -> tuple[str, list[str], pyte.Screen, int]:
    """Run on a terminal; return all that was written, the last lines that were to be seen, the screen, and the end."""
    process, terminal = pty.fork()
    if not process:
        try:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            os.execve(argv[0], argv, env)
        finally:
            os._exit(127)
    screen, written, seen = pyte.Screen(COLUMNS, ROWS), b"", [""]
    stream = pyte.ByteStream(screen)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ready = select.select([terminal], [], [], 1)
        try:
            data = os.read(terminal, 65536) if ready[0] else None
        except OSError:  # the other end is closed
            break
        if data:
            written += data
            stream.feed(data)
            if screen.display[-1].strip() not in ("", seen[-1]):
                seen.append(screen.display[-1].rstrip())
    _process, status = os.waitpid(process, 0)
    os.close(terminal)
    return written.decode(), seen, screen, os.waitstatus_to_exitcode(status)


def lines_of(text: str) -> list[str]:
    """Return what a run printed of its hosts, in an order that does not depend on which was quicker."""
    lines = text.replace("\r", "").splitlines()
    return sorted(line for line in lines if line and "****" not in line and not line.startswith("progress: "))


def check_log(done: subprocess.CompletedProcess[str]) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("progress: ")]
    assert done.returncode == 2
    assert 1 < len(lines) < 60, done.stderr
    assert any("1 failed; waiting for slow" in line for line in lines), lines
    assert "progress: " not in done.stdout and "\x1b" not in done.stderr


def test_people_see_the_last_line_move_and_everything_else_as_ever(
    argv: list[str], logged: subprocess.CompletedProcess[str]
) -> None:
    written, seen, screen, rc = before_people(argv, environment())
    assert rc == logged.returncode
    assert any(re.search(r"^Take a while 0:0\d: 1 of 4 hosts done, 2 running, 1 failed", line) for line in seen), seen
    assert any(
        re.search(r"waiting for slow 0:0\d \(7 of 9 things\), slower 0:0\d \(7 of 9 things\)$", line) for line in seen
    ), seen
    assert any(re.search(r"waiting for slower 0:0\d \(7 of 9 things\)$", line) for line in seen), seen
    rest = OURS.sub("", written)
    assert "\x1b" not in rest
    assert lines_of(rest) == lines_of(logged.stdout + logged.stderr)
    assert screen.display[-1].strip() == "" and screen.margins is None
    assert "waiting for" not in "\n".join(screen.display)


def test_a_log_has_a_line_now_and_then_beside_standard_output(logged: subprocess.CompletedProcess[str]) -> None:
    check_log(logged)


@pytest.mark.soak
def test_hosts_that_go_their_own_ways_are_logged_as_well(argv: list[str]) -> None:
    check_log(piped([*argv, "-e", "strategy=free"], environment(TAPVIRT_PROGRESS_LOG_SECONDS="1")))


@pytest.mark.soak
@pytest.mark.parametrize(
    "env",
    [{}, {"TAPVIRT_PROGRESS_LOG_SECONDS": "0"}, {"AWX_ISOLATED_DATA_DIR": "/nowhere"}],
    ids=["by default", "never", "runner"],
)
def test_a_log_of_a_short_run_has_none(argv: list[str], env: dict[str, str]) -> None:
    done = piped([*argv, "--limit", "slow,bad"], environment(**env))
    assert done.returncode == 2
    assert "progress: " not in done.stdout + done.stderr


@pytest.mark.soak
def test_under_a_runner_a_terminal_gets_plain_lines_on_standard_output(argv: list[str]) -> None:
    env = environment(AWX_ISOLATED_DATA_DIR="/nowhere", TAPVIRT_PROGRESS_LOG_SECONDS="1")
    written, _seen, _screen, rc = before_people([*argv, "--limit", "slow"], env)
    assert rc == 0
    assert re.search(r"^progress: Take a while 0:0\d: 0 of 1 hosts done, 1 running; waiting for slow", written, re.M)
    assert "\x1b" not in written


def test_what_cannot_be_shown_fails_no_run(argv: list[str]) -> None:
    words = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh", *argv, "--limit", "slow"]
    done = piped(words, environment(TAPVIRT_PROGRESS_LOG_SECONDS="1"))
    assert done.returncode == 0
    assert re.search(r"^slow +: ok=2 ", done.stdout, re.M), done.stdout
