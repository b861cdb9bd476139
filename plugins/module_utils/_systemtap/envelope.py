# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The safety envelope of a run: limits, computed from the host's facts before anything is loaded.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import re

from .._core.root import Root

#: SystemTap's own default is 16 MB of output buffer for each online CPU (runtime/transport/transport.c).
BUFFER_BYTES_PER_CPU = 1 << 20
#: The share of MemFree + Buffers that output buffers may take. The module itself refuses to load when they exceed all
#: of it (runtime/transport/relay_v2.c); the page cache does not count there, nor here.
MEMORY_SHARE = 0.05
MAX_DURATION_SECONDS = 900
#: How long loading and arming may take before the run counts as failed.
LOAD_SECONDS = 60
#: After the end of the duration: SIGINT, then SIGTERM, then SIGKILL and removal, this far apart.
STOP_GRACE_SECONDS = 15
MAX_OUTPUT_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a run's buffers are measured against: MemFree and Buffers of /proc/meminfo, and the online CPUs."""

    free_bytes: int
    buffers_bytes: int
    cpus_online: int


def read_memory(root: Root) -> Memory:
    """Read the memory and the CPUs of a host; what cannot be read counts as zero free bytes and one CPU."""
    table = dict(re.findall(r"^(\w+):\s+(\d+) kB$", root.read_text_or("proc/meminfo") or "", re.MULTILINE))
    return Memory(
        free_bytes=int(table.get("MemFree", 0)) * 1024,
        buffers_bytes=int(table.get("Buffers", 0)) * 1024,
        cpus_online=count_cpus(root.read_text_or("sys/devices/system/cpu/online") or "0"),
    )


def count_cpus(ranges: str) -> int:
    """Count the CPUs of a list such as ``0-3,8``."""
    count = 0
    for part in ranges.strip().split(","):
        first, _dash, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def buffer_check(memory: Memory, bytes_per_cpu: int = BUFFER_BYTES_PER_CPU) -> str | None:
    """Return why the output buffers do not fit, or null."""
    needed = bytes_per_cpu * memory.cpus_online
    allowed = int((memory.free_bytes + memory.buffers_bytes) * MEMORY_SHARE)
    if needed <= allowed:
        return None
    return "output buffers of {0} MB ({1} CPUs) are more than 5 % of the {2} MB of free and buffer memory".format(
        needed >> 20, memory.cpus_online, (memory.free_bytes + memory.buffers_bytes) >> 20
    )
