# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a build failed, beyond what stap says: the compiler's first error, whose code it is, and what a point lacks.

Private to the collection. What gcc, clang, make and modpost print is in tests/unit/fixtures/systemtap.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ..._core.errors import TapvirtError
from ..language.grammar import parse
from ..language.probe_point import ProbePoint, expand_groups, parse_probe_point
from ..language.probe_syntax import WILD
from ..language.tokens import Token, tokenize
from ..stap_output import Failure

_ERROR = re.compile(r"^(?P<file>[^\s:][^:\n]*):(?P<line>\d+):(?:\d+:)? (?:fatal )?error: (?P<text>.*)$", re.MULTILINE)
# gcc and clang, their predecessors, make, and stap itself.
_KILLED = re.compile(
    r"^.*(?:fatal error: \w+ signal terminated program|internal compiler error: \w+ \(program|out of memory|"
    r"virtual memory exhausted|unable to execute command: \w+|command failed due to signal|std::bad_alloc|"
    r"CPU time limit exceeded|\] (?:Killed|Terminated)\b).*$",
    re.MULTILINE,
)
_FULL = re.compile(r"^.*No space left on device.*$", re.MULTILINE)
_NO_COMPILER = re.compile(r"^.*(?:: not found|: command not found|: No such file or directory)$", re.MULTILINE)
_MODPOST = re.compile(r"^ERROR: modpost: .*$", re.MULTILINE)
_SYMBOL = re.compile(r"[\"']([A-Za-z_]\w*)[\"']")
_MAKE = re.compile(r"^make(?:\[\d+\])?: \*\*\* (?!Waiting).*$", re.MULTILINE)
_TESTED = re.compile(r"^Kernel version \S+ is .*tested range (.*)$", re.MULTILINE)
_INCLUDED = re.compile(r"^(?:In file included from|\s+from) ([^:\n]+):\d+[:,]", re.MULTILINE)
# The directory that stap made for a compile.
_WORK = re.compile(r"(?:/[^\s:/]+)*/stap[A-Za-z0-9]{6}/")
_SHOWN_CHARS = 300


def explain_compile(failure: Failure, text: str, limits: str) -> Failure:
    """Return a failure of pass 4 with the compiler's own first error, and whose code it refuses.

    :param text: the script.
    :param limits: what a compile may use, as the end of a sentence.
    """
    if failure.phase not in ("compilation", "start"):
        return failure
    output = failure.output
    killed, full = _KILLED.search(output), _FULL.search(output)
    if full is not None:
        return _explained(failure, "the builder's disk is full", full, "Free space where the store is")
    if killed is not None:
        hint = f"The builder needs more free memory, or the script has to be smaller: a compile may use {limits}"
        what = "stap was killed" if failure.phase == "start" else "the compiler was killed"
        return _explained(failure, what, killed, hint)
    if failure.phase == "start":
        return failure
    error = _ERROR.search(output)
    if error is not None:
        return _explain_error(failure, error, text)
    modpost = _MODPOST.search(output)
    if modpost is not None:
        return _explain_symbol(failure, modpost, text)
    missing = _NO_COMPILER.search(output)
    if missing is not None:
        return _explained(failure, "make could not run a program", missing, "Install the program on the builder")
    make = _MAKE.search(output)
    return failure if make is None else _explained(failure, "make failed", make, None)


def _explained(failure: Failure, what: str, found: t.Match[str], hint: str | None, line: int | None = None) -> Failure:
    own = _WORK.sub("", found.group(0).strip())[:_SHOWN_CHARS]
    return dataclasses.replace(
        failure,
        reason=f"{what}: {own}",
        candidates=[],
        line=line,
        column=None,
        source=None,
        hint=None if hint is None else hint + ".",
    )


def _explain_error(failure: Failure, error: t.Match[str], text: str) -> Failure:
    """Tell the script's embedded C from SystemTap's own by the line of code that the compiler shows."""
    blocks = [token for token in tokenize(text) if token.kind == "embedded"]
    line = None
    if _WORK.search(error.group("file")):
        line = _line_of(failure.output[error.end() :], blocks)
    elif _is_included_by_script(failure.output[: error.start()], blocks):
        return _explained(failure, "the compiler refuses what the script's embedded C includes", error, None)
    if line is not None:
        return _explained(failure, "the compiler refuses the script's embedded C", error, None, line)
    return _explained(failure, "SystemTap's runtime does not compile for this kernel", error, _newer(failure))


def _line_of(after: str, blocks: t.Sequence[Token]) -> int | None:
    """Return the line of the script that the compiler shows after an error; None where it is not in embedded C."""
    shown = re.match(r"\n\s*(?:\d+ \| ?)?(.*)", after)
    code = " ".join(shown.group(1).split()) if shown else ""
    if not code:
        return None
    for block in blocks:
        for number, line in enumerate(block.text.split("\n"), block.line):
            if code in " ".join(line.split()):
                return number
    return None


def _is_included_by_script(before: str, blocks: t.Sequence[Token]) -> bool:
    """Tell whether a header was included by the generated file itself, and the script's embedded C includes some."""
    chain = _INCLUDED.findall(before)
    by_runtime = any("/runtime/" in name for name in chain)
    return bool(chain) and not by_runtime and any(re.search(r"#\s*include", block.text) for block in blocks)


def _explain_symbol(failure: Failure, error: t.Match[str], text: str) -> Failure:
    symbol = _SYMBOL.search(error.group(0))
    name = symbol.group(1) if symbol else ""
    for block in (token for token in tokenize(text) if token.kind == "embedded"):
        found = re.search(rf"\b{re.escape(name)}\b", block.text) if name else None
        if found is not None:
            line = block.line + block.text.count("\n", 0, found.start())
            what = f"the script's embedded C uses {name}, which the kernel does not export to this module"
            return _explained(failure, what, error, None, line)
    what = "SystemTap's runtime uses what this kernel does not export"
    return _explained(failure, what, error, _newer(failure))


def _newer(failure: Failure) -> str:
    tested = _TESTED.search(failure.output)
    range_text = f"; this one was tested with {tested.group(1)}" if tested else ""
    return f"Update SystemTap on the builder{range_text}"


def failed_point(failure: Failure, text: str) -> ProbePoint | None:
    """Return the probe point of a script that a failure is about, None where that is not known."""
    try:
        points = parse("", text, guru=True).points
        found = next(point for point in points if (point.line, point.column) == (failure.line, failure.column))
        return parse_probe_point(expand_groups(found.text)[0])
    except (StopIteration, TapvirtError):
        return None


def explain_no_match(
    failure: Failure,
    point: ProbePoint,
    is_built_in: t.Callable[[str], bool],
    has_in_kernel: t.Callable[[str], bool],
) -> Failure:
    """Return a failure to find a probe point with the reason: a module that is built in, no inlined copy.

    :param is_built_in: tells whether the kernel image contains a module, as far as the builder knows.
    :param has_in_kernel: tells whether the kernel itself has a function; asked for no other module.
    """
    symbol = point.symbol
    if not failure.is_no_match or symbol is None:
        return failure
    instead = f'kernel.function("{symbol}")'
    if point.module is not None and not WILD.search(point.module) and not failure.candidates:
        name = point.module.replace("-", "_")
        if is_built_in(name):
            reason = f"{name} is built into the kernel: probe it as {instead}"
        elif has_in_kernel(symbol):
            reason = f"the kernel itself has {symbol}, so {name} is built in: probe it as {instead}"
        else:
            return dataclasses.replace(failure, reason=f"there is no debug information of a module {name}")
        return dataclasses.replace(failure, reason=reason, candidates=[instead])
    if point.variant == "inline" and symbol in failure.candidates:
        place = "kernel" if point.module is None else f'module("{point.module}")'
        instead = f'{place}.function("{symbol}")'
        reason = f"the function exists, but the compiler made no inlined copy of it: probe it as {instead}"
        return dataclasses.replace(failure, reason=reason, candidates=[instead])
    return failure
