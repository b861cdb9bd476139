# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A deadline for calls of libvirt that take none themselves and may block as long as a guest or a disk does.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import threading
import typing as t

from ..._core.errors import TapvirtError
from .connection import LibvirtFailure, libvirt

_GRACE_SECONDS = 5.0


def call_with_deadline(
    seconds: float,
    doing: str,
    call: t.Callable[[], t.Any],
    abort: t.Callable[[], t.Any],
    grace_seconds: float = _GRACE_SECONDS,
) -> None:
    """Call something of libvirt and wait for it; past the deadline, ask for its end and wait a moment more.

    :param grace_seconds: how long to wait for the end after it was asked for.
    :raises LibvirtFailure: libvirt refused.
    :raises TapvirtError: it was aborted past the deadline, or goes on without us: the hypervisor ends it by itself.
    """
    outcome: list[t.Any] = []
    thread = threading.Thread(target=_note, args=(call, outcome), daemon=True)
    thread.start()
    thread.join(seconds)
    late = not outcome
    if late:
        # May block, too: a guest's monitor that does not answer the one does not answer the other.
        threading.Thread(target=_ignore_refusal, args=(abort,), daemon=True).start()
        thread.join(grace_seconds)
    if not outcome:
        raise TapvirtError(
            f"{doing} did not end within {seconds:g} s, and libvirt did not abort it. It may still end on its own."
        )
    if outcome[0] is not None:
        raise LibvirtFailure(f"{doing}{f' (aborted after {seconds:g} s)' if late else ''}", outcome[0])


def _note(call: t.Callable[[], t.Any], outcome: list[t.Any]) -> None:
    try:
        call()
    except libvirt.libvirtError as error:
        outcome.append(error)
    else:
        outcome.append(None)


def _ignore_refusal(abort: t.Callable[[], t.Any]) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        abort()
