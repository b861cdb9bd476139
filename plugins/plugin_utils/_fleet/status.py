# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run in one line: what its hosts are at and who is waited for; and the terminal's last line, where it stands.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import typing as t
import unicodedata

_NAMED_HOSTS = 8
_NAME_WIDTH = 40
_TOLD_WIDTH = 100
_MESSAGE_BYTES = 4096
_MESSAGES_AT_ONCE = 200
_LEAST_ROWS, _LEAST_COLUMNS = 4, 20


def clock(seconds: float) -> str:
    """Return 75.2 as ``1:15`` and 4000 as ``1:06:40``."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def char_width(character: str) -> int:
    """Return how many columns of a terminal a printable character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Return a text in at most so many columns, with ``?`` for what cannot be printed, and ``..`` where it was cut."""
    shown = "".join(character if character.isprintable() else "?" for character in text[: 2 * max(width, 0) + 2])
    if len(shown) == len(text) and sum(map(char_width, shown)) <= width:
        return shown
    kept, left = "", width - 2
    for character in shown:
        left -= char_width(character)
        if left < 0:
            break
        kept += character
    return (kept.rstrip() + "..")[: max(width, 0)]


@dataclasses.dataclass
class _Task:
    name: str
    began: float
    done: int = 0


class Status:
    """What the hosts of a play are at; every event costs the same, however many hosts there are.

    Times are seconds of one clock, whichever. A host that failed is no longer counted as done by the same task.
    """

    def __init__(self) -> None:
        self.begin_play("", 0, 0.0)

    def begin_play(self, name: str, hosts: int, now: float) -> None:
        """Forget the play before; ``hosts`` is how many this one has, or its batch of them."""
        self._hosts = hosts
        self._tasks: dict[str, _Task] = {"": _Task(name, now)}
        self._latest = ""
        self._running: dict[str, tuple[str, float]] = {}  # in the order in which they began
        self._told: dict[str, str] = {}
        self._failed: set[str] = set()

    def begin_task(self, task: str, name: str, now: float) -> None:
        """Note a task; with the strategy C(free) it begins once for each host."""
        self._tasks.setdefault(task, _Task(name, now))
        self._latest = task

    def begin_host(self, host: str, task: str, now: float) -> None:
        """Note that a host works on a task."""
        self._running.pop(host, None)
        self._told.pop(host, None)
        self._running[host] = (task, now)

    def end_host(self, host: str, task: str, failed: bool) -> None:
        """Note that it no longer does."""
        self._running.pop(host, None)
        self._told.pop(host, None)
        if failed:
            self._failed.add(host)
        elif task in self._tasks:
            self._tasks[task].done += 1

    def tell(self, host: str, text: str) -> None:
        """Note what a host's task tells of itself, if the host still works on it."""
        if host in self._running:
            self._told[host] = cut(text, _TOLD_WIDTH)

    def task_seconds(self, now: float) -> float:
        """Return for how long the task has been going on that is waited for."""
        return now - self._awaited().began

    def _awaited(self) -> _Task:
        task = next((task for task, _began in self._running.values()), self._latest)
        return self._tasks.get(task, self._tasks[self._latest])

    def line(self, width: int, now: float) -> str:
        """Return the state as one line of at most so many columns: the slowest hosts first, as many as have room."""
        task = self._awaited()
        counts = f" {clock(now - task.began)}: {task.done} of {self._hosts} hosts done"
        counts += f", {len(self._running)} running" + (f", {len(self._failed)} failed" if self._failed else "")
        text = cut(cut(task.name, max(width - len(counts), width // 3)) + counts, width)
        before = "; waiting for "
        for shown, (host, (own, began)) in enumerate(self._running.items()):
            words = [cut(host, _NAME_WIDTH), clock(now - began)]
            if self._tasks.get(own, task) is not task:
                words.insert(1, f"({cut(self._tasks[own].name, _NAME_WIDTH)})")
            told = f" ({self._told[host]})" if host in self._told else ""
            room = width - sum(map(char_width, text + before))
            name = next(
                (name for name in (" ".join(words) + told, " ".join(words)) if sum(map(char_width, name)) <= room), ""
            )
            if shown == _NAMED_HOSTS or not name:
                break
            text, before = text + before + name, ", "
        return text


class LastLine:
    """The control characters that keep a terminal's last line for us, while all else scrolls above it.

    Output of others stays intact, because the last line is outside of the region that scrolls.
    """

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None
        self._shown = ""

    def drawn(self, text: str, columns: int, rows: int) -> str:
        """Return what shows the text: nothing when it is there already, or there is no room for it."""
        if rows < _LEAST_ROWS or columns < _LEAST_COLUMNS:
            return self.ended(rows)
        moved = self._size != (columns, rows)
        if not moved and text == self._shown:
            return ""
        self._size, self._shown = (columns, rows), text
        # Before the region is set, which moves the cursor: save it, and have it on no line that is to be ours.
        room = f"\x1b7\x1b[r\x1b8\x1bD\x1b[A\x1b7\x1b[1;{rows - 1}r\x1b8" if moved else ""
        return f"{room}\x1b7\x1b[{rows};1H\x1b[0;7m{text}\x1b[0m\x1b[K\x1b8"

    def ended(self, rows: int) -> str:
        """Return what gives the line back."""
        if self._size is None:
            return ""
        self._size = None
        return f"\x1b7\x1b[r\x1b[{rows};1H\x1b[K\x1b8"


class Channel:
    """The way from tasks, which run in processes of their own, to the one that shows the run.

    Ansible forks its workers, so they have the sockets that are open by then. What nobody takes up is lost: it is news
    of a moment only.
    """

    def __init__(self) -> None:
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def open(self) -> None:
        """Begin to listen.

        :raises OSError: there are no more file descriptors.
        """
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in self._ends:
            end.setblocking(False)

    def close(self) -> None:
        """End it."""
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()

    def tell(self, host: str, text: str) -> bool:
        """Send what a host's task tells of itself; return whether anybody listens."""
        if self._ends is None:
            return False
        try:
            self._ends[1].send(json.dumps([host, text[:_TOLD_WIDTH]]).encode()[:_MESSAGE_BYTES])
        except OSError:  # it is full, or closed: the next one may get there
            pass
        return True

    def heard(self) -> t.Iterator[tuple[str, str]]:
        """Give what was told since the last time, at most some hundred: host and text."""
        for _number in range(_MESSAGES_AT_ONCE):
            if self._ends is None:
                return
            try:
                host, text = json.loads(self._ends[0].recv(_MESSAGE_BYTES))
            except (OSError, ValueError, RecursionError):
                return
            yield str(host), str(text)


CHANNEL = Channel()
