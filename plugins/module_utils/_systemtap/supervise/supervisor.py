# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Supervise one run of staprun on the host that is traced, whatever happens to the controller.

Private to the collection. This file, ``cleanup.py`` and four files of ``_core`` are also a program: :func:`program`
returns its files, which are put next to the job; it is started under systemd or by itself, with the words
``run|guard|clean DIRECTORY``. So they import the standard library only. The directory holds ``job.json`` (what to do),
``output`` and ``errors`` (what staprun printed, bounded), ``state.json`` (how far it is, and how it ended) and
``progress.json`` (a few words, every second).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
import typing as t

from ..._core import errors, files, lock, write
from . import cleanup
from .cleanup import (
    BASE,
    LOCKS,
    SYSCTLS,
    Child,
    check_not_loaded,
    clean,
    finish_killed_run,
    forget_progress,
    hold_module,
    hold_sysctls,
    keep_ends,
    kill_session,
    loaded,
    read_both,
    read_json,
    release_sysctls,
    run_bounded,
    send_signal,
    write_json,
    write_with_reserve,
)

__all__ = [
    "BASE",
    "LOCKS",
    "SYSCTLS",
    "Child",
    "Sites",
    "Supervisor",
    "clean",
    "debugfs_mount",
    "finish_killed_run",
    "hold_sysctls",
    "loaded",
    "program",
    "read_json",
    "read_sites",
    "read_stext",
    "release_sysctls",
    "write_json",
]

_SITE = re.compile(
    r"^(?P<address>[0-9a-f]+)\s+(?P<kind>[a-z])\s+(?P<symbol>\S+?)\+(?P<offset>0x[0-9a-f]+)\s*(?P<rest>.*)$"
)
_TAIL_BYTES = 64 << 10
_ERROR_BYTES = 64 << 10
_MOST_SITES = 2000
_LINES_BEFORE_STEXT = 5000
_ARM_SECONDS = 10.0
_WAIT_STEP_SECONDS = 0.5
# How much later than planned a run may start, where somebody sets the clock back while it waits.
_LATE_SECONDS = 5.0
_PROGRESS_SECONDS = 1.0
_NOTED_LOADS = 5
_PRESSES = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
_PACKAGE = "tapvirt_stap"


def program() -> dict[str, str]:
    """Return the files of this program, by name below a folder of their own, which Python runs."""
    packed = {"__main__.py": f"from {_PACKAGE}._systemtap.supervise import supervisor\n\nsupervisor.main()\n"}
    for package in ("", "/_core", "/_systemtap", "/_systemtap/supervise"):
        packed[f"{_PACKAGE}{package}/__init__.py"] = ""
    for module in (errors, files, lock, write, cleanup, sys.modules[__name__]):
        packed[packed_name(module)] = source_of(module)
    return packed


def packed_name(module: types.ModuleType) -> str:
    """Return the name of a module's file in the program: its place below ``module_utils`` stays."""
    place = module.__name__.rpartition(".module_utils.")[2]
    return f"{_PACKAGE}/{place.replace('.', '/')}.py"


def source_of(module: types.ModuleType) -> str:
    """Return a module's source: whatever brought it here (a file, a zip archive, standard input) has it (PEP 302)."""
    source: str = t.cast("t.Any", module.__spec__).loader.get_source(module.__name__)
    return source


class Sites(t.NamedTuple):
    """The entries of debugfs kprobes/list: all armed probes of the kernel, regardless of who armed them.

    A line is made by ``report_probe`` in kernel/kprobes.c: address, kind (``k`` kprobe, ``r`` kretprobe), place, the
    module's name where there is one, and flags such as ``[GONE]`` and ``[FTRACE]``.
    """

    lines: list[str]

    def added_since(self, before: Sites) -> list[dict[str, t.Any]]:
        """Return the entries that were not there before, parsed; the same place may be armed several times."""
        left = list(before.lines)
        rows = []
        for line in self.lines:
            if line in left:
                left.remove(line)
                continue
            found = _SITE.match(line)
            if found is not None:
                rows.append(
                    {
                        "address": found.group("address"),
                        "kind": found.group("kind"),
                        "symbol": found.group("symbol"),
                        "offset": int(found.group("offset"), 16),
                        "rest": found.group("rest").split(),
                    }
                )
        return rows[:_MOST_SITES]


def read_sites(debugfs: str) -> Sites:
    """Read what is armed; empty where debugfs shows no list."""
    try:
        with open(os.path.join(debugfs, "kprobes/list"), encoding="ascii", errors="replace") as stream:
            return Sites(stream.read().splitlines())
    except OSError:
        return Sites([])


def read_stext() -> int | None:
    """Return the address of _stext, to which stap relates kernel places; it is among the first lines of kallsyms."""
    with open("/proc/kallsyms", "rb") as stream:
        for line in itertools.islice(stream, _LINES_BEFORE_STEXT):
            if line.endswith(b" _stext\n"):
                return int(line.split(b" ", 1)[0], 16) or None
    return None


def debugfs_mount() -> str | None:
    """Return where debugfs is mounted, or null."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            fields = line.split(" ")
            if fields[2] == "debugfs":
                return fields[1]
    return None


class Supervisor:
    """One run: start, watch, stop, collect, clean."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._job = read_json(os.path.join(directory, "job.json"))
        self._state: dict[str, t.Any] = {
            "state": "starting" if self._job.get("start") is None else "waiting",
            "name": self._job["name"],
            "pid": os.getpid(),
            "stop": None,
        }
        self._digest = hashlib.sha256()
        self._kept_digest = hashlib.sha256()
        self._tail = b""
        self._records = 0
        self._errors = b""
        self._kept = 0
        self._told_to_stop = False
        self._debugfs = ""
        self._begun = time.monotonic()
        self._told_at = 0.0
        self._loaded_at: float | None = None
        self._armed_at: float | None = None
        self._stop_at: float | None = None
        self._whole = False
        self._presses = 0

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _save(self, **more: t.Any) -> None:
        self._state.update(more)
        with contextlib.suppress(OSError):  # a full disk must not end a run; the last state has room of its own
            write_json(self._path("state.json"), self._state)

    def run(self) -> None:
        """Carry the job out and leave ``state.json`` with ``state`` done."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop_signal)
        self._save()
        # The lock of the module is held from the check to its removal.
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(hold_module(self._job["name"]))
                if not self._wait_for_start():
                    self._state["stop"] = "signal"
                    self._finish(1)
                    return
                check_not_loaded(self._job["name"])
                # It ends with this process.
                hold_sysctls(self._directory)
                self._mount_debugfs()
                before = read_sites(self._debugfs)
                process = Child(self._job["argv"], output=subprocess.PIPE)
            except (OSError, errors.TapvirtError) as error:
                self._errors = f"ERROR: {error}\n".encode("utf-8", "surrogateescape")
                self._finish(1)
                return
            self._trace(process, before)

    def _wait_for_start(self) -> bool:
        """Wait until the job's ``start`` by the wall clock, if it has one; return whether the run is to go on."""
        start = self._job.get("start")
        if start is not None:
            latest = self._begun + float(self._job["wait"]) + _LATE_SECONDS
            while not self._told_to_stop and time.monotonic() < latest:
                left = start - time.time()
                if left <= 0:
                    break
                self.write_progress()
                time.sleep(min(left, _WAIT_STEP_SECONDS))
            self._begun = time.monotonic()
        return not self._told_to_stop

    def _trace(self, process: subprocess.Popen[bytes], before: Sites) -> None:
        self._save(state="loading", started=time.time(), staprun=process.pid)
        with open(self._path("output"), "wb", buffering=0) as output:
            self._watch(process, output, before)
        # What a script has started in the background ends with the run, as under systemd.
        kill_session(process.pid)
        rc = process.poll()
        self._finish(-signal.SIGKILL if rc is None else rc)

    def _stop_signal(self, _number: int, _frame: object) -> None:
        self._told_to_stop = True

    def _mount_debugfs(self) -> None:
        mount = debugfs_mount()
        if mount is None:
            mount = self._path("debugfs")
            write.make_directories(mount, 0o700)
            run_bounded(["mount", "-t", "debugfs", "none", mount])
        self._debugfs = mount

    def _watch(self, process: subprocess.Popen[bytes], output: t.IO[bytes], before: Sites) -> None:
        """Read both streams until the program has ended; arm, stop and escalate at the right times."""
        for printed, said in read_both(process, lambda: 0.1 if self._armed_at is None else 0.5):
            if printed:
                self.keep_output(output, printed)
            self._errors = keep_ends(self._errors + said, _ERROR_BYTES)
            self._observe(before)
            if not self._escalate(process.pid):
                break
            self.write_progress()
        if self._armed_at is not None and self._stop_at is None:
            self._save(stop="script", ran_seconds=round(time.monotonic() - self._armed_at, 2))

    def _observe(self, before: Sites) -> None:
        """Note when the module is loaded, and when its probes are armed or have had time enough."""
        now = time.monotonic()
        if self._loaded_at is None and loaded(self._job["name"]):
            self._loaded_at = now
            self._save(state="loaded", load_seconds=round(now - self._begun, 2))
        if self._loaded_at is None or self._whole:
            return
        # Places in modules, or on a busy host, may become armed later than the rest: look until all are there.
        sites = read_sites(self._debugfs).added_since(before)
        self._whole = len(sites) >= self._job["sites"]
        if self._armed_at is None and (self._whole or now - self._loaded_at > _ARM_SECONDS):
            self._armed_at = now
            self._save(state="running", armed_seconds=round(now - self._begun, 2), armed_at=round(time.time(), 3))
            if self._whole and "load_file" in self._job:
                self._note_load(self._job["load_file"])
        if self._armed_at is not None and len(sites) >= len(self._state.get("sites", ())):
            self._save(sites=sites)

    def _note_load(self, path: str) -> None:
        """Keep how long the last loads took: one of them at a busy moment does not move their median."""
        known = read_json(path).get("seconds")
        earlier = known[1 - _NOTED_LOADS :] if isinstance(known, list) else []
        with contextlib.suppress(OSError):
            write_json(path, {"seconds": [*earlier, self._state["armed_seconds"]]})

    def _escalate(self, pid: int) -> bool:
        """End the run when its time is over: ask, ask again, then force; return whether to wait for its end."""
        now = time.monotonic()
        if self._stop_at is None:
            reason = self._reason_to_stop(now)
            if reason is None:
                return True
            self._stop_at = now
            self._state["stop"] = reason
        if now < self._stop_at + self._presses * float(self._job["grace"]):
            return True
        if self._presses < len(_PRESSES):
            number = _PRESSES[self._presses]
            self._presses += 1
            ran = self._stop_at - (self._armed_at or self._begun)
            self._save(state="stopping", signals_sent=self._presses, ran_seconds=round(ran, 2))
            send_signal(pid, number)
            return True
        return False

    def _reason_to_stop(self, now: float) -> str | None:
        if self._told_to_stop:
            return "signal"
        if self._armed_at is None:
            return "load" if now - self._begun > float(self._job["load"]) else None
        return "duration" if now - self._armed_at >= float(self._job["duration"]) else None

    def write_progress(self) -> None:
        """Write every second how far the run is: ``elapsed_seconds`` in this state, of at most ``of_seconds``."""
        now = time.monotonic()
        if now - self._told_at < _PROGRESS_SECONDS:
            return
        self._told_at = now
        since, of = self._begun, self._job["load"]
        if self._state["state"] == "waiting":
            of = self._job["wait"]
        if self._armed_at is not None:
            since, of = self._armed_at, self._job["duration"]
        if self._stop_at is not None:
            since, of = self._stop_at, len(_PRESSES) * float(self._job["grace"])
        progress = {
            "state": self._state["state"],
            "elapsed_seconds": round(now - since, 1),
            "of_seconds": float(of),
            "bytes": self._state.get("bytes", 0),
            "records": self._records,
            "armed": len(self._state.get("sites", ())),
            "sites": self._job["sites"],
        }
        with contextlib.suppress(OSError):
            write_json(self._path("progress.json"), progress)

    def keep_output(self, output: t.IO[bytes], data: bytes) -> None:
        """Take what the program printed, and write it to the output file up to the limit of the run."""
        self._digest.update(data)
        self._state["bytes"] = self._state.get("bytes", 0) + len(data)
        # Counts lines that begin like a record. They are validated at the end.
        self._records += (self._tail[-1:] in (b"", b"\n") and data[:1] == b"{") + data.count(b"\n{")
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        left = memoryview(data)[: max(int(self._job["limit"]) - self._kept, 0)]
        try:
            while left:
                written = output.write(left)
                self._kept_digest.update(left[:written])
                self._kept += written
                left = left[written:]
        except OSError as error:
            # A full disk must not end a run; the loss is reported.
            self._lost(str(error.strerror))
            self._job["limit"] = 0

    def _lost(self, reason: str) -> None:
        self._state["write_error"] = reason

    def _finish(self, rc: int) -> None:
        self._save(rc=rc)
        forget_progress(self._directory)
        cleaned = clean(self._directory, held=True)
        for name, data in (("errors", self._errors), ("tail", self._tail)):
            if not write_with_reserve(self._path(name), data):
                self._lost("what staprun said could not be kept")
        ended = {
            "state": "done",
            "kept": self._kept,
            "sha256": self._digest.hexdigest(),
            "kept_sha256": self._kept_digest.hexdigest(),
            "ended": time.time(),
        }
        self._state.update(ended, **cleaned)
        write_with_reserve(self._path("state.json"), json.dumps(self._state).encode())


def guard(directory: str) -> None:
    """Run the job in a child and clean up after it, should it be killed: for hosts without systemd."""
    child = os.fork()
    if child == 0:
        Supervisor(directory).run()
        return
    _pid, status = os.waitpid(child, 0)
    # A run that came to its end has cleaned up, and its collector may be removing the directory.
    if status != 0:
        finish_killed_run(directory)


def main() -> None:
    """``run|guard|clean DIRECTORY``."""
    what, directory = sys.argv[1:]
    if what == "clean":
        finish_killed_run(directory)
    elif what == "guard":
        guard(directory)
    else:
        Supervisor(directory).run()
