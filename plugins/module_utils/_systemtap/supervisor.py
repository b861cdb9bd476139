# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Supervise one run of staprun on the host that is traced, whatever happens to the controller.

Private to the collection. This file is also a program: ``stap_run`` copies it next to the job and starts it, under
systemd or by itself, as ``supervisor.py run|guard|clean DIRECTORY``. So it imports the standard library only. The
directory holds ``job.json`` (what to do), ``output`` and ``errors`` (what staprun printed, bounded) and ``state.json``
(how far it is).

Signals follow "ABNORMAL TERMINATION" of staprun(8): SIGINT first, SIGKILL last, since a killed stapio leaves its
module loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
import typing as t

BASE = "/run/tapvirt/stap"
#: staprun sets these (staprun.c: PR13193, BZ1552745) and does not put them back.
SYSCTLS = ("/proc/sys/kernel/kptr_restrict", "/proc/sys/debug/kprobes-optimization")
_PROC = "/proc/systemtap"
_SITE = re.compile(
    r"^(?P<address>[0-9a-f]+)\s+(?P<kind>[a-z])\s+(?P<symbol>\S+?)\+(?P<offset>0x[0-9a-f]+)\s*(?P<rest>.*)$"
)
_TAIL_BYTES = 64 << 10
_ERROR_BYTES = 64 << 10
_MOST_SITES = 2000
_ARM_SECONDS = 10.0
_PRESSES = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


if t.TYPE_CHECKING:
    _Popen = subprocess.Popen[bytes]
else:
    _Popen = subprocess.Popen  # it takes no type in Python 3.8


class Child(_Popen):
    """A program in a session of its own, with nothing to read; its output is dropped unless a pipe is asked for."""

    def __init__(self, argv: t.Sequence[str], output: int = subprocess.DEVNULL) -> None:
        env = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
        super().__init__(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True)


class Sites(t.NamedTuple):
    """The entries of debugfs kprobes/list: what is armed in the kernel, whoever did it.

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


def read_json(path: str) -> dict[str, t.Any]:
    """Return a JSON object; an absent or damaged file is empty."""
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: str, value: t.Mapping[str, t.Any]) -> None:
    """Replace a JSON file so that a reader never sees half of it."""
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream)
    os.replace(temporary, path)


def debugfs_mount() -> str | None:
    """Return where debugfs is mounted, or null."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            fields = line.split(" ")
            if fields[2] == "debugfs":
                return fields[1]
    return None


def loaded(name: str | None = None) -> bool:
    """Tell whether a SystemTap module, or any one, is loaded."""
    if name is not None:
        return os.path.isdir(os.path.join(_PROC, name))
    try:
        return bool(os.listdir(_PROC))
    except OSError:
        return False


@contextlib.contextmanager
def _lock() -> t.Iterator[None]:
    descriptor = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _running_jobs(but: str) -> list[str]:
    """Return the other runs on this host that still hold the snapshot of the sysctls."""
    jobs = []
    for name in os.listdir(BASE):
        path = os.path.join(BASE, name)
        if path != but and os.path.exists(os.path.join(path, "holds")):
            jobs.append(path)
    return jobs


def hold_sysctls(directory: str) -> None:
    """Remember what staprun will change; the first run on a host does it for all that run beside it."""
    with _lock():
        snapshot = os.path.join(BASE, "sysctls.json")
        if not _running_jobs(directory) or not os.path.exists(snapshot):
            values = {}
            for path in SYSCTLS:
                with contextlib.suppress(OSError), open(path, encoding="ascii") as stream:
                    values[path] = stream.read().strip()
            write_json(snapshot, values)
        with open(os.path.join(directory, "holds"), "w", encoding="ascii"):
            pass


def release_sysctls(directory: str) -> dict[str, list[str]]:
    """Put the sysctls back when this was the last run; return what was put back: path -> [from, to]."""
    restored: dict[str, list[str]] = {}
    with _lock():
        holds = os.path.join(directory, "holds")
        if not os.path.exists(holds):
            return restored
        os.unlink(holds)
        snapshot = os.path.join(BASE, "sysctls.json")
        if _running_jobs(directory):
            return restored
        for path, value in read_json(snapshot).items():
            with contextlib.suppress(OSError), open(path, "r+", encoding="ascii") as stream:
                now = stream.read().strip()
                if now != value:
                    stream.seek(0)
                    stream.write(value + "\n")
                    restored[path] = [now, value]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(snapshot)
    return restored


class Supervisor:
    """One run: start, watch, stop, collect, clean."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._job = read_json(os.path.join(directory, "job.json"))
        self._state: dict[str, t.Any] = {
            "state": "starting",
            "name": self._job["name"],
            "pid": os.getpid(),
            "stop": None,
        }
        self._digest = hashlib.sha256()
        self._tail = b""
        self._errors = b""
        self._kept = 0
        self._told_to_stop = False
        self._mounted: str | None = None
        self._begun = time.monotonic()
        self._loaded_at: float | None = None
        self._armed_at: float | None = None
        self._stop_at: float | None = None
        self._whole = False
        self._presses = 0

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _save(self, **more: t.Any) -> None:
        self._state.update(more)
        write_json(self._path("state.json"), self._state)

    def run(self) -> None:
        """Carry the job out and leave ``state.json`` with ``state`` done."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop_signal)
        hold_sysctls(self._directory)
        before = read_sites(self._debugfs())
        process = Child(self._job["argv"], output=subprocess.PIPE)
        self._save(state="loading", started=time.time(), staprun=process.pid)
        with open(self._path("output"), "wb") as output:
            self._watch(process, output, before)
        self._finish(process.wait())

    def _stop_signal(self, _number: int, _frame: object) -> None:
        self._told_to_stop = True

    def _debugfs(self) -> str:
        mount = debugfs_mount()
        if mount is None:
            mount = self._path("debugfs")
            os.makedirs(mount, exist_ok=True)
            Child(["mount", "-t", "debugfs", "none", mount]).wait()
            self._mounted = mount
        return mount

    def _watch(self, process: subprocess.Popen[bytes], output: t.IO[bytes], before: Sites) -> None:
        """Read both streams until they end; arm, stop and press harder at the right times."""
        debugfs = self._mounted or debugfs_mount() or ""
        with selectors.DefaultSelector() as selector:
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                for key, _mask in selector.select(0.1 if self._armed_at is None else 0.5):
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        self._keep(output, data)
                    else:
                        self._errors = (self._errors + data)[:_ERROR_BYTES]
                self._observe(debugfs, before)
                self._press(process.pid)
        if self._armed_at is not None and self._stop_at is None:
            self._save(stop="script", ran_seconds=round(time.monotonic() - self._armed_at, 2))

    def _observe(self, debugfs: str, before: Sites) -> None:
        """Note when the module is loaded, and when its probes are armed or have had time enough."""
        now = time.monotonic()
        if self._loaded_at is None and loaded(self._job["name"]):
            self._loaded_at = now
            self._save(state="loaded", load_seconds=round(now - self._begun, 2))
        if self._loaded_at is None or self._whole:
            return
        # Places in modules, or on a busy host, may become armed later than the rest: look until all are there.
        sites = read_sites(debugfs).added_since(before)
        self._whole = len(sites) >= self._job["sites"]
        if self._armed_at is None and (self._whole or now - self._loaded_at > _ARM_SECONDS):
            self._armed_at = now
            self._save(state="running", armed_seconds=round(now - self._begun, 2))
        if self._armed_at is not None and len(sites) >= len(self._state.get("sites", ())):
            self._save(sites=sites)

    def _press(self, pid: int) -> None:
        """End the run when its time is over: ask, ask again, then force."""
        now = time.monotonic()
        if self._stop_at is None:
            reason = self._reason_to_stop(now)
            if reason is None:
                return
            self._stop_at = now
            self._state["stop"] = reason
        if self._presses < len(_PRESSES) and now >= self._stop_at + self._presses * float(self._job["grace"]):
            number = _PRESSES[self._presses]
            self._presses += 1
            ran = self._stop_at - (self._armed_at or self._begun)
            self._save(state="stopping", presses=self._presses, ran_seconds=round(ran, 2))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _reason_to_stop(self, now: float) -> str | None:
        if self._told_to_stop:
            return "signal"
        if self._armed_at is None:
            return "load" if now - self._begun > float(self._job["load"]) else None
        return "duration" if now - self._armed_at >= float(self._job["duration"]) else None

    def _keep(self, output: t.IO[bytes], data: bytes) -> None:
        self._digest.update(data)
        self._state["bytes"] = self._state.get("bytes", 0) + len(data)
        room = max(int(self._job["limit"]) - self._kept, 0)
        try:
            output.write(data[:room])
            output.flush()
            self._kept += min(room, len(data))
        except OSError as error:
            # A full disk must not end a run; what is lost is told.
            self._state["write_error"] = error.strerror
            self._job["limit"] = 0
        self._tail = (self._tail + data)[-_TAIL_BYTES:]

    def _finish(self, rc: int) -> None:
        for name, data in (("tail", self._tail), ("errors", self._errors)):
            with contextlib.suppress(OSError), open(self._path(name), "wb") as stream:
                stream.write(data)
        cleaned = clean(self._directory)
        self._save(state="done", rc=rc, kept=self._kept, sha256=self._digest.hexdigest(), ended=time.time(), **cleaned)


def clean(directory: str) -> dict[str, t.Any]:
    """Remove what a run may have left: process, module, mount, changed sysctls. May be called at any time, and again.

    :returns: ``removed`` (the module was still there and had to be removed), ``restored`` (sysctls) and ``left``
        (what could not be removed, in words).
    """
    job = read_json(os.path.join(directory, "job.json"))
    state = read_json(os.path.join(directory, "state.json"))
    name = job.get("name", "")
    removed = False
    left: list[str] = []
    pid = state.get("staprun")
    if pid and _is_staprun(pid, name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        _wait(lambda: not _is_staprun(pid, name), 10)
        with contextlib.suppress(ProcessLookupError):
            if _is_staprun(pid, name):
                os.kill(pid, signal.SIGKILL)
                _wait(lambda: not _is_staprun(pid, name), 5)
    if name and loaded(name):
        removed = True
        _wait(lambda: not loaded(name) or Child(["staprun", "-d", name]).wait() == 0, 10)
        _wait(lambda: not loaded(name), 5)
        if loaded(name):
            left.append("the module {0} could not be removed".format(name))
    mount = os.path.join(directory, "debugfs")
    if os.path.ismount(mount):
        Child(["umount", mount]).wait()
    return {"removed": removed, "restored": release_sysctls(directory), "left": left}


def _is_staprun(pid: int, name: str) -> bool:
    """Tell whether a process is still the staprun or stapio of this module: process ids are used again."""
    try:
        with open("/proc/{0}/cmdline".format(pid), "rb") as stream:
            return name.encode() in stream.read()
    except OSError:
        return False


def _wait(done: t.Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.2)


def guard(directory: str) -> None:
    """Run the job in a child and clean up after it, should it be killed: for hosts without systemd."""
    child = os.fork()
    if child == 0:
        Supervisor(directory).run()
        return
    os.waitpid(child, 0)
    if read_json(os.path.join(directory, "state.json")).get("state") != "done":
        clean(directory)


def main() -> None:
    """``supervisor.py run|guard|clean DIRECTORY``."""
    what, directory = sys.argv[1:]
    if what == "clean":
        if read_json(os.path.join(directory, "state.json")).get("state") != "done":
            state = read_json(os.path.join(directory, "state.json"))
            write_json(os.path.join(directory, "state.json"), dict(state, state="killed", **clean(directory)))
    elif what == "guard":
        guard(directory)
    else:
        Supervisor(directory).run()


if __name__ == "__main__":
    main()
