# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the result of a run says about limits that it met."""

from __future__ import annotations

import json
import pathlib
import re
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import collect, hints

COLLECTION = pathlib.Path(__file__).parents[5]
RETURN = 'kprobe.function("hrtimer_nanosleep").return'


def missed(count: int, point: str = RETURN) -> str:
    return f"Skipped due to missed kretprobe/1 on '{point}': {count}"


FULL = "Set limits.max_map_entries of stap_module (trace_limits.max_map_entries of the role trace) to more than 2048,"


def found(
    *errors: str, warnings: t.Sequence[str] = (), hits: int = 0, limits: dict[str, t.Any] | None = None, cpus: int = 2
) -> list[str]:
    return hints.find_hints(errors, warnings, {RETURN: hits}, limits or {}, cpus)


@pytest.mark.parametrize(
    ("error", "limits", "parts"),
    [
        (
            "Array overflow, check MAXMAPENTRIES near identifier 'a' at x.stp:2:5",
            {},
            [
                "Set limits.max_map_entries of stap_module (trace_limits.max_map_entries of the role trace)",
                "2048",
            ],
        ),
        ("Array overflow, check MAXMAPENTRIES near identifier 'a'", {"max_map_entries": 9}, ["to more than 9"]),
        ("Array overflow, check size limit (5) near identifier 'a'", {}, ["with 5 entries", "global NAME%"]),
        ("aggregation overflow in global(s___global_a)", {}, ["limits.max_map_entries"]),
        ("MAXACTION exceeded near keyword at x.stp:1:3", {}, ["limits.max_action", "more than 1000"]),
        ("Skipped too many probes, check MAXSKIPPED or try again with", {}, ["limits.max_skipped", "more than 100"]),
        (
            "probe overhead (9 cycles) exceeded threshold (1 cycles) in last 2 cycles",
            {},
            ["cpu_ceiling_percent of stap_module (trace_cpu_ceiling_percent of the role trace)"],
        ),
        ("global variable 'a' allocation failed", {"max_map_entries": 10**6}, ["limits.max_memory_mb"]),
        ("kernel string copy fault at 0x(null) [man error::fault]", {}, ["limits.max_errors", "catch"]),
    ],
)
def test_an_error_names_the_option_that_helps(error: str, limits: dict[str, int], parts: list[str]) -> None:
    (hint,) = found(error, error, limits=limits)
    assert all(part in hint for part in parts) and hint.endswith("."), hint


def test_the_guide_shows_the_message() -> None:
    error = "Array overflow, check MAXMAPENTRIES near identifier 'seen' at full.stp:2:26"
    page = COLLECTION.joinpath("docs/docsite/rst/guide_builders.rst").read_text(encoding="utf-8")
    assert f"The run ended as script_error: {error}. {found(error)[0]}" in " ".join(page.split())


def test_other_errors_have_no_hint() -> None:
    assert found("division by 0 near operator '/' at x.stp:1:1", "MAXACTIONS", "my own fault") == []
    # It is set, and was too low or of no help.
    assert found("kernel string copy fault at 0x0", limits={"max_errors": 3}) == []


@pytest.mark.parametrize(
    ("point", "count", "hits", "cpus", "limits", "text"),
    [
        # 15 calls at the same time (2 CPUs); one more for each that was missed suffices.
        (RETURN, 5, 1000, 2, {}, ".maxactive(20) behind .return in the script, or set limits.max_active"),
        # 24 on 4 CPUs, nothing was hit: no rate is known.
        (RETURN, 100, 0, 4, {}, "at most 24 calls were followed at the same time. Write .maxactive(124) behind"),
        # All of 15 in use all the time, a tenth was missed: 15 * 1100 / 1000, twice.
        (RETURN, 100, 1000, 2, {}, "Write .maxactive(33) behind"),
        (
            RETURN,
            5,
            1000,
            2,
            {"max_active": 40},
            "at most 40 calls were followed at the same time. Write .maxactive(45)",
        ),
        (RETURN + ".maxactive(1)", 1131, 0, 2, {}, "Write .maxactive(1132) in the script instead."),
        (RETURN, 10**9, 0, 2, {}, ".maxactive(4096) behind"),
        (RETURN + ".maxactive(5000)", 3, 0, 2, {}, "No larger number is possible."),
    ],
)
def test_missed_returns_name_a_number(
    point: str, count: int, hits: int, cpus: int, limits: dict[str, t.Any], text: str
) -> None:
    (hint,) = found(warnings=[missed(count, point)], hits=hits, cpus=cpus, limits=limits)
    assert hint.startswith(f"{count} returns of {point} were missed, because at most ") and text in hint, hint


def test_only_missing_room_for_calls_names_maxactive() -> None:
    others = ["kretprobe/2 on 'x'", "kprobe on 'x'"]
    assert found(warnings=[f"Skipped due to missed {other}: 7" for other in others]) == []
    (hint,) = found(warnings=["Skipped due to global 'calls' lock timeout: 12", "Skipped due to reentrancy: 3"])
    assert "limits.max_trylock" in hint and "more than 100" in hint


def test_many_hints_are_cut() -> None:
    assert len(found(warnings=[missed(number) for number in range(1, 50)])) == 5


def test_a_result_has_hints_and_the_reason_for_guru_mode(tmp_path: pathlib.Path) -> None:
    request = {
        "build": {"name": "x", "sha256": "0", "kernel": "6.1", "probes": []},
        "limits": {"max_map_entries": 50},
        "guru_reason": "a counter in C",
        "schema": {},
        "builder": {},
        "path": "/x.ko",
        "record_limit": 10,
        "tainted": 0,
    }
    report = f"----- probe hit report:\n{RETURN}, (x.stp:1:1), hits: 1000, cycles: 1min/1avg/1max, from: x, index: 0\n"
    errors = f"ERROR: Array overflow, check MAXMAPENTRIES near x\nWARNING: {missed(5, RETURN + '.maxactive(10)')}\n"
    for name, text in (("request.json", json.dumps(request)), ("output", report), ("errors", errors)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    result = collect.read_result(str(tmp_path), {"state": "done", "armed_seconds": 1.0, "rc": 1})
    assert (result["outcome"], result["guru_reason"]) == ("script_error", "a counter in C")
    full, returns = result["hints"]
    assert "more than 50" in full and re.search(r"\.maxactive\(15\) in the script", returns), result["hints"]
