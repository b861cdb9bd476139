# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The limits of a run, computed from the host's facts before anything is loaded.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import re

from .._core.root import Root

#: SystemTap's own default is 16 MB of output buffer for each online CPU (runtime/transport/transport.c). Its smallest
#: unit, and the collection's default, is 1 MB for each.
BUFFER_BYTES_PER_CPU = 1 << 20
#: What output buffers leave of MemAvailable: for the module's arrays, staprun, stapio and the host's own work.
RESERVE_BYTES = 128 << 20
#: The most that the option ``buffer_mb`` takes, in MB for each online CPU.
MAX_BUFFER_MB = 64
MAX_DURATION_SECONDS = 900
#: How long loading and arming may take before the run counts as failed.
LOAD_SECONDS = 60
#: After the end of the duration: SIGINT, then SIGTERM, then SIGKILL and removal, this far apart.
STOP_GRACE_SECONDS = 15
MAX_OUTPUT_BYTES = 1 << 20
#: How far ahead the start of a run may be planned; its module is locked from then on.
MAX_AHEAD_SECONDS = 900
#: How long loading and arming is assumed to take on a host that has not measured it yet.
FIRST_LOAD_SECONDS = 1.0
#: For how long, how many and how large the results are that wait on a host for whoever collects them. The run that
#: removes what is beyond adds one more.
KEPT_SECONDS = 24 * 3600
COLLECTED_SECONDS = 3600
KEPT_RESULTS = 32
KEPT_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a run's buffers are measured against: MemFree, Buffers and MemAvailable of /proc/meminfo, the online CPUs.

    ``available_bytes`` is ``None`` on a kernel without MemAvailable (before 3.14).
    """

    free_bytes: int
    buffers_bytes: int
    cpus_online: int
    available_bytes: int | None = None


def read_memory(root: Root) -> Memory:
    """Read the memory and the CPUs of a host; what cannot be read counts as zero free bytes and one CPU."""
    table = dict(re.findall(r"^(\w+):\s+(\d+) kB$", root.read_text_or("proc/meminfo") or "", re.MULTILINE))
    available = table.get("MemAvailable")
    return Memory(
        free_bytes=int(table.get("MemFree", 0)) * 1024,
        buffers_bytes=int(table.get("Buffers", 0)) * 1024,
        cpus_online=count_cpus(root.read_text_or("sys/devices/system/cpu/online") or "0"),
        available_bytes=None if available is None else int(available) * 1024,
    )


def count_cpus(ranges: str) -> int:
    """Count the CPUs of a list such as ``0-3,8``."""
    count = 0
    for part in ranges.strip().split(","):
        first, _dash, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def buffer_check(memory: Memory, bytes_per_cpu: int = BUFFER_BYTES_PER_CPU) -> str | None:
    """Return why the output buffers do not fit, or ``None``.

    The module itself refuses to load where they exceed MemFree + Buffers (runtime/transport/relay_v2.c). The page cache
    does not count there. The second rule is the collection's own: ``RESERVE_BYTES`` of MemAvailable stay.
    """
    needed = bytes_per_cpu * memory.cpus_online
    free = memory.free_bytes + memory.buffers_bytes
    available = memory.available_bytes
    if needed <= free and (available is None or needed <= available - RESERVE_BYTES):
        return None
    reason = (
        f"output buffers need {needed >> 20} MB ({bytes_per_cpu >> 20} MB for each of {memory.cpus_online} online"
        f" CPUs); SystemTap takes them from MemFree + Buffers, which is {free >> 20} MB"
    )
    if available is None:
        return reason
    return f"{reason}, and MemAvailable is {available >> 20} MB, of which {RESERVE_BYTES >> 20} MB stay reserved"


def buffer_remedy(bytes_per_cpu: int) -> str:
    """Return what helps where the output buffers do not fit."""
    least = BUFFER_BYTES_PER_CPU >> 20
    if bytes_per_cpu > BUFFER_BYTES_PER_CPU:
        return f"free memory, or use a smaller buffer_mb (the least is {least} MB for each CPU)"
    return f"free memory; there is no smaller buffer than {least} MB for each CPU"
