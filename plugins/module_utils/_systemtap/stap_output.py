# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stap prints, as data: probes, parameters, and one paragraph about what failed.

Private to the collection.
"""

from __future__ import annotations

import re
import typing as t

from .._core.errors import TapvirtError, as_sentence, did_you_mean

_PROBE_ROW = re.compile(
    r"^(?P<point>.*?) (?:/\*\s*(?:pc=(?P<pc>[^*]*?)|name = [^*]*?)\s*\*/ )?/\*\s*<- (?P<chain>.*?)\s*\*/\s*$"
)
_KEPT_OUTPUT = 3000


class BuildFailed(TapvirtError):
    """A pass of stap failed.

    ``reason`` is what stap gave, as a phrase; ``candidates`` are the names that stap offers; ``option`` is the option
    that gave the script, where the caller has named it. The fields have ``phase``, ``line`` and ``column``.
    """

    def __init__(self, message: str, reason: str, candidates: t.Sequence[str], **fields: t.Any) -> None:
        self.option: str | None = None
        self.problem = message
        self.reason = reason
        self.candidates = list(candidates)
        super().__init__(message + did_you_mean(self.candidates), **fields)

    def row(self) -> dict[str, t.Any]:
        """Return the ``error`` of a result: ``{option, value, problem, hint, candidates}``."""
        return {
            "option": self.option,
            "value": None,
            "problem": self.problem,
            "hint": None,
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


def build_failed(name: str, release: str | None, output: str) -> BuildFailed:
    """Return the error for what stap printed: the pass, the place in the script, the reason, the nearest names."""
    output = output.replace("\r\n", "\n")
    found = re.search(r"^Pass ([1-5]): (\w+) failed", output, re.MULTILINE)
    phase = found.group(2) if found else "start"
    errors = re.findall(r"^(?:parse|semantic|ERROR|error)[^:\n]*: (.*(?:\n\s+saw: .*)?)$", output, re.MULTILINE)
    place = re.search(rf"at (?:\S*/)?{re.escape(name)}\.stp:(\d+):(\d+)", output)
    line, column = (int(place.group(1)), int(place.group(2))) if place else (None, None)
    similar = re.search(r"\((?:similar[^:]*|alternatives): ([^)]*)\)", output)
    candidates = [word.strip() for word in similar.group(1).split(",")][:5] if similar else []
    source = re.search(r"^\s*source: (.*)$", output, re.MULTILINE)
    reason = _reason(errors, output)
    message = (
        f"Script {name}{f', line {line}, column {column}' if place else ''}: The {phase} of stap failed"
        f"{f' for kernel {release}' if release else ''}: {reason}"
    )
    if source:
        message += f" (in: {source.group(1).strip()})"
    return BuildFailed(
        as_sentence(message),
        reason,
        candidates,
        phase=phase,
        line=line,
        column=column,
        outcome="build_failed",
        output=output[-_KEPT_OUTPUT:],
    )


def _reason(errors: t.Sequence[str], output: str) -> str:
    # "while resolving probe point" only says where; the error after it says why.
    telling = [error for error in errors if not error.startswith("while resolving probe point")]
    if telling:
        reason = re.sub(r"\s*\((?:similar[^:]*|alternatives): [^)]*\)+", "", telling[0])
        reason = re.sub(r"\s+", " ", re.sub(r" at (?:\S*):\d+:\d+$", "", reason)).strip(" :")
        return "no function or event has that name" if reason == "no match" else reason
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("Tip:")]
    return lines[-1] if lines else "stap gave no reason"
