# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the page about distributions says of AppArmor is what libvirt's own helper does."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import pytest

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs/docsite/rst/distributions.rst"
HELPER = "/usr/lib/libvirt/virt-aa-helper"
UUID = "00000000-0000-0000-0000-00000000aa01"
DOMAIN = f"""<domain type='qemu'>
  <name>web1</name>
  <uuid>{UUID}</uuid>
  <memory>65536</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><disk type='file'><source file='DIRECTORY/web1.img'/><target dev='vda'/></disk></devices>
</domain>"""
TEXT = PAGE.read_text(encoding="utf-8")
LIST = TEXT.partition("test_distributions.py\n")[2].partition("Firmware below")[0]
REFUSED = re.findall(r"/[a-z/]+", LIST)


@pytest.mark.skipif(not os.path.exists(HELPER), reason="libvirt-daemon-system is not installed")
@pytest.mark.parametrize("directory", [*REFUSED, "/srv", "/home/web", "/var/lib/libvirt/images"])
def test_apparmor_refuses_the_directories_of_the_page(directory: str) -> None:
    argv = [HELPER, "--dryrun", "--create", "--uuid", f"libvirt-{UUID}"]
    domain = DOMAIN.replace("DIRECTORY", directory)
    done = subprocess.run(argv, input=domain, capture_output=True, text=True, timeout=60, check=False)
    refused = f"virt-aa-helper: error: {directory}/web1.img\nvirt-aa-helper: error: skipped restricted file\n"
    assert (refused in done.stderr) == (directory in REFUSED), done.stderr
    assert (done.returncode == 0) == (directory not in REFUSED)


def test_the_page_has_the_list() -> None:
    assert len(REFUSED) == 14
