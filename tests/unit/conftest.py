# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several unit tests need: a module run for real, and the code where every user can read it."""

from __future__ import annotations

import fcntl
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.hidden_kvm import hide_kvm


class RunModule(t.Protocol):
    """Run a module of this collection on this machine and return its result, failed or not."""

    def __call__(
        self, name: str, args: dict[str, t.Any], check: bool = False, diff: bool = False, timeout: float = 60
    ) -> dict[str, t.Any]:
        """Return the result."""


@pytest.fixture(scope="session", autouse=True)
def without_kvm() -> str | None:
    """Hide /dev/kvm, which no unit test needs; return why it could not be hidden."""
    return hide_kvm()


@pytest.fixture
def run_module() -> RunModule:
    """Run a module as ``run_module("kernel_facts", {"gather_subset": ["all"]}, check=True)``."""

    def run(
        name: str, args: dict[str, t.Any], check: bool = False, diff: bool = False, timeout: float = 60
    ) -> dict[str, t.Any]:
        options = {"_ansible_check_mode": check, "_ansible_diff": diff}
        argv = [sys.executable, "-m", f"ansible_collections.tapvirt.host.plugins.modules.{name}"]
        text = json.dumps({"ANSIBLE_MODULE_ARGS": {**args, **options}})
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.stdout, done.stderr
        return t.cast("dict[str, t.Any]", json.loads(done.stdout))

    return run


@pytest.fixture
def start() -> t.Iterator[t.Callable[..., subprocess.Popen[bytes]]]:
    """Start a program as ``subprocess.Popen`` does, wait for its command line, and end it after the test.

    ``Popen`` returns when the new program closes the pipe to it, and the kernel writes the arguments
    after that (``fs/exec.c``, ``fs/binfmt_elf.c``): until then ``/proc/PID/cmdline`` is empty.
    """
    started: list[subprocess.Popen[bytes]] = []

    def run(argv: t.Sequence[str], **options: t.Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, **options)
        started.append(process)
        while not pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes() and process.poll() is None:
            time.sleep(0.01)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def this_kernel() -> t.Iterator[None]:
    """Have this machine's kernel for oneself: what one test sets in it for a moment, another one reads."""
    with pathlib.Path(tempfile.gettempdir(), "tapvirt-this-kernel.lock").open("w", encoding="ascii") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def readable_collections() -> t.Iterator[str]:
    """Return a folder for PYTHONPATH with the code of managed hosts that an unprivileged user can read.

    The tree, or the copy of it that tests run in, may lie in a home folder that is closed to others.
    """
    here = pathlib.Path(__file__).resolve().parents[2]
    top = pathlib.Path(tempfile.mkdtemp(prefix="tapvirt-"))
    top.chmod(0o755)
    target = top / "ansible_collections" / "tapvirt" / "host" / "plugins"
    shutil.copytree(here / "plugins" / "module_utils", target / "module_utils")
    yield str(top)
    shutil.rmtree(top)
