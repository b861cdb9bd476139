# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the machine's own tools."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .errors import LabError


def run(argv: Sequence[str | Path], cwd: Path | None = None, timeout: float = 900) -> str:
    """The standard output of a command that has to succeed; its last words are in the error if it does not."""
    words = [str(word) for word in argv]
    # C.UTF-8: messages are quoted to the user, and locales of the machine do not exist inside the roots.
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=environment,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{words[0]} did not end within {timeout:.0f} s: {' '.join(words)[:300]}") from error
    except OSError as error:
        raise LabError(f"{words[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        message = last_lines(done.stderr or done.stdout, 6)
        raise LabError(f"{words[0]} failed ({done.returncode}): {' '.join(words)[:300]}: {message}")
    return done.stdout


def last_lines(text: str, count: int) -> str:
    """Return the last lines that are not empty, joined for a message of one paragraph."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-count:])


def tail_of(path: Path, count: int = 8) -> str:
    """The last lines of a log that another process writes."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 8192))
            return last_lines(log.read().decode("utf-8", "replace"), count)
    except OSError:
        return ""
