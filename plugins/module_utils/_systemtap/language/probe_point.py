# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The grammar of SystemTap probe points (man stapprobes): text in, typed parts out.

Private to the collection. ``probe_syntax`` has the forms. This module parses them, with groups, wildcards and suffixes.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ..._core.errors import InvalidInput, nearest_names
from .probe_syntax import (
    UNITS,
    WILD,
    can_begin,
    first_words,
    following,
    has_double_star,
    is_alias,
    is_complete,
    is_synchronous,
)
from .tokens import number_value

# A "?" is the suffix "optional", never a wildcard of a word; in a string it is one.
_WORD = re.compile(r"[A-Za-z_*][A-Za-z0-9_*]*")
_NUMBER = re.compile(r"-?[0-9][0-9A-Za-z]*")
_STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_CONDITION = re.compile(r"if\s*\((.*)\)\s*$", re.DOTALL)
_PATTERN = re.compile(r"^(?P<symbol>[^@]*)(?:@(?P<source>[^:+]*)(?P<lines>[:+].*)?)?\Z")
_LINES = re.compile(r"^(?:\+\d+|:\*|:\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\Z")
_VARIANTS = ("return", "call", "inline", "exported", "callees", "callee", "label", "nearest", "absolute")
_LARGEST_GROUP = 1000
# tapset-timers.cxx: from 100 us to a day, for each unit; jiffies have a bound of their own.
_NANOSECONDS = {"ns": 1, "us": 1000, "ms": 1000_000, "s": 1000_000_000}
_LEAST_NANOSECONDS = 100_000
_MOST_NANOSECONDS = 86_400 * 1000_000_000
_MOST_JIFFIES = 1_000_000
_MOST_MAXACTIVE = 65_535
#: Why no probe at a place in a program can be used.
NO_USER_SPACE = (
    "probes at places in programs (function, statement, mark, plt) are not supported yet; process.begin, .end, "
    ".thread.begin, .thread.end and .syscall are"
)
_PLACES = frozenset(("function", "statement", "mark", "plt", "provider", "library"))


@dataclasses.dataclass(frozen=True)
class Part:
    """One dotted part of a probe point: its word and, where it has one, its argument (text or number)."""

    word: str
    argument: str | int | None = None

    @property
    def shape(self) -> str:
        if self.argument is None:
            return self.word
        return f"{self.word}({'string' if isinstance(self.argument, str) else 'number'})"


@dataclasses.dataclass(frozen=True)
class ProbePoint:
    """A probe point, taken apart.

    ``family`` is what kind of event it is: ``function``, ``statement``, ``kprobe``, ``tracepoint``, ``data``,
    ``timer``, ``begin``, ``end``, ``error``, ``never``, ``procfs``, ``perf``, ``netfilter``, ``xdp``, ``process``, or
    ``alias`` for what only a tapset knows. ``module`` is the kernel module's name (null: the kernel itself),
    ``symbol`` the function or event name or glob, ``source`` and ``lines`` the rest of ``name@file:line``.
    ``variant`` is ``call``, ``return``, ``inline``, ``exported``, ``callee``, ``callees``, ``label``, ``nearest``,
    ``absolute`` or null; ``target`` is what it names (the label, the callee). ``number`` is an order (``begin(-1)``) or
    an interval. ``synchronous`` tells whether the probe fires at a place in the code. ``optional`` is the suffix
    ``?``, ``sufficient`` ``!``.
    """

    text: str
    parts: tuple[Part, ...]
    family: str
    synchronous: bool
    module: str | None = None
    symbol: str | None = None
    source: str | None = None
    lines: str | None = None
    address: int | None = None
    variant: str | None = None
    target: str | None = None
    maxactive: int | None = None
    number: int | None = None
    condition: str | None = None
    optional: bool = False
    sufficient: bool = False

    @property
    def wild(self) -> bool:
        """Tell whether the symbol or the module is a pattern rather than one name."""
        names = (self.symbol or "", self.module or "")
        return any(WILD.search(name) is not None for name in names) or (self.family == "kprobe" and "{" in names[0])

    @property
    def is_in_program(self) -> bool:
        """Tell whether the point is a place in a program, as ``process("/bin/ls").function("main")`` is."""
        return self.family == "process" and any(part.word in _PLACES for part in self.parts)

    def argument(self, word: str) -> str | int | None:
        """Return the argument of a part, null where the point has no such part or no argument there."""
        return next((part.argument for part in self.parts if part.word == word), None)


def parse_probe_points(text: str) -> list[ProbePoint]:
    """Take a list ``A, B`` apart, each point that is a group ``{A, B}.C`` in the order of its product.

    :raises InvalidInput: with an empty option: one of them is not in the grammar, or there are more than 1000 points.
    """
    points = [parse_probe_point(single) for point in split_probe_points(text) for single in expand_groups(point)]
    if not points:
        raise InvalidInput("", text, "A probe point such as begin or kernel.trace(...) is needed")
    return points


def parse_probe_point(text: str) -> ProbePoint:
    """Take one probe point apart.

    :raises InvalidInput: with an empty option: it is not in the grammar.
    """
    scanner = _Scanner(text.strip())
    parts = scanner.parts()
    optional, sufficient, condition = scanner.suffix()
    words = [part.word for part in parts]
    _check_shape(text.strip(), parts, words)
    point = _describe(text.strip(), parts, words)
    return dataclasses.replace(point, optional=optional, sufficient=sufficient, condition=condition)


def split_probe_points(text: str) -> list[str]:
    """Split ``A, B`` at the commas that are not inside brackets, braces or strings."""
    points: list[str] = []
    begin = 0
    for index, letter, depth in _outside_strings(text):
        if letter == "," and depth == 0:
            points.append(text[begin:index].strip())
            begin = index + 1
    points.append(text[begin:].strip())
    return [point for point in points if point]


def expand_groups(text: str) -> list[str]:
    """Write ``{A, B}.C`` out as ``A.C`` and ``B.C`` (man stapprobes: brace expansion), groups within groups too.

    :raises InvalidInput: with an empty option: a brace is never closed, or there are more than 1000 points.
    """
    done: list[str] = []
    pending = [text]
    while pending:
        point = pending.pop(0)
        braces = [(index, letter, depth) for index, letter, depth in _outside_strings(point) if letter in "{}"]
        if not braces:
            done.append(point)
            continue
        begin, _letter, depth = braces[0]
        end = next((index for index, letter, level in braces if letter == "}" and level == depth - 1), None)
        inner = [] if end is None else split_probe_points(point[begin + 1 : end])
        if end is None or not inner:
            raise InvalidInput("", text, f"A group in braces is {'empty' if end else 'not closed'}")
        pending = [f"{point[:begin]}{one}{point[end + 1 :]}" for one in inner] + pending
        if len(done) + len(pending) > _LARGEST_GROUP:
            raise InvalidInput("", text, f"The groups stand for more than {_LARGEST_GROUP} probe points")
    return done


def _outside_strings(text: str) -> t.Iterator[tuple[int, str, int]]:
    """Yield each letter outside of strings with its place and the depth of brackets, that of the bracket after it."""
    depth = 0
    quoted = escaped = False
    for index, letter in enumerate(text):
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
            continue
        quoted = letter == '"'
        depth += (letter in "({[") - (letter in ")}]")
        yield index, letter, depth


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def _fail(self, problem: str) -> InvalidInput:
        return InvalidInput("", self._text, f"{problem} at column {self._at + 1}")

    def _blank(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1

    def _match(self, pattern: t.Pattern[str]) -> t.Match[str] | None:
        self._blank()
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def _skip(self, letter: str) -> bool:
        self._blank()
        if self._text.startswith(letter, self._at):
            self._at += len(letter)
            return True
        return False

    def parts(self) -> tuple[Part, ...]:
        parts = [self._part()]
        while self._skip("."):
            parts.append(self._part())
        return tuple(parts)

    def _part(self) -> Part:
        found = self._match(_WORD)
        if found is None:
            raise self._fail("A word such as kernel, module, kprobe, timer or begin is expected")
        word = found.group(0)
        if not self._skip("("):
            return Part(word)
        argument = self._argument(word)
        if not self._skip(")"):
            raise self._fail(f"A closing parenthesis is expected after the argument of {word}")
        return Part(word, argument)

    def _argument(self, word: str) -> str | int:
        texts = [found.group(1) for found in iter(lambda: self._match(_STRING), None)]
        if texts:
            return re.sub(r"\\(.)", r"\1", "".join(texts))
        self._blank()
        begin = self._at
        found = self._match(_NUMBER)
        value = number_value(found.group(0).lstrip("-")) if found else None
        if found is None or value is None:
            self._at = begin
            raise self._fail(f"The argument of {word}, a string in double quotes or a number, is expected")
        return value * (-1 if found.group(0).startswith("-") else 1)

    def suffix(self) -> tuple[bool, bool, str | None]:
        optional = self._skip("?")
        sufficient = not optional and self._skip("!")
        condition = self._match(_CONDITION)
        self._blank()
        if self._at != len(self._text):
            raise self._fail(f"The end of the probe point is expected instead of {self._text[self._at :]!r}")
        return optional, sufficient, condition.group(1).strip() if condition else None


def _check_shape(text: str, parts: tuple[Part, ...], words: t.Sequence[str]) -> None:
    if is_alias(words):
        return
    roots = first_words()
    if words[0] not in roots:
        problem = f"No kind of probe is called {words[0]!r}"
        raise InvalidInput("", text, problem, None, nearest_names(words[0], roots))
    shapes = [part.shape for part in parts]
    if has_double_star(shapes):
        return
    for index, part in enumerate(parts):
        if not can_begin(shapes[: index + 1]):
            raise _wrong_step(text, shapes[:index], part)
    if not is_complete(shapes):
        needed = ", ".join(following(shapes))
        problem = f"The probe point is not complete: {'.'.join(shapes)} needs one of {needed} after it"
        raise InvalidInput("", text, problem)


def _wrong_step(text: str, done: t.Sequence[str], part: Part) -> InvalidInput:
    allowed = following(done)
    words = list(dict.fromkeys(step.split("(")[0] for step in allowed))
    forms = [step for step in allowed if step.split("(")[0] == part.word]
    if forms and done:
        return InvalidInput("", text, f"The probe point contains {part.shape}, but the form is {' or '.join(forms)}")
    if not done:
        roots = sorted(step for step in following([]) if step.split("(")[0] == part.word)
        return InvalidInput("", text, f"The probe point begins with {part.shape}, but the form is {' or '.join(roots)}")
    can_follow = f"only {', '.join(allowed)} can" if allowed else "nothing can"
    problem = f"{part.word!r} cannot follow {'.'.join(done)}; {can_follow}"
    return InvalidInput("", text, problem, None, nearest_names(part.word, words))


def _family(words: t.Sequence[str]) -> str:
    if is_alias(words):
        return "alias"
    if words[0] in ("kernel", "module"):
        return next((word for word in ("function", "statement", "data", "xdp") if word in words), "tracepoint")
    return words[0]


def _describe(text: str, parts: tuple[Part, ...], words: t.Sequence[str]) -> ProbePoint:
    arguments = {part.word: part.argument for part in parts}
    family = _family(words)
    named = {"tracepoint": ("trace", "tracepoint"), "data": ("data",), "alias": ()}.get(
        family, ("function", "statement")
    )
    place = next((arguments[word] for word in named if word in arguments), None)
    symbol, source, lines = (place if isinstance(place, str) else None), None, None
    if symbol is not None and family not in ("tracepoint", "data"):
        symbol, source, lines = _split_pattern(text, symbol)
    variant = next((word for word in _VARIANTS if word in arguments), None)
    number = next((part.argument for part in parts if isinstance(part.argument, int)), None)
    point = ProbePoint(
        text=text,
        parts=parts,
        family=family,
        synchronous=is_synchronous(family),
        module=_text(arguments.get("module")),
        symbol=symbol,
        source=source,
        lines=lines,
        address=place if isinstance(place, int) else None,
        variant=variant,
        target=_text(arguments.get("callee", arguments.get("label"))),
        maxactive=_number(arguments.get("maxactive")),
        number=number if family in ("begin", "end", "error", "timer") else None,
    )
    _check_values(point)
    return point


def _text(argument: str | int | None) -> str | None:
    return argument if isinstance(argument, str) else None


def _number(argument: str | int | None) -> int | None:
    return argument if isinstance(argument, int) else None


def _check_values(point: ProbePoint) -> None:
    """Refuse a number that stap refuses wherever the script is built."""
    if point.family == "timer":
        _check_timer(point)
    least = {"maxsize": 1, "sample": 1, "hz": 1, "maxactive": 0}
    for part in point.parts:
        if part.word in least and isinstance(part.argument, int) and part.argument < least[part.word]:
            raise InvalidInput("", point.text, f"The number of {part.word} must be {least[part.word]} or more")
    if (point.maxactive or 0) > _MOST_MAXACTIVE:
        raise InvalidInput("", point.text, f"The number of maxactive must be {_MOST_MAXACTIVE} or less")


def _check_timer(point: ProbePoint) -> None:
    unit = next((part.word for part in point.parts if part.word in UNITS), None)
    spread = point.argument("randomize")
    if unit is None or point.number is None:
        return
    least, most = 1, _MOST_JIFFIES
    if unit != "jiffies":
        one = _NANOSECONDS[unit.replace("ec", "")]
        least, most = -(-_LEAST_NANOSECONDS // one), _MOST_NANOSECONDS // one
    if not least <= point.number <= most:
        raise InvalidInput("", point.text, f"The interval must be from {least} to {most} {unit}")
    if isinstance(spread, int) and not 0 <= spread <= point.number:
        raise InvalidInput("", point.text, f"The number of randomize must be from 0 to the interval, {point.number}")


def _split_pattern(text: str, pattern: str) -> tuple[str, str | None, str | None]:
    """Split ``name@file:line`` (tapsets.cxx, parse_function_spec); lines are ``:N``, ``+N``, ``:*``, ``:N-M,K``."""
    found = _PATTERN.match(pattern)
    if found is None or not found.group("symbol") or found.group("source") == "":
        raise InvalidInput(
            "", text, 'A name such as "vfs_read" or "vfs_read@fs/read_write.c:450" is needed in double quotes'
        )
    lines = found.group("lines")
    if lines is not None and not _LINES.match(lines):
        problem = f"The lines {lines!r} must have the form :LINE, +OFFSET, :*, :FROM-TO or a list such as :10,12-15"
        raise InvalidInput("", text, problem)
    return found.group("symbol"), found.group("source"), lines
