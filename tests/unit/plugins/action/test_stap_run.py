# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that tells what it likes of a run: the action ends, and says so."""

from __future__ import annotations

import itertools
import json
import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.action import stap_run
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace import run_action as run_base
from ansible_collections.tapvirt.host.tests.unit.support.actions import run_action


class Clock:
    """A clock that a sleep moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def collect(monkeypatch: pytest.MonkeyPatch, answer: t.Callable[[], t.Any]) -> tuple[dict[str, t.Any], Clock]:
    """Run the action of a task; return its result, and the clock.

    The host starts a run. Whenever it is asked for the result, a second later each time, it sends ``answer()``; its
    progress file is damaged.
    """
    clock = Clock()
    monkeypatch.setattr(run_base, "time", clock)
    monkeypatch.setattr(stap_run, "time", clock)

    def execute(_command: str, in_data: bytes | None) -> str:
        if in_data is None:
            return "[" * 100_000
        if rb'"do": "start"' in in_data:
            return json.dumps(
                {"changed": False, "run": {"run_id": "x", "supervisor": "systemd", "previous_leftovers": []}}
            )
        clock.now += 1
        return json.dumps(answer())

    args = {"module": {"name": "tapvirt_x_12345678", "sha256": "0" * 64}, "duration_seconds": 10}
    return run_action(stap_run.ActionModule, args, execute), clock


@pytest.mark.parametrize("of_seconds", [5, 1e18, "x", None])
def test_a_run_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch, of_seconds: t.Any) -> None:
    seconds = itertools.count()
    progress = {"state": "running", "of_seconds": of_seconds, "bytes": 0, "armed": 1, "sites": 1}
    result, clock = collect(monkeypatch, lambda: {"run": {"progress": {**progress, "elapsed_seconds": next(seconds)}}})
    assert result["failed"] is True
    assert "when it must have ended long ago. Its directory on the host is " in result["msg"]
    assert 60 < clock.now < 600


def test_a_result_without_progress_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    result, clock = collect(monkeypatch, lambda: {"failed": True, "msg": "x"})
    assert (result["failed"], result["msg"], "run" in result) == (True, "x", False)
    assert clock.now < 20


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
    command = run_base.removal_command(str(directory), str(tmp_path / "unit"))
    argv = ["unshare", "-m", "sh", "-c", mount + command] if mount else ["sh", "-c", command]
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode == 77 or b"unshare" in done.stderr:
        pytest.skip("this user cannot mount a file system of its own")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (directory / "state.json").exists() == base.parent.exists() == bool(kept)
