# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles that install packages, on hosts of each family that are trees of files, with stand-ins for managers."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.tests.unit.support import package_managers, stubs

pytestmark = pytest.mark.soak
# What the module returns on a host whose files are in the directory of its name.
LOOK = """
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import toolchain
folder = FOLDER / host
os.environ["HOST_FOLDER"] = str(folder)
tree = folder / "tree"
root = Root(str(tree))
row = {**toolchain.builder_row(root, str(folder / "store")), "stap": "5.6" if (tree / "stap").exists() else None}
facts = {"staprun": "5.6" if (tree / "staprun").exists() else None, "distribution": row["distribution"]}
missing = toolchain.missing_to_run(root, facts)
missing += toolchain.missing_to_build(root, row, options["kernels"]) if "kernels" in options else []
return {"changed": False, "host": facts, "builder": row if row["stap"] else None, "missing": missing}
"""
GCC = "#!/bin/sh\necho 13.3.0\n"
CONFIG = "CONFIG_GCC_VERSION=130300\n"
SUSE = 'ID="sles"\nID_LIKE="suse"\nVERSION_ID="15.6"\n'
ROCKY = 'ID="rocky"\nID_LIKE="rhel centos fedora"\n'
UBUNTU = "ID=ubuntu\nID_LIKE=debian\n"
SUSE_KERNEL, ROCKY_KERNEL = "6.4.0-150600.23.25-default", "5.14.0-427.el9.x86_64+rt"


@dataclasses.dataclass
class PackageHost:
    """A host: what it is, what its repositories have (package -> its file), and the variables of the role."""

    os_release: str
    repository: dict[str, str]
    variables: dict[str, t.Any]
    marks: tuple[str, ...] = ()
    role: str = "trace_builder"
    facts: dict[str, t.Any] = dataclasses.field(default_factory=dict)


def headers(release: str) -> str:
    return f"usr/lib/modules/{release}/build/.config"


TOOLS = {"gcc": "usr/bin/gcc", "make": "usr/bin/make"}
SUSE_DEBUG = "debug/kernel-default-debuginfo = 6.4.0-150600.23.25.1"
SUSE_PACKAGES = {
    **TOOLS,
    "systemtap": "stap",
    "kernel-default-devel = 6.4.0-150600.23.25": headers(SUSE_KERNEL),
    SUSE_DEBUG: f"usr/lib/debug/boot/vmlinux-{SUSE_KERNEL}.debug",
}
ROCKY_PACKAGES = {
    **TOOLS,
    "systemtap-devel": "stap",
    f"kernel-devel-uname-r = {ROCKY_KERNEL}": headers(ROCKY_KERNEL),
    "debug/kernel-rt-debuginfo-5.14.0-427.el9.x86_64": f"usr/lib/debug/lib/modules/{ROCKY_KERNEL}/vmlinux",
}
OWN_PACKAGES = {
    "my-tools": "usr/bin/gcc",
    f"my-headers-{ROCKY_KERNEL}": headers(ROCKY_KERNEL),
    f"debug/my-debug-{ROCKY_KERNEL}": f"usr/lib/debug/lib/modules/{ROCKY_KERNEL}/vmlinux",
}
BUILDS_SUSE, BUILDS_ROCKY = {"trace_builder_kernels": [SUSE_KERNEL]}, {"trace_builder_kernels": [ROCKY_KERNEL]}
HOSTS = {
    "sles": PackageHost(SUSE, SUSE_PACKAGES, BUILDS_SUSE),
    "rocky": PackageHost(ROCKY, ROCKY_PACKAGES, BUILDS_ROCKY),
    "own": PackageHost(
        ROCKY,
        {**OWN_PACKAGES, "my-stap": "stap"},
        {
            **BUILDS_ROCKY,
            "trace_builder_packages": ["my-tools", "my-stap"],
            "trace_builder_headers_packages": ["my-headers-RELEASE"],
            "trace_builder_debuginfo_packages": ["my-debug-RELEASE"],
            "host_packages_debug_repositories": ["mine-debug"],
        },
    ),
    "traced": PackageHost(SUSE, {"systemtap-runtime": "staprun"}, {}, role="trace_host", facts={"service_mgr": "none"}),
    "virt": PackageHost(
        SUSE,
        {"my-libvirt": "usr/bin/virsh"},
        {"virt_host_packages_by_family": {"SUSE": ["my-libvirt"]}, "virt_host_units_by_family": {"SUSE": []}},
        role="virt_host",
        facts={"os_family": "Suse", "distribution_major_version": "15"},
    ),
    "locked": PackageHost(SUSE, SUSE_PACKAGES, {**BUILDS_SUSE, "host_packages_lock_seconds": 3}, ("locked",)),
    "hanging": PackageHost(ROCKY, ROCKY_PACKAGES, {**BUILDS_ROCKY, "host_packages_timeout_seconds": 2}, ("hanging",)),
    "bare": PackageHost(ROCKY, {}, BUILDS_ROCKY),
    "ubuntu": PackageHost(UBUNTU, {}, {"trace_builder_kernels": ["6.8.0-49-generic"]}, ("refuses",)),
    "foreign": PackageHost(SUSE, SUSE_PACKAGES, {"trace_builder_kernels": ["6.1.0-56-s390x", SUSE_KERNEL]}),
}
FAILED = ("locked", "hanging", "bare", "ubuntu", "foreign")


class Fleet:
    """All hosts in one directory, and runs of their roles."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        stubs.Stubs(top, stap_host_info=LOOK)
        package_managers.put_managers(top, sys.executable)
        for name, host in HOSTS.items():
            package_managers.write(top / name / "tree/etc/os-release", host.os_release)
            for mark in host.marks:
                package_managers.write(top / name / mark)
            for package, file in host.repository.items():
                kind = "" if package.startswith("debug/") else "repository/"
                text = GCC if file == "usr/bin/gcc" else CONFIG if file.endswith(".config") else ""
                package_managers.write(top / name / f"{kind}{package}" / file, text, 0o755)

    def apply(self, *options: str) -> dict[str, str]:
        """Apply each host's role; return what was printed of each, from its last task on."""
        rows = {name: {"ansible_connection": "local", **host.variables} for name, host in HOSTS.items()}
        inventory = yaml.safe_dump({"all": {"hosts": rows}})
        package_managers.write(self.top / "inventory.yml", inventory)
        plays = [self._play(name, host) for name, host in HOSTS.items()]
        package_managers.write(self.top / "play.yml", yaml.safe_dump(plays))
        env = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(self.top),
            "ANSIBLE_NOCOLOR": "1",
            "HOME": str(self.top / "home"),
            "PATH": f"{self.top / 'bin'}:{os.environ['PATH']}",
            "STUBS_FOLDER": str(self.top),
        }
        argv = [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory.yml", "play.yml"]
        quiet: t.Any = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
        }
        (self.top / "calls").touch()
        done = subprocess.run([*argv, *options], env=env, cwd=self.top, timeout=300, check=False, **quiet)
        plays, _title, recap = done.stdout.partition("\nPLAY RECAP")
        parts = plays.split("\nPLAY [")
        found = {part.partition("]")[0]: " ".join(part.split()) for part in parts[1:]}
        counts = {line.split(":")[0].strip(): line for line in recap.splitlines() if " : " in line}
        return {name: f"{found[name]} {counts[name]}" for name in HOSTS}

    def _play(self, name: str, host: PackageHost) -> dict[str, t.Any]:
        variables = {
            "ansible_facts": {"pkg_mgr": "ansible.legacy.ownpm", **host.facts},
            "ansible_python_interpreter": sys.executable,
            "trace_builder_store": str(self.top / name / "store"),
            "trace_builder_store_owner": os.geteuid(),
            "trace_builder_store_group": os.getegid(),
        }
        role = {"ansible.builtin.include_role": {"name": f"tapvirt.host.{host.role}"}}
        reached = {"ansible.builtin.debug": {"msg": "It failed."}}
        return {
            "name": name,
            "hosts": name,
            "gather_facts": False,
            "vars": variables,
            "environment": {"HOST_FOLDER": str(self.top / name)},
            # A play whose only host fails would end the run.
            "tasks": [{"block": [role], **({"rescue": [reached]} if name in FAILED else {})}],
        }

    def commands(self, name: str, program: str) -> list[tuple[list[str], dict[str, t.Any]]]:
        return package_managers.commands(self.top / name, program)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fleet, dict[str, str], dict[str, str], dict[str, str]]:
    """The fleet, and what was printed in check mode, by the first and by the second run."""
    fleet = Fleet(tmp_path_factory.mktemp("families"))
    return fleet, fleet.apply("--check"), fleet.apply(), fleet.apply()


@pytest.mark.parametrize("name", [name for name in HOSTS if name not in FAILED])
def test_a_second_run_changes_nothing(
    name: str, fleet: tuple[Fleet, dict[str, str], dict[str, str], dict[str, str]]
) -> None:
    _fleet, planned, first, second = fleet
    assert "failed=0" in first[name] and "changed=0" not in first[name], first[name]
    assert "failed=0" in second[name] and "changed=0" in second[name], second[name]
    assert "failed=0" in planned[name] and "changed=0" not in planned[name], planned[name]


def test_zypper_is_asked_for_headers_first_and_then_for_debug_information_of_the_same_build(fleet: t.Any) -> None:
    commands = [row for row in fleet[0].commands("sles", "zypper") if "repos" not in row[0]]
    start, end = ["--non-interactive"], ["install", "--no-recommends"]
    assert [argv for argv, _environment in commands] == [
        [*start, *end, "systemtap", "gcc", "make", "kernel-default-devel = 6.4.0-150600.23.25"],
        [
            *start,
            "--plus-content",
            "debug",
            "--plus-content",
            "SLE-Debuginfo-Pool",
            *end,
            "--oldpackage",
            "kernel-default-debuginfo = 6.4.0-150600.23.25.1",
        ],
    ]
    assert all(environment == {"LC_ALL": "C", "ZYPP_LOCK_TIMEOUT": "60"} for _argv, environment in commands)


def test_dnf_keeps_all_kernels_and_enables_debug_repositories_for_one_command(fleet: t.Any) -> None:
    first, second = (argv for argv, _environment in fleet[0].commands("rocky", "dnf"))
    start = ["-y", "--setopt=installonly_limit=0"]
    assert first == [*start, "install", "systemtap-devel", "gcc", "make", f"kernel-devel-uname-r = {ROCKY_KERNEL}"]
    debug = "kernel-rt-debuginfo-5.14.0-427.el9.x86_64"
    assert second == [*start, "--setopt=*debug*.enabled=1", "install", debug]


def test_the_names_of_the_inventory_win(fleet: t.Any) -> None:
    first, second = (argv[-2:] for argv, _environment in fleet[0].commands("own", "dnf"))
    assert first == ["my-stap", f"my-headers-{ROCKY_KERNEL}"]
    assert second == ["install", f"my-debug-{ROCKY_KERNEL}"]
    ((virt, _environment),) = fleet[0].commands("virt", "zypper")
    assert virt == ["--non-interactive", "install", "--no-recommends", "my-libvirt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "locked",
            "Another program holds the lock of zypper, also after 3 seconds (host_packages_lock_seconds): System"
            " management is locked by the application with pid 4711 (zypper). Run the role again",
        ),
        (
            "hanging",
            "dnf did not end within 2 seconds and was stopped (host_packages_timeout_seconds). It printed last: Waiting"
            " for process with pid 4711 to finish.",
        ),
        (
            "bare",
            "dnf does not find these packages in the repositories of this host: systemtap-devel, gcc, make,"
            f" kernel-devel-uname-r = {ROCKY_KERNEL}. Missing: SystemTap's translator (stap) is not installed;"
            f" there are no headers for {ROCKY_KERNEL}; ",
        ),
        ("ubuntu", "could not be installed: No package matching 'systemtap' is available. Missing: "),
        ("ubuntu", "(from the ddebs archive, which needs its own sources entry and the key of the package"),
        ("foreign", "No package brings what is missing: this builder is "),
        ("foreign", "and 6.1.0-56-s390x is a kernel for s390x. What helps: use a builder of the architecture s390x."),
    ],
)
def test_a_package_manager_that_fails_is_reported_in_sentences(name: str, message: str, fleet: t.Any) -> None:
    for printed in fleet[2:]:
        assert "rescued=0" not in printed[name] and "changed=0" in printed[name], printed[name]
        assert message in printed[name], printed[name]


def test_a_kernel_of_another_architecture_is_refused_before_anything_is_installed(fleet: t.Any) -> None:
    assert "rescued=1" in fleet[1]["foreign"]
    assert fleet[0].commands("foreign", "zypper") == []
