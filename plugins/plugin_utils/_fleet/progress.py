# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run seen from the controller: lines on the terminal, calls that end in time, and the file of what was printed.

Private to the collection.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import signal
import string
import tempfile
import threading
import time
import typing as t
import zlib

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from ...module_utils._core.errors import InvalidInput, TapvirtError, as_sentence
from ...module_utils._core.write import check_target, make_directories
from ...module_utils._systemtap.trace.collect import CHUNK_BYTES
from .._transport.edge import NUMBER, TEXT, WHOLE, Need, Odd, parse
from .._transport.module_action import refused
from .status import CHANNEL

# How often a host's run is told of, in seconds, on a terminal and in a log.
_TERMINAL_SECONDS = 2.5
_LOG_SECONDS = 30.0
_AWAITED = {
    "waiting": "waiting for the start",
    "starting": "starting",
    "loading": "loading the module",
    "loaded": "arming the probes",
    "running": "tracing",
}
# A run that waits for its start ends later than it has waited, by what nobody knows exactly: it is looked at again.
_AFTER_WAITING_SECONDS = 10.0
_NUMBERS = ("elapsed_seconds", "of_seconds", "bytes", "records", "armed", "sites")
# What module_utils/_systemtap/supervise/supervisor.py writes, and what collect.py returns of a run's output.
_PROGRESS = {"state": TEXT, **dict.fromkeys(_NUMBERS, NUMBER)}
_CHUNK = Need({"bytes": Need(WHOLE), "sha256": Need(TEXT), "data": Need(TEXT)})
_PRINTED = {"bytes": Need(WHOLE), "sha256": TEXT}
_NAME_BYTES = 255
_SAFE = frozenset((string.ascii_letters + string.digits + "._-").encode("ascii"))


class NoAnswer(AnsibleConnectionFailure):
    """The host took longer than it was given."""


class NameTooLong(ValueError):
    """A file cannot have this name."""


class ProgressReporter:
    """Tells of one host's run: to the callback plugin tapvirt.host.progress, else in a line now and then."""

    def __init__(self, host: str, directory: str, terminal: bool, show: t.Callable[[str], t.Any]) -> None:
        self._host = host
        self._name = f"{host}: {os.path.basename(directory).rpartition('-')[0]}"
        self._every = _TERMINAL_SECONDS if terminal else _LOG_SECONDS
        self._show = show
        self._told_at = time.monotonic() - (_TERMINAL_SECONDS if terminal else 0.0)
        self._was_cut = False
        self._last: t.Mapping[str, t.Any] = {}

    def _line(self, text: str) -> None:
        self._told_at = time.monotonic()
        self._show(f"{self._name}: {text}")

    def tell(self, told: t.Any) -> float:
        """Take what the host says, whatever it is; return after how many seconds the run is to end.

        0 stands for any moment: it is ending, or what supervises it says nothing any more, or nothing sensible.
        """
        if self._was_cut:
            self._was_cut = False
            self._line("the host answers again")
        progress = _read_progress(told)
        stands_still, self._last = progress == self._last, progress
        try:
            if progress.get("state") not in _AWAITED or stands_still:
                return 0.0
            elapsed, of = float(progress["elapsed_seconds"]), float(progress["of_seconds"])
            text = progress_text(progress)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return 0.0
        if not CHANNEL.tell(self._host, text) and time.monotonic() - self._told_at >= self._every:
            self._line(text)
        return max(of - elapsed, 0.0) + (_AFTER_WAITING_SECONDS if progress["state"] == "waiting" else 0.0)

    def cut(self, reason: str) -> None:
        """Say once that the host does not answer."""
        if not self._was_cut:
            self._was_cut = True
            self._line(f"the run goes on, but the host does not answer: {reason.strip()[:200]}")


def _read_progress(told: t.Any) -> dict[str, t.Any]:
    """Return what a host tells of a run, every number known; empty when it is no such thing."""
    try:
        return {**dict.fromkeys(_NUMBERS, 0), **parse(told, Need(_PROGRESS))}
    except Odd:
        return {}


def progress_text(progress: t.Mapping[str, t.Any]) -> str:
    """Return what is awaited, for how long, and what there is so far, in words."""
    text = f"{_AWAITED[progress['state']]}, {progress['elapsed_seconds']:.0f} of {progress['of_seconds']:g} s"
    if progress["sites"]:
        text += f", {progress['armed']} of {progress['sites']} places armed"
    if progress.get("records"):
        text += f", {progress['records']} records"
    return text + f", {progress['bytes']} bytes so far"


def unreachable_message(directory: str, seconds: float) -> str:
    """Return what is known of a run whose host no longer answers."""
    return (
        f"The host has not answered for the {seconds:.0f} s of this task. The run ends by itself on the host. Its "
        f"result is kept there in {directory}: collect it with tapvirt.host.stap_run_result and the run_id"
        f" {os.path.basename(directory)}. A later run on the host returns it in previous_leftovers if nobody has."
    )


def unanswered_start_message(directory: str, seconds: float, reason: str) -> str:
    """Return what is known of a run whose host did not answer when it was to start it."""
    return (
        f"The host did not answer for {seconds:.0f} s when the run was to start ({reason.strip()[:200]}). A run that"
        " has started all the same ends by itself: collect it with tapvirt.host.stap_run_result and the run_id"
        f" {os.path.basename(directory)}. A later run on the host returns it in previous_leftovers if nobody has."
    )


def endless(directory: str, seconds: float) -> str:
    """Return what is known of a run that, as its host tells it, does not end."""
    return (
        f"The host says that the run goes on, {seconds:.0f} s after its start, when it must have ended long ago. "
        f"Its directory on the host is {directory}; nothing of it was collected."
    )


@contextlib.contextmanager
def at_most(seconds: float, task_timeout: int) -> t.Iterator[None]:
    """Break off what does not return in time, such as ssh on a connection whose other end is silent.

    Where the task has a timeout of its own, the alarm clock is Ansible's.

    :raises NoAnswer: the time is over.
    """
    if task_timeout or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_number: int, _frame: object) -> None:
        raise NoAnswer(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def encoded(name: str, suffix: str = "") -> str:
    """Return a name for a file: never a path, and no two names give the same.

    Bytes other than letters, digits, dots, dashes and underlines become ``%2F`` and the like, and so does a first dot.

    :raises NameTooLong: it is longer than a file's may be.
    """
    safe = "".join(
        chr(byte) if byte in _SAFE and (place or byte != ord(".")) else f"%{byte:02X}"
        for place, byte in enumerate(name.encode("utf-8", "surrogatepass"))
    )
    if len(safe + suffix) > _NAME_BYTES:
        raise NameTooLong(f"The name {safe[:80]}... of the file is too long.")
    return safe + suffix


def output_path(directory: str, host: str, module: str) -> str:
    """Return the path of the file for a host's output, in the directory of the option ``output``.

    :raises AnsibleActionFail: the name of the file is too long.
    """
    try:
        return os.path.join(directory, encoded(host, f".{module}.txt"))
    except NameTooLong as error:
        hint = "Give the host a shorter name in the inventory."
        raise refused(InvalidInput("output", directory, str(error), hint)) from None


def check_directory(path: str) -> None:
    """Check that files can be put into the directory of the option ``output``, before anything is traced.

    :raises AnsibleActionFail: something else is there.
    """
    try:
        check_target("output", path, directory=True)
    except InvalidInput as error:
        raise refused(error) from None


def not_saved(path: str, reason: str) -> AnsibleActionFail:
    """Return the failure of a run whose output cannot be saved in the file at ``path``; names the option ``output``."""
    message = as_sentence(f"The output of the run cannot be saved in {path}: {reason}")
    row = {**TapvirtError(message).row(), "option": "output", "value": os.path.dirname(path)}
    return AnsibleActionFail(message, result={"error": row})


def save_output(
    path: str,
    first: t.Mapping[str, t.Any],
    more: t.Callable[[int], t.Any],
    run: t.Mapping[str, t.Any],
    limit_bytes: int,
) -> dict[str, t.Any]:
    """Write what a host sent to a file, whole and checked, or not at all; return ``path, bytes, sha256, truncated``.

    :param first: the first chunk, as module_utils/_systemtap/trace/collect.py returns it; ``more(offset)`` the others.
    :param run: the result: ``bytes`` and ``sha256`` of all that was printed (null: not known).
    :raises AnsibleActionFail: the file cannot be written, or what arrived is not what the host has.
    """
    try:
        first, run = parse(first, _CHUNK), parse(run, _PRINTED)
    except Odd as error:
        raise not_saved(path, f"what the host sent cannot be read: {error}") from None
    if not 0 <= first["bytes"] <= limit_bytes:
        raise not_saved(path, f"the host has {first['bytes']} bytes, and max_output_bytes is {limit_bytes}")
    truncated = run["bytes"] > first["bytes"]
    digest = hashlib.sha256()
    try:
        make_directories(os.path.dirname(path))
        descriptor, temporary = tempfile.mkstemp(prefix=".tapvirt-", dir=os.path.dirname(path))
        try:
            with os.fdopen(descriptor, "wb") as stream:
                _receive(stream, digest, first, more)
                os.fchmod(stream.fileno(), 0o644)
            expected = first["sha256"] if truncated or run.get("sha256") is None else run["sha256"]
            if digest.hexdigest() != expected:
                reason = (
                    f"what arrived has another sha256 ({digest.hexdigest()}) than what the run printed ({expected})"
                )
                raise not_saved(path, reason)
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    except OSError as error:
        raise not_saved(path, f"the file cannot be written: {error.strerror}") from None
    except (ValueError, zlib.error) as error:
        raise not_saved(path, f"what the host sent cannot be read: {str(error)[:200]}") from None
    return {"path": path, "bytes": first["bytes"], "sha256": digest.hexdigest(), "truncated": truncated}


def _receive(
    stream: t.IO[bytes],
    digest: t.Any,
    chunk: t.Mapping[str, t.Any],
    more: t.Callable[[int], t.Any],
) -> None:
    """Write all chunks. What a host sends is bounded: by what it said first, and each chunk when it is unpacked."""
    whole, got = int(chunk["bytes"]), 0
    while True:
        data = zlib.decompressobj().decompress(base64.b64decode(chunk["data"]), CHUNK_BYTES)
        stream.write(data)
        digest.update(data)
        got += len(data)
        if got >= whole or not data:
            return
        chunk = parse(more(got), _CHUNK)
