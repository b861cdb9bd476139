# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import re

import pytest
from ansible_collections.tapvirt.host.tests.tools import steps as steps_module
from ansible_collections.tapvirt.host.tests.tools.steps import (
    DevError,
    Steps,
    last_line,
    print_budgets,
    run,
    seconds_text,
)


@pytest.fixture
def logs(tmp_path, monkeypatch):
    monkeypatch.setattr(steps_module, "LOGS", tmp_path / "logs")
    return tmp_path / "logs"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (75.2, "1 min 15 s"), (3601, "60 min 01 s")]
)
def test_seconds_text(seconds, text):
    assert seconds_text(seconds) == text


def test_steps_in_a_log_are_plain_lines_with_numbers_and_times(capsys):
    steps = Steps(2)
    with steps.step("first"):
        steps.say("not shown before half a minute has passed")
    with pytest.raises(ValueError), steps.step("second"):
        raise ValueError
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "[1/2] first ...",
        "[1/2] first: done in 0 s",
        "[2/2] second ...",
        "[2/2] second: failed after 0 s",
    ]
    assert [title for title, _seconds in steps.done] == ["first", "second"]


def test_a_step_that_was_not_planned_counts_up_the_total(capsys):
    steps = Steps(1)
    with steps.step("extra", planned=False):
        pass
    with steps.step("planned"), steps.step("part of it"):
        pass
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/2] extra ..."
    assert lines[2:] == ["[2/2] planned ...", "[2/2] planned: done in 0 s"]


def test_run_keeps_the_output_and_returns_it(logs):
    text = run(Steps(1), "echo", ["sh", "-c", "echo out; echo err >&2"], os.environ)
    assert text.splitlines()[1:] == ["out", "err"]
    assert (logs / "echo.log").read_text() == text


def test_a_failure_shows_the_tail_and_the_path_of_the_log(logs):
    with pytest.raises(DevError) as error:
        run(Steps(1), "fails", ["sh", "-c", "seq 1 100; exit 3"], os.environ)
    message = str(error.value)
    assert "    100\n" in message
    assert "    60\n" not in message
    assert "exit status 3" in message
    assert str(logs / "fails.log") in message


def test_a_failure_shows_the_lines_that_tell_why_where_there_are_such(logs):
    with pytest.raises(DevError) as error:
        run(Steps(1), "fails", ["sh", "-c", "echo ERROR: this; seq 1 100; exit 1"], os.environ, telling="^ERROR:")
    assert re.match(r"    ERROR: this\nfails failed", str(error.value))


def test_last_line_skips_empty_lines_and_colours(tmp_path):
    log = tmp_path / "log"
    log.write_text("one\n\x1b[31mtwo\x1b[0m\n\n  \n")
    assert last_line(log) == "two"
    log.write_text("")
    assert last_line(log) == ""


def test_a_budget_is_printed_beside_what_its_gate_took(capsys):
    print_budgets({"lint": 250.44, "unit": 512.0, "soak": 4000.0}, {"lint": 300, "unit": 480, "lab": 960})
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Time and budget of each gate (2 cores, nothing else running, caches filled):",
        "    250.4 s of   300 s  lint",
        "    512.0 s of   480 s  unit, 32 s over",
        "    762.4 s of   780 s  in all",
    ]


def test_no_budget_prints_nothing(capsys):
    print_budgets({"soak": 4000.0}, {"lint": 300})
    assert capsys.readouterr().out == ""
