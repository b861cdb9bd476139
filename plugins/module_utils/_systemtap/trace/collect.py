# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs leave in their directories: waited for, made into results, and cleaned up after.

Private to the collection.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import time
import typing as t
import zlib

from ..._core.errors import InvalidInput, TapvirtError
from ..._core.root import Root
from .. import limits
from ..supervise import cleanup
from ..supervise.outcome import contract, read_messages, split_output
from ..supervise.supervisor import read_stext

#: How much of a run's output goes to the controller at once; base64 and compression are on top.
CHUNK_BYTES = 4 << 20
_NAME = re.compile(r"[a-z0-9_]{1,55}-[0-9a-f]{1,16}")
_POLL_SECONDS = 0.2
_ENDED = ("done", "killed")
# How long systemd or the guard has to clean up after a supervisor that was killed. Also a task that does not wait for
# the end of a run waits for this.
_CLEAN_SECONDS = 20
# A run whose controller was heard of within that time is the controller's to collect.
_LEASE_SECONDS = 20
#: Says that the controller has the result; its time is when. The controller makes it.
COLLECTED = "collected"
# How long a run that is starting may take to write which process it is.
_NAME_SECONDS = 5
_SHOWN_CHARS = 500
# What files with any content may lead to while they are read.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TapvirtError,
    TypeError,
    ValueError,
)


class RunGone(TapvirtError):
    """The directory of a run does not exist, or no longer."""


def is_run_directory(path: str) -> bool:
    """Return whether a path has the form of a run's directory: BASE/NAME-RUN."""
    base, _slash, name = path.rpartition("/")
    return base == cleanup.BASE and _NAME.fullmatch(name) is not None


def run_directory(name: str, run_id: str) -> str:
    """Return the directory of a run of a module; its controller names the run, in hexadecimal digits.

    :raises InvalidInput: that is no name of a run.
    """
    directory = os.path.join(cleanup.BASE, f"{name}-{run_id}")
    if not is_run_directory(directory):
        raise InvalidInput("_stage.run", run_id, "The name of a run is 1 to 16 hexadecimal digits")
    return directory


def unit_of(directory: str) -> str:
    """Return the systemd unit that supervises a run."""
    return f"tapvirt-stap-{os.path.basename(directory)}.service"


def collect(
    directory: str, wait_seconds: float, with_output: bool, offset: int, only_reads: bool = False
) -> dict[str, t.Any]:
    """Wait for a run's end for some time; return its handle and ``progress`` when it has not come, else its result.

    Nothing is removed, so that it can be asked again when the answer was lost on its way.

    :param with_output: return ``output`` as well, what was printed, in chunks; a chunk after the first comes alone.
    :param only_reads: for check mode: do not wait, and clean up after nothing.
    :raises InvalidInput: not the directory of a run.
    :raises RunGone: the directory does not exist.
    :raises TapvirtError: the run left nothing that can be read.
    """
    if not is_run_directory(directory):
        raise InvalidInput("_stage.directory", directory, "The path is not the directory of a run")
    if offset:
        return {"output": read_output(directory, offset)}
    try:
        state = _read_state(directory) if only_reads else wait(directory, wait_seconds)
    except TapvirtError:
        raise
    except _DAMAGE as error:
        raise _damaged(directory, error) from None
    try:
        if state.get("state") not in _ENDED:
            return _unfinished(directory, state)
        result = read_result(directory, state)
    except _DAMAGE as error:
        raise _damaged(directory, error) from None
    if with_output:
        result["output"] = read_output(directory, 0)
    return result


def collect_by_id(
    run_id: str, wait_seconds: float, with_output: bool, offset: int, only_reads: bool = False
) -> dict[str, t.Any]:
    """Do as :func:`collect` for a run that its controller started without waiting.

    :raises InvalidInput: this host has no such run.
    """
    try:
        return collect(directory_of(run_id), wait_seconds, with_output, offset, only_reads)
    except RunGone:
        raise _unknown(run_id) from None


def directory_of(run_id: str) -> str:
    """Return the directory of a run from its id, NAME-RUN.

    :raises InvalidInput: an id does not look like that.
    """
    directory = os.path.join(cleanup.BASE, run_id)
    if not is_run_directory(directory):
        raise _unknown(run_id)
    return directory


def _unknown(run_id: str) -> InvalidInput:
    hours = limits.KEPT_SECONDS // 3600
    hint = f"A result is kept for {hours} hours, for one hour after it was collected, and not beyond a reboot"
    return InvalidInput("run_id", run_id, "This host keeps no run of this name", hint)


def _read_state(directory: str) -> dict[str, t.Any]:
    if not os.path.isdir(directory):
        raise _gone(directory)
    return cleanup.read_json(os.path.join(directory, "state.json"))


def _unfinished(directory: str, state: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the handle of a run under way, its ``progress``, and ``left_seconds``, how long it takes at most."""
    row: dict[str, t.Any] = {"phase": "started", **read_handle(directory, state)}
    end = row["times"]["end"] or time.time() + limits.MAX_DURATION_SECONDS
    slack = 0 if row["times"]["armed"] else limits.LOAD_SECONDS
    most = limits.MAX_AHEAD_SECONDS + limits.LOAD_SECONDS + limits.MAX_DURATION_SECONDS
    row["left_seconds"] = min(max(end - time.time(), 0) + slack, most)
    row["progress"] = _read_progress(directory, state, row["times"]["accepted"])
    return row


def _read_progress(directory: str, state: t.Mapping[str, t.Any], accepted: float | None) -> dict[str, t.Any]:
    """Return how far a run under way is, also before its supervisor writes ``progress.json`` and after it removes it.

    ``state`` is ``killed`` where nobody supervises the run any more.
    """
    job = cleanup.read_json(os.path.join(directory, "job.json"))
    now = time.time()
    name = state.get("state") or ("starting" if job.get("start") is None else "waiting")
    since, of = state.get("started", accepted) or now, job.get("wait" if name == "waiting" else "load", 0)
    if "rc" in state or "signals_sent" in state:
        name, since, of = "stopping", now, 3 * limits.STOP_GRACE_SECONDS
    progress = {
        "state": name,
        "elapsed_seconds": round(max(now - since, 0), 1),
        "of_seconds": float(of),
        "bytes": state.get("bytes", 0),
        "records": 0,
        "armed": len(state.get("sites", ())),
        "sites": job.get("sites", 0),
        **cleanup.read_json(os.path.join(directory, "progress.json")),
    }
    if not _is_alive(directory, state):
        progress["state"] = "killed"
    return progress


def read_handle(directory: str, state: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what names a run and tells its time: ``run_id, finished, times, clock, supervisor, previous_leftovers``.

    :param state: the content of state.json, empty before it exists.
    """
    begun = cleanup.read_json(os.path.join(directory, "begun.json"))
    finished = state.get("state") in _ENDED
    planned = begun.get("times")
    times = dict.fromkeys(("accepted", "start", "armed", "end"))
    times.update(planned if isinstance(planned, dict) else {})
    if finished:
        times.update(start=None, end=state.get("ended"))
    elif "armed_at" in state:
        duration = cleanup.read_json(os.path.join(directory, "request.json"))["duration"]
        times["end"] = state["armed_at"] + duration
    times["start"] = state.get("started", times["start"])
    times["armed"] = state.get("armed_at")
    return {
        "run_id": os.path.basename(directory),
        "finished": finished,
        "times": times,
        "clock": begun.get("clock") or {"skew_seconds": None, "uncertainty_seconds": None},
        "supervisor": begun.get("supervisor"),
        "previous_leftovers": begun.get("previous_leftovers", []),
    }


def _damaged(directory: str, error: Exception) -> TapvirtError:
    reason = f"{type(error).__name__}: {error}"[:_SHOWN_CHARS]
    return TapvirtError(f"The files of the run in {directory} cannot be read ({reason}).")


def _gone(directory: str) -> RunGone:
    return RunGone(
        f"The directory of the run no longer exists: {directory}. The host was rebooted, or another run on it "
        "collected the result and returned it in previous_leftovers."
    )


def wait(directory: str, seconds: float, clean_seconds: float = _CLEAN_SECONDS) -> dict[str, t.Any]:
    """Wait until a run has ended, or the time is over; return its last state.

    Clean up after a run whose supervisor and its guards were all killed. Such a run has ended, and is waited for even
    if the time is over.

    :param clean_seconds: how long systemd or the guard has to clean up first.
    :raises RunGone: the directory does not exist.
    """
    end = time.monotonic() + seconds
    missed_since: float | None = None
    while True:
        if not os.path.isdir(directory):
            raise _gone(directory)
        _touch(os.path.join(directory, "seen"))
        state = cleanup.read_json(os.path.join(directory, "state.json"))
        if state.get("state") in _ENDED:
            return cleanup.finish_killed_run(directory)
        now = time.monotonic()
        try:
            alive = _is_alive(directory, state)
        except FileNotFoundError:
            raise _gone(directory) from None
        if alive:
            missed_since = None
            if now >= end:
                return state
        elif missed_since is None:
            missed_since = now - _silent_seconds(directory)
        if missed_since is not None and now - missed_since > clean_seconds:
            return cleanup.finish_killed_run(directory)
        time.sleep(_POLL_SECONDS)


def _silent_seconds(directory: str) -> float:
    """Return for how long the supervisor of a run has written nothing; it writes every second."""
    written = [0.0]
    for name in ("job.json", "state.json", "progress.json"):
        with contextlib.suppress(OSError):
            written.append(os.stat(os.path.join(directory, name)).st_mtime)
    return max(time.time() - max(written), 0.0)


def _touch(path: str) -> None:
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        os.utime(path)


def _young(directory: str) -> bool:
    """Tell whether a run may just be starting, and has not yet said which process it is."""
    state = os.path.join(directory, "state.json")
    return not os.path.exists(state) and time.time() - os.stat(directory).st_mtime < limits.LOAD_SECONDS


def read_result(directory: str, state: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the result contract of a run that has ended, from its directory."""
    request = cleanup.read_json(os.path.join(directory, "request.json"))
    texts = {name: _read_text(os.path.join(directory, name)) for name in ("output", "tail", "errors")}
    build = request["build"]
    result = contract(
        dict(build, schema=request["schema"]),
        state,
        texts["output"],
        texts["tail"],
        texts["errors"],
        read_stext(),
        request["record_limit"],
    )
    result.update(read_handle(directory, state))
    result["hints"] = _hints(texts, state, request)
    result["kernel"] = build["kernel"]
    result["guru_reason"] = request.get("guru_reason")
    result["builder"] = request["builder"]
    result["module"] = {"name": build["name"], "sha256": build["sha256"], "path": request["path"]}
    result["restored"] = state.get("restored", {})
    result["leftovers"] = state.get("leftovers", [])
    result["tainted"] = [request["tainted"], int(Root().read_text("proc/sys/kernel/tainted"))]
    return result


def _hints(texts: t.Mapping[str, str], state: t.Mapping[str, t.Any], request: t.Mapping[str, t.Any]) -> list[str]:
    """Return which options help a run that met a limit."""
    if not texts["errors"]:
        return []
    from .hints import host_hints  # most runs have nothing to tell

    messages = read_messages(texts["errors"], state.get("rc"))
    hits = split_output(texts["output"], texts["tail"]).hits_by_point()
    return host_hints(messages.errors, messages.warnings, hits, request.get("limits") or {})


def _read_text(path: str) -> str:
    """Return what was printed, for a result: bytes that are not UTF-8 cannot be in it and are replaced."""
    try:
        return Root().read_bytes(path).decode("utf-8", "replace")
    except OSError:
        return ""


def read_output(directory: str, offset: int) -> dict[str, t.Any]:
    """Return a chunk of what a run printed and kept, and what the whole is: ``bytes`` and ``sha256`` of the file.

    :raises TapvirtError: the run's directory does not exist.
    """
    # As long as its controller asks, the directory is not another run's to remove.
    _touch(os.path.join(directory, "seen"))
    digest = hashlib.sha256()
    size = 0
    chunk = b""
    with contextlib.suppress(FileNotFoundError), open(os.path.join(directory, "output"), "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
            size += len(block)
        stream.seek(offset)
        chunk = stream.read(CHUNK_BYTES)
    if not os.path.isdir(directory):
        raise _gone(directory)
    return {
        "bytes": size,
        "sha256": digest.hexdigest(),
        "chunk_bytes": len(chunk),
        "data": base64.b64encode(zlib.compress(chunk, 1)).decode("ascii"),
    }


def remove_run_directory(directory: str) -> None:
    """Remove a run's directory, and those above it when no other run needs them.

    A directory stays while a module, changed sysctls or a mount may be left: the next run cleans up there again.
    """
    if cleanup.needs_cleaning(directory):
        return
    with contextlib.suppress(OSError, TapvirtError):
        cleanup.remove_tree(directory)


def sweep(record_limit: int) -> list[dict[str, t.Any]]:
    """Clean up after runs that nobody collects any more; return what each of them was, and what it had kept.

    No leftover ends the run that found it: one that cannot be read is removed all the same, and reported as such.
    """
    found = []
    paths = (os.path.join(cleanup.BASE, name) for name in Root(cleanup.BASE).listdir(""))
    directories = [path for path in paths if is_run_directory(path)]
    kept = _kept_results(directories)
    for directory in directories:
        row: dict[str, t.Any] | None
        stays = False
        try:
            in_hands = _is_in_hands(directory)
            stays = in_hands or directory in kept
            stuck = _is_stuck(directory)
            if stays and not stuck:
                if not in_hands:
                    cleanup.finish_killed_run(directory)
                continue
            row = _found(directory, record_limit)
            was_collected = os.path.exists(os.path.join(directory, COLLECTED))
            if was_collected and not stuck and not (row and row["leftovers"]):
                row = None
        except _DAMAGE as error:
            if not os.path.isdir(directory):
                continue  # its controller has collected it
            row = _unreadable(directory, error)
        if not stays:
            remove_run_directory(directory)
        if row is None:
            continue
        if not stays and os.path.exists(directory):
            row["leftovers"] = [*row["leftovers"], f"the directory {directory} could not be removed"]
        found.append(row)
    # Where that fails, the run that follows tries it again at its end, and reports it.
    cleanup.restore_orphaned_sysctls()
    cleanup.remove_empty()
    return found


def _is_stuck(directory: str) -> bool:
    """Return whether a run has ended, and something that it had loaded or changed could not be removed."""
    state = cleanup.read_json(os.path.join(directory, "state.json"))
    return state.get("state") in _ENDED and cleanup.needs_cleaning(directory)


def _kept_results(directories: t.Iterable[str]) -> set[str]:
    """Return the directories whose results stay for whoever collects them: the youngest ones, within the limits.

    Those that were collected make room first.
    """
    results = []
    for directory in directories:
        if cleanup.read_json(os.path.join(directory, "request.json")).get("keep") is not True:
            continue
        with contextlib.suppress(OSError):
            collected = os.path.exists(os.path.join(directory, COLLECTED))
            since = os.path.join(directory, COLLECTED if collected else "request.json")
            age = time.time() - os.stat(since).st_mtime
            if age < (limits.COLLECTED_SECONDS if collected else limits.KEPT_SECONDS):
                size = sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(directory))
                results.append((collected, age, directory, size))
    kept: set[str] = set()
    total = 0
    for _collected, _age, directory, size in sorted(results)[: limits.KEPT_RESULTS]:
        total += size
        if kept and total > limits.KEPT_BYTES:
            break
        kept.add(directory)
    return kept


def has_leftover(name: str) -> bool:
    """Return whether a loaded module is what a killed run left, which :func:`sweep` removes."""
    for entry in Root(cleanup.BASE).listdir(""):
        directory = os.path.join(cleanup.BASE, entry)
        if not is_run_directory(directory) or cleanup.module_of(directory) != name:
            continue
        with contextlib.suppress(FileNotFoundError):
            if not cleanup.needs_cleaning(directory) or _is_in_hands(directory):
                continue
            session = cleanup.read_json(os.path.join(directory, "state.json")).get("staprun")
            own = cleanup.processes_of(name, session if isinstance(session, int) else None)
            return set(cleanup.processes_of(name)) <= set(own)
    return False


def other_run(name: str, own: str = "", name_seconds: float = _NAME_SECONDS) -> str | None:
    """Return the run of a module that is starting or under way on this host, for a message; None without one.

    Of a run that is starting the process becomes known in a moment; that is waited for.

    :param own: the directory of the run that asks.
    :param name_seconds: how long to wait for the process of a run that is starting.
    """
    end = time.monotonic() + name_seconds
    while True:
        directories = [directory for directory in _alive_runs(name) if directory != own]
        if not directories:
            return None
        directory = directories[0]
        state = cleanup.read_json(os.path.join(directory, "state.json"))
        if cleanup.is_supervised(directory, state):
            return cleanup.describe_process(state["pid"])
        if time.monotonic() > end:
            return f"the run {cleanup.run_of(directory)}, which is starting"
        time.sleep(_POLL_SECONDS)


def _alive_runs(name: str) -> list[str]:
    """Return the directories of the runs of a module that have not ended."""
    found = []
    for entry in Root(cleanup.BASE).listdir(""):
        directory = os.path.join(cleanup.BASE, entry)
        if not is_run_directory(directory) or cleanup.module_of(directory) != name:
            continue
        state = cleanup.read_json(os.path.join(directory, "state.json"))
        # Whoever collects it may remove the directory at any time.
        with contextlib.suppress(FileNotFoundError):
            if state.get("state") not in _ENDED and _is_alive(directory, state):
                found.append(directory)
    return found


def _is_alive(directory: str, state: t.Mapping[str, t.Any]) -> bool:
    return _young(directory) or cleanup.is_supervised(directory, state)


def _is_in_hands(directory: str) -> bool:
    """Tell whether a run is under way, or was asked for by its controller a moment ago."""
    state = cleanup.read_json(os.path.join(directory, "state.json"))
    if state.get("state") not in _ENDED:
        return _is_alive(directory, state)
    seen = os.path.join(directory, "seen" if os.path.exists(os.path.join(directory, "seen")) else "request.json")
    try:
        return time.time() - os.stat(seen).st_mtime < _LEASE_SECONDS
    except OSError:
        return False


_RESULT_KEYS = "outcome reason hits skipped bytes sha256 duration_seconds record_count restored leftovers".split()


def _found(directory: str, record_limit: int) -> dict[str, t.Any] | None:
    """Clean up after a run and return what it was; None when it had not been prepared, or is not this task's."""
    before = cleanup.read_json(os.path.join(directory, "state.json")).get("state") or "never started"
    if before == "never started" and not os.path.exists(os.path.join(directory, "job.json")):
        return None
    state = cleanup.finish_killed_run(directory)
    if state.get("state") not in _ENDED:
        return None  # another process cleans up there at this moment
    result = read_result(directory, state)
    name = cleanup.module_of(directory)
    row = {"module": name, "state": before, "started": state.get("started"), "removed": state.get("removed")}
    row.update({key: result[key] for key in _RESULT_KEYS})
    row.update(kept_bytes=state.get("kept", 0), records=result["records"][:record_limit])
    return row


def _unreadable(directory: str, error: Exception) -> dict[str, t.Any]:
    """Return the row of a leftover that cannot be read; what it had loaded is removed as far as that is known."""
    row: dict[str, t.Any] = dict.fromkeys(_RESULT_KEYS)
    reason = f"what the run left in {directory} could not be read ({type(error).__name__}: {error})"
    left = []
    try:
        cleaned = cleanup.clean(directory)
    except _DAMAGE as second:
        cleaned = {}
        left = [f"cleaning up after {directory} failed: {type(second).__name__}: {second}"]
    row.update(
        module=cleanup.module_of(directory),
        state="damaged",
        started=None,
        removed=cleaned.get("removed"),
        outcome="lost_output",
        reason=reason[:_SHOWN_CHARS],
        restored=cleaned.get("restored", {}),
        leftovers=cleaned.get("leftovers", left),
        kept_bytes=0,
        record_count=0,
        records=[],
    )
    return row
