# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bounded look at a domain's console: from now on or from its start, until a pattern, a size or a deadline.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import stat
import threading
import time
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, NoEffect, TapvirtError
from ..._core.plan import Change, Plan
from ..._core.write import write_atomic
from ..connection.connection import Connection, Domain, LibvirtFailure, is_unsupported, libvirt, libvirt_errors
from ..connection.lookup import find_domain
from ..domain.lifecycle import DOING, Lifecycle, Waiting, state_of, steps_to
from .device import Device, find_device
from .text import PlainText, compile_pattern

MAX_SECONDS = 86400
# The first is for the result, the second for a file.
MAX_BYTES = 1 << 19
MAX_FILE_BYTES = 1 << 24
_MAX_TEXT = 65536
_CHUNK_BYTES = 16384
_NOTHING_NOW = -2
_WAIT_SECONDS = 0.5
_END_NOTED_SECONDS = 5
_NO_CONSOLES = "This libvirt driver has no consoles that can be read."


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for; all of it checked by ``read_request``."""

    name: str
    until: t.Pattern[str] | None
    timeout_seconds: float
    max_bytes: int
    start: bool = False
    force: bool = False
    device: str | None = None
    dest: str | None = None


@dataclasses.dataclass(frozen=True)
class Observed:
    """The domain as it was found."""

    domain: Domain
    state: str
    active: bool
    device: Device


@dataclasses.dataclass(frozen=True)
class Capture:
    """What a console said.

    ``stopped_by`` is ``pattern``, ``size``, ``timeout``, ``end`` (of the domain) or ``lost`` (the domain goes on); null
    where nothing was read.
    """

    text: str = ""
    data: bytes = b""
    stopped_by: str | None = None


class ConsoleInUse(TapvirtError):
    """Somebody else reads the console."""


def read_request(params: t.Mapping[str, t.Any]) -> Request:
    """Return the checked options of a task.

    :raises InvalidInput: a number out of its bounds, no regular expression, or a file that cannot be written there.
    """
    until, dest = compile_pattern(params["until"]), params["dest"]
    timeout = params["timeout_seconds"]
    if not 0 <= timeout <= MAX_SECONDS:
        # JSON has no infinity.
        value = timeout if math.isfinite(timeout) else str(timeout)
        raise InvalidInput("timeout_seconds", value, f"The timeout is a number of seconds from 0 to {MAX_SECONDS}.")
    if not 1 <= params["max_bytes"] <= (MAX_BYTES if dest is None else MAX_FILE_BYTES):
        problem = f"The size is a number of bytes from 1 to {MAX_BYTES}, with dest to {MAX_FILE_BYTES}."
        raise InvalidInput("max_bytes", params["max_bytes"], problem)
    if dest is not None:
        _check_dest(dest)
    return Request(
        params["name"],
        until,
        timeout,
        params["max_bytes"],
        params["start"],
        params["force"],
        params["device"],
        dest,
    )


def _check_dest(dest: str) -> None:
    directory, base = os.path.split(dest)
    if not os.path.isabs(dest) or not base:
        raise InvalidInput("dest", dest, "The destination is the absolute path of a file.")
    if not os.path.isdir(directory):
        raise InvalidInput("dest", dest, f"The directory {directory} does not exist.")
    if os.path.lexists(dest) and not stat.S_ISREG(os.lstat(dest).st_mode):
        raise InvalidInput("dest", dest, "This path exists, and it is not a regular file.")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InvalidInput("dest", dest, f"This user may not write to the directory {directory}.")


# ---- observe ----


def observe(connection: Connection, request: Request) -> Observed:
    """Look the domain up.

    :raises InvalidInput: there is no such domain, or it has no such device.
    :raises TapvirtError: the driver has no consoles; raised before the domain is started.
    """
    domain = find_domain(connection, request.name)
    with libvirt_errors(f"Reading domain {request.name}"):
        state, active = state_of(domain)[0], bool(domain.isActive())
        root = ET.fromstring(domain.XMLDesc(0 if active else libvirt.VIR_DOMAIN_XML_INACTIVE))
    if not active:
        _check_driver(connection, domain)
    return Observed(domain, state, active, find_device(request.name, root, request.device))


def _check_driver(connection: Connection, domain: Domain) -> None:
    stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
    try:
        domain.openConsole(None, stream, 0)
    except libvirt.libvirtError as error:
        # Any other refusal is that it does not run.
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            raise TapvirtError(_NO_CONSOLES) from error
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()


# ---- plan ----


def plan_start(request: Request, observed: Observed) -> list[str]:
    """Return the steps to a running domain, the last of them to be made once the console is open; none if it runs.

    :raises TapvirtError: it does not run, and is not to be started; or it crashed and what is left of it is still
        there, which a start would destroy.
    """
    if not request.start:
        if not observed.active:
            raise TapvirtError(
                f"Domain {request.name!r} is {observed.state}; it has a console only while it runs. Set start: true to "
                "start it."
            )
        return []
    if observed.active and observed.state == "crashed":
        raise TapvirtError(
            f"Domain {request.name!r} has crashed, and a start would destroy what is left of it. Use "
            "libvirt_domain with state: running to do that."
        )
    steps = steps_to("running", observed.state, observed.active, False)
    return [*steps[:-1], "create_paused", "resume"] if steps[-1:] == ["create"] else steps


def plan_of(request: Request, observed: Observed, steps: t.Sequence[str]) -> Plan:
    """Return the steps as a plan."""
    if not steps:
        return Plan()
    why = "its console is read from there on"
    return Plan([Change(request.name + " state", observed.state, "running", ", ".join(steps), why)])


# ---- apply ----


def read_console(connection: Connection, request: Request, check_mode: bool, with_diff: bool) -> dict[str, t.Any]:
    """Start the domain if that is asked for, read its console, keep it; return the module's result.

    In check mode nothing is started, written or taken from somebody else; a domain that runs is read.

    :raises InvalidInput: there is no such domain or device.
    :raises TapvirtError: it does not run, or somebody else reads it, now or before the end was reached.
    """
    observed = observe(connection, request)
    steps = plan_start(request, observed)
    result = plan_of(request, observed, steps).result(with_diff)
    seen = Capture()
    try:
        if not check_mode:
            seen = capture(connection, request, observed, steps)
        elif not steps:
            with contextlib.ExitStack() as stack:
                if request.force:
                    stack.enter_context(contextlib.suppress(ConsoleInUse))
                seen = capture(connection, dataclasses.replace(request, force=False), observed, steps)
    except TapvirtError as error:
        error.fields["changed"] = bool(steps) and _state_now(observed.domain) != observed.state
        raise
    result.update(_shown(request, seen), path=None, sha256=None)
    if request.dest is not None and not check_mode:
        try:
            result.update(_keep(request.dest, seen.data))
        except TapvirtError as error:
            error.fields.update(result)
            raise
    if seen.stopped_by == "lost":
        raise TapvirtError(
            f"libvirt closed the console of domain {request.name!r} after {len(seen.data)} bytes, but the domain still "
            "runs. Another reader may have taken the console over.",
            **result,
        )
    return result


def _state_now(domain: Domain) -> str | None:
    try:
        return state_of(domain)[0]
    except libvirt.libvirtError:
        return None


def _shown(request: Request, seen: Capture) -> dict[str, t.Any]:
    return {
        "text": seen.text if request.dest is None else seen.text[-_MAX_TEXT:],
        "bytes": len(seen.data),
        "matched": seen.stopped_by == "pattern",
        "truncated": seen.stopped_by == "size",
        "stopped_by": seen.stopped_by,
    }


def _keep(dest: str, data: bytes) -> dict[str, t.Any]:
    try:
        write_atomic(dest, data, mode=0o600)
    except OSError as error:
        raise TapvirtError(f"{dest} cannot be written: {error.strerror}.") from error
    return {"path": dest, "sha256": hashlib.sha256(data).hexdigest()}


def capture(connection: Connection, request: Request, observed: Observed, steps: t.Sequence[str]) -> Capture:
    """Bring the domain to its last step, open the console, make the last step, read.

    :raises ConsoleInUse: somebody else reads it.
    :raises TapvirtError: a step or the opening failed; a domain that was started goes on all the same.
    """
    name, domain = request.name, observed.domain
    _steps(connection, request, domain, steps[:-1])
    stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
    try:
        try:
            _open(request, observed, stream)
            readable = threading.Event()
            with libvirt_errors(f"Watching the console of domain {name}"):
                stream.eventAddCallback(_wanted_events(), _wake, readable)
        finally:
            _let_go(name, domain, steps[-1:])
        seen = _read(stream, readable, request, time.monotonic() + request.timeout_seconds)
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            stream.eventRemoveCallback()
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
    if seen.stopped_by == "end" and _goes_on(name, domain):
        return dataclasses.replace(seen, stopped_by="lost")
    return seen


def _steps(connection: Connection, request: Request, domain: Domain, steps: t.Sequence[str]) -> None:
    lifecycle = Lifecycle(connection)
    for step in steps:
        lifecycle.step(request.name, domain, step, Waiting(request.timeout_seconds, None))


def _let_go(name: str, domain: Domain, last: t.Sequence[str]) -> None:
    for step in last:
        with libvirt_errors(f"{DOING[step]} domain {name}"):
            if step == "wakeup":
                domain.pMWakeup()
                continue
            domain.resume()
            # Not waited for "running": a short life may be over already.
            if state_of(domain)[0] == "paused":
                raise NoEffect(f"Domain {name!r} was resumed without an error, but it is still paused.")


def _goes_on(name: str, domain: Domain) -> bool:
    """Tell whether a domain whose console has ended still runs; its end is noted a moment after that of its console."""
    until = time.monotonic() + _END_NOTED_SECONDS
    try:
        while domain.isActive():
            if time.monotonic() > until:
                return True
            time.sleep(_WAIT_SECONDS)
    except libvirt.libvirtError as error:
        # A domain without a definition is gone with its end.
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise LibvirtFailure(f"Asking whether domain {name} still runs after its console ended", error) from error
    return False


def _wanted_events() -> int:
    return int(libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR)


def _wake(stream: t.Any, events: int, readable: threading.Event) -> None:
    # Level-triggered: left on, it would call again and again until the data is read.
    # It may be on its way while the reader, in another thread, has taken it off already.
    with contextlib.suppress(libvirt.libvirtError):
        stream.eventUpdateCallback(0)
    readable.set()


def _open(request: Request, observed: Observed, stream: t.Any) -> None:
    domain, device = observed.domain, observed.device
    doing = f"Opening {device.alias or 'the first console'} of domain {request.name}"
    try:
        if device.channel:
            domain.openChannel(device.alias, stream, libvirt.VIR_DOMAIN_CHANNEL_FORCE if request.force else 0)
            return
        force = libvirt.VIR_DOMAIN_CONSOLE_FORCE if request.force else 0
        try:
            # It also minds readers outside libvirt, who take a lock.
            domain.openConsole(device.alias, stream, libvirt.VIR_DOMAIN_CONSOLE_SAFE | force)
        except libvirt.libvirtError as error:
            # Xen's driver calls the flag an invalid argument.
            if not is_unsupported(error) and error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
                raise
            domain.openConsole(device.alias, stream, force)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            raise TapvirtError(_NO_CONSOLES) from error
        failure = LibvirtFailure(doing, error)
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_FAILED or request.force:
            raise failure from error
        raise ConsoleInUse(
            f"{failure.message} Another reader has the console. Set force: true to take it over.",
            **failure.fields,
        ) from error


def _read(stream: t.Any, readable: threading.Event, request: Request, deadline: float) -> Capture:
    data, plain, unsearched = bytearray(), PlainText(searched=request.until is not None), 0
    while True:
        readable.clear()
        received = _receive(stream, min(_CHUNK_BYTES, request.max_bytes - len(data)))
        stopped_by = None
        if received:
            data += received
            plain.feed(received)
            unsearched += len(received)
            if len(data) >= request.max_bytes:
                stopped_by = "size"
        elif received is not None:
            stopped_by = "end"
        left = deadline - time.monotonic()
        if left <= 0:
            stopped_by = stopped_by or "timeout"
        # A burst is searched once, when all of it has come.
        if request.until is not None and unsearched and (stopped_by or received is None or unsearched >= _CHUNK_BYTES):
            unsearched = 0
            if plain.has(request.until):
                stopped_by = "pattern"
        if stopped_by:
            return Capture(plain.text(), bytes(data), stopped_by)
        if received is None:
            stream.eventUpdateCallback(_wanted_events())
            readable.wait(min(left, _WAIT_SECONDS))


def _receive(stream: t.Any, limit: int) -> bytes | None:
    """Return what has come, null where nothing has yet, nothing at the end of the stream."""
    try:
        received = stream.recv(limit)
    except libvirt.libvirtError:
        return b""  # a hang-up
    return None if received == _NOTHING_NOW else t.cast("bytes", received)
