# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several modules share. Private to the collection."""

from __future__ import annotations

import re
import typing as t

from .errors import InvalidInput

_AGE = r"(\d+)([smhdw])\Z"  # compiled when it is used
_MAX_AGE_DIGITS = 20
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def read_lock_timeout(params: t.Mapping[str, t.Any]) -> int:
    """Return a module's option ``lock_timeout_seconds``.

    :raises InvalidInput: it is negative.
    """
    seconds: int = params["lock_timeout_seconds"]
    if seconds < 0:
        raise InvalidInput("lock_timeout_seconds", seconds, "The number of seconds must be 0 (do not wait) or more.")
    return seconds


def parse_age(text: str, option: str = "older_than") -> int:
    """Return an age in seconds, from the text of an option.

    :raises InvalidInput: it is not a whole number with a unit.
    """
    found = re.match(_AGE, text)
    if found is None:
        problem = "The age must be a whole number with one of the units s, m, h, d and w, such as 30d"
        raise InvalidInput(option, text, problem)
    if len(found.group(1)) > _MAX_AGE_DIGITS:
        raise InvalidInput(option, text, f"The age must have at most {_MAX_AGE_DIGITS} digits")
    return int(found.group(1)) * _UNIT_SECONDS[found.group(2)]
