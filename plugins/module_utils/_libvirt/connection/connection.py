# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to reach libvirt: the binding, the event loop, a connection with a deadline, errors as sentences.

Private to the collection.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import sys
import threading
import time
import typing as t

from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module

from ..._core.errors import (
    MASK,
    URI_PASSWORD,
    InvalidInput,
    TapvirtError,
    did_you_mean,
    mask_secrets,
    nearest_names,
)
from ..._core.packages import read_distribution, remedy
from ..._core.root import Root
from . import api_trace
from .embed import EmbedRoot, embed_root

try:
    import libvirt
except ImportError:
    libvirt = None

__all__ = [
    "CONNECTION_SPEC",
    "INTERPRETERS",
    "Connection",
    "Domain",
    "LibvirtFailure",
    "OpenFailure",
    "check_uri",
    "connected",
    "connected_for_reading",
    "default_if_unsupported",
    "is_unsupported",
    "libvirt",
    "libvirt_errors",
    "require_binding",
    "shown_uri",
    "start_event_loop",
]

# What the binding's objects are; it ships no types.
Connection = t.Any
Domain = t.Any
_Answer = t.TypeVar("_Answer")

# The options that every module with a connection has (documentation fragment _libvirt).
CONNECTION_SPEC = {
    "uri": {"type": "str", "default": "qemu:///system"},
    "connect_timeout_seconds": {"type": "int", "default": 60},
    "trace_api": {"type": "bool", "default": False},
}

# Where a distribution's package of the binding is found.
INTERPRETERS = ("/usr/bin/python3", "/usr/libexec/platform-python", "/usr/local/bin/python3")
_URI = re.compile(r"[a-z][a-z0-9+.-]*:[^\s\x00-\x1f]*\Z")
# The drivers of libvirt (https://libvirt.org/drivers.html).
_DRIVERS = ("bhyve", "ch", "esx", "gsx", "hyperv", "lxc", "openvz", "qemu", "test", "vbox", "vpx", "vz", "xen")
_KEEPALIVE_SECONDS = 5
_KEEPALIVE_COUNT = 3
_WAKE_MILLISECONDS = 200
_END_SECONDS = 2.0


class LibvirtFailure(TapvirtError):
    """Libvirt refused something: what was tried, its own words, its error number.

    ``doing`` begins the message: ``Defining web1``.
    """

    def __init__(self, doing: str, error: t.Any, uri: str = "") -> None:
        text = str(error.get_error_message() or error)
        if uri:  # libvirt repeats one that it cannot parse
            text = text.replace(uri, shown_uri(uri))
        text = mask_secrets(" ".join(text.split()))
        self.code: int = error.get_error_code() or 0
        super().__init__(f"{doing} failed: {text.rstrip('.')} (libvirt error {self.code}).", libvirt_error=self.code)


class OpenFailure(TapvirtError):
    """A connection cannot be opened; ``option`` has its URI, and ``cause`` is why."""

    def __init__(self, cause: TapvirtError, uri: str, option: str) -> None:
        driver, rest = re.split(r"(?=[:+])", uri, maxsplit=1)
        likely = [] if driver in _DRIVERS else nearest_names(driver, _DRIVERS, 1)
        candidates = [shown_uri(name + rest) for name in likely]
        self._row = {**cause.row(), "option": option, "value": shown_uri(uri), "candidates": candidates}
        super().__init__(cause.message + did_you_mean(candidates), **cause.fields)

    def row(self) -> dict[str, t.Any]:
        """Return the ``error`` of a result, with the URI's option."""
        return self._row


def require_binding() -> None:
    """Make sure that libvirt's binding is there; starts the module again under the Python that owns it if need be.

    :raises TapvirtError: no Python of this host has it.
    """
    if libvirt is not None:
        return
    # Only a module as Ansible sends it can be started again.
    if hasattr(sys.modules["__main__"], "_module_fqn") and not has_respawned():
        interpreter = probe_interpreters_for_module(list(INTERPRETERS), "libvirt")
        if interpreter is not None:
            respawn_module(interpreter)
    raise TapvirtError(
        f"No Python of this host can import 'libvirt' (looked at this module's and at {', '.join(INTERPRETERS)}). "
        f"What helps: {remedy('libvirt', read_distribution(Root()))}."
    )


@contextlib.contextmanager
def libvirt_errors(doing: str) -> t.Iterator[None]:
    """Turn libvirt's exceptions into ``LibvirtFailure``; ``doing`` names the step and the item: ``Defining web1``."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise LibvirtFailure(doing, error) from error


def is_unsupported(error: t.Any) -> bool:
    """Tell whether an error says that the driver does not know at all what it was asked."""
    return error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED)


def default_if_unsupported(ask: t.Callable[[], _Answer], default: _Answer) -> _Answer:
    """Return an answer, or the default where the driver does not know the thing at all."""
    try:
        return ask()
    except libvirt.libvirtError as error:
        if is_unsupported(error):
            return default
        raise


def shown_uri(uri: str) -> str:
    """Return a URI as it may be shown: without a password."""
    return re.sub(URI_PASSWORD, rf"\1:{MASK}@", uri)


def password_of(uri: str) -> str | None:
    """Return the password that a URI has."""
    found = re.search(URI_PASSWORD, uri)
    return found[2] if found else None


def check_uri(uri: str, option: str = "uri") -> EmbedRoot | None:
    """Check a user's URI; return the root directory where the URI is one of the embedded driver.

    :param option: the option that has the URI.
    :raises InvalidInput: not a URI, or one of the embedded driver without a usable root; the password is masked.
    """
    if not _URI.match(uri):
        problem = "A libvirt URI begins with a driver and a colon, and has no space."
        hint = "Use a URI such as qemu:///system, qemu:///session or test:///default."
        raise InvalidInput(option, shown_uri(uri), problem, hint)
    try:
        return embed_root(uri)
    except InvalidInput as error:
        raise InvalidInput(option, shown_uri(uri), error.problem, error.hint) from error


@functools.lru_cache(maxsize=None)
def start_event_loop() -> None:
    """Run libvirt's event loop in a thread: the embedded driver, streams, events and keep-alive need it.

    Must be called before the first connection of the process is opened.
    """
    libvirt.registerErrorHandler(_ignore, None)
    libvirt.virEventRegisterDefaultImpl()
    ending = threading.Event()
    # The timer wakes the loop, so that it sees the end of the process: a thread that is inside libvirt when the
    # interpreter goes crashes it now and then.
    timer = libvirt.virEventAddTimeout(_WAKE_MILLISECONDS, _ignore_timer, None)
    loop = threading.Thread(target=_run_events, args=(ending,), name="libvirt-events", daemon=True)
    loop.start()
    atexit.register(_end_events, loop, ending, timer)


def _end_events(loop: threading.Thread, ending: threading.Event, timer: int) -> None:
    ending.set()
    libvirt.virEventUpdateTimeout(timer, 0)  # wakes the loop at once
    loop.join(_END_SECONDS)


def _ignore_timer(_timer: int, _context: t.Any) -> None:
    return


def _ignore(_context: t.Any, _error: t.Any) -> None:
    # The binding prints every error on stderr by default, those that are expected too; they are raised anyway.
    return


def _run_events(ending: threading.Event) -> None:
    while not ending.is_set():
        libvirt.virEventRunDefaultImpl()


@contextlib.contextmanager
def connected(uri: str, timeout_seconds: float, read_only: bool = False, option: str = "uri") -> t.Iterator[Connection]:
    """Open a connection, yield it, close it.

    One process at a time may use a root of the embedded driver; others of ours wait for it until the deadline.

    :param option: the option that has the URI.

    :raises InvalidInput: the URI is none.
    :raises TapvirtError: nobody answered before the deadline, or libvirt refused; names the URI without its password.
    """
    root = check_uri(uri, option)
    deadline = time.monotonic() + timeout_seconds
    start_event_loop()
    if root:
        root.acquire(deadline)
    started = time.monotonic()
    connection = _open_before(uri, deadline, read_only, option)
    connection = api_trace.opened(connection, shown_uri(uri), time.monotonic() - started)
    try:
        if root:
            _wait_for_reconnect(connection)
        else:
            _keep_alive(connection)
        yield connection
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


@contextlib.contextmanager
def connected_for_reading(uri: str, timeout_seconds: float, writing: bool = False) -> t.Iterator[Connection]:
    """Open a connection for looking only: no domain is where a root of the embedded driver is not there yet.

    A console can be opened, and a guest's agent asked, by a connection that may write only.

    :raises TapvirtError: as ``connected`` does, and for a root that does not exist.
    """
    root = check_uri(uri)
    if root is not None and root.is_new():
        raise TapvirtError(f"The root {root.path} of the embedded driver is new, so it has no domains.")
    with connected(uri, timeout_seconds, read_only=not writing) as connection:
        yield connection


def _open_before(uri: str, deadline: float, read_only: bool, option: str) -> Connection:
    timeout_seconds = max(deadline - time.monotonic(), 0.01)
    outcome: list[t.Any] = []
    thread = threading.Thread(target=_open, args=(uri, read_only, outcome), daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if not outcome:
        message = f"Opening {shown_uri(uri)} failed: no answer within {round(timeout_seconds, 1):g} s."
        raise OpenFailure(TapvirtError(message), uri, option)
    if isinstance(outcome[0], libvirt.libvirtError):
        raise OpenFailure(LibvirtFailure(f"Opening {shown_uri(uri)}", outcome[0], uri), uri, option) from outcome[0]
    return outcome[0]


def _open(uri: str, read_only: bool, outcome: list[t.Any]) -> None:
    try:
        outcome.append(libvirt.openReadOnly(uri) if read_only else libvirt.open(uri))
    except libvirt.libvirtError as error:
        outcome.append(error)


def _keep_alive(connection: Connection) -> None:
    # Only remote connections know it; for the others there is nothing to lose.
    with contextlib.suppress(libvirt.libvirtError):
        connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)


def _wait_for_reconnect(connection: Connection) -> None:
    """Wait until the embedded driver has met its running guests again.

    It does so in threads of its own after the open, and says "running" of a dead guest meanwhile. A question that the
    guest's monitor has to answer waits for that.
    """
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):
            domain.memoryStats()
