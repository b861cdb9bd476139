# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps a result small: rows, then bytes, with a count of what was left out. Private to the collection."""

from __future__ import annotations

import json
import typing as t

from .parse import Value


def size(value: Value) -> int:
    """Return how many bytes a value has as JSON."""
    return len(json.dumps(value))


def limit_rows(value: Value, limit: int) -> tuple[Value, int]:
    """Return a table with at most ``limit`` rows in each list of rows, and how many were left out."""
    if isinstance(value, dict):
        limited = {key: limit_rows(part, limit) for key, part in value.items()}
        return {key: part for key, (part, _count) in limited.items()}, sum(count for _part, count in limited.values())
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return value[:limit], max(len(value) - limit, 0)
    return value, 0


def fit(value: Value, budget: int) -> tuple[Value, int]:
    """Return as much of a value as fits into so many bytes, from its beginning, and how many entries were left out.

    An entry that does not fit is left out, or cut itself where nothing else would be left.
    """
    if size(value) <= budget:
        return value, 0
    if isinstance(value, str):
        return value[: max(budget // 6 - 1, 0)], 1
    if isinstance(value, list):
        return _fit_list(value, budget)
    if isinstance(value, dict):
        return _fit_dict(value, budget)
    return None, 1


def _fit_list(value: list[Value], budget: int) -> tuple[Value, int]:
    kept: list[Value] = []
    left = budget - 2
    for part in value:
        left -= size(part) + 2
        if left < 0:
            break
        kept.append(part)
    if kept or not value or budget < 64:
        return kept, len(value) - len(kept)
    first, cut = fit(value[0], budget - 4)
    return [first], cut + len(value) - 1


def _fit_dict(value: dict[str, Value], budget: int) -> tuple[Value, int]:
    kept: dict[str, Value] = {}
    left_out = 0
    left = budget - 2
    for key, part in value.items():
        room = left - size(key) - 4
        if room < 4:
            left_out += 1
            continue
        kept[key], cut = fit(part, room)
        left_out += cut
        left = room - size(kept[key])
    return kept, left_out


def shares(sizes: t.Mapping[str, int], budget: int) -> dict[str, int]:
    """Share a budget: what needs less than an equal share gets what it needs, the others share the rest equally."""
    given: dict[str, int] = {}
    for number, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        equal = budget // (len(sizes) - number)
        given[name] = min(sizes[name], equal)
        budget -= given[name]
    return given
