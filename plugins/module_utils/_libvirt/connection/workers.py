# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on many items at once, bounded: few at work, more that only wait for their guest.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import os
import threading
import typing as t

_MOST_AT_WORK = 4
_MOST_WAITING = 32
_Item = t.TypeVar("_Item")


class WorkerSlots:
    """Who may work: at most as many at once as there are processors, and no more than four."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(max(1, min(_MOST_AT_WORK, len(os.sched_getaffinity(0)))))

    @contextlib.contextmanager
    def one(self) -> t.Iterator[None]:
        """Have a turn for as long as the block lasts."""
        with self._free:
            yield

    @contextlib.contextmanager
    def released(self) -> t.Iterator[None]:
        """Let others work for as long as the block, which only waits, lasts."""
        self._free.release()
        try:
            yield
        finally:
            self._free.acquire()


def for_each(work: t.Callable[[_Item], None], items: t.Sequence[_Item], turns: WorkerSlots) -> None:
    """Call ``work(item)`` for all items, each in its turn; return when all are done.

    Libvirt's binding lets go of the interpreter while it waits for an answer; any thread may use its objects.
    """

    def in_turn(item: _Item) -> None:
        with turns.one():
            work(item)

    if len(items) < 2:
        for item in items:
            in_turn(item)
        return
    from concurrent.futures import ThreadPoolExecutor  # a run that changes nothing has no use for it

    with ThreadPoolExecutor(max_workers=min(len(items), _MOST_WAITING)) as pool:
        for future in [pool.submit(in_turn, item) for item in items]:
            future.result()
