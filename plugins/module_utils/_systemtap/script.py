# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be known of a SystemTap script from its text alone: tokens, globals, probes, record schema, unsafe parts.

Private to the collection. The token rules are those of the language reference (man stap, "SCRIPT LANGUAGE"); a full
parse is the translator's (``stap -p1``) business.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing as t

from .._core.errors import InvalidInput, TapvirtError, nearest_names

# A line "#: record KIND field:type ..." in a script declares one kind of record that it prints as JSON lines.
_SCHEMA_LINE = re.compile(r"^\s*#:\s*record\s+([a-z][a-z0-9_]*)\s*(.*)$")
_FIELD_TYPES = ("string", "integer", "list")
_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\r\f\v]+)
    | (?P<newline>\n)
    | (?P<comment>\#[^\n]*|//[^\n]*|/\*.*?\*/)
    | (?P<embedded>%\{.*?%\})
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<word>[A-Za-z_$@][A-Za-z0-9_$@]*|\$\#|@\#)
    | (?P<number>0[xX][0-9a-fA-F]+|[0-9]+)
    | (?P<operator>%\(|%\)|%\?|%:|<<<|<<=|>>=|->|=~|!~|\+\+|--|\+=|-=|\*=|/=|%=|&=|\^=|\|=|\.=|<=|>=|==|!=|&&|\|\|
        |<<|>>|::|[-+*/%&|^~!<>=.,;:?(){}\[\]])
    """,
    re.VERBOSE | re.DOTALL,
)
_PAIRS = {")": "(", "]": "[", "}": "{", "%)": "%("}
_INT64 = 1 << 63
_MAX_STRING_BYTES = 511  # MAXSTRINGLEN is 512 with the end mark (runtime/linux/runtime_defines.h, 64-bit)
# Options of the translator that a script can smuggle in, or that switch a safety guard off.
_GUARDS_OFF = re.compile(r"\b(STP_NO_OVERLOAD|--suppress-time-limits|--suppress-handler-errors)\b")


class ScriptError(TapvirtError):
    """The script's text is wrong at a line and a column."""

    def __init__(self, name: str, line: int, column: int, rule: str) -> None:
        message = "{0}, line {1}, column {2}: {3}.".format(name, line, column, rule)
        super().__init__(message, line=line, column=column)


@dataclasses.dataclass(frozen=True)
class Token:
    """One token; ``line`` and ``column`` count from 1."""

    kind: str
    text: str
    line: int
    column: int


@dataclasses.dataclass(frozen=True)
class Global:
    """A global variable: its type ``long``, ``string``, ``array`` or ``unknown`` (no initial value tells)."""

    name: str
    kind: str
    initial: str | int | None


@dataclasses.dataclass(frozen=True)
class Script:
    """What a script declares. ``schema`` maps a record kind to its fields' types; ``embedded_c`` needs guru mode."""

    name: str
    text: str
    globals: dict[str, Global]
    probes: tuple[str, ...]
    schema: dict[str, dict[str, str]]
    embedded_c: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8", "surrogateescape")).hexdigest()


def tokenize(name: str, text: str) -> list[Token]:
    """Return the tokens of a script, without blanks and comments.

    :raises ScriptError: a letter that begins no token, an open string, comment or embedded C.
    """
    tokens: list[Token] = []
    at, line, begin = 0, 1, 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        column = at - begin + 1
        if found is None or (found.lastgroup == "operator" and text.startswith(("/*", "%{"), at)):
            raise ScriptError(name, line, column, _junk(text, at))
        kind, value = str(found.lastgroup), found.group(0)
        if kind not in ("space", "newline", "comment"):
            tokens.append(Token(kind, value, line, column))
        if "\n" in value:
            line += value.count("\n")
            begin = at + value.rindex("\n") + 1
        at = found.end()
    return tokens


def _junk(text: str, at: int) -> str:
    if text[at] == '"':
        return "a string that is not closed on its line"
    if text.startswith("/*", at):
        return "a comment that is not closed"
    if text.startswith("%{", at):
        return "embedded C that is not closed by %}"
    return "{0!r} begins no token of the language".format(text[at])


def read_script(name: str, text: str) -> Script:
    """Read a script's declarations.

    :raises ScriptError: unbalanced brackets, an open string and the like, no probe at all, a bad schema line.
    """
    tokens = tokenize(name, text)
    _check_balance(name, tokens)
    probes = _probes(text, tokens)
    if not probes:
        raise ScriptError(name, max(text.count("\n"), 1), 1, "the script has no probe")
    return Script(
        name=name,
        text=text,
        globals=_globals(tokens),
        probes=tuple(probes),
        schema=_schema(name, text),
        embedded_c=any(token.kind == "embedded" for token in tokens),
    )


def _check_balance(name: str, tokens: t.Sequence[Token]) -> None:
    opened: list[Token] = []
    for token in tokens:
        if token.kind != "operator":
            continue
        if token.text in _PAIRS.values():
            opened.append(token)
        elif token.text in _PAIRS:
            if not opened or opened[-1].text != _PAIRS[token.text]:
                wanted = (
                    "closes nothing"
                    if not opened
                    else "cannot close the {0!r} of line {1}".format(opened[-1].text, opened[-1].line)
                )
                raise ScriptError(name, token.line, token.column, "{0!r} {1}".format(token.text, wanted))
            opened.pop()
    if opened:
        raise ScriptError(name, opened[-1].line, opened[-1].column, "{0!r} is never closed".format(opened[-1].text))


def _globals(tokens: t.Sequence[Token]) -> dict[str, Global]:
    """Find ``[private] global a = 1, b[10], c`` at depth 0 (man stap, VARIABLES)."""
    found: dict[str, Global] = {}
    depth = 0
    index = 0
    while index < len(tokens):
        token = tokens[index]
        if token.kind == "operator" and token.text in "({[":
            depth += 1
        elif token.kind == "operator" and token.text in ")}]":
            depth -= 1
        elif depth == 0 and token.text == "global":
            index = _declarators(tokens, index + 1, found)
            continue
        index += 1
    return found


def _declarators(tokens: t.Sequence[Token], index: int, found: dict[str, Global]) -> int:
    while index < len(tokens) and tokens[index].kind == "word":
        name, kind, initial = tokens[index].text, "unknown", None
        value: str | int | None = initial
        index += 1
        # "%" asks for wrapping when the array is full, "[n]" sets its size.
        if index < len(tokens) and tokens[index].text == "%":
            kind, index = "array", index + 1
        if index < len(tokens) and tokens[index].text == "[":
            kind = "array"
            while tokens[index].text != "]":
                index += 1
            index += 1
        if index < len(tokens) and tokens[index].text == "=":
            kind, value, index = _initial(tokens, index + 1)
        found[name] = Global(name, kind, value)
        if index >= len(tokens) or tokens[index].text != ",":
            break
        index += 1
    return index


def _initial(tokens: t.Sequence[Token], index: int) -> tuple[str, str | int | None, int]:
    negative = index < len(tokens) and tokens[index].text == "-"
    index += 1 if negative else 0
    if index >= len(tokens):
        return "unknown", None, index
    token = tokens[index]
    if token.kind == "string":
        return "string", re.sub(r"\\(.)", r"\1", token.text[1:-1]), index + 1
    if token.kind == "number":
        number = int(token.text, 0) if not re.match(r"0[0-7]+$", token.text) else int(token.text, 8)
        return "long", -number if negative else number, index + 1
    return "unknown", None, index + 1


def _probes(text: str, tokens: t.Sequence[Token]) -> list[str]:
    """Return the text between ``probe`` and its body, at depth 0; aliases (``probe a = b``) are left out."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    found: list[str] = []
    depth = 0
    for index, token in enumerate(tokens):
        if token.kind == "operator" and token.text in "({[":
            depth += 1
        elif token.kind == "operator" and token.text in ")}]":
            depth -= 1
        elif depth == 0 and token.text == "probe":
            end = next((later for later in tokens[index + 1 :] if later.text in ("{", "=", "+=")), None)
            if end is not None and end.text == "{":
                begin = starts[token.line - 1] + token.column - 1 + len("probe")
                found.append(" ".join(text[begin : starts[end.line - 1] + end.column - 1].split()))
    return found


def _schema(name: str, text: str) -> dict[str, dict[str, str]]:
    schema: dict[str, dict[str, str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        found = _SCHEMA_LINE.match(line)
        if found is None:
            continue
        fields: dict[str, str] = {}
        for word in found.group(2).split():
            field, separator, kind = word.partition(":")
            if not separator or kind not in _FIELD_TYPES:
                raise ScriptError(
                    name,
                    number,
                    line.index(word) + 1,
                    "a record field is NAME:TYPE, TYPE one of {0}".format(", ".join(_FIELD_TYPES)),
                )
            fields[field] = kind
        schema[found.group(1)] = fields
    return schema


def check_safety(script: Script, guru: bool) -> None:
    """Refuse what switches SystemTap's protections off.

    :raises InvalidInput: embedded C without guru mode, or a guard switched off.
    """
    found = _GUARDS_OFF.search(script.text)
    if found is not None:
        raise InvalidInput(script.name, found.group(1), "switches a protection of the host off and is never accepted")
    if script.embedded_c and not guru:
        raise InvalidInput(
            script.name, "%{ ... %}", "is embedded C, which nothing checks; it needs guru mode with a reason"
        )


def check_globals(name: str, declared: t.Mapping[str, str], given: t.Mapping[str, t.Any]) -> dict[str, str | int]:
    """Check values for global variables against a script's declarations, given as name to type.

    :returns: the values, as numbers and strings.
    :raises InvalidInput: the script does not declare the name, it is an array, or the value has the wrong type.
    """
    checked: dict[str, str | int] = {}
    scalars = sorted(key for key, kind in declared.items() if kind != "array")
    for key, value in given.items():
        item = "{0}, global {1}".format(name, key)
        if key not in declared:
            rule = "is not declared by the script, which has {0}".format(", ".join(scalars) or "no global variables")
            raise InvalidInput("{0}, globals".format(name), key, rule, nearest_names(key, scalars))
        if declared[key] == "array":
            raise InvalidInput(item, value, "is an array; only single values can be set when a module is loaded")
        checked[key] = _check_value(item, declared[key], value)
    return checked


def _check_value(item: str, kind: str, value: t.Any) -> str | int:
    if isinstance(value, bool):
        value = int(value)
    if kind == "string":
        return _check_string(item, str(value))
    if isinstance(value, str) and re.match(r"-?[0-9]+$", value):
        value = int(value)
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise InvalidInput(item, value, "is not a 64-bit number")
        return value
    if kind == "unknown" and isinstance(value, str):
        return _check_string(item, value)
    raise InvalidInput(item, value, "must be a whole number, as the script's own value is")


def _check_string(item: str, value: str) -> str:
    # staprun hands the value over as a module parameter: name=value, split at blanks (linux/kernel/params.c).
    if re.search(r'[\s"!]', value) or len(value.encode()) > _MAX_STRING_BYTES:
        raise InvalidInput(item, value, "must be without blanks, quotes and exclamation marks, at most 511 bytes long")
    return value
