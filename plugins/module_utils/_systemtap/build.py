# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build SystemTap modules on a builder, once for each key, in a content-addressed store.

Private to the collection. The store::

    STORE/KEY/NAME.ko, build.json, script.stp     one finished build
    STORE/builds.log                              one JSON line for each compilation that was done
    STORE/.cache                                  stap's own cache (stapconf), shared by all builds: no rc file in it
    STORE/.root                                   a sysroot of links to the headers and debug information
    STORE/.work/KEY                               a build under way
    STORE/.lock/KEY                               one compilation for each key at a time
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
import typing as t

from .._core import command
from .._core.errors import InvalidInput, TapvirtError, nearest_names
from .._core.root import Root
from .._core.write import write_atomic
from .host import parse_tested_range, parse_version

DEFAULT_STORE = "/var/lib/tapvirt/modules"
_HEADERS = "usr/lib/modules/{0}/build"
_DEBUG_KERNELS = (
    "usr/lib/debug/boot/vmlinux-{0}",
    "usr/lib/debug/lib/modules/{0}/vmlinux",
    "usr/lib/debug/usr/lib/modules/{0}/vmlinux",
)
_DEBUG_MODULES = ("usr/lib/debug/lib/modules/{0}/kernel", "usr/lib/debug/usr/lib/modules/{0}/kernel")
_SYMBOL_MAPS = ("usr/lib/debug/boot/System.map-{0}", "usr/lib/debug/lib/modules/{0}/System.map", "boot/System.map-{0}")
_TRACE_HEADERS = ("include/trace/events", "arch/x86/include/asm/trace")
_COMMON_MAKEFILE = re.compile(r"^include\s+/?(\S+)/Makefile\s*$", re.MULTILINE)
_TRACE_SYSTEM = re.compile(r"^#define TRACE_SYSTEM (\w+)", re.MULTILINE)
_TRACEPOINT = re.compile(r'\bkernel\.trace\(\s*"(?:(\w+):)?')
_COMPILER_TEXT = re.compile(r'^CONFIG_CC_VERSION_TEXT="([^"]*)"', re.MULTILINE)
_GCC_MAJOR = re.compile(r"gcc(?:-(\d+))?\b.* (\d+)\.\d+\.\d+")
_UTS_VERSION = re.compile(r'#define UTS_VERSION "([^"]*)"')
_PROBE_ROW = re.compile(
    r"^(?P<point>.*?) (?:/\*\s*(?:pc=(?P<pc>[^*]*?)|name = [^*]*?)\s*\*/ )?/\*\s*<- (?P<chain>.*?)\s*\*/\s*$"
)
_RLIMIT_CPU_SECONDS = 600
_RLIMIT_MEMORY_BYTES = 4 << 30
BUILD_TIMEOUT_SECONDS = 900
# Debian ships a placeholder of 83 bytes in the place of /boot/System.map.
_LEAST_REAL_MAP_BYTES = 4096
_KEPT_OUTPUT = 3000
# stap compiles the report of hits into a module only when its own output is a terminal (STP_STDOUT_NOT_ATTY); it prints
# no more than a file name there.
_WITH_TERMINAL = "import os, subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], stdout=os.openpty()[1]))"


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
        headers = _HEADERS.format(release)
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
        vmlinux=next((root.path(name) for name in _expand(_DEBUG_KERNELS, release) if root.exists(name)), None),
        symvers_sha256=_hash_file(symvers) if os.path.exists(symvers) else "",
    )


def _expand(names: t.Iterable[str], release: str) -> list[str]:
    return [name.format(release) for name in names]


def _hash_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


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


class BuildFailed(TapvirtError):
    """A pass of stap failed; ``phase``, ``line``, ``column`` and ``nearest`` say where and what."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be built: a script for a kernel, with the options that change the result."""

    name: str
    text: str
    kernel: Kernel
    guru: bool
    cpu_ceiling_percent: int

    @property
    def module_name(self) -> str:
        """Return the module's name: stable, unlike any other, and short enough for the kernel (55 letters)."""
        base = re.sub(r"[^a-z0-9_]", "_", self.name.lower())[:24].strip("_") or "script"
        return "tapvirt_{0}_{1}".format(
            base, hashlib.sha256(self.text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        )

    def options(self) -> list[str]:
        """Return the options of stap that change the module, in order."""
        # STP_OVERLOAD_THRESHOLD cycles of every STP_OVERLOAD_INTERVAL (10^9) may go into probes, on each CPU.
        options = ["-t", "-D", "STP_OVERLOAD_THRESHOLD={0}LL".format(self.cpu_ceiling_percent * 10_000_000)]
        return options + (["-g"] if self.guru else [])


def key_of(order: Order, tools: Toolchain) -> str:
    """Return the key of a build: everything that the module's bytes depend on."""
    kernel = order.kernel
    parts = {
        "kernel": [kernel.release, kernel.version, kernel.symvers_sha256, kernel.vmlinux is not None],
        "stap": tools.stap_text,
        "compiler": kernel.compiler,
        "options": order.options(),
        "name": order.module_name,
        "script": order.text,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()


class Store:
    """The builds that a builder keeps."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def folder(self, key: str) -> str:
        return os.path.join(self.directory, key)

    def read(self, key: str) -> dict[str, t.Any] | None:
        """Return what is known of a finished build, or null; a damaged one counts as absent."""
        try:
            with open(os.path.join(self.folder(key), "build.json"), encoding="utf-8") as stream:
                build = json.load(stream)
            whole = _hash_file(build["path"]) == build["sha256"]
        except (OSError, ValueError, KeyError):
            return None
        return build if whole else None

    @contextlib.contextmanager
    def locked(self, key: str) -> t.Iterator[None]:
        """Keep other builds of the same key waiting."""
        locks = os.path.join(self.directory, ".lock")
        os.makedirs(locks, mode=0o755, exist_ok=True)
        with open(os.path.join(locks, key), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def log(self, row: t.Mapping[str, t.Any]) -> None:
        """Count a compilation: one line, appended at once, so that writers side by side do not mix."""
        line = (json.dumps(row, sort_keys=True) + "\n").encode()
        descriptor = os.open(os.path.join(self.directory, "builds.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def row(self) -> dict[str, t.Any]:
        """Return the store's own account: how many compilations were ever done, and how many modules it keeps."""
        builds = 0
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self.directory, "builds.log"), "rb") as stream:
            builds = sum(1 for _line in stream)
        modules = [name for name in Root(self.directory).listdir("") if len(name) == 64]
        return {"directory": self.directory, "builds": builds, "modules": len(modules)}


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


def build(order: Order, tools: Toolchain, store: Store, root: Root) -> tuple[dict[str, t.Any], bool]:
    """Return the build of an order, and whether it had to be compiled now.

    :raises BuildFailed: a pass of stap failed.
    """
    key = key_of(order, tools)
    with store.locked(key):
        known = store.read(key)
        if known is not None:
            return known, False
        return _compile(order, tools, store, key, root), True


def _compile(order: Order, tools: Toolchain, store: Store, key: str, root: Root) -> dict[str, t.Any]:
    started = time.monotonic()
    sysroot = make_sysroot(store, order.kernel, root)
    link_trace_headers(sysroot, order.kernel.release, root, order.text)
    # The script's path becomes part of the module; a name of its own for each key keeps builds reproducible.
    work = os.path.join(store.directory, ".work", key)
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work, mode=0o755)
    try:
        script = os.path.join(work, order.name + ".stp")
        write_atomic(script, order.text.encode("utf-8", "surrogateescape"))
        stap = _Stap(order, store, sysroot, work, key)
        probes = parse_probe_rows(stap.run("2", script, terminal=False))
        stap.run("4", script, terminal=True)
        module = os.path.join(work, order.module_name + ".ko")
        parameters = parse_parameters(command.run(["modinfo", "-F", "parm", module]).stdout)
        build_row: dict[str, t.Any] = {
            "name": order.module_name,
            "script": order.name,
            "script_sha256": hashlib.sha256(order.text.encode("utf-8", "surrogateescape")).hexdigest(),
            "path": os.path.join(store.folder(key), order.module_name + ".ko"),
            "sha256": _hash_file(module),
            "bytes": os.path.getsize(module),
            "key": key,
            "kernel": order.kernel.release,
            "kernel_version": order.kernel.version,
            "stap": tools.stap,
            "compiler": order.kernel.compiler,
            "globals": parameters,
            "probes": probes,
            "seconds": round(time.monotonic() - started, 1),
        }
        write_atomic(
            os.path.join(work, "build.json"), (json.dumps(build_row, indent=1, sort_keys=True) + "\n").encode()
        )
        shutil.rmtree(store.folder(key), ignore_errors=True)
        os.rename(work, store.folder(key))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    store.log(
        {
            "key": key,
            "name": order.module_name,
            "kernel": order.kernel.release,
            "seconds": build_row["seconds"],
            "time": int(time.time()),
        }
    )
    return build_row


def make_sysroot(store: Store, kernel: Kernel, root: Root) -> str:
    """Make the links through which stap finds headers, debug information and symbols, whichever way they were packed.

    Debian compresses modules and leaves a placeholder for System.map; stap looks for neither where the -dbg package
    puts them. A root of links costs nothing and changes nothing outside the store.
    """
    base = os.path.join(store.directory, ".root")
    modules = os.path.join(base, "lib/modules", kernel.release)
    links = {
        os.path.join(modules, "build"): root.path(_HEADERS.format(kernel.release)),
        os.path.join(base, "usr/lib/debug"): root.path("usr/lib/debug"),
    }
    trees = [name for name in _expand(_DEBUG_MODULES, kernel.release) if root.exists(name)]
    links[os.path.join(modules, "kernel")] = root.path(
        trees[0] if trees else "usr/lib/modules/{0}/kernel".format(kernel.release)
    )
    for name in _expand(_SYMBOL_MAPS, kernel.release):
        if root.exists(name) and os.path.getsize(root.path(name)) > _LEAST_REAL_MAP_BYTES:
            links[os.path.join(base, "boot", "System.map-" + kernel.release)] = root.path(name)
            break
    for link, target in links.items():
        _link(link, target)
    return base


def link_trace_headers(sysroot: str, release: str, root: Root, text: str) -> None:
    """Link the headers of the tracepoints that a script names into a sysroot.

    Debian keeps a kernel's headers in two trees, and from a sysroot stap looks into the first only. It compiles every
    header of tracepoints that it finds, which takes minutes for all 200 of a kernel: so those of the named systems are
    linked (``kernel.trace("sched:sched_switch")``: sched), all of them where a tracepoint is named without its system.
    """
    asked = set(_TRACEPOINT.findall(text))
    included = _COMMON_MAKEFILE.search(root.read_text_or(_HEADERS.format(release) + "/Makefile") or "")
    if not asked or included is None:
        return
    for folder in _TRACE_HEADERS:
        tree = "{0}/{1}".format(included.group(1), folder)
        for name in root.listdir(tree):
            systems = set(_TRACE_SYSTEM.findall(root.read_text_or("{0}/{1}".format(tree, name)) or ""))
            if "" in asked or systems & asked:
                link = os.path.join(sysroot, "lib/modules", release, "source", folder, name)
                _link(link, root.path("{0}/{1}".format(tree, name)))


def _link(link: str, target: str) -> None:
    os.makedirs(os.path.dirname(link), exist_ok=True)
    if not os.path.islink(link) or os.readlink(link) != target:
        temporary = "{0}.{1}".format(link, os.getpid())
        os.symlink(target, temporary)
        os.replace(temporary, link)


class _Stap:
    """Runs stap for one order, away from the user's own settings, within limits."""

    def __init__(self, order: Order, store: Store, sysroot: str, work: str, key: str) -> None:
        self._order = order
        self._work = work
        cache = os.path.join(store.directory, ".cache")
        os.makedirs(cache, exist_ok=True)
        self._env = {"SYSTEMTAP_DIR": cache, "HOME": work, "TMPDIR": work}
        self._options = [
            "--sysroot=" + sysroot,
            "-r",
            order.kernel.release,
            "-B",
            "CC={0}".format(order.kernel.compiler),
            "-m",
            order.module_name,
            "--modinfo",
            "version=" + key[:40],
            "--rlimit-cpu={0}".format(_RLIMIT_CPU_SECONDS),
            "--rlimit-as={0}".format(_RLIMIT_MEMORY_BYTES),
            *order.options(),
        ]

    def run(self, last_pass: str, script: str, terminal: bool) -> str:
        argv = ["stap", "-p" + last_pass, *self._options, script]
        if terminal:
            argv = [sys.executable, "-c", _WITH_TERMINAL, *argv]
        result = command.run(argv, timeout_seconds=BUILD_TIMEOUT_SECONDS, cwd=self._work, env=self._env)
        if result.rc != 0:
            raise build_failed(self._order.name, self._order.kernel.release, result.stdout + result.stderr)
        return result.stdout


def parse_parameters(text: str) -> dict[str, str]:
    """Return the global variables that a module takes when it is loaded, from ``modinfo -F parm``: name to type."""
    kinds = {"int64_t": "long", "string": "string"}
    found = re.findall(r"^(\w+):(?:.*\()?(int64_t|string)\)?$", text, re.MULTILINE)
    return {name: kinds[kind] for name, kind in found if not name.startswith("_stp_")}


def parse_probe_rows(text: str) -> list[dict[str, t.Any]]:
    """Return the probes that pass 2 resolved, as ``point, asked, place, optional, helper``.

    ``asked`` is what the script says. ``place`` is where the probe will sit: ``_stext+0x430990``,
    ``kvm_amd:svm_invoke_exit_handler+0``, or null for probes that sit at no place in the code. A ``helper`` is a probe
    at a function's entry that stap itself added, for ``@entry`` in a ``.return`` probe.
    """
    rows = []
    _before, _mark, listing = text.partition("# probes\n")
    for line in listing.splitlines():
        found = _PROBE_ROW.match(line)
        if found is None or line.startswith(" "):
            continue
        place = (found.group("pc") or "").strip().strip("<>")
        chain = found.group("chain").split(" <- ")
        rows.append(
            {
                "point": found.group("point").rstrip("?! "),
                "asked": chain[-1],
                "place": place or None,
                "optional": found.group("point").endswith(("?", "!")),
                "helper": ".return" in chain[0] and ".return" not in found.group("point"),
            }
        )
    return rows


def build_failed(name: str, release: str | None, output: str) -> BuildFailed:
    """Make one paragraph of what stap printed: the pass, the place in the script, the reason, the nearest names."""
    output = output.replace("\r\n", "\n")
    found = re.search(r"^Pass ([1-5]): (\w+) failed", output, re.MULTILINE)
    phase = found.group(2) if found else "start"
    errors = re.findall(r"^(?:parse|semantic|ERROR|error)[^:\n]*: (.*(?:\n\s+saw: .*)?)$", output, re.MULTILINE)
    place = re.search(r"at (?:\S*/)?{0}\.stp:(\d+):(\d+)".format(re.escape(name)), output)
    line, column = (int(place.group(1)), int(place.group(2))) if place else (None, None)
    similar = re.search(r"\((?:similar[^:]*|alternatives): ([^)]*)\)", output)
    nearest = [word.strip() for word in similar.group(1).split(",")][:5] if similar else []
    source = re.search(r"^\s*source: (.*)$", output, re.MULTILINE)
    reason = _reason(errors, output)
    message = "{0}{1}: stap failed in its {2}{3}: {4}".format(
        name,
        ", line {0}, column {1}".format(line, column) if place else "",
        phase,
        " for kernel {0}".format(release) if release else "",
        reason,
    )
    if source:
        message += " (in: {0})".format(source.group(1).strip())
    message += "."
    if nearest:
        message += " Nearest: {0}.".format(", ".join(nearest))
    return BuildFailed(
        message,
        phase=phase,
        line=line,
        column=column,
        nearest=nearest,
        outcome="build_failed",
        output=output[-_KEPT_OUTPUT:],
    )


def _reason(errors: t.Sequence[str], output: str) -> str:
    # "while resolving probe point" only says where; the error after it says why.
    telling = [error for error in errors if not error.startswith("while resolving probe point")]
    if telling:
        reason = re.sub(r"\s*\((?:similar[^:]*|alternatives): [^)]*\)+", "", telling[0])
        reason = re.sub(r"\s+", " ", re.sub(r" at (?:\S*):\d+:\d+$", "", reason)).strip(" :")
        return "there is no function or event of that name" if reason == "no match" else reason
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("Tip:")]
    return lines[-1] if lines else "it gave no reason"
