# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.listing import (
    parse_line,
    parse_variables,
)
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
