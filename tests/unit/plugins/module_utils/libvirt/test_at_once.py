# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on many items at once: few work, all may wait."""

from __future__ import annotations

import os
import threading
import time

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.workers import WorkerSlots, for_each


def test_twenty_wait_together_and_few_work_at_a_time() -> None:
    turns, together, counting = WorkerSlots(), threading.Barrier(20, timeout=60), threading.Lock()
    at_work, most, done = 0, 0, []

    def work(item: int) -> None:
        nonlocal at_work, most
        with counting:
            at_work += 1
            most = max(most, at_work)
        with counting:
            at_work -= 1
        with turns.released():
            together.wait()  # breaks unless all twenty come here before the first one goes on
        done.append(item)

    for_each(work, list(range(20)), turns)
    assert sorted(done) == list(range(20))
    assert most <= min(4, len(os.sched_getaffinity(0)))


def test_an_exception_comes_out_after_the_others_have_ended() -> None:
    done = []

    def work(item: int) -> None:
        if item == 1:
            raise ValueError(item)
        done.append(item)

    with pytest.raises(ValueError, match="1"):
        for_each(work, [0, 1, 2, 3], WorkerSlots())
    assert sorted(done) == [0, 2, 3]


def test_the_number_at_work_is_bounded() -> None:
    turns, end, entered = WorkerSlots(), threading.Event(), []

    def work() -> None:
        with turns.one():
            entered.append(threading.get_ident())
            end.wait(60)

    threads = [threading.Thread(target=work) for _thread in range(8)]
    for thread in threads:
        thread.start()
    try:
        most = max(1, min(4, len(os.sched_getaffinity(0))))
        give_up = time.monotonic() + 30
        while len(entered) < most and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(0.2)  # one more would have entered by then
        assert len(entered) == most
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert len(entered) == 8
