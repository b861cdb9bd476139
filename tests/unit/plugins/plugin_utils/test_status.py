# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run in one line of a bounded width, a terminal's last line, and what workers tell."""

from __future__ import annotations

import os
import sys
import typing as t

import pyte
import pytest
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.status import (
    Channel,
    LastLine,
    Status,
    char_width,
    clock,
    cut,
)
from hypothesis import given
from hypothesis import strategies as st

WIDE = 1000


def under_way(hosts: int = 1000, running: int = 25) -> Status:
    status = Status()
    status.begin_play("Gather the facts of every kernel", hosts, 0.0)
    status.begin_task("t1", "Gather", 10.0)
    for number in range(running):
        status.begin_host(f"host{number:04}", "t1", 10.0 + number)
    return status


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (-3, "0:00"), (75.2, "1:15"), (3599, "59:59"), (4000, "1:06:40")]
)
def test_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_the_slowest_are_named_first_and_all_are_counted() -> None:
    status = under_way()
    status.end_host("host0000", "t1", failed=False)
    status.end_host("host0001", "t1", failed=True)
    text = status.line(WIDE, 100.0)
    assert text.startswith(
        "Gather 1:30: 1 of 1000 hosts done, 23 running, 1 failed; waiting for host0002 1:28, host0003"
    )
    assert text.count("host0") == 8


def test_who_begins_again_is_no_longer_the_slowest() -> None:
    status = under_way(running=2)
    status.begin_host("host0000", "t1", 40.0)
    assert status.line(WIDE, 50.0).endswith("waiting for host0001 0:39, host0000 0:10")


def test_what_a_task_reports_is_shown_until_it_ends() -> None:
    status = under_way(running=1)
    status.tell("host0000", "tracing, 4 of 10 s, 812 bytes so far")
    status.tell("nobody", "boo")
    assert status.line(WIDE, 11.0).endswith("waiting for host0000 0:01 (tracing, 4 of 10 s, 812 bytes so far)")
    assert status.line(80, 11.0).endswith("waiting for host0000 0:01"), "a name is worth more than its words"
    status.end_host("host0000", "t1", failed=False)
    status.begin_host("host0000", "t1", 12.0)
    assert "tracing" not in status.line(WIDE, 12.0)


def test_hosts_that_go_their_own_ways_are_reported_with_their_tasks() -> None:
    status = under_way(hosts=2, running=1)
    status.begin_task("t2", "Trace", 20.0)
    status.begin_host("fast", "t2", 20.0)
    text = status.line(WIDE, 30.0)
    assert text == "Gather 0:20: 0 of 2 hosts done, 2 running; waiting for host0000 0:20, fast (Trace) 0:10"


def test_before_a_task_the_play_is_named_and_a_play_forgets_the_one_before() -> None:
    status = under_way()
    status.begin_play("Report", 3, 50.0)
    assert status.line(WIDE, 51.0) == "Report 0:01: 0 of 3 hosts done, 0 running"
    status.end_host("host0000", "t1", failed=False)
    assert status.task_seconds(52.0) == 2.0


@given(st.text(), st.text(), st.text(), st.integers(20, 120))
def test_a_line_is_never_wider_than_it_may_be_nor_has_control_characters(
    task: str, host: str, output: str, width: int
) -> None:
    status = Status()
    status.begin_play("x", 1, 0.0)
    status.begin_task("t", task, 0.0)
    for name in (host, host + "2"):
        status.begin_host(name, "t", 0.0)
        status.tell(name, output)
    text = status.line(width, 5.0)
    assert sum(map(char_width, text)) <= width
    assert text.isprintable()


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("gather", 6, "gather"),
        ("gather it", 6, "gath.."),
        ("a\x1b[2Jb\n", 20, "a?[2Jb?"),
        ("\u65e5\u672c\u8a9e", 5, "\u65e5.."),
        ("gather", 1, "."),
        ("gather", 0, ""),
    ],
)
def test_a_cut(text: str, width: int, shown: str) -> None:
    assert cut(text, width) == shown


def test_a_thousand_hosts_cost_no_more_for_each_event_than_ten() -> None:
    def events(hosts: int) -> int:
        """Count the steps that the interpreter takes for one more host among so many."""
        status = under_way(hosts, running=hosts)
        steps = 0

        def count(frame: t.Any, _event: str, _argument: t.Any) -> t.Any:
            nonlocal steps
            frame.f_trace_opcodes = True
            steps += 1
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            status.begin_host("one", "t1", 1.0)
            status.tell("one", "more")
            status.line(200, 1.0)
            status.end_host("one", "t1", failed=False)
        finally:
            sys.settrace(before)
        return steps

    assert events(10_000) < events(10) * 1.5


def shown_on(screen: pyte.Screen, text: str) -> None:
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))


def test_the_last_line_stays_and_nothing_that_others_write_is_lost() -> None:
    screen, line = pyte.HistoryScreen(40, 6, history=100), LastLine()
    shown_on(screen, "$ ansible-playbook\n")
    shown_on(screen, line.drawn("status 1", 40, 6))
    for number in range(20):
        shown_on(screen, f"result {number}\nhalf a li")
        shown_on(screen, line.drawn(f"status {number}", 40, 6))
        assert screen.display[-1].rstrip() == f"status {number}"
        shown_on(screen, "ne\n")
    assert line.drawn("status 19", 40, 6) == "", "what is there already is not drawn again"
    shown_on(screen, line.ended(6))
    shown_on(screen, "$ ")
    above = ["".join(row[column].data for column in range(40)).rstrip() for row in screen.history.top]
    all_lines = above + [row.rstrip() for row in screen.display]
    wanted = ["$ ansible-playbook", *(text for n in range(20) for text in (f"result {n}", "half a line")), "$", ""]
    assert all_lines == wanted
    assert screen.margins in (None, (0, 5))
    assert line.ended(6) == ""


@pytest.mark.parametrize(("columns", "rows"), [(80, 3), (19, 24), (0, 0)])
def test_a_terminal_without_room_is_left_alone(columns: int, rows: int) -> None:
    line = LastLine()
    assert line.drawn("x", columns, rows) == ""
    assert line.drawn("x", 80, 24) != ""
    assert line.drawn("x", columns, rows) != "", "what became too small is given back"


def test_another_size_gets_another_last_line() -> None:
    screen, line = pyte.Screen(40, 10), LastLine()
    shown_on(screen, "one\n" * 12)
    shown_on(screen, line.drawn("status", 40, 10))
    screen.resize(5, 30)
    screen.set_margins()
    shown_on(screen, line.drawn("status", 30, 5))
    shown_on(screen, "two\nthree\n")
    assert [row.rstrip() for row in screen.display[-3:]] == ["three", "", "status"]


def test_a_worker_is_heard_and_nobody_waits_for_a_listener() -> None:
    channel = Channel()
    assert not channel.tell("web1", "x"), "nobody listens"
    channel.open()
    worker = os.fork()
    if not worker:
        channel.tell("web1", "812 bytes so far")
        os._exit(0)
    os.waitpid(worker, 0)
    assert list(channel.heard()) == [("web1", "812 bytes so far")]
    assert list(channel.heard()) == []
    for _number in range(100_000):
        assert channel.tell("web1", "y" * 5000)
    assert 0 < len(list(channel.heard())) <= 200
    channel.close()
    assert list(channel.heard()) == []
    assert not channel.tell("web1", "x")
