# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch debug information by build-id from debuginfod servers.

Private to the collection. What a server sends is not trusted: its size is bounded, and a file is used only after it was
read as a whole ELF file with the requested build-id. A download that was interrupted starts again; the servers cannot
continue one.
"""

from __future__ import annotations

import contextlib
import email.message
import functools
import http.client
import os
import re
import shutil
import socket
import ssl
import sys
import time
import typing as t
import urllib.error

from ..._core import command
from ..._core.errors import TapvirtError
from ..._core.web import RedirectRefused, call_in_time, open_url
from ..._core.write import make_directories
from ..._kernel.image.elf import ElfError
from ..._kernel.image.identity import file_build_id
from .debuginfod import Debuginfod, DebuginfoError

#: The program that fetches files where it is installed.
PROGRAM = "debuginfod-find"
#: How long to wait before an interrupted download starts again.
PAUSE_SECONDS = 1.0
_PROBE_SECONDS = 30
_ATTEMPTS = 3
_LATE_HINT = "Set debuginfod.timeout_seconds higher: a server may unpack a large package first."
_BLOCK_BYTES = 1 << 20
_CORRECT = "Correct debuginfod.servers."
_CORRECT_PROXY = "Correct http_proxy or https_proxy of the builder's environment."
_REMOVE = "Remove the server from debuginfod.servers, or report this to its administrator."
_NO_FILE = "/buildid/" + "0" * 40 + "/debuginfo"
# A bound for debuginfod-find of any version: DEBUGINFOD_MAXSIZE came with elfutils 0.186.
_BOUNDED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
os.execvp(sys.argv[2], sys.argv[2:])
"""


class _Failure(Exception):
    """A server did not bring a file: why, as a clause after the server's URL, and what helps, as a sentence."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class _Interrupted(_Failure):
    """The connection broke down in the middle of a download."""


_ERRORS = (OSError, http.client.HTTPException, TapvirtError, _Failure, ValueError)


class Room(t.Protocol):
    """The place for a file."""

    def limit(self) -> int:
        """Return how many bytes a file may have."""

    def free_bytes(self) -> int:
        """Return how many bytes of a file can be written before :meth:`make` is called."""

    def check(self, size: int) -> None:
        """Check that there can be room for a file that claims to have this size, in bytes.

        :raises DebuginfoError: there cannot.
        """

    def make(self, count: int) -> None:
        """Make room for the next ``count`` bytes of a file.

        :raises DebuginfoError: there is not enough.
        """


def answering_servers(source: Debuginfod) -> list[str]:
    """Return the servers that answer as a debuginfod does, in their order."""
    seconds = min(_PROBE_SECONDS, source.timeout_seconds)
    answering = []
    for server in source.servers:
        with contextlib.suppress(TimeoutError, *_ERRORS):
            if call_in_time(seconds, functools.partial(_answers, server), _ERRORS):
                answering.append(server)
    return answering


def _answers(server: str) -> bool:
    """Return whether a server answers to the request for a file that does not exist as a debuginfod does."""
    try:
        open_url(server + _NO_FILE).close()
    except urllib.error.HTTPError as error:
        with error:
            return error.code == 404 and not _is_page(error.headers)
    return False


def fetch(source: Debuginfod, build_id: str, what: str, work: str, room: Room) -> str:
    """Fetch a file of debug information into a directory of its own, and check it; return its path.

    :param what: what it belongs to, such as ``kernel 6.12.1`` or ``module kvm``.
    :param work: a directory that exists and is removed afterwards.
    :raises DebuginfoError: no server brought it within the time, or there is no room for it.
    """
    deadline = time.monotonic() + source.timeout_seconds
    room.check(0)
    path = _find(source, build_id, work, room.free_bytes(), deadline)
    if path is not None:
        return path
    # Where debuginfod-find fails, it gives one reason for all servers: they are asked one by one.
    # Past the deadline, debuginfod-find has asked all of them; otherwise those after a late one are not asked.
    late = _Failure(f"did not send the whole file within {source.timeout_seconds} seconds", _LATE_HINT)
    not_asked = late if time.monotonic() >= deadline else _Failure("was not asked for lack of time", _LATE_HINT)
    failures: list[tuple[str, _Failure]] = []
    for server in source.servers:
        try:
            if time.monotonic() >= deadline:
                raise not_asked
            return _download(server, build_id, os.path.join(work, "file"), room, deadline)
        except TimeoutError:
            failures.append((server, late))
        except _Failure as failure:
            failures.append((server, failure))
    reasons = "; ".join(f"{server} {failure.reason}" for server, failure in failures)
    problem = f"The debug information of {what} (build-id {build_id}) could not be fetched: {reasons}."
    hints = " ".join(dict.fromkeys(failure.hint for _server, failure in failures))
    raise DebuginfoError("debuginfod.servers", list(source.servers), problem, hints)


def _find(source: Debuginfod, build_id: str, work: str, bound: int, deadline: float) -> str | None:
    """Fetch a file by debuginfod-find; return its path, None where that is not installed or brought nothing."""
    if command.find_program(PROGRAM) is None:
        return None
    cache = os.path.join(work, "find")
    make_directories(cache)
    seconds = str(source.timeout_seconds)
    env = {
        "DEBUGINFOD_URLS": " ".join(source.servers),
        # Of its own: a cache remembers which files a server lacks, and removes files while others read them.
        "DEBUGINFOD_CACHE_PATH": cache,
        "DEBUGINFOD_TIMEOUT": seconds,
        "DEBUGINFOD_MAXTIME": seconds,
        "DEBUGINFOD_MAXSIZE": str(bound),
        "HOME": work,
    }
    argv = [sys.executable, "-c", _BOUNDED, str(bound), PROGRAM, "debuginfo", build_id]
    path = os.path.join(cache, build_id, "debuginfo")
    try:
        command.run(argv, max(1.0, deadline - time.monotonic()), env=env, cwd=work)
        _check(path, build_id)
    except (command.CommandTimeout, OSError, _Failure):
        shutil.rmtree(cache, ignore_errors=True)
        return None
    return path


def _download(server: str, build_id: str, path: str, room: Room, deadline: float) -> str:
    """Fetch a file from one server over HTTP; return its path.

    :raises _Failure: the server does not bring it.
    :raises TimeoutError: it takes longer than until the deadline.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        left = max(0.0, deadline - time.monotonic())
        try:
            call_in_time(left, functools.partial(_receive, server, build_id, path, room), _ERRORS)
            break
        except _Interrupted:
            if attempt == _ATTEMPTS:
                raise
        time.sleep(PAUSE_SECONDS)
    _check(path, build_id)
    return path


def _receive(server: str, build_id: str, path: str, room: Room) -> None:
    """Write what a server sends as a file into a new file of that path.

    :raises _Failure: the server refuses it, or sends something else.
    :raises DebuginfoError: there is no room for it.
    """
    with _responding(server, build_id) as response, open(path, "wb") as stream:
        size = _declared_size(response.headers)
        if size is not None:
            room.check(size)
        bound = room.limit() if size is None else size
        received = 0
        while True:
            block = _read_block(response, received, size)
            if not block:
                break
            received += len(block)
            if received > bound:
                raise _Failure(
                    f"sends more than {bound} bytes", "Remove the server, or set debuginfod.max_cache_bytes higher."
                )
            room.make(len(block))
            stream.write(block)
    if size is not None and received < size:
        raise _interrupted(received, size)


def _read_block(response: http.client.HTTPResponse, received: int, size: int | None) -> bytes:
    try:
        return response.read1(_BLOCK_BYTES)
    except (OSError, http.client.HTTPException):
        raise _interrupted(received, size) from None


def _interrupted(received: int, size: int | None) -> _Interrupted:
    of_size = "" if size is None else f" of {size}"
    return _Interrupted(
        f"ended the connection after {received}{of_size} bytes, {_ATTEMPTS} times in a row", "Run the task again."
    )


@contextlib.contextmanager
def _responding(server: str, build_id: str) -> t.Iterator[http.client.HTTPResponse]:
    """Yield the answer to the request for a file.

    :raises _Failure: it is another answer than a file.
    """
    try:
        response = open_url(f"{server}/buildid/{build_id}/debuginfo")
    except RedirectRefused:
        raise _Failure("redirects the request to another protocol", _CORRECT) from None
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error) from None
    except urllib.error.URLError as error:
        raise _unreachable(error.reason) from None
    except (ValueError, http.client.InvalidURL):
        raise _Failure("cannot be asked, because the proxy of the environment is not a URL", _CORRECT_PROXY) from None
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, (ConnectionResetError, http.client.RemoteDisconnected)):
            raise _interrupted(0, None) from None
        raise _Failure("does not answer in HTTP, so it is not a debuginfod server", _CORRECT) from None
    with contextlib.closing(response):
        if _is_page(response.headers):
            raise _Failure("answers with a web page, so it is not a debuginfod server", _CORRECT)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Failure("sends a compressed answer to a request for one that is not", _REMOVE)
        yield response


def _refusal(error: urllib.error.HTTPError) -> _Failure:
    """Return why a server refuses a file, from its answer."""
    if error.code == 404 and not _is_page(error.headers):
        hint = "Add the server of the traced host's distribution to debuginfod.servers, or install the debug package."
        return _Failure("does not have this build-id", hint)
    if error.code == 404:
        return _Failure("answers with a web page (404), so it is not a debuginfod server", _CORRECT)
    if error.code == 407:
        return _Failure("cannot be reached, because the proxy answers with the HTTP status 407", _CORRECT_PROXY)
    if error.code >= 500:
        return _Failure(f"answers with the HTTP status {error.code}", "Run the task again, or use another server.")
    return _Failure(f"refuses the request with the HTTP status {error.code}", _CORRECT)


def _unreachable(reason: object) -> _Failure:
    """Return why a server cannot be reached, from the reason of an URLError."""
    if isinstance(reason, ssl.SSLError):
        detail = getattr(reason, "verify_message", "") or reason.reason or "unknown"
        hint = "Correct debuginfod.servers, or install the certificate of its authority on the builder."
        return _Failure(f"cannot be trusted, because its TLS connection failed ({detail})", hint)
    if isinstance(reason, socket.gaierror):
        hint = "Correct the name in debuginfod.servers, or the builder's DNS."
        return _Failure("has a name that cannot be resolved", hint)
    if isinstance(reason, ConnectionRefusedError):
        hint = "Start debuginfod there, or correct the port in debuginfod.servers."
        return _Failure("refuses connections", hint)
    if isinstance(reason, (ConnectionResetError, http.client.RemoteDisconnected)):
        return _interrupted(0, None)
    if isinstance(reason, str):
        return _Failure("cannot be asked, because the proxy of the environment is no HTTP proxy", _CORRECT_PROXY)
    tunnel = re.match(r"Tunnel connection failed: (\d{3})", str(reason))
    if tunnel is not None:
        detail = f"the proxy answers with the HTTP status {tunnel.group(1)}"
        return _Failure(f"cannot be reached, because {detail}", _CORRECT_PROXY)
    detail = os.strerror(reason.errno) if isinstance(reason, OSError) and reason.errno else "no connection in time"
    hint = "Correct debuginfod.servers, or the builder's network, proxy and firewall."
    return _Failure(f"cannot be reached ({detail})", hint)


def _is_page(headers: email.message.Message) -> bool:
    """Return whether an answer is a web page: a debuginfod sends files, and errors as plain text."""
    return headers.get("Content-Type", "").lower().startswith("text/html")


def _declared_size(headers: email.message.Message) -> int | None:
    """Return how many bytes an answer says it has; an answer in chunks has no Content-Length."""
    for name in ("Content-Length", "X-DEBUGINFOD-SIZE"):
        text = headers.get(name, "")
        if re.match(r"[0-9]{1,18}\Z", text):
            return int(text)
    return None


def _check(path: str, build_id: str) -> None:
    """Check that a file is a whole ELF file with a build-id.

    :raises _Failure: it is not.
    :raises OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    try:
        found = file_build_id(path)
    except ElfError as error:
        kind = "a damaged ELF file" if "damaged" in error.message else "not an ELF file"
        raise _Failure(f"sent {size} bytes that are {kind}", _REMOVE) from None
    if found != build_id:
        other = "without a build-id" if found is None else f"with the build-id {found}"
        raise _Failure(f"sent an ELF file {other}", _REMOVE)
