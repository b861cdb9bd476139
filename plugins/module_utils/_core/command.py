# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to run a command: a list of words, a fixed locale, a deadline, bounded output.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import os
import selectors
import shutil
import signal
import subprocess
import time
import typing as t

from .errors import TapvirtError

DEFAULT_TIMEOUT_SECONDS = 60.0
DEFAULT_OUTPUT_BYTES = 1 << 20
_KILL_GRACE_SECONDS = 2.0
# Where administration tools live although a plain user's PATH may not name them.
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclasses.dataclass(frozen=True)
class CommandResult:
    """What a command did: exit status (negative: the signal), decoded output, whether output was cut."""

    argv: tuple[str, ...]
    rc: int
    stdout: str
    stderr: str
    seconds: float
    truncated: bool


class CommandMissing(TapvirtError):
    """The program is not installed on this host."""


class CommandTimeout(TapvirtError):
    """The command did not end before its deadline and was ended with its whole process group."""


if t.TYPE_CHECKING:
    _Popen = subprocess.Popen[bytes]
else:
    _Popen = subprocess.Popen  # it takes no type in Python 3.8


class _ProcessGroup(_Popen):
    """A program in a process group of its own, so that it can be ended with all that it started."""

    def __init__(self, argv: t.Sequence[str], **options: t.Any) -> None:
        super().__init__(argv, start_new_session=True, **options)


def find_program(name: str) -> str | None:
    """Return the full path of a program, or null."""
    return shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + _SEARCH_PATH)


def run(
    argv: t.Sequence[str],
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    stdin: str = "",
    env: t.Mapping[str, str] | None = None,
    cwd: str | None = None,
    max_output_bytes: int = DEFAULT_OUTPUT_BYTES,
) -> CommandResult:
    """Run a program in its own process group and return what it did, whatever its exit status.

    Each of stdout and stderr is kept up to ``max_output_bytes``; the rest is read and dropped, so that the
    program never blocks. The locale is C, so that messages can be parsed.

    :raises CommandMissing: the program is not installed.
    :raises CommandTimeout: it did not end in time; its process group was killed.
    """
    program = find_program(argv[0])
    if program is None:
        raise CommandMissing(f"The program {argv[0]!r} is not installed on this host.", program=argv[0])
    environment = dict(
        os.environ, LC_ALL="C", LANGUAGE="C", PATH=os.environ.get("PATH", "") + os.pathsep + _SEARCH_PATH
    )
    environment.update(env or {})
    started = time.monotonic()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = _ProcessGroup([program, *argv[1:]], env=environment, cwd=cwd, **pipes)
    try:
        kept, truncated = _communicate(process, stdin.encode(), started + timeout_seconds, max_output_bytes)
    except TimeoutError:
        raise CommandTimeout(
            f"{' '.join(argv)!r} did not end within {timeout_seconds:g} s and was ended.",
            argv=list(argv),
            timeout_seconds=timeout_seconds,
        ) from None
    finally:
        _end(process)
    return CommandResult(
        argv=tuple(argv),
        rc=process.returncode,
        stdout=kept[0].decode("utf-8", "replace"),
        stderr=kept[1].decode("utf-8", "replace"),
        seconds=time.monotonic() - started,
        truncated=truncated,
    )


def start_detached(argv: t.Sequence[str]) -> None:
    """Start a program that outlives this one and reads and writes nothing."""
    _ProcessGroup(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _communicate(
    process: subprocess.Popen[bytes], stdin: bytes, deadline: float, limit: int
) -> tuple[tuple[bytes, bytes], bool]:
    streams = (process.stdin, process.stdout, process.stderr)
    kept = {1: bytearray(), 2: bytearray()}
    truncated = False
    pending = memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        for index, stream in enumerate(streams):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ if index else selectors.EVENT_WRITE, index)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            for key, _mask in selector.select(left):
                if key.data == 0:
                    pending = _feed(selector, key, pending)
                else:
                    truncated |= _drain(selector, key, kept[key.data], limit)
    try:
        process.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return (bytes(kept[1]), bytes(kept[2])), truncated


def _feed(selector: selectors.BaseSelector, key: selectors.SelectorKey, pending: memoryview) -> memoryview:
    """Write some of the pending input; close the stream when nothing is left or nobody reads."""
    try:
        pending = pending[os.write(key.fd, pending[:65536]) :] if pending else pending
    except BrokenPipeError:
        pending = pending[:0]
    if not pending:
        selector.unregister(key.fileobj)
        t.cast("t.IO[bytes]", key.fileobj).close()
    return pending


def _drain(selector: selectors.BaseSelector, key: selectors.SelectorKey, kept: bytearray, limit: int) -> bool:
    """Read some output and keep what the limit allows; tell whether any was dropped."""
    data = os.read(key.fd, 65536)
    if not data:
        selector.unregister(key.fileobj)
    room = max(limit - len(kept), 0)
    kept += data[:room]
    return len(data) > room


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_KILL_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None and not stream.closed:
            stream.close()
