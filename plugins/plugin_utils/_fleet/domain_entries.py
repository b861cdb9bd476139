# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The entries of the role domains: which of their keys contradict each other, and what libvirt_domain gets of them.

Private to the collection.
"""

from __future__ import annotations

import typing as t

from ...module_utils._core.errors import InvalidInput
from .merge import domain_origins
from .origins import option_of

Entry = t.Mapping[str, t.Any]

# Keys that need no definition made from the entry.
_OWN_KEYS = ("name", "state", "autostart", "xml")
_SOURCES = ("file", "device", "pool")


class DomainItem(t.TypedDict):
    """An element of the option ``domains`` of :ansplugin:`tapvirt.host.libvirt_domain#module`."""

    name: str
    state: str
    autostart: t.Any
    xml: str | None
    allow_device_removal: t.Any


def domain_items(render: t.Callable[[Entry], str], entries: t.Sequence[Entry]) -> list[DomainItem]:
    """Return the entries as libvirt_domain takes them.

    :param render: makes the definition of an entry; called where the entry describes one and has no ``xml``.
    """
    return [
        DomainItem(
            name=entry["name"],
            state=_state(entry),
            autostart=entry.get("autostart"),
            xml=entry.get("xml") or (render(entry) if _is_described(entry) else None) or None,
            allow_device_removal=entry.get("allow_device_removal", False),
        )
        for entry in entries
    ]


def domain_problems(entries: t.Sequence[Entry], tables: t.Any) -> list[str]:
    """Return a message for each contradiction in an entry, and for the keys that would be ignored.

    :param entries: what :func:`.merge.merge_domains` returned of the tables.
    :param tables: lists of entries, by the name of their variable; the messages have their paths.
    """
    problems = []
    for entry, origin in zip(entries, domain_origins(entries, tables), strict=True):
        for error in _problems(entry):
            key, bracket, index = error.option.partition("[")
            place = option_of(origin, key) + bracket + index
            problems.append(InvalidInput(place, error.value, error.problem, error.hint).message)
    return problems


def _state(entry: Entry) -> str:
    return t.cast("str", entry.get("state", "present"))


def _is_described(entry: Entry) -> bool:
    return "memory_mib" in entry and _state(entry) != "absent"


def _problems(entry: Entry) -> t.Iterator[InvalidInput]:
    """Return an error for each problem; its option is below the entry."""
    name = f"domain {entry['name']!r}"
    described = sorted(key for key in entry if key not in _OWN_KEYS)
    beside = [key for key in described if key != "allow_device_removal"]
    memory, vcpus = entry.get("memory_mib", 0), entry.get("vcpus", 1)
    if entry.get("xml") and beside:
        problem = f"The XML is the whole definition of {name}, so {', '.join(beside)} cannot be combined with it."
        yield InvalidInput("xml", None, problem, f"Write {', '.join(beside)} into xml, or leave xml out.")
    elif described and not entry.get("xml") and "memory_mib" not in entry and _state(entry) != "absent":
        problem = f"A size is needed, because {', '.join(described)} of {name} would be ignored without it."
        yield InvalidInput("memory_mib", None, problem)
    elif "max_memory_mib" in entry and _whole(memory) > _whole(entry["max_memory_mib"]):
        problem = f"The memory of {name} is more than max_memory_mib, {entry['max_memory_mib']}."
        yield InvalidInput("memory_mib", memory, problem)
    if "max_vcpus" in entry and _whole(vcpus) > _whole(entry["max_vcpus"]):
        problem = f"The number of virtual CPUs of {name} is more than max_vcpus, {entry['max_vcpus']}."
        yield InvalidInput("vcpus", vcpus, problem)
    for index, disk in enumerate(entry.get("disks") or ()):
        sources = [key for key in _SOURCES if key in disk]
        if len(sources) != 1 or ("pool" in disk) != ("volume" in disk):
            target, found = disk.get("target", "without a target"), ", ".join(sources) or "none"
            problem = f"Disk {target} of {name} needs one of file, device, or pool with volume. The disk has {found}."
            yield InvalidInput(f"disks[{index}]", None, problem)
    for index, interface in enumerate(entry.get("interfaces") or ()):
        if ("network" in interface) == ("bridge" in interface):
            yield InvalidInput(f"interfaces[{index}]", None, f"An interface of {name} needs one of network and bridge.")


def _whole(value: t.Any) -> int:
    """Return a number that may be a text; 0 for anything else, which the module refuses."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
