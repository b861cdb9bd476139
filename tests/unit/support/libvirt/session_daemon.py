# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt daemon of one's own below a folder: the real storage driver, for an unprivileged user.

Modules run on it in this process: their options are read as Ansible reads them, what is around that is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import pathlib
import shutil
import socket
import subprocess
import time
import types
import typing as t
from unittest import mock

import libvirt
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage import storage
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.short_directory import short_directory

NOBODY = 65534
START_SECONDS = 60


def run_here(name: str, args: dict[str, t.Any], check: bool = False) -> dict[str, t.Any]:
    """Run the body of a module in this process and return its result, failed or not."""
    code = importlib.import_module(f"ansible_collections.tapvirt.host.plugins.modules.{name}")
    read = ArgumentSpecValidator(code.ARGUMENT_SPEC).validate(args)
    assert not read.error_messages, read.error_messages
    frame = types.SimpleNamespace(
        params=read.validated_parameters, check_mode=check, _diff=False, log=lambda _text: None
    )
    try:
        return dict(code.body(frame))
    except TapvirtError as error:
        return {"error": error.row(), **error.fields, "failed": True, "msg": error.message}


class SessionDaemon:
    """The daemon, modules run on it, and libvirt itself beside them."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        self.files = top / "files"
        self.uri = f"qemu+unix:///session?socket={top}/libvirt/libvirt-sock"
        self.connection = libvirt.open(self.uri)

    def module(self, module: str, /, check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        """Run a module as on the daemon's own host: of a socket that a URI names, nobody else knows where it leads."""
        with mock.patch.object(storage, "is_of_this_host", lambda _uri: True):
            return run_here(module, {"uri": self.uri, **args}, check)

    def done(self, module: str, /, check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        """Run a module, and fail if it does."""
        result = self.module(module, check=check, **args)
        assert not result.get("failed"), result["msg"]
        return result

    def twice(self, module: str, /, **args: t.Any) -> dict[str, t.Any]:
        """Plan, do what was planned, and find nothing left to do; return what was done."""
        before = self.digest()
        planned = self.done(module, check=True, **args)
        assert self.digest() == before, "check mode has changed something"
        done = self.done(module, **args)
        assert done["plan"] == planned["plan"]
        again = self.done(module, **args)
        assert (again["changed"], again["plan"]) == (False, [])
        return done

    def digest(self) -> str:
        """Return a digest of all files of the daemon: configuration, state, pools and volumes."""
        digest = hashlib.sha256()
        for path in sorted(self.top.rglob("*")):
            digest.update(f"{path} {path.lstat().st_mode}".encode())
            if path.is_file() and path.suffix not in (".pid", ".log"):
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def clear(self) -> None:
        """Take all pools and their files away; ``files`` is an empty folder then."""
        for pool in self.connection.listAllStoragePools():
            if pool.isActive():
                pool.destroy()
            with contextlib.suppress(libvirt.libvirtError):
                pool.undefine()
        shutil.rmtree(self.files, ignore_errors=True)
        self.files.mkdir()
        os.chown(self.files, self.top.stat().st_uid, self.top.stat().st_gid)


def answers(path: pathlib.Path) -> bool:
    """Tell whether somebody listens on a socket: it is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextlib.contextmanager
def session_daemon() -> t.Iterator[SessionDaemon]:
    """Start a daemon, yield it, end it."""
    with short_directory() as top:
        user: dict[str, t.Any] = {}
        if os.geteuid() == 0:
            os.chown(top, NOBODY, NOBODY)
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        environment = {"HOME": str(top), "XDG_RUNTIME_DIR": str(top), "PATH": os.environ["PATH"]}
        with (top / "daemon.log").open("w", encoding="utf-8") as log:
            argv = [shutil.which("libvirtd") or "/usr/sbin/libvirtd"]
            process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user)
        try:
            give_up = time.monotonic() + START_SECONDS
            while not answers(top / "libvirt" / "libvirt-sock"):
                assert process.poll() is None, (top / "daemon.log").read_text(encoding="utf-8")
                assert time.monotonic() < give_up
                time.sleep(0.01)
            daemon = SessionDaemon(top)
            try:
                yield daemon
            finally:
                daemon.connection.close()
        finally:
            process.terminate()
            process.wait(START_SECONDS)
