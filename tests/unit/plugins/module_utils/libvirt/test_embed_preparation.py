# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded driver's root directory: one whose preparation was killed is finished by the next run."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys

from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.embed import EmbedRoot

# Every step is an event of Python's own audit (PEP 578): directories, files and renames below the root.
PREPARE = """
import os, signal, sys
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.embed import EmbedRoot
path, left = sys.argv[1], int(sys.argv[2])
def step(event, arguments):
    global left
    if event in ("os.mkdir", "open", "tempfile.mkstemp", "os.rename") and str(arguments[0]).startswith(path):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(step)
EmbedRoot(path).prepare()
"""


def test_a_root_whose_preparation_is_killed_at_any_step_is_new_or_whole(tmp_path: pathlib.Path) -> None:
    half_made = 0
    for number in range(100):
        path = tmp_path / str(number)
        done = subprocess.run([sys.executable, "-c", PREPARE, path, str(number)], check=False, timeout=60)
        root = EmbedRoot(str(path))
        whole = path.joinpath("etc", "qemu.conf").exists()
        assert root.is_new() is not whole
        half_made += not whole and path.joinpath("etc").exists()
        if not whole:
            root.prepare()
        assert path.joinpath("etc", "qemu.conf").read_text(encoding="ascii") == root.config_text()
        assert not root.is_new()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    else:
        raise AssertionError("never ended by itself")
    assert half_made >= 3  # before the temporary file is made, before it is renamed, and between


def test_a_root_with_definitions_and_no_configuration_is_not_new(tmp_path: pathlib.Path) -> None:
    tmp_path.joinpath("etc", "qemu").mkdir(parents=True)
    assert not EmbedRoot(str(tmp_path)).is_new()
