# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have the kernel RELEASE (that which runs: ``-``) started next, with WORDs added to the command line.

The kernel's own way, by its file in /boot: no boot loader, and no kexec(8), is needed. ``systemctl kexec`` starts it.
"""

from __future__ import annotations

import ctypes
import os
import sys

release = os.uname().release if sys.argv[1] == "-" else sys.argv[1]
with open("/proc/cmdline", encoding="ascii") as stream:
    line = " ".join([stream.read().strip(), *sys.argv[2:]]).encode() + b"\0"
files = [os.open(f"/boot/{name}-{release}", os.O_RDONLY) for name in ("vmlinuz", "initrd.img")]
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(320, files[0], files[1], len(line), line, 0):  # kexec_file_load on x86-64
    sys.exit(os.strerror(ctypes.get_errno()))
