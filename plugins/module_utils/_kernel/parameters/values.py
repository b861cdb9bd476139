# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of module parameters by the kernel's own rules: what it takes, what is equal, what it would be.

Private to the collection. The rules are those of ``param_set_*`` in the kernel's kernel/params.c, ``kstrto*`` in
lib/kstrtox.c (base 0: ``0x10`` is 16, ``010`` is 8) and ``kstrtobool`` there (the first letters decide).
"""

from __future__ import annotations

import functools
import re
import typing as t

#: A whole page is the most that one write hands to the kernel, with room for the zero that ends it.
MAX_BYTES = 4095
_CHARP_BYTES = 1024
_NULL_TEXT = "(null)"
_INTEGER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\n?", re.ASCII)
_MOST_DIGITS = 25  # 2^64 has 22 octal digits; int() refuses more than 4300 decimal ones
_SELECTOR = r"(?:^|\s)\[([^\]\s]+)\](?:\s|$)"  # compiled when it is used: few parameters are such
_BOOLEANS = ("bool", "invbool", "bool_enable_only", "bint")
# What a user may write; of a longer word the kernel would read the first one or two characters.
_BOOLEAN_WORD = re.compile(r"(?:[yn10tf]|on|off|yes|no|true|false)?\n?\Z", re.IGNORECASE)
_TAKES_BOOLEAN = "takes a boolean (Y or N, 1 or 0)"
_TEXTS = ("charp", "string")
_ARRAY = "array of "


class Rejected(ValueError):
    """The kernel would not take the value.

    The text is what it takes, as the end of a sentence about the parameter; ``hint`` a sentence that says what to do.
    """

    def __init__(self, takes: str, hint: str | None = None) -> None:
        super().__init__(takes)
        self.hint = hint


class Value(t.NamedTuple):
    """A value that the kernel takes: ``text`` is what to write, ``key`` what to compare, ``shown`` what to return."""

    text: str
    key: t.Any
    shown: t.Any


class Kind(t.NamedTuple):
    """A parameter's type.

    ``word`` is the type as modinfo names it, or what the value in sysfs looks like: ``number``, ``bool``,
    ``array of number``, ``selector``, ``opaque``. ``source`` is ``modinfo`` or ``sysfs``. ``limit`` is the most
    elements of an array or the most bytes of a string, where that is known.
    """

    word: str
    source: str
    limit: int | None = None

    @property
    def is_array(self) -> bool:
        """Tell whether the value is a list."""
        return self.word.startswith(_ARRAY)

    @property
    def element(self) -> str:
        """Return the type of one element (of a scalar: its own)."""
        return self.word[len(_ARRAY) :] if self.is_array else self.word

    @property
    def is_number(self) -> bool:
        """Tell whether the value is one number."""
        return self.word in _RANGES[64]


def kind_of_value(text: str) -> Kind:
    """Guess a type from the value in sysfs, where no module information is installed."""
    value = _without_line_end(text)
    if value in ("Y", "N"):
        word = "bool"
    elif _INTEGER.fullmatch(value):
        word = "number"
    elif "," in value and all(_INTEGER.fullmatch(part) for part in value.split(",")):
        word = "array of number"
    elif " " in value.strip() and re.search(_SELECTOR, value):
        word = "selector"
    else:
        word = "opaque"
    return Kind(word, "sysfs")


def known_kind(word: str | None, text: str | None) -> Kind:
    """Return the type that modinfo names, if its rules are known here; else what the value looks like."""
    if word is not None:
        kind = Kind(word, "modinfo")
        numeric = kind.element in _RANGES[64]
        boolean = kind.element in _BOOLEANS
        # Some declare a boolean and print other words (kvm.nx_huge_pages: never).
        odd = boolean and not kind.is_array and text is not None and _without_line_end(text) not in ("Y", "N", "0", "1")
        if (numeric or boolean or kind.element in _TEXTS) and not odd:
            return kind
    return kind_of_value(text) if text is not None else Kind("opaque", "sysfs")


def listed_words(kind: Kind, text: str | None) -> list[str] | None:
    """Return the words that a selector lists in sysfs (``[default] performance``); null where none are listed."""
    if kind.word != "selector" or text is None or not re.search(_SELECTOR, text):
        return None
    return [word.strip("[]") for word in text.split()]


def wanted_value(kind: Kind, value: t.Any, word_bits: int) -> Value:
    """Return what the kernel makes of a value that a user gives (text, number, boolean or list).

    :raises Rejected: the kernel would not take it, or it would take any word for a boolean that begins like one.
    """
    return _wanted_text(kind, value, word_bits) if isinstance(value, str) else _wanted_value(kind, value, word_bits)


def _wanted_value(kind: Kind, value: t.Any, word_bits: int) -> Value:
    if kind.element in _BOOLEANS:
        parts = value.split(",") if kind.is_array and isinstance(value, str) else value
        for number, part in enumerate(parts if isinstance(parts, list) else [parts], 1):
            if not _is_boolean_word(part):
                place = f" as element {number}, not {part!r}" if kind.is_array else ""
                raise Rejected(_TAKES_BOOLEAN + place)
    return kernel_value(kind, value, word_bits)


# A run asks for each text several times.
_wanted_text = functools.lru_cache(maxsize=None)(_wanted_value)


def kernel_value(kind: Kind, value: t.Any, word_bits: int) -> Value:
    """Return what the kernel makes of a value, wherever it is from.

    :raises Rejected: the kernel would not take it.
    """
    value = "" if value is None else value
    if kind.is_array:
        parts = value if isinstance(value, list) else _text(value).split(",")
        elements = _elements(kind, parts, word_bits)
        result = Value(
            ",".join(element.text for element in elements),
            [element.key for element in elements],
            [element.shown for element in elements],
        )
    elif isinstance(value, (list, dict)):
        raise Rejected(f"takes one value, not a {'list' if isinstance(value, list) else 'dictionary'}")
    else:
        result = _scalar(kind.word, _text(value), word_bits)
        if kind.word == "string" and kind.limit is not None and _bytes(result.text) > kind.limit:
            raise Rejected(f"takes a text of at most {kind.limit} bytes")
    if _bytes(result.text) > MAX_BYTES:
        raise Rejected(f"takes a value of at most {MAX_BYTES} bytes, which is what one write holds")
    return result


def read_value(kind: Kind, text: str, word_bits: int) -> Value:
    """Return the value that a parameter's file in sysfs holds, to which the kernel has added a line end."""
    return parse_value(kind, _without_line_end(text), word_bits)


@functools.lru_cache(maxsize=None)
def parse_value(kind: Kind, value: str, word_bits: int) -> Value:
    """Return the value that a text says, in whole; text that does not fit the type is compared as it is."""
    if kind.element in _TEXTS and not kind.is_array:
        shown = None if kind.word == "charp" and value == _NULL_TEXT else value
        return Value(value, shown, shown)
    try:
        return kernel_value(kind, value, word_bits)
    except Rejected:
        return Value(value, value, value)


def same(kind: Kind, one: Value, other: Value) -> bool:
    """Tell whether two values are the same to the kernel.

    For a type without known rules numbers are compared as numbers (Y is 1), words without regard to case or outer
    white space.
    """
    if kind.word in ("opaque", "selector"):
        return bool(_loose(one.text) == _loose(other.text))
    return bool(one.key == other.key)


def is_in_effect(kind: Kind, now: Value, wanted: Value) -> bool:
    """Tell whether a running value is the wanted one; where an array was given in part, only that part counts."""
    if isinstance(now.key, list) and isinstance(wanted.key, list):
        return bool(now.key[: len(wanted.key)] == wanted.key)
    return same(kind, now, wanted)


def is_put_back(kind: Kind, now: Value, before: Value) -> bool:
    """Tell whether a value is the one before; a text that was never set (null) cannot be unset: empty is as good."""
    return same(kind, now, before) or (now.key in (None, "") and before.key in (None, ""))


def _is_boolean_word(value: t.Any) -> bool:
    """Tell whether a value is a boolean as a user may write it; what is no scalar is for others to refuse."""
    if value is None or isinstance(value, (list, dict)):
        return True
    return not isinstance(value, float) and _BOOLEAN_WORD.match(_text(value)) is not None


def _elements(kind: Kind, parts: t.Sequence[t.Any], word_bits: int) -> list[Value]:
    """Return the elements of an array (``param_array`` in the kernel's kernel/params.c).

    :raises Rejected: the list is empty or too long, or an element is not a value of the type.
    """
    if not parts:
        raise Rejected("takes at least one element")
    if kind.limit is not None and len(parts) > kind.limit:
        raise Rejected(f"takes at most {kind.limit} elements, not {len(parts)}")
    elements = []
    for number, part in enumerate(parts, 1):
        try:
            if part is None or isinstance(part, (list, dict)):
                raise Rejected("takes one value")
            if "," in _text(part):
                raise Rejected("takes a value without a comma")
            elements.append(_scalar(kind.element, _text(part), word_bits))
        except Rejected as error:
            raise Rejected(f"{error} as element {number}, not {part!r}", error.hint) from error
    return elements


def _bytes(text: str) -> int:
    """Return the length of a text in bytes, as the kernel counts it."""
    return len(text.encode("utf-8", "surrogateescape"))


def _scalar(word: str, text: str, word_bits: int) -> Value:
    if word in _BOOLEANS:
        return _boolean(word, text)
    ranges = _RANGES[word_bits]
    if word in ranges:
        return _integer(text, *ranges[word])
    if word == "selector":
        match = re.search(_SELECTOR, text)
        text = match.group(1) if match else text.strip()
    if word == "charp" and _bytes(text) > _CHARP_BYTES:
        raise Rejected(f"takes a text of at most {_CHARP_BYTES} bytes")
    if word == "charp" and text == _NULL_TEXT:
        return Value(text, None, None)
    number = _number(text) if word == "opaque" else None
    return Value(text, text, text if number is None else number)


def _boolean(word: str, text: str) -> Value:
    truth = {"y": True, "t": True, "e": True, "1": True, "n": False, "f": False, "d": False, "0": False}
    first = text[:1].lower()
    state = {"n": True, "f": False}.get(text[1:2].lower()) if first == "o" else truth.get(first)
    if state is None:
        raise Rejected(_TAKES_BOOLEAN)
    # Words differ between kernel versions; these two are understood by all.
    return Value(("1" if state else "0") if word == "bint" else ("Y" if state else "N"), state, state)


def _integer(text: str, low: int, high: int) -> Value:
    number = _number(text)
    # The kernel takes no sign for an unsigned type, not even that of -0.
    if number is None or not low <= number <= high or (low == 0 and text.startswith("-")):
        raise Rejected(f"takes a whole number from {low} to {high}", _number_hint(text))
    return Value(str(number), number, number)


def _number_hint(text: str) -> str | None:
    if _INTEGER.fullmatch(text):
        return None
    if text != text.strip():
        return "Remove the white space around the number."
    if re.fullmatch(r"[+-]?0[0-9]+", text):
        return "Write the number without its leading zero, which means octal."
    if text in ("Y", "N"):
        return "Write 1 or 0 instead of a boolean."
    return None


def _number(text: str) -> int | None:
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    digits = match.group(2)
    if len(digits.lstrip("0xX")) > _MOST_DIGITS:
        return None
    base = 16 if digits[:2].lower() == "0x" else 8 if digits.startswith("0") else 10
    return int(digits, base) * (-1 if match.group(1) == "-" else 1)


def _loose(text: str) -> t.Any:
    number = _number(text.strip())
    word = text.strip().casefold()
    return {"y": True, "n": False}.get(word, word) if number is None else number


def _text(value: t.Any) -> str:
    if isinstance(value, bool):
        return "Y" if value else "N"
    # Like every text in C, the kernel's ends at its first zero byte.
    return (value if isinstance(value, str) else str(value)).partition("\0")[0]


def _without_line_end(text: str) -> str:
    """Drop the one line end that the kernel prints after every value; one that was written stays."""
    return text[:-1] if text.endswith("\n") else text


def _ranges_of(word_bits: int) -> dict[str, tuple[int, int]]:
    signed = {"short": 16, "int": 32, "long": word_bits}
    unsigned = {"byte": 8, "ushort": 16, "uint": 32, "hexint": 32, "ulong": word_bits, "ullong": 64}
    ranges = {word: (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for word, bits in signed.items()}
    ranges.update({word: (0, (1 << bits) - 1) for word, bits in unsigned.items()})
    # Seen only as digits in sysfs: the kernel itself judges the range.
    ranges["number"] = (-(1 << 63), (1 << 64) - 1)
    return ranges


_RANGES = {word_bits: _ranges_of(word_bits) for word_bits in (32, 64)}
