# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be known of a SystemTap script from its text alone: grammar, globals, probes, record schema, unsafe parts.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing as t

from ..._core.errors import InvalidInput, nearest_names, option_path
from ..language.grammar import Point, parse
from ..language.preprocessor import Target
from ..language.tokens import EMBEDDED_C, ScriptError, Token, number_value, tokenize
from .semantics import check_semantics, template_error

# A line "#: record KIND field:type ..." in a script declares one kind of record that it prints as JSON lines.
_SCHEMA_LINE = re.compile(r"^\s*#:\s*record\s+([a-z][a-z0-9_]*)\s*(.*)$")
_FIELD_TYPES = ("string", "integer", "list")
_INT64 = 1 << 63
_NUMBER = re.compile(r"-?[0-9]+\Z")
_MAX_STRING_BYTES = 511  # MAXSTRINGLEN is 512 with the end mark (runtime/linux/runtime_defines.h, 64-bit)
# Macros of SystemTap's runtime that end probes which overload the host (runtime/runtime_defines.h, tapsets.cxx), and
# those that --suppress-time-limits and --suppress-handler-errors define (session.cxx).
_GUARD_MACROS = (
    r"(?:STP_OVERLOAD(?:_THRESHOLD|_INTERVAL)?|STA?P_NO_OVERLOAD|STAP_SUPPRESS_(?:TIME_LIMITS_ENABLE|HANDLER_ERRORS))"
)
# What the C preprocessor skips within a line (is_nvspace in GCC's include/safe-ctype.h).
_C_SPACE = r"[ \t\f\v\0]"
# "%:" is C's other spelling of "#".
_REDEFINITION = re.compile(
    rf"^{_C_SPACE}*(?:#|%:){_C_SPACE}*(?:define|undef){_C_SPACE}+({_GUARD_MACROS})\b", re.MULTILINE
)
# getopt_long(3) takes the beginning of an option's name as well.
_GUARD_OPTION = re.compile(r"(?<!\S)(--suppress-[th]\S*|-D\s*" + _GUARD_MACROS + r"(?!\w))")
# To GCC a carriage return alone ends a line, too.
_C_NEWLINE = re.compile(r"\r\n?")
_C_SPLICE = re.compile(rf"\\{_C_SPACE}*\n")
_C_COMMENT_OR_TEXT = re.compile(r"""/\*.*?(?:\*/|\Z)|//[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'""", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Global:
    """A global variable: its type ``long``, ``string``, ``array`` or ``unknown`` (no initial value tells)."""

    name: str
    kind: str
    initial: str | int | None


@dataclasses.dataclass(frozen=True)
class Script:
    """What a script declares.

    ``globals`` are those of every branch of a conditional, ``probes`` and ``points`` (those of aliases too) those of
    the branches that were read. ``aliases`` are the names of its own probe aliases. ``schema`` maps a record kind to
    its fields' types.
    """

    name: str
    text: str
    globals: dict[str, Global]
    probes: tuple[str, ...]
    points: tuple[Point, ...]
    aliases: frozenset[str]
    schema: dict[str, dict[str, str]]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8", "surrogateescape")).hexdigest()


def read_script(
    name: str, text: str, guru: bool = True, tapset: t.Collection[str] | None = (), target: Target | None = None
) -> Script:
    """Check a script's grammar, and what is wrong whatever the kernel is; read its declarations.

    :param tapset: the names of the global variables of own tapsets; None where these are not known.
    :param target: what conditionals are evaluated for; see :func:`parse`.
    :raises ScriptError: it is not in the language, or only in guru mode; it has no probe, or a bad schema line; or as
        ``check_semantics``.
    """
    tokens = tokenize(text)
    try:
        parsed = parse(name, text, guru, target)
    except ScriptError as error:
        raise template_error(name, text, error) or error from None
    if not parsed.probes:
        raise ScriptError(name, max(text.count("\n"), 1), 1, "The script has no probe")
    # A branch that this check does not take may be the right one for the kernel that the script is built for.
    declared = {**read_globals(tokens), **read_globals(parsed.tokens)}
    check_semantics(name, text, parsed, declared, guru, tapset)
    return Script(
        name=name,
        text=text,
        globals=declared,
        probes=parsed.probes,
        points=parsed.points,
        aliases=parsed.aliases,
        schema=_schema(name, text),
    )


def read_globals(tokens: t.Sequence[Token]) -> dict[str, Global]:
    """Find ``[private] global a = 1, b[10], c`` and ``private a`` at depth 0 (man stap, VARIABLES)."""
    found: dict[str, Global] = {}
    depth = 0
    index = 0
    while index < len(tokens):
        token = tokens[index]
        if token.kind == "operator" and token.text in "({[":
            depth += 1
        elif token.kind == "operator" and token.text in ")}]":
            depth -= 1
        elif depth == 0 and token.text in ("global", "private"):
            index = _declarators(tokens, index + 1, found)
            continue
        index += 1
    return found


def _declarators(tokens: t.Sequence[Token], index: int, found: dict[str, Global]) -> int:
    while index < len(tokens) and tokens[index].is_name:
        name, kind, initial = tokens[index].text, "unknown", None
        value: str | int | None = initial
        index += 1
        # "%" asks for wrapping when the array is full, "[n]" sets its size.
        if index < len(tokens) and tokens[index].text == "%":
            kind, index = "array", index + 1
        if index < len(tokens) and tokens[index].text == "[":
            kind = "array"
            while index < len(tokens) and tokens[index].text != "]":
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
    number = number_value(token.text) if token.kind == "number" else None
    if number is not None:
        return "long", -number if negative else number, index + 1
    return "unknown", None, index + 1


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
                    f"The field of a record must be NAME:TYPE, where TYPE is one of {', '.join(_FIELD_TYPES)}",
                )
            fields[field] = kind
        schema[found.group(1)] = fields
    return schema


def check_safety(option: str, script: Script, guru: bool) -> None:
    """Refuse what switches SystemTap's protections off.

    :param option: the option that gave the script.
    :raises InvalidInput: embedded C without guru mode, or a guard switched off.
    """
    check_text_safety(option, f"script {script.name}", script.text, guru)


def check_text_safety(option: str, what: str, text: str, guru: bool) -> None:
    """Refuse what switches SystemTap's protections off, in the text of a script or of a tapset.

    :param option: the option that gave the text.
    :param what: what the text is, such as ``script vfs_latency``.
    :raises InvalidInput: embedded C without guru mode, or a guard switched off.
    """
    tokens = tokenize(text)
    found = _guard_off(text, tokens)
    if found is not None:
        macro, line, place = found
        problem = f"The {what} switches off a protection of the host in {place}, which is never accepted"
        raise InvalidInput(option, macro, problem, line=line)
    unchecked = next((token for token in tokens if token.unchecked), None)
    if unchecked is not None and not guru:
        embedded = unchecked.kind == "embedded"
        part = "embedded C" if embedded else "an operator"
        problem = f"The {what} contains {part} that SystemTap does not check, so it needs guru mode"
        hint = "Set guru and guru_reason of stap_script (trace_guru and trace_guru_reason of the role trace)"
        raise InvalidInput(option, EMBEDDED_C if embedded else unchecked.text, problem, hint)


def _guard_off(text: str, tokens: t.Iterable[Token]) -> tuple[str, int, str] | None:
    """Return what switches a guard off, its line and where that is; comments and strings of the script do not count."""
    first = text.split("\n", 1)[0]
    option = _GUARD_OPTION.search(first) if first.startswith("#!") else None
    if option is not None:
        return option.group(1), 1, "the interpreter line"
    for token in tokens:
        if token.kind == "embedded":
            body = token.text[2:-2]
            code, origins = _c_code(body)
            macro = _REDEFINITION.search(code)
            if macro is not None:
                line = token.line + body.count("\n", 0, origins[macro.start(1)])
                return macro.group(1), line, "embedded C"
    return None


def _c_code(text: str) -> tuple[str, list[int]]:
    """Join the lines of embedded C as the preprocessor does, without comments and literals.

    :returns: the code, and for each of its characters the offset in ``text`` from which it came.
    """
    lines, origins = _replace(_C_NEWLINE, text, list(range(len(text))), lambda _found: "\n")
    joined, origins = _replace(_C_SPLICE, lines, origins, lambda _found: "")
    return _replace(_C_COMMENT_OR_TEXT, joined, origins, lambda found: " " if found.group(0).startswith("/") else '""')


def _replace(
    pattern: t.Pattern[str], text: str, origins: list[int], new: t.Callable[[re.Match[str]], str]
) -> tuple[str, list[int]]:
    """Return the text with its matches replaced, and the origins of its characters."""
    parts: list[str] = []
    kept: list[int] = []
    end = 0
    for found in pattern.finditer(text):
        word = new(found)
        parts += [text[end : found.start()], word]
        kept += origins[end : found.start()] + [origins[found.start()]] * len(word)
        end = found.end()
    return "".join([*parts, text[end:]]), kept + origins[end:]


def check_globals(name: str, declared: t.Mapping[str, str], given: t.Mapping[str, t.Any]) -> dict[str, str | int]:
    """Check values for global variables against a script's declarations, given as name to type.

    :returns: the values, as numbers and strings.
    :raises InvalidInput: with the name of the variable as its option: the variable is an array, or the value has the
        wrong type; with an empty option: the script does not declare the name.
    """
    checked: dict[str, str | int] = {}
    scalars = sorted(key for key, kind in declared.items() if kind != "array")
    for key, value in given.items():
        if key not in declared:
            has = f"it has {', '.join(scalars)}" if scalars else "it has none"
            problem = f"The script {name} does not declare a global variable of that name; {has}"
            raise InvalidInput("", key, problem, None, nearest_names(key, scalars))
        if declared[key] == "array":
            problem = f"The global variable {key} is an array, and a module takes only single values when it is loaded"
            raise InvalidInput(key, value, problem)
        checked[key] = _check_value(key, declared[key], value)
    return checked


def read_values(build: t.Mapping[str, t.Any], given: t.Mapping[str, t.Any], path: str) -> dict[str, str | int]:
    """Return the values for a build's global variables: those of ``given``, over those of the script's task.

    :param path: the option that gave the build.
    :raises InvalidInput: as :func:`check_globals`, for the options ``globals`` and ``PATH.assigned``.
    """
    name, declared = build.get("script", build["name"]), build["globals"]
    assigned = {key: value for key, value in (build.get("assigned") or {}).items() if key not in given}
    with option_path(f"{path}.assigned"):
        kept = check_globals(name, declared, assigned)
    with option_path("globals"):
        return {**kept, **check_globals(name, declared, given)}


def _check_value(name: str, kind: str, given: t.Any) -> str | int:
    value = int(given) if isinstance(given, bool) else given
    if kind == "string":
        return _check_string(name, str(value))
    if isinstance(value, str) and _NUMBER.match(value):
        # Python refuses to read a number of thousands of digits.
        value = int(value) if len(value) <= _MAX_STRING_BYTES else _INT64
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise InvalidInput(name, given, f"The global variable {name} takes a number of 64 bits")
        return value
    if kind == "unknown" and isinstance(value, str):
        return _check_string(name, value)
    raise InvalidInput(name, value, f"The global variable {name} takes a whole number")


def _check_string(name: str, value: str) -> str:
    # staprun hands the value over as a module parameter: name=value, split at spaces (linux/kernel/params.c).
    if re.search(r'[\s"!]', value) or len(value.encode("utf-8", "surrogatepass")) > _MAX_STRING_BYTES:
        problem = (
            f"The global variable {name} takes at most {_MAX_STRING_BYTES} bytes, without spaces, quotes and "
            "exclamation marks"
        )
        raise InvalidInput(name, value, problem)
    return value
