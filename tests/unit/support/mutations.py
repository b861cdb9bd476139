# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of right shape, with one or several of their parts replaced by something else; the same on every run."""

from __future__ import annotations

import copy
import random
import typing as t

Path = tuple[t.Any, ...]
GONE = object()
"""Stands for a part that is left out."""


def _nested(levels: int, kind: type) -> t.Any:
    value: t.Any = "x"
    for _level in range(levels):
        value = {"x": value} if kind is dict else [value]
    return value


ODD: tuple[t.Any, ...] = (
    GONE,
    None,
    True,
    5,
    -1,
    1 << 63,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "7",
    "x\x1b[2J\x00",
    "\ud800",
    "9" * 5000,
    "<script>",
    [],
    ["x"],
    [None],
    [[]],
    {},
    {"x": {}},
    {"\udcff": 1},
    {5: 1},
    b"bytes",
    {"x"},
    _nested(60, list),
    _nested(400, dict),
)


def paths(value: t.Any, before: Path = ()) -> t.Iterator[Path]:
    """Yield the place of every part of a value, the whole first."""
    yield before
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from paths(entry, (*before, key))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from paths(entry, (*before, number))


def replace(value: t.Any, path: Path, odd: t.Any) -> t.Any:
    """Return a copy with another part at a place; where that place no longer exists, the value as it is."""
    if not path:
        return {} if odd is GONE else odd
    key, rest = path[0], path[1:]
    if not (isinstance(value, dict) and key in value) and not (
        isinstance(value, list) and isinstance(key, int) and key < len(value)
    ):
        return value
    value = copy.copy(value)
    if not rest and odd is GONE:
        del value[key]
    else:
        value[key] = replace(value[key], rest, odd)
    return value


def mutations(sample: t.Any, pairs: int, seed: int = 1) -> t.Iterator[tuple[str, t.Any]]:
    """Yield what was done to a sample and the value: each part once by each odd value, then some by pairs."""
    places = list(paths(sample))
    for place in places:
        for number, odd in enumerate(ODD):
            yield f"{place} by odd value {number}", replace(sample, place, odd)
    rng = random.Random(seed)
    for _number in range(pairs):
        value, done = sample, []
        for _part in range(rng.randint(2, 5)):
            place, odd = rng.choice(places[1:] or places), rng.randrange(len(ODD))
            value = replace(value, place, ODD[odd])
            done.append(f"{place} by odd value {odd}")
        yield "; ".join(done), value
