# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot sector, run by QEMU itself."""

from __future__ import annotations

import base64
import pathlib
import shutil
import subprocess

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tapvirt.host.playbooks.filter_plugins.boot_sector import boot_sector


@pytest.mark.parametrize("line", ["x", "hello from web1", "!" * 256])
def test_qemu_boots_it_and_it_prints_its_line_again_and_again(tmp_path: pathlib.Path, line: str) -> None:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        pytest.fail("qemu-system-x86_64 is not installed: './dev test unit' installs it.")
    disk = tmp_path / "disk.img"
    disk.write_bytes(base64.b64decode(boot_sector(line)))
    assert disk.stat().st_size == 512
    argv = [program, "-accel", "tcg", "-m", "16", "-display", "none", "-nodefaults", "-serial", "stdio"]
    process = subprocess.Popen([*argv, "-drive", f"file={disk},format=raw"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        wanted = 3 * (line.encode() + b"\r\n")
        assert process.stdout.read(len(wanted)) == wanted
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("line", ["", "!" * 257, "two\nlines", "grün", 7, None])
def test_what_is_no_line_is_refused(line: object) -> None:
    with pytest.raises(AnsibleFilterError, match="1 to 256 printable ASCII"):
        boot_sector(line)
