# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The expressions of the SystemTap language, recognised by recursive descent.

Private to the collection. The rules are those of the translator's own parser in release 5.6 (parse.cxx). Nothing is
built: operators of one group bind in one way as far as right and wrong are concerned, so they share a loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import typing as t

from .tokens import KEYWORDS, UNCHECKED, ScriptError, Token, number_value, string_value

# Brackets in brackets and blocks in blocks. A level takes at most nine calls, and Python allows a thousand.
_MAX_DEPTH = 60
_LOGIC = frozenset(("||", "&&", "|", "^", "&"))
_COMPARE = frozenset(("<", ">", "==", "!=", "<=", ">="))
_ARITHMETIC = frozenset(("<<", ">>", ">>>", ".", "+", "-", "*", "/", "%"))
_ASSIGN = frozenset("= <<< += -= *= /= %= <<= >>= &= ^= |= .=".split())
_PRINT = frozenset("print println printd printdln printf sprint sprintln sprintd sprintdln sprintf print_char".split())
_PRINT_WHOLE = frozenset(("print", "println", "sprint", "sprintln"))
# Operators that stand for the memory of the probed kernel, as names with "$" do.
_VARIABLES = ("@cast", "@var")
STATISTICS = frozenset(("@avg", "@variance", "@count", "@sum", "@min", "@max"))
_HISTOGRAMS = frozenset(("@hist_linear", "@hist_log"))
NO_VALUE = "A list of indexes is allowed only before 'in'"
ARRAY_EXPECTED = "the name of an array, or @hist_log or @hist_linear,"
_OPERATORS = (
    frozenset("@cast @var @defined @entry @perf @probewrite @enum @enumname @uregister @uderef".split())
    | STATISTICS
    | _HISTOGRAMS
    | UNCHECKED
)

# How many arguments the macros of SystemTap's own tapset take (the *.stpm files of release 5.6).
_LIBRARY_MACROS = dict(
    {
        "MAXSTRINGLEN": 0,
        "SYSC_RETVALSTR": 1,
        "SYSC_RETVALSTR2": 1,
        "SYSC_RETVALSTR3": 1,
        "cast_module_sizeof": 2,
        "cast_sizeof": 1,
        "choose_defined": 2,
        "container_of": 3,
        "errno": 0,
        "inet_sock_cast": 1,
        "json_output_array_numeric_value": 4,
        "json_output_array_string_value": 4,
        "json_output_data_end": 0,
        "json_output_data_start": 0,
        "json_output_numeric_value": 2,
        "json_output_string_value": 2,
        "mm": 1,
        "module_container_of": 4,
        "module_offsetof": 3,
        "module_type_defined": 2,
        "module_type_member_defined": 3,
        "offsetof": 2,
        "prints": 1,
        "task": 1,
        "try_assign": 3,
        "type_defined": 1,
        "type_member_defined": 2,
        "uint_cast": 1,
        "ulong_cast": 1,
    },
    **{f"this{number}": 0 for number in range(1, 9)},
    **{f"prints{number}": 1 for number in range(1, 10)},
    **{f"prometheus_dump_array{number}": number + 2 for number in range(1, 9)},
    **{f"prometheus_dump_array{number}_map": 2 * number + 3 for number in range(1, 9)},
    **{f"prometheus_dump_array{number}_map_unquoted": 2 * number + 3 for number in range(1, 9)},
)
_CONVERSION = re.compile(
    r"%(?:%|(?P<flag>[0+\- #]?)(?P<width>\*|[0-9]*)(?P<precision>\.(?:\*|[0-9]*))?l?[bcsmMdiuoXxp])"
)
# The end of a format that prints nothing, and is no error either (staptree.cxx, string_to_components).
_UNFINISHED = re.compile(r"%(?:\.l?|l)\Z")


@dataclasses.dataclass
class Uses:
    """Where a script uses some things, as indexes of tokens; the grammar alone says nothing about them.

    ``writes`` are targets such as ``$count`` and ``@var(..)`` that get a value, ``arrays`` names before ``[`` and after
    ``in``, ``operators`` what stands after ``in`` and begins with ``@``, ``empty`` the ``[*]`` in the place of a value,
    ``alone`` statements of one name, ``blocks`` calls that a block follows, as in ``elif (x) { }``. ``unreachable`` are
    spans (begin, end) of what follows ``next``, ``return``, ``break`` or ``continue`` in a block.
    """

    writes: list[int] = dataclasses.field(default_factory=list)
    arrays: list[int] = dataclasses.field(default_factory=list)
    operators: list[int] = dataclasses.field(default_factory=list)
    empty: list[int] = dataclasses.field(default_factory=list)
    alone: list[int] = dataclasses.field(default_factory=list)
    blocks: list[int] = dataclasses.field(default_factory=list)
    unreachable: list[tuple[int, int]] = dataclasses.field(default_factory=list)


class Expressions:
    """A place in a script's tokens, and what reads expressions from there on.

    Every method raises ScriptError where the script leaves the language.
    """

    def __init__(self, name: str, tokens: t.Sequence[Token], guru: bool) -> None:
        self._name = name
        self._tokens = tokens
        self._guru = guru
        self._at = 0
        self._depth = 0
        self._uses = Uses()
        # The last target: its index where it is a variable of a probed function; its span where its address is taken.
        self._variable: int | None = None
        self._address: tuple[int, int] | None = None
        # The span of the last "[*]" without "in", with the brackets around it.
        self._empty: tuple[int, int] | None = None

    # The place

    def _peek(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _fail(self, problem: str, token: Token | None = None, candidates: t.Sequence[str] = ()) -> ScriptError:
        token = token or self._peek()
        if token is not None:
            return ScriptError(self._name, token.line, token.column, problem, candidates)
        last = self._tokens[-1]
        lines = last.text.split("\n")
        column = len(lines[-1]) + (last.column if len(lines) == 1 else 1)
        return ScriptError(self._name, last.line + len(lines) - 1, column, problem, candidates)

    def _unexpected(self, expected: str, words: t.Iterable[str] = ()) -> ScriptError:
        """Return an error with what was found, what is expected, and which of ``words`` resembles what was found."""
        token = self._peek()
        if token is None:
            return self._fail(f"The script ends where {expected} is expected")
        candidates = similar(token.text, words) if token.kind in ("word", "at") else []
        return self._fail(f"{shown(token)} was found where {expected} is expected", token, candidates)

    def _take(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _sees(self, *texts: str) -> bool:
        token = self._peek()
        return token is not None and token.kind in ("operator", "at") and token.text in texts

    def _accept(self, *texts: str) -> bool:
        if self._sees(*texts):
            self._at += 1
            return True
        return False

    def _expect(self, text: str, after: str) -> None:
        if not self._accept(text):
            raise self._unexpected(f"{text!r} {after}")

    def _accept_keyword(self, text: str) -> bool:
        token = self._peek()
        if token is not None and token.kind == "word" and token.text == text:
            self._at += 1
            return True
        return False

    def _expect_name(self, what: str) -> Token:
        token = self._peek()
        if token is None or not token.is_name:
            raise self._unexpected(what)
        return self._take()

    @contextlib.contextmanager
    def _deeper(self) -> t.Iterator[None]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._fail(f"Brackets and blocks are nested deeper than {_MAX_DEPTH} levels")
        yield
        self._depth -= 1

    # Literals

    def _number(self, what: str) -> int:
        negative = self._accept("-")
        token = self._peek()
        if token is None or token.kind != "number":
            raise self._unexpected(what)
        value = number_value(token.text)
        if value is None or (negative and value > 1 << 63):
            raise self._fail(f"{shown(token)} is not a 64-bit number")
        self._at += 1
        return -value if negative else value

    def _string(self, what: str, filled: bool = False) -> str:
        """Read one string; strings that follow each other are one."""
        begin = self._peek()
        if begin is None or begin.kind != "string":
            raise self._unexpected(what)
        parts: list[str] = []
        token: Token | None = begin
        while token is not None and token.kind == "string":
            parts.append(string_value(token.text))
            self._at += 1
            token = self._peek()
        if filled and not any(parts):
            raise self._fail(f"{what[0].upper()}{what[1:]} cannot be empty", begin)
        return "".join(parts)

    def _literal(self, what: str) -> str | int:
        token = self._peek()
        if token is not None and token.kind == "string":
            return self._string(what)
        return self._number(what)

    # Expressions, from the loosest operators to the tightest

    def _expression(self, may_be_empty: bool = False) -> None:
        """Read an expression.

        :param may_be_empty: it may be ``[*]``, which has no value and is left in ``_empty``. stap's parser makes a null
            pointer of it, and crashes wherever it follows that.
        """
        begin = self._at
        with self._deeper():
            while True:
                self._membership()
                while self._accept(*_LOGIC):
                    self._membership()
                if self._accept("?"):
                    self._expression()
                    self._expect(":", "between the two values of '?'")
                elif self._accept(*_ASSIGN):
                    self._note_write()
                else:
                    break
        if self._empty is not None and not (may_be_empty and self._empty == (begin, self._at)):
            raise self._fail(NO_VALUE, self._tokens[self._empty[0]])

    def _index(self) -> None:
        """Read an index of an array, where ``[*]`` is the same as ``*``."""
        self._expression(may_be_empty=True)
        self._empty = None

    def _unused_value(self) -> None:
        """Read an expression at a place where stap's parser passes over ``[*]``."""
        self._expression(may_be_empty=True)
        if self._empty is not None:
            self._uses.empty.append(self._empty[0])
            self._empty = None

    def _membership(self) -> None:
        """Read ``A``, ``A in TABLE`` or ``[A, B, *] in TABLE``."""
        begin = self._at
        indexes, wild = 1, False
        if self._accept("["):
            indexes = 0
            while True:
                indexes += 1
                wild = self._accept("*") or self._member() or wild
                if self._accept("]"):
                    break
                if not self._accept(","):
                    raise self._unexpected("',' or ']'")
        else:
            wild = self._member()
        if self._accept_keyword("in"):
            self._indexable()
        elif indexes > 1:
            raise self._fail(NO_VALUE, self._tokens[begin])
        elif wild:
            self._empty = (begin, self._at)

    def _member(self) -> bool:
        """Read one index before ``in``; tell whether it is ``([*])``, which is the same as ``*`` there."""
        begin = self._at
        self._comparison()
        empty, self._empty = self._empty, None
        if empty is not None and empty != (begin, self._at):
            raise self._fail(NO_VALUE, self._tokens[empty[0]])
        return empty is not None

    def _comparison(self) -> None:
        self._arithmetic()
        if self._accept("=~", "!~"):
            self._string("a regular expression in double quotes")
            return
        while self._accept(*_COMPARE):
            self._arithmetic()

    def _arithmetic(self) -> None:
        while True:
            while self._accept("+", "-", "!", "~"):
                pass
            before = self._accept("++", "--")
            self._target()
            if before or self._accept("++", "--"):
                self._note_write()
            if not self._accept(*_ARITHMETIC):
                return

    def _target(self) -> None:
        """Read a value with ``&`` before it and ``->member[index]$`` after it, where it has them."""
        begin = self._at
        addressed = self._accept("&")
        token = self._peek()
        pretty = False
        if token is not None and token.is_name and token.text.startswith("$"):
            self._at += 1
            pretty = token.text.strip("$") != "" and token.text.endswith("$")
        else:
            value = self._at
            self._value()
            if addressed and self._address == (value, self._at):
                raise self._fail("The address of a value can be taken only once", self._tokens[begin])
        self._components(pretty)
        if addressed:
            self._address = (begin, self._at)
        is_variable = token is not None and (token.text.startswith("$") or token.text in _VARIABLES)
        self._variable = begin if is_variable and not addressed else None

    def _note_write(self) -> None:
        if self._variable is not None:
            self._uses.writes.append(self._variable)

    def _components(self, pretty: bool) -> None:
        """Read ``->member[index]$``; nothing can follow where a ``$`` prints a whole structure (``pretty``)."""
        while not pretty:
            token = self._peek()
            if self._accept("->"):
                member = self._peek()
                if member is None or member.kind != "word":
                    raise self._unexpected("the name of a member after '->'")
                self._at += 1
                pretty = member.text.endswith("$")
            elif self._accept("["):
                self._expression()
                self._expect("]", "after an index")
            elif token is not None and token.kind == "word" and not token.text.strip("$"):
                self._at += 1
                pretty = True
            else:
                return
        if self._sees("->", "["):
            raise self._fail("Nothing can follow the '$' that prints a whole structure")

    def _value(self) -> None:
        token = self._peek()
        if token is not None and token.kind == "embedded":
            self._need_guru("Embedded C", token)
            self._at += 1
        elif self._accept("("):
            begin = self._at
            self._expression(may_be_empty=True)
            whole = self._address == (begin, self._at)
            self._expect(")", "after an expression")
            if whole:
                self._address = (begin - 1, self._at)
            if self._empty is not None:
                self._empty = (begin - 1, self._at)
        elif token is not None and token.kind == "at":
            self._operator(token)
        elif token is not None and token.is_name:
            self._at += 1
            self._named(token)
        else:
            self._literal("a value")

    def _need_guru(self, what: str, token: Token) -> None:
        if not self._guru:
            raise self._fail(
                f"{what} can do what SystemTap does not check, so it needs guru mode (guru and guru_reason)", token
            )

    def _named(self, token: Token) -> None:
        """Read what follows a name: a call, an index, or nothing."""
        if token.text in _PRINT:
            self._print(token)
        elif self._accept("("):
            if not self._accept(")"):
                self._arguments()
        elif self._accept("["):
            self._uses.arrays.append(self._at - 2)
            self._indexes("an index")

    def _arguments(self) -> int:
        """Read arguments up to the closing bracket; return how many."""
        count = 0
        while True:
            self._expression()
            count += 1
            if self._accept(")"):
                return count
            if not self._accept(","):
                raise self._unexpected("',' or ')'")

    def _indexes(self, after: str) -> None:
        while True:
            if not self._accept("*"):
                self._index()
            if self._accept("]"):
                return
            if not self._accept(","):
                raise self._unexpected(f"',' or ']' after {after}")

    def _indexable(self) -> None:
        token = self._peek()
        if token is not None and token.text in _HISTOGRAMS:
            self._at += 1
            self._histogram(token)
        elif token is not None and token.kind == "at" and token.text[1:] not in _LIBRARY_MACROS:
            # The parser takes any name with "@" for that of an array, and no array has such a name.
            self._at += 1
            self._uses.operators.append(self._at - 1)
        else:
            self._expect_name(ARRAY_EXPECTED)
            self._uses.arrays.append(self._at - 1)

    def _histogram(self, token: Token) -> None:
        self._expect("(", f"after {token.text}")
        self._expression()
        if token.text == "@hist_linear":
            for what in ("the lowest value", "the highest value", "the width of a bucket"):
                self._expect(",", f"before {what}")
                self._number(f"{what}, a number,")
        self._expect(")", f"after the arguments of {token.text}")

    def _print(self, token: Token) -> None:
        """Read the arguments of print, println, printd, printdln, printf and the same with ``s``."""
        self._expect("(", f"after {token.text}")
        first = self._peek()
        if first is not None and first.text in _HISTOGRAMS and token.text in _PRINT_WHOLE:
            self._at += 1
            self._print_histogram(first, token)
        elif token.text.endswith("printf"):
            wanted = self._conversions(self._string("a format in double quotes"), first or token)
            count = self._more_values(token)
            if wanted != count:
                problem = f"{token.text} has a format for {wanted} values, but {count} are given"
                raise self._fail(problem, token)
        elif "printd" in token.text:
            self._string("the separator of the values in double quotes")
            if self._more_values(token) < 2:
                raise self._fail(f"{token.text} needs a separator and at least two values", token)
        elif not (token.text.endswith("ln") and self._accept(")")):
            self._arguments()

    def _print_histogram(self, histogram: Token, token: Token) -> None:
        self._histogram(histogram)
        if self._accept("["):
            self._index()
            self._expect("]", "after the number of a bucket")
            self._more_values(token)
        else:
            self._expect(")", f"after the arguments of {token.text}")

    def _more_values(self, token: Token) -> int:
        """Read ``, A, B)`` or ``)``; return how many values there are."""
        if self._accept(","):
            return self._arguments()
        self._expect(")", f"or ',' after the first argument of {token.text}")
        return 0

    def _conversions(self, text: str, place: Token) -> int:
        """Return how many values a format takes."""
        count = at = 0
        while True:
            at = text.find("%", at)
            if at < 0:
                return count
            found = _CONVERSION.match(text, at)
            if found is None and _UNFINISHED.match(text, at):
                return count
            if found is None:
                wrong = text[at : at + 6].split(" ", maxsplit=1)[0]
                raise self._fail(
                    f"The format contains {wrong!r}, which is not a conversion; use '%%' to print '%'", place
                )
            at = found.end()
            if found.group(0) != "%%":
                count += 1 + (found.group("width") == "*") + (found.group("precision") == ".*")

    # Operators that begin with @

    def _operator(self, token: Token) -> None:
        name = token.text
        if name[1:] in _LIBRARY_MACROS:
            self._at += 1
            self._library_macro(token, _LIBRARY_MACROS[name[1:]])
            return
        if name not in _OPERATORS:
            known = sorted(_OPERATORS | {"@" + macro for macro in _LIBRARY_MACROS})
            raise self._fail(f"{name} is neither an operator nor a macro", token, similar(name, known))
        if token.unchecked:
            self._need_guru(name, token)
        self._at += 1
        if name in _HISTOGRAMS:
            self._histogram(token)
            self._expect("[", "before the number of a bucket (only print takes a whole histogram)")
            self._indexes("the number of a bucket")
            return
        self._expect("(", f"after {name}")
        if name in STATISTICS:
            self._statistic(name)
            return
        self._operands(name)
        self._expect(")", f"after the arguments of {name}")

    def _operands(self, name: str) -> None:
        if name in ("@const", "@enum", "@perf"):
            self._string(f"the argument of {name} in double quotes", filled=True)
        elif name == "@var":
            self._string("the name of a variable in double quotes")
            self._more_strings(1)
        elif name == "@probewrite":
            self._expect_name("the name of a variable")
        elif name in ("@kregister", "@uregister"):
            self._number("the number of a register")
        elif name in ("@kderef", "@uderef"):
            self._number("a size in bytes")
            self._expect(",", "before an address")
            self._expression()
        else:
            self._expression()
            self._after_expression(name)

    def _after_expression(self, name: str) -> None:
        if name == "@cast":
            self._expect(",", "before the name of a type in double quotes")
            self._string("the name of a type in double quotes", filled=True)
            self._more_strings(1)
        elif name == "@enumname" and self._accept(","):
            self._string("the name of a type in double quotes", filled=True)
            self._more_strings(1)

    def _statistic(self, name: str) -> None:
        """Read ``VALUE)``, or ``VALUE, BITS)`` of @variance; the translator passes over what else stands before ')'."""
        self._expression()
        numbers = 1 if name == "@variance" else 0
        while not self._accept(")"):
            if self._peek() is None:
                raise self._unexpected(f"')' after the arguments of {name}")
            if not self._accept(","):
                self._at += 1
                continue
            if not numbers:
                raise self._fail(f"{name} takes {'two arguments' if name == '@variance' else 'one argument'} at most")
            numbers -= 1
            self._number("the number of bits to shift")

    def _more_strings(self, most: int) -> None:
        for _turn in range(most):
            if not self._accept(","):
                return
            self._string("a name in double quotes")

    def _library_macro(self, token: Token, count: int) -> None:
        """Read the arguments of a macro of the tapset; a single word may be anything there."""
        if count == 0:
            return
        self._expect("(", f"after the macro {token.text}")
        for left in range(count, 0, -1):
            word, end = self._peek(), self._tokens[self._at + 1 : self._at + 2]
            if word is not None and word.kind == "word" and end and end[0].text in (",", ")"):
                self._at += 1
            else:
                self._expression()
            if not self._accept("," if left > 1 else ")"):
                expected = f"{',' if left > 1 else ')'!r} in the macro {token.text}, which takes {count} arguments,"
                raise self._unexpected(expected)


def similar(text: str, words: t.Iterable[str], least: float = 0.7) -> list[str]:
    """Return the word that ``text`` misspells, in a list, or an empty one; ``least`` is difflib's ratio."""
    return difflib.get_close_matches(text, [word for word in words if word != text], n=1, cutoff=least)


def shown(token: Token) -> str:
    """Return a token as a message names it."""
    if token.kind == "embedded":
        return "Embedded C"
    if token.kind == "word" and token.text in KEYWORDS:
        return f"The keyword {token.text!r}"
    text = token.text if len(token.text) <= 40 else token.text[:40] + "..."
    return text if token.kind == "string" else repr(text)
