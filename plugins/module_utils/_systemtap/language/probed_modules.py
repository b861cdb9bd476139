# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a script needs debug information, and of which kernel modules.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import re
import typing as t

from ..._core.errors import InvalidInput
from .probe_point import ProbePoint, expand_groups, parse_probe_point, split_probe_points
from .tokens import KEYWORDS, string_value, tokenize

# Other probes do without debug information.
_FAMILIES = ("function", "statement")
# Probes at no place of the kernel.
_APART = frozenset(("timer", "begin", "end", "error", "never", "procfs"))
# What stands before a parenthesis and reads no type and no symbol of the kernel: functions, and parts of such probes.
_PLAIN_WORDS = frozenset(
    "cpu error exit gettimeofday_ms gettimeofday_ns gettimeofday_s gettimeofday_us log print printf println sprint "
    "sprintf sprintln strlen strtol substr warn "
    "begin end hz jiffies maxsize ms msec ns nsec procfs randomize s sec umask us usec".split()
)
_PLAIN_OPERATORS = frozenset("@avg @count @define @hist_linear @hist_log @max @min @sum @variance".split())
_ALIAS = re.compile(r"[\w*]+(?:\.[\w*]+)*")


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


def named_modules(text: str) -> set[str]:
    """Return the modules that a script names, in every branch of a conditional and in every macro."""
    tokens = tokenize(text)
    return {
        string_value(name.text).replace("-", "_")
        for word, bracket, name in zip(tokens, tokens[1:], tokens[2:])
        if word.text == "module" and bracket.text == "(" and name.kind == "string"
    }


def tapset_aliases(points: t.Iterable[str]) -> list[str]:
    """Return the aliases among lists of probe points, wildcards as they are, up to the first part with an argument."""
    found = []
    for text in points:
        for single in split_probe_points(text):
            with contextlib.suppress(InvalidInput):
                found += [name for name in map(_alias, expand_groups(single)) if name]
    return found


def _alias(point: str) -> str:
    """Return the name of the alias that a probe point is; empty for another point."""
    with contextlib.suppress(InvalidInput):
        if parse_probe_point(point).family != "alias":
            return ""
    name = _ALIAS.match(point)
    return name.group(0) if name else ""


def needs_debug_info(text: str, points: t.Iterable[str]) -> bool:
    """Return whether a script may need debug information.

    It does not where all its probes are at no place of the kernel, such as timers, and it has no embedded C and calls
    nothing but its own functions and a few of the tapset.

    :param points: the probe points of the script and of its aliases.
    """
    lists = [_parse_points(one) for one in points]
    if not all(lists) or any(point.family not in _APART for one in lists for point in one):
        return True
    tokens = tokenize(text)
    own = {name.text for word, name in zip(tokens, tokens[1:]) if word.text in ("function", "@define")}
    for token, following in zip(tokens, [*tokens[1:], None]):
        if token.kind == "embedded":
            return True
        if token.kind == "at" and token.text not in _PLAIN_OPERATORS and token.text[1:] not in own:
            return True
        calls = token.kind == "word" and following is not None and following.text == "("
        if calls and token.text not in KEYWORDS | _PLAIN_WORDS | own:
            return True
    return False


def is_wild(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def _parse_points(text: str) -> list[ProbePoint]:
    """Return the probe points of a list; those that only some tapset knows are left out."""
    points = []
    for single in split_probe_points(text):
        with contextlib.suppress(InvalidInput):
            points += [parse_probe_point(point) for point in expand_groups(single)]
    return points
