# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to send a request over HTTP to a server that is not trusted, and to wait for it no longer than allowed.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import threading
import typing as t
import urllib.error
import urllib.parse
import urllib.request

#: How long to wait for a connection.
CONNECT_SECONDS = 15


class _Connection(http.client.HTTPConnection):
    """Connects within a short time, whatever the time for the answer is."""

    def connect(self) -> None:
        with _short_timeout(self):
            super().connect()


class _TlsConnection(http.client.HTTPSConnection):
    """The same over TLS."""

    def connect(self) -> None:
        with _short_timeout(self):
            super().connect()


@contextlib.contextmanager
def _short_timeout(connection: http.client.HTTPConnection) -> t.Iterator[None]:
    seconds, connection.timeout = connection.timeout, CONNECT_SECONDS
    try:
        yield
    finally:
        connection.timeout = seconds
    connection.sock.settimeout(seconds)


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TlsConnection, req)


class RedirectRefused(urllib.error.URLError):
    """A server redirects to another protocol, or from HTTPS to HTTP."""


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    def http_error_302(
        self, req: urllib.request.Request, fp: t.Any, code: int, msg: str, headers: http.client.HTTPMessage
    ) -> t.Any:
        # Parsed as the base class does it, which then allows FTP and the way from HTTPS to HTTP.
        # What a server sends with a redirection may have no end, and the base class would read all of it.
        fp.close()
        try:
            target = urllib.parse.urljoin(req.full_url, headers.get("location") or headers.get("uri") or "")
        except ValueError as error:
            raise RedirectRefused("redirection refused") from error
        allowed = ("https",) if urllib.parse.urlsplit(req.full_url).scheme == "https" else ("http", "https")
        if urllib.parse.urlsplit(target).scheme not in allowed:
            raise RedirectRefused("redirection refused")
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


HANDLERS = (
    urllib.request.ProxyHandler,
    _HttpHandler,
    _HttpsHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPErrorProcessor,
    _RedirectHandler,
    urllib.request.UnknownHandler,
)


def open_url(url: str, seconds: float | None = None) -> http.client.HTTPResponse:
    """Send a GET request over HTTP or HTTPS, through the environment's proxy; return the answer, to be closed.

    No redirection leads to another protocol, nor from HTTPS to HTTP. ``seconds`` is the time for each read, None for no
    bound.

    :raises RedirectRefused: the answer is a redirection to there.
    :raises urllib.error.HTTPError: the status is not one of success.
    :raises urllib.error.URLError: no connection.
    :raises OSError: the connection broke down.
    :raises http.client.HTTPException: the answer is not HTTP.
    :raises ValueError: a proxy of the environment is not a URL.
    """
    opener = urllib.request.OpenerDirector()
    for handler in HANDLERS:
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "tapvirt.host"})
    return t.cast("http.client.HTTPResponse", opener.open(request, timeout=seconds))


Found = t.TypeVar("Found")


def call_in_time(seconds: float, call: t.Callable[[], Found], errors: tuple[type[Exception], ...]) -> Found:
    """Return what a call returns, or raise what it raises of ``errors``.

    A call that is late is left to its thread, which ends with this process. Timeouts of sockets are not enough: a
    server may send a byte now and then.

    :raises TimeoutError: it takes longer.
    """
    found: list[Found] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(call())
        except errors as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError
    return found[0]
