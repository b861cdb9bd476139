# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt would make of a definition, found out without touching the libvirt that is managed.

A child process opens libvirt's embedded QEMU driver on a root of its own, defines, reads back and undefines: the same
code as the daemon's, on the same host, with the same QEMU. One process can hold one such root, hence the child; it is
forked before this process opens any connection. Private to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import shutil
import signal
import socket
import tempfile
import time
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import TapvirtError
from ..._core.write import make_directories
from ..connection.connection import Connection, connected, libvirt
from ..connection.embed import CACHE, EmbedRoot, embed_root

_ROOT_PREFIX = "embed-"
_LEFT_SECONDS = 3600
_HOST_STATE = "/var/lib/libvirt"
_OPEN_SECONDS = 60.0
_END_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Canonical:
    """One answer: the definition as libvirt would keep it, or why libvirt refuses it."""

    root: ET.Element | None
    error: str | None


@dataclasses.dataclass(frozen=True)
class Managed:
    """The libvirt that is managed: version numbers of libvirt and QEMU, and the directory of its state."""

    versions: tuple[int, int]
    state_directory: str


class Unavailable(Exception):
    """There is no embedded driver here, or it is not the libvirt that is managed."""


def embedded_driver_matches(uri: str) -> bool:
    """Tell whether the embedded driver of this host, run by this user, can speak for a URI."""
    scheme, _slashes, rest = uri.partition(":///")
    path = rest.partition("?")[0]
    return scheme == "qemu" and (path in ("embed", "session") or (path == "system" and os.geteuid() == 0))


def managed_by(connection: Connection, uri: str) -> Managed:
    """Describe the libvirt behind a connection that ``embedded_driver_matches`` accepted."""
    return Managed((connection.getLibVersion(), connection.getVersion()), state_directory(uri))


def state_directory(uri: str) -> str:
    """Return where the libvirt of a URI that ``embedded_driver_matches`` accepted keeps its state."""
    root = embed_root(uri)
    if root is not None:
        return os.path.join(root.path, "lib")
    if uri.startswith("qemu:///session"):
        config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        return os.path.join(config, "libvirt")
    return _HOST_STATE


class Canonicalizer:
    """The child process and its two questions: which versions, and what becomes of these definitions."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        self._socket = ours
        self._stream = ours.makefile("rw", encoding="utf-8", errors="surrogateescape")

    def canonicalize(self, texts: t.Sequence[str], managed: Managed | None, timeout_seconds: float) -> list[Canonical]:
        """Return one answer for each definition.

        :param managed: null: this host's embedded driver itself, on a root that is still to be made.
        :raises Unavailable: no embedded driver, other versions, or no answer in time.
        """
        self._socket.settimeout(timeout_seconds)
        try:
            self._stream.write(
                json.dumps({"texts": list(texts), "state_directory": managed and managed.state_directory}) + "\n"
            )
            self._stream.flush()
            answer = json.loads(self._stream.readline() or "{}")
        except OSError as error:
            raise Unavailable(f"the embedded driver did not answer: {error}") from error
        if "rows" not in answer:
            raise Unavailable(answer.get("error", "the embedded driver ended without an answer"))
        if managed is not None and tuple(answer["versions"]) != managed.versions:
            raise Unavailable("the embedded driver is another version than the managed one")
        return [
            Canonical(ET.fromstring(row["xml"]) if row["xml"] is not None else None, row["error"])
            for row in answer["rows"]
        ]

    def close(self) -> None:
        """End the child: it does so by itself when nobody can ask any more, or is ended."""
        self._stream.close()
        self._socket.close()
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                return
            time.sleep(0.01)
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _serve(link: socket.socket) -> t.NoReturn:
    """Answer questions until the other side is gone. Runs in the child, which never returns into the module.

    Each answer is found by a process of its own, on a root of its own: the driver never lets a root go while its
    process lives, and nobody has to wait for another's.
    """
    status = 1
    os.setpgid(0, 0)
    try:
        with link, link.makefile("rw", encoding="utf-8", errors="surrogateescape") as stream:
            for line in stream:
                worker = os.fork()
                if worker == 0:
                    question = json.loads(line)
                    stream.write(json.dumps(_answer(question["texts"], question["state_directory"])) + "\n")
                    stream.flush()
                    break
                if os.waitpid(worker, 0)[1] != 0:
                    stream.write(json.dumps({"error": "the embedded driver ended without an answer"}) + "\n")
                    stream.flush()
        status = 0
    finally:
        os._exit(status)


def _answer(texts: t.Sequence[str], state_directory: str | None) -> dict[str, t.Any]:
    directory = _cache_directory()
    try:
        make_directories(directory)
        _remove_left_roots(directory)
        root = EmbedRoot(tempfile.mkdtemp(prefix=_ROOT_PREFIX, dir=directory))
        os.chmod(root.path, 0o755)
        root.prepare()
        with connected("qemu:///embed?root=" + root.path, _OPEN_SECONDS) as connection:
            rows = [_canonicalise(connection, text) for text in texts]
            versions = (connection.getLibVersion(), connection.getVersion())
        root.hand_over_capabilities()
        shutil.rmtree(root.path, ignore_errors=True)
    except (OSError, TapvirtError, libvirt.libvirtError) as error:
        return {"error": " ".join(str(error).split())}
    ours = os.path.join(root.path, "lib", "qemu") + "/"
    theirs = ours if state_directory is None else os.path.join(state_directory, "qemu") + "/"
    for row in rows:
        row["xml"] = row["xml"] and row["xml"].replace(ours, theirs)
    return {"versions": versions, "rows": rows}


def _remove_left_roots(directory: str) -> None:
    """Remove what runs that were killed have left."""
    for path in glob.glob(os.path.join(glob.escape(directory), _ROOT_PREFIX + "*")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(path).st_mtime > _LEFT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _canonicalise(connection: Connection, text: str) -> dict[str, t.Any]:
    try:
        domain = connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    except libvirt.libvirtError as error:
        return {"xml": None, "error": " ".join(str(error).split())}
    try:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        return {"xml": domain.XMLDesc(flags), "error": None}
    finally:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)


def _cache_directory() -> str:
    if os.geteuid() == 0:
        return CACHE
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "tapvirt")
