# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verdicts on probe points from a host's own tables. Those of the lab are armed on real kernels."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.probe_point import parse_probe_point
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.resolve.host_facts import read_facts
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.resolve.resolve import resolve_all

RELEASE = "6.12.1"
SYMBOLS = """ffffffff81000000 T _stext
ffffffff81000100 T vfs_read
ffffffff81000200 t ext4_sync_file
ffffffff81000300 t ext4_file_open
ffffffffc0000000 t kvm_init\t[kvm]
"""
NO_LIST = 'the kernel itself has {0}, so ext4 is built in: probe it as kernel.function("{0}")'


def verdict(path: pathlib.Path, text: str, builtin: str | None) -> dict[str, t.Any]:
    (path / "proc").mkdir(parents=True)
    (path / "proc/kallsyms").write_text(SYMBOLS)
    (path / "proc/modules").write_text("kvm 1056768 0 - Live 0xffffffffc0000000\n")
    if builtin is not None:
        (path / "lib/modules" / RELEASE).mkdir(parents=True)
        (path / "lib/modules" / RELEASE / "modules.builtin").write_text(builtin)
    (row,) = resolve_all([parse_probe_point(text)], read_facts(Root(str(path)), RELEASE), 10)
    return row


@pytest.mark.parametrize(
    ("symbol", "builtin", "reason", "candidates"),
    [
        (
            "ext4_sync_file",
            "kernel/fs/ext4/ext4.ko\n",
            'ext4 is built into the kernel: probe it as kernel.function("ext4_sync_file")',
            ['kernel.function("ext4_sync_file")'],
        ),
        ("ext4_sync_file", None, NO_LIST.format("ext4_sync_file"), ['kernel.function("ext4_sync_file")']),
        ("ext4_*", None, NO_LIST.format("ext4_*"), ['kernel.function("ext4_*")']),
        ("ext4_nosuch", None, "the module ext4 is not loaded: the probe stays silent until it is", []),
        # The list is complete: another kernel function has the same name.
        ("ext4_sync_file", "kernel/fs/xfs/xfs.ko\n", "the module ext4 is not loaded: the probe stays silent until", []),
    ],
)
def test_a_module_that_is_built_in_is_told_from_one_that_is_not_loaded(
    tmp_path: pathlib.Path, symbol: str, builtin: str | None, reason: str, candidates: list[str]
) -> None:
    row = verdict(tmp_path, f'module("ext4").function("{symbol}").return', builtin)
    assert (row["verdict"], row["candidates"]) == ("module_not_loaded", candidates)
    assert row["reason"].startswith(reason), row


def test_places_in_programs_are_refused(tmp_path: pathlib.Path) -> None:
    row = verdict(tmp_path, 'process("/bin/sh").library("libc.so.6").plt("malloc")', None)
    assert row["verdict"] == "refused" and row["reason"].startswith("probes at places in programs")


def test_one_bad_point_does_not_hide_the_others(run_module: t.Any) -> None:
    probes = ['kernel.functoin("vfs_read")', "begin, timer.s(5)", "", 'process("/bin/sh").mark("x")', "_vfs.read"]
    result = run_module("stap_probe_info", {"probes": probes})
    rows = result["probes"]
    assert [(row["probe"], row["verdict"]) for row in rows] == [
        (probes[0], "invalid"),
        ("begin", "armable"),
        ("timer.s(5)", "armable"),
        ("", "invalid"),
        (probes[3], "refused"),
        ("_vfs.read", "unknown"),
    ]
    assert rows[0]["reason"].startswith("'functoin' cannot follow kernel; only ")
    assert rows[0]["candidates"] == ["function"] and rows[0]["family"] is None
    assert all(set(row) == set(rows[1]) for row in rows)
