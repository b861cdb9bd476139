# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stap prints, as data: probes, parameters, and one paragraph about what failed.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import re
import signal
import typing as t

from .._core.command import CommandResult
from .._core.errors import TapvirtError, as_sentence, did_you_mean

_PROBE_ROW = re.compile(
    r"^(?P<point>.*?) (?:/\*\s*(?:pc=(?P<pc>[^*]*?)|name = [^*]*?)\s*\*/ )?/\*\s*<- (?P<chain>.*?)\s*\*/\s*$"
)
# Places in debug information, which are of no use to a reader: manual page, offset of the entry, address.
_DWARF_PLACE = re.compile(
    r",?\s*(?:\[man [^\]]*\]|\(?dieoffset:? 0x[0-9a-f]+\)?(?: (?:in|from) [^\s,]+)?|near pc 0x[0-9a-f]+)"
)
_KEPT_OUTPUT = 3000
_SHOWN_CHARS = 200
_NO_MATCH = "no function or event has that name"


class BuildFailed(TapvirtError):
    """A pass of stap failed.

    ``candidates`` are the names that stap offers; ``hint`` is a whole sentence that says what to do; ``option`` is the
    option that gave the script, where the caller has named it. The fields have ``phase``, ``line`` and ``column``.
    """

    def __init__(self, message: str, candidates: t.Sequence[str], hint: str | None = None, **fields: t.Any) -> None:
        self.option: str | None = None
        self.problem = message
        self.hint = hint
        self.candidates = list(candidates)
        super().__init__(message + (f" {hint}" if hint else "") + did_you_mean(self.candidates), **fields)

    def row(self) -> dict[str, t.Any]:
        """Return the ``error`` of a result: ``{option, value, problem, hint, candidates}``."""
        return {
            "option": self.option,
            "value": None,
            "problem": self.problem,
            "hint": self.hint,
            "candidates": self.candidates,
        }


def parse_parameters(text: str) -> dict[str, str]:
    """Return the global variables that a module takes when it is loaded, from ``modinfo -F parm``: name to type."""
    kinds = {"int64_t": "long", "string": "string"}
    found = re.findall(r"^(\w+):(?:.*\()?(int64_t|string)\)?$", text, re.MULTILINE)
    return {name: kinds[kind] for name, kind in found if not name.startswith("_stp_")}


def parse_probe_rows(text: str) -> list[dict[str, t.Any]]:
    """Return the probes that pass 2 resolved, as ``point, asked, place, optional, helper``.

    ``asked`` is what the script says. ``place`` is where the probe will sit: ``_stext+0x430990``,
    ``kvm_amd:svm_invoke_exit_handler+0``, or null for probes that sit at no place in the code. A ``helper`` is a probe
    at a function's entry that stap itself added, for ``@entry`` in a ``.return`` probe.
    """
    rows = []
    _before, _mark, listing = text.partition("# probes\n")
    for line in listing.splitlines():
        found = _PROBE_ROW.match(line)
        if found is None or line.startswith(" "):
            continue
        place = (found.group("pc") or "").strip().strip("<>")
        chain = found.group("chain").split(" <- ")
        rows.append(
            {
                "point": found.group("point").rstrip("?! "),
                "asked": chain[-1],
                "place": place or None,
                "optional": found.group("point").endswith(("?", "!")),
                "helper": ".return" in chain[0] and ".return" not in found.group("point"),
            }
        )
    return rows


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a pass of stap failed: what it printed, as data.

    ``reason`` is a phrase; ``line`` and ``column`` the place in the script; ``source`` the line there; ``output`` all
    that stap printed.
    """

    phase: str
    reason: str
    candidates: list[str]
    line: int | None
    column: int | None
    source: str | None
    output: str
    hint: str | None = None

    @property
    def is_no_match(self) -> bool:
        """Tell whether a probe point matched nothing."""
        return self.reason == _NO_MATCH


def has_verdict(output: str) -> bool:
    """Tell whether what stap printed about a failure says what is wrong with the script."""
    return re.search(r"^(?:parse|semantic) error: ", output, re.MULTILINE) is not None


def read_failure(name: str, output: str) -> Failure:
    """Return what stap printed about its failure: the pass, the place in the script, the reason, the nearest names."""
    output = output.replace("\r\n", "\n")
    found = re.search(r"^Pass ([1-5]): (\w+) failed", output, re.MULTILINE)
    errors = re.findall(r"^(?:parse|semantic|ERROR|error)[^:\n]*: (.*(?:\n\s+saw: .*)?)$", output, re.MULTILINE)
    place = re.search(rf"at (?:\S*/)?{re.escape(name)}\.stp:(\d+):(\d+)", output)
    similar = re.search(r"\((?:similar[^:]*|alternatives): ([^)]*)\)", output)
    source = re.search(r"^\s*source: (.*)$", output, re.MULTILINE)
    return Failure(
        phase=found.group(2) if found else "start",
        reason=_reason(errors, output),
        candidates=[word.strip() for word in similar.group(1).split(",")][:5] if similar else [],
        line=int(place.group(1)) if place else None,
        column=int(place.group(2)) if place else None,
        source=source.group(1).strip() if source else None,
        output=output,
    )


def check_finished(result: CommandResult) -> CommandResult:
    """Return what stap did if it ended on its own, whatever its verdict.

    :raises TapvirtError: it was killed, by a signal or by its limit of memory, so that it gave no verdict.
    """
    # stap ends with 128 + number where a child of its own was killed.
    number = -result.rc if result.rc < 0 else max(result.rc - 128, 0)
    if not number:
        return result
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    last = (result.stderr.strip().splitlines() or [""])[-1].strip()[:_SHOWN_CHARS]
    detail = f"; it printed last: {last}" if last else ""
    raise TapvirtError(f"{' '.join(result.argv)!r} was killed by {name} and gave no verdict{detail}.")


def build_failed(name: str, release: str | None, failure: Failure) -> BuildFailed:
    """Return the error for a failed pass.

    :param release: the kernel that was built for; None without one.
    """
    place = "" if failure.line is None else f", line {failure.line}"
    place += "" if failure.column is None else f", column {failure.column}"
    message = (
        f"Script {name}{place}: The {failure.phase} of stap failed"
        f"{f' for kernel {release}' if release else ''}: {failure.reason}"
    )
    if failure.source:
        message += f" (in: {failure.source})"
    return BuildFailed(
        as_sentence(message),
        failure.candidates,
        failure.hint,
        phase=failure.phase,
        line=failure.line,
        column=failure.column,
        outcome="build_failed",
        output=failure.output[-_KEPT_OUTPUT:],
    )


def _reason(errors: t.Sequence[str], output: str) -> str:
    # "while resolving probe point" only says where; the error after it says why.
    telling = [error for error in errors if not error.startswith("while resolving probe point")]
    if telling:
        reason = re.sub(r"\s*\((?:similar[^:]*|alternatives): [^)]*\)+", "", telling[0])
        reason = _DWARF_PLACE.sub("", reason)
        reason = re.sub(r"\s+", " ", re.sub(r" at (?:\S*):\d+:\d+$", "", reason)).strip(" :")
        return _NO_MATCH if reason == "no match" else reason
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("Tip:")]
    return lines[-1] if lines else "stap gave no reason"
