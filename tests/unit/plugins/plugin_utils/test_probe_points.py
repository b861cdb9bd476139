# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which probe points of a script a kernel must have, and what refuses it before a build."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.probe_points import (
    probe_points,
    refusal,
    trace_refusal,
    undecided_points,
)

SCRIPT = """
probe kernel.function("a").call, kernel.function("b").return ?, vm.pagefault, kernel.trace("x:y") {}
probe kernel.function("c") !, kernel.function("d") {}
probe own = kernel.function("q") {}
probe own, begin, timer.s(1), process("/bin/sh").function("main") {}
probe module("kvm").function("e").return, kprobe.function("z"), {kernel.function("l"), kernel.function("m")}.call {}
%( kernel_v >= "6.6" %? probe kernel.function("new").call {} %: probe kernel.function("old").call {} %)
probe kernel.function("a").call {}
"""
FIRST = [
    'kernel.function("a").call',
    'kernel.trace("x:y")',
    'module("kvm").function("e").return',
    'kprobe.function("z")',
]


def script(text: str) -> dict[str, t.Any]:
    return {"name": "x", "text": text, "guru": False}


def row(
    probe: str, family: str = "function", verdict: str = "missing", nearest: tuple[str, ...] = ()
) -> dict[str, t.Any]:
    reason = "is there" if verdict == "armable" else "no such function here"
    return {"probe": probe, "family": family, "verdict": verdict, "reason": reason, "candidates": list(nearest)}


@pytest.mark.parametrize(("release", "branch"), [("6.12.107+deb13-amd64", "new"), ("6.1.0-50-amd64", "old")])
def test_points_that_the_kernel_must_have_and_no_others(release: str, branch: str) -> None:
    assert probe_points(script(SCRIPT), release) == [*FIRST, f'kernel.function("{branch}").call']


def test_a_conditional_that_only_the_builder_can_evaluate_leaves_the_script_to_it() -> None:
    assert probe_points(script(SCRIPT + '%( CONFIG_KVM == "y" %? probe end {} %)'), "6.12.1") == []
    assert probe_points(script(SCRIPT + "function arch() { return 1 }"), "6.12.1") == []
    assert probe_points({}, "6.12.1") == []


def test_a_missing_function_is_named_once_with_the_nearest_names() -> None:
    rows = [
        row('kernel.function("vfs_raed").call', nearest=("vfs_read", "vfs_readv")),
        row('kernel.function("vfs_raed").return'),
        row('kernel.function("vfs_write").call', verdict="armable"),
    ]
    message = 'kernel.function("vfs_raed").call: no such function here (nearest: vfs_read, vfs_readv)'
    assert refusal(rows, [], "6.1") == f"kernel 6.1 does not have {message}"
    assert undecided_points(rows) == []
    assert refusal(rows[2:], [], "6.1") == ""


@pytest.mark.parametrize(
    ("probe", "family", "verdict"),
    [
        ('kernel.function("f")', "function", "missing"),
        ('kernel.function("f").inline', "function", "missing"),
        ('kernel.trace("kvm:kvm_exit")', "tracepoint", "missing"),
        ('module("nbd").function("f").call', "function", "module_not_loaded"),
    ],
)
def test_what_debug_information_may_know_is_left_to_the_builder(probe: str, family: str, verdict: str) -> None:
    rows = [row(probe, family, verdict)]
    assert undecided_points(rows) == [probe]
    assert refusal(rows, [], "6.1") == ""
    assert refusal(rows, [row(probe, family, "listed")], "6.1") == ""
    listed = [row(probe, family, nearest=("g",))]
    assert refusal(rows, listed, "6.1") == f"kernel 6.1 does not have {probe}: no such function here (nearest: g)"


@pytest.mark.parametrize("verdict", ["unknown", "optimised_variant_only", "blacklisted"])
def test_only_what_is_missing_refuses(verdict: str) -> None:
    assert refusal([row('kernel.function("f").call', verdict=verdict)], [], "6.1") == ""


def test_many_missing_points_are_counted() -> None:
    rows = [row(f'kprobe.function("f{number}")', "kprobe") for number in range(5)]
    assert refusal(rows, [], "6.1").endswith('; kprobe.function("f2"): no such function here; and 2 more')


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (None, "it is missing"),
        ("x", "it is 'x', not a list"),
        ([{"probe": 1}], "[0].probe is 1, not a probe point"),
        ([{"probe": "nonsense("}], "[0].probe is 'nonsense(', not a probe point"),
        ([{**row('kernel.function("f")'), "candidates": [5]}], "[0].candidates[0] is 5, not a text"),
        ([{**row('kernel.function("f")'), "verdict": None}], "[0].verdict is missing"),
    ],
)
def test_rows_that_are_something_else_are_named(rows: t.Any, problem: str) -> None:
    for probes, listed, name in ((rows, [], "probes"), ([], rows, "listed")):
        with pytest.raises(TapvirtError) as caught:
            trace_refusal(probes, listed=listed, release="6.1")
        assert str(caught.value) == f"trace_refusal: {name} is not what stap_probe_info returns: {problem}."


def test_a_refusal_has_a_reason_and_the_points_that_only_the_builder_knows() -> None:
    rows = [row('kernel.function("f").call'), row('kernel.function("g")')]
    found = trace_refusal(rows, release="6.1")
    assert found["undecided"] == ['kernel.function("g")']
    assert found["reason"] == refusal(rows, [], "6.1") != ""
