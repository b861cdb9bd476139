# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.probes import (
    SHAPES,
    parse_probe_point,
    split_probe_points,
)


def test_a_function_probe_is_taken_apart() -> None:
    point = parse_probe_point(
        'module("kvm").function("kvm_vcpu_ioctl@virt/kvm/kvm_main.c:4310").return.maxactive(20) ? if (on)'
    )
    assert (point.family, point.module, point.symbol, point.source, point.lines) == (
        "function",
        "kvm",
        "kvm_vcpu_ioctl",
        "virt/kvm/kvm_main.c",
        ":4310",
    )
    assert (point.variant, point.maxactive, point.optional, point.sufficient, point.condition) == (
        "return",
        20,
        True,
        False,
        "on",
    )
    assert point.synchronous


@pytest.mark.parametrize(
    ("text", "family", "synchronous"),
    [
        ("begin", "begin", False),
        ("end(5)", "end", False),
        ("timer.s(5).randomize(2)", "timer", False),
        ("timer.profile", "timer", False),
        ('procfs("x").read.maxsize(1024)', "procfs", False),
        ('kernel.trace("sched:sched_switch")', "tracepoint", True),
        ('kernel.statement("vfs_read@fs/read_write.c+3").nearest', "statement", True),
        ("kernel.statement(0xffffffff81000000).absolute", "statement", True),
        ('kprobe.module("kvm").function("kvm_exit").return', "kprobe", True),
        ('kernel.data("jiffies").write', "data", True),
        ("perf.type(0).config(0).sample(1000)", "perf", True),
        ("syscall.open*", "alias", True),
    ],
)
def test_the_kind_of_a_probe(text: str, family: str, synchronous: bool) -> None:
    point = parse_probe_point(text)
    assert (point.family, point.synchronous) == (family, synchronous)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_the_grammar_is_read(shape: str) -> None:
    text = shape.replace("string", '"name"').replace("number", "3")
    assert parse_probe_point(text).text == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kernl.function("x")', "Nearest: kernel"),
        ('kernel.function("x").cal', "Nearest: call"),
        ("kernel.function(vfs_read)", "in double quotes"),
        ('kernel.function("x").return.maxactive("a")', "the form is maxactive(number)"),
        ('kernel.function("x") foo', "column 22"),
        ('kernel.function("f@file.c:x")', "line form ':x'"),
        ("timer.s", "the form is s(number)"),
        ("kernel", "not complete"),
        ('kernel.function("x"', "closing parenthesis"),
        ('kernel.inline("x")', ".inline after kernel"),
        ('module("kvm").function(3).inline', ".inline after"),
        ("", "needs a word"),
    ],
)
def test_a_wrong_probe_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_probe_point(text)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_points_are_split_at_their_own_commas_only() -> None:
    text = 'kernel.function("a,b"), timer.s(3), syscall.{open,close}'
    assert split_probe_points(text) == ['kernel.function("a,b")', "timer.s(3)", "syscall.{open,close}"]
