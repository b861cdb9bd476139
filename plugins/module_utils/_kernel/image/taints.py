# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the bits of the kernel's taint mean. Private to the collection."""

from __future__ import annotations

#: Bit by bit, as the kernel's Documentation/admin-guide/tainted-kernels.rst lists them.
TAINTS = (
    "proprietary_module",
    "forced_module",
    "cpu_out_of_spec",
    "forced_module_removal",
    "machine_check",
    "bad_page",
    "user_request",
    "died",
    "overridden_acpi_table",
    "warning",
    "staging_driver",
    "firmware_workaround",
    "out_of_tree_module",
    "unsigned_module",
    "soft_lockup",
    "live_patched",
    "auxiliary",
    "randomised_structures",
    "in_kernel_test",
    "firmware_control",
)


def taint_flags(value: int) -> list[str]:
    """Return the names of the bits of ``/proc/sys/kernel/tainted``; a bit without a name here is ``bit_N``."""
    bits = [bit for bit in range(value.bit_length()) if value >> bit & 1]
    return [TAINTS[bit] if bit < len(TAINTS) else f"bit_{bit}" for bit in bits]
