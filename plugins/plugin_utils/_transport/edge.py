# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse what hosts returned, once, before anything reads it. Private to the collection.

A host may return anything. :func:`parse` takes a value and the shape that it must have, and returns the declared parts
of it; whatever reads these needs no check of its own. A shape is a kind (:data:`TEXT` and the like), a dictionary of
key to shape, a list of one shape, :class:`Each` or :class:`Need`. A key may be missing, or null, unless its shape is
``Need``; an element of a list is null only where its shape is :data:`ANY`.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t

from ansible.utils.display import Display

MOST_LEVELS = 40
"""How deeply dictionaries and lists may be nested; modules of this collection return fewer than ten levels."""
LARGEST = 1 << 128
"""Numbers of hosts are smaller; so arithmetic with floats cannot overflow."""
_SHOWN_CHARS = 60

display = Display()


class Odd(ValueError):
    """A value does not have its shape; the text is ``PLACE is VALUE, not KIND``."""

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(f"{place or 'it'} {problem}")
        self.problem, self.place = problem, place

    def below(self, key: object) -> Odd:
        """Return the same for a value that contains the odd one under a key, or as an element."""
        step = f"[{key}]" if isinstance(key, int) else printable(str(key))
        dot = "." if self.place and not self.place.startswith("[") else ""
        return Odd(self.problem, f"{step}{dot}{self.place}")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of plain value, by its name in sentences and a test."""

    name: str
    fits: t.Callable[[t.Any], bool]


@dataclasses.dataclass(frozen=True)
class Need:
    """A value that must exist and have this shape."""

    shape: t.Any


@dataclasses.dataclass(frozen=True)
class Each:
    """A dictionary whose keys are names and whose values all have this shape."""

    shape: t.Any


def _is_number(value: t.Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


ANY = Kind("a plain value", lambda _value: True)
TEXT = Kind("a text", lambda value: isinstance(value, str))
NUMBER = Kind("a number", _is_number)
WHOLE = Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
COUNT = Kind("a count", lambda value: WHOLE.fits(value) and value >= 0)
NAME = Kind("a text of at most 255 characters", lambda value: isinstance(value, str) and len(value) <= 255)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))


def parse(value: t.Any, shape: t.Any) -> t.Any:
    """Return the parts of a value that a shape declares; keys that it does not declare are left out.

    :raises Odd: the value does not have the shape, or is not plain (see :func:`check_plain`).
    """
    if isinstance(shape, Need):
        if value is None:
            raise Odd("is missing")
        shape = shape.shape
    if value is None:
        return None
    if isinstance(shape, Kind):
        if not shape.fits(value):
            raise Odd(f"is {_shown(value)}, not {shape.name}")
        check_plain(value)
        return value
    return _parse_list(value, shape[0]) if isinstance(shape, list) else _parse_dict(value, shape)


def _parse_list(value: t.Any, shape: t.Any) -> list[t.Any]:
    if not isinstance(value, (list, tuple)):
        raise Odd(f"is {_shown(value)}, not a list")
    element = shape if shape is ANY else Need(shape)
    return [_inner(number, entry, element) for number, entry in enumerate(value)]


def _parse_dict(value: t.Any, shape: t.Mapping[str, t.Any] | Each) -> dict[str, t.Any]:
    if not isinstance(value, t.Mapping):
        raise Odd(f"is {_shown(value)}, not a dictionary")
    if isinstance(shape, Each):
        for key in value:
            _check_key(key)
        element = shape.shape if shape.shape is ANY else Need(shape.shape)
        return {key: _inner(key, entry, element) for key, entry in value.items()}
    declared = (key for key, part in shape.items() if key in value or isinstance(part, Need))
    return {key: _inner(key, value.get(key), shape[key]) for key in declared}


def parse_all(
    values: t.Mapping[str, t.Any], read: t.Callable[[t.Any], t.Any]
) -> tuple[dict[str, t.Any], dict[str, str]]:
    """Return host -> what ``read`` returns for its value, and host -> why it cannot be read, in words."""
    good: dict[str, t.Any] = {}
    odd: dict[str, str] = {}
    for host, value in values.items():
        try:
            good[host] = read(value)
        except Odd as error:
            odd[host] = str(error)
    return good, odd


def check_plain(value: t.Any, levels: int = MOST_LEVELS) -> None:
    """Check that a value is JSON that every consumer takes: UTF-8, finite numbers of a usual size, not nested deeply.

    :raises Odd: it is not.
    """
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, (int, float)):
        _check_number(value)
    elif isinstance(value, (t.Mapping, list, tuple)):
        if not levels:
            raise Odd(f"is nested deeper than {MOST_LEVELS} levels")
        if isinstance(value, t.Mapping):
            for key in value:
                _check_key(key)
        for key, entry in value.items() if isinstance(value, t.Mapping) else enumerate(value):
            try:
                check_plain(entry, levels - 1)
            except Odd as error:
                raise error.below(key) from None
    elif value is not None:
        raise Odd(f"is a {type(value).__name__}, not JSON")


def _inner(key: t.Any, value: t.Any, shape: t.Any) -> t.Any:
    try:
        return parse(value, shape)
    except Odd as error:
        raise error.below(key) from None


def _check_key(key: t.Any) -> None:
    if not isinstance(key, str):
        raise Odd(f"has the key {_shown(key)}, which is not a text")
    _check_text(key)


def _check_number(value: float) -> None:
    if isinstance(value, int) and not -LARGEST < value < LARGEST:
        raise Odd(f"is a number of {value.bit_length()} bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise Odd(f"is {value}, not a finite number")


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Odd(f"is {_shown(text)}, which is not UTF-8") from None


def warn(what: str, odd: t.Mapping[str, str]) -> None:
    """Warn of hosts that ``what`` leaves out, each with the reason."""
    for host, why in odd.items():
        display.warning(f"{what}: {host} is left out: {why}.")


def printable(name: str) -> str:
    """Return the beginning of a name that others chose, with escapes for what a terminal would act on."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def _shown(value: t.Any) -> str:
    """Return the beginning of a value in ASCII, without going into what may be nested without end."""
    if isinstance(value, t.Mapping):
        return "a dictionary"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, int) and not -LARGEST < value < LARGEST:
        return f"a number of {value.bit_length()} bits"
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
