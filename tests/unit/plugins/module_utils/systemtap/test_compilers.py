# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builders of each family of distributions: their compilers, headers, debug information and packages."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import subprocess
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.packages import (
    PACKAGES,
    Distribution,
    packages,
    read_distribution,
    remedy,
)
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import compilers, sysroot, toolchain
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import Store
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.readiness import find_problems

ROLES = pathlib.Path(__file__).resolve().parents[5] / "roles"
GCC = """#!/bin/sh
case "$*" in
  "-dumpfullversion -dumpversion") echo {0} ;;
  *) echo "gcc: error: $*" >&2; exit 1 ;;
esac
"""
# gcc before 7: the option -dumpfullversion is an error there, unless -dumpversion comes with it.
OLD_GCC = '#!/bin/sh\nfor o; do [ "$o" = -dumpversion ] && {{ echo {0}; exit; }}; done; exit 1\n'
CLANG = '#!/bin/sh\n[ "$*" = -dumpversion ] && echo {0}\n'


@dataclasses.dataclass
class Layout:
    """A distribution's builder: what is in it, and what is to be found."""

    os_release: str
    release: str
    config: str
    programs: dict[str, str]
    modules: str
    headers: str
    vmlinux: str
    found: list[tuple[str, int, str]]
    chosen: str | None
    files: tuple[str, ...] = ()
    headers_package: str = ""
    linked: bool = True  # False: the package of headers brings no link in the directory of modules


LAYOUTS = {
    "EL 7": Layout(
        os_release='ID="centos"\nID_LIKE="rhel fedora"\nVERSION_ID="7"\n',
        release="3.10.0-1160.el7.x86_64",
        config="# Linux/x86_64 3.10.0 Kernel Configuration\nCONFIG_MODULES=y\n",
        programs={"usr/bin/gcc": OLD_GCC.format("4.8.5"), "opt/rh/devtoolset-9/root/usr/bin/gcc": GCC.format("9.3.1")},
        modules="usr/lib/modules",
        headers="usr/src/kernels/3.10.0-1160.el7.x86_64",
        vmlinux="usr/lib/debug/lib/modules/3.10.0-1160.el7.x86_64/vmlinux",
        found=[("gcc", 4, "gcc"), ("gcc", 9, "ROOT/opt/rh/devtoolset-9/root/usr/bin/gcc")],
        chosen="gcc",  # the configuration does not name the compiler: the distribution's own
        headers_package="kernel-devel-3.10.0-1160.el7.x86_64",
    ),
    "EL 8": Layout(
        os_release='ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="8.10"\n',
        release="4.18.0-553.el8_10.x86_64",
        config="# Compiler: gcc (GCC) 8.5.0 20210514 (Red Hat 8.5.0-22)\nCONFIG_GCC_VERSION=80500\n",
        programs={
            "usr/bin/gcc": GCC.format("8.5.0"),
            "opt/rh/gcc-toolset-13/root/usr/bin/gcc": GCC.format("13.2.1"),
        },
        modules="usr/lib/modules",
        headers="usr/src/kernels/4.18.0-553.el8_10.x86_64",
        vmlinux="usr/lib/debug/lib/modules/4.18.0-553.el8_10.x86_64/vmlinux",
        found=[("gcc", 8, "gcc"), ("gcc", 13, "ROOT/opt/rh/gcc-toolset-13/root/usr/bin/gcc")],
        chosen="gcc",
        files=("usr/lib/debug/lib/modules/4.18.0-553.el8_10.x86_64/kernel/fs/xfs/xfs.ko.debug",),
        headers_package="kernel-devel-4.18.0-553.el8_10.x86_64",
    ),
    "EL 9": Layout(
        os_release='ID="almalinux"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n',
        release="5.14.0-427.13.1.el9_4.x86_64",
        config='CONFIG_CC_VERSION_TEXT="gcc (GCC) 11.4.1 20231218 (Red Hat 11.4.1-3)"\nCONFIG_GCC_VERSION=110401\n',
        programs={"usr/bin/gcc": GCC.format("11.4.1")},
        modules="usr/lib/modules",
        headers="usr/src/kernels/5.14.0-427.13.1.el9_4.x86_64",
        vmlinux="usr/lib/debug/lib/modules/5.14.0-427.13.1.el9_4.x86_64/vmlinux",
        found=[("gcc", 11, "gcc")],
        chosen="gcc",
        files=("usr/lib/debug/lib/modules/5.14.0-427.13.1.el9_4.x86_64/kernel/fs/xfs/xfs.ko.debug",),
        headers_package="kernel-devel-5.14.0-427.13.1.el9_4.x86_64",
        linked=False,
    ),
    "EL 9, realtime": Layout(
        os_release='ID="rhel"\nID_LIKE="fedora"\nVERSION_ID="9.4"\n',
        release="5.14.0-427.13.1.el9_4.x86_64+rt",
        config='CONFIG_CC_VERSION_TEXT="gcc (GCC) 11.4.1 20231218 (Red Hat 11.4.1-3)"\nCONFIG_GCC_VERSION=110401\n',
        programs={
            "usr/bin/gcc": GCC.format("11.4.1"),
            "usr/bin/clang": CLANG.format("17.0.6"),
            "opt/rh/gcc-toolset-12/root/usr/bin/gcc": GCC.format("12.2.1"),
        },
        modules="usr/lib/modules",
        headers="usr/src/kernels/5.14.0-427.13.1.el9_4.x86_64+rt",
        vmlinux="usr/lib/debug/lib/modules/5.14.0-427.13.1.el9_4.x86_64+rt/vmlinux",
        found=[
            ("clang", 17, "clang"),
            ("gcc", 11, "gcc"),
            ("gcc", 12, "ROOT/opt/rh/gcc-toolset-12/root/usr/bin/gcc"),
        ],
        chosen="gcc",
        files=("usr/lib/debug/lib/modules/5.14.0-427.13.1.el9_4.x86_64+rt/kernel/fs/xfs/xfs.ko.debug",),
        headers_package="kernel-rt-devel-5.14.0-427.13.1.el9_4.x86_64",
        linked=False,
    ),
    "Fedora": Layout(
        os_release="ID=fedora\nVERSION_ID=41\n",
        release="6.11.4-301.fc41.x86_64",
        config="CONFIG_CC_IS_GCC=y\nCONFIG_GCC_VERSION=140201\nCONFIG_CLANG_VERSION=0\n",
        # The last one is another program: it has no version in its name, and prints none.
        programs={"usr/bin/gcc": GCC.format("14.2.1"), "usr/bin/clang": "#!/bin/sh\necho usage\n"},
        modules="usr/lib/modules",
        headers="usr/src/kernels/6.11.4-301.fc41.x86_64",
        vmlinux="usr/lib/debug/lib/modules/6.11.4-301.fc41.x86_64/vmlinux",
        found=[("gcc", 14, "gcc")],
        chosen="gcc",
        headers_package="kernel-devel-6.11.4-301.fc41.x86_64",
        linked=False,
    ),
    "Arch": Layout(
        os_release="ID=arch\nBUILD_ID=rolling\n",
        release="6.12.1-arch1-1",
        config='CONFIG_CC_VERSION_TEXT="gcc (GCC) 14.2.1 20240910"\nCONFIG_GCC_VERSION=140201\n',
        programs={"usr/bin/gcc": GCC.format("14.2.1")},
        modules="usr/lib/modules",
        headers="usr/lib/modules/6.12.1-arch1-1/build",
        vmlinux="",
        found=[("gcc", 14, "gcc")],
        chosen="gcc",
        headers_package="linux-headers",
    ),
    "Arch, a kernel that clang compiled": Layout(
        os_release="ID=cachyos\nID_LIKE=arch\n",
        release="6.12.1-2-lts",
        config="CONFIG_CC_IS_CLANG=y\nCONFIG_GCC_VERSION=0\nCONFIG_CLANG_VERSION=180108\nCONFIG_LD_IS_LLD=y\n",
        programs={"usr/bin/gcc": GCC.format("14.2.1"), "usr/bin/clang": CLANG.format("18.1.8")},
        modules="usr/lib/modules",
        headers="usr/lib/modules/6.12.1-2-lts/build",
        vmlinux="",
        found=[("clang", 18, "clang"), ("gcc", 14, "gcc")],
        chosen="clang",
        headers_package="linux-lts-headers",
    ),
    "SUSE before the merge of /usr": Layout(
        os_release='ID="opensuse-leap"\nID_LIKE="suse opensuse"\nVERSION_ID="15.3"\n',
        release="5.3.18-150300.59.93-default",
        config='CONFIG_CC_VERSION_TEXT="gcc (SUSE Linux) 7.5.0"\nCONFIG_GCC_VERSION=70500\n',
        programs={"usr/bin/gcc": GCC.format("7.5.0"), "usr/bin/gcc-7": GCC.format("7.5.0"), "usr/bin/gcc-12": "x"},
        modules="lib/modules",
        headers="usr/src/linux-5.3.18-150300.59.93-obj/x86_64/default",
        vmlinux="usr/lib/debug/boot/vmlinux-5.3.18-150300.59.93-default.debug",
        found=[("gcc", 7, "gcc-7"), ("gcc", 12, "gcc-12")],
        chosen="gcc-7",
        files=("usr/lib/debug/lib/modules/5.3.18-150300.59.93-default/kernel/fs/xfs/xfs.ko.debug",),
        headers_package="kernel-default-devel = 5.3.18-150300.59.93",
    ),
    "SUSE": Layout(
        os_release='ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n',
        release="6.11.8-1-default",
        config="CONFIG_CC_IS_GCC=y\nCONFIG_GCC_VERSION=140201\n",
        programs={"usr/bin/gcc": GCC.format("14.2.1"), "usr/bin/gcc-14": GCC.format("14.2.1")},
        modules="usr/lib/modules",
        headers="usr/src/linux-6.11.8-1-obj/x86_64/default",
        vmlinux="usr/lib/debug/usr/lib/modules/6.11.8-1-default/vmlinux.debug",
        found=[("gcc", 14, "gcc-14")],
        chosen="gcc-14",
        files=("usr/lib/debug/usr/lib/modules/6.11.8-1-default/kernel/fs/xfs/xfs.ko.debug",),
        headers_package="kernel-default-devel = 6.11.8-1",
    ),
    "Ubuntu 24.04": Layout(
        os_release="ID=ubuntu\nID_LIKE=debian\n",
        release="6.8.0-49-generic",
        config='CONFIG_CC_VERSION_TEXT="x86_64-linux-gnu-gcc-13 (Ubuntu 13.2.0-23ubuntu4) 13.2.0"\n',
        programs={"usr/bin/gcc": GCC.format("13.3.0"), "usr/bin/gcc-13": GCC.format("13.3.0")},
        modules="usr/lib/modules",
        headers="usr/src/linux-headers-6.8.0-49-generic",
        vmlinux="usr/lib/debug/boot/vmlinux-6.8.0-49-generic",
        found=[("gcc", 13, "gcc-13")],
        chosen="gcc-13",
        files=("usr/lib/debug/lib/modules/6.8.0-49-generic/kernel/fs/xfs/xfs.ko",),
        headers_package="linux-headers-6.8.0-49-generic",
    ),
}


# The facts of a host that nothing speaks against.
TRACED: dict[str, t.Any] = {
    "traceability": {"reasons": [], "conditions": []},
    "staprun": "5.6",
    "privilege": {"load_modules": True, "groups": []},
    "memory": {"free_bytes": 2 << 30, "buffers_bytes": 0, "cpus_online": 2},
    "loaded": [],
}


def write(path: pathlib.Path, text: str = "", mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def lay_out(layout: Layout, path: pathlib.Path) -> Root:
    """Lay a distribution's files down."""
    write(path / "etc/os-release", layout.os_release)
    for name, text in layout.programs.items():
        write(path / name, text, 0o755)
    for name in layout.files:
        write(path / name)
    if layout.vmlinux:
        write(path / layout.vmlinux)
    headers = path / layout.headers
    write(headers / ".config", layout.config)
    write(headers / "Module.symvers", "0x0\tvfs_read\tvmlinux\tEXPORT_SYMBOL\t\n")
    write(headers / "include/generated/compile.h", '#define UTS_VERSION "#1 SMP PREEMPT_DYNAMIC"\n')
    link = path / layout.modules / layout.release / "build"
    if layout.linked and not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(headers)
    return Root(str(path))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_builder_of_each_family_can_build(name: str, tmp_path: pathlib.Path) -> None:
    layout = LAYOUTS[name]
    root = lay_out(layout, tmp_path)
    found = compilers.find_compilers(root)
    place = str(tmp_path)
    assert [(one.kind, one.major, one.command.replace(place, "ROOT")) for one in found] == layout.found
    kernel = next(iter(toolchain.read_kernels(root, found).values()))
    assert (kernel.release, kernel.version) == (layout.release, "#1 SMP PREEMPT_DYNAMIC")
    assert kernel.compiler is not None and kernel.compiler.command.replace(place, "ROOT") == layout.chosen
    assert (kernel.vmlinux or "").replace(place + "/", "") == layout.vmlinux
    assert remedy("headers", read_distribution(root), layout.release) == f"install the package {layout.headers_package}"
    row = {**toolchain.builder_row(root, str(tmp_path / "store")), "stap": "5.6"}
    lacking = [one["what"] for one in toolchain.missing_to_build(root, row, [layout.release])]
    assert lacking == ([] if layout.vmlinux else ["debuginfo"])
    assert [
        finding.check for finding in find_problems({**TRACED, "kernel": {"release": layout.release}}, row)
    ] == lacking


def test_the_full_version_of_a_plain_command_is_kept(tmp_path: pathlib.Path) -> None:
    found = compilers.find_compilers(lay_out(LAYOUTS["EL 8"], tmp_path))
    assert [(one.command.startswith("/"), one.version) for one in found] == [(False, "8.5.0"), (True, None)]


def test_make_gets_clang_and_its_linker(tmp_path: pathlib.Path) -> None:
    root = lay_out(LAYOUTS["Arch, a kernel that clang compiled"], tmp_path)
    kernel = next(iter(toolchain.read_kernels(root, compilers.find_compilers(root)).values()))
    assert kernel.make_options == ["-B", "CC=clang", "-B", "LLVM=1"]
    versioned = compilers.Compiler("clang", 18, "clang-18")
    assert compilers.make_options(kernel.origin, versioned) == ["-B", "CC=clang-18", "-B", "LLVM=-18"]
    assert compilers.make_options(dataclasses.replace(kernel.origin, lld=False), versioned) == ["-B", "CC=clang-18"]
    gcc = compilers.Compiler("gcc", 14, "gcc")
    assert compilers.make_options(compilers.Origin("gcc", 14, True), gcc) == ["-B", "CC=gcc"]


def test_a_kernel_that_clang_compiled_is_not_built_for_by_gcc(tmp_path: pathlib.Path) -> None:
    layout = LAYOUTS["Arch, a kernel that clang compiled"]
    root = lay_out(dataclasses.replace(layout, programs={"usr/bin/gcc": GCC.format("14.2.1")}), tmp_path)
    kernels = toolchain.read_kernels(root, compilers.find_compilers(root))
    with pytest.raises(InvalidInput, match="was compiled with clang 18, and this builder has no clang"):
        toolchain.find_kernel(kernels, layout.release, None)
    row = {**toolchain.builder_row(root, str(tmp_path / "store")), "stap": "5.6"}
    lacking = {one["what"]: one for one in toolchain.missing_to_build(root, row, [layout.release])}
    assert lacking["compiler"]["packages"] == ["clang", "lld"]
    assert lacking["compiler"]["reason"] == f"there is no clang, and {layout.release} was compiled with clang 18"


@pytest.mark.parametrize(
    ("config", "origin"),
    [
        ("", compilers.Origin("gcc", None)),
        ("CONFIG_GCC_VERSION=40805\n", compilers.Origin("gcc", 4)),
        ("# Compiler: gcc (GCC) 8.5.0 20210514 (Red Hat 8.5.0-22)\n", compilers.Origin("gcc", 8)),
        ('CONFIG_CC_VERSION_TEXT="Ubuntu clang version 17.0.6 (9ubuntu1)"\n', compilers.Origin("clang", 17)),
        ("CONFIG_CLANG_VERSION=150007\nCONFIG_LD_IS_LLD=y\n", compilers.Origin("clang", 15, True)),
        ("CONFIG_CLANG_VERSION=150007\n# CONFIG_LD_IS_LLD is not set\n", compilers.Origin("clang", 15)),
    ],
)
def test_what_compiled_a_kernel_is_read_from_its_configuration(config: str, origin: compilers.Origin) -> None:
    assert compilers.read_origin(config) == origin


@pytest.mark.parametrize(
    "text", ["", "not a program", "#!/bin/sh\nexit 1\n", "#!/nonexistent\n", "#!/bin/sh\necho 9.x\n"]
)
def test_a_gcc_that_does_not_run_is_no_compiler(text: str, tmp_path: pathlib.Path) -> None:
    write(tmp_path / "usr/bin/gcc", text, 0o755)
    assert compilers.find_compilers(Root(str(tmp_path))) == []
    (tmp_path / "usr/bin/gcc").chmod(0o644)
    assert compilers.find_compilers(Root(str(tmp_path))) == []


@pytest.mark.skipif(shutil.which("gcc") is None, reason="this machine has no gcc")
def test_this_machines_gcc_is_found(tmp_path: pathlib.Path) -> None:
    gcc = pathlib.Path(str(shutil.which("gcc"))).resolve()
    text = subprocess.run([gcc, "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/gcc").symlink_to(gcc)
    major = int(text.partition(".")[0])
    assert compilers.find_compilers(Root(str(tmp_path))) == [compilers.Compiler("gcc", major, "gcc", text)]
    assert major in {one.major for one in compilers.find_compilers(Root()) if one.kind == "gcc"}


def make_links(name: str, top: pathlib.Path) -> pathlib.Path:
    """Lay a distribution out, make the root of links for its kernel, and return the modules' directory in that root."""
    layout = LAYOUTS[name]
    root = lay_out(layout, top)
    kernel = next(iter(toolchain.read_kernels(root, compilers.find_compilers(root)).values()))
    return pathlib.Path(sysroot.make_sysroot(Store(str(top / "store")), kernel, root)) / "lib/modules" / layout.release


@pytest.mark.parametrize("name", LAYOUTS)
def test_stap_finds_headers_and_the_kernel_at_one_place(name: str, tmp_path: pathlib.Path) -> None:
    modules = make_links(name, tmp_path)
    assert (modules / "build/.config").read_text(encoding="utf-8") == LAYOUTS[name].config
    vmlinux = LAYOUTS[name].vmlinux
    assert os.path.lexists(modules / "vmlinux") == bool(vmlinux)
    assert not vmlinux or os.readlink(modules / "vmlinux") == str(tmp_path / vmlinux)


@pytest.mark.parametrize(
    "name", ["EL 8", "EL 9", "EL 9, realtime", "SUSE", "SUSE before the merge of /usr", "Ubuntu 24.04"]
)
def test_stap_finds_modules_with_debug_information(name: str, tmp_path: pathlib.Path) -> None:
    layout = LAYOUTS[name]
    (file,) = layout.files
    module = make_links(name, tmp_path) / "kernel/fs/xfs/xfs.ko"
    assert os.path.samefile(module, tmp_path / file)
    # Where the kernel itself is installed, split files are left to its modules.
    own = tmp_path / layout.modules / layout.release / "kernel"
    write(own / "fs/xfs/xfs.ko.xz")
    kept = tmp_path / file.partition("/fs/")[0] if file.endswith(".ko") else own
    assert os.path.samefile(make_links(name, tmp_path) / "kernel", kept)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("EL 9", "usr/src/kernels/{}/System.map"),
        ("Fedora", "usr/lib/modules/{}/System.map"),
        ("SUSE", "usr/lib/modules/{}/System.map"),
        ("Arch", "usr/lib/modules/{}/build/System.map"),
        ("Ubuntu 24.04", "boot/System.map-{}"),
    ],
)
def test_stap_finds_the_symbols(name: str, place: str, tmp_path: pathlib.Path) -> None:
    release = LAYOUTS[name].release
    write(tmp_path / place.format(release), "x" * 5000)
    root = make_links(name, tmp_path).parents[2]
    assert os.path.samefile(root / "boot" / f"System.map-{release}", tmp_path / place.format(release))


@pytest.mark.parametrize(
    ("os_release", "family"),
    [
        ("ID=debian\n", "Debian"),
        ('ID="ol"\nID_LIKE="fedora"\n', "RedHat"),
        ('ID="amzn"\nID_LIKE="centos rhel fedora"\n', "RedHat"),
        ('ID="amzn"\n', "RedHat"),
        ("ID='sles'\nID_LIKE='suse'\n", "SUSE"),
        ("ID=manjaro\nID_LIKE=arch\n", "Arch"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\nUBUNTU_CODENAME=noble\n', "Debian"),
        ("ID=void\n", None),
        ("", None),
    ],
)
def test_the_family_of_a_distribution_is_read(os_release: str, family: t.Any, tmp_path: pathlib.Path) -> None:
    write(tmp_path / "usr/lib/os-release", os_release)
    assert read_distribution(Root(str(tmp_path))).family == family


@pytest.mark.parametrize(
    ("os_release", "package"),
    [
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\nUBUNTU_CODENAME=noble\n', "linux-image-unsigned-6.8.0-49-dbgsym"),
        ('ID=pop\nID_LIKE="ubuntu debian"\n', "linux-image-unsigned-6.8.0-49-dbgsym"),
        ("ID=elementary\nID_LIKE=debian\nUBUNTU_CODENAME=jammy\n", "linux-image-unsigned-6.8.0-49-dbgsym"),
        ("ID=linuxmint\nID_LIKE=debian\nDEBIAN_CODENAME=bookworm\n", "linux-image-6.8.0-49-dbg"),
        ("ID=raspbian\nID_LIKE=debian\n", "linux-image-6.8.0-49-dbg"),
        ("ID=debian\nUBUNTU_CODENAME=noble\n", "linux-image-6.8.0-49-dbg"),
    ],
)
def test_a_derivative_takes_the_names_of_its_base(os_release: str, package: str, tmp_path: pathlib.Path) -> None:
    write(tmp_path / "usr/lib/os-release", os_release)
    assert packages("debuginfo", read_distribution(Root(str(tmp_path))), "6.8.0-49") == (package,)


def test_the_remedy_of_suse_finds_the_version_that_uname_does_not_print() -> None:
    suse, release = Distribution("sles", "SUSE"), "6.4.0-150600.23.25-default"
    found = remedy("debuginfo", suse, release)
    assert found.startswith(
        "install the package kernel-default-debuginfo of the version 6.4.0-150600.23.25.N that "
        "'zypper search --details --match-exact kernel-default-debuginfo' lists (from a debug repository"
    )
    known = remedy("debuginfo", suse, release, build="6.4.0-150600.23.25.1")
    assert known.startswith("install the package kernel-default-debuginfo = 6.4.0-150600.23.25.1 (from a debug")


# What the package manager is asked for by distribution, and how a message names it where that is another name.
KERNEL_PACKAGES = [
    ("rhel", "5.14.0-427.el9.x86_64", "kernel-devel-uname-r = {}", "kernel-devel-{}", "kernel-debuginfo-{}"),
    (
        "rocky",
        "4.18.0-553.el8_10.x86_64+debug",
        "kernel-devel-uname-r = {}",
        "kernel-debug-devel-{}",
        "kernel-debug-debuginfo-{}",
    ),
    ("rhel", "5.14.0-427.el9.x86_64+rt", "kernel-devel-uname-r = {}", "kernel-rt-devel-{}", "kernel-rt-debuginfo-{}"),
    (
        "almalinux",
        "5.14.0-427.el9.aarch64+64k",
        "kernel-devel-uname-r = {}",
        "kernel-64k-devel-{}",
        "kernel-64k-debuginfo-{}",
    ),
    (
        "rhel",
        "5.14.0-427.el9.x86_64+rt-debug",
        "kernel-devel-uname-r = {}",
        "kernel-rt-debug-devel-{}",
        "kernel-rt-debug-debuginfo-{}",
    ),
    ("fedora", "6.11.4-301.fc41.x86_64", "kernel-devel-uname-r = {}", "kernel-devel-{}", "kernel-debuginfo-{}"),
    ("ol", "5.14.0-427.el9.x86_64", "kernel-devel-uname-r = {}", "kernel-devel-{}", "kernel-debuginfo-{}"),
    ("ol", "5.15.0-200.131.27.el9uek.x86_64", "kernel-uek-devel-{}", None, "kernel-uek-debuginfo-{}"),
    ("rhel", "4.18.0-553.rt7.342.el8_10.x86_64", "kernel-rt-devel-{}", None, "kernel-rt-debuginfo-{}"),
    ("amzn", "5.10.225-213.878.amzn2.x86_64", "kernel-devel-{}", None, "kernel-debuginfo-{}"),
    ("amzn", "6.1.112-122.189.amzn2023.x86_64", "kernel-devel-{}", None, "kernel-debuginfo-{}"),
    ("amzn", "6.12.22-27.96.amzn2023.x86_64", "kernel6.12-devel-{}", None, "kernel6.12-debuginfo-{}"),
    ("debian", "6.1.0-56-amd64", "linux-headers-{}", None, "linux-image-{}-dbg"),
    ("ubuntu", "6.8.0-49-generic", "linux-headers-{}", None, "linux-image-unsigned-{}-dbgsym"),
    (
        "sles",
        "6.4.0-150600.23.25-default",
        "kernel-default-devel = 6.4.0-150600.23.25",
        None,
        "kernel-default-debuginfo = 6.4.0-150600.23.25.1",
    ),
    ("opensuse-leap", "6.4.0-150600.8-rt", "kernel-rt-devel = 6.4.0-150600.8", None, "kernel-rt-debuginfo = 6.4.0-8.1"),
    ("arch", "6.12.1-arch1-1", "linux-headers", None, ""),
]
FAMILIES = {"debian": "Debian", "ubuntu": "Debian", "sles": "SUSE", "opensuse-leap": "SUSE", "arch": "Arch"}


@pytest.mark.parametrize(("name", "release", "headers", "shown", "debuginfo"), KERNEL_PACKAGES)
def test_each_distribution_has_its_own_names_of_a_kernels_packages(
    name: str, release: str, headers: str, shown: str | None, debuginfo: str
) -> None:
    distribution = Distribution(name, FAMILIES.get(name, "RedHat"))
    bare = release.partition("+")[0]
    assert packages("headers", distribution, release) == (headers.format(release),)
    assert remedy("headers", distribution, release) == f"install the package {(shown or headers).format(bare)}"
    build = debuginfo.partition(" = ")[2]
    assert packages("debuginfo", distribution, release, build) == ((debuginfo.format(bare),) if debuginfo else ())


@pytest.mark.parametrize(
    ("name", "family", "words"),
    [
        ("ubuntu", "Debian", "from the ddebs archive, which needs its own sources entry and the key"),
        ("ol", "RedHat", "from oss.oracle.com, whose debuginfo directory needs a repository entry of its own"),
        ("rhel", "RedHat", "from a debuginfo repository, which is disabled by default"),
        ("sles", "SUSE", "from a debug repository, which is disabled by default"),
        ("arch", "Arch", "use a debuginfod server (Arch has no package of debug information)"),
    ],
)
def test_the_remedy_says_where_debug_information_is(name: str, family: str, words: str) -> None:
    assert words in remedy("debuginfo", Distribution(name, family), "6.1.0-1")


def test_a_kernel_of_another_architecture_has_no_packages(tmp_path: pathlib.Path) -> None:
    root = lay_out(LAYOUTS["EL 8"], tmp_path)
    row = {**toolchain.builder_row(root, str(tmp_path / "store")), "stap": "5.6"}
    own = os.uname().machine
    foreign, release = ("s390x", "6.1.0-56-s390x") if own != "s390x" else ("x86_64", "6.1.0-56-amd64")
    (lack,) = toolchain.missing_to_build(root, row, [release])
    assert (lack["what"], lack["packages"]) == ("arch", [])
    assert lack["reason"] == f"this builder is {own}, and {release} is a kernel for {foreign}"
    assert lack["remedy"] == f"use a builder of the architecture {foreign}"
    with pytest.raises(InvalidInput, match=f"That is a kernel for {foreign}, and this builder is {own}"):
        toolchain.find_kernel({}, release, None)


@pytest.mark.parametrize(
    ("release", "arch"),
    [
        ("5.14.0-427.el9.aarch64+64k", "aarch64"),
        ("6.12.107+deb13-cloud-arm64", "aarch64"),
        ("6.1.0-9-powerpc64le", ""),
        ("6.8.0-49-generic", ""),
        ("6.4.0-150600.23.25-default", ""),
        ("6.1.0-mys390x.tuned", ""),
        ("6.1.0-arm64er", ""),
    ],
)
def test_only_a_whole_word_of_a_release_names_an_architecture(release: str, arch: str) -> None:
    assert toolchain.foreign_arch(release) == ("" if arch == os.uname().machine else arch)


@pytest.mark.parametrize("release", ["", "-o=x", "6.1 or evil", "6.1\n", "6.1*", "../6.1", "a" * 200])
def test_a_release_that_is_none_is_refused(release: str, tmp_path: pathlib.Path) -> None:
    row = {"stap": "5.6", "compilers": ["gcc"], "kernels": {}, "arch": os.uname().machine}
    with pytest.raises(InvalidInput) as caught:
        toolchain.missing_to_build(Root(str(tmp_path)), row, ["6.1.0-1-amd64", release])
    assert caught.value.option == "kernels[1]"


@pytest.mark.parametrize("family", ["Debian", "RedHat", "SUSE"])
def test_the_role_of_virtualization_hosts_installs_the_binding_that_errors_name(family: str) -> None:
    path = ROLES / "virt_host" / "defaults" / "main.yml"
    installed = yaml.safe_load(path.read_text(encoding="utf-8"))["virt_host_packages_by_family"][family]
    assert set(PACKAGES[family]["libvirt"]) <= set(installed)
