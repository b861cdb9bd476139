# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bounded look at a running domain's console: until a pattern, a size or a deadline.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
import typing as t

from .._core.errors import InvalidInput, TapvirtError
from .connection import Connection, Domain, LibvirtFailure, libvirt, libvirt_errors
from .lifecycle import state_of
from .lookup import find_domain

_CHUNK_BYTES = 16384
_NOTHING_NOW = -2
_WAIT_SECONDS = 0.5
_END_NOTED_SECONDS = 5
# ECMA-48: control sequences, strings (OSC, DCS, ...) up to their end, other escapes; then the control bytes left over.
_ESCAPES = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b[\\]PX^_].*?(?:\x07|\x1b\\\\)|\x1b[ -/]*[0-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
    re.DOTALL,
)
_LINE_ENDS = re.compile("\r+\n?")


@dataclasses.dataclass(frozen=True)
class Capture:
    """What a console said; ``stopped_by`` is ``pattern``, ``size``, ``timeout`` or ``end`` (of the domain)."""

    text: str
    bytes: int
    stopped_by: str


def compile_pattern(until: str | None) -> t.Pattern[str] | None:
    """Return the compiled pattern.

    :raises InvalidInput: it is no regular expression; says where.
    """
    if until is None:
        return None
    try:
        return re.compile(until, re.MULTILINE | re.DOTALL)
    except re.error as error:
        raise InvalidInput("until", until, "is not a regular expression: {0}".format(error)) from error


def clean(data: bytes) -> str:
    """Return console output as plain text: no escape sequences, one kind of line end, no broken characters."""
    return _ESCAPES.sub("", _LINE_ENDS.sub("\n", data.decode("utf-8", "replace")))


def capture(
    connection: Connection, name: str, until: t.Pattern[str] | None, timeout_seconds: float, max_bytes: int
) -> Capture:
    """Read a domain's first console.

    :raises InvalidInput: there is no such domain.
    :raises TapvirtError: it does not run, has no console, or somebody else reads it, now or before the end was reached.
    """
    domain = find_domain(connection, name)
    state = state_of(domain)[0]
    if not domain.isActive():
        raise TapvirtError("{0}: the domain is {1}; there is a console only while it runs.".format(name, state))
    stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
    _open(name, domain, stream)
    readable = threading.Event()
    wanted = libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR
    with libvirt_errors("{0}: watching the console".format(name)):
        stream.eventAddCallback(wanted, _wake, readable)
    try:
        seen = _read(stream, readable, until, time.monotonic() + timeout_seconds, max_bytes)
        if seen.stopped_by == "end" and _goes_on(domain):
            raise TapvirtError(
                "{0}: libvirt closed the console after {1} bytes, yet the domain still runs; somebody else may have "
                "taken it over.".format(name, seen.bytes),
                text=seen.text,
            )
        return seen
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            stream.eventRemoveCallback()
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()


def _goes_on(domain: Domain) -> bool:
    """Tell whether a domain whose console has ended still runs; its end is noted a moment after that of its console."""
    until = time.monotonic() + _END_NOTED_SECONDS
    # A domain without a definition is gone with its end, and asking for it is an error.
    with contextlib.suppress(libvirt.libvirtError):
        while domain.isActive():
            if time.monotonic() > until:
                return True
            time.sleep(_WAIT_SECONDS)
    return False


def _wake(stream: t.Any, events: int, readable: threading.Event) -> None:
    # Level-triggered: left on, it would call again and again until the data is read.
    # It may be on its way while the reader, in another thread, has taken it off already.
    with contextlib.suppress(libvirt.libvirtError):
        stream.eventUpdateCallback(0)
    readable.set()


def _open(name: str, domain: Domain, stream: t.Any) -> None:
    # Never VIR_DOMAIN_CONSOLE_FORCE: that would cut off whoever reads now. SAFE also minds readers outside libvirt.
    try:
        try:
            domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_SAFE)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED):
                raise
            domain.openConsole(None, stream, 0)
    except libvirt.libvirtError as error:
        raise LibvirtFailure("{0}: opening its console".format(name), error) from error


def _read(
    stream: t.Any, readable: threading.Event, until: t.Pattern[str] | None, deadline: float, max_bytes: int
) -> Capture:
    wanted = libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR
    data = bytearray()
    while True:
        readable.clear()
        try:
            received = stream.recv(min(_CHUNK_BYTES, max_bytes - len(data)))
        except libvirt.libvirtError:
            received = b""  # a hang-up: the domain has ended
        if received == b"":
            return Capture(clean(bytes(data)), len(data), "end")
        if received != _NOTHING_NOW:
            data += received
            text = clean(bytes(data))
            if until is not None and until.search(text):
                return Capture(text, len(data), "pattern")
            if len(data) >= max_bytes:
                return Capture(text, len(data), "size")
        left = deadline - time.monotonic()
        if left <= 0:
            return Capture(clean(bytes(data)), len(data), "timeout")
        if received == _NOTHING_NOW:
            stream.eventUpdateCallback(wanted)
            readable.wait(min(left, _WAIT_SECONDS))
