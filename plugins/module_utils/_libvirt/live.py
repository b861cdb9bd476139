# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running domain against its stored definition: what waits for a restart, and what can be changed while it runs.

A running domain's XML always holds more than the stored one (aliases, ports, labels, paths). What is compared is what
the stored definition says, plus what only an edit of the running domain can have added.

Private to the collection. Pure.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
import xml.etree.ElementTree as ET

from .._core.plan import Change
from .domain_xml import MARK_PREFIX, Difference, differences, size_bytes, text_of

ASKED_URI = "https://github.com/tapvirt/tapvirt.host/asked/1"
_ASKED_TAG = "{" + ASKED_URI + "}asked"

# What only the running domain has, yet nobody but a user (or a program of theirs) can have put there.
_ADDED_BY_HAND = re.compile(
    r"devices/(?:disk|interface|hostdev|filesystem|memory|redirdev|rng|shmem|vsock)\[[^/]*\]\Z"
    r"|vcpu@current\Z"
    r"|devices/disk\[[^/]*\]/(?:source\Z|readonly|shareable|iotune)"
    r"|devices/interface\[[^/]*\]/(?:link|bandwidth|mtu)"
)
# What a start changes by itself, although the stored definition says otherwise.
_FILLED_IN = re.compile(
    r"os@firmware\Z|os/(?:loader|nvram|firmware)\b"
    r"|cpu@check\Z"
    r"|clock@(?:adjustment|basis)\Z"
    r"|metadata\b|title\Z|description\Z"
    r"|devices/graphics\[[^/]*\](?:@(?:port|autoport|tlsPort|websocket)\Z|/listen)"
    r"|devices/(?:serial|console|channel)\[[^/]*\]/source@path\Z"
    r"|devices/interface\[[^/]*\]/target@dev\Z"
)


@dataclasses.dataclass(frozen=True)
class LiveEdit:
    """An edit of a running domain: ``kind`` is ``memory`` (values in KiB) or ``vcpus`` (counts)."""

    kind: str
    path: str
    before: int
    after: int


def pending_differences(stored: ET.Element, running: ET.Element) -> list[Difference]:
    """Return where a running domain is not what its stored definition says: ``before`` runs, ``after`` is stored."""
    cpu = stored.find("cpu")
    expanded = cpu is not None and cpu.get("mode") != "custom"
    return [
        difference
        for difference in differences(running, stored)
        if not _FILLED_IN.match(difference.path)
        and (difference.after is not None or _ADDED_BY_HAND.match(difference.path))
        and not (expanded and difference.path.startswith("cpu"))
    ]


def pending_row(what: str, running: t.Any, stored: t.Any, reason: str, secret: bool = False) -> dict[str, t.Any]:
    """Return a row of ``pending``: what runs, what is stored (or was asked for), and what it waits for."""
    row = Change(what, running, stored, "", "", secret).row()
    return {"what": what, "running": row["before"], "stored": row["after"], "reason": reason}


def live_edits(stored: ET.Element, running: ET.Element) -> list[LiveEdit]:
    """Return the edits that bring a running domain nearer to its stored definition, in the order to make them."""
    edits = []
    memory, wanted_memory = _memory_kib(running), _memory_kib(stored)
    room = size_bytes(running.find("memory"))
    if memory and wanted_memory and room and memory != wanted_memory and wanted_memory * 1024 <= room:
        edits.append(LiveEdit("memory", "currentMemory", memory, wanted_memory))
    vcpus, wanted_vcpus = vcpus_of(running), vcpus_of(stored)
    if vcpus[0] != wanted_vcpus[0] and wanted_vcpus[0] <= vcpus[1]:
        edits.append(LiveEdit("vcpus", "vcpu@current", vcpus[0], wanted_vcpus[0]))
    return edits


def _memory_kib(root: ET.Element) -> int | None:
    size = size_bytes(root.find("currentMemory")) or size_bytes(root.find("memory"))
    return None if size is None else size // 1024


def vcpus_of(root: ET.Element) -> tuple[int, int]:
    """Return how many processors a definition switches on, and how many it has at most."""
    element = root.find("vcpu")
    most = int(text_of(element) or 1)
    return int(element.get("current") or most) if element is not None else most, most


def asked_memory(running: ET.Element) -> int | None:
    """Return the KiB that a guest was asked to shrink or grow to and that it did not follow, as noted in it."""
    note = running.find("metadata/" + _ASKED_TAG)
    value = None if note is None else note.get("memory")
    return int(value) if value and value.isdigit() else None


def asked_note(memory_kib: int) -> tuple[str, str, str]:
    """Return the note for ``asked_memory``: element text, prefix and namespace, as setMetadata takes them."""
    return '<asked memory="{0}"/>'.format(memory_kib), MARK_PREFIX + "-asked", ASKED_URI
