# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors that the grammar allows and that no kernel, tapset or compiler is needed for.

Private to the collection. SystemTap's analysis (pass 2) refuses nearly all of them, minutes later and on the builder.
Code that stap never analyses is not judged: aliases, functions that no probe calls, optional probe points.
"""

from __future__ import annotations

import bisect
import collections
import re
import typing as t

from ..._core.errors import InvalidInput, nearest_names
from ..language.expressions import ARRAY_EXPECTED, NO_VALUE, STATISTICS, shown, similar
from ..language.grammar import Body, Parsed, Point
from ..language.probe_point import NO_USER_SPACE, ProbePoint, expand_groups, parse_probe_point
from ..language.tokens import KEYWORDS, ScriptError, Token

# They fire at no function, so nothing there has a $variable; and they exist on every kernel, even as optional points.
_NOWHERE = frozenset(("begin", "end", "error", "never", "timer"))
_IN_KERNEL = frozenset(("function", "statement", "tracepoint"))
# The operators beside which a $variable that does not exist is an error. @defined and macros may leave it out.
_STRICT = frozenset(("@cast", "@entry", "@var", "@hist_linear", "@hist_log")) | STATISTICS
# Arrays of the tapset that scripts may use (release 5.6); names of its others begin with an underscore.
_TAPSET_ARRAYS = frozenset(
    "ActiveOpens AttemptFails CurrEstab DelayedACKs EstabResets ForwDatagrams FragFails FragOKs InAddrErrors "
    "InDiscards InNoRoutes InReceives InSegs InUnknownProtos ListenDrops ListenOverflows OutRequests OutRsts OutSegs "
    "PassiveOpens ReasmReqds ReasmTimeout RetransSegs TCPMemoryPressures argv cve_metrics qs_dcount qs_rcount "
    "qs_rlentime qs_rtime qs_stime qs_utime qs_wcount qs_wlentime qs_wtime sockstate".split()
)
# What prints: stap leaves no such call out. It leaves out what has no effect, with the variables in it.
_PRINTS = frozenset("print println printd printdln printf print_char log warn error".split())
_GIVES = frozenset(("=", "<<<", "+=", ".="))
# Functions of the tapset without arguments that are called for their effect.
_COMMANDS = frozenset(
    "abort exit print_backtrace print_backtrace_fileline print_regs print_ubacktrace print_ubacktrace_brief "
    "print_ubacktrace_fileline".split()
)
_ELSE_IF = frozenset(("elif", "elsif", "elseif"))
# Keywords that a misspelt name may stand for: before a block, and as a statement of their own.
_BEFORE_BLOCK = ("if", "else", "for", "foreach", "while", "try", "catch")
_ALONE = ("else", "return", "delete", "break", "continue", "next", "try")
_OPTIONAL = re.compile(r"[?!]\s*(?:if\s*\(.*\)\s*)?\Z", re.DOTALL)
# What Jinja replaces. The language has "{{" as two blocks and as a group of groups of probe points, and "{%{" and "{%("
# as a block with embedded C or a conditional.
_TEMPLATE = re.compile(r"\{\{(?:[^{}]|\{[^{}]*\})*\}\}|\{%[-+]?\s*[a-z].*?%\}|\{#.*?#\}")
# What has no effect as two blocks, or calls the function "default", which no tapset has.
_TEMPLATE_NAME = re.compile(
    rf"\{{\{{-?\s*(?!(?:{'|'.join(sorted(KEYWORDS))})\b)[A-Za-z_]\w*(?:\.\w+|\[[\w\s'\"]*\])*\s*"
    r"(?:\|\s*(?:default\([^()]*\)|[A-Za-z_]\w*)\s*)*\}\}"
)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')


def template_error(name: str, text: str, error: ScriptError) -> ScriptError | None:
    """Return the error of a template that was not rendered, where ``error`` is within ``{{ }}`` or ``{% %}``."""
    line = text.split("\n")[error.line - 1 : error.line]
    for found in _TEMPLATE.finditer("".join(line)):
        if found.start() < error.column <= found.end():
            return _left_over(name, error.line, found.start() + 1, found.group(0))
    return None


def _left_over(name: str, line: int, column: int, text: str) -> ScriptError:
    shown = text if len(text) <= 60 else text[:60] + "..."
    problem = f"{shown} belongs to a template that was not rendered; stap_script renders the file of its option src"
    return ScriptError(name, line, column, problem)


def check_semantics(
    name: str, text: str, parsed: Parsed, declared: t.Collection[str], guru: bool, tapset: t.Collection[str] | None = ()
) -> None:
    """Refuse what stap's analysis refuses whatever the kernel is, at the first place in the script.

    :param text: the script, which ``parsed`` came from.
    :param declared: the names of the script's global variables, those of all branches.
    :param tapset: the names of the global variables of own tapsets; None where these are not known.
    :raises ScriptError: a probe in a program, an array that is not declared, a variable of the kernel where there is
        none or that is written to without guru mode, ``exit`` without parentheses, ``elif``, or a left-over template;
        or as ``check_reading``.
    """
    checker = _Checker(name, parsed, declared, guru, tapset)
    _raise_first(
        [
            *checker.templates(text),
            *checker.points(),
            *(error for body in checker.live() for error in checker.body(body)),
            *checker.misread(),
        ]
    )


def check_reading(name: str, parsed: Parsed) -> None:
    """Refuse what stap's parser accepts because it reads it as something else, anywhere in a script or a tapset.

    :raises ScriptError: a misspelt keyword that reads as a name, an operator in the place of an array, or ``[*]`` where
        nothing is indexed.
    """
    _raise_first(list(_Checker(name, parsed, (), guru=True).misread()))


def _raise_first(found: t.Sequence[ScriptError]) -> None:
    if found:
        raise min(found, key=lambda error: (error.line, error.column))


class _Checker:
    def __init__(
        self,
        name: str,
        parsed: Parsed,
        declared: t.Collection[str],
        guru: bool,
        tapset: t.Collection[str] | None = (),
    ) -> None:
        self._name = name
        self._parsed = parsed
        self._tokens = parsed.tokens
        self._declared = declared
        self._guru = guru
        self._functions: dict[str, list[Body]] = {}
        for body in parsed.bodies:
            if body.name is not None:
                self._functions.setdefault(body.name, []).append(body)
        # An alias of an own tapset: that tapset may declare arrays too.
        own_alias = any(not _parse(point) and point.text not in parsed.aliases for point in parsed.points)
        self._has_unknown_tapset = own_alias or tapset is None
        self._tapset_arrays = _TAPSET_ARRAYS.union(tapset or ())
        # What stap removes before it asks whether a $variable exists (elaborate.cxx, dead_control_remover).
        self._unreachable = {at for begin, end in parsed.uses.unreachable for at in range(begin, end)}
        # Targets within a target are noted before it.
        self._writes = sorted(parsed.uses.writes)

    def _error(self, at: int | Point, problem: str, candidates: t.Sequence[str] = ()) -> ScriptError:
        place: Token | Point = self._tokens[at] if isinstance(at, int) else at
        return ScriptError(self._name, place.line, place.column, problem, candidates)

    def templates(self, text: str) -> t.Iterator[ScriptError]:
        """Yield the errors of ``{{ name }}``, which the language reads as two blocks."""
        lines = text.split("\n")
        for at, token in enumerate(self._tokens[:-1]):
            if token.text == "{" and self._tokens[at + 1].text == "{" and self._tokens[at + 1].glued:
                found = _TEMPLATE_NAME.match(lines[token.line - 1], token.column - 1)
                if found is not None:
                    yield _left_over(self._name, token.line, token.column, found.group(0))

    def points(self) -> t.Iterator[ScriptError]:
        """Yield the errors of probe points."""
        for point in self._parsed.points:
            # Outside of strings, braces are groups of points.
            left = next(filter(None, map(_TEMPLATE.search, _STRING.findall(point.text))), None)
            if left is not None:
                yield _left_over(self._name, point.line, point.column, left.group(0))
            elif any(single.is_in_program for single in _parse(point)):
                yield self._error(point, f"{NO_USER_SPACE[0].upper()}{NO_USER_SPACE[1:]}")

    def misread(self) -> t.Iterator[ScriptError]:
        """Yield the errors of what stap's parser takes for something else, in every part of the script."""
        uses = self._parsed.uses
        for at in uses.operators:
            yield self._error(at, f"{shown(self._tokens[at])} was found where {ARRAY_EXPECTED} is expected")
        for at in uses.empty:
            yield self._error(at, NO_VALUE)
        times = collections.Counter(token.text for token in self._tokens if token.kind == "word")
        for places, keywords in ((uses.alone, _ALONE), (uses.blocks, _BEFORE_BLOCK)):
            for at in places:
                name = self._tokens[at].text
                candidates = _misspelt(name, keywords) if times[name] == 1 else []
                if candidates:
                    yield self._error(at, f"No statement begins with {name!r}", candidates)

    def live(self) -> list[Body]:
        """Return the bodies that stap analyses on every kernel: of probes that exist, and of functions they call."""
        found = [body for body in self._parsed.bodies if any(_is_certain(point) for point in body.points)]
        waiting = {name for body in found for name in self._calls(body)}
        called: set[str] = set()
        while waiting:
            name = waiting.pop()
            called.add(name)
            found += self._functions[name]
            waiting |= {other for body in self._functions[name] for other in self._calls(body)} - called
        return found

    def _calls(self, body: Body) -> set[str]:
        return {
            self._tokens[at].text
            for at in range(body.begin, body.end - 1)
            if self._tokens[at].text in self._functions and self._tokens[at + 1].text == "("
        }

    def body(self, body: Body) -> t.Iterator[ScriptError]:
        """Yield the errors in the body of a probe or a function, the first one of each kind."""
        uses = self._parsed.uses
        for at in _first(uses.arrays, body, self._is_undeclared):
            name = self._tokens[at].text
            problem = f"The array {name} is not declared; declare it outside of the probes: global {name}"
            yield self._error(at, problem, nearest_names(name, self._declared))
        values = self._names_with_values(body)
        for at in _first(uses.alone, body, lambda at: self._is_lost_call(self._tokens[at].text, values)):
            name = self._tokens[at].text
            problem = f"{name} without parentheses calls no function and has no effect"
            yield self._error(at, problem, [f"{name}()"])
        for at in _first(uses.blocks, body, lambda at: self._is_else_if(self._tokens[at].text)):
            yield self._error(at, f"The language has no {self._tokens[at].text!r}", ["else if"])
        families = {single.family for point in body.points if _is_certain(point) for single in _parse(point)}
        if families & _NOWHERE and self._is_strict(body):
            variable = self._variable_nowhere(body)
            if variable is not None:
                first, *_others = (point for point in body.points if {one.family for one in _parse(point)} & _NOWHERE)
                name = self._tokens[variable].text
                yield self._error(
                    variable, f"{name} does not exist in the probe {first.text}, which fires at no function"
                )
        elif families & _IN_KERNEL and not self._guru and self._is_strict(body):
            for at in _first(self._writes, body, self._is_analysed_write):
                what = self._tokens[at].text
                what = what if what.startswith("$") else f"{what}(...)"
                problem = f"The script writes to {what}, which is memory of the kernel and needs guru mode"
                yield self._error(at, f"{problem} (guru and guru_reason)")

    def _is_undeclared(self, at: int) -> bool:
        name = self._tokens[at].text
        if self._has_unknown_tapset:
            return False
        return name not in self._declared and name not in self._tapset_arrays and not name.startswith(("_", "$"))

    def _names_with_values(self, body: Body) -> set[str]:
        """Return the names in a body that something other than ``;``, ``}`` and ``(`` follows: they are variables."""
        tokens = self._tokens
        return {
            tokens[at].text
            for at in range(body.begin, body.end - 1)
            if tokens[at].is_name and tokens[at + 1].kind == "operator" and tokens[at + 1].text not in (";", "}", "(")
        }

    def _is_lost_call(self, name: str, values: t.Container[str]) -> bool:
        known = name in _COMMANDS or name in self._functions
        return known and name not in self._declared and name not in values

    def _is_else_if(self, name: str) -> bool:
        return name in _ELSE_IF and name not in self._functions

    def _is_strict(self, body: Body) -> bool:
        """Tell whether every variable of a body has to exist: nothing in it can be left out by a condition."""
        tokens = self._tokens
        return not any(
            (token.kind == "at" and token.text not in _STRICT)
            or (
                token.text in ("if", "while", "?")
                and any(near.kind in ("number", "string") for near in tokens[at - 1 : at + 4])
            )
            for at, token in enumerate(tokens[body.begin : body.end], body.begin)
        )

    def _variable_nowhere(self, body: Body) -> int | None:
        """Return the first variable of a probed function that is printed, or stored in a global or a printed name."""
        tokens = self._tokens
        printed = self._printed(body)
        names = {tokens[at].text for at in printed if tokens[at].is_name}
        for at in self._reachable(body):
            token, giver = tokens[at], tokens[at - 2].text
            if token.kind == "word" and token.text.startswith("$") and token.text.strip("$"):
                given = tokens[at - 1].text in _GIVES and (giver in self._declared or giver in names)
                if given or at in printed:
                    return at
        return None

    def _is_analysed_write(self, at: int) -> bool:
        # stap refuses to write to @cast at once, and to a $variable only where that is left in the end (tapsets.cxx).
        return at not in self._unreachable or self._tokens[at].text == "@cast"

    def _reachable(self, body: Body) -> t.Iterator[int]:
        return (at for at in range(body.begin, body.end) if at not in self._unreachable)

    def _printed(self, body: Body) -> set[int]:
        """Return the tokens of a body that are arguments of what prints."""
        found: set[int] = set()
        opened: list[bool] = []
        for at in self._reachable(body):
            text = self._tokens[at].text if self._tokens[at].kind == "operator" else ""
            if text == "(":
                opened.append(self._tokens[at - 1].text in _PRINTS or any(opened[-1:]))
            elif text == ")":
                opened.pop()
            if opened and opened[-1]:
                found.add(at)
        return found


def _misspelt(text: str, words: t.Sequence[str]) -> list[str]:
    """Return the keyword that a name misspells: the same characters in another order, or nearly equal."""
    return [word for word in words if sorted(word) == sorted(text)][:1] or similar(text, words, least=0.78)


def _first(indexes: t.Sequence[int], body: Body, accept: t.Callable[[int], bool]) -> list[int]:
    """Return the first of sorted indexes that lies in a body and is accepted, in a list, or an empty one."""
    begin, end = bisect.bisect_left(indexes, body.begin), bisect.bisect_left(indexes, body.end)
    return next(([at] for at in indexes[begin:end] if accept(at)), [])


def _parse(point: Point) -> list[ProbePoint]:
    """Return the probe points that one stands for; none where only some tapset knows it."""
    try:
        return [parse_probe_point(single) for single in expand_groups(point.text)]
    except InvalidInput:
        return []


def _is_certain(point: Point) -> bool:
    """Tell whether a probe point is there on every kernel, or else an error."""
    if point.group:
        return False
    if any(single.family in _NOWHERE for single in _parse(point)):
        return True
    return _OPTIONAL.search(point.text) is None
