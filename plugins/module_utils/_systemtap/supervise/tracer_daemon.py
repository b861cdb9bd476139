# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep one tracer that stays: the main process of its systemd unit.

Private to the collection. ``stap_service`` packs this file with the few that it imports into one program for the host,
``program.pyz run|clean DIRECTORY``; they import the standard library only. The directory holds ``service.json`` (what
is wanted, for each kernel that there is a module for), ``job.json`` (the module of this start, for ``clean``) and
``state.json`` (how far it is, and how it ended).

systemd starts it again when it ends with ``EXIT_AGAIN``, a limited number of times, and not when it ends with
``EXIT_STAY``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import typing as t

from ..._core.errors import TapvirtError
from ..._core.write import make_directories
from .cleanup import (
    BASE,
    Child,
    ModuleInUse,
    check_not_loaded,
    hold_module,
    hold_sysctls,
    kill_session,
    loaded,
    make_run_directory,
    processes_of,
    read_both,
    read_json,
    release_sysctls,
    remove_empty,
    remove_module,
    reserve_space,
    run_bounded,
    send_signal,
    unmount,
    write_json,
    write_with_reserve,
)
from .outcome import Arming, Messages, classify_outcome, prove_arming, read_messages, split_output
from .ring import Ring
from .supervisor import Sites, debugfs_mount, read_sites, read_stext

EXIT_AGAIN = 1
EXIT_STAY = 3
_ERROR_BYTES = 64 << 10
_TAIL_BYTES = 64 << 10
_KEPT_MESSAGES = 20
_KEPT_CHARS = 300
_ARM_SECONDS = 10.0
_LOAD_SECONDS = 60.0
_GRACE_SECONDS = 15.0
_LATE_SECONDS = 10.0
_PRESSES = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


class Unable(Exception):
    """The tracer cannot run. ``state`` is the state to report; ``code`` decides whether systemd tries again."""

    def __init__(self, state: str, reason: str, code: int = EXIT_STAY) -> None:
        super().__init__(reason)
        self.state = state
        self.code = code


def notify(**fields: str) -> None:
    """Tell systemd, as sd_notify(3) does: ``READY="1"``, ``STATUS="in words"``."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    text = "\n".join(name + "=" + value.replace("\n", " ") for name, value in fields.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)


def choose(spec: t.Mapping[str, t.Any], release: str, version: str) -> dict[str, t.Any]:
    """Return the module for a kernel, from ``service.json``.

    :raises Unable: no module was built for this kernel.
    """
    build: dict[str, t.Any] | None = spec.get("builds", {}).get(release)
    if build is None:
        known = ", ".join(sorted(spec.get("builds", {}))) or "no kernel"
        raise Unable("pending", f"there is no module for the running kernel {release}; there is for {known}")
    wanted = build.get("kernel_version")
    if wanted and wanted != version:
        reason = f"the module is for {release} {wanted!r}, and the running kernel is another build of it, {version!r}"
        raise Unable("pending", reason)
    return build


class SysctlGuard:
    """This tracer's part in what runs on a host share: the sysctls that staprun changes."""

    def __init__(self, name: str) -> None:
        self._directory = os.path.join(BASE, "service." + name)
        self._held: int | None = None

    def take(self) -> None:
        """Remember the sysctls before staprun changes them, unless a run beside this one has."""
        self.stay()
        self._held = hold_sysctls(self._directory)

    def stay(self) -> None:
        """Have the directory that the runs on a host share."""
        make_run_directory(self._directory, exist_ok=True)

    def give_back(self) -> None:
        """Put the sysctls back, unless a run beside this one still needs them changed."""
        if self._held is not None:
            # What cannot be put back now is tried again at the end.
            with contextlib.suppress(OSError, TapvirtError):
                release_sysctls(self._directory)
                os.close(self._held)
                self._held = None

    def leave(self) -> list[str]:
        """Give back what this process, or one before it that was killed, held; leave no directory.

        Return what could not be put back, in words.
        """
        try:
            _restored, left = release_sysctls(self._directory)
        except (OSError, TapvirtError) as error:
            left = [f"the sysctls that staprun changes were not put back: {error}"]
        for text in left:
            sys.stderr.write(text + "\n")
        remove_empty(self._directory, 3)
        return left


class TracerDaemon:
    """One start of a tracer: load, prove, record, and tell how it ended."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._spec = read_json(self._path("service.json"))
        self._hold = SysctlGuard(os.path.basename(directory))
        self._state: dict[str, t.Any] = {}
        self._errors = b""
        self._told_errors = b""
        self._tail = b""
        self._told_to_stop = False
        self._begun = time.monotonic()
        self._loaded_at: float | None = None
        self._armed_at: float | None = None
        self._looked_at = 0.0
        self._whole = False
        self._armed = 0
        self._stext = read_stext()
        self._told_at = 0.0
        self._stop_at: float | None = None
        self._presses = 0

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _save(self, **more: t.Any) -> None:
        self._state.update(more)
        # A full disk must not end a tracer; how it ended is then told by its exit status alone.
        with contextlib.suppress(OSError):
            write_json(self._path("state.json"), self._state)

    def run(self) -> int:
        """Keep the tracer until it ends or is stopped; return the exit status for systemd."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop_signal)
        try:
            return self._keep()
        except Unable as error:
            self._end(error.state, str(error))
            return error.code
        except (OSError, TapvirtError) as error:
            self._end("failed", str(error))
            return EXIT_AGAIN
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            path = self._path("service.json")
            self._end("failed", f"{path} cannot be used ({type(error).__name__}: {error}); run the task of the tracer")
            return EXIT_STAY
        finally:
            self._hold.leave()

    def _stop_signal(self, _number: int, _frame: object) -> None:
        self._told_to_stop = True

    def _end(self, state: str, reason: str, **more: t.Any) -> None:
        notify(STATUS=f"{state}: {reason}")
        sys.stderr.write(f"{state}: {reason}\n")
        self._state.update(state=state, reason=reason, ended=time.time(), **more)
        write_with_reserve(self._path("state.json"), json.dumps(self._state).encode())

    def _keep(self) -> int:
        before = read_json(self._path("state.json"))
        # What a start before this one left when it and its removal were killed: a process, a module.
        self._clean(held=False)
        system = os.uname()
        build = choose(self._spec, system.release, system.version)
        settings = dict(self._spec["settings"], key=build["key"])
        if before.get("state") == "overloaded" and before.get("settings") == settings:
            self._state = before
            raise Unable("overloaded", before["reason"])
        self._state = {"module": build["name"], "settings": settings, "release": system.release, "started": time.time()}
        # The lock of the module is held for as long as it may be loaded here.
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(hold_module(build["name"]))
                if processes_of(build["name"]):
                    check_not_loaded(build["name"])
            except ModuleInUse as error:
                raise Unable("failed", str(error), EXIT_AGAIN) from None
            reserve_space(self._directory)
            write_json(self._path("job.json"), {"name": build["name"]})
            _removed, left = self._clean(held=True) if loaded(build["name"]) else (False, [])
            if left:
                raise Unable("failed", left[0], EXIT_AGAIN)
            return self._trace(build)

    def _clean(self, held: bool) -> tuple[bool, list[str]]:
        """Remove the process and the module of ``job.json``, which is there for as long as they may be."""
        self._hold.stay()
        return clean_job(self._directory, held)

    def _trace(self, build: t.Mapping[str, t.Any]) -> int:
        output = self._spec["settings"]["output"]
        ring = Ring(output["directory"], output["file_bytes"], output["files"])
        try:
            ring.open()
        except OSError as error:
            raise Unable("failed", f"the output cannot be written: {error}", EXIT_AGAIN) from error
        with _debugfs(self._directory) as debugfs, contextlib.closing(ring):
            before = read_sites(debugfs)
            self._hold.take()
            # Cleaning up takes the note of the job away.
            write_json(self._path("job.json"), {"name": build["name"]})
            process = Child(self._argv(build), output=subprocess.PIPE)
            self._save(state="loading")
            self._watch(process, ring, lambda: self._look(debugfs, before, build))
            kill_session(process.pid)
            rc = process.poll()
        return self._judged(-signal.SIGKILL if rc is None else rc, *self._clean(held=True))

    def _argv(self, build: t.Mapping[str, t.Any]) -> list[str]:
        settings = self._spec["settings"]
        values = [f"{name}={value}" for name, value in sorted(settings["globals"].items())]
        return ["staprun", "-b", str(settings["buffer_mb"]), self._path(build["path"]), *values]

    def _watch(self, process: subprocess.Popen[bytes], ring: Ring, look: t.Callable[[], None]) -> None:
        """Read both streams until the program has ended; arm, stop and escalate at the right times."""
        for printed, said in read_both(process, lambda: 0.1 if self._armed_at is None else 1.0):
            if printed:
                ring.write(printed)
                self._tail = (self._tail + printed)[-_TAIL_BYTES:]
            self._errors = (self._errors + said)[-_ERROR_BYTES:]
            look()
            if not self._escalate(process.pid):
                break
            self._tell_trouble(ring.dropped_bytes)

    def _tell_trouble(self, dropped_bytes: int) -> None:
        """Write now and then how much output is lost, and what staprun says."""
        now = time.monotonic()
        is_new = dropped_bytes != self._state.get("dropped_bytes", 0) or self._errors != self._told_errors
        if is_new and now - self._told_at > _LATE_SECONDS:
            self._told_at = now
            self._told_errors = self._errors
            messages = read_messages(self._errors.decode("utf-8", "replace"), None)
            self._save(dropped_bytes=dropped_bytes, messages=kept_messages(messages))

    def _look(self, debugfs: str, before: Sites, build: t.Mapping[str, t.Any]) -> None:
        """Note when the module is loaded, and what is armed; a place in a module may become armed at any time."""
        now = time.monotonic()
        if self._loaded_at is None:
            if loaded(build["name"]):
                self._loaded_at = now
            return
        late = self._armed_at is not None
        if self._whole or (late and now - self._looked_at < _LATE_SECONDS):
            return
        self._looked_at = now
        # Others may arm probes as well, at the same time: only the places of this module's own probes count.
        sites = read_sites(debugfs).added_since(before)
        arming = prove_arming(build["probes"], sites, self._stext, running=True)
        self._whole = not arming.missing
        if late and arming.armed > self._armed:
            self._save(sites=sites)
        if not late and (self._whole or now - self._loaded_at > _ARM_SECONDS):
            self._armed_at = now
            self._hold.give_back()
            self._save(state="running", reason=None, armed_seconds=round(now - self._begun, 2), sites=sites)
            words = f"{build['name']} traces since {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
            notify(READY="1", STATUS=words)
        self._armed = arming.armed

    def _escalate(self, pid: int) -> bool:
        """End the tracer if it is stopped or does not become armed: ask, ask again, then force.

        Return whether to wait for its end.
        """
        now = time.monotonic()
        if self._stop_at is None:
            if self._armed_at is None and now - self._begun > _LOAD_SECONDS:
                self._state["stop"] = "load"
            elif not self._told_to_stop:
                return True
            self._stop_at = now
        if now < self._stop_at + self._presses * _GRACE_SECONDS:
            return True
        if self._presses < len(_PRESSES):
            send_signal(pid, _PRESSES[self._presses])
            self._presses += 1
            return True
        return False

    def _judged(self, rc: int, removed: bool, left: list[str]) -> int:
        """Tell how the tracer ended, and whether it is to be started again."""
        messages = read_messages(self._errors.decode("utf-8", "replace"), rc)
        more = {"leftovers": left, "rc": rc, "signals_sent": self._presses, "messages": kept_messages(messages)}
        more["hits"] = split_output("", self._tail.decode("utf-8", "replace")).hits_by_point()
        if self._told_to_stop and not left:
            self._end("stopped", "it was told to stop", **more)
            return 0
        outcome, reason = classify_outcome(self._state, messages, Arming(0, 0, 0, []), None, truncated=False)
        if outcome == "ok" and rc == 0 and not removed:
            self._end("ended", "the script ended itself", outcome=outcome, **more)
            return 0
        if outcome == "ok":
            reason = f"staprun ended without a word, with status {rc}"
            if rc < 0:
                reason = f"staprun was ended by signal {-rc}"
        state = "overloaded" if outcome == "overloaded" else "failed"
        self._end(state, "; ".join([reason, *left]), outcome="killed" if outcome == "ok" else outcome, **more)
        return EXIT_STAY if state == "overloaded" else EXIT_AGAIN


def kept_messages(messages: Messages) -> dict[str, list[str]]:
    """Return the first ``errors`` and ``warnings`` of staprun, from which the hints of a tracer are made."""
    kinds = {"errors": messages.errors, "warnings": messages.warnings}
    return {kind: [line[:_KEPT_CHARS] for line in lines[:_KEPT_MESSAGES]] for kind, lines in kinds.items() if lines}


@contextlib.contextmanager
def _debugfs(directory: str) -> t.Iterator[str]:
    """Yield where debugfs is mounted; where it is not, mount it in a tracer's directory for as long as it is needed."""
    mount = debugfs_mount()
    if mount is not None:
        yield mount
        return
    mount = os.path.join(directory, "debugfs")
    make_directories(mount, 0o700)
    run_bounded(["mount", "-t", "debugfs", "none", mount])
    try:
        yield mount
    finally:
        for text in unmount(directory):
            sys.stderr.write(text + "\n")
        with contextlib.suppress(OSError):
            os.rmdir(mount)


def clean_job(directory: str, held: bool) -> tuple[bool, list[str]]:
    """Remove the process and the module of ``job.json``, then the file; without it there is nothing to remove.

    :param held: whether the caller holds the lock of the module.
    :returns: whether the module had to be removed, and what could not be removed, in words.
    """
    path = os.path.join(directory, "job.json")
    name = read_json(path).get("name")
    try:
        removed, left = remove_module(name, held) if isinstance(name, str) else (False, [])
    except (OSError, TapvirtError) as error:
        removed, left = False, [f"the module {name} could not be removed: {error}"]
    left += unmount(directory)
    if not left:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return removed, left


def clean_up(directory: str) -> None:
    """Remove what a daemon that was killed left: process, module, mount, changed sysctls."""
    state = read_json(os.path.join(directory, "state.json"))
    _removed, left = clean_job(directory, held=False)
    left += SysctlGuard(os.path.basename(directory)).leave()
    if state.get("state") in ("loading", "running"):
        reason = "; ".join(["the process that keeps it was ended by force", *left])
        ended = dict(state, state="failed", outcome="killed", reason=reason, leftovers=left)
        write_with_reserve(os.path.join(directory, "state.json"), json.dumps(ended).encode())


def main() -> int:
    """``program.pyz run|clean DIRECTORY``; return the exit status."""
    what, directory = sys.argv[1:]
    if what == "clean":
        clean_up(directory)
        return 0
    return TracerDaemon(directory).run()
