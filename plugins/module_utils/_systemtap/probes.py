# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The grammar of SystemTap probe points (man stapprobes): text in, typed parts out.

Private to the collection. The shapes are those that ``stap --dump-probe-types`` of release 5.6 lists for the kernel;
probes in user-space programs (``process``) and tapset aliases are recognised by their first word only.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core.errors import InvalidInput, nearest_names

_SUFFIXES_OF_FUNCTION = ("", ".call", ".exported", ".return", ".return.maxactive(number)")
_SUFFIXES_OF_NAMED_FUNCTION = (
    ".inline",
    ".callees",
    ".callees(number)",
    ".callee(string)",
    ".callee(string).call",
    ".callee(string).return",
    ".label(string)",
)
_UNITS = ("jiffies", "ms", "msec", "ns", "nsec", "s", "sec", "us", "usec")

# First words of the aliases in SystemTap's own tapset (stap --dump-probe-aliases), and of user-space probes. What
# follows them is known to the builder only.
_OPEN_FAMILIES = frozenset(
    "dw_kprocess dw_syscall generic init input ioblock ioblock_trace ioscheduler ioscheduler_trace ipmib irq_handler "
    "java json_data kprocess linuxmib nd1_syscall nd2_syscall nd_syscall netdev netfilter nfs nfsd nfsderr oneshot "
    "process prometheus python2 python3 scheduler scsi signal socket softirq stap staprun sunrpc syscall syscall_any "
    "tcp tcpmib tp_kprocess tp_syscall tty udp vfs vm workqueue".split()
)
# Aliases of the tapset that begin with the word of another kind of probe.
_ALIASES_OF_PERF = frozenset(("hw", "sw"))
# Names that look like identifiers but stand for many.
_WILD = re.compile(r"[*?\[]")
_IDENTIFIER = re.compile(r"[A-Za-z_*?][A-Za-z0-9_*?]*")
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|[0-9]+)")
_STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_PATTERN = re.compile(r"^(?P<symbol>[^@]*)(?:@(?P<source>[^:+]*)(?P<lines>(?::|\+).*)?)?$")
_LINES = re.compile(r"^(?::\d+|\+\d+|:\*|:\d+-\d+)$")


def _shapes() -> list[str]:
    shapes = ["never", "timer.hz(number)", "timer.profile", "timer.profile.tick", "timer.profile.freq.hz(number)"]
    for place in ("kernel", "module(string)"):
        shapes += _function_shapes(place)
    shapes += ["kernel.statement(number).absolute", "kprobe.statement(number).absolute", "kernel.trace(string)"]
    shapes += [place + argument for place in ("kernel.xdp", "xdp") for argument in ("", "(string)")]
    for data in ("kernel.data(string)", "kernel.data(number)", "kernel.data(number).length(number)"):
        shapes += [data + ".rw", data + ".write"]
    for place in ("kprobe.function(string)", "kprobe.module(string).function(string)"):
        shapes += [place + suffix for suffix in _SUFFIXES_OF_FUNCTION if suffix != ".exported"]
    shapes += [word + argument for word in ("begin", "end", "error") for argument in ("", "(number)")]
    for unit in _UNITS:
        shapes += ["timer.{0}(number)".format(unit), "timer.{0}(number).randomize(number)".format(unit)]
    for name in ("procfs", "procfs(string)", "procfs.umask(number)", "procfs(string).umask(number)"):
        shapes += [name + ".read", name + ".read.maxsize(number)", name + ".write"]
    counter = "perf.type(number).config(number)"
    ends = ("", ".sample(number)", ".hz(number)", ".counter(string)", ".process", ".process(string)")
    return shapes + [counter + end for end in (*ends, ".process(string).counter(string)")]


def _function_shapes(place: str) -> list[str]:
    shapes = [place + ".tracepoint(string)"]
    for argument in ("string", "number"):
        function = "{0}.function({1})".format(place, argument)
        statement = "{0}.statement({1})".format(place, argument)
        shapes += [function + suffix for suffix in _SUFFIXES_OF_FUNCTION]
        shapes += [statement, statement + ".nearest"]
    return shapes + [place + ".function(string)" + suffix for suffix in _SUFFIXES_OF_NAMED_FUNCTION]


SHAPES = tuple(_shapes())
_ASYNCHRONOUS = frozenset(("begin", "end", "error", "timer", "never", "procfs"))


@dataclasses.dataclass(frozen=True)
class Part:
    """One dotted part of a probe point: its word and, where it has one, its argument (text or number)."""

    word: str
    argument: str | int | None = None

    @property
    def shape(self) -> str:
        if self.argument is None:
            return self.word
        return "{0}({1})".format(self.word, "string" if isinstance(self.argument, str) else "number")


@dataclasses.dataclass(frozen=True)
class ProbePoint:
    """A probe point, taken apart.

    ``family`` is what kind of event it is: ``function``, ``statement``, ``kprobe``, ``tracepoint``, ``data``,
    ``timer``, ``begin``, ``end``, ``error``, ``never``, ``procfs``, ``perf``, ``xdp``, or ``alias`` for what only a
    tapset knows. ``module`` is the kernel module's name (null: the kernel itself), ``symbol`` the function or event
    name or glob, ``source`` and ``lines`` the rest of ``name@file:line``. ``variant`` is ``call``, ``return``,
    ``inline``, ``exported``, ``callee``, ``callees``, ``label``, ``nearest``, ``absolute`` or null. ``synchronous``
    tells whether the probe fires at a place in the code. ``optional`` is the suffix ``?``, ``sufficient`` ``!``.
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
    maxactive: int | None = None
    condition: str | None = None
    optional: bool = False
    sufficient: bool = False

    @property
    def wild(self) -> bool:
        """Tell whether the symbol or the module is a pattern rather than one name."""
        return any(_WILD.search(name) is not None for name in (self.symbol or "", self.module or ""))


def parse_probe_point(text: str) -> ProbePoint:
    """Take one probe point apart.

    :raises InvalidInput: it is not in the grammar; the message says where, and names the nearest right word.
    """
    scanner = _Scanner(text.strip())
    parts = scanner.parts()
    optional, sufficient, condition = scanner.suffix()
    _check_shape(text, parts)
    return _describe(text.strip(), parts, optional, sufficient, condition)


def split_probe_points(text: str) -> list[str]:
    """Split ``A, B`` at the commas that are not inside brackets, braces or strings."""
    points: list[str] = []
    depth = 0
    begin = 0
    quoted = False
    for index, letter in enumerate(text):
        if quoted:
            quoted = letter != '"' or text[index - 1] == "\\"
        elif letter == '"':
            quoted = True
        elif letter in "({[":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        elif letter == "," and depth == 0:
            points.append(text[begin:index].strip())
            begin = index + 1
    points.append(text[begin:].strip())
    return [point for point in points if point]


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def _fail(self, rule: str, nearest: t.Sequence[str] = ()) -> InvalidInput:
        return InvalidInput("probe", self._text, "{0} (column {1})".format(rule, self._at + 1), nearest)

    def _blank(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1

    def _match(self, pattern: t.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found.group(0)

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
        self._blank()
        word = self._match(_IDENTIFIER)
        if word is None:
            raise self._fail("needs a word here, such as kernel, module, kprobe, timer or begin")
        # A last "?" is the suffix "optional", not a wildcard.
        if word.endswith("?") and self._at == len(self._text):
            word = word[:-1]
            self._at -= 1
        if not self._skip("("):
            return Part(word)
        self._blank()
        argument: str | int
        string = _STRING.match(self._text, self._at)
        if string is not None:
            self._at = string.end()
            argument = re.sub(r"\\(.)", r"\1", string.group(1))
        else:
            number = self._match(_NUMBER)
            if number is None:
                raise self._fail('needs a "string" in double quotes or a number as the argument of {0}'.format(word))
            argument = int(number, 16 if "x" in number.lower() else 10)
        if not self._skip(")"):
            raise self._fail("needs a closing parenthesis after the argument of {0}".format(word))
        return Part(word, argument)

    def suffix(self) -> tuple[bool, bool, str | None]:
        optional = self._skip("?")
        sufficient = not optional and self._skip("!")
        self._blank()
        condition = None
        found = re.compile(r"if\s*\((.*)\)\s*$", re.DOTALL).match(self._text, self._at)
        if found is not None:
            condition = found.group(1).strip()
            self._at = found.end()
        self._blank()
        if self._at != len(self._text):
            raise self._fail("has {0!r} left over after the probe point".format(self._text[self._at :]))
        return optional, sufficient, condition


def _check_shape(text: str, parts: tuple[Part, ...]) -> None:
    first = parts[0].word
    if _is_alias(parts):
        return
    roots = first_words()
    if first not in roots:
        raise InvalidInput(
            "probe",
            text.strip(),
            "begins with {0!r}, which is no kind of probe".format(first),
            nearest_names(first, roots),
        )
    done = ""
    for part in parts:
        step = (done + "." if done else "") + part.shape
        if not any(shape == step or shape.startswith(step + ".") for shape in SHAPES):
            raise _wrong_step(text.strip(), done, part)
        done = step
    if done not in SHAPES:
        raise InvalidInput(
            "probe",
            text.strip(),
            "is not complete: {0} must be followed by one of {1}".format(done, ", ".join(_following(done))),
        )


def _is_alias(parts: tuple[Part, ...]) -> bool:
    first = parts[0].word
    second = parts[1].word if len(parts) > 1 else None
    return (
        first in _OPEN_FAMILIES or _WILD.search(first) is not None or (first == "perf" and second in _ALIASES_OF_PERF)
    )


def first_words() -> list[str]:
    """Return the words that a probe point can begin with, as far as SystemTap itself comes with them."""
    return sorted({shape.split(".")[0].split("(")[0] for shape in SHAPES} | _OPEN_FAMILIES)


def _following(done: str) -> list[str]:
    begin = done + "." if done else ""
    return sorted({shape[len(begin) :].split(".")[0] for shape in SHAPES if shape.startswith(begin)})


def _wrong_step(text: str, done: str, part: Part) -> InvalidInput:
    following = _following(done)
    words = [step.split("(")[0] for step in following]
    if part.word in words:
        forms = [step for step in following if step.split("(")[0] == part.word]
        return InvalidInput("probe", text, "has {0} where the form is {1}".format(part.shape, " or ".join(forms)))
    return InvalidInput(
        "probe",
        text,
        "has .{0} after {1}, where only {2} can follow".format(part.word, done, ", ".join(following) or "nothing")
        if done
        else "begins with {0}, which needs an argument: {1}".format(part.word, ", ".join(following)),
        nearest_names(part.word, words),
    )


def _describe(
    text: str, parts: tuple[Part, ...], optional: bool, sufficient: bool, condition: str | None
) -> ProbePoint:
    words = {part.word: part.argument for part in parts}
    first = parts[0].word
    family = first
    if _is_alias(parts):
        family = "alias"
    elif first in ("kernel", "module", "kprobe"):
        family = next((word for word in ("function", "statement", "data", "xdp") if word in words), "tracepoint")
        family = "kprobe" if first == "kprobe" else family
    place = words.get("function", words.get("statement"))
    if family == "tracepoint":
        place = words.get("trace", words.get("tracepoint"))
    elif family == "data":
        place = words.get("data")
    symbol, source, lines = _split_pattern(text, place) if isinstance(place, str) else (None, None, None)
    module = words.get("module")
    maxactive = words.get("maxactive")
    variants = ("return", "call", "inline", "exported", "callees", "callee", "label", "nearest", "absolute")
    return ProbePoint(
        text=text,
        parts=parts,
        family=family,
        synchronous=family not in _ASYNCHRONOUS,
        module=module if isinstance(module, str) else None,
        symbol=symbol,
        source=source,
        lines=lines,
        address=place if isinstance(place, int) else None,
        variant=next((word for word in variants if word in words), None),
        maxactive=maxactive if isinstance(maxactive, int) else None,
        condition=condition,
        optional=optional,
        sufficient=sufficient,
    )


def _split_pattern(text: str, pattern: str) -> tuple[str | None, str | None, str | None]:
    """Split ``name@file:line`` (man stapprobes, DWARF probes): ``:N``, ``+N``, ``:*`` or ``:N-M`` after the file."""
    found = _PATTERN.match(pattern)
    if found is None or not found.group("symbol"):
        raise InvalidInput("probe", text, 'needs a name in quotes, as in "vfs_read" or "vfs_read@fs/read_write.c:450"')
    lines = found.group("lines")
    if lines is not None and not _LINES.match(lines):
        raise InvalidInput(
            "probe", text, "has the line form {0!r}; right are :LINE, +OFFSET, :* and :FROM-TO".format(lines)
        )
    return found.group("symbol"), found.group("source"), lines
