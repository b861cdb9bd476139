# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that tells what it likes of a run: the action ends, and says so."""

from __future__ import annotations

import itertools
import pathlib
import subprocess
import types
import typing as t

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.tapvirt.host.plugins.action import stap_run

DIRECTORY = "/run/tapvirt/stap/tapvirt_x_12345678-18eaa"


class Clock:
    """A clock that a sleep moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def action(monkeypatch: pytest.MonkeyPatch, answer: t.Callable[[], t.Any]) -> tuple[t.Any, Clock]:
    """Return an action whose host answers so whenever it is asked, each time a second later."""
    clock = Clock()
    made: t.Any = object.__new__(stap_run.ActionModule)
    made._task = types.SimpleNamespace(timeout=99)
    made._task_vars, made._params = {"inventory_hostname": "h"}, {"duration_seconds": 10, "output": None}

    def ask(_stage: t.Any) -> t.Any:
        clock.now += 1
        return answer()

    made._ask = ask
    made._low_level_execute_command = lambda *_words, **_options: {"stdout": "[" * 100_000}
    monkeypatch.setattr(stap_run, "time", clock)
    return made, clock


@pytest.mark.parametrize("of_seconds", [5, 1e18, "x", None])
def test_a_run_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch, of_seconds: t.Any) -> None:
    seconds = itertools.count()
    progress = {"state": "running", "of_seconds": of_seconds, "bytes": 0, "armed": 1, "sites": 1}
    made, clock = action(monkeypatch, lambda: {"run": {"progress": {**progress, "elapsed_seconds": next(seconds)}}})
    with pytest.raises(AnsibleActionFail, match="when it must have ended long ago. Its directory on the host is "):
        made._collect(DIRECTORY)
    assert 60 < clock.now < 600


def test_a_result_without_progress_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _clock = action(monkeypatch, lambda: {"failed": True, "msg": "x"})
    assert made._collect(DIRECTORY) == {"failed": True, "msg": "x"}


@pytest.mark.parametrize("kept", ["holds", "debugfs", ""])
def test_a_directory_stays_while_something_is_to_be_cleaned_up(tmp_path: pathlib.Path, kept: str) -> None:
    """The command that removes a collected run's directory, where sysctls are still changed, or debugfs is mounted."""
    base = tmp_path / "tapvirt" / "stap"
    directory = base / "tapvirt_x_12345678-18eaa"
    (directory / "debugfs").mkdir(parents=True)
    (directory / "state.json").touch()
    if kept == "holds":
        (directory / "holds").touch()
    mount = f"mount -t tmpfs none {directory}/debugfs || exit 77;" if kept == "debugfs" else ""
    command = stap_run._FORGET.format(directory, base, base.parent, tmp_path / "unit")
    argv = ["unshare", "-m", "sh", "-c", mount + command] if mount else ["sh", "-c", command]
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode == 77 or b"unshare" in done.stderr:
        pytest.skip("this user cannot mount a file system of its own")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (directory / "state.json").exists() == base.parent.exists() == bool(kept)
