# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that change a module: limits, symbols for stacks and tapsets, down to the command line of stap."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.preprocessor import Target
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.tokens import ScriptError
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import build, settings, tapset
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.compilers import Origin
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.settings import Settings
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import Store
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.toolchain import Kernel, Toolchain
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script_limits import SCRIPT_LIMITS
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.stap_output import BuildFailed

RELEASE = "6.12.107+deb13-cloud-amd64"
TOOLS = Toolchain("5.6", "Systemtap translator/driver (version 5.6/0.196)", None, [])
KERNEL = Kernel(RELEASE, "#1", Origin("gcc", 14), None, None, "")
OWN = 'probe own.read = kernel.function("vfs_read") { n = 1 }\nfunction own_sum:long(a:long) { return a + 1 }\n'
COUNTER = "function own_count:long() %{ STAP_RETVALUE = 1; %}\n"
PROBE = "probe begin { exit() }"
# Its arguments are kept; as the real one, it warns of modules that it does not find, and makes the module in pass 4.
STAP = """#!/usr/bin/python3
import json, os, sys
words = sys.argv[1:]
tapset = sorted(os.listdir("tapset")) if os.path.isdir("tapset") else []
with open(os.environ["CALLS"], "a") as stream:
    print(json.dumps({"words": words, "tapset": tapset}), file=stream)
if "-p4" in words:
    for name in [words[at + 1] for at, word in enumerate(words) if word == "-d"]:
        if name not in ("kernel", "kvm"):
            print(f"WARNING: missing unwind/symbol data for module '{name}'", file=sys.stderr)
    open(words[words.index("-m") + 1] + ".ko", "w").write(" ".join(words))
"""


def given(**options: t.Any) -> Settings:
    params: dict[str, t.Any] = {
        "limits": None,
        "skip_badvars": False,
        "stack_modules": [],
        "tapsets": [],
    }
    guru = options.pop("guru", False)
    return settings.read_settings({**params, **options}, Target(RELEASE, guru=guru))


def key_of(**options: t.Any) -> str:
    order = build.BuildRequest("x", PROBE, KERNEL, False, 10, settings=given(**options))
    return build.key_of(order, TOOLS)


def make_tapset(folder: pathlib.Path, **files: str) -> str:
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.stp").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.fixture
def stap(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A stand-in for stap; return the file of its calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("stap", STAP), ("modinfo", "#!/bin/sh\n")):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def make(tmp_path: pathlib.Path, **options: t.Any) -> dict[str, t.Any]:
    order = build.BuildRequest("x", PROBE, KERNEL, options.get("guru", False), 10, settings=given(**options))
    return build.build_once(order, TOOLS, Store(str(tmp_path / "store")), Root(str(tmp_path)))[0]


def test_another_value_is_another_build_and_another_order_is_not(tmp_path: pathlib.Path) -> None:
    plain = key_of()
    own = make_tapset(tmp_path / "own", own=OWN)
    other = make_tapset(tmp_path / "other", more="function other_sum:long() { return 2 }\n")
    changed: list[dict[str, t.Any]] = [
        *({"limits": {name: limit.most}} for name, limit in SCRIPT_LIMITS.items()),
        {"limits": {"max_action": 5000}},
        {"skip_badvars": True},
        {"stack_modules": ["kvm"]},
        {"stack_modules": ["kernel"]},
        {"tapsets": [own]},
        {"tapsets": [other]},
        {"tapsets": [own, other]},
    ]
    keys = [key_of(**options) for options in changed]
    assert len({plain, *keys}) == len(changed) + 1
    assert key_of(limits={"max_action": None}) == key_of(limits={}) == plain
    assert key_of(limits={"max_action": 5, "max_errors": 1}) == key_of(limits={"max_errors": 1, "max_action": 5})
    assert key_of(stack_modules=["kvm", "kvm_amd"]) == key_of(stack_modules=["kvm-amd", "kvm", "kvm"])
    assert key_of(tapsets=[own, other]) == key_of(tapsets=[other, own, own])
    # The content counts, not the place.
    assert key_of(tapsets=[make_tapset(tmp_path / "moved", own=OWN)]) == key_of(tapsets=[own])
    (tmp_path / "own" / "own.stp").write_text(OWN + "\n", encoding="utf-8")
    assert key_of(tapsets=[own]) not in keys


@pytest.mark.parametrize(
    ("limits", "macros"),
    [
        ({"max_action": 5000, "max_errors": 0}, ["MAXACTION=5000", "MAXERRORS=0"]),
        # Arrays that were made larger cannot take all memory.
        ({"max_map_entries": 9000}, ["MAXMAPENTRIES=9000", "STP_MAXMEMORY=262144"]),
        ({"max_map_entries": 9000, "max_memory_mb": 2}, ["MAXMAPENTRIES=9000", "STP_MAXMEMORY=2048"]),
        ({"max_string_length": 256}, ["MAXSTRINGLEN=256"]),
        # A longer string on the kernel's stack needs as much more of it.
        ({"max_string_length": 2048}, ["MAXSTRINGLEN=2048", "MINSTACKSPACE=2560"]),
        ({"max_active": 100, "max_trylock": 7}, ["KRETACTIVE=100", "MAXTRYLOCK=7"]),
        ({"max_skipped": 0, "max_backtrace": 50}, ["MAXBACKTRACE=50", "MAXSKIPPED=0"]),
    ],
)
def test_limits_are_macros_of_systemtap(limits: dict[str, int], macros: list[str]) -> None:
    options = given(limits=limits).options()
    assert (options[::2], options[1::2]) == (["-D"] * len(macros), macros)


@pytest.mark.parametrize("name", list(SCRIPT_LIMITS))
def test_each_limit_has_bounds(name: str) -> None:
    limit = SCRIPT_LIMITS[name]
    assert given(limits={name: limit.least}).limits == ((name, limit.least),)
    for value in (limit.least - 1, limit.most + 1, True, "5", 1.0):
        with pytest.raises(InvalidInput) as caught:
            given(limits={name: value})
        assert caught.value.option == f"limits.{name}"
        assert caught.value.problem == f"{name} takes a whole number from {limit.least} to {limit.most}."


@pytest.mark.parametrize("name", ["max_actions", "STP_NO_OVERLOAD", "STP_OVERLOAD_THRESHOLD"])
def test_no_other_macro_can_be_set(run_module: t.Any, name: str) -> None:
    with pytest.raises(InvalidInput, match="There is no limit of that name; the limits are max_action, ") as caught:
        given(limits={name: 5})
    assert caught.value.candidates[:1] == (["max_action"] if name == "max_actions" else [])
    result = run_module("stap_module", {"script": "/x.stp", "kernel": RELEASE, "limits": {name: 5}})
    assert result["failed"] and "Unsupported parameters" in result["msg"] and name in result["msg"]


@pytest.mark.parametrize("name", ["", "*", "kvm*", "-g", "/etc/passwd", "../x", "a b", "x\n", "x" * 65])
def test_a_module_for_stacks_has_a_name(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        given(stack_modules=["kvm", name])
    assert caught.value.option == "stack_modules[1]"


def test_modules_for_stacks_are_bounded() -> None:
    assert len(given(stack_modules=[f"m{number}" for number in range(100)]).stack_modules) == 100
    with pytest.raises(InvalidInput, match="at most 100 modules"):
        given(stack_modules=[f"m{number}" for number in range(101)])


def test_stap_gets_the_options_and_copies_of_the_tapsets(tmp_path: pathlib.Path, stap: pathlib.Path) -> None:
    own = make_tapset(tmp_path / "own", own=OWN, comments="# nothing\n")
    (tmp_path / "own" / "README").write_text("no tapset", encoding="utf-8")
    options = {
        "limits": {"max_action": 5000},
        "skip_badvars": True,
        "stack_modules": ["kvm", "kernel"],
        "tapsets": [own],
    }
    row = make(tmp_path, **options)
    second, fourth = (json.loads(line) for line in stap.read_text(encoding="utf-8").splitlines())
    wanted = ["-D", "MAXACTION=5000", "--skip-badvars", "-d", "kernel", "-d", "kvm", "-I", "tapset"]
    for call, last in ((second, "-p2"), (fourth, "-p4")):
        assert last in call["words"] and call["words"][-len(wanted) - 1 : -1] == wanted, call
        assert [name.rpartition("-")[0] for name in call["tapset"]] == ["comments", "own"]
    assert row["limits"] == {"max_action": 5000}
    kept = json.loads(pathlib.Path(row["path"]).with_name("build.json").read_text(encoding="utf-8"))
    assert kept == row
    # As for every order without these options.
    assert make(tmp_path)["limits"] == {}
    assert json.loads(stap.read_text(encoding="utf-8").splitlines()[-1])["tapset"] == []


def test_the_headers_of_a_tapsets_tracepoints_are_linked(
    tmp_path: pathlib.Path, stap: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    monkeypatch.setattr(build, "link_trace_headers", lambda _sysroot, _release, _root, text: texts.append(text))
    wakeup = make_tapset(tmp_path / "own", own='probe own.wakeup = kernel.trace("sched:sched_wakeup") { }\n')
    make(tmp_path, tapsets=[wakeup])
    other = make_tapset(tmp_path / "other", own='probe own.wakeup = kernel.trace("irq:softirq_entry") { }\n')
    make(tmp_path, tapsets=[other])
    # Another tracepoint of the alias is another module, with another header.
    assert [text.splitlines()[-1] for text in texts] == [
        'kernel.trace("sched:sched_wakeup")',
        'kernel.trace("irq:softirq_entry")',
    ]


def test_a_module_without_symbols_is_an_error(tmp_path: pathlib.Path, stap: pathlib.Path) -> None:
    with pytest.raises(InvalidInput, match="The builder has no module nosuch of 6.12.107") as caught:
        make(tmp_path, stack_modules=["kvm", "nosuch"])
    assert caught.value.option == "stack_modules"
    assert Store(str(tmp_path / "store")).kept() == []


def test_a_tapset_names_its_points(tmp_path: pathlib.Path) -> None:
    own = make_tapset(tmp_path / "own", own=OWN, kvm='probe own.kvm = module("kvm").function("kvm_vcpu_ioctl") { }\n')
    found = tapset.read_tapsets([own], Target(RELEASE))
    assert found.points == ('kernel.function("vfs_read")', 'module("kvm").function("kvm_vcpu_ioctl")')


def test_a_tapset_names_its_global_variables(tmp_path: pathlib.Path) -> None:
    own = make_tapset(tmp_path / "own", own=OWN, calls="global own_calls[100], own_total = 5\n")
    assert tapset.read_tapsets([own], Target(RELEASE)).globals >= {"own_calls", "own_total"}


def test_a_misspelt_keyword_in_a_tapset_is_an_error(tmp_path: pathlib.Path) -> None:
    own = make_tapset(tmp_path / "own", own="function own_sum() { retrun 1 }\n")
    with pytest.raises(ScriptError, match="No statement begins with 'retrun'. Did you mean return"):
        tapset.read_tapsets([own], Target(RELEASE))


def refused_options(directory: str, guru: bool = False) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        tapset.read_tapsets([directory], Target(RELEASE, guru=guru))
    assert caught.value.option == "tapsets[0]"
    return caught.value


def test_embedded_c_in_a_tapset_needs_guru_mode(tmp_path: pathlib.Path) -> None:
    own = make_tapset(tmp_path / "own", own=OWN, count=COUNTER)
    error = refused_options(own)
    assert f"The tapset {own}/count.stp contains embedded C" in error.problem
    assert error.hint == "Set guru and guru_reason of stap_script (trace_guru and trace_guru_reason of the role trace)."
    assert len(tapset.read_tapsets([own], Target(RELEASE, guru=True)).files) == 2


@pytest.mark.parametrize("guru", [True, False])
def test_a_tapset_switches_no_guard_off(tmp_path: pathlib.Path, guru: bool) -> None:
    own = make_tapset(tmp_path / "own", own="%{\n#define STP_NO_OVERLOAD\n%}\n" + OWN)
    error = refused_options(own, guru)
    assert (error.value, error.line) == ("STP_NO_OVERLOAD", 2) and "never accepted" in error.problem


def test_a_tapset_that_stap_would_leave_out_is_an_error(tmp_path: pathlib.Path) -> None:
    own = make_tapset(tmp_path / "own", own="function own_sum( {\n")
    with pytest.raises(ScriptError) as caught:
        tapset.read_tapsets([own], Target(RELEASE))
    assert caught.value.option == "tapsets[0]" and caught.value.place == f"Script {own}/own.stp, line 1, column 19"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([], "contains no file NAME.stp"),
        (["notes.txt"], "contains no file NAME.stp"),
        (["x.stp", "macros.stpm"], "contains macros.stpm"),
        (["a b.stp"], "has other characters than"),
        (["-I.stp"], "has other characters than"),
    ],
)
def test_a_directory_that_is_no_tapset_is_refused(tmp_path: pathlib.Path, files: list[str], problem: str) -> None:
    for name in files:
        (tmp_path / name).write_text(OWN, encoding="utf-8")
    assert problem in refused_options(str(tmp_path)).problem


def test_files_that_cannot_be_read_are_refused(tmp_path: pathlib.Path) -> None:
    assert "absolute path" in refused_options("own").problem
    assert "No such file or directory" in refused_options(str(tmp_path / "none")).problem
    os.mkfifo(tmp_path / "x.stp")
    assert "it is a FIFO" in refused_options(str(tmp_path)).problem


def test_tapsets_are_bounded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = make_tapset(tmp_path / "own", a="#" * 300 + "\n", b="#" * 301 + "\n")
    for name, most, problem in (
        ("_MOST_FILE_BYTES", 301, "A file of a tapset has at most"),
        ("_MOST_BYTES", 602, "Tapsets have at most"),
        ("_MOST_FILES", 1, "Tapsets have at most 1 files together"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(tapset, name, most)
            assert problem in refused_options(own).problem
    assert len(tapset.read_tapsets([own], Target(RELEASE)).files) == 2


def test_settings_of_no_option_are_the_default() -> None:
    assert given() == Settings() and Settings().options() == []
    assert dataclasses.replace(Settings(), skip_badvars=True).options() == ["--skip-badvars"]


def test_a_list_of_probes_that_is_cut_fails_the_build(
    tmp_path: pathlib.Path, stap: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "stap"
    listing = "echo '# probes'; for n in 1 2 3; do echo 'timer.s(1) /* <- timer.s(1) */'; done"
    program.write_text(f"#!/bin/sh\ncase \" $* \" in *' -p2 '*) {listing} ;; esac\n", encoding="utf-8")
    monkeypatch.setattr(build, "MOST_OUTPUT_BYTES", 40)
    with pytest.raises(BuildFailed) as caught:
        make(tmp_path)
    assert caught.value.message == (
        f"Script x: The list of its probes for kernel {RELEASE} has more than 0 MiB, so not all of them are known. "
        "Name fewer functions in its probe points."
    )
    assert not stap.exists() and Store(str(tmp_path / "store")).kept() == []


def test_a_killed_explanation_leaves_the_error_of_the_build(tmp_path: pathlib.Path, stap: pathlib.Path) -> None:
    program = tmp_path / "bin" / "stap"
    text = 'probe module("x").function("y") { }'
    error = "semantic error: while resolving probe point: identifier 'module' at x.stp:1:7\nsemantic error: no match"
    program.write_text(
        f'#!/bin/sh\ncase " $* " in *" -l "*) kill -9 $$ ;; esac\ncat >&2 <<"END"\n{error}\n'
        "Pass 2: analysis failed.\nEND\nexit 1\n",
        encoding="utf-8",
    )
    order = build.BuildRequest("x", text, KERNEL, False, 10, settings=given())
    with pytest.raises(BuildFailed, match="no function or event has that name"):
        build.build_once(order, TOOLS, Store(str(tmp_path / "store")), Root(str(tmp_path)))
    assert not stap.exists()
