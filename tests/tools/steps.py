# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every command of ./dev is made of: numbered steps, and commands whose output goes to a log file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import typing as t
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "tapvirt"
KEY = hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]  # of this tree: several trees share the caches
LOGS = CACHE / "logs" / KEY


class DevError(Exception):
    """Something that ends the command; its text is all that the user needs."""


def seconds_text(seconds: float) -> str:
    """Return 75.2 as '1 min 15 s'."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


class Steps:
    """Numbered steps: one moving line in a terminal, plain lines elsewhere; the time of each is kept."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done: list[tuple[str, float]] = []
        self._tty = sys.stdout.isatty()
        self._title = ""
        self._started = self._spoken = 0.0

    @contextlib.contextmanager
    def step(self, title: str, planned: bool = True) -> t.Iterator[None]:
        """Announce a step, and say how long it took, or that it failed. A step within a step is a part of it.

        One that is not ``planned`` was not counted when the total was told.
        """
        if self._title:
            self.say(title)
            yield
            return
        self.total += not planned
        self._title = f"[{len(self.done) + 1}/{self.total}] {title}"
        self._started = self._spoken = time.monotonic()
        self._line(self._title + ("" if self._tty else " ..."), final=not self._tty)
        word = "failed after"
        try:
            yield
            word = "done in"
        finally:
            taken = time.monotonic() - self._started
            self.done.append((title, taken))
            self._line(f"{self._title}: {word} {seconds_text(taken)}", final=True)
            self._title = ""

    def say(self, text: str) -> None:
        """Tell what the step is at: at once in a terminal, twice a minute in a log."""
        now = time.monotonic()
        line = f"{self._title}  {seconds_text(now - self._started)}  {text.strip()}"
        if self._tty:
            self._line(line, final=False)
        elif now - self._spoken >= 30:
            self._spoken = now
            self._line(line, final=True)

    def _line(self, text: str, final: bool) -> None:
        if self._tty:
            text = f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K"
        print(text, end="\n" if final else "", flush=True)


def print_times(
    rows: t.Sequence[tuple[str, float]], total: float | None = None, heading: str = "Where the time went"
) -> None:
    """Print where the time went."""
    print(f"\n{heading}:")
    for title, seconds in [*rows, *([("in all", total)] if total is not None else [])]:
        print(f"  {seconds:7.1f} s  {title}")


def print_budgets(taken: t.Mapping[str, float], budgets: t.Mapping[str, float]) -> None:
    """Print what each gate took beside its budget, in seconds; nothing fails when a gate takes longer.

    :param budgets: of those gates that have one.
    """
    rows = [(name, seconds, budgets[name]) for name, seconds in taken.items() if name in budgets]
    if len(rows) > 1:
        rows.append(("in all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    if rows:
        print("\nTime and budget of each gate (2 cores, nothing else running, caches filled):")
    for name, seconds, budget in rows:
        over = f", {seconds - budget:.0f} s over" if seconds > budget else ""
        print(f"  {seconds:7.1f} s of {budget:5.0f} s  {name}{over}")


def last_line(path: Path) -> str:
    """Return the last line with anything on it of a log that may still grow."""
    with path.open("rb") as log:
        log.seek(max(path.stat().st_size - 4096, 0))
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return re.sub(r"\x1b\[[0-9;]*m", "", lines[-1]) if lines else ""


def run(
    steps: Steps,
    name: str,
    argv: t.Sequence[str | Path],
    env: t.Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    watch: t.Callable[[Path], str] = last_line,
    telling: str = "",
) -> str:
    """Run a command with its output in a log file of that name, and return the output.

    ``watch`` returns what to show of the log meanwhile; ``telling`` matches the lines that tell why a command failed,
    else its last lines are shown.

    :raises DevError: it failed; the message has the tail of the log and its path.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    with log.open("wb") as stream:
        words = [str(word) for word in argv]
        stream.write(f"$ {shlex.join(words)}\n".encode())
        stream.flush()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=env, cwd=cwd)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
                steps.say(watch(log))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        lines = text.splitlines()
        lines = (telling and [line for line in lines if re.search(telling, line)]) or lines[-40:]
        shown = "\n".join("    " + line for line in lines[:100])
        raise DevError(f"{shown}\n{name} failed (exit status {process.returncode}). All of its output: {log}")
    return text


@contextlib.contextmanager
def lock(name: str) -> t.Iterator[None]:
    """Let one process at a time do what several of them may want to do to the same cache folder."""
    (CACHE / "locks").mkdir(parents=True, exist_ok=True)
    with (CACHE / "locks" / name).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
