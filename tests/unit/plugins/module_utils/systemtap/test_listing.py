# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.probe_point import parse_probe_point
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.compilers import Origin
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.listing import (
    Lister,
    parse_line,
    parse_variables,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import Store
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.toolchain import Kernel
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.resolve.stap_blocklist import is_blocklisted


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            'kernel.function("vfs_read@fs/read_write.c:450") $file:struct file* $pos:loff_t*',
            {
                "point": 'kernel.function("vfs_read@fs/read_write.c:450")',
                "function": "vfs_read",
                "source": "fs/read_write.c",
                "line": 450,
                "form": None,
                "module": None,
                "variables": [{"name": "$file", "type": "struct file*"}, {"name": "$pos", "type": "loff_t*"}],
            },
        ),
        (
            'module("kvm").function("kvm_exit@arch/x86/kvm/../../../virt/kvm/kvm_main.c:12").return $return:long int',
            {"module": "kvm", "form": "return", "line": 12, "variables": [{"name": "$return", "type": "long int"}]},
        ),
        (
            'kernel.function("a@b.c:1").callee("add_rchar@include/linux/sched/xacct.h:12")',
            {"form": "callee", "target": "add_rchar@include/linux/sched/xacct.h:12", "line": 1, "variables": []},
        ),
        (
            'kernel.trace("sched:sched_switch") $preempt:bool',
            {"family": "tracepoint", "function": "sched:sched_switch", "source": None, "line": None},
        ),
        ("syscall.openat name:string", {"family": "alias", "variables": [{"name": "name", "type": "string"}]}),
        ("own_alias.of.a.tapset", {"family": "alias", "point": "own_alias.of.a.tapset", "variables": []}),
    ],
)
def test_a_line_becomes_a_row(line: str, expected: dict[str, object]) -> None:
    row = parse_line(line)
    assert {name: row[name] for name in expected} == expected


def test_variables_are_bounded() -> None:
    assert len(parse_variables("".join(f" $v{number}:int" for number in range(500)))) == 100


@pytest.mark.parametrize(
    "name", ["mutex_lock", "_raw_spin_lock_irq", "atomic_inc", "hash_64", "do_IRQ", "current_time"]
)
def test_what_systemtap_leaves_out(name: str) -> None:
    assert is_blocklisted(name, at_return=False)


def test_what_it_does_not_leave_out() -> None:
    names = ("vfs_read", "kvm_vcpu_ioctl", "do_sys_openat2", "hash_64_generic", "my_get_bh")
    assert not any(is_blocklisted(name, at_return=True) for name in names)
    assert (is_blocklisted("do_exit", at_return=True), is_blocklisted("do_exit", at_return=False)) == (True, False)


POINT = 'kernel.function("vfs_read")'
NO_MATCH = "echo 'semantic error: no match (similar functions: vfs_write, vfs_open)' >&2; exit 1"


def listed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, listing: str, analysis: str) -> dict[str, t.Any]:
    """Return the row of a probe point, with a stap that does one thing for ``-l`` and another for ``-p2``."""
    stap = tmp_path / "bin" / "stap"
    stap.parent.mkdir()
    stap.write_text(f'#!/bin/sh\ncase " $* " in *" -l "*) {listing} ;; esac\n{analysis}\n', encoding="utf-8")
    stap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stap.parent}:{os.environ['PATH']}")
    kernel = Kernel("6.12.107", "#1", Origin("gcc", 14), None, None, "")
    lister = Lister(Root(str(tmp_path)), Store(str(tmp_path / "store")), kernel, False, 20)
    return lister.row(parse_probe_point(POINT), None, 10)


@pytest.mark.parametrize(
    ("listing", "analysis", "message"),
    [
        ("kill -9 $$", NO_MATCH, " was killed by SIGKILL and gave no verdict."),
        # What was listed before is not the whole list.
        (f"echo '{POINT}'; kill -9 $$", NO_MATCH, " was killed by SIGKILL and gave no verdict."),
        ("echo std::bad_alloc >&2; kill -ABRT $$", NO_MATCH, " gave no verdict; it printed last: std::bad_alloc."),
        ("exit 137", NO_MATCH, " was killed by SIGKILL and gave no verdict."),
        ("exit 1", "kill -9 $$", " was killed by SIGKILL and gave no verdict."),
        # stap ends with status 1 and without a word after SIGTERM and SIGXCPU (main.cxx, handle_interrupt).
        ("exit 1", "exit 1", f"stap gave no verdict on the probe point {POINT}: stap gave no reason."),
        (
            "exit 1",
            "echo 'thread: Resource temporarily unavailable [system:11]' >&2; exit 1",
            f"stap gave no verdict on the probe point {POINT}: thread: Resource temporarily unavailable [system:11].",
        ),
    ],
)
def test_a_killed_stap_gives_no_verdict(
    listing: str, analysis: str, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TapvirtError) as caught:
        listed(tmp_path, monkeypatch, listing, analysis)
    assert caught.value.message.endswith(message)


def test_a_stap_that_ends_gives_a_verdict(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = listed(tmp_path, monkeypatch, "exit 1", NO_MATCH)
    assert (row["verdict"], row["candidates"]) == ("missing", ["vfs_write", "vfs_open"])
