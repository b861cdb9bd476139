# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a script whatever the kernel is. The verdicts are those of ``stap -p2``, release 5.6."""

from __future__ import annotations

import time

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.grammar import parse
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.tokens import ScriptError
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.request import read_order
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script.check import read_script

NOWHERE = "which fires at no function."
UNDECLARED = "The array a is not declared; declare it outside of the probes: global a."
NEEDS_GURU = "which is memory of the kernel and needs guru mode (guru and guru_reason)."
PROGRAM = "Probes at places in programs (function, statement, mark, plt) are not supported yet; process.begin, "
TEMPLATE = "belongs to a template that was not rendered; stap_script renders the file of its option src."


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("probe begin { println($x) }", 23, f"$x does not exist in the probe begin, {NOWHERE}"),
        ("probe begin ? { println($x) }", 25, NOWHERE),
        ("probe begin { println($$vars) }", 23, NOWHERE),
        ('probe begin, kernel.function("vfs_read") { println($count) }', 52, NOWHERE),
        ("probe end { x = $y; print(x) }", 17, f"$y does not exist in the probe end, {NOWHERE}"),
        ("global s probe timer.s(1) { s <<< $x }", 35, NOWHERE),
        ('probe kernel.function("vfs_read") { $count = 1 }', 37, f"The script writes to $count, {NEEDS_GURU}"),
        ('probe kernel.function("vfs_read").return { $return += 1 }', 44, NEEDS_GURU),
        ('probe kernel.function("vfs_read") { $file->f_pos = 1 }', 37, NEEDS_GURU),
        ('probe kernel.function("vfs_read") { ++$file->f_pos }', 39, NEEDS_GURU),
        ('probe kernel.trace("sched:sched_switch") { $prev = 1 }', 44, NEEDS_GURU),
        (
            'probe kernel.function("vfs_read") { @cast($file, "file")->f_pos = 1 }',
            37,
            f"The script writes to @cast(...), {NEEDS_GURU}",
        ),
        ("probe begin { a[1] = 2 }", 15, UNDECLARED),
        ("probe begin { if (0) a[1] = 2; exit() }", 22, UNDECLARED),
        ("probe begin { foreach (k in a) println(k) }", 29, UNDECLARED),
        ("probe begin { if (1 in a) println(1) }", 24, UNDECLARED),
        ("probe begin { delete a[1] }", 22, UNDECLARED),
        ("function g() { a[1] = 2 } function f() { g() } probe begin { f() }", 16, UNDECLARED),
        ("global cals probe begin { calls[1] = 2 }", 27, "global calls. Did you mean cals?"),
        (
            "probe begin { exit }",
            15,
            "exit without parentheses calls no function and has no effect. Did you mean exit()?",
        ),
        ("probe begin { if (1) exit; else println(1) }", 22, "Did you mean exit()?"),
        ("function f() { println(1) } probe begin { f }", 43, "Did you mean f()?"),
        ("probe begin { if (1) { } elif (2) { } }", 26, "The language has no 'elif'. Did you mean else if?"),
        ("probe begin { if (1) { } elif (2) { } elif (3) { } }", 26, "Did you mean else if?"),
        ('probe process("/bin/ls").function("main") { }', 7, PROGRAM),
        ('probe process("/bin/ls").mark("x")? { }', 7, PROGRAM),
        ('probe process("/bin/ls").statement("main@ls.c:7") { }', 7, PROGRAM),
        ('probe begin { exit() } probe process("/bin/ls").{begin, mark("x")} { }', 30, PROGRAM),
        ("probe begin { {{ x }} }", 15, f"{{{{ x }}}} {TEMPLATE}"),
        ("global t = {{ value | default('a') }} probe begin { }", 12, f"{{{{ value | default('a') }}}} {TEMPLATE}"),
        ("probe begin { {{ x | default(1) }} }", 15, f"{{{{ x | default(1) }}}} {TEMPLATE}"),
        ("probe begin { if (1) { next } println(2) println(3); exit() } probe end { println($x) }", 83, NOWHERE),
        ("global g probe begin { if (g) next; else next; println($x) }", 56, NOWHERE),
        ("global g probe begin { while (g) { next } println($x) }", 51, NOWHERE),
        ("probe begin { try { println(1) next } catch { next } println($x) }", 62, NOWHERE),
        ("probe begin { println($x); next; println(1) }", 23, NOWHERE),
        ("probe begin { next; a[1] = 2 }", 21, UNDECLARED),
        (
            'probe kernel.function("vfs_read") { next; @cast($file, "file")->f_pos = 1 }',
            43,
            f"The script writes to @cast(...), {NEEDS_GURU}",
        ),
        ("{% if x %} probe begin { } {% endif %}", 1, f"{{% if x %}} {TEMPLATE}"),
        ('probe kernel.function("{{ function }}") { }', 7, f"{{{{ function }}}} {TEMPLATE}"),
    ],
)
def test_a_fault_of_the_analysis_is_found_before_it(text: str, column: int, message: str) -> None:
    with pytest.raises(ScriptError) as caught:
        read_script("s", text, guru=False)
    assert caught.value.message.startswith(f"Script s, line 1, column {column}: "), caught.value.message
    assert message in caught.value.message
    # A builder says the same of a script that no task has checked.
    script = {"name": "s", "text": text, "schema": {}, "assigned": {}}
    with pytest.raises(TapvirtError) as of_builder:
        read_order(script)
    assert of_builder.value.message == caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "probe begin { if (@defined($x)) println($x) exit() }",
        "probe begin { if (0) println($x); exit() }",
        "probe begin { println(@choose_defined($x, 1)) exit() }",
        "probe begin { y = $x; exit() }",
        "function f() { return $x } probe begin { println(1) }",
        'probe kernel.function("nosuch")? { $count = 1 } probe begin { exit() }',
        'probe kernel.function("vfs_read") { if (@defined($nosuch)) $nosuch = 1 exit() }',
        'probe own = kernel.function("vfs_read") { $count = 1 } probe begin { exit() }',
        'probe procfs.read { $value = "1" } probe procfs.write { print($value) }',
        "function g() { a[1] = 2 } probe begin { exit() }",
        'probe kernel.function("nosuch")? { a[1] = 2 } probe begin { exit() }',
        "probe begin { println(argv[1]) }",
        "global a probe begin { a[1] = 2 foreach (k in a) print(k) }",
        '%( arch == "arm" %? global a %) probe begin { a[1] = 2 }',
        "probe begin { exit = 1; exit }",
        "global exit probe begin { exit }",
        "function elif(x) { return x } probe begin { elif(1) { } }",
        'probe process("/bin/ls").begin, process.syscall { println(1) }',
        'probe begin { printf("{{ %d }}", 1) {{ exit() }} }',
        # stap removes what follows these in a block before it looks for a $variable.
        "probe begin { next; println($x) }",
        "probe begin { next println($x) }",
        "probe begin { { println(1) next } println($x) }",
        "probe begin { x = $x; next; println(x) }",
        "global g probe begin { while (g) { println(1) break; println($x) } }",
        "global g probe begin { for (;;) { println(1) continue println($x) } }",
        "global a probe begin { foreach (k in a) { println(k) next; println($x) } a[1] = 2 }",
        "global g probe begin { if (g) println(1) else { next; println($x) } }",
        "probe begin { try { next; println($x) } catch { println(2) } }",
        'probe begin { if ("a" == "b") println($x) exit() }',
        'probe kernel.function("vfs_read") { next; $count = 1 }',
        # Groups of groups, and blocks in blocks.
        "probe syscall.{{read,write},{open}} { println(1) }",
        "probe timer.{{s(1),ms(2)},{us(100)}} { println(1) }",
        "probe timer.{{s(1)}} { println(1) }",
        "probe begin {{ next }}",
        "global x probe timer.s(1) { if (x) {{ return_value = x }} x++ println(return_value) }",
        "probe begin {{ x || exit() }}",
    ],
)
def test_what_stap_accepts_is_accepted(text: str) -> None:
    assert read_script("s", text, guru=False).probes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("probe begin {%{ x %}}", "column 14: Embedded C can do what SystemTap does not check"),
        ("probe syscall.{{read,write},{open close}} { }", "column 35: 'close' was found where "),
    ],
)
def test_braces_of_the_language_are_no_template(text: str, message: str) -> None:
    with pytest.raises(ScriptError) as caught:
        read_script("s", text, guru=False)
    assert message in caught.value.message and TEMPLATE not in caught.value.message


OWN_ARRAY = "probe begin { own_calls[1] = 2; exit() }"


def test_an_own_tapset_may_declare_the_arrays() -> None:
    with pytest.raises(ScriptError, match="The array own_calls is not declared"):
        read_script("s", OWN_ARRAY)
    # On the controller the tapsets are not known, on the builder they are.
    assert read_script("s", OWN_ARRAY, tapset=None).probes
    assert read_script("s", OWN_ARRAY, tapset=["own_calls"]).probes
    with pytest.raises(ScriptError, match="The array own_calls is not declared"):
        read_script("s", OWN_ARRAY, tapset=["own_call"])


def test_a_builder_reads_an_order_with_own_tapsets() -> None:
    script = {"name": "s", "text": OWN_ARRAY, "schema": {}, "assigned": {}}
    assert read_order(script, own_tapsets=True) == script
    with pytest.raises(TapvirtError, match="The array own_calls is not declared"):
        read_order(script)


def test_guru_mode_may_write() -> None:
    assert read_script("s", 'probe kernel.function("vfs_read") { $count = 1 }', guru=True).probes


def test_the_grammar_says_nothing_of_them() -> None:
    for text in ("probe begin { exit }", "probe begin { a[1] = 2 }", "probe begin { println($x) }"):
        assert parse("s", text, guru=False).probes


def test_a_long_script_takes_linear_time() -> None:
    def seconds(times: int) -> float:
        text = "".join(f"function f{n}() {{ exit; print(n{n}) }} " for n in range(times))
        body = "".join(f"f{n}() b[{n}] = $x->y[{n}] " for n in range(times))
        begin = time.process_time()
        read_script("s", f'global b {text} probe kernel.function("x") {{ {body} }}'.replace("exit;", "exit();"), True)
        return time.process_time() - begin

    assert seconds(4000) < 12 * max(seconds(1000), 0.02)
