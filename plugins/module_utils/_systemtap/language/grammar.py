# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The grammar of SystemTap scripts: whether a text is one, and where it is not.

Private to the collection. The verdict is that of ``stap -p1`` (release 5.6, parse.cxx), without SystemTap, in linear
time and bounded depth. Beyond it, a printf whose values are not as many as its format takes is refused here, as the
next pass of stap does.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .expressions import STATISTICS, Expressions, Uses
from .preprocessor import Target, expand
from .tokens import ScriptError, Token, tokenize

_PAIRS = {")": "(", "]": "[", "}": "{"}
_TOP = ("probe", "global", "private", "function")
_LEAVING = ("next", "return", "break", "continue")
_LARGEST_ARRAY = (1 << 31) - 1


@dataclasses.dataclass(frozen=True)
class Point:
    """One probe point as it is written, without comments, and where it begins. ``group``: it holds ``{A, B}``."""

    text: str
    line: int
    column: int
    group: bool


@dataclasses.dataclass(frozen=True)
class Body:
    """The block of a probe or of a function, from token ``begin`` to before ``end``.

    ``points`` are those of the probe; a function has none, and a ``name``.
    """

    begin: int
    end: int
    points: tuple[Point, ...] = ()
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A script that is one: its tokens with macros expanded and branches chosen, its probes, the names of its aliases.

    ``points`` are all probe points, those of aliases too; ``probes`` the probes, each with its points as one text;
    ``bodies`` the blocks of probes and functions, without those of aliases.
    """

    tokens: tuple[Token, ...]
    points: tuple[Point, ...]
    probes: tuple[str, ...]
    aliases: frozenset[str]
    bodies: tuple[Body, ...]
    uses: Uses


def parse(name: str, text: str, guru: bool, target: Target | None = None) -> Parsed:
    """Check that a text is a script, as far as that can be told without a kernel and a tapset.

    :param target: what conditionals are evaluated for. Without it, as ``stap -p1`` does for an x86_64 kernel 6.12
        without a configuration.

    :raises ScriptError: the text is not a script; it names the place, what was found there and what is expected.
    """
    tokens = tokenize(text)
    comment = tokens.pop() if tokens and tokens[-1].kind == "open_comment" else None
    try:
        return _parse(name, tokens, guru, target or Target(guru=guru))
    except ScriptError:
        if comment is not None:
            raise ScriptError(name, comment.line, comment.column, "The comment is not closed") from None
        raise


def _parse(name: str, tokens: t.Sequence[Token], guru: bool, target: Target) -> Parsed:
    expanded = expand(name, tokens, target)
    if not expanded:
        raise ScriptError(name, 1, 1, "The script is empty")
    try:
        return _Grammar(name, expanded, guru).script()
    except ScriptError:
        _check_balance(name, expanded)
        raise


def _check_balance(name: str, tokens: t.Sequence[Token]) -> None:
    """Raise the error of a bracket without its partner: where that is wrong, another error is its consequence."""
    opened: list[Token] = []
    for token in tokens:
        if token.kind != "operator":
            continue
        if token.text in _PAIRS.values():
            opened.append(token)
        elif token.text in _PAIRS:
            if not opened or opened[-1].text != _PAIRS[token.text]:
                problem = (
                    f"{token.text!r} does not match the {opened[-1].text!r} of line {opened[-1].line}"
                    if opened
                    else f"{token.text!r} has no opening bracket"
                )
                raise ScriptError(name, token.line, token.column, problem)
            opened.pop()
    if opened:
        raise ScriptError(name, opened[-1].line, opened[-1].column, f"{opened[-1].text!r} is never closed")


class _Points(t.NamedTuple):
    """How many probe points were read, and what stands after any of them."""

    number: int
    optional: bool
    condition: bool


class _Grammar(Expressions):
    """Reads declarations and statements. Every method raises ScriptError where the script leaves the language."""

    def __init__(self, name: str, tokens: t.Sequence[Token], guru: bool) -> None:
        super().__init__(name, tokens, guru)
        self._globals: dict[str, bool] = {}
        self._in_function = False
        self._points_read: list[Point] = []
        self._probes: list[str] = []
        self._aliases: set[str] = set()
        self._bodies: list[Body] = []
        self._groups = 0

    def script(self) -> Parsed:
        while self._at < len(self._tokens):
            self._declaration()
        return Parsed(
            tokens=tuple(self._tokens),
            points=tuple(self._points_read),
            probes=tuple(self._probes),
            aliases=frozenset(self._aliases),
            bodies=tuple(self._bodies),
            uses=self._uses,
        )

    def _declaration(self) -> None:
        token = self._tokens[self._at]
        if token.kind == "embedded":
            self._need_guru("Embedded C", token)
            self._at += 1
        elif self._accept_keyword("probe"):
            self._probe()
        elif self._accept_keyword("global"):
            self._global(private=False)
        elif self._accept_keyword("function"):
            self._function()
        elif self._accept_keyword("private"):
            if self._accept_keyword("function"):
                self._function()
            else:
                self._accept_keyword("global")
                self._global(private=True)
        else:
            expected = "'probe', 'global', 'private', 'function' or '%{'"
            raise self._unexpected(expected, _TOP)

    def _global(self, private: bool) -> None:
        while True:
            name = self._expect_name("the name of a global variable")
            if name.text in self._globals:
                same = self._globals[name.text] == private
                problem = f"The global variable {name.text} is declared twice{'' if same else ', once as private'}"
                raise self._fail(problem, name)
            self._globals[name.text] = private
            self._accept("%")
            sized = self._accept("[")
            if sized:
                place = self._peek()
                size = self._number("the size of an array")
                if not 0 < size <= _LARGEST_ARRAY:
                    raise self._fail(f"The size of an array must be from 1 to {_LARGEST_ARRAY}", place)
                self._expect("]", "after the size of an array")
            if self._sees("="):
                if sized:
                    raise self._fail("An array cannot have an initial value; only a single variable can")
                self._at += 1
                self._literal("a number or a string")
            if not self._accept(","):
                self._accept(";")
                return

    def _function(self) -> None:
        token = self._peek()
        if token is not None and token.kind == "word" and token.text in ("string", "long"):
            self._at += 1
        else:
            self._expect_name("the name of a function")
        named = self._tokens[self._at - 1].text
        self._type()
        self._expect("(", "before the parameters of a function")
        names: set[str] = set()
        while not self._accept(")"):
            name = self._expect_name("the name of a parameter or ')'")
            if name.text in names:
                raise self._fail(f"The parameter {name.text} is declared twice", name)
            names.add(name.text)
            self._type()
            if not self._accept(",") and not self._sees(")"):
                raise self._unexpected("',' or ')'")
        if self._accept(":"):
            place = self._peek()
            # The translator keeps it as a signed number.
            if not 0 < self._number("the priority of a function, a number,") < 1 << 63:
                raise self._fail("The priority of a function must be from 1 to 9223372036854775807", place)
        token = self._peek()
        if token is not None and token.kind == "embedded":
            self._need_guru("Embedded C", token)
            self._at += 1
        else:
            self._in_function = True
            begin = self._at
            self._block("the body of a function")
            self._in_function = False
            self._bodies.append(Body(begin, self._at, name=named))

    def _type(self) -> None:
        if self._accept(":") and not self._accept_keyword("string") and not self._accept_keyword("long"):
            raise self._unexpected("'string' or 'long'", ("string", "long"))

    # Probe points

    def _probe(self) -> None:
        aliases = False
        epilogue = False
        while True:
            place = self._peek()
            before = len(self._points_read)
            points = self._points()
            if points.number == 1 and self._sees("=", "+="):
                if points.optional:
                    raise self._fail("The name of an alias cannot be optional ('?') or sufficient ('!')", place)
                aliases = True
                self._aliases.update(point.text for point in self._points_read[before:])
                del self._points_read[before:]
                epilogue = self._take().text == "+=" or epilogue
            elif self._sees("{"):
                if not aliases:
                    self._probes.append(", ".join(point.text for point in self._points_read[before:]))
                break
            else:
                raise self._unexpected("'{' before the body of a probe")
        begin = self._at
        self._block("the body of a probe")
        if not aliases:
            self._bodies.append(Body(begin, self._at, tuple(self._points_read[before:])))
        if aliases and self._sees(","):
            if epilogue:
                raise self._fail("An alias with '+=' has only one body, and a second one follows")
            self._at += 1
            self._block("the second body of an alias")

    def _points(self) -> _Points:
        count, optional, condition = 0, False, False
        while True:
            begin = self._at
            one = self._point()
            if not self._groups:
                self._points_read.append(self._written(begin))
            count, optional, condition = count + one.number, optional or one.optional, condition or one.condition
            if not self._accept(","):
                break
        if not self._sees("{", "=", "+=", "}"):
            more = "" if one.optional or one.condition else "'.', '?', '!', "
            raise self._unexpected(f"{more}',', 'if' or the body of the probe", ("if",))
        return _Points(count, optional, condition)

    def _written(self, begin: int) -> Point:
        tokens = self._tokens[begin : self._at]
        text = ""
        for index, token in enumerate(tokens):
            if token.kind == "string" and index and tokens[index - 1].kind == "string":
                text = text[:-1] + token.text[1:]
            else:
                text += token.text if token.glued or not index else " " + token.text
        group = any(token.kind == "operator" and token.text == "{" for token in tokens)
        return Point(text, tokens[0].line, tokens[0].column, group)

    def _point(self) -> _Points:
        point = self._component()
        while True:
            place = self._peek()
            if not self._accept("."):
                break
            if point.optional or point.condition:
                raise self._fail("'?', '!' and a condition are allowed only at the end of a probe point", place)
            last = self._component()
            # The number of points in groups of groups is of interest only as one or more.
            point = _Points(min(point.number * last.number, 2), last.optional, last.condition)
        if self._sees("?", "!"):
            if point.optional:
                raise self._fail("The probe point has two suffixes '?' or '!'")
            self._at += 1
            point = point._replace(optional=True)
        if self._accept_keyword("if"):
            if point.condition:
                raise self._fail("The probe point has two conditions")
            self._expect("(", "before the condition of a probe point")
            self._unused_value()
            self._expect(")", "after the condition of a probe point")
            point = point._replace(condition=True)
        return point

    def _component(self) -> _Points:
        if self._accept("{"):
            self._groups += 1
            with self._deeper():
                points = self._points()
            self._groups -= 1
            self._expect("}", "after a group of probe points")
            return points
        if not self._wildcard(first=True):
            raise self._unexpected("a part of a probe point (a word, '*' or '{')")
        self._at += 1
        while self._wildcard(first=False):
            self._at += 1
        if self._accept("("):
            self._literal("a number or a string in double quotes")
            self._expect(")", "after the argument of a probe point")
        return _Points(1, False, False)

    def _wildcard(self, first: bool) -> bool:
        token = self._peek()
        if token is None or not (first or token.glued):
            return False
        return token.kind == "word" or (token.kind == "operator" and token.text == "*")

    # Statements

    def _block(self, what: str) -> None:
        if not self._accept("{"):
            raise self._unexpected(f"'{{' before {what}")
        self._rest_of_block()

    def _rest_of_block(self) -> bool:
        """Read up to the closing bracket; tell whether the block never goes on to what follows it."""
        end: int | None = None
        while not self._accept("}"):
            if self._peek() is None:
                raise self._unexpected("'}'")
            if self._statement() and end is None:
                end = self._at
        if end is not None:
            self._uses.unreachable.append((end, self._at))
        return end is not None

    def _statement(self) -> bool:
        """Read a statement; tell whether it leaves its block, as far as stap knows (elaborate.cxx: not by ``if``)."""
        with self._deeper():
            token = self._peek()
            if token is None:
                raise self._unexpected("a statement")
            if self._accept(";"):
                return False
            if self._accept("{"):
                return self._rest_of_block()
            reader = self._READERS.get(token.text) if token.kind == "word" else None
            if reader is not None:
                self._at += 1
                reader(self, token)
            elif token.kind != "word" or token.is_name:
                begin = self._at
                self._unused_value()
                self._note_statement(begin)
            else:
                raise self._unexpected("a statement")
            if token.text not in ("if", "for", "foreach", "while", "try"):
                self._accept(";")
            return token.kind == "word" and token.text in _LEAVING

    def _note_statement(self, begin: int) -> None:
        """Note a statement that may be a misspelt keyword: a name alone, or a call before a block."""
        token = self._tokens[begin]
        if token.is_name and self._at == begin + 1:
            self._uses.alone.append(begin)
        elif token.is_name and self._sees("{") and self._tokens[begin + 1].text == "(":
            self._uses.blocks.append(begin)

    def _if(self, _token: Token) -> None:
        while True:
            self._condition("if")
            self._statement()
            if not self._accept_keyword("else"):
                return
            # A chain of "else if" is one level deep.
            if not self._accept_keyword("if"):
                self._statement()
                return

    def _condition(self, word: str) -> None:
        self._expect("(", f"after {word!r}")
        self._expression()
        self._expect(")", f"after the condition of {word!r}")

    def _while(self, _token: Token) -> None:
        self._condition("while")
        self._statement()

    def _for(self, _token: Token) -> None:
        self._expect("(", "after 'for'")
        for end, what in ((";", "the beginning"), (";", "the condition"), (")", "the step")):
            if not self._sees(end):
                self._expression()
            self._expect(end, f"after {what} of 'for'")
        self._statement()

    def _foreach(self, _token: Token) -> None:
        self._expect("(", "after 'foreach'")
        sorted_by = self._indexes_of_foreach()
        if not self._accept_keyword("in"):
            raise self._unexpected("'in' before the name of an array", ("in",))
        self._indexable()
        if self._accept("["):
            self._indexes("a part of an array")
        token = self._peek()
        if token is not None and token.kind == "at":
            if token.text not in STATISTICS:
                raise self._unexpected(f"one of {', '.join(sorted(STATISTICS))}", STATISTICS)
            self._at += 1
            if not self._sees("+", "-"):
                raise self._unexpected(f"'+' or '-' (the sort order) after {token.text}")
        self._sort(sorted_by)
        if self._accept_keyword("limit"):
            self._unused_value()
        if not self._accept(")"):
            raise self._unexpected("')', 'limit', '+' or '-'", ("limit",))
        self._statement()

    def _indexes_of_foreach(self) -> int:
        """Read ``A``, ``[A, B]`` or ``VALUE = [A, B]``; return how many say how to sort."""
        what = "the name of an index"
        sorted_by = 0
        if not self._sees("["):
            self._expect_name(what)
            sorted_by += self._sort(sorted_by)
            if not self._accept("="):
                return sorted_by
        if not self._accept("["):
            self._expect_name(what)
            return sorted_by + self._sort(sorted_by)
        while True:
            self._expect_name(what)
            sorted_by += self._sort(sorted_by)
            if self._accept("]"):
                return sorted_by
            if not self._accept(","):
                raise self._unexpected("',' or ']'")

    def _sort(self, sorted_by: int) -> int:
        if not self._sees("+", "-"):
            return 0
        if sorted_by:
            raise self._fail("'foreach' can sort by one column only, and this is a second '+' or '-'")
        self._at += 1
        return 1

    def _try(self, _token: Token) -> None:
        self._block("the block of 'try'")
        if not self._accept_keyword("catch"):
            raise self._unexpected("'catch' after the block of 'try'", ("catch",))
        if self._accept("("):
            self._expect_name("the name of a variable for the message")
            self._expect(")", "after the name of a variable")
        self._block("the block of 'catch'")

    def _return(self, token: Token) -> None:
        if not self._in_function:
            raise self._fail("'return' is allowed only in a function; use 'next' to leave a probe", token)
        if not self._sees(";", "}"):
            self._unused_value()

    def _delete(self, _token: Token) -> None:
        self._expression()

    def _alone(self, _token: Token) -> None:
        """Read nothing more: next, break and continue stand alone."""

    _READERS: t.ClassVar[dict[str, t.Callable[[_Grammar, Token], None]]] = {
        "if": _if,
        "while": _while,
        "for": _for,
        "foreach": _foreach,
        "try": _try,
        "return": _return,
        "delete": _delete,
        "next": _alone,
        "break": _alone,
        "continue": _alone,
    }
