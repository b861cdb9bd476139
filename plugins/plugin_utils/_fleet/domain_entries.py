# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The entries of the role domains: which of their keys contradict each other, and what libvirt_domain gets of them.

Private to the collection.
"""

from __future__ import annotations

import typing as t

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


def domain_problems(entries: t.Sequence[Entry]) -> list[str]:
    """Return a sentence for each contradiction in an entry, and for each key that would be ignored."""
    return [f"{entry['name']}: {problem}" for entry in entries for problem in _problems(entry)]


def _state(entry: Entry) -> str:
    return t.cast("str", entry.get("state", "present"))


def _is_described(entry: Entry) -> bool:
    return "memory_mib" in entry and _state(entry) != "absent"


def _problems(entry: Entry) -> t.Iterator[str]:
    described = sorted(key for key in entry if key not in _OWN_KEYS)
    beside = [key for key in described if key != "allow_device_removal"]
    memory, vcpus = entry.get("memory_mib", 0), entry.get("vcpus", 1)
    if entry.get("xml") and beside:
        yield (
            f"{', '.join(beside)} cannot stand beside xml, which is the whole definition: write it into xml, or leave "
            "xml out."
        )
    elif described and not entry.get("xml") and "memory_mib" not in entry and _state(entry) != "absent":
        yield f"{', '.join(described)} would be ignored: a definition is made where memory_mib is given as well."
    elif "max_memory_mib" in entry and _whole(memory) > _whole(entry["max_memory_mib"]):
        yield f"memory_mib {memory} is more than max_memory_mib {entry['max_memory_mib']}."
    if "max_vcpus" in entry and _whole(vcpus) > _whole(entry["max_vcpus"]):
        yield f"vcpus {vcpus} is more than max_vcpus {entry['max_vcpus']}."
    for disk in entry.get("disks") or ():
        sources = [key for key in _SOURCES if key in disk]
        if len(sources) != 1 or ("pool" in disk) != ("volume" in disk):
            target, found = disk.get("target", "without a target"), ", ".join(sources) or "none"
            yield f"disk {target} needs one of file, device, or pool with volume; it has {found}."
    for number, interface in enumerate(entry.get("interfaces") or (), 1):
        if ("network" in interface) == ("bridge" in interface):
            yield f"interface {number} needs one of network and bridge."


def _whole(value: t.Any) -> int:
    """Return a number that may be a text; 0 for anything else, which the module refuses."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
