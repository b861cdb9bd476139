# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests run without KVM."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def test_no_unit_test_can_open_kvm(without_kvm: str | None) -> None:
    """Check this process, and a program that it starts, as libvirt checks: access for reading and writing."""
    if without_kvm:
        pytest.skip(without_kvm)
    assert not os.access("/dev/kvm", os.R_OK | os.W_OK)
    program = "import os, sys; sys.exit(os.access('/dev/kvm', os.R_OK | os.W_OK))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
