# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small ELF files with a build-id, a real debuginfod that serves them, and HTTP servers that do it wrong."""

from __future__ import annotations

import contextlib
import http.server
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import time
import typing as t
import urllib.error
import urllib.request

import pytest

KERNEL_ID = "3bde3ce03156c39bec3310fbdd6bd14bfbefb62e"
MODULE_ID = "bdf16e8f4359efc9e9f854e651c18b49829ffdbd"
OTHER_ID = "00bfe4954e8f00ce289c88d0dd0e1c161cdf501f"
needs_debuginfod = pytest.mark.skipif(shutil.which("debuginfod") is None, reason="debuginfod is not installed")


def compile_elf(path: pathlib.Path, build_id: str | None, source: str = "int f(int n) { return n + 1; }\n") -> bytes:
    """Make an ELF file with debug information and, unless it is None, this build-id; return its content."""
    option = "none" if build_id is None else "0x" + build_id
    argv = ["gcc", "-g", "-shared", "-nostdlib", "-x", "c", "-o", str(path), f"-Wl,--build-id={option}", "-"]
    subprocess.run(argv, input=source, text=True, check=True, capture_output=True)
    return path.read_bytes()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def real_debuginfod(files: pathlib.Path, work: pathlib.Path, known: str) -> t.Iterator[str]:
    """Run Debian's debuginfod over a directory, on the loopback interface; yield its URL once it knows a build-id."""
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("DEBUGINFOD_")}
    env.update(HOME=str(work), DEBUGINFOD_CACHE_PATH=str(work / "cache"))
    argv = ["debuginfod", "-d", ":memory:", "-F", "-p", str(port), "-t", "0", str(files)]
    with (work / "debuginfod.log").open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log, env=env) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(f"{url}/buildid/{known}/debuginfo", server)
            yield url
        finally:
            server.terminate()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(url).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"debuginfod does not serve {url}")


class WrongServer:
    """An HTTP server that answers each request by a function.

    ``requests`` are the paths that were asked for, ``agents`` the programs that did.
    """

    def __init__(self, answer: t.Callable[[http.server.BaseHTTPRequestHandler, int], None]) -> None:
        requests: list[str] = []
        agents: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                requests.append(self.path)
                agents.append(self.headers["User-Agent"])
                self.close_connection = True
                with contextlib.suppress(ConnectionError):
                    answer(self, len(requests))

            def log_message(self, *_args: t.Any, **_options: t.Any) -> None:
                """Write no log."""

        self.requests = requests
        self.agents = agents
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> WrongServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def send(
    request: http.server.BaseHTTPRequestHandler,
    content: bytes,
    status: int = 200,
    kind: str = "application/octet-stream",
    size: int | None = None,
) -> None:
    """Send an answer; ``size`` is what it claims to have."""
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(content) if size is None else size))
    request.end_headers()
    request.wfile.write(content)
