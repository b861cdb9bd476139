# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several modules share. Private to the collection."""

from __future__ import annotations

import typing as t

from .errors import InvalidInput


def read_lock_timeout(params: t.Mapping[str, t.Any]) -> int:
    """Return a module's option ``lock_timeout_seconds``.

    :raises InvalidInput: it is negative.
    """
    seconds: int = params["lock_timeout_seconds"]
    if seconds < 0:
        raise InvalidInput("lock_timeout_seconds", seconds, "The number of seconds must be 0 (do not wait) or more.")
    return seconds
