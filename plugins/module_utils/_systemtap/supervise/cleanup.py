# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run may leave on the host that is traced: processes, a module, a mount, changed sysctls; and its removal.

Private to the collection. It goes to the host together with ``supervisor.py`` and imports only the standard library and
files that do the same.

Signals follow "ABNORMAL TERMINATION" of staprun(8): SIGINT first, SIGKILL last, since a killed stapio leaves its
module loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import time
import typing as t

from ..._core import lock
from ..._core.errors import TapvirtError
from ..._core.write import make_directories, make_directory

BASE = "/run/tapvirt/stap"
LOCKS = "/run/tapvirt/lock"
#: The directories of the tracers that stay (service/model.py).
SERVICES = "/var/lib/tapvirt/services"
#: staprun sets these (staprun.c: PR13193, BZ1552745) and does not put them back.
SYSCTLS = ("/proc/sys/kernel/kptr_restrict", "/proc/sys/debug/kprobes-optimization")
#: Where the kernel has a directory for each loaded module of SystemTap.
MODULES = "/proc/systemtap"
#: Room that a run keeps on its file system, so that its end can be written when others have filled it.
SPARE_BYTES = 256 << 10
ASKED_SECONDS = 10
FORCED_SECONDS = 5
_SPACE_SECONDS = 5
_ATTEMPTS = 100
# How long mount, umount and staprun -d may take; a busy host took 10 s to load a module.
_COMMAND_SECONDS = 20
# How long to read what a program has printed after its end: a process that it started may keep its pipes open.
_DRAIN_SECONDS = 2
_CLOSED_SECONDS = 0.05
#: How long to wait for the lock of the sysctls, and for another process that cleans up after the same run.
#: systemd kills a cleanup after 45 s (a run) or 90 s (a tracer): each wait of it is shorter.
SYSCTL_SECONDS = 10
CLEANER_SECONDS = 20
_ENDED = ("done", "killed")
#: How long to wait for the lock of a module: the end of a run writes the result just before it frees the lock.
CLAIM_SECONDS = 5


class ModuleInUse(TapvirtError):
    """A run, a tracer or a person has loaded the module, or is about to."""


if t.TYPE_CHECKING:
    _Popen = subprocess.Popen[bytes]
else:
    _Popen = subprocess.Popen  # it takes no type in Python 3.8


class Child(_Popen):
    """A program in a session of its own, with nothing to read; its output is dropped unless a pipe is asked for."""

    def __init__(self, argv: t.Sequence[str], output: int = subprocess.DEVNULL) -> None:
        env = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
        super().__init__(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True)


def run_bounded(argv: t.Sequence[str], seconds: float = _COMMAND_SECONDS) -> int | None:
    """Run a program, and end it by SIGKILL after this time; return its exit status, or ``None`` if it was ended.

    :raises OSError: it cannot be started.
    """
    process = Child(argv)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill_session(process.pid)
        return None


def kill_session(session: int) -> None:
    """End every process of a session (:class:`Child`) by SIGKILL."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session:
                os.kill(pid, signal.SIGKILL)


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a program (:class:`Child`); SIGKILL goes to all that it started as well."""
    if number == signal.SIGKILL:
        kill_session(pid)
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def read_both(process: subprocess.Popen[bytes], seconds: t.Callable[[], float]) -> t.Iterator[tuple[bytes, bytes]]:
    """Yield what a program prints, as a pair of standard output and standard error, until it has ended.

    The pipes are read to their end, but for two seconds at most when the program has ended: a process that it started
    in the background may keep them open.

    :param seconds: asked each time for how long to wait at most; then both may be empty.
    """
    end: float | None = None
    with selectors.DefaultSelector() as selector:
        for place, stream in enumerate((process.stdout, process.stderr)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, place)
        while True:
            if end is None and _has_ended(process.pid):
                end = time.monotonic() + _DRAIN_SECONDS
            if end is not None and (not selector.get_map() or time.monotonic() > end):
                return
            said = [b"", b""]
            # A program closes its pipes a moment before it has ended.
            for key, _mask in selector.select(seconds() if selector.get_map() else _CLOSED_SECONDS):
                said[key.data] = os.read(key.fd, 65536)
                if not said[key.data]:
                    selector.unregister(key.fileobj)
            yield said[0], said[1]


def _has_ended(pid: int) -> bool:
    """Return whether a child has ended; it stays a zombie, so that its id cannot be that of another process."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def read_json(path: str) -> dict[str, t.Any]:
    """Return a JSON object; an absent or damaged file is empty.

    A RecursionError is what json raises for about 990 nested brackets up to Python 3.11.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: str, value: t.Mapping[str, t.Any]) -> None:
    """Replace a JSON file so that a reader never sees half of it.

    :raises OSError: as the file system says; nothing was replaced then.
    """
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream)
    os.replace(temporary, path)


def module_of(directory: str) -> str:
    """Return the name of a run's module, from its directory BASE/NAME-RUN."""
    return os.path.basename(directory).rpartition("-")[0]


def run_of(directory: str) -> str:
    """Return the name that a controller gave to a run, from its directory BASE/NAME-RUN."""
    return os.path.basename(directory).rpartition("-")[2]


def reserve_space(directory: str) -> None:
    """Keep room for what is written at the end of a run.

    :raises OSError: the file system has no space left.
    """
    descriptor = os.open(os.path.join(directory, "spare"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, SPARE_BYTES)
    finally:
        os.close(descriptor)


def write_with_reserve(path: str, data: bytes) -> bool:
    """Write a file at the end of a run: into the room kept for that, and once more when the disk is full for a while.

    :returns: whether it was written.
    """
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(os.path.dirname(path), "spare"))
    end = time.monotonic() + _SPACE_SECONDS
    while True:
        try:
            with open(path + ".new", "wb") as stream:
                stream.write(data)
            os.replace(path + ".new", path)
            return True
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path + ".new")
            if time.monotonic() > end:
                return False
            time.sleep(0.5)


def loaded(name: str | None = None) -> bool:
    """Tell whether a SystemTap module, or any one, is loaded."""
    if name is not None:
        return os.path.isdir(os.path.join(MODULES, name))
    try:
        return bool(os.listdir(MODULES))
    except OSError:
        return False


def _words_of(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return stream.read().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def processes_of(name: str, session: int | None = None) -> list[int]:
    """Return the processes of staprun and stapio that run a module; not those that are removing it.

    :param session: only those of this session: every run has one of its own (:class:`Child`).
    """
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        words = _words_of(pid)
        if os.path.basename(words[0] if words else "") not in ("staprun", "stapio") or "-d" in words:
            continue
        if any(os.path.basename(word) in (name, name + ".ko") for word in words[1:]) and _is_in(pid, session):
            found.append(pid)
    return found


def _is_in(pid: int, session: int | None) -> bool:
    try:
        return session is None or os.getsid(pid) == session
    except ProcessLookupError:
        return False


def describe_process(pid: int) -> str:
    """Return what a process that uses a module is, with its id and its age, for a message."""
    places = [word for word in _words_of(pid) if os.path.dirname(word) in (BASE, SERVICES)]
    if not places:
        what = "another task"
    elif os.path.dirname(places[-1]) == BASE:
        what = f"the run {run_of(places[-1])}"
    else:
        what = f"the tracer {os.path.basename(places[-1])}"
    return f"{what} (process {pid}, started {_age_seconds(pid):.0f} seconds ago)"


def _age_seconds(pid: int) -> float:
    """Return how long ago a process was started (proc(5): field 22 of stat, in ticks since the boot)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat, open("/proc/uptime", encoding="ascii") as uptime:
            ticks = int(stat.read().rpartition(b") ")[2].split()[19])
            return max(0.0, float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        return 0.0


@contextlib.contextmanager
def hold_module(name: str) -> t.Iterator[None]:
    """Hold the lock of a module's name. Every process holds it that checks for, loads, runs or removes the module.

    :raises ModuleInUse: another process held it for some seconds; the message names that one.
    :raises TapvirtError: the lock is not safe to use.
    :raises OSError: the lock's file cannot be made.
    """
    path = _lock_path(name)
    with contextlib.ExitStack() as stack:
        try:
            held = lock.hold(path, f"the module {name}", wait_seconds=CLAIM_SECONDS, temporary=True)
            stack.enter_context(held)
        except lock.LockTimeout:
            pid = _holder_of(path)
            user = "another task" if pid is None else describe_process(pid)
            raise ModuleInUse(f"the module {name} is in use by {user}") from None
        yield


def _lock_path(name: str) -> str:
    return os.path.join(LOCKS, "module-" + name)


def _holder_of(path: str) -> int | None:
    """Return the process that holds a lock, from what it wrote into the lock's file."""
    pid = read_json(path).get("pid")
    return pid if isinstance(pid, int) and os.path.isdir(f"/proc/{pid}") else None


def check_not_loaded(name: str) -> None:
    """Refuse a module that is loaded.

    :raises ModuleInUse: it is loaded; the message names who uses it.
    """
    if not loaded(name):
        return
    holder = _holder_of(_lock_path(name))
    if holder is not None and holder != os.getpid():
        raise ModuleInUse(f"the module {name} is in use by {describe_process(holder)}")
    pids = processes_of(name)
    if pids:
        user = f"staprun (process {pids[0]}, started {_age_seconds(pids[0]):.0f} seconds ago)"
        raise ModuleInUse(f"the module {name} is in use by {user}, which no task of this collection started")
    raise ModuleInUse(f"the module {name} is loaded and no process uses it; remove it with: staprun -d {name}")


def is_supervised(directory: str, state: t.Mapping[str, t.Any]) -> bool:
    """Tell whether the process that supervises a run is there: process ids are used again."""
    return isinstance(state.get("pid"), int) and directory in _words_of(state["pid"])


def _lock() -> t.ContextManager[str]:
    path = os.path.join(LOCKS, "sysctls")
    return lock.hold(path, "the sysctls that runs on this host share", SYSCTL_SECONDS, temporary=True)


def _has_holder(but: str = "") -> bool:
    """Return whether a living process holds the sysctls for another directory; the caller has their lock."""
    for name in os.listdir(BASE):
        path = os.path.join(BASE, name)
        # What is not a lock of root holds nothing.
        with contextlib.suppress(OSError, TapvirtError):
            if path != but and lock.is_held(os.path.join(path, "holds")):
                return True
    return False


def make_run_directory(directory: str, exist_ok: bool = False) -> None:
    """Make a run's directory, which only root can enter.

    :raises FileExistsError: it exists, and must not.
    :raises OSError: as the file system says.
    """
    for attempt in range(_ATTEMPTS):
        make_directories(BASE, 0o700)
        try:
            make_directory(directory, 0o700)
        except FileExistsError:
            if not (exist_ok and os.path.isdir(directory)):
                raise
        except FileNotFoundError:
            # A run that has just ended took the directory above away.
            if attempt + 1 == _ATTEMPTS:
                raise
            continue
        return


def hold_sysctls(directory: str) -> int:
    """Save the sysctls that staprun will change, unless another run or tracer has; hold them for this process.

    The hold is the file ``holds`` with a lock on it, so it ends with the process. The file itself stays until
    :func:`release_sysctls`, and marks what is to be cleaned up.

    :returns: the descriptor that holds them until it is closed.
    :raises OSError: it cannot be written down, so nothing may be changed.
    :raises TapvirtError: another process held the lock for too long.
    """
    holds = os.path.join(directory, "holds")
    with _lock():
        descriptor = lock.take(holds, "the sysctls of this run", 0)
        try:
            if not _has_holder(directory):
                _put_back()
            # What could not be put back is still in the file, and must not be lost.
            snapshot = os.path.join(BASE, "sysctls.json")
            if not os.path.exists(snapshot):
                write_json(snapshot, _read_sysctls())
        except BaseException:
            os.unlink(holds)
            os.close(descriptor)
            raise
    return descriptor


def release_sysctls(directory: str, keep_mark: bool = False) -> tuple[dict[str, list[str]], list[str]]:
    """Put the sysctls back unless another living process holds them; then remove the mark of this directory.

    Only the sysctls that staprun changes are written, whatever the file of their values contains.

    :param keep_mark: whether the file ``holds`` stays, because something else is still to be cleaned up.
    :returns: what was put back (path -> [from, to]), and what could not be, in words. The next run tries that again.
    :raises OSError: the lock's file or the run's mark cannot be written.
    :raises TapvirtError: another process held the lock for too long.
    """
    holds = os.path.join(directory, "holds")
    if not os.path.exists(holds):
        return {}, []
    with _lock():
        restored, left = ({}, []) if _has_holder(directory) else _put_back()
        if not keep_mark:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(holds)
    return restored, left


def restore_orphaned_sysctls() -> list[str]:
    """Put back the sysctls that killed tracers, and runs without a directory, left changed.

    Return what could not be put back, in words. Where the mark of a run exists, its own cleanup does so.
    """
    if not os.path.exists(os.path.join(BASE, "sysctls.json")):
        return []
    try:
        with _lock():
            marked = [name for name in os.listdir(BASE) if os.path.exists(os.path.join(BASE, name, "holds"))]
            if _has_holder() or not all(name.startswith("service.") for name in marked):
                return []
            _restored, left = _put_back()
            for name in marked:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(BASE, name, "holds"))
                    os.rmdir(os.path.join(BASE, name))
            return left
    except (OSError, TapvirtError) as error:
        return [f"the sysctls that staprun changes were not put back: {error}"]


def _read_sysctls() -> dict[str, str]:
    values = {}
    for path in SYSCTLS:
        with contextlib.suppress(OSError), open(path, encoding="ascii") as stream:
            values[path] = stream.read().strip()
    return values


def _put_back() -> tuple[dict[str, list[str]], list[str]]:
    """Write the saved sysctls, then remove their file, unless one of them could not be written."""
    restored: dict[str, list[str]] = {}
    left: list[str] = []
    snapshot = os.path.join(BASE, "sysctls.json")
    values = read_json(snapshot)
    for path in SYSCTLS:
        value = values.get(path)
        if not isinstance(value, str):
            continue
        try:
            with open(path, "r+", encoding="ascii") as stream:
                now = stream.read().strip()
                if now != value:
                    stream.seek(0)
                    stream.write(value + "\n")
                    stream.flush()
                    restored[path] = [now, value]
        except (OSError, ValueError) as error:
            left.append(f"{path} could not be set back to {value}: {error}")
    if not left:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(snapshot)
    return restored, left


def needs_cleaning(directory: str) -> bool:
    """Return whether a run may have left a module, changed sysctls or a mount that nobody has removed yet."""
    return os.path.exists(os.path.join(directory, "holds")) or os.path.ismount(os.path.join(directory, "debugfs"))


def clean(directory: str, held: bool = False) -> dict[str, t.Any]:
    """Remove what a run may have left: process, module, mount, changed sysctls. May be called at any time, and again.

    A run makes the file ``holds`` when it has the lock of its module, has seen that it is not loaded, and is about to
    load it (:func:`hold_sysctls`). Without that file it has loaded nothing. No step that fails keeps the others from
    being done; then the file stays, so that the next cleanup tries again.

    :param held: whether the caller holds the lock of the module.
    :returns: ``removed`` (the module was still there and had to be removed), ``restored`` (sysctls) and ``leftovers``
        (what could not be removed, in words).
    """
    removed, again = False, False
    left: list[str] = []
    restored: dict[str, list[str]] = {}
    name = module_of(directory)
    if os.path.exists(os.path.join(directory, "holds")):
        session = read_json(os.path.join(directory, "state.json")).get("staprun")
        try:
            removed, left = remove_module(name, held, session if isinstance(session, int) else None)
            again = bool(left)
        except (OSError, TapvirtError) as error:
            left = [f"the module {name} could not be removed: {error}"]
            again = True
    left += unmount(directory)
    try:
        restored, changed = release_sysctls(directory, keep_mark=again)
        left += changed
    except (OSError, TapvirtError) as error:
        left.append(f"the sysctls that staprun changes were not put back: {error}")
    return {"removed": removed, "restored": restored, "leftovers": left}


def unmount(directory: str) -> list[str]:
    """Unmount the debugfs of a run or a tracer; return what could not be unmounted, in words."""
    mount = os.path.join(directory, "debugfs")
    if not os.path.ismount(mount):
        return []
    try:
        run_bounded(["umount", mount])
    except OSError as error:
        return [f"debugfs could not be unmounted from {mount}: {error}"]
    return [f"debugfs could not be unmounted from {mount}"] if os.path.ismount(mount) else []


def remove_tree(directory: str, parents: int = 2) -> None:
    """Remove a directory, and as many of those above it as are given and empty; never what is mounted in it.

    :raises TapvirtError: debugfs is mounted in it.
    :raises OSError: as the file system says.
    """
    if os.path.ismount(os.path.join(directory, "debugfs")):
        raise TapvirtError(f"debugfs is still mounted in {directory}")
    shutil.rmtree(directory)
    remove_empty(os.path.dirname(directory), parents)


def remove_empty(directory: str = "", levels: int = 2) -> None:
    """Remove a directory (else that of all runs), and those above it, as many as are given and empty."""
    directory = directory or BASE
    for _level in range(levels):
        try:
            os.rmdir(directory)
        except OSError:
            return
        directory = os.path.dirname(directory)


def remove_module(name: str, held: bool, session: int | None = None) -> tuple[bool, list[str]]:
    """End the processes of a module that a run or a tracer has loaded, and remove it, but not that of another.

    :param held: whether the caller holds the lock of the module.
    :param session: the session of the run's own processes, if it is known.
    :returns: whether the module had to be removed, and what could not be removed, in words.
    :raises ModuleInUse: another process holds its lock, and the module is the run's own, or no process uses it.
    :raises OSError: a program that removes it cannot be started.
    """
    with contextlib.ExitStack() as stack:
        if not held:
            try:
                stack.enter_context(hold_module(name))
            except ModuleInUse:
                # Another run loads it only after what was loaded here has gone.
                own = processes_of(name, session) if session is not None else []
                if own or (loaded(name) and not processes_of(name)):
                    raise
                return False, []
            except (OSError, TapvirtError):
                # A full disk is no reason to leave a trace running.
                pass
        _end_processes(name, session)
        left = [f"the process {pid} of {name} could not be ended" for pid in processes_of(name, session)]
        if not loaded(name) or set(processes_of(name)) - set(processes_of(name, session)):
            return False, left
        _wait(lambda: not loaded(name) or run_bounded(["staprun", "-d", name]) == 0, ASKED_SECONDS)
        _wait(lambda: not loaded(name), FORCED_SECONDS)
        if loaded(name):
            left.append(f"the module {name} could not be removed")
        return True, left


def _end_processes(name: str, session: int | None) -> None:
    for number, seconds in ((signal.SIGINT, ASKED_SECONDS), (signal.SIGKILL, FORCED_SECONDS)):
        for pid in processes_of(name, session):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        _wait(lambda: not processes_of(name, session), seconds)


def keep_ends(data: bytes, limit_bytes: int) -> bytes:
    """Return the beginning and the end of what was printed, in at most this many bytes; a line parts them.

    staprun prints its counters and what ended it last.
    """
    if len(data) <= limit_bytes:
        return data
    half = limit_bytes // 2
    return data[: half - 1] + b"\n" + data[-half:]


def forget_progress(directory: str) -> None:
    """Take away what is said about a run under way: it is ending."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, "progress.json"))


def finish_killed_run(directory: str) -> dict[str, t.Any]:
    """Clean up after a run whose supervisor is gone, unless it had come to its end and cleaned up; return its state.

    Only one process does so at a time. Whoever cannot wait for the other changes nothing, and returns the state of
    before.
    """
    path = os.path.join(directory, "state.json")
    state = read_json(path)
    if state.get("state") in _ENDED and not needs_cleaning(directory):
        return state
    with contextlib.ExitStack() as stack:
        try:
            cleaner = os.path.join(directory, "cleaner")
            stack.enter_context(lock.hold(cleaner, f"the cleanup of {directory}", CLEANER_SECONDS))
        except lock.LockTimeout:
            return read_json(path)
        except (OSError, TapvirtError):
            # A full disk is no reason to leave a trace running.
            pass
        state = read_json(path)
        ended = state.get("state") in _ENDED
        if ended and not needs_cleaning(directory):
            return state
        forget_progress(directory)
        cleaned = clean(directory)
        if ended:
            cleaned["removed"] = bool(state.get("removed")) or cleaned["removed"]
            before = state.get("restored")
            cleaned["restored"] = {**(before if isinstance(before, dict) else {}), **cleaned["restored"]}
        else:
            state["state"] = "killed"
            with contextlib.suppress(OSError):
                size = os.path.getsize(os.path.join(directory, "output"))
                told = state.get("bytes")
                state.update(kept=size, bytes=max(size, told if isinstance(told, int) else 0))
        state.update(cleaned)
        write_with_reserve(path, json.dumps(state).encode())
    return state


def _wait(done: t.Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.2)
