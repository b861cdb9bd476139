# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder for guests and daemons that goes with all that runs on it, even where the test run is killed.

A guest of the embedded driver outlives whoever started it. So a program beside the test run waits for the end
of a pipe: it comes when the folder is no longer needed, and when the run is no longer there.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing as t

END_SECONDS = 30


@contextlib.contextmanager
def short_directory() -> t.Iterator[pathlib.Path]:
    """Yield a folder whose path is short: names of sockets below it must fit into 108 bytes."""
    top = pathlib.Path(tempfile.mkdtemp(prefix="tv", dir="/tmp"))
    top.chmod(0o755)
    # In a session of its own: Ctrl-C is not for it.
    waiter = subprocess.Popen([sys.executable, "-S", __file__, str(top)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield top
    finally:
        waiter.communicate(timeout=2 * END_SECONDS)
        assert waiter.returncode == 0


def users(top: str) -> list[int]:
    """Return the processes that were started with the folder in their arguments or their environment."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(top.encode() in (process / name).read_bytes() for name in ("cmdline", "environ")):
                found.append(int(process.name))
    return [pid for pid in found if pid != os.getpid()]


def main(top: str) -> None:
    """Wait for the end of standard input, then end what runs on the folder, and remove it."""
    sys.stdin.read()
    give_up = time.monotonic() + END_SECONDS
    while (left := users(top)) and time.monotonic() < give_up:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(top)


if __name__ == "__main__":
    main(sys.argv[1])
