# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values in words, for people who read a report. Private to the collection."""

from __future__ import annotations

import html
import json
import typing as t

_NAMED = 3
_HOSTS = 5
_LINES = 300
_LINE_CHARS = 1000
_CUT = " .."


def listed(names: t.Sequence[str], most: int = _NAMED) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def shorten(text: str, most: int, end: str = _CUT) -> str:
    """Return a text of at most so many characters, with ``end`` where it was cut."""
    return text if len(text) <= most else text[: most - len(end)] + end


def first_lines(lines: t.Sequence[str]) -> list[str]:
    """Return the first 300 lines, each of at most 1,000 characters, and a line with how many more there are.

    The output of a job is kept and shown, so it has to be bounded.
    """
    more = len(lines) - _LINES
    first = [shorten(line, _LINE_CHARS) for line in lines[:_LINES]]
    return [*first, *([f"And {more} lines more, which are not shown."] if more > 0 else ())]


def by_reason(reasons: t.Mapping[str, str], before: str = "") -> list[str]:
    """Return a line for each reason, with its hosts and ``before`` in front of the reason.

    :param reasons: host -> reason.
    """
    hosts: dict[str, list[str]] = {}
    for host, reason in reasons.items():
        hosts.setdefault(reason, []).append(host)
    return first_lines(
        [f"{listed(hosts[reason], _HOSTS)}: {before}{reason}" for reason in sorted(hosts, key=str.lower)]
    )


def split_lines(lines: t.Iterable[str]) -> list[str]:
    """Return the lines of a message, without empty ones."""
    return [part for line in lines for part in line.split("\n") if part]


def shown(value: t.Any) -> str:
    """Return a value as text: a text as it is, everything else as JSON."""
    return value if isinstance(value, str) and value else json.dumps(value)


def word(value: t.Any) -> str | int | float | None:
    """Return a value that a report shows as a word or a number: null if empty, whatever else a host says as JSON."""
    return None if value in (None, "") else value if isinstance(value, (str, int, float)) else shown(value)


def short(number: float) -> str:
    """Return 1234567 as ``1.2M``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            scaled = number / (1e3 if letter == "k" else size)
            return f"{scaled:.0f}{letter}" if scaled >= 10 else f"{scaled:.1f}{letter}"
    return f"{number:g}"


def measured(number: float, unit: str) -> str:
    """Return a value with its unit; times in the unit that keeps them short, such as ``16.4 ms`` for 16384 us."""
    scale = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}.get(unit)
    if scale is None:
        return f"{short(number)} {unit}".strip()
    for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")):
        if number * scale >= size or name == unit:
            return f"{float(f'{number * scale / size:.3g}'):g} {name}"
    return f"{number} {unit}"


def escaped(value: t.Any) -> t.Any:
    """Return data with every text in it made fit for HTML, in attributes too."""
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, t.Mapping):
        return {escaped(key): escaped(entry) for key, entry in value.items()}
    if isinstance(value, t.Sequence):
        return [escaped(entry) for entry in value]
    return value
