# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.probe_point import (
    expand_groups,
    parse_probe_point,
    parse_probe_points,
    split_probe_points,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.probe_syntax import FORMS, is_complete


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
        ("error(-2)", "error", False),
        ("never", "never", False),
        ("timer.s(5).randomize(2)", "timer", False),
        ("timer.jiffies(0x64)", "timer", False),
        ("timer.hz(1000)", "timer", False),
        ("timer.profile", "timer", False),
        ('procfs("x").read.maxsize(1024)', "procfs", False),
        ("procfs.umask(0644).write", "procfs", False),
        ("perf.type(0).config(0).sample(1000)", "perf", False),
        ('perf.type(1).config(2).process("/bin/ls").counter("found")', "perf", False),
        ('netfilter.hook("NF_INET_PRE_ROUTING").pf("NFPROTO_IPV4").priority("1")', "netfilter", False),
        ('kernel.trace("sched:sched_switch")', "tracepoint", True),
        ('module("kvm").tracepoint("kvm_exit")', "tracepoint", True),
        ('kernel.function("vfs_read@fs/read_write.c:*")', "function", True),
        ('kernel.function("vfs_*").callees(2)', "function", True),
        ('kernel.statement("vfs_read@fs/read_write.c+3").nearest', "statement", True),
        ("kernel.statement(0xffffffff81000000).absolute", "statement", True),
        ('kprobe.function("vfs_read")', "kprobe", True),
        ('kprobe.module("kvm").function("kvm_exit").return', "kprobe", True),
        ("kprobe.statement(0xffffffff81000000).absolute", "kprobe", True),
        ('kernel.data("jiffies").write', "data", True),
        ("kernel.data(0xffffffff81000000).length(8).rw", "data", True),
        ("_vfs.read", "alias", True),
        ("__scheduler.ctxswitch.tp", "alias", True),
        ('process("/bin/ls").function("main")', "process", True),
        ('process("/bin/ls").library("libc.so.6").plt("malloc").return', "process", True),
        ("process.thread.begin", "process", True),
        ("syscall.open*", "alias", True),
        ("sys**open", "alias", True),
        ("vm.pagefault.return", "alias", True),
        ("perf.hw.cpu_cycles", "alias", True),
        ("netfilter.ip.prerouting", "alias", True),
    ],
)
def test_the_kind_of_a_probe(text: str, family: str, synchronous: bool) -> None:
    point = parse_probe_point(text)
    assert (point.family, point.synchronous) == (family, synchronous)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('kernel.function("f").label("out")', {"variant": "label", "target": "out"}),
        ('kernel.function("f").callee("g*").return', {"variant": "return", "target": "g*"}),
        ('module("m").function("f").return.maxactive(20)', {"module": "m", "variant": "return", "maxactive": 20}),
        ('kernel.statement("f@a.c:10-20")', {"symbol": "f", "source": "a.c", "lines": ":10-20"}),
        ('kernel.statement("f@a.c:10,12-15")', {"lines": ":10,12-15"}),
        ('kernel.statement("f@a.c+3")', {"source": "a.c", "lines": "+3"}),
        ('kernel.statement("f@a.c:*")', {"lines": ":*"}),
        ('kernel.function("*@fs/*.c")', {"symbol": "*", "source": "fs/*.c", "lines": None}),
        ("kernel.statement(0x10).absolute", {"address": 16, "variant": "absolute"}),
        ("procfs.umask(0644).write", {"number": None}),
        ("begin(-5)", {"number": -5}),
        ("timer.us(200).randomize(50)", {"number": 200}),
        ('kernel.trace("sched:*") ?', {"symbol": "sched:*", "optional": True}),
        ("signal.*? if (on)", {"optional": True, "condition": "on", "family": "alias"}),
        ('kernel.function("a" "b")', {"symbol": "ab"}),
    ],
)
def test_the_parts_of_a_probe(text: str, expected: dict[str, object]) -> None:
    point = parse_probe_point(text)
    assert {name: getattr(point, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("syscall.{open,close}", ["syscall.open", "syscall.close"]),
        ("syscall.{open ?, close}", ["syscall.open ?", "syscall.close"]),
        (
            '{kernel,module("nfs")}.function("nfs{*").{call,return}!',
            [
                'kernel.function("nfs{*").call!',
                'kernel.function("nfs{*").return!',
                'module("nfs").function("nfs{*").call!',
                'module("nfs").function("nfs{*").return!',
            ],
        ),
        ("timer.{s(1),{ms(5),us(200)}}", ["timer.s(1)", "timer.ms(5)", "timer.us(200)"]),
    ],
)
def test_groups_are_written_out(text: str, points: list[str]) -> None:
    assert expand_groups(text) == points
    assert [point.text for point in parse_probe_points(text)] == points


def test_a_group_does_not_grow_without_bound() -> None:
    with pytest.raises(InvalidInput, match="more than 1000"):
        expand_groups("a" + ".{b,b,b,b}" * 12)


@pytest.mark.parametrize("shape", FORMS)
def test_every_shape_of_the_grammar_is_read(shape: str) -> None:
    text = shape.replace("string", '"name"').replace("number", "100000" if ".ns" in shape else "300")
    assert parse_probe_point(text).text == text


def test_forms_are_those_of_stap() -> None:
    """The digest is that of the sorted output of ``stap --dump-probe-types``, release 5.6, without one alias's two."""
    exact = (".pc(number).die(number)", ".die(number).pc(number)")
    forms = {form + end for form in FORMS for end in ("", *exact) if is_complete((form + end).split("."))}
    listed = sorted(form for form in forms if form == "timer.profile.tick" or not form.startswith("timer.profile"))
    assert len(listed) == 486
    digest = hashlib.sha256("\n".join(listed).encode()).hexdigest()
    assert digest == "5509ba9362ec353b7d70b49a955557858181d5aed02f62bcd060757c1f29dd07"


@pytest.mark.parametrize(
    "text",
    [
        'kernel.function("f").pc(0x10).die(0x20)',
        'process("a").function("f").return.die(1).pc(2)',
        'kernel.lsm("file_open")',
        'kernel.mark("getuid").format("x")',
        'debuginfod.process("/bin/ls").**',
        "perf.hw_cache.l1d.read.miss",
        "perf.sw.cpu_clock",
        "python.function.entry",
        'python3.module("m").function("f").call',
        'java("app").class("c").method("m(int):24").return',
        'java(5).class("c").method("m")',
        "input.char",
        "timer.profile.freq",
        "timer.profile.freq.hz(100)",
        'procfs("a/b").umask(0644).read.maxsize(100)',
        'netfilter.pf("NFPROTO_IPV4").hook("NF_INET_LOCAL_IN").priority("255")',
        'perf.type(0).config(1).process("p").counter("c")',
        'process("a").library("b").plt("c").return',
        "process(5).statement(0x10).absolute.return",
        'process("a").provider("p").mark("m")',
        "process.thread.begin",
        "kernel.data(0x10).length(8).rw",
        'kernel.function("f@kernel/time.c:240").callee("g").return',
        'kernel.function("f").callees(3)',
        'module("usb*").function("*sync*").label("l*")',
        'kernel.statement("bio_init@fs/bio.c+3").nearest',
        'kernel.trace("sched:sched_switch")',
        'module("nfs").tracepoint("nfs_*")',
        'kprobe.module("m").function("f").return.maxactive(10)',
        'kernel.function("no_such_function") ?',
        '{kernel,module("nfs")}.function("nfs*")!',
    ],
)
def test_forms_of_the_manual_are_valid(text: str) -> None:
    assert parse_probe_points(text)


@pytest.mark.parametrize(
    "text",
    [
        'kernel.function("f").pc(1)',
        'kernel.function("f").pc(1).pc(2)',
        'kernel.function("f").callees.pc(1).die(2)',
        'kprobe.function("f").pc(1).die(2)',
        "begin.pc(1).die(2)",
        "pc(1).die(2)",
    ],
)
def test_an_address_of_debug_information_needs_its_place(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_probe_point(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kernl.function("x")', "No kind of probe is called 'kernl'. Did you mean kernel"),
        ('kernel.function("x").cal', "Did you mean call"),
        ("kernel.function(vfs_read)", "in double quotes"),
        ('kernel.function("x").return.maxactive("a")', "the form is maxactive(number)"),
        ('kernel.function("x") foo', "instead of 'foo' at column 22"),
        ('kernel.function("f@file.c:x")', "The lines ':x' must have the form :LINE"),
        ('kernel.function("f@")', "is needed in double quotes"),
        ('kernel.function("f@a.c+1-2")', "The lines '+1-2' must have the form"),
        ("timer.s", "the form is s(number)"),
        ("timer.ns(10)", "The interval must be from 100000 to"),
        ("timer.jiffies(0)", "The interval must be from 1 to 1000000 jiffies"),
        ("timer.ms(10).randomize(11)", "The number of randomize must be from 0 to the interval, 10"),
        ("timer.hz(0)", "The number of hz must be 1 or more"),
        ('procfs("x").read.maxsize(0)', "The number of maxsize must be 1 or more"),
        ('kernel.function("x").return.maxactive(70000)', "The number of maxactive must be 65535 or less"),
        ("module.function(3)", "the form is module(string)"),
        ("kernel.function(9e9)", "a string in double quotes or a number, is expected at column 17"),
        ("{begin, end", "not closed"),
        ("timer.{}", "empty"),
        ("kernel", "not complete"),
        ('kernel.function("x"', "A closing parenthesis is expected after the argument of function at column 20"),
        ('kernel.inline("x")', "'inline' cannot follow kernel; only "),
        ('module("kvm").function(3).inline', "'inline' cannot follow "),
        ("", "A probe point such as begin or kernel.trace(...) is needed"),
    ],
)
def test_a_wrong_probe_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_probe_points(text)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_points_are_split_at_their_own_commas_only() -> None:
    text = 'kernel.function("a,b"), timer.s(3), syscall.{open,close}'
    assert split_probe_points(text) == ['kernel.function("a,b")', "timer.s(3)", "syscall.{open,close}"]
