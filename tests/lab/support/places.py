# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the parts of the collection are that several lab tests use."""

from __future__ import annotations

import pathlib

LAB = pathlib.Path(__file__).resolve().parents[1]
TREE = LAB.parents[1]
PLAYBOOKS = TREE / "playbooks"
FILES = LAB / "files"
# Loads the kernel that systemctl kexec starts next: its release, then words for its command line.
KEXEC = (FILES / "kexec.py").read_text(encoding="utf-8")
