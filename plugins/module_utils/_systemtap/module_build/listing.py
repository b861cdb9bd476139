# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe points as a builder's debug information has them: what ``stap -l`` and ``-L`` list, as typed rows.

Private to the collection. A line is a probe point and, with ``-L``, its variables as ``$name:type``, where a type may
contain spaces (``$file:struct file*``); one of a tapset's aliases has variables without ``$``.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import typing as t

from ..._core import command, lock
from ..._core.errors import InvalidInput, TapvirtError
from ..._core.root import Root
from ..._core.write import make_directories
from ..._kernel.modules.installed import InstalledModules
from ..language.probe_point import ProbePoint, parse_probe_point
from ..language.probed_modules import probed_modules, tapset_aliases
from ..resolve.stap_blocklist import is_blocklisted
from ..resolve.stap_tapset import modules_of_aliases
from ..stap_output import check_finished, has_verdict, read_failure
from .debuginfo import DebugCache, DebugFiles, choose_debug_info
from .diagnosis import explain_no_match
from .store import Store
from .sysroot import link_trace_headers, make_sysroot
from .toolchain import Kernel

_VARIABLE = re.compile(r"(?:^| )(\$?[A-Za-z_]\w*):")
_POINT_END = re.compile(r'(?:[^"\s]|"(?:[^"\\]|\\.)*")*')
_LINE = re.compile(r":(\d+)$")
# 69,000 functions of a kernel with their variables are 17 MB.
_MOST_OUTPUT_BYTES = 48 << 20
_RLIMIT_MEMORY_BYTES = 4 << 30
_MOST_VARIABLES = 100


def list_points(
    params: t.Mapping[str, t.Any],
    points: t.Sequence[ProbePoint],
    accept: t.Callable[[str], t.Any] | None,
    kernel: Kernel,
    root: Root,
) -> list[dict[str, t.Any]]:
    """Return a row for each probe point, by the options of ``stap_probe_info``.

    :raises InvalidInput: an option about debug information is not acceptable.
    :raises DebuginfoError: it cannot be fetched.
    :raises CommandTimeout: a probe point takes longer than it may.
    :raises TapvirtError: stap was killed, or gives no reason for an empty list.
    """
    texts = [point.text for point in points]
    probed = probed_modules(texts)
    if params["debuginfod"] is not None:
        probed = {**dict.fromkeys(modules_of_aliases(root, tapset_aliases(texts)), False), **probed}
    debug = choose_debug_info(params, kernel, probed)
    # Another task may fetch the same file.
    fetch_seconds = debug.source.timeout_seconds if debug.source else 0
    store = Store(params["store"], max(lock.WAIT_SECONDS, fetch_seconds))
    with contextlib.ExitStack() as stack:
        files = None
        if debug.source is not None:
            files = stack.enter_context(DebugCache(store, debug.source).files(debug, kernel.release))
        lister = Lister(root, store, kernel, params["variables"], params["timeout_seconds"], files)
        return [lister.row(point, accept, params["limit"]) for point in points]


class Lister:
    """Lists probe points of one of a builder's kernels, away from the user's own settings and within limits."""

    def __init__(
        self,
        root: Root,
        store: Store,
        kernel: Kernel,
        variables: bool,
        timeout_seconds: float,
        files: DebugFiles | None = None,
    ) -> None:
        self._root = root
        self._store = store
        self._kernel = kernel
        self._variables = variables
        self._timeout = timeout_seconds
        self._files = files

    def row(self, point: ProbePoint, accept: t.Callable[[str], t.Any] | None, limit: int) -> dict[str, t.Any]:
        """Return a probe's row: ``points`` are the lines that ``accept`` takes, up to ``limit`` of them.

        :raises CommandTimeout: it takes longer than it may.
        :raises TapvirtError: stap was killed, or gives no reason for an empty list.
        """
        with tempfile.TemporaryDirectory(prefix="tapvirt-") as work:
            listed = self._stap(["-L" if self._variables else "-l", _bare(point)], point, work)
            reason = ""
            nearest: list[str] = []
            if not listed.stdout.strip():
                reason, nearest = self._why_nothing(point, work)
        lines = listed.stdout.splitlines()
        cut = listed.truncated
        taken = [line for line in (lines[:-1] if cut else lines) if line.strip() and (accept is None or accept(line))]
        return {
            "probe": point.text,
            "family": point.family,
            "synchronous": point.synchronous,
            "verdict": "listed" if lines else "missing",
            "reason": reason or _counted(len(taken), len(lines), accept is not None),
            "candidates": nearest,
            "points": [parse_line(line) for line in taken[:limit]],
            "point_count": len(taken),
            "truncated": cut or len(taken) > limit,
        }

    def _stap(self, words: t.Sequence[str], point: ProbePoint, work: str) -> command.CommandResult:
        sysroot = make_sysroot(self._store, self._kernel, self._root, self._files)
        link_trace_headers(sysroot, self._kernel.release, self._root, point.text)
        cache = os.path.join(self._store.directory, ".cache")
        make_directories(cache)
        options = ["--sysroot=" + sysroot, "-r", self._kernel.release, *self._kernel.make_options]
        limits = [f"--rlimit-cpu={self._timeout:.0f}", f"--rlimit-as={_RLIMIT_MEMORY_BYTES}"]
        env = {"SYSTEMTAP_DIR": cache, "HOME": work, "TMPDIR": work, "DEBUGINFOD_URLS": ""}
        argv = ["stap", *options, *limits, *words]
        result = command.run(argv, self._timeout, env=env, cwd=work, max_output_bytes=_MOST_OUTPUT_BYTES)
        return check_finished(result)

    def _why_nothing(self, point: ProbePoint, work: str) -> tuple[str, list[str]]:
        """Ask once more, as a script, for ``-l`` and ``-L`` keep the reason to themselves.

        :raises TapvirtError: stap gives none.
        """
        result = self._stap(["-p2", "-e", f"probe {_bare(point)} {{ }}"], point, work)
        if result.rc == 0:
            return "there is no probe point of that form here", []
        output = result.stdout + result.stderr
        failure = read_failure("probe", output)
        if not has_verdict(output):
            raise TapvirtError(f"stap gave no verdict on the probe point {point.text}: {failure.reason}.")
        if (
            point.symbol is not None
            and point.family != "kprobe"
            and is_blocklisted(point.symbol, point.variant == "return")
        ):
            return "SystemTap itself leaves functions of this name out", []

        def has_in_kernel(symbol: str) -> bool:
            return bool(self._stap(["-l", f'kernel.function("{symbol}")'], point, work).stdout.strip())

        installed = InstalledModules(self._root, self._kernel.release)
        failure = explain_no_match(failure, point, installed.is_built_in, has_in_kernel)
        return failure.reason, failure.candidates


def _counted(taken: int, lines: int, filtered: bool) -> str:
    return f"{taken} of {lines} probe points match" if filtered else f"{lines} probe points"


def _bare(point: ProbePoint) -> str:
    """Return a probe point without its suffix and its condition, which a listing has no use for."""
    return ".".join(
        part.word if part.argument is None else f"{part.word}({_literal(part.argument)})" for part in point.parts
    )


def _literal(argument: str | int) -> str:
    if isinstance(argument, int):
        return str(argument)
    return '"' + argument.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse_line(line: str) -> dict[str, t.Any]:
    """Return a line of ``stap -l`` or ``-L`` as a row.

    It has ``point`` (the line without variables), ``family``, ``module``, ``function`` (the event for a tracepoint),
    ``source``, ``line``, ``form`` (``call``, ``return``, ``inline``, ``callee``, ``label``, ... or null), ``target``
    (the label or the callee) and ``variables`` (rows of ``name`` and ``type``).
    """
    found = _POINT_END.match(line)
    text = found.group(0) if found else line
    row: dict[str, t.Any] = dict.fromkeys(("family", "module", "function", "source", "line", "form", "target"))
    row.update(point=text, variables=parse_variables(line[len(text) :]))
    try:
        point = parse_probe_point(text)
    except InvalidInput:
        # An alias of a tapset that this collection does not know.
        row["family"] = "alias"
        return row
    number = _LINE.match(point.lines or "")
    row.update(
        family=point.family,
        module=point.module,
        function=point.symbol,
        source=point.source,
        line=int(number.group(1)) if number else None,
        form=point.variant,
        target=point.target,
    )
    return row


def parse_variables(text: str) -> list[dict[str, str]]:
    """Return ``$file:struct file* $count:size_t`` as rows of ``name`` and ``type``, 100 of them at most."""
    begins = list(_VARIABLE.finditer(text))
    ends = [begin.start() for begin in begins[1:]] + [len(text)]
    rows = [{"name": begin.group(1), "type": text[begin.end() : end].strip()} for begin, end in zip(begins, ends)]
    return rows[:_MOST_VARIABLES]
