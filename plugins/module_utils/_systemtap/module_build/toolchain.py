# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a builder has: kernels that there are headers for, SystemTap, and what it lacks for other kernels.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing as t

from ..._core import command
from ..._core.errors import InvalidInput, nearest_names
from ..._core.packages import Distribution, packages, read_distribution, remedy
from ..._core.root import Root
from ..language.preprocessor import Target
from ..readiness import has_debuginfod, parse_tested_range, parse_version, silent_servers
from .compilers import Compiler, Origin, choose_compiler, find_compilers, make_options, read_origin
from .debuginfod import Debuginfod
from .store import Store, hash_file

# A distribution that has not merged /usr (SUSE up to 15) keeps modules in /lib.
_MODULES = ("usr/lib/modules", "lib/modules")
# Of Red Hat and Fedora. The package of headers has nothing else: the link in /lib/modules is in that of the kernel.
_HEADERS = "usr/src/kernels"
# The last three are SUSE's.
_DEBUG_KERNELS = (
    "usr/lib/debug/boot/vmlinux-{0}",
    "usr/lib/debug/lib/modules/{0}/vmlinux",
    "usr/lib/debug/usr/lib/modules/{0}/vmlinux",
    "usr/lib/debug/boot/vmlinux-{0}.debug",
    "usr/lib/debug/lib/modules/{0}/vmlinux.debug",
    "usr/lib/debug/usr/lib/modules/{0}/vmlinux.debug",
)
_RPM_SECONDS = 30
# Releases come from the facts of traced hosts, and become part of what a package manager is asked for.
_RELEASE = re.compile(r"[A-Za-z0-9][\w.+~-]{0,126}\Z", re.ASCII)
# The architecture in a release: 5.14.0-427.el9.aarch64+64k, 6.12.107+deb13-cloud-arm64. Ubuntu and SUSE name none.
_RELEASE_ARCH = re.compile(r"[.-](x86_64|amd64|aarch64|arm64|ppc64le|ppc64el|s390x|riscv64)(?![A-Za-z0-9])")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "ppc64el": "ppc64le"}
# What SystemTap calls an architecture (util.cxx, normalize_machine).
_TARGET_ARCHS = {"aarch64": "arm64", "ppc64le": "powerpc", "ppc64": "powerpc", "s390x": "s390", "riscv64": "riscv"}
_OPTION = re.compile(r"^(CONFIG_\w+)=(.*)$", re.MULTILINE)
_UTS_VERSION = re.compile(r'#define UTS_VERSION "([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that a builder has headers for.

    ``version`` is what ``uname -v`` says there; ``origin`` what compiled it, ``compiler`` the builder's own to build
    for it (``None``: it has none of that kind); ``vmlinux`` the file with debug information.
    """

    release: str
    version: str | None
    origin: Origin
    compiler: Compiler | None
    vmlinux: str | None
    symvers_sha256: str

    @property
    def make_options(self) -> list[str]:
        """Return the options of stap by which make uses the chosen compiler."""
        return make_options(self.origin, self.compiler) if self.compiler else []


def modules_of(root: Root, release: str) -> str:
    """Return the directory of a kernel's modules, below the root."""
    places = [f"{base}/{release}" for base in _MODULES]
    return next(filter(root.exists, places), places[0])


def headers_of(root: Root, release: str) -> str:
    """Return the directory of a kernel's headers, below the root."""
    places = [modules_of(root, release) + "/build", f"{_HEADERS}/{release}"]
    return next(filter(root.exists, places), places[0])


def read_kernels(root: Root, compilers: t.Sequence[Compiler]) -> dict[str, Kernel]:
    """Return the kernels that there are headers for, by release."""
    kernels = {}
    for release in sorted({name for base in (*_MODULES, _HEADERS) for name in root.listdir(base)}):
        headers = headers_of(root, release)
        config = root.read_text_or(headers + "/.config")
        if config is not None:
            kernels[release] = _read_kernel(root, release, headers, config, compilers)
    return kernels


def _read_kernel(root: Root, release: str, headers: str, config: str, compilers: t.Sequence[Compiler]) -> Kernel:
    origin = read_origin(config)
    generated = [
        root.read_text_or(headers + "/include/generated/" + name) or "" for name in ("utsversion.h", "compile.h")
    ]
    version = _UTS_VERSION.search("".join(generated))
    symvers = root.path(headers + "/Module.symvers")
    return Kernel(
        release=release,
        version=version.group(1) if version else None,
        origin=origin,
        compiler=choose_compiler(origin, compilers),
        vmlinux=next((root.path(name) for name in expand(_DEBUG_KERNELS, release) if root.exists(name)), None),
        symvers_sha256=hash_file(symvers) if os.path.exists(symvers) else "",
    )


def expand(names: t.Iterable[str], release: str) -> list[str]:
    """Return the file names of a release."""
    return [name.format(release) for name in names]


def foreign_arch(release: str) -> str:
    """Return the architecture that a kernel's release names; empty if it is this builder's own or not named."""
    found = _RELEASE_ARCH.search(release)
    named = _MACHINES.get(found.group(1), found.group(1)) if found else ""
    return "" if named == os.uname().machine else named


def target_of(root: Root, release: str, stap: str, guru: bool) -> Target:
    """Return what conditionals of scripts are evaluated for: a kernel that there are headers for, and this builder."""
    machine = os.uname().machine
    options = dict(_OPTION.findall(root.read_text_or(headers_of(root, release) + "/.config") or ""))
    return Target(release, _TARGET_ARCHS.get(machine, machine), stap, guru, options)


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """What a builder builds with. ``tested`` are the lowest and highest kernels that this stap was tested with."""

    stap: str | None
    stap_text: str
    tested: tuple[str, str] | None
    compilers: list[Compiler]


def read_toolchain(root: Root) -> Toolchain:
    """Ask the builder's stap for its version; a host without stap has none."""
    text = ""
    if command.find_program("stap") is not None:
        result = command.run(["stap", "--version"], timeout_seconds=30)
        text = result.stdout + result.stderr
    first = next(iter(text.splitlines()), "")
    return Toolchain(parse_version(first), first, parse_tested_range(text), find_compilers(root))


def builder_row(root: Root, store: str, source: Debuginfod | None = None) -> dict[str, t.Any]:
    """Return a builder's facts for ``stap_host_info``: versions, compilers, kernels and what its store holds.

    :param source: the debuginfod servers that the builder is to use; each is asked whether it answers.
    """
    tools = read_toolchain(root)
    kernels = read_kernels(root, tools.compilers)
    return {
        "arch": os.uname().machine,
        "distribution": dataclasses.asdict(read_distribution(root)),
        "stap": tools.stap,
        "tested": list(tools.tested) if tools.tested else None,
        "compilers": [compiler.command for compiler in tools.compilers],
        "kernels": {release: _kernel_row(kernel) for release, kernel in sorted(kernels.items())},
        "debuginfod": _debuginfod_row(source),
        "store": Store(store).row(),
    }


def _debuginfod_row(source: Debuginfod | None) -> dict[str, t.Any] | None:
    if source is None:
        return None
    from .download import answering_servers

    return {"servers": list(source.servers), "answering": answering_servers(source)}


def _kernel_row(kernel: Kernel) -> dict[str, t.Any]:
    return {
        "version": kernel.version,
        "compiled_with": kernel.origin.text,
        "compiler": kernel.compiler.command if kernel.compiler else None,
        "debuginfo": kernel.vmlinux is not None,
    }


def missing_to_run(root: Root, host: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """Return what a host (facts of ``read_host``) lacks to run modules, in rows as those of ``missing_to_build``."""
    if host["staprun"] is not None:
        return []
    return [_lack(read_distribution(root), "runtime", "runtime", "staprun is not installed")]


def missing_to_build(root: Root, row: t.Mapping[str, t.Any], releases: t.Iterable[str]) -> list[dict[str, t.Any]]:
    """Return what a builder (a row of ``builder_row``) lacks to build for kernels, and the packages that bring it.

    :raises InvalidInput: a release is not what ``uname -r`` prints.
    """
    releases = list(releases)
    for index, release in enumerate(releases):
        if not _RELEASE.match(release):
            problem = (
                "A kernel's release, as uname -r prints it, has letters, digits and the characters . _ + ~ - only."
            )
            raise InvalidInput(f"kernels[{index}]", release, problem)
    distribution = read_distribution(root)
    rows = []
    if not row["stap"]:
        rows.append(_lack(distribution, "toolchain", "toolchain", "SystemTap's translator (stap) is not installed"))
    elif not row["compilers"]:
        rows.append(_lack(distribution, "toolchain", "toolchain", "there is no compiler"))
    for release in releases:
        foreign = foreign_arch(release)
        if foreign:
            rows.append(_foreign_row(row["arch"], foreign, release))
            continue
        kernel = row["kernels"].get(release)
        if kernel is None:
            reason = f"there are no headers for {release}"
            rows.append(_lack(distribution, "headers", "headers", reason, release))
        elif kernel["compiler"] is None and row["compilers"]:
            kind = kernel["compiled_with"].partition(" ")[0]
            reason = f"there is no {kind}, and {release} was compiled with {kernel['compiled_with']}"
            rows.append({**_lack(distribution, "compiler", kind, reason), "kernel": release})
        if (kernel is None or not kernel["debuginfo"]) and not has_debuginfod(row):
            reason = f"there is no debug information for {release}{silent_servers(row)}"
            build = _package_build(root, distribution, release)
            rows.append(_lack(distribution, "debuginfo", "debuginfo", reason, release, build))
    return rows


def _lack(
    distribution: Distribution, what: str, need: str, reason: str, release: str = "", build: str = ""
) -> dict[str, t.Any]:
    return {
        "what": what,
        "kernel": release or None,
        "packages": list(packages(need, distribution, release, build)),
        "reason": reason,
        "remedy": remedy(need, distribution, release, build=build),
    }


def _foreign_row(own: str, foreign: str, release: str) -> dict[str, t.Any]:
    reason = f"this builder is {own}, and {release} is a kernel for {foreign}"
    remedy_text = f"use a builder of the architecture {foreign}"
    return {"what": "arch", "kernel": release, "packages": [], "reason": reason, "remedy": remedy_text}


def _package_build(root: Root, distribution: Distribution, release: str) -> str:
    """Return the version and release of the package of a kernel's headers on SUSE; empty where no package has them."""
    headers = root.path(headers_of(root, release))
    if distribution.family != "SUSE" or not os.path.exists(headers) or command.find_program("rpm") is None:
        return ""
    query = ("rpm", "--query", "--queryformat", "%{VERSION}-%{RELEASE}\\n", "--file", headers)
    result = command.run(query, timeout_seconds=_RPM_SECONDS)
    first = next(iter(result.stdout.splitlines()), "")
    return first if result.rc == 0 and _RELEASE.match(first) else ""


def find_kernel(kernels: t.Mapping[str, Kernel], release: str, version: str | None) -> Kernel:
    """Return the builder's kernel of a release.

    :raises InvalidInput: another architecture, no headers, no compiler, or another build of the release.
    """
    foreign = foreign_arch(release)
    if foreign:
        problem = f"That is a kernel for {foreign}, and this builder is {os.uname().machine}"
        raise InvalidInput("kernel", release, problem, f"Use a builder of the architecture {foreign}", phase="headers")
    if release not in kernels:
        has = f"it has them for {', '.join(sorted(kernels))}" if kernels else "it has none for any kernel"
        problem = f"This builder has no headers for that kernel; {has}"
        nearest = nearest_names(release, kernels)
        raise InvalidInput("kernel", release, problem, None, nearest, phase="headers", releases=sorted(kernels))
    kernel = kernels[release]
    if kernel.compiler is None:
        origin = kernel.origin
        problem = f"The kernel was compiled with {origin.text}, and this builder has no {origin.kind} to build for it"
        raise InvalidInput("kernel", release, problem, phase="compiler")
    if version is not None and kernel.version is not None and kernel.version != version:
        problem = f"The builder's headers are of another build of {release}, {kernel.version!r}"
        raise InvalidInput("kernel_version", version, problem, phase="headers")
    return kernel
