# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The compilers of a builder, and the one that a kernel was compiled with.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ..._core import command
from ..._core.errors import TapvirtError
from ..._core.root import Root

_PROGRAMS = "usr/bin"
_VERSIONED = re.compile(r"(gcc|clang)-([0-9]+)\Z")
# Software collections of Red Hat: newer compilers beside the distribution's own.
_TOOLSETS = "opt/rh"
_TOOLSET = re.compile(r"(?:gcc-toolset|devtoolset)-([0-9]+)\Z")
_VERSION = re.compile(r"([0-9]+)(?:\.[0-9]+)*\Z")
_VERSION_SECONDS = 20
# gcc before 7 has no -dumpfullversion and takes -dumpversion for it (GCC 7 release notes); clang has only the latter.
_ASK_VERSION = {"gcc": ("-dumpfullversion", "-dumpversion"), "clang": ("-dumpversion",)}
# init/Kconfig since 4.18: gcc 8.5.0 is 80500, clang 15.0.7 is 150007, and 0 that it was the other one.
_CONFIG_VERSION = re.compile(r"^CONFIG_(GCC|CLANG)_VERSION=([1-9][0-9]*)$", re.MULTILINE)
_CONFIG_TEXT = re.compile(r'^(?:CONFIG_CC_VERSION_TEXT="|# Compiler: )([^"\n]*)', re.MULTILINE)
_GCC_TEXT = re.compile(r"gcc(?:-([0-9]+))?\b.* ([0-9]+)\.[0-9]+\.[0-9]+")
_CLANG_TEXT = re.compile(r"\bclang version ([0-9]+)\.")


@dataclasses.dataclass(frozen=True)
class Compiler:
    """A compiler of a builder: ``kind`` (gcc, clang), major version, and the command that make is given.

    ``version`` is the full version of a command that has no version in its name, else ``None``.
    """

    kind: str
    major: int
    command: str
    version: str | None = None


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a kernel was compiled with: ``kind`` and ``major`` of the compiler (``None``: unknown), LLVM's linker."""

    kind: str = "gcc"
    major: int | None = None
    lld: bool = False

    @property
    def text(self) -> str:
        return self.kind if self.major is None else f"{self.kind} {self.major}"


def find_compilers(root: Root) -> list[Compiler]:
    """Return the compilers of a builder, one for each kind and major version.

    ``gcc-14`` (Debian, SUSE) is taken before plain ``gcc`` (Red Hat, Fedora, Arch), that before one of ``/opt/rh``.
    """
    names = root.listdir(_PROGRAMS)
    found = [
        Compiler(match.group(1), int(match.group(2)), name)
        for name, match in ((name, _VERSIONED.match(name)) for name in names)
        if match
    ]
    for kind in ("gcc", "clang"):
        version = _ask_version(root.path(f"{_PROGRAMS}/{kind}"), kind) if kind in names else None
        if version is not None:
            found.append(Compiler(kind, int(version.partition(".")[0]), kind, version))
    for name in root.listdir(_TOOLSETS):
        match = _TOOLSET.match(name)
        path = f"{_TOOLSETS}/{name}/root/usr/bin/gcc"
        if match and root.exists(path):
            found.append(Compiler("gcc", int(match.group(1)), root.path(path)))
    # The first of each kind and version stays.
    first = {(compiler.kind, compiler.major): compiler for compiler in reversed(found)}
    return [first[key] for key in sorted(first)]


def _ask_version(path: str, kind: str) -> str | None:
    """Return a compiler's full version; ``None`` where it does not run, or prints something else."""
    try:
        text = command.run([path, *_ASK_VERSION[kind]], timeout_seconds=_VERSION_SECONDS).stdout.strip()
    except (OSError, TapvirtError):
        return None
    return text if _VERSION.match(text) else None


def read_origin(config: str) -> Origin:
    """Return what a kernel was compiled with, from its configuration."""
    lld = "\nCONFIG_LD_IS_LLD=y\n" in f"\n{config}\n"
    version = _CONFIG_VERSION.search(config)
    if version is not None:
        return Origin(version.group(1).lower(), int(version.group(2)) // 10000, lld)
    told = _CONFIG_TEXT.search(config)
    text = told.group(1) if told else ""
    clang = _CLANG_TEXT.search(text)
    if clang is not None:
        return Origin("clang", int(clang.group(1)), lld)
    gcc = _GCC_TEXT.search(text)
    return Origin("gcc", int(gcc.group(1) or gcc.group(2)) if gcc else None, lld)


def choose_compiler(origin: Origin, compilers: t.Sequence[Compiler]) -> Compiler | None:
    """Return the compiler for a kernel: the version that compiled it, else the next newer, else the newest.

    Where the kernel names no version, the distribution's own (a command without a version) goes before the newest.
    """
    able = {compiler.major: compiler for compiler in compilers if compiler.kind == origin.kind}
    if not able:
        return None
    if origin.major is None:
        return next((one for one in able.values() if one.version is not None), able[max(able)])
    newer = [major for major in able if major >= origin.major]
    return able[min(newer) if newer else max(able)]


def make_options(origin: Origin, compiler: Compiler) -> list[str]:
    """Return the options of stap by which make uses a compiler.

    A kernel that LLVM's linker linked gets all of LLVM's tools, of the same version (Documentation/kbuild/llvm.rst).
    """
    options = ["-B", f"CC={compiler.command}"]
    if compiler.kind == "clang" and origin.lld:
        options += ["-B", f"LLVM={compiler.command[len('clang') :] or '1'}"]
    return options
