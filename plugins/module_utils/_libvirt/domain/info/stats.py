# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What running domains have used since they began: typed counters, in bulk where the driver has that.

Private to the collection. Names and units of libvirt's counters: its pages on virConnectGetAllDomainStats,
virDomainGetInfo, virDomainMemoryStats, virDomainBlockStats and virDomainInterfaceStats.
"""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

from ...connection.connection import Connection, Domain, LibvirtFailure, libvirt
from .info import MAX_DEVICES

# Bounds the size of an answer; libvirt takes more at once.
_AT_ONCE = 200
_NOT_THERE_CODES = ("VIR_ERR_NO_SUPPORT", "VIR_ERR_OPERATION_UNSUPPORTED", "VIR_ERR_INVALID_ARG")
_SECOND_NS = 10**9
_KIB = 1 << 10

# Our names, and those of libvirt in a bulk answer: times in ns, the balloon's sizes in KiB, other sizes in bytes.
_CPU = {"time_seconds": "time", "user_seconds": "user", "system_seconds": "system"}
_MEMORY = {
    "current_bytes": "current", "maximum_bytes": "maximum", "resident_bytes": "rss", "available_bytes": "available",
    "unused_bytes": "unused", "usable_bytes": "usable", "cache_bytes": "disk_caches", "swap_in_bytes": "swap_in",
    "swap_out_bytes": "swap_out", "major_faults": "major_fault", "minor_faults": "minor_fault",
}  # fmt: skip
_DISK = {
    "read_requests": "rd.reqs", "read_bytes": "rd.bytes", "read_seconds": "rd.times", "write_requests": "wr.reqs",
    "write_bytes": "wr.bytes", "write_seconds": "wr.times", "flush_requests": "fl.reqs", "flush_seconds": "fl.times",
    "errors": "errors", "allocation_bytes": "allocation", "capacity_bytes": "capacity", "physical_bytes": "physical",
}  # fmt: skip
_INTERFACE = {
    "received_bytes": "rx.bytes", "received_packets": "rx.pkts", "received_errors": "rx.errs",
    "received_drops": "rx.drop", "sent_bytes": "tx.bytes", "sent_packets": "tx.pkts", "sent_errors": "tx.errs",
    "sent_drops": "tx.drop",
}  # fmt: skip

_Values = t.Mapping[str, t.Any]
_Answer = t.TypeVar("_Answer")


def bulk_stats(connection: Connection, domains: t.Sequence[Domain]) -> dict[str, _Values]:
    """Return libvirt's own counters by UUID; nothing of a driver without bulk calls, or of a domain that is gone.

    A domain that is busy with something else answers with what is at hand.
    """
    wanted = (
        libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
        | libvirt.VIR_DOMAIN_STATS_BALLOON
        | libvirt.VIR_DOMAIN_STATS_INTERFACE
        | libvirt.VIR_DOMAIN_STATS_BLOCK
    )
    found: dict[str, _Values] = {}
    for begin in range(0, len(domains), _AT_ONCE):
        some = list(domains[begin : begin + _AT_ONCE])
        try:
            rows = connection.domainListGetStats(some, wanted, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
        except libvirt.libvirtError as error:
            if _is_code(error, *_NOT_THERE_CODES):
                return {}
            if _is_code(error, "VIR_ERR_NO_DOMAIN"):
                continue
            raise LibvirtFailure("Reading the statistics of the domains", error) from error
        found.update({domain.UUIDString(): values for domain, values in rows})
    return found


def stats_row(domain: Domain, running: ET.Element | None, bulk: _Values | None) -> dict[str, t.Any] | None:
    """Return what a domain has used; null where it does not run.

    Reads the parts one by one if the bulk answer is empty.

    :raises libvirt.libvirtError: the domain is gone.
    """
    if running is None:
        return None
    if bulk and "cpu.time" in bulk:
        return {
            "cpu": _typed(_CPU, bulk, "cpu."),
            "memory": _typed(_MEMORY, bulk, "balloon."),
            "disks": [
                {
                    "target": bulk.get(f"block.{number}.name"),
                    **_typed(_DISK, bulk, f"block.{number}."),
                }
                for number in range(_count(bulk, "block"))
            ],
            "interfaces": [
                {
                    "device": bulk.get(f"net.{number}.name"),
                    **_typed(_INTERFACE, bulk, f"net.{number}."),
                }
                for number in range(_count(bulk, "net"))
                if f"net.{number}.name" in bulk
            ],
        }
    return _asked_one_by_one(domain, running)


def _count(bulk: _Values, group: str) -> int:
    return min(int(bulk.get(group + ".count", 0)), MAX_DEVICES)


def _typed(names: t.Mapping[str, str], values: _Values, prefix: str) -> dict[str, t.Any]:
    return {name: _value(name, values.get(prefix + theirs), prefix) for name, theirs in names.items()}


def _value(name: str, value: t.Any, prefix: str) -> int | float | None:
    if value is None or value < 0:
        return None
    if name.endswith("_seconds"):
        return float(value) / _SECOND_NS
    return int(value) * (_KIB if prefix == "balloon." and name.endswith("_bytes") else 1)


def _asked_one_by_one(domain: Domain, running: ET.Element) -> dict[str, t.Any]:
    _state, maximum, memory, _vcpus, nanoseconds = domain.info()
    balloon = {"balloon.maximum": maximum, "balloon.current": memory}
    for name, value in (_known(domain.memoryStats) or {}).items():
        balloon["balloon." + name] = value
    return {
        "cpu": _typed(_CPU, {"cpu.time": nanoseconds}, "cpu."),
        "memory": _typed(_MEMORY, balloon, "balloon."),
        "disks": [_disk(domain, target) for target in _names(running, "disk")],
        "interfaces": [_interface(domain, device) for device in _names(running, "interface")],
    }


def _names(running: ET.Element, tag: str) -> list[str]:
    targets = [device.find("target") for device in running.findall("devices/" + tag)]
    names = [target.get("dev") for target in targets if target is not None]
    return [name for name in names if name][:MAX_DEVICES]


def _disk(domain: Domain, target: str) -> dict[str, t.Any]:
    keys = ("rd.reqs", "rd.bytes", "wr.reqs", "wr.bytes", "errors")
    values = dict(zip(keys, _known(domain.blockStats, target) or ()))
    values.update(zip(("capacity", "allocation", "physical"), _known(domain.blockInfo, target) or ()))
    return {"target": target, **_typed(_DISK, values, "")}


def _interface(domain: Domain, device: str) -> dict[str, t.Any]:
    return {
        "device": device,
        **_typed(_INTERFACE, dict(zip(_INTERFACE.values(), _known(domain.interfaceStats, device) or ())), ""),
    }


def _known(ask: t.Callable[..., _Answer], *args: t.Any) -> _Answer | None:
    """Return an answer, null where the driver or the device has none."""
    try:
        return ask(*args)
    except libvirt.libvirtError as error:
        if _is_code(error, "VIR_ERR_NO_DOMAIN"):
            raise
        return None


def _is_code(error: t.Any, *names: str) -> bool:
    return error.get_error_code() in [getattr(libvirt, name) for name in names]
