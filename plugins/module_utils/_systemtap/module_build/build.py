# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build SystemTap modules on a builder, once for each key.

Private to the collection. What the store looks like is said in store.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
import time
import typing as t

from ..._core import command
from ..._core.disk import disk_errors
from ..._core.errors import InvalidInput, TapvirtError
from ..._core.root import Root
from ..._core.write import make_directories, make_directory, write_atomic
from ..._kernel.modules.installed import InstalledModules
from ..stap_output import (
    BuildFailed,
    Failure,
    build_failed,
    check_finished,
    parse_parameters,
    parse_probe_rows,
    read_failure,
)
from .compilers import Compiler
from .debuginfo import DebugCache, DebugFiles, DebugInfo
from .diagnosis import explain_compile, explain_no_match, failed_point
from .settings import Settings
from .signing import Signer, sign_file
from .store import Store, hash_file
from .sysroot import link_trace_headers, make_sysroot
from .toolchain import Kernel, Toolchain

_RLIMIT_CPU_SECONDS = 600
_RLIMIT_MEMORY_BYTES = 4 << 30
BUILD_TIMEOUT_SECONDS = 900
# The list of 100,000 probes is about 20 MB.
MOST_OUTPUT_BYTES = 48 << 20
_LIMITS = f"{_RLIMIT_CPU_SECONDS} seconds of CPU time and {_RLIMIT_MEMORY_BYTES >> 30} GiB in each process"
# translate.cxx, emit_symbol_data_done.
_NO_SYMBOLS = re.compile(r"^WARNING: missing unwind/symbol data for module '([^']*)'", re.MULTILINE)
_NOTHING_ADDED = "No module was added to the store."
VERSION_CHARS = 40
"""How much of a build's key its module bears as its version."""
# stap compiles the report of hits into a module only when its own output is a terminal (STP_STDOUT_NOT_ATTY); it prints
# no more than a file name there.
_WITH_TERMINAL = "import os, subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], stdout=os.openpty()[1]))"


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What is to be built: a script for a kernel, with the options that change the result."""

    name: str
    text: str
    kernel: Kernel
    guru: bool
    cpu_ceiling_percent: int
    debug: DebugInfo = dataclasses.field(default_factory=DebugInfo)
    settings: Settings = dataclasses.field(default_factory=Settings)

    @property
    def debuginfo(self) -> str | None:
        """Return where the debug information comes from: ``debuginfod``, ``package`` or ``None``."""
        if self.debug.source is not None:
            return "debuginfod"
        return "package" if self.kernel.vmlinux is not None else None

    @property
    def module_name(self) -> str:
        """Return the module's name: stable, unlike any other, and short enough for the kernel (55 letters)."""
        base = re.sub(r"[^a-z0-9_]", "_", self.name.lower())[:24].strip("_") or "script"
        return f"tapvirt_{base}_{hashlib.sha256(self.text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"

    def options(self) -> list[str]:
        """Return the options of stap that change the module, in order."""
        # STP_OVERLOAD_THRESHOLD cycles of every STP_OVERLOAD_INTERVAL (10^9) may go into probes, on each CPU.
        options = ["-t", "-D", f"STP_OVERLOAD_THRESHOLD={self.cpu_ceiling_percent * 10_000_000}LL"]
        return options + (["-g"] if self.guru else []) + self.settings.options()


def key_of(order: BuildRequest, tools: Toolchain) -> str:
    """Return the key of a build: everything that the module's bytes depend on."""
    kernel = order.kernel
    parts = {
        "kernel": [kernel.release, kernel.version, kernel.symvers_sha256],
        "debuginfo": [order.debuginfo, order.debug.build_id, order.debug.own, dict(order.debug.modules)],
        "stap": tools.stap_text,
        "compiler": _compiler_part(kernel.compiler),
        "options": order.options(),
        "tapset": order.settings.tapset.digests(),
        "name": order.module_name,
        "script": order.text,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()


def _compiler_part(compiler: Compiler | None) -> t.Any:
    """Return what a key holds of a compiler; a command without a version in its name may be another one tomorrow."""
    if compiler is None or compiler.version is None:
        return compiler.command if compiler else None
    return [compiler.command, compiler.version]


def signed_key(key: str, signer: Signer) -> str:
    """Return the key of a build's signed copy.

    Its first 40 letters are those of the build, which the module bears as its version.
    """
    return key[:VERSION_CHARS] + hashlib.sha256((key + signer.fingerprint).encode()).hexdigest()[VERSION_CHARS:]


def build_once(
    order: BuildRequest, tools: Toolchain, store: Store, root: Root, cache: DebugCache | None = None
) -> tuple[dict[str, t.Any], bool]:
    """Return the build of an order, and whether it had to be compiled now.

    :param cache: where debug information by build-id is; ``None`` where the builder's own is used.
    :raises BuildFailed: a pass of stap failed.
    :raises DebuginfoError: debug information could not be fetched.
    """
    key = key_of(order, tools)
    with disk_errors(_NOTHING_ADDED), store.locked(key):
        known = store.read(key)
        if known is not None:
            return known, False
        with _debug_files(order, cache) as files, store.slot(), work_directory(store, key) as work:
            return _compile(order, tools, store, key, root, work, files), True


@contextlib.contextmanager
def _debug_files(order: BuildRequest, cache: DebugCache | None) -> t.Iterator[DebugFiles | None]:
    if cache is None or order.debug.source is None:
        yield None
        return
    with cache.files(order.debug, order.kernel.release) as files:
        yield files


def sign_once(build: t.Mapping[str, t.Any], signer: Signer, store: Store, root: Root) -> tuple[dict[str, t.Any], bool]:
    """Return the signed copy of a build, and whether it had to be signed now.

    :raises TapvirtError: it could not be signed.
    """
    key = signed_key(build["key"], signer)
    with disk_errors(_NOTHING_ADDED), store.locked(key):
        known = store.read(key)
        if known is not None:
            return known, False
        with work_directory(store, key) as work:
            module = os.path.join(work, build["name"] + ".ko")
            signature = sign_file(root, build["kernel"], signer, build["path"], module)
            return _keep(store, work, dict(build, **_file_row(store, key, module), signature=signature)), True


@contextlib.contextmanager
def work_directory(store: Store, key: str) -> t.Iterator[str]:
    """Make an empty directory to build an entry of a store in; remove it with all in it at the end.

    :raises OSError: as the file system says.
    """
    work = os.path.join(store.directory, ".work", key)
    shutil.rmtree(work, ignore_errors=True)
    make_directories(os.path.dirname(work))
    make_directory(work, 0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _compile(
    order: BuildRequest,
    tools: Toolchain,
    store: Store,
    key: str,
    root: Root,
    work: str,
    files: DebugFiles | None,
) -> dict[str, t.Any]:
    started = time.monotonic()
    sysroot = make_sysroot(store, order.kernel, root, files)
    link_trace_headers(sysroot, order.kernel.release, root, "\n".join((order.text, *order.settings.tapset.points)))
    # What stap is given as the script's name becomes part of the module: it must not depend on the store's place.
    script = order.name + ".stp"
    write_atomic(os.path.join(work, script), order.text.encode("utf-8", "surrogateescape"))
    order.settings.tapset.copy_to(work)
    stap = _Stap(order, store, sysroot, work, key, root)
    probes = parse_probe_rows(stap.probe_listing(script))
    _check_symbols(order, stap.run("4", script, terminal=True).stderr)
    module = os.path.join(work, order.module_name + ".ko")
    parameters = parse_parameters(command.run(["modinfo", "-F", "parm", module]).stdout)
    row = {
        "name": order.module_name,
        "script": order.name,
        "script_sha256": hashlib.sha256(order.text.encode("utf-8", "surrogateescape")).hexdigest(),
        **_file_row(store, key, module),
        "kernel": order.kernel.release,
        "kernel_version": order.kernel.version,
        "stap": tools.stap,
        "compiler": order.kernel.compiler.command if order.kernel.compiler else None,
        "build_id": order.debug.build_id,
        "debuginfo": order.debuginfo,
        "limits": dict(order.settings.limits),
        "globals": parameters,
        "probes": probes,
        "signature": None,
        "seconds": round(time.monotonic() - started, 1),
    }
    told = {name: row[name] for name in ("key", "name", "kernel", "seconds")}
    # First the log: a full disk then leaves no module whose task failed.
    store.log(dict(told, time=int(time.time())))
    return _keep(store, work, row)


def _check_symbols(order: BuildRequest, warnings: str) -> None:
    """Check that stap found every module for stacks; it only warns of one that it did not find.

    :raises InvalidInput: it did not.
    """
    missing = set(_NO_SYMBOLS.findall(warnings))
    for name in order.settings.stack_modules:
        if name in missing:
            problem = f"The builder has no module {name} of {order.kernel.release} with symbols and unwind data."
            hint = "Correct the name, or install the kernel's package and its debug information on the builder."
            raise InvalidInput("stack_modules", name, problem, hint, phase="debuginfo")


def _file_row(store: Store, key: str, module: str) -> dict[str, t.Any]:
    return {
        "key": key,
        "path": os.path.join(store.folder(key), os.path.basename(module)),
        "sha256": hash_file(module),
        "bytes": os.path.getsize(module),
    }


def _keep(store: Store, work: str, row: dict[str, t.Any]) -> dict[str, t.Any]:
    """Make a finished build appear in the store, whole."""
    write_atomic(os.path.join(work, "build.json"), (json.dumps(row, indent=1, sort_keys=True) + "\n").encode())
    shutil.rmtree(store.folder(row["key"]), ignore_errors=True)
    os.rename(work, store.folder(row["key"]))
    return row


class _Stap:
    """Runs stap for one order, away from the user's own settings, within limits."""

    def __init__(self, order: BuildRequest, store: Store, sysroot: str, work: str, key: str, root: Root) -> None:
        self._order = order
        self._root = root
        self._work = work
        cache = os.path.join(store.directory, ".cache")
        make_directories(cache)
        # What stap fetched on its own would be no part of the key.
        self._env = {"SYSTEMTAP_DIR": cache, "HOME": work, "TMPDIR": work, "DEBUGINFOD_URLS": ""}
        self._kernel_options = [
            "--sysroot=" + sysroot,
            "-r",
            order.kernel.release,
            *order.kernel.make_options,
            f"--rlimit-cpu={_RLIMIT_CPU_SECONDS}",
            f"--rlimit-as={_RLIMIT_MEMORY_BYTES}",
        ]
        self._options = [
            *self._kernel_options,
            "-m",
            order.module_name,
            "--modinfo",
            "version=" + key[:VERSION_CHARS],
            *order.options(),
        ]

    def probe_listing(self, script: str) -> str:
        """Return what pass 2 prints about the probes of the script.

        :raises BuildFailed: stap fails, or the list is too long to be read: a run could not prove that all are armed.
        """
        result = self.run("2", script, terminal=False)
        if result.truncated:
            order = self._order
            problem = (
                f"Script {order.name}: The list of its probes for kernel {order.kernel.release} has more than "
                f"{MOST_OUTPUT_BYTES >> 20} MiB, so not all of them are known."
            )
            hint = "Name fewer functions in its probe points."
            fields = {"phase": "analysis", "line": None, "column": None, "outcome": "build_failed", "output": ""}
            raise BuildFailed(problem, [], hint, **fields)
        return result.stdout

    def run(self, last_pass: str, script: str, terminal: bool) -> command.CommandResult:
        argv = ["stap", "-p" + last_pass, *self._options, script]
        if terminal:
            argv = [sys.executable, "-c", _WITH_TERMINAL, *argv]
        result = command.run(
            argv,
            timeout_seconds=BUILD_TIMEOUT_SECONDS,
            cwd=self._work,
            env=self._env,
            max_output_bytes=MOST_OUTPUT_BYTES,
        )
        if result.rc != 0:
            failure = self._explain(read_failure(self._order.name, result.stdout + result.stderr))
            raise build_failed(self._order.name, self._order.kernel.release, failure)
        return result

    def _explain(self, failure: Failure) -> Failure:
        point = failed_point(failure, self._order.text) if failure.is_no_match else None
        if point is None:
            return explain_compile(failure, self._order.text, _LIMITS)
        installed = InstalledModules(self._root, self._order.kernel.release)
        try:
            return explain_no_match(failure, point, installed.is_built_in, self._has_in_kernel)
        except TapvirtError:
            return failure  # what stap printed is true without an explanation

    def _has_in_kernel(self, symbol: str) -> bool:
        """Tell whether debug information of the kernel itself has a function.

        :raises TapvirtError: stap was killed, or takes longer than it may.
        """
        argv = ["stap", "-l", f'kernel.function("{symbol}")', *self._kernel_options]
        result = command.run(argv, timeout_seconds=BUILD_TIMEOUT_SECONDS, cwd=self._work, env=self._env)
        return bool(check_finished(result).stdout.strip())
