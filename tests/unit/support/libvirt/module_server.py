# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules run by the hundred: each in a process of its own, forked from one that has loaded their code already.

As a program it is that process: it reads a task a line, and prints what the module printed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import typing as t

COLLECTION = "ansible_collections.tapvirt.host."
MODULES = COLLECTION + "plugins.modules."
# So long may one module take; what hangs is ended.
LIMIT_SECONDS = 120
THIS = COLLECTION + "tests.unit.support.libvirt.module_server"


class ModuleServer:
    """Runs modules where ``inside``, the beginning of a command line, leads."""

    def __init__(self, inside: t.Sequence[str], modules: t.Iterable[str]) -> None:
        pipe = subprocess.PIPE
        argv = [*inside, sys.executable, "-m", THIS, *modules]
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)

    def module(self, module: str, /, check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        """Run a module and return its result, failed or not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        task = {"ANSIBLE_MODULE_ARGS": {**args, "_ansible_check_mode": check}}
        self._process.stdin.write(json.dumps([module, json.dumps(task)]) + "\n")
        self._process.stdin.flush()
        output = json.loads(self._process.stdout.readline())
        return t.cast("dict[str, t.Any]", json.loads(output))

    def done(self, module: str, /, check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        """Run a module, and fail if it does."""
        result = self.module(module, check=check, **args)
        assert not result.get("failed"), result["msg"]
        return result

    def end(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


def serve(modules: t.Iterable[str]) -> None:
    """Answer until nobody asks any more."""
    code = {name: importlib.import_module(MODULES + name) for name in modules}
    for line in sys.stdin:
        name, task = json.loads(line)
        output = os.memfd_create("output")
        child = os.fork()
        if child == 0:
            _run(code[name].main, task, output)
        os.waitpid(child, 0)
        os.lseek(output, 0, os.SEEK_SET)
        with open(output, encoding="utf-8") as stream:
            print(json.dumps(stream.read()), flush=True)


def _run(main: t.Callable[[], None], task: str, output: int) -> t.NoReturn:
    """Be the process of one module. It ends at once, with no thread of libvirt's in the way."""
    try:
        signal.alarm(LIMIT_SECONDS)
        asked = os.memfd_create("asked")
        os.write(asked, task.encode())
        os.lseek(asked, 0, os.SEEK_SET)
        os.dup2(asked, 0)
        os.dup2(output, 1)
        del sys.argv[1:]
        with contextlib.suppress(SystemExit):
            main()
        sys.stdout.flush()
    finally:
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1:])
