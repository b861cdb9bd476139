# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab of this tree: its engine is tests/lab/engine."""

from __future__ import annotations

import contextlib
import os
import sys
import typing as t
from pathlib import Path

from .prepare import BASE_PACKAGES, VIRT_PACKAGES
from .steps import CACHE, KEY, ROOT, DevError, Steps

# Short, because there are sockets in it. The variable chooses another lab that is up.
STATE = Path(os.environ.get("TAPVIRT_LAB_STATE") or CACHE / "lab" / KEY)
sys.path.insert(0, str(ROOT / "tests" / "lab"))


def lab_packages() -> list[str]:
    """Return what the lab needs of the system, as its engine lists it."""
    from engine.needs import APT_PACKAGES

    return [*BASE_PACKAGES, *VIRT_PACKAGES, *APT_PACKAGES]


def the_lab(say: t.Callable[[str], None]) -> t.Any:
    """Return this tree's own lab."""
    from engine.lab import Lab

    return Lab(ROOT / "tests" / "lab" / "lab.toml", STATE, CACHE, say)


def lab_up(steps: Steps, names: list[str] | None) -> Path:
    """Bring hosts up and return the inventory.

    :raises DevError: the lab says why it cannot.
    """
    lab = the_lab(steps.say)
    from engine.lab import LabError

    try:
        lab.up(names)
    except LabError as error:
        raise DevError(f"The lab did not come up: {error}") from None
    return t.cast(Path, lab.inventory())


@contextlib.contextmanager
def lab_paused() -> t.Iterator[None]:
    """Pause this tree's own lab where it is up: its idle guests would take half of two cores. Another one goes on."""
    if not STATE.exists() or "TAPVIRT_LAB_STATE" in os.environ:
        yield
        return
    lab = the_lab(print)
    lab.pause()
    try:
        yield
    finally:
        lab.resume()


def lab_ssh(words: list[str]) -> list[str]:
    """Return the command of a shell, or of some words, on a host of the lab.

    :raises DevError: there is no such host, or it does not run.
    """
    lab = the_lab(print)
    from engine.lab import LabError

    try:
        return [str(word) for word in lab.ssh_argv(*words)]
    except LabError as error:
        raise DevError(str(error)) from None
