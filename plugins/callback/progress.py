# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: progress
type: aggregate
short_description: Show the progress of a long run and the hosts that it waits for
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Shows the task that is waited for, for how long, how many hosts are done, at work and failed, and by name the hosts
    that have been at work longest, beside whatever else prints the run.
  - Where a task tells more of itself, it is shown with the host. M(tapvirt.host.stap_run) tells what it is waiting for
    and how many records and bytes there are; a loop, how many of its items are done; the role
    P(tapvirt.host.trace#role), how far a wave of hosts is. Without this plugin, M(tapvirt.host.stap_run) and the role
    print lines of their own.
  - In a terminal this is the last line, which stays where it is while all else scrolls above it. It is drawn twice a
    second at most.
  - Elsewhere, as in a log or in a job of AWX, it is a line from time to time, and only while one task takes long.
  - As failed counts each host on which a task failed in this play, rescued or not.
notes:
  - It is shown on standard error, so that what is read from standard output stays as it is. Under ansible-runner,
    which takes every line of standard error for an error, it is standard output.
  - Nothing is shown where there is no room (fewer than 4 lines or 20 columns), and no more after it could not be shown.
    The run goes on in any case.
  - A run that ends, or is interrupted, gives the terminal its last line back. One that is killed cannot; C(reset) does.
options:
  log_seconds:
    description:
      - Where there is no terminal, how many seconds a task goes on before a line tells of it, and the next one.
      - V(0) is never.
    type: int
    default: 30
    env:
      - name: TAPVIRT_PROGRESS_LOG_SECONDS
    ini:
      - section: callback_tapvirt_progress
        key: log_seconds
requirements:
  - enabled in the configuration, as C(callbacks_enabled = tapvirt.host.progress) in the section C(defaults) of
    C(ansible.cfg), or by the environment variable E(ANSIBLE_CALLBACKS_ENABLED)
"""

EXAMPLES = r"""
enable: |
  # In ansible.cfg
  [defaults]
  callbacks_enabled = tapvirt.host.progress

  [callback_tapvirt_progress]
  log_seconds = 60
"""

import atexit
import os
import sys
import threading
import time
import typing as t

from ansible.errors import AnsibleError
from ansible.playbook.role_include import IncludeRole
from ansible.plugins.callback import CallbackBase

from ..plugin_utils._fleet.status import CHANNEL, LastLine, Status

_REDRAW_SECONDS = 0.5


def _is_terminal() -> bool:
    """Return whether there are people in front of standard error. ansible-runner puts a terminal there for itself."""
    if "AWX_ISOLATED_DATA_DIR" in os.environ or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    try:
        return os.isatty(2)
    except OSError:
        return False


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "tapvirt.host.progress"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *words: t.Any, **options: t.Any) -> None:
        super().__init__(*words, **options)
        self.status = Status()
        self._lock = threading.Lock()  # events come from two threads of Ansible's, and the third one draws
        self._items: dict[str, int] = {}
        self._last_line = LastLine() if _is_terminal() else None
        self._said_at = time.monotonic()
        self._ended = threading.Event()
        self._process = os.getpid()
        self._drawer: threading.Thread | None = None

    def v2_playbook_on_play_start(self, play: t.Any) -> None:
        batch = play.get_variable_manager().get_vars(play=play).get("ansible_play_batch", ())
        with self._lock:
            self.status.begin_play(play.get_name(), len(batch), time.monotonic())
        if self._drawer is None:
            self._begin()

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:
        # A task that includes a role takes no such argument.
        name = task.get_name() if isinstance(task, IncludeRole) else task.get_name(include_role_fqcn=False)
        with self._lock:
            self.status.begin_task(task._uuid, name, time.monotonic())

    def v2_playbook_on_handler_task_start(self, task: t.Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_start(self, host: t.Any, task: t.Any) -> None:
        with self._lock:
            self._items.pop(host.get_name(), None)
            self.status.begin_host(host.get_name(), task._uuid, time.monotonic())

    def v2_runner_on_ok(self, result: t.Any) -> None:
        self._end_host(result, False)

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        self._end_host(result, False)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        self._end_host(result, not ignore_errors)

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        self._end_host(result, True)

    def _end_host(self, result: t.Any, failed: bool) -> None:
        with self._lock:
            self.status.end_host(result._host.get_name(), result._task._uuid, failed)

    def v2_runner_item_on_ok(self, result: t.Any) -> None:
        host = result._host.get_name()
        with self._lock:
            self._items[host] = self._items.get(host, 0) + 1
            self.status.tell(host, f"items done: {self._items[host]}")

    def v2_runner_item_on_failed(self, result: t.Any) -> None:
        self.v2_runner_item_on_ok(result)

    def v2_runner_item_on_skipped(self, result: t.Any) -> None:
        self.v2_runner_item_on_ok(result)

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        self._end()

    def _begin(self) -> None:
        """Show the run from now on. A thread does, as nothing happens in Ansible while a task takes long."""
        try:
            CHANNEL.open()
        except OSError:
            pass  # tasks then print lines of their own
        self._drawer = threading.Thread(target=self._draw, daemon=True)
        self._drawer.start()
        atexit.register(self._end)

    def _draw(self) -> None:
        """Show the state until the end of the run, or until it cannot be shown."""
        while not self._ended.wait(_REDRAW_SECONDS):
            now = time.monotonic()
            try:
                with self._lock:
                    for host, text in CHANNEL.heard():
                        self.status.tell(host, text)
                    shown = self._text(now)
                self._show(shown)
            except (AnsibleError, OSError, ValueError):
                return

    def _text(self, now: float) -> str:
        """Return what there is to write by now: control characters for a terminal, or a line."""
        if self._last_line is not None:
            if os.tcgetpgrp(2) != os.getpgrp():
                return ""  # in the background, where the terminal is somebody else's
            columns, rows = os.get_terminal_size(2)
            return self._last_line.drawn(self.status.line(columns - 1, now), columns, rows)
        every = self.get_option("log_seconds")
        if every <= 0 or self.status.task_seconds(now) < every or now - self._said_at < every:
            return ""
        self._said_at = now
        return f"progress: {self.status.line(200, now)}\n"

    def _show(self, text: str) -> None:
        """Write, under the lock that Ansible takes for whatever it writes, and for beginning a worker."""
        if text:
            error = "AWX_ISOLATED_DATA_DIR" not in os.environ
            self._display.display(text, stderr=error, screen_only=self._last_line is not None, newline=False)
            (sys.stderr if error else sys.stdout).flush()

    def _end(self) -> None:
        """Give the terminal back; not by a worker, which is a copy of this process."""
        if self._drawer is None or self._process != os.getpid():
            return
        self._ended.set()
        self._drawer.join(2 * _REDRAW_SECONDS)
        self._drawer = None
        CHANNEL.close()
        if self._last_line is not None:
            try:
                self._show(self._last_line.ended(os.get_terminal_size(2).lines))
            except (AnsibleError, OSError, ValueError):
                pass
