# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``procfs_info`` returns: everything that was asked for, with a status, and small. Private to the collection."""

from __future__ import annotations

import time
import typing as t

from ..._core.errors import InvalidInput, option_path
from ..._core.root import Root
from . import bounds, kmsg, processes
from .parse import Value
from .sysctls import parts_of, read_sysctls
from .tables import TABLES, Reading, read_table

_UNPARSED_ROWS = 5
_UNPARSED_CHARACTERS = 200
_LEAST_BYTES = 8000
# A table's name in the result, and the counts of what was cut of it.
_BYTES_OF_A_NAME = 100


def gather(root: Root, options: t.Mapping[str, t.Any]) -> dict[str, Value]:
    """Return ``procfs``, ``status``, ``truncated`` and ``unparsed`` for the options of the module.

    :raises InvalidInput: an option cannot be; nothing was read then.
    """
    parts = ("tables", "sysctls", "processes", "kmsg")
    if all(options[part] is None for part in parts):
        # Ansible puts the options that the task has before the others.
        given = next(option for option in options if option in parts)
        raise InvalidInput(given, None, f"The task needs one of {', '.join(parts)}, and null is no value.")
    _check(options)
    wanted_kmsg = kmsg.wanted_of(options["kmsg"], time.monotonic()) if options["kmsg"] is not None else None
    wanted_processes = _wanted_processes(options["processes"]) if options["processes"] is not None else None

    asked = options["tables"] or []
    names = sorted(TABLES) if "all" in asked else list(dict.fromkeys(asked))
    readings = {name: read_table(root, name) for name in names}
    for reading in readings.values():
        reading.value, left_out = bounds.limit_rows(reading.value, options["limit"])
        reading.left_out += left_out
    status: dict[str, str] = {}
    if options["sysctls"]:
        readings["sysctls"], status = read_sysctls(root, options["sysctls"])
    if wanted_processes is not None:
        readings["processes"] = processes.read_processes(root, wanted_processes)
    if wanted_kmsg is not None:
        readings["kmsg"] = kmsg.read_kmsg(root, wanted_kmsg)
    return _result(readings, status, options["max_bytes"])


def _check(options: t.Mapping[str, t.Any]) -> None:
    for index, name in enumerate(options["sysctls"] or []):
        with option_path(f"sysctls[{index}]"):
            parts_of(name)
    for option, value, least in (
        ("limit", options["limit"], 1),
        ("max_bytes", options["max_bytes"], _LEAST_BYTES),
        ("processes.limit", (options["processes"] or {}).get("limit", 1), 1),
        ("kmsg.limit", (options["kmsg"] or {}).get("limit", 1), 1),
    ):
        if value < least:
            raise InvalidInput(option, value, f"The limit must be {least} or more.")


def _wanted_processes(options: t.Mapping[str, t.Any]) -> processes.Wanted:
    return processes.Wanted(
        pids=options.get("pid"),
        name=options.get("name"),
        user=options.get("user"),
        cgroup=options.get("cgroup"),
        domain=options.get("domain"),
        sections=options.get("sections") or (),
        sort=options["sort"],
        limit=options["limit"],
    )


def _result(readings: t.Mapping[str, Reading], status: t.Mapping[str, str], max_bytes: int) -> dict[str, Value]:
    truncated: dict[str, int] = {}
    unparsed: dict[str, list[str]] = {}
    for name, reading in readings.items():
        if reading.unparsed:
            unparsed[name] = [row[:_UNPARSED_CHARACTERS] for row in reading.unparsed[:_UNPARSED_ROWS]]
            if len(reading.unparsed) > _UNPARSED_ROWS:
                truncated[name + ".unparsed"] = len(reading.unparsed) - _UNPARSED_ROWS
    # What may grow beside the tables gets at most a part of the whole, and the tables the rest.
    unparsed, _cut = bounds.fit(unparsed, max_bytes // 8)
    statuses, cut = bounds.fit(
        {**{name: reading.status for name, reading in readings.items()}, **status}, max_bytes // 4
    )
    if cut:
        truncated["status"] = cut
    sizes = {name: bounds.size(reading.value) for name, reading in readings.items()}
    taken = bounds.size(unparsed) + bounds.size(statuses) + _BYTES_OF_A_NAME * (len(readings) + 1)
    shares = bounds.shares(sizes, max_bytes - taken)
    procfs = {}
    for name, reading in readings.items():
        procfs[name], cut = bounds.fit(reading.value, shares[name])
        if reading.left_out + cut:
            truncated[name] = reading.left_out + cut
    return {"procfs": procfs, "status": statuses, "truncated": truncated, "unparsed": unparsed}
