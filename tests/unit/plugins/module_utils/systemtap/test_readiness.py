# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pathlib
import re
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core import command
from ansible_collections.tapvirt.host.plugins.module_utils._core.packages import Distribution
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap import readiness
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.limits import (
    Memory,
    buffer_check,
    buffer_remedy,
    count_cpus,
    read_memory,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.readiness import (
    find_problems,
    parse_tested_range,
    staprun_version,
)

TESTED = {"4.8": "6.1-rc3", "5.1": "6.9-rc0", "5.6": "7.3.0-rc3"}
K61, K612, K72 = "6.1.0-50-cloud-amd64", "6.12.117+deb13-cloud-amd64", "7.2.12+deb14-cloud-amd64"
KEY = {"name": "tracing", "key_id": "0123abcd"}


DEBIAN = {"name": "debian", "family": "Debian"}
UBUNTU = {"name": "ubuntu", "family": "Debian"}
ROCKY = {"name": "rocky", "family": "RedHat"}
SLES = {"name": "sles", "family": "SUSE"}
ARCH = {"name": "arch", "family": "Arch"}


def host_facts(release: str = K612, staprun: str | None = "5.1", **changes: object) -> dict[str, t.Any]:
    """Return the facts of a host that nothing speaks against."""
    facts: dict[str, t.Any] = {
        "distribution": DEBIAN,
        "kernel": {"release": release},
        "traceability": {"traceable": True, "reasons": [], "conditions": []},
        "staprun": staprun,
        "trusted_keys": None,
        "privilege": {"load_modules": True, "groups": []},
        "memory": {"free_bytes": 2 << 30, "buffers_bytes": 0, "cpus_online": 2},
        "loaded": [],
    }
    return {**facts, **changes}


def builder_facts(release: str, stap: str, compiler: str | None) -> dict[str, t.Any]:
    """Return the facts of a builder for one kernel."""
    kernel = {"version": None, "compiler": compiler, "compiled_with": "gcc 14", "debuginfo": True}
    return {"distribution": DEBIAN, "stap": stap, "tested": ["3.10", TESTED[stap]], "kernels": {release: kernel}}


# Seen in real runs: kernel, the builder's stap and compiler, the host's staprun, and what is in the way.
@pytest.mark.parametrize(
    ("release", "stap", "compiler", "staprun", "refused"),
    [
        (K61, "4.8", "gcc-12", "4.8", ["stap"]),
        (K612, "5.1", "gcc-14", "5.1", ["stap"]),
        (K612, "5.6", "gcc-14", "5.1", []),
        (K612, "5.6", "gcc-14", "5.6", []),
        (K612, "5.6", None, "5.6", ["compiler"]),
        (K72, "5.6", "gcc-16", "5.1", []),
        (K61, "5.6", "gcc-14", "5.1", []),
        (K61, "5.6", "gcc-14", "4.8", ["staprun"]),
        (K61, "5.6", "gcc-14", None, ["staprun"]),
        (K61, "5.6", "gcc-14", "unknown", []),
    ],
)
def test_four_versions_are_judged_together(release, stap, compiler, staprun, refused):
    findings = find_problems(host_facts(release, staprun), builder_facts(release, stap, compiler))
    assert [finding.check for finding in findings if finding.blocks] == refused
    assert all(finding.reason and finding.remedy for finding in findings)


SWITCHED_OFF = {"reasons": [], "conditions": ["kprobes are switched off: write 1 to kprobes/enabled in debugfs"]}
SIGNED = {"reasons": [], "conditions": ["module signatures are enforced: only modules signed with a trusted key load"]}


@pytest.mark.parametrize(
    ("changes", "check", "blocks", "message"),
    [
        ({"traceability": SIGNED, "trusted_keys": [KEY]}, "signing", False, "tracing (0123abcd)"),
        ({"traceability": SIGNED, "trusted_keys": []}, "signing", True, "enrol a key"),
        ({"traceability": SIGNED, "trusted_keys": None}, "signing", False, "one that is enrolled"),
        ({"privilege": {"load_modules": False, "groups": []}}, "privilege", True, "stapusr"),
        ({"privilege": {"load_modules": False, "groups": ["stapusr"]}}, "privilege", False, "stapdev"),
        (
            {"memory": {"free_bytes": 3 << 20, "buffers_bytes": 0, "cpus_online": 4}},
            "memory",
            True,
            "no smaller buffer",
        ),
        ({"loaded": [{"name": "stap_1", "version": None, "users": 0}]}, "left_over", False, "staprun -d stap_1"),
        ({"traceability": {"reasons": ["no kprobes"], "conditions": []}}, "kernel", True, "boot a kernel"),
        ({"traceability": SWITCHED_OFF}, "kernel", True, "write 1 to kprobes/enabled in debugfs"),
    ],
)
def test_what_speaks_against_a_host_comes_with_a_remedy(changes, check, blocks, message):
    (finding,) = find_problems(host_facts(**changes), None)
    assert (finding.check, finding.blocks) == (check, blocks)
    assert message in finding.remedy


@pytest.mark.parametrize(
    ("distribution", "release", "runtime", "toolchain", "headers", "debuginfo"),
    [
        (
            DEBIAN,
            K612,
            "install the package systemtap-runtime",
            "install the packages systemtap, gcc, make on the builder",
            f"install the package linux-headers-{K612} on the builder",
            f"install the package linux-image-{K612}-dbg on the builder",
        ),
        (
            UBUNTU,
            "6.8.0-49-generic",
            "install the package systemtap-runtime",
            "install the packages systemtap, gcc, make on the builder",
            "install the package linux-headers-6.8.0-49-generic on the builder",
            "install the package linux-image-unsigned-6.8.0-49-generic-dbgsym (from the ddebs archive, which"
            " needs its own sources entry and the key of the package ubuntu-dbgsym-keyring) on the builder",
        ),
        (
            ROCKY,
            "5.14.0-427.el9.x86_64",
            "install the package systemtap-runtime",
            "install the packages systemtap-devel, gcc, make on the builder",
            "install the package kernel-devel-5.14.0-427.el9.x86_64 on the builder",
            "install the package kernel-debuginfo-5.14.0-427.el9.x86_64"
            " (from a debuginfo repository, which is disabled by default) on the builder",
        ),
        (
            SLES,
            "6.4.0-150600.23.25-default",
            "install the package systemtap-runtime",
            "install the packages systemtap, gcc, make on the builder",
            "install the package kernel-default-devel = 6.4.0-150600.23.25 on the builder",
            "install the package kernel-default-debuginfo of the version 6.4.0-150600.23.25.N"
            " that 'zypper search --details --match-exact kernel-default-debuginfo' lists"
            " (from a debug repository, which is disabled by default) on the builder",
        ),
        (
            ARCH,
            "6.12.1-arch1-1",
            "install the package systemtap (from the AUR)",
            "install the packages systemtap, gcc, make (systemtap is in the AUR) on the builder",
            "install the package linux-headers on the builder",
            "use a debuginfod server (Arch has no package of debug information) on the builder",
        ),
        (
            None,
            "6.6.1-mine",
            "install SystemTap's runtime (staprun)",
            "install SystemTap's translator (stap), gcc and make on the builder",
            "install the kernel's headers of 6.6.1-mine on the builder",
            "install the kernel's debug information of 6.6.1-mine on the builder",
        ),
    ],
)
def test_remedies_name_the_packages_of_the_hosts_own_family(
    distribution, release, runtime, toolchain, headers, debuginfo
):
    def remedies(staprun: str | None = "5.6", **changes: t.Any) -> list[str]:
        facts = {**builder_facts(release, "5.6", "gcc-14"), "distribution": distribution, **changes}
        return [
            finding.remedy for finding in find_problems(host_facts(release, staprun, distribution=distribution), facts)
        ]

    bare = {"version": None, "compiler": "gcc", "compiled_with": "gcc", "debuginfo": False}
    assert remedies(None) == [runtime]
    assert remedies(stap=None) == [toolchain]
    assert remedies(kernels={}) == [headers]
    assert remedies(kernels={release: bare}) == [debuginfo]
    if distribution not in (DEBIAN, UBUNTU):
        for text in (runtime, toolchain, headers, debuginfo):
            assert not re.search("linux-image|-dbg|linux-headers-[0-9]|apt", text)


def test_a_builder_of_another_architecture_does_not_build():
    host = host_facts()
    host["kernel"]["arch"] = "aarch64"
    (finding,) = find_problems(host, {**builder_facts(K612, "5.6", "gcc-14"), "arch": "x86_64"})
    assert (finding.check, finding.blocks) == ("arch", True)
    assert finding.reason == "the builder is x86_64, and does not build for aarch64"
    host["kernel"]["arch"] = "x86_64"
    assert find_problems(host, {**builder_facts(K612, "5.6", "gcc-14"), "arch": "x86_64"}) == []


@pytest.mark.parametrize(("origin", "kind"), [("gcc 14", "gcc"), ("clang 18", "clang")])
def test_a_missing_compiler_is_named(origin, kind):
    facts = builder_facts(K612, "5.6", None)
    facts["kernels"][K612]["compiled_with"] = origin
    (finding,) = find_problems(host_facts(), facts)
    assert finding.reason == f"the builder has no {kind} to build for {K612}, which was compiled with {origin}"
    assert finding.remedy.startswith("install the package") and kind in finding.remedy


def test_a_user_of_both_groups_needs_no_root():
    assert find_problems(host_facts(privilege={"load_modules": False, "groups": ["stapdev", "stapusr"]}), None) == []


@pytest.mark.parametrize("users", [1, None])
def test_a_module_that_is_in_use_or_may_be_is_not_left_over(users):
    assert find_problems(host_facts(loaded=[{"name": "stap_1", "version": None, "users": users}]), None) == []


def test_the_tested_range_is_read():
    assert parse_tested_range("x\ntested kernel versions: 3.10 ... 7.3.0-rc3\n") == ("3.10", "7.3.0-rc3")
    assert parse_tested_range("") is None


MIB = 1 << 20
GIB = 1 << 30
FREE = "SystemTap takes them from MemFree + Buffers, which is"


@pytest.mark.parametrize(
    ("memory", "buffer_mb", "refused"),
    [
        # A large host whose page cache takes most of the memory.
        (Memory(900 * MIB, 100 * MIB, 64, 200 * GIB), 1, None),
        (Memory(900 * MIB, 100 * MIB, 64, 200 * GIB), 15, None),
        (
            Memory(900 * MIB, 100 * MIB, 64, 200 * GIB),
            16,
            "output buffers need 1024 MB (16 MB for each of 64 online CPUs); "
            f"{FREE} 1000 MB, and MemAvailable is 204800 MB, of which 128 MB stay reserved",
        ),
        # Free memory that zones keep back: MemAvailable is less than MemFree.
        (Memory(300 * MIB, 0, 4, 132 * MIB), 1, None),
        (
            Memory(300 * MIB, 0, 4, 131 * MIB),
            1,
            "output buffers need 4 MB (1 MB for each of 4 online CPUs); "
            f"{FREE} 300 MB, and MemAvailable is 131 MB, of which 128 MB stay reserved",
        ),
        (Memory(60 * MIB, 4 * MIB, 4, None), 16, None),
        (
            Memory(60 * MIB, 3 * MIB, 4, None),
            16,
            f"output buffers need 64 MB (16 MB for each of 4 online CPUs); {FREE} 63 MB",
        ),
    ],
)
def test_buffers_must_fit_into_what_systemtap_takes_and_leave_a_reserve(memory, buffer_mb, refused):
    assert buffer_check(memory, buffer_mb << 20) == refused


def test_the_remedy_names_a_smaller_buffer_only_where_there_is_one():
    assert buffer_remedy(1 << 20) == "free memory; there is no smaller buffer than 1 MB for each CPU"
    assert "use a smaller buffer_mb" in buffer_remedy(2 << 20)


def test_this_machines_memory_is_read():
    memory = read_memory(Root())
    assert memory.cpus_online == os.sysconf("SC_NPROCESSORS_ONLN")
    assert memory.available_bytes is not None and memory.free_bytes > 0


def test_memory_is_read_from_recorded_tables(tmp_path):
    meminfo = tmp_path / "proc/meminfo"
    meminfo.parent.mkdir()
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-63\n", encoding="ascii")
    table = "MemTotal: 263000000 kB\nMemFree: 921600 kB\n{}Buffers: 102400 kB\n"
    meminfo.write_text(table.format("MemAvailable: 209715200 kB\n"), encoding="ascii")
    assert read_memory(Root(str(tmp_path))) == Memory(900 * MIB, 100 * MIB, 64, 200 * GIB)
    meminfo.write_text(table.format(""), encoding="ascii")
    assert read_memory(Root(str(tmp_path))).available_bytes is None


def test_cpu_lists_are_counted():
    assert count_cpus("0-3,8\n") == 5


@pytest.mark.parametrize("family", ["RedHat", "SUSE"])
@pytest.mark.parametrize(
    ("rpm", "version"),
    [
        ("echo version 5.2", "5.2"),
        ("echo package systemtap-runtime is not installed; exit 1", "unknown"),
        # A database that is broken or of another release.
        ("echo 'rpmdb: BDB1538 Program version 5.3 does not match environment version 4.8' >&2; exit 1", "unknown"),
        ("echo 'error: cannot open Packages database in /var/lib/rpm' >&2; exit 254", "unknown"),
        ("echo 'warning: BDB version 5.3 is old' >&2; echo version 5.2", "5.2"),
        ("echo version 5.3; kill -9 $$", "unknown"),
        (None, "unknown"),
    ],
)
def test_rpm_gives_the_version_of_staprun_or_none(
    family: str, rpm: str | None, version: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_programs(tmp_path, monkeypatch, rpm)
    assert staprun_version(Distribution("x", family)) == version


def test_an_rpm_that_does_not_answer_is_an_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_programs(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(readiness, "VERSION_SECONDS", 0.5)
    with pytest.raises(command.CommandTimeout, match=r"'rpm --query .*' did not end within 0.5 s and was ended"):
        staprun_version(Distribution("rocky", "RedHat"))


def make_programs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rpm: str | None) -> None:
    """Put a staprun that prints nothing and an rpm in the place of all programs; None for a host without rpm."""
    for name, script in (("staprun", "exit 0"), ("rpm", rpm)):
        if script is not None:
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
            (tmp_path / name).chmod(0o755)

    def find_program(name: str) -> str | None:
        return str(tmp_path / name) if (tmp_path / name).exists() else None

    monkeypatch.setattr(command, "find_program", find_program)
