# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debug information by build-id: from a real debuginfod, and from servers that do everything wrong."""

from __future__ import annotations

import contextlib
import errno
import gzip
import http.client
import http.server
import io
import os
import pathlib
import socket
import stat
import threading
import time
import typing as t
import urllib.request

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core import web
from ansible_collections.tapvirt.host.plugins.module_utils._core.disk import disk_errors
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.lock import LockTimeout
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import debuginfo, download
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.debuginfo import (
    DebugCache,
    DebugInfo,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.debuginfod import (
    Debuginfod,
    DebuginfoError,
    read_debuginfod,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import Store
from ansible_collections.tapvirt.host.tests.unit.support.systemtap.debuginfod_servers import (
    KERNEL_ID,
    MODULE_ID,
    OTHER_ID,
    WrongServer,
    compile_elf,
    free_port,
    needs_debuginfod,
    real_debuginfod,
    send,
)

COLLECTION = pathlib.Path(__file__).parents[5]
RELEASE = "6.12.117+deb13-cloud-amd64"
DAY = 86400
PAGE = b"<html>It works!</html>"
Request = http.server.BaseHTTPRequestHandler


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """ELF files by build-id, and one without."""
    folder = tmp_path_factory.mktemp("elf")
    return {key or "": compile_elf(folder / (key or "none"), key) for key in (KERNEL_ID, MODULE_ID, OTHER_ID, None)}


@pytest.fixture(scope="module")
def real(elf: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[str]:
    """The URL of a real debuginfod with the files of a kernel and of a module."""
    top = tmp_path_factory.mktemp("served")
    (top / "files").mkdir()
    for key in (KERNEL_ID, MODULE_ID):
        (top / "files" / key).write_bytes(elf[key])
    with real_debuginfod(top / "files", top, MODULE_ID) as url:
        yield url


@pytest.fixture(params=["debuginfod-find", "http"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With debuginfod-find, and as on a builder that has no such program."""
    if request.param == "http":
        without_find(monkeypatch)
    return str(request.param)


def without_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PROGRAM", "debuginfod-find-is-not-installed")
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)


def source(*servers: str, timeout: int = 20, size: int = 10 << 30, age: int = 30 * DAY) -> Debuginfod:
    return Debuginfod(servers, timeout, size, age)


def kernel_info(where: Debuginfod, **modules: str) -> DebugInfo:
    return DebugInfo(KERNEL_ID, modules, True, where)


def hold(store: Store, where: Debuginfod, **modules: str) -> debuginfo.DebugFiles:
    """Have a build use the debug information; return its files as they are afterwards."""
    with DebugCache(store, where).files(kernel_info(where, **modules), RELEASE) as files:
        return files


def failure(store: Store, where: Debuginfod) -> DebuginfoError:
    with pytest.raises(DebuginfoError) as caught:
        hold(store, where)
    assert cached_files(store) == [], "half a file was kept"
    return caught.value


def cached_files(store: Store) -> list[str]:
    """The files of a store's cache; what a download needed is gone."""
    cache = pathlib.Path(store.directory) / ".debuginfo"
    assert not (cache / "work").exists() or not list((cache / "work").iterdir())
    return sorted(path.name for path in (cache / "files").iterdir()) if (cache / "files").exists() else []


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Store:
    return Store(str(tmp_path / "store"), 5)


@needs_debuginfod
def test_a_file_comes_once_and_stays(
    store: Store, real: str, elf: dict[str, bytes], way: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(home / "cache"))
    monkeypatch.setenv("DEBUGINFOD_URLS", "http://127.0.0.1:1")
    cache = DebugCache(store, source(real))
    info = kernel_info(source(real), kvm=MODULE_ID)
    assert cache.missing(info, RELEASE) == {
        KERNEL_ID: f"the kernel {RELEASE}",
        MODULE_ID: f"the module kvm of {RELEASE}",
    }
    with cache.files(info, RELEASE) as files:
        assert pathlib.Path(files.vmlinux).read_bytes() == elf[KERNEL_ID]
        assert pathlib.Path(files.modules["kvm"]).read_bytes() == elf[MODULE_ID]
        status = os.stat(files.vmlinux)
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o644, os.geteuid())
    assert cache.fetched == {KERNEL_ID, MODULE_ID} and cache.missing(info, RELEASE) == {}
    assert cached_files(store) == [KERNEL_ID, MODULE_ID] and list(home.iterdir()) == []
    # The second build asks nobody.
    again = DebugCache(store, source("http://127.0.0.1:1"))
    with again.files(kernel_info(source("http://127.0.0.1:1")), RELEASE):
        assert again.fetched == set()


@needs_debuginfod
def test_debuginfod_find_goes_first_where_it_is_installed(store: Store, elf: dict[str, bytes], way: str) -> None:
    with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID])) as server:
        hold(store, source(server.url))
    assert [agent.partition("/")[0] for agent in server.agents] == ["elfutils" if way != "http" else "tapvirt.host"]


@needs_debuginfod
def test_a_real_server_without_the_build_id(store: Store, real: str, way: str) -> None:
    info = DebugInfo(OTHER_ID, {}, True, source(real))
    with pytest.raises(DebuginfoError) as caught, DebugCache(store, source(real)).files(info, RELEASE):
        raise AssertionError
    problem = f"The debug information of the kernel {RELEASE} (build-id {OTHER_ID}) could not be fetched: "
    hint = "Add the server of the traced host's distribution to debuginfod.servers, or install the debug package."
    assert caught.value.message == f"{problem}{real} does not have this build-id. {hint}"
    page = COLLECTION.joinpath("docs/docsite/rst/guide_builders.rst").read_text(encoding="utf-8")
    assert caught.value.message.replace(real, "https://debuginfod.example.net") in " ".join(page.split())
    assert caught.value.row() == {
        "option": "debuginfod.servers",
        "value": [real],
        "problem": f"{problem}{real} does not have this build-id.",
        "hint": hint,
        "candidates": [],
    }


@needs_debuginfod
def test_the_second_server_helps_where_the_first_does_not(store: Store, real: str, way: str) -> None:
    with WrongServer(lambda request, _number: send(request, PAGE, 404, "text/html")) as page:
        hold(store, source(page.url, f"http://127.0.0.1:{free_port()}", real))
    assert cached_files(store) == [KERNEL_ID]


@needs_debuginfod
def test_servers_that_answer_as_a_debuginfod(real: str) -> None:
    with WrongServer(lambda request, _number: send(request, PAGE, 404, "text/html")) as page, WrongServer(
        lambda request, _number: send(request, PAGE, 200, "text/html")
    ) as welcome, WrongServer(lambda _request, _number: time.sleep(30)) as silent:
        servers = (page.url, real, welcome.url, "http://nowhere.invalid", silent.url, f"http://127.0.0.1:{free_port()}")
        assert download.answering_servers(source(*servers, timeout=2)) == [real]


def test_a_server_that_refuses_connections(store: Store, way: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    text = failure(store, source(url)).message
    assert text.endswith(
        f": {url} refuses connections. Start debuginfod there, or correct the port in debuginfod.servers."
    )


def test_a_name_that_nobody_knows(store: Store, way: str) -> None:
    text = failure(store, source("http://nowhere.invalid")).message
    assert "http://nowhere.invalid has a name that cannot be resolved. Correct the name in" in text


def test_several_servers_have_a_reason_each_and_a_hint_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    without_find(monkeypatch)
    ports = [free_port(), free_port()]
    text = failure(store, source(*(f"http://127.0.0.1:{port}" for port in ports), "http://nowhere.invalid")).message
    assert text.count("refuses connections") == 2 and text.count("Start debuginfod there") == 1
    assert text.count("cannot be resolved") == 1 and text.endswith("or the builder's DNS.")


# What a server answers, and what the message says of it.
WRONG = {
    "a page that is not found": (lambda request: send(request, PAGE, 404, "text/html; charset=utf-8"), "not a debug"),
    "a page": (lambda request: send(request, PAGE, 200, "text/html"), "answers with a web page, so it is not"),
    "something that is not HTTP": (lambda request: request.wfile.write(b"SSH-2.0-x\r\n"), "does not answer in HTTP"),
    "an error": (lambda request: send(request, b"", 503, "text/plain"), "answers with the HTTP status 503"),
    "a refusal": (
        lambda request: send(request, b"", 403, "text/plain"),
        "refuses the request with the HTTP status 403",
    ),
    "not an ELF file": (lambda request: send(request, b"x" * 1000), "sent 1000 bytes that are not an ELF file"),
    "nothing": (lambda request: send(request, b""), "sent 0 bytes that are not an ELF file"),
}


@pytest.mark.parametrize("answer", WRONG)
def test_a_wrong_server(store: Store, way: str, answer: str) -> None:
    reply, words = WRONG[answer]
    with WrongServer(lambda request, _number: reply(request)) as server:
        text = failure(store, source(server.url)).message
    assert f"{server.url} " in text and words in text, text


@pytest.mark.parametrize("location", ["file:///etc/passwd", "FILE:/etc/passwd", "data:,x", "https:/x\ty", "//"])
def test_a_redirection_to_no_server_is_not_followed(
    store: Store, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    without_find(monkeypatch)

    def redirect(request: Request, _number: int) -> None:
        request.send_response(302)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with WrongServer(redirect) as server:
        text = failure(store, source(server.url, timeout=5)).message
    assert f"could not be fetched: {server.url} " in text and "passwd" not in text


def test_a_redirection_in_a_circle_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    without_find(monkeypatch)

    def redirect(request: Request, _number: int) -> None:
        request.send_response(302)
        request.send_header("Location", request.path)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with WrongServer(redirect) as server:
        text = failure(store, source(server.url, timeout=10)).message
        assert len(server.requests) < 100
    assert f"{server.url} refuses the request with the HTTP status 302" in text


def test_a_redirection_from_https_to_http_is_refused() -> None:
    request = urllib.request.Request("https://debuginfod.example.net/buildid/00/debuginfo")
    request.timeout = 5
    opener = urllib.request.OpenerDirector()
    handler = next(kind for kind in web.HANDLERS if issubclass(kind, urllib.request.HTTPRedirectHandler))()
    opener.add_handler(handler)
    for location, refused in (("http://debuginfod.example.net/x", True), ("https://other.example.net/x", False)):
        headers = http.client.HTTPMessage()
        headers["Location"] = location
        if refused:
            with pytest.raises(web.RedirectRefused):
                handler.http_error_302(request, io.BytesIO(), 302, "Found", headers)
        else:
            # Nothing opens HTTPS here: the opener was asked, and has no handler.
            assert handler.http_error_302(request, io.BytesIO(), 302, "Found", headers) is None


def test_what_comes_with_a_redirection_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    without_find(monkeypatch)
    sent = []

    def redirect(request: Request, _number: int) -> None:
        request.send_response(302)
        request.send_header("Location", "http://[b/")
        request.end_headers()
        with contextlib.suppress(OSError):
            for _number in range(200):
                request.wfile.write(b"x" * (1 << 20))
                sent.append(1)

    with WrongServer(redirect) as server:
        failure(store, source(server.url, timeout=10))
    assert len(sent) < 20


def test_a_redirection_to_another_server_is_followed(
    store: Store, elf: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_find(monkeypatch)
    with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID])) as mirror:

        def redirect(request: Request, _number: int) -> None:
            request.send_response(307)
            request.send_header("Location", mirror.url + request.path)
            request.send_header("Content-Length", "0")
            request.end_headers()

        with WrongServer(redirect) as server:
            hold(store, source(server.url))
    assert cached_files(store) == [KERNEL_ID]


def test_a_compressed_answer_is_refused_by_its_name(
    store: Store, elf: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_find(monkeypatch)
    content = gzip.compress(elf[KERNEL_ID])

    def answer(request: Request, _number: int) -> None:
        assert request.headers["Accept-Encoding"] == "identity"
        request.send_response(200)
        request.send_header("Content-Encoding", "gzip")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    with WrongServer(answer) as server:
        assert f"{server.url} sends a compressed answer" in failure(store, source(server.url)).message


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("foo://127.0.0.1:1", "the proxy of the environment is no HTTP proxy"),
        ("http:/127.0.0.1", "the proxy of the environment is not a URL"),
        ("http://127.0.0.1:port", "the proxy of the environment is not a URL"),
        ("http://me:secret@127.0.0.1:1", "refuses connections"),
    ],
)
def test_a_wrong_proxy_is_said_without_its_password(
    store: Store, monkeypatch: pytest.MonkeyPatch, proxy: str, words: str
) -> None:
    without_find(monkeypatch)
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    text = failure(store, source("http://debuginfod.example.net")).message
    assert f"http://debuginfod.example.net {'cannot be asked, because ' if 'proxy' in words else ''}{words}" in text
    assert "secret" not in text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password(store: Store, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    without_find(monkeypatch)

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_error(407, "\x1b[2J")

        def do_GET(self) -> None:
            self.do_CONNECT()

        def log_message(self, *_args: t.Any, **_options: t.Any) -> None:
            """Write no log."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        error = failure(store, source(f"{scheme}://debuginfod.example.net"))
        proxy.shutdown()
    assert error.message.endswith(
        f"{scheme}://debuginfod.example.net cannot be reached, because the proxy answers with the HTTP status 407. "
        "Correct http_proxy or https_proxy of the builder's environment."
    )


def test_a_redirection_to_another_protocol_is_not_followed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    without_find(monkeypatch)
    with socket.socket() as ftp:
        ftp.bind(("127.0.0.1", 0))
        ftp.listen()
        ftp.setblocking(False)

        def redirect(request: Request, _number: int) -> None:
            request.send_response(302)
            request.send_header("Location", f"ftp://127.0.0.1:{ftp.getsockname()[1]}/file")
            request.end_headers()

        with WrongServer(redirect) as server:
            text = failure(store, source(server.url, timeout=5)).message
        assert f"{server.url} redirects the request to another protocol. Correct" in text, text
        with pytest.raises(BlockingIOError):
            ftp.accept()


@pytest.mark.parametrize(
    ("key", "words"), [(OTHER_ID, f"an ELF file with the build-id {OTHER_ID}"), ("", "an ELF file without a build-id")]
)
def test_a_file_with_another_build_id(store: Store, elf: dict[str, bytes], way: str, key: str, words: str) -> None:
    with WrongServer(lambda request, _number: send(request, elf[key])) as server:
        assert f"{server.url} sent {words}. Remove the server" in failure(store, source(server.url)).message


def test_half_a_file_is_refused_though_the_answer_is_whole(store: Store, elf: dict[str, bytes], way: str) -> None:
    half = elf[KERNEL_ID][:-200]
    with WrongServer(lambda request, _number: send(request, half)) as server:
        assert f"sent {len(half)} bytes that are a damaged ELF file" in failure(store, source(server.url)).message


def test_an_interrupted_download_starts_again(
    store: Store, elf: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_find(monkeypatch)
    content = elf[KERNEL_ID]

    def answer(request: Request, number: int) -> None:
        send(request, content if number == 3 else content[: number * 1000], size=len(content))

    with WrongServer(answer) as server:
        files = hold(store, source(server.url))
        assert len(server.requests) == 3
    assert pathlib.Path(files.vmlinux).read_bytes() == content


def test_a_download_that_is_always_interrupted(store: Store, elf: dict[str, bytes], way: str) -> None:
    size = len(elf[KERNEL_ID])
    with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID][:1000], size=size)) as server:
        text = failure(store, source(server.url)).message
    assert text.endswith(
        f"{server.url} ended the connection after 1000 of {size} bytes, 3 times in a row. Run the task again."
    )


def test_an_answer_in_chunks_that_ends_too_early(store: Store, elf: dict[str, bytes], way: str) -> None:
    def answer(request: Request, _number: int) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"400\r\n" + elf[KERNEL_ID][:0x400] + b"\r\n400\r\nabc")

    with WrongServer(answer) as server:
        assert "ended the connection after 10" in failure(store, source(server.url)).message


def test_a_server_that_sends_a_byte_now_and_then_has_no_more_than_the_time(
    store: Store, elf: dict[str, bytes], way: str
) -> None:
    def drip(request: Request, _number: int) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        for _second in range(100):
            request.wfile.write(b"x")
            time.sleep(0.1)

    began = time.monotonic()
    with WrongServer(drip) as server:
        text = failure(store, source(server.url, timeout=2)).message
    assert time.monotonic() - began < 8
    assert f"{server.url} did not send the whole file within 2 seconds. Set debuginfod.timeout_seconds higher" in text


@needs_debuginfod
def test_a_server_after_a_late_one_is_not_asked_over_http(store: Store, real: str, way: str) -> None:
    with WrongServer(lambda _request, _number: time.sleep(30)) as silent:
        if way == "debuginfod-find":
            hold(store, source(silent.url, real, timeout=2))  # it asks all of them at once
            return
        text = failure(store, source(silent.url, real, timeout=2)).message
    assert f"{silent.url} did not send the whole file within 2 seconds; {real} was not asked for lack of time." in text


def test_headers_without_end_take_no_more_than_the_time(store: Store, way: str) -> None:
    def drip(request: Request, _number: int) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(90):
            request.wfile.write(f"X-{number}: x\r\n".encode())
            time.sleep(0.1)

    began = time.monotonic()
    with WrongServer(drip) as server:
        assert "within 2 seconds" in failure(store, source(server.url, timeout=2)).message
    assert time.monotonic() - began < 8


def test_a_stream_without_end_is_cut_at_the_bound(store: Store, way: str) -> None:
    def endless(request: Request, _number: int) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for _block in range(1000):
            request.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    with WrongServer(endless) as server:
        text = failure(store, source(server.url, size=1 << 20)).message
    assert f"{server.url} sends more than {1 << 20} bytes." in text


def test_a_file_larger_than_the_cache(store: Store, elf: dict[str, bytes], way: str) -> None:
    size = len(elf[KERNEL_ID])
    with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID])) as server:
        error = failure(store, source(server.url, size=size - 1))
    assert error.message == (
        f"The debug information of the kernel {RELEASE} has {size} bytes, and debuginfod.max_cache_bytes is {size - 1}."
        f" Set it to {size} or more."
    )
    assert error.row()["option"] == "debuginfod.max_cache_bytes"


def test_a_disk_that_is_too_small_is_seen_before_the_download(
    store: Store, elf: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debuginfo, "RESERVE_BYTES", 1 << 60)
    with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID])) as server:
        error = failure(store, source(server.url))
        assert server.requests == []
    assert f"needs hundreds of MiB, and the file system of {store.directory} has " in error.message
    assert error.message.endswith("Free some space there, or set store to a directory of a larger file system.")
    assert error.row()["option"] == "store"


def test_a_file_that_claims_more_than_the_disk_has_is_not_received(store: Store, way: str) -> None:
    claimed = 1 << 50
    with WrongServer(lambda request, _number: send(request, b"x", size=claimed)) as server:
        text = failure(store, source(server.url, size=1 << 60)).message
    assert f"needs {claimed >> 20} MiB, and the file system of {store.directory} has " in text


def fill(store: Store, elf: dict[str, bytes], key: str, days: float) -> pathlib.Path:
    """Put a file into a store's cache that was last used so many days ago."""
    path = pathlib.Path(store.directory) / ".debuginfo" / "files" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(elf[key])
    used = time.time() - days * DAY
    os.utime(path, (used, used))
    return path


def test_files_that_nobody_used_go_and_so_does_what_a_killed_download_left(store: Store, elf: dict[str, bytes]) -> None:
    fill(store, elf, OTHER_ID, 31)
    fill(store, elf, MODULE_ID, 29)
    fill(store, elf, KERNEL_ID, 31)
    half = pathlib.Path(store.directory) / ".debuginfo" / "work" / OTHER_ID
    half.mkdir(parents=True)
    (half / "file").write_bytes(b"half")
    hold(store, source("http://127.0.0.1:1"))
    # The kernel's file is used now.
    assert cached_files(store) == sorted([KERNEL_ID, MODULE_ID])
    assert time.time() - os.stat(hold(store, source("http://127.0.0.1:1")).vmlinux).st_mtime < 60


def test_the_longest_unused_files_make_room(store: Store, elf: dict[str, bytes], way: str) -> None:
    for key, days in ((OTHER_ID, 2), (MODULE_ID, 1)):
        fill(store, elf, key, days)
    bound = len(elf[MODULE_ID]) + len(elf[KERNEL_ID])
    with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID])) as server:
        hold(store, source(server.url, size=bound))
    assert cached_files(store) == sorted([KERNEL_ID, MODULE_ID])


def test_a_mere_claim_removes_no_other_file(store: Store, elf: dict[str, bytes], way: str) -> None:
    for key in (OTHER_ID, MODULE_ID):
        fill(store, elf, key, 1)
    bound = len(elf[MODULE_ID]) + len(elf[OTHER_ID])
    with WrongServer(lambda request, _number: send(request, b"x", size=bound)) as server, pytest.raises(DebuginfoError):
        hold(store, source(server.url, size=bound))
    assert cached_files(store) == sorted([MODULE_ID, OTHER_ID])


def test_files_make_room_on_a_full_disk_as_they_come(
    store: Store, elf: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_find(monkeypatch)
    for key, days in ((OTHER_ID, 2), (MODULE_ID, 1)):
        fill(store, elf, key, days)
    capacity = len(elf[OTHER_ID]) + len(elf[MODULE_ID]) + 100

    def free_bytes(cache: DebugCache) -> int:
        work = pathlib.Path(store.directory) / ".debuginfo" / "work"
        written = sum(path.stat().st_size for path in work.rglob("file"))
        return capacity - written - sum(size for _used, _key, size in cache.entries())

    monkeypatch.setattr(DebugCache, "free_bytes", free_bytes)
    with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID])) as server:
        hold(store, source(server.url))
        assert cached_files(store) == sorted([KERNEL_ID, MODULE_ID])
        capacity = 100 + len(elf[MODULE_ID])
        for key in (KERNEL_ID, MODULE_ID):
            DebugCache(store, source(server.url)).remove(key)
        fill(store, elf, MODULE_ID, 1)
        with store.locked(f"debuginfo-{MODULE_ID}", shared=True), pytest.raises(DebuginfoError) as caught:
            hold(store, source(server.url))
    assert "needs hundreds of MiB, and the file system of" in caught.value.message
    assert cached_files(store) == [MODULE_ID]


def test_a_lower_bound_is_kept_by_the_next_build(store: Store, elf: dict[str, bytes]) -> None:
    for key, days in ((OTHER_ID, 2), (MODULE_ID, 1), (KERNEL_ID, 3)):
        fill(store, elf, key, days)
    hold(store, source("http://127.0.0.1:1", size=len(elf[KERNEL_ID]) + len(elf[MODULE_ID])))
    assert cached_files(store) == sorted([KERNEL_ID, MODULE_ID])
    # What the build uses stays.
    hold(store, source("http://127.0.0.1:1", size=1))
    assert cached_files(store) == [KERNEL_ID]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    store: Store, elf: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_find(monkeypatch)

    class Full(io.BytesIO):
        def write(self, _data: t.Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "open", lambda *_args: Full(), raising=False)
    sentence = "its file system has no space left. Nothing"
    with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID])) as server, pytest.raises(
        TapvirtError, match=sentence
    ), disk_errors("Nothing."):
        hold(store, source(server.url))
    assert cached_files(store) == []


def test_links_in_the_place_of_a_file_are_not_followed(
    store: Store, elf: dict[str, bytes], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_find(monkeypatch)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(elf[KERNEL_ID])
    path = fill(store, elf, KERNEL_ID, 0)
    path.unlink()
    path.symlink_to(foreign)
    with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID])) as server:
        hold(store, source(server.url))
        assert len(server.requests) == 1
    assert not path.is_symlink() and foreign.read_bytes() == elf[KERNEL_ID]
    other = path.with_name(OTHER_ID)
    other.symlink_to(foreign)
    assert DebugCache(store, source("http://a")).remove(OTHER_ID) and foreign.exists()


def test_a_file_in_use_stays(store: Store, elf: dict[str, bytes]) -> None:
    fill(store, elf, KERNEL_ID, 0)
    where = source("http://127.0.0.1:1")
    with DebugCache(store, where).files(kernel_info(where), RELEASE):
        assert not DebugCache(store, where).remove(KERNEL_ID)
    assert DebugCache(store, where).remove(KERNEL_ID) and cached_files(store) == []


def test_a_damaged_file_of_the_cache_is_fetched_again(store: Store, elf: dict[str, bytes], way: str) -> None:
    fill(store, elf, KERNEL_ID, 0).write_bytes(elf[KERNEL_ID][:-100])
    with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID])) as server:
        assert pathlib.Path(hold(store, source(server.url)).vmlinux).read_bytes() == elf[KERNEL_ID]


def test_builds_side_by_side_fetch_a_file_once(
    store: Store, elf: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_find(monkeypatch)

    def slow(request: Request, _number: int) -> None:
        time.sleep(0.5)
        send(request, elf[KERNEL_ID])

    with WrongServer(slow) as server:
        builds = [threading.Thread(target=hold, args=(store, source(server.url))) for _number in range(4)]
        for build in builds:
            build.start()
        for build in builds:
            build.join()
        assert len(server.requests) == 1
    assert cached_files(store) == [KERNEL_ID]


def test_who_waits_too_long_for_another_download_is_told_what_it_is(store: Store, elf: dict[str, bytes]) -> None:
    impatient = Store(store.directory, 0.2)
    with store.locked(f"debuginfo-{KERNEL_ID}"), pytest.raises(LockTimeout, match=f"debuginfo-{KERNEL_ID}"):
        hold(impatient, source("http://127.0.0.1:1"))


OPTION: dict[str, t.Any] = {"timeout_seconds": 300, "max_cache_bytes": 10 << 30, "max_cache_age": "30d"}


def test_the_option_is_read() -> None:
    assert read_debuginfod(None) is None
    option = {**OPTION, "servers": ["https://debuginfod.example.net/", "http://[::1]:8002/sub"]}
    assert read_debuginfod(option) == Debuginfod(
        ("https://debuginfod.example.net", "http://[::1]:8002/sub"), 300, 10 << 30, 30 * DAY
    )


NO_URLS = ["", "debuginfod.example.net", "ftp://a", "file:///srv", "https://", "http://a b", "http://a\nb"]
NO_URLS += ["http://a?x=1", "http://a/#x", "http://a:99999", "http://a:0", "http://[::1", "http://\u00e4.example"]
NO_URLS += ["http://a..example", f"http://{'a' * 64}.example"]


@pytest.mark.parametrize("server", NO_URLS)
def test_a_server_that_is_no_url_is_refused(server: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_debuginfod({**OPTION, "servers": ["https://debuginfod.example.net", server]})
    assert caught.value.option == "debuginfod.servers[1]" and "https://debuginfod.debian.net" in caught.value.message


def test_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_debuginfod({**OPTION, "servers": ["https://me:secret@debuginfod.example.net"]})
    assert "secret" not in caught.value.message + str(caught.value.row())


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"servers": []}, "debuginfod.servers"),
        ({"timeout_seconds": 0}, "debuginfod.timeout_seconds"),
        ({"timeout_seconds": 10**10}, "debuginfod.timeout_seconds"),
        ({"max_cache_bytes": 0}, "debuginfod.max_cache_bytes"),
        ({"max_cache_age": "30 days"}, "debuginfod.max_cache_age"),
    ],
)
def test_a_bound_that_is_none_is_refused(change: dict[str, t.Any], option: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_debuginfod({**OPTION, "servers": ["http://a"], **change})
    assert caught.value.option == option


def test_a_connection_that_nobody_accepts_does_not_take_all_the_time(
    store: Store, elf: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_find(monkeypatch)
    monkeypatch.setattr(web, "CONNECT_SECONDS", 0.5)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _number in range(4):  # the queue of connections is full
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        with WrongServer(lambda request, _number: send(request, elf[KERNEL_ID])) as server:
            hold(store, source(f"http://127.0.0.1:{address[1]}", server.url))
    assert cached_files(store) == [KERNEL_ID]
