# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's log through ``/dev/kmsg``, read without taking anything from other readers. Private to the collection.

Format: the kernel's Documentation/ABI/testing/dev-kmsg: one record a read, ``EAGAIN`` at the end, ``EPIPE`` when
records were overwritten meanwhile, ``EINVAL`` when the buffer is too small.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import re
import time
import typing as t

from ..._core.errors import InvalidInput
from ..._core.root import Root
from .parse import NotARow, decode, integers
from .tables import PRESENT, Reading, status_of

LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_RECORD_BYTES = 16384
_MOST_RECORDS = 500_000
_DEADLINE_SECONDS = 10.0
_MICROSECONDS = 1_000_000
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which records: of a level or more severe, from a time after boot on, with a pattern in the message; the last."""

    level: str = "debug"
    since_seconds: float | None = None
    pattern: t.Pattern[str] | None = None
    limit: int = 100

    def takes(self, record: t.Mapping[str, t.Any]) -> bool:
        """Tell whether a record is wanted."""
        if LEVELS.index(record["level"]) > LEVELS.index(self.level):
            return False
        if self.since_seconds is not None and record["seconds"] < self.since_seconds:
            return False
        return self.pattern is None or self.pattern.search(record["message"]) is not None


def wanted_of(options: t.Mapping[str, t.Any], uptime_seconds: float) -> Wanted:
    """Return what the options of a task ask for; a negative ``since`` counts back from now.

    :raises InvalidInput: the pattern is no regular expression.
    """
    pattern = options.get("pattern")
    try:
        compiled = re.compile(pattern) if pattern is not None else None
    except re.error as error:
        raise InvalidInput("kmsg.pattern", pattern, f"The regular expression is not valid: {error}.") from None
    since = options.get("since")
    if since is not None and not math.isfinite(since):
        raise InvalidInput("kmsg.since", str(since), "The time is a finite number of seconds.")
    if since is not None and since < 0:
        since += uptime_seconds
    return Wanted(options.get("level") or "debug", since, compiled, options["limit"])


def parse_record(text: str) -> dict[str, t.Any]:
    """Return ``sequence``, ``seconds`` after boot, ``level``, ``facility``, ``message`` and ``fields`` of one record.

    :raises NotARow: the text is not a record.
    """
    first, *more = text.rstrip("\n").split("\n")
    prefix, semicolon, message = first.partition(";")
    head = prefix.split(",")
    if not semicolon or len(head) < 4:
        raise NotARow(text)
    priority, sequence, microseconds = integers(head[:3])
    if min(priority, sequence, microseconds) < 0:
        raise NotARow(text)
    fields = [line[1:].partition("=") for line in more if line.startswith(" ")]
    return {
        "sequence": sequence,
        "seconds": microseconds / _MICROSECONDS,
        "level": LEVELS[priority & 7],
        "facility": priority >> 3,
        "message": _unescape(message),
        "fields": {_unescape(name): _unescape(value) for name, _equals, value in fields},
    }


def _unescape(text: str) -> str:
    return decode(_ESCAPED.sub(lambda match: bytes([int(match.group(1), 16)]), text.encode("utf-8", "replace")))


def read_kmsg(root: Root, wanted: Wanted) -> Reading:
    """Return the last records that are wanted, in the order of the log. Never waits for one."""
    kept: collections.deque[dict[str, t.Any]] = collections.deque(maxlen=wanted.limit)
    reading = Reading(PRESENT, [])
    matched = 0
    try:
        descriptor = os.open(root.path("dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return Reading(status_of(error))
    try:
        for text in _records(descriptor):
            try:
                record = parse_record(text)
            except NotARow:
                reading.unparsed.append(text)
                continue
            if wanted.takes(record):
                matched += 1
                kept.append(record)
    except OSError as error:
        return Reading(status_of(error))
    finally:
        os.close(descriptor)
    reading.value = list(kept)
    reading.left_out = matched - len(kept)
    return reading


def _records(descriptor: int) -> t.Iterator[str]:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    for _number in range(_MOST_RECORDS):
        try:
            data = os.read(descriptor, _RECORD_BYTES)
        except BlockingIOError:
            return
        except BrokenPipeError:
            # Overwritten before they were read: the next read goes on with the oldest that is left.
            continue
        if not data or time.monotonic() > deadline:
            return
        yield decode(data)
