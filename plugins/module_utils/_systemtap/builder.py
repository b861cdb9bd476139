# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a builder has: kernels that there are headers for, compilers, SystemTap.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing as t

from .._core import command
from .._core.errors import InvalidInput, nearest_names
from .._core.root import Root
from .host import parse_tested_range, parse_version
from .store import Store, hash_file

HEADERS = "usr/lib/modules/{0}/build"
_DEBUG_KERNELS = (
    "usr/lib/debug/boot/vmlinux-{0}",
    "usr/lib/debug/lib/modules/{0}/vmlinux",
    "usr/lib/debug/usr/lib/modules/{0}/vmlinux",
)
_COMPILER_TEXT = re.compile(r'^CONFIG_CC_VERSION_TEXT="([^"]*)"', re.MULTILINE)
_GCC_MAJOR = re.compile(r"gcc(?:-(\d+))?\b.* (\d+)\.\d+\.\d+")
_UTS_VERSION = re.compile(r'#define UTS_VERSION "([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that a builder has headers for.

    ``version`` is what ``uname -v`` says there; ``wanted_compiler`` is the major version of the gcc that compiled it,
    ``compiler`` the builder's command to build for it (null: none); ``vmlinux`` the file with debug information.
    """

    release: str
    version: str | None
    wanted_compiler: int | None
    compiler: str | None
    vmlinux: str | None
    symvers_sha256: str


def find_compilers(root: Root) -> dict[int, str]:
    """Return the gcc commands of a builder by major version (``gcc-14``; plain ``gcc`` is one of them)."""
    found = {}
    for name in root.listdir("usr/bin"):
        match = re.match(r"gcc-(\d+)$", name)
        if match:
            found[int(match.group(1))] = name
    return found


def choose_compiler(wanted: int | None, compilers: t.Mapping[int, str]) -> str | None:
    """Return the compiler for headers made with gcc ``wanted``: that version, else the next newer, else the newest."""
    if not compilers:
        return None
    newer = [major for major in sorted(compilers) if wanted is None or major >= wanted]
    return compilers[newer[0] if newer and wanted is not None else max(compilers)]


def read_kernels(root: Root, compilers: t.Mapping[int, str]) -> dict[str, Kernel]:
    """Return the kernels that there are headers for, by release."""
    kernels = {}
    for release in root.listdir("usr/lib/modules"):
        headers = HEADERS.format(release)
        config = root.read_text_or(headers + "/.config")
        if config is not None:
            kernels[release] = _read_kernel(root, release, headers, config, compilers)
    return kernels


def _read_kernel(root: Root, release: str, headers: str, config: str, compilers: t.Mapping[int, str]) -> Kernel:
    text = _COMPILER_TEXT.search(config)
    major = _GCC_MAJOR.search(text.group(1)) if text else None
    wanted = int(major.group(1) or major.group(2)) if major else None
    generated = [
        root.read_text_or(headers + "/include/generated/" + name) or "" for name in ("utsversion.h", "compile.h")
    ]
    version = _UTS_VERSION.search("".join(generated))
    symvers = root.path(headers + "/Module.symvers")
    return Kernel(
        release=release,
        version=version.group(1) if version else None,
        wanted_compiler=wanted,
        compiler=choose_compiler(wanted, compilers),
        vmlinux=next((root.path(name) for name in expand(_DEBUG_KERNELS, release) if root.exists(name)), None),
        symvers_sha256=hash_file(symvers) if os.path.exists(symvers) else "",
    )


def expand(names: t.Iterable[str], release: str) -> list[str]:
    """Return the file names of a release."""
    return [name.format(release) for name in names]


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """What a builder builds with. ``tested`` are the lowest and highest kernels that this stap was tested with."""

    stap: str | None
    stap_text: str
    tested: tuple[str, str] | None
    compilers: dict[int, str]


def read_toolchain(root: Root) -> Toolchain:
    """Ask the builder's stap for its version; a host without stap has none."""
    text = ""
    if command.find_program("stap") is not None:
        result = command.run(["stap", "--version"], timeout_seconds=30)
        text = result.stdout + result.stderr
    first = next(iter(text.splitlines()), "")
    return Toolchain(parse_version(first), first, parse_tested_range(text), find_compilers(root))


def builder_row(root: Root, store: str) -> dict[str, t.Any]:
    """Return a builder's facts for ``stap_host_info``: versions, compilers, kernels and what its store holds."""
    tools = read_toolchain(root)
    kernels = read_kernels(root, tools.compilers)
    return {
        "stap": tools.stap,
        "tested": list(tools.tested) if tools.tested else None,
        "compilers": [tools.compilers[major] for major in sorted(tools.compilers)],
        "kernels": {
            release: {"version": kernel.version, "compiler": kernel.compiler, "debuginfo": kernel.vmlinux is not None}
            for release, kernel in sorted(kernels.items())
        },
        "store": Store(store).row(),
    }


def find_kernel(kernels: t.Mapping[str, Kernel], release: str, version: str | None) -> Kernel:
    """Return the builder's kernel of a release.

    :raises InvalidInput: no headers, no compiler, or headers of another build of the same release.
    """
    if release not in kernels:
        rule = "has no headers on this builder, which has them for {0}".format(
            ", ".join(sorted(kernels)) or "no kernel at all"
        )
        raise InvalidInput(
            "kernel", release, rule, nearest_names(release, kernels), phase="headers", releases=sorted(kernels)
        )
    kernel = kernels[release]
    if kernel.compiler is None:
        raise InvalidInput("kernel", release, "cannot be built for: this builder has no gcc", phase="compiler")
    if version is not None and kernel.version is not None and kernel.version != version:
        raise InvalidInput(
            "kernel_version",
            version,
            "is another build of {0} than the builder's headers are of ({1!r})".format(release, kernel.version),
            phase="headers",
        )
    return kernel
