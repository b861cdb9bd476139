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
    | (?P<embedded>%\{.*?%\})
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<argument>[$@](?:[0-9]+|\#))
    | (?P<word>[A-Za-z_$][A-Za-z0-9_$]*)
    | (?P<at>@[A-Za-z0-9_$]*)
    | (?P<number>[0-9][0-9A-Za-z]*)
    | (?P<operator><<<|>>>|<<=|>>=|%\(|%\)|%\?|%:|->|=~|!~|\+\+|--|\+=|-=|\*=|/=|%=|&=|\^=|\|=|\.=|<=|>=|==|!=|&&|\|\|
        |<<|>>|[-+*/%&|^~!<>=.,;:?(){}\[\]])
    """,
    re.VERBOSE | re.DOTALL,
)
EMBEDDED_C = "%{ ... %}"
# Operators that can do what nothing checks (parse.cxx: "need stap -g").
UNCHECKED = frozenset(("@const", "@kregister", "@kderef"))
_LARGEST = (1 << 64) - 1


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
    ``string``, ``embedded`` or ``operator``. ``glued`` tells that nothing lies between it and the token before.
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


def tokenize(name: str, text: str) -> list[Token]:
    """Return the tokens of a script, without spaces and comments.

    :raises ScriptError: a character begins no token, or a string, a comment or embedded C is not closed.
    """
    tokens: list[Token] = []
    at, line, begin = 0, 1, 0
    glued = False
    while at < len(text):
        found = _TOKEN.match(text, at)
        column = at - begin + 1
        if found is None or (found.lastgroup == "operator" and text.startswith(("/*", "%{"), at)):
            raise ScriptError(name, line, column, _junk(text, at))
        kind, value = str(found.lastgroup), found.group(0)
        if kind in ("space", "comment"):
            glued = False
        else:
            tokens.append(Token(kind, value, line, column, glued))
            glued = True
        if "\n" in value:
            line += value.count("\n")
            begin = at + value.rindex("\n") + 1
        at = found.end()
    return tokens


def _junk(text: str, at: int) -> str:
    if text[at] == '"':
        return "The string is not closed on its line"
    if text.startswith("/*", at):
        return "The comment is not closed"
    if text.startswith("%{", at):
        return "Embedded C is not closed by %}"
    return f"The language has no token that begins with {text[at]!r}"


def number_value(text: str) -> int | None:
    """Return the value of a number as strtoull(3) reads it with base 0; None if it does not fit into 64 bits."""
    found = re.match(r"(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))\Z", text)
    if found is None:
        return None
    if found.group(1) is not None:
        value = int(found.group(1), 16)
    else:
        digits = (found.group(2) or found.group(3)).lstrip("0") or "0"
        # 64 bits have at most 22 digits; to read a million of them would take long.
        value = int(digits, 8 if found.group(2) else 10) if len(digits) <= 22 else _LARGEST + 1
    return value if value <= _LARGEST else None
