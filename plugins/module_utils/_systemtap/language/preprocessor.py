# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Macros and conditionals of the SystemTap language: tokens in, the tokens that the grammar sees out.

Private to the collection. As in the translator (parse.cxx, scan_pp1 and scan_pp), macros are expanded first, and the
branch of a conditional that is not taken is skipped without being read. Macros of SystemTap's own library are left
for the grammar, which knows their names.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import operator
import re
import typing as t

from .tokens import ScriptError, Token, junk_problem, string_value

# Macros may call macros: the growth is bounded, and so is the depth.
_MAX_EXPANDED = 200_000
_MAX_MACRO_DEPTH = 100
_Comparison = t.Callable[[t.Any, t.Any], bool]
_COMPARE: dict[str, _Comparison] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What conditionals are evaluated for.

    ``arch`` is SystemTap's name of it. ``options`` are the kernel's, name to value as in its ``.config``: none, as in a
    build tree with an empty one, where the kernel is not known.
    """

    kernel: str = "6.12.0"
    arch: str = "x86_64"
    systemtap: str = "5.6"
    guru: bool = False
    options: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Macro:
    """``closure`` are the parameters that hold where a macro's argument was written."""

    parameters: tuple[str, ...]
    body: tuple[Token, ...]
    closure: t.Mapping[str, _Macro] | None = None


class _Frame:
    def __init__(self, tokens: t.Sequence[Token], parameters: t.Mapping[str, _Macro]) -> None:
        self.tokens = tokens
        self.parameters = parameters
        self.at = 0


def expand(name: str, tokens: t.Sequence[Token], target: Target) -> list[Token]:
    """Expand macros and choose branches.

    :raises ScriptError: a macro or a conditional that is not in the language, or that grows without end.
    """
    return list(_Preprocessor(name, tokens, target).tokens())


class _Preprocessor:
    def __init__(self, name: str, tokens: t.Sequence[Token], target: Target) -> None:
        self._name = name
        self._target = target
        self._frames = [_Frame(tokens, {})]
        self._macros: dict[str, _Macro] = {}
        self._left = len(tokens) + _MAX_EXPANDED
        self._last = tokens[-1] if tokens else Token("operator", "", 1, 1)

    def _fail(self, token: Token | None, problem: str) -> ScriptError:
        token = token or self._last
        return ScriptError(self._name, token.line, token.column, problem)

    def tokens(self) -> t.Iterator[Token]:
        """Yield the tokens that are left when macros are expanded and branches chosen."""
        # Each open conditional: its "%(", whether its current branch is taken, whether "%:" was seen.
        opened: list[tuple[Token, bool, bool]] = []
        while True:
            token = self._skip() if opened and not opened[-1][1] else self._scan()
            if token is None:
                break
            if token.kind != "operator" or token.text not in ("%(", "%?", "%:", "%)"):
                yield self._checked(token)
            elif token.text == "%(":
                opened.append((token, self._condition(token), False))
            elif token.text == "%?" or not opened:
                raise self._fail(token, f"{token.text!r} has no '%(' and no condition before it")
            elif token.text == "%)":
                opened.pop()
            else:
                begin, taken, second = opened[-1]
                if second:
                    raise self._fail(token, f"The conditional of line {begin.line} has a second '%:'")
                opened[-1] = (begin, not taken, True)
        if opened:
            raise self._fail(opened[-1][0], "'%(' is never closed")

    def _checked(self, token: Token) -> Token:
        """Return a token that the grammar sees."""
        if token.kind == "junk":
            raise self._fail(token, junk_problem(token))
        return self._argument(token) if token.kind == "argument" else token

    def _argument(self, token: Token) -> Token:
        if token.text == "$#":
            return token._replace(kind="number", text="0")
        if token.text == "@#":
            return token._replace(kind="string", text='"0"')
        problem = (
            f"{token.text} is an argument of stap's command line, which has none here; use a global variable instead"
        )
        raise self._fail(token, problem)

    def _raw(self) -> Token | None:
        """Return the next token of the innermost macro, or null at its end."""
        frame = self._frames[-1]
        if frame.at >= len(frame.tokens):
            return None
        token = frame.tokens[frame.at]
        frame.at += 1
        self._left -= 1
        if self._left < 0:
            raise self._fail(token, f"The macros grow to more than {_MAX_EXPANDED} tokens")
        return token

    def _next(self) -> Token | None:
        """Return the next token, of this macro or of what it was called in."""
        while True:
            token = self._raw()
            if token is not None or len(self._frames) == 1:
                return token
            self._frames.pop()

    def _scan(self) -> Token | None:
        """Return the next token that is no macro."""
        while True:
            token = self._next()
            if token is None or token.kind != "at":
                return token
            if token.text == "@define":
                self._define(token)
                continue
            name = token.text[1:]
            macro = self._frames[-1].parameters.get(name, self._macros.get(name))
            if macro is None:
                return token
            self._call(token, macro)

    def _skip(self) -> Token | None:
        """Pass a branch that is not taken; return what ends it."""
        depth = 0
        while True:
            token = self._next()
            if token is None or token.kind != "operator":
                if token is None:
                    return None
            elif token.text == "%(":
                depth += 1
            elif token.text == "%)" and depth:
                depth -= 1
            elif depth == 0 and token.text in ("%:", "%?", "%)"):
                return token

    def _define(self, begin: Token) -> None:
        if len(self._frames) > 1:
            raise self._fail(begin, "'@define' is not allowed in the body of a macro")
        name = self._name_of_macro()
        if name.text in self._macros:
            raise self._fail(name, f"The macro @{name.text} is defined twice")
        if name.text == "define":
            raise self._fail(name, "A macro cannot be called @define")
        parameters, token = self._parameters(name)
        if token is None or token.text != "%(":
            raise self._fail(token, f"The body of the macro @{name.text} must be written as %( ... %)")
        body: list[Token] = []
        depth = 0
        while True:
            token = self._raw()
            if token is None:
                raise self._fail(name, f"The body of the macro @{name.text} is not closed by %)")
            if token.kind == "operator" and token.text in ("%(", "%)"):
                if token.text == "%)" and depth == 0:
                    break
                depth += 1 if token.text == "%(" else -1
            body.append(token)
        self._macros[name.text] = _Macro(parameters, tuple(body))

    def _parameters(self, name: Token) -> tuple[tuple[str, ...], Token | None]:
        """Read the parameters of a macro, where it has them, and the token after them."""
        parameters: list[str] = []
        token = self._raw()
        if token is None or token.text != "(":
            return (), token
        while token is not None and token.text != ")":
            parameters.append(self._name_of_macro().text)
            token = self._raw()
            if token is None or token.text not in (",", ")"):
                raise self._fail(token, f"The parameters of the macro @{name.text} must be written as NAME, NAME, ...")
        return tuple(parameters), self._raw()

    def _name_of_macro(self) -> Token:
        token = self._raw()
        if token is None or not token.is_name:
            raise self._fail(token, "A name is expected here, in the definition of a macro")
        return token

    def _call(self, token: Token, macro: _Macro) -> None:
        if len(self._frames) > _MAX_MACRO_DEPTH:
            raise self._fail(token, f"The macro {token.text} calls itself without end")
        outer = self._frames[-1].parameters
        given: dict[str, _Macro] = {}
        if macro.parameters:
            begin = self._raw()
            if begin is None or begin.text != "(":
                problem = f"The macro {token.text} takes {', '.join(macro.parameters)} in parentheses"
                raise self._fail(begin or token, problem)
            for index, parameter in enumerate(macro.parameters):
                body, end = self._macro_argument(token)
                if (end.text == ")") != (index + 1 == len(macro.parameters)):
                    few = "few" if end.text == ")" else "many"
                    takes = ", ".join(macro.parameters)
                    raise self._fail(end, f"The macro {token.text} has too {few} arguments; it takes {takes}")
                given[parameter] = _Macro((), body, outer)
        self._frames.append(_Frame(macro.body, given if macro.closure is None else macro.closure))

    def _macro_argument(self, call: Token) -> tuple[tuple[Token, ...], Token]:
        body: list[Token] = []
        depth = 0
        while True:
            token = self._raw()
            if token is None:
                raise self._fail(call, f"The arguments of the macro {call.text} are not closed by ')'")
            if token.kind == "operator":
                if depth == 0 and token.text in (",", ")"):
                    return tuple(body), token
                if token.text in ("(", "["):
                    depth += 1
                elif depth and token.text in (")", "]"):
                    depth -= 1
            body.append(token)

    def _condition(self, begin: Token) -> bool:
        """Read ``A == B && C == D || ... %?``; return whether it holds."""
        result, both = False, True
        while True:
            left, sign, right = self._scan(), self._scan(), self._scan()
            if left is None or sign is None or right is None:
                raise self._fail(begin, "The condition after '%(' is not complete")
            both = self._holds(left, sign, right) and both
            link = self._scan()
            if link is not None and link.text == "&&":
                continue
            result, both = result or both, True
            if link is None or link.text != "||":
                break
        if link is None or link.text != "%?":
            raise self._fail(link or begin, "'%?' is expected after the condition of '%('")
        return result

    def _holds(self, left: Token, sign: Token, right: Token) -> bool:
        compare = _COMPARE.get(sign.text)
        if compare is None:
            raise self._fail(sign, f"A condition needs a comparison (== != < <= > >=) here, not {sign.text!r}")
        left, right = (self._argument(side) if side.kind == "argument" else side for side in (left, right))
        if left.kind == "word":
            return self._variable_holds(left, sign, compare, right)
        if left.kind not in ("string", "number"):
            raise self._fail(left, _CONDITION_PROBLEM)
        if left.kind != right.kind:
            raise self._fail(right, f"A {left.kind} is expected here, because {left.text} is one")
        if left.kind == "string":
            return compare(string_value(left.text), string_value(right.text))
        return compare(self._number(left), self._number(right))

    def _number(self, token: Token) -> int:
        # A condition takes no 0x10 (parse.cxx reads it by lex_cast).
        digits = token.text.lstrip("0") or "0"
        if not re.match(r"[0-9]{1,19}\Z", digits) or int(digits) >= 1 << 63:
            raise self._fail(token, f"{token.text} is not a decimal number of 63 bits, and a condition takes no other")
        return int(digits)

    def _variable_holds(self, left: Token, sign: Token, compare: _Comparison, right: Token) -> bool:
        versions = {
            "kernel_v": self._target.kernel.split("-")[0],
            "kernel_vr": self._target.kernel,
            "systemtap_v": self._target.systemtap,
        }
        # Whoever builds is root, which SystemTap counts to its developers.
        words = {"arch": self._target.arch, "runtime": "kernel", "systemtap_privilege": "stapdev"}
        if left.text.startswith("CONFIG_"):
            return self._option_holds(self._option(left), sign, compare, right)
        if left.text == "guru_mode":
            return self._guru_mode_holds(sign, compare, right)
        if left.text not in versions and left.text not in words:
            raise self._fail(left, _CONDITION_PROBLEM)
        if right.kind != "string":
            raise self._fail(right, f"{left.text} can be compared only with a string in double quotes")
        wanted = string_value(right.text)
        if left.text in versions:
            if not re.search(r"[*?\[]", wanted):
                return compare(_version_key(versions[left.text]), _version_key(wanted))
            words = versions
        if sign.text not in ("==", "!="):
            raise self._fail(sign, f"{left.text} can be compared with a pattern or a word only by == or !=")
        if left.text == "systemtap_privilege":
            return compare(words[left.text], wanted)
        return fnmatch.fnmatchcase(words[left.text], wanted) == (sign.text == "==")

    def _guru_mode_holds(self, sign: Token, compare: _Comparison, right: Token) -> bool:
        if right.kind != "number" or right.text not in ("0", "1"):
            raise self._fail(right, "guru_mode can be compared only with 0 or 1")
        if sign.text not in ("==", "!="):
            raise self._fail(sign, "guru_mode can be compared only by == or !=")
        return compare(int(self._target.guru), int(right.text))

    def _option(self, token: Token) -> str:
        return self._target.options.get(token.text, "")

    def _option_holds(self, value: str, sign: Token, compare: _Comparison, right: Token) -> bool:
        number = _option_number(value)
        if right.kind == "number":
            # stap refuses a comparison of y or m with a number.
            return number is not None and compare(number, self._number(right))
        if right.kind == "word" and right.text.startswith("CONFIG_"):
            other = _option_number(self._option(right))
            if number is None or other is None:
                return compare(value, self._option(right))
            return compare(number, other)
        if right.kind != "string":
            raise self._fail(
                right, "An option of the kernel can be compared only with a string, a number or another CONFIG_..."
            )
        if sign.text not in ("==", "!="):
            raise self._fail(sign, "An option of the kernel can be compared with a string only by == or !=")
        return fnmatch.fnmatchcase(value, string_value(right.text)) == (sign.text == "==")


_CONDITION_PROBLEM = (
    "A condition compares arch, kernel_v, kernel_vr, systemtap_v, runtime, systemtap_privilege, guru_mode or "
    "CONFIG_..., or two strings or two numbers"
)


def _option_number(value: str) -> int | None:
    """Return the number that a kernel's option is, as strtoll(3) reads it; None if it is none."""
    try:
        return int(value or "0", 0)
    except ValueError:
        return None


def _version_key(version: str) -> list[tuple[int, int, str]]:
    """Make versions comparable as strverscmp(3) does: runs of digits by value, all else by letter."""
    return [
        (1, int(run[:30]), "") if run.isdigit() else (0 if run < "0" else 2, 0, run)
        for run in re.findall(r"[0-9]+|[^0-9]", version)
    ]
