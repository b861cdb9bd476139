# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role trace_builder over trees of files, with a package manager of the test's own."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.tests.unit.support import package_managers, stubs
from ansible_collections.tapvirt.host.tests.unit.support.systemtap.debuginfod_servers import (
    KERNEL_ID,
    compile_elf,
    free_port,
    needs_debuginfod,
    real_debuginfod,
)

# What the module returns on a host whose files are in a tree, where SystemTap is what stap.txt contains.
LOOK = """
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import debuginfod
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import toolchain as builder
defaults = {"timeout_seconds": 10, "max_cache_bytes": 1 << 30, "max_cache_age": "30d"}
source = debuginfod.read_debuginfod({**defaults, **options["debuginfod"]} if "debuginfod" in options else None)
tree = FOLDER / "tree"
root = Root(str(tree))
row = {**builder.builder_row(root, str(FOLDER / "store"), source), "stap": "5.6" if (tree / "stap").exists() else None}
facts = {"staprun": None, "distribution": row["distribution"]}
missing = builder.missing_to_run(root, facts) + builder.missing_to_build(root, row, options["kernels"])
return {"changed": False, "host": facts, "builder": row if row["stap"] else None, "missing": missing}
"""
ROCKY = 'ID="rocky"\nID_LIKE="rhel centos fedora"\n'
RELEASE = "4.18.0-553.el8_10.x86_64"
HEADERS = f"kernel-devel-uname-r = {RELEASE}"
GCC = "#!/bin/sh\necho 8.5.0\n"
CONFIG = "CONFIG_GCC_VERSION=80500\n"


class Builder:
    """A builder without anything, and a repository of packages."""

    def __init__(self, top: pathlib.Path, os_release: str = ROCKY) -> None:
        self.top = top
        self._stubs = stubs.Stubs(top, stap_host_info=LOOK)
        self.write("tree/etc/os-release", os_release)
        package_managers.put_managers(top, sys.executable)

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        package_managers.write(self.top / name, text, mode)

    def serve(self) -> None:
        """Fill the repository with all that the builder lacks."""
        self.write("repository/gcc/usr/bin/gcc", GCC, 0o755)
        self.write("repository/systemtap-devel/stap", "")
        self.write("repository/make/usr/bin/make", "")
        self.write(f"repository/{HEADERS}/usr/lib/modules/{RELEASE}/build/.config", CONFIG)
        self.write(f"debug/kernel-debuginfo-{RELEASE}/usr/lib/debug/lib/modules/{RELEASE}/vmlinux", "")

    def apply(self, *options: str, **more: t.Any) -> subprocess.CompletedProcess[str]:
        role = {"ansible.builtin.import_role": {"name": "tapvirt.host.trace_builder"}}
        variables = {
            "trace_builder_kernels": [RELEASE],
            "trace_builder_store": str(self.top / "store"),
            "trace_builder_store_owner": os.geteuid(),
            "trace_builder_store_group": os.getegid(),
            "ansible_python_interpreter": sys.executable,
            **more,
        }
        play = {"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [role]}
        self.write("play.yml", yaml.safe_dump([play]))
        env = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(self.top),
            "ANSIBLE_NOCOLOR": "1",
            "HOME": str(self.top / "home"),
            "STUBS_FOLDER": str(self.top),
            "HOST_FOLDER": str(self.top),
            "PATH": f"{self.top / 'bin'}:{os.environ['PATH']}",
        }
        (self.top / "calls").touch()
        argv = [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), str(self.top / "play.yml"), *options]
        quiet: t.Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        return subprocess.run(argv, env=env, cwd=self.top, timeout=120, check=False, **quiet)


@pytest.mark.soak  # 20 s; test_rpm_hosts.py and test_package_families.py have more
def test_a_red_hat_builder_is_ready_after_one_run_and_the_second_changes_nothing(tmp_path: pathlib.Path) -> None:
    builder = Builder(tmp_path)
    builder.serve()
    first = builder.apply()
    assert first.returncode == 0, first.stdout
    assert sorted(path.name for path in (tmp_path / "installed").iterdir()) == [
        "gcc",
        f"kernel-debuginfo-{RELEASE}",
        HEADERS,
        "make",
        "systemtap-devel",
    ]
    second = builder.apply()
    assert second.returncode == 0 and "changed=0" in second.stdout, second.stdout


@pytest.mark.soak  # 27 s
def test_what_is_missing_is_reported_by_every_run(tmp_path: pathlib.Path) -> None:
    builder = Builder(tmp_path)
    builder.serve()
    headers = f"repository/{HEADERS}/usr/lib/modules/{RELEASE}/build/.config"
    builder.write(headers, "CONFIG_CLANG_VERSION=150007\n")
    for compiler in ("clang", "lld"):
        builder.write(f"repository/{compiler}/README", "")
    message = f"there is no clang, and {RELEASE} was compiled with clang 15."
    # The second run installs packages called clang and lld that bring no program; the last one installs nothing.
    for options in ((), (), ("--check",)):
        done = builder.apply(*options)
        assert done.returncode != 0 and f"Still missing: {message}" in " ".join(done.stdout.split()), done.stdout


def test_another_family_is_refused_only_if_something_is_missing(tmp_path: pathlib.Path) -> None:
    builder = Builder(tmp_path, "ID=arch\n")
    refused = builder.apply()
    message = " ".join(refused.stdout.split())
    assert refused.returncode != 0 and "this host is of the family Arch" in message, message
    assert "What helps: install the packages systemtap, gcc, make (systemtap is in the AUR); " in message
    assert "install the package linux-headers; use a debuginfod server" in message
    builder.serve()
    for package in [*(tmp_path / "repository").iterdir(), *(tmp_path / "debug").iterdir()]:
        shutil.copytree(package, tmp_path / "tree", dirs_exist_ok=True)
    done = builder.apply()
    assert done.returncode == 0 and not (tmp_path / "installed").exists(), done.stdout


@needs_debuginfod
def test_no_debug_package_is_installed_where_a_debuginfod_server_answers(tmp_path: pathlib.Path) -> None:
    builder = Builder(tmp_path)
    builder.serve()
    shutil.rmtree(tmp_path / "debug")
    (tmp_path / "served").mkdir()
    compile_elf(tmp_path / "served" / "vmlinux", KERNEL_ID)
    dead = f"http://127.0.0.1:{free_port()}"
    with real_debuginfod(tmp_path / "served", tmp_path, KERNEL_ID) as url:
        first, second = (builder.apply(trace_builder_debuginfod={"servers": [dead, url]}) for _time in range(2))
    assert first.returncode == 0, first.stdout
    assert f"kernel-debuginfo-{RELEASE}" not in {path.name for path in (tmp_path / "installed").iterdir()}
    assert second.returncode == 0 and "changed=0" in second.stdout, second.stdout
    silent = builder.apply(trace_builder_debuginfod={"servers": [dead]})
    reason = f"there is no debug information for {RELEASE}, and no debuginfod server answers ({dead})."
    assert silent.returncode != 0 and reason in " ".join(silent.stdout.split()), silent.stdout


@pytest.mark.soak  # 14 s
def test_the_ddebs_archive_is_added_only_if_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    release = "6.8.0-49-generic"
    builder = Builder(tmp_path, "ID=ubuntu\nID_LIKE=debian\n")
    facts = {"pkg_mgr": "ansible.legacy.ownpm", "distribution_release": "noble"}
    # In check mode: the file would be one of this machine.
    plain, added = (
        builder.apply(
            "--check", "--diff", ansible_facts=facts, trace_builder_kernels=[release], trace_builder_ddebs=wanted
        )
        for wanted in (False, True)
    )
    assert plain.returncode == added.returncode == 0, plain.stdout + added.stdout
    assert "ddebs.ubuntu.com" not in plain.stdout
    for line in (
        "+URIs: http://ddebs.ubuntu.com",
        "+Suites: noble noble-updates",
        "+Components: main restricted universe multiverse",
        "+Signed-By: /usr/share/keyrings/ubuntu-dbgsym-keyring.gpg",
    ):
        assert f"\n{line}\n" in added.stdout, added.stdout
    assert not (tmp_path / "installed").exists()
