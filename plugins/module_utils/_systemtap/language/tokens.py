# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tokens of the SystemTap language, and the error that names a place in a script.

Private to the collection. The rules are those of the translator's own lexer in release 5.6 (parse.cxx, lexer::scan).
"""

from __future__ import annotations

import re
import typing as t

from ..._core.errors import TapvirtError, as_sentence, did_you_mean

KEYWORDS = frozenset(
    "probe global private function if else for foreach in limit return delete while break continue next string long "
    "try catch".split()
)
_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\r\f\v\n]+)
    | (?P<comment>\#[^\n]*|//[^\n]*|/\*.*?\*/)
    | (?P<open_comment>/\*.*)
    | (?P<embedded>%\{.*?%\})
    | (?P<open_embedded>%\{.*)
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<open_string>"(?:[^"\\\n]|\\.)*)
    | (?P<argument>[$@](?:[0-9]+|\#))
    | (?P<word>[A-Za-z_$][A-Za-z0-9_$]*)
    | (?P<at>@[A-Za-z0-9_$]*)
    | (?P<number>[0-9][0-9A-Za-z]*)
    | (?P<operator><<<|>>>|<<=|>>=|%\(|%\)|%\?|%:|->|=~|!~|\+\+|--|\+=|-=|\*=|/=|%=|&=|\^=|\|=|\.=|<=|>=|==|!=|&&|\|\|
        |<<|>>|[-+*/%&|^~!<>=.,;:?(){}\[\]])
    | (?P<junk>.)
    """,
    re.VERBOSE | re.DOTALL,
)
EMBEDDED_C = "%{ ... %}"
# Operators that can do what nothing checks (parse.cxx: "need stap -g").
UNCHECKED = frozenset(("@const", "@kregister", "@kderef"))
_LARGEST = (1 << 64) - 1
_JUNK = frozenset(("open_embedded", "open_string", "junk"))
# Before any other character, the lexer drops a backslash.
_ESCAPE = re.compile(r"\\([abtnvfrx0-7\\]?)")


class ScriptError(TapvirtError):
    """The text of a script is wrong at a line and a column, both from 1.

    ``problem`` is a whole sentence; ``candidates`` the right words that resemble the found one, best first; ``option``
    the option that gave the script, where the caller has named it.
    """

    def __init__(self, name: str, line: int, column: int, problem: str, candidates: t.Sequence[str] = ()) -> None:
        self.option: str | None = None
        self.line = line
        self.column = column
        self.problem = as_sentence(problem)
        self.candidates = list(candidates)
        self.place = f"Script {name}, line {line}, column {column}"
        message = f"{self.place}: {self.problem}{did_you_mean(self.candidates)}"
        super().__init__(message, line=line, column=column)

    def row(self) -> dict[str, t.Any]:
        """Return the ``error`` of a result: ``{option, value, problem, hint, candidates}``."""
        return {
            "option": self.option,
            "value": None,
            "problem": f"{self.place}: {self.problem}",
            "hint": None,
            "candidates": self.candidates,
        }


class Token(t.NamedTuple):
    """One token; ``line`` and ``column`` count from 1.

    ``kind`` is ``word`` (a name or a keyword), ``at`` (a name after ``@``), ``argument`` (``$1``, ``@#``), ``number``,
    ``string``, ``embedded``, ``operator``, ``junk`` (what begins no token, or is not closed), or, at the end,
    ``open_comment``. ``glued`` tells that nothing lies between it and the token before.
    """

    kind: str
    text: str
    line: int
    column: int
    glued: bool = False

    @property
    def is_name(self) -> bool:
        return self.kind == "word" and self.text not in KEYWORDS

    @property
    def unchecked(self) -> bool:
        """Tell whether the token needs guru mode."""
        return self.kind == "embedded" or (self.kind == "at" and self.text in UNCHECKED)


def tokenize(text: str) -> list[Token]:
    """Return the tokens of a script, without spaces and comments.

    Junk is wrong only where it is used: not in a branch that is not taken, nor in a macro that is never called. A
    comment that is not closed reaches to the end of the script.
    """
    tokens: list[Token] = []
    line, begin = 1, 0
    glued = False
    for found in _TOKEN.finditer(text):
        kind, value = str(found.lastgroup), found.group(0)
        if kind in ("space", "comment"):
            glued = False
        else:
            column = found.start() - begin + 1
            # Of junk, its beginning is enough for a message.
            junk = kind in _JUNK
            tokens.append(Token("junk" if junk else kind, value[:2] if junk else value, line, column, glued))
            glued = True
        if "\n" in value:
            line += value.count("\n")
            begin = found.start() + value.rindex("\n") + 1
    return tokens


def junk_problem(token: Token) -> str:
    """Return what is wrong with a token of the kind ``junk``."""
    if token.text.startswith('"'):
        return "The string is not closed on its line"
    if token.text == "%{":
        return "Embedded C is not closed by %}"
    return f"The language has no token that begins with {token.text!r}"


def string_value(text: str) -> str:
    """Return what a string in quotes stands for, with the escapes that C resolves."""
    return _ESCAPE.sub(lambda found: found.group(0) if found.group(1) else "", text[1:-1])


def number_value(text: str) -> int | None:
    """Return the value of a number as strtoull(3) reads it with base 0; None if it does not fit into 64 bits."""
    found = re.match(r"(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*)|0[bB]([01]+))\Z", text)
    if found is None:
        return None
    if found.group(1) is not None or found.group(4) is not None:
        value = int(text, 16 if found.group(1) else 2)
    else:
        digits = (found.group(2) or found.group(3)).lstrip("0") or "0"
        # 64 bits have at most 22 digits; to read a million of them would take long.
        value = int(digits, 8 if found.group(2) else 10) if len(digits) <= 22 else _LARGEST + 1
    return value if value <= _LARGEST else None
