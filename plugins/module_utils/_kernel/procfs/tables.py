# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tables there are, and how one is read. Private to the collection.

To add one: a parser (text in, typed values out, unknown rows into the list), and a line in ``TABLES``.
"""

from __future__ import annotations

import dataclasses
import errno
import typing as t

from ..._core.root import Root
from . import devices, kernel, memory, network, processors
from .parse import Parser, Value, decode

PRESENT, ABSENT, RESTRICTED, UNREADABLE = "present", "absent", "restricted", "unreadable"
# The largest table that was ever seen, slabinfo of a large machine, has 100 kB; mountinfo of a container host more.
_FILE_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Table:
    """Where a table is, how it is parsed, and how one sees that the kernel printed zeros for what it hides."""

    path: str
    parse: Parser
    hidden: t.Callable[[Value], bool] | None = None


@dataclasses.dataclass
class Reading:
    """A table as it was read: ``value`` is null unless ``status`` is present or restricted."""

    status: str
    value: Value = None
    unparsed: list[str] = dataclasses.field(default_factory=list)
    left_out: int = 0


#: What concerns mounts and the network lies below ``self``, which ``subset=pid`` does not hide.
TABLES: dict[str, Table] = {
    "buddyinfo": Table("proc/buddyinfo", memory.buddyinfo),
    "cmdline": Table("proc/cmdline", kernel.cmdline),
    "cpuinfo": Table("proc/cpuinfo", processors.cpuinfo),
    "devices": Table("proc/devices", devices.devices),
    "diskstats": Table("proc/diskstats", devices.diskstats),
    "filesystems": Table("proc/filesystems", devices.filesystems),
    "interrupts": Table("proc/interrupts", processors.interrupts),
    "iomem": Table("proc/iomem", devices.ranges, devices.ranges_hidden),
    "ioports": Table("proc/ioports", devices.ranges, devices.ranges_hidden),
    "latency_stats": Table("proc/latency_stats", processors.latency_stats),
    "loadavg": Table("proc/loadavg", processors.loadavg),
    "locks": Table("proc/locks", devices.locks),
    "meminfo": Table("proc/meminfo", memory.meminfo),
    "modules": Table("proc/modules", kernel.modules),
    "mountinfo": Table("proc/self/mountinfo", devices.mountinfo),
    "mounts": Table("proc/self/mounts", devices.mounts),
    "net_dev": Table("proc/self/net/dev", network.net_dev),
    "net_snmp": Table("proc/self/net/snmp", network.net_snmp),
    "partitions": Table("proc/partitions", devices.partitions),
    "schedstat": Table("proc/schedstat", processors.schedstat),
    "slabinfo": Table("proc/slabinfo", memory.slabinfo),
    "softirqs": Table("proc/softirqs", processors.softirqs),
    "stat": Table("proc/stat", processors.stat),
    "swaps": Table("proc/swaps", memory.swaps),
    "uptime": Table("proc/uptime", processors.uptime),
    "version": Table("proc/version", kernel.version),
    "vmstat": Table("proc/vmstat", memory.vmstat),
    "zoneinfo": Table("proc/zoneinfo", memory.zoneinfo),
}


def status_of(error: OSError) -> str:
    """Return in one word why a file could not be read."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return RESTRICTED
    return ABSENT if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH) else UNREADABLE


def read_table(root: Root, name: str) -> Reading:
    """Read one of ``TABLES``. Never raises: what cannot be read has a status."""
    table = TABLES[name]
    try:
        data = root.read_bytes(table.path, _FILE_BYTES + 1)
    except OSError as error:
        return Reading(status_of(error))
    text = decode(data[:_FILE_BYTES])
    left_out = 0
    if len(data) > _FILE_BYTES:
        # The last line is cut, and at least that one is left out.
        text, left_out = text.rpartition("\n")[0], 1
    unparsed: list[str] = []
    value = table.parse(text, unparsed)
    status = RESTRICTED if table.hidden is not None and table.hidden(value) else PRESENT
    return Reading(status, value, unparsed, left_out)
