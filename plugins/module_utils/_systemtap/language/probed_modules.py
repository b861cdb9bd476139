# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel modules whose debug information a script needs.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import typing as t

from ..._core.errors import InvalidInput
from .probe_point import ProbePoint, expand_groups, parse_probe_point, split_probe_points

# Other probes do without debug information.
_FAMILIES = ("function", "statement")


def probed_modules(probes: t.Iterable[str], points: t.Iterable[str] = ()) -> dict[str, bool]:
    """Return the names of the modules whose debug information a script needs, wildcards as they are.

    Each has whether the script cannot be built without it.

    :param probes: the lists of probe points of the script's probes.
    :param points: other probe points, such as those of its aliases: the probes may not use them.
    """
    found: dict[str, bool] = {}
    lists = [(text, True) for text in probes] + [(text, False) for text in points]
    for text, is_probe in lists:
        parsed = _parse_points(text)
        needed = is_probe and not any(point.sufficient for point in parsed)
        for point in parsed:
            if point.module is not None and point.family in _FAMILIES:
                name = point.module.replace("-", "_")
                found[name] = found.get(name, False) or (needed and not point.optional and not is_wild(name))
    return found


def is_wild(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def _parse_points(text: str) -> list[ProbePoint]:
    """Return the probe points of a list; those that only some tapset knows are left out."""
    points = []
    for single in split_probe_points(text):
        with contextlib.suppress(InvalidInput):
            points += [parse_probe_point(point) for point in expand_groups(single)]
    return points
