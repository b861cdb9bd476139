# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do two symbol tables belong to the same kernel image? Private to the collection.

KASLR moves the whole image, so that addresses of the same image differ by one number everywhere (the kernel's
arch/x86/boot/compressed/kaslr.c). Compared are the distances of functions from ``_stext``: that symbol is found by
name, as others may share its address.
"""

from __future__ import annotations

import typing as t

from .sources import Source
from .table import SymbolTable

START = "_stext"
_EXAMPLES = 5


def compare(source: Source, other: Source) -> dict[str, t.Any]:
    """Return ``verdict`` (same_kernel, another_kernel, unknown), ``reason``, ``build_id`` and what was compared.

    ``offset`` is what has to be added to an address of ``source`` to get the one of ``other``; null unless both
    are of the same image. ``build_id`` is the one that both are then known to have; null where neither tells it.
    """
    row: dict[str, t.Any] = {
        "with": other.row(),
        "verdict": "unknown",
        "reason": None,
        "build_id": None,
        "offset": None,
        "compared": 0,
        "differing": 0,
        "examples": [],
    }
    if source.build_id and other.build_id and source.build_id != other.build_id:
        row.update(verdict="another_kernel", reason="the build-ids differ")
        return row
    ours, theirs = source.table.function_addresses(), other.table.function_addresses()
    row["reason"] = _why_not(source, ours) or _why_not(other, theirs)
    if row["reason"]:
        return row
    offset = (theirs[START] or 0) - (ours[START] or 0)
    # A name is null when several functions have it.
    shared = [name for name, address in ours.items() if address is not None and theirs.get(name) is not None]
    elsewhere = [name for name in shared if (theirs[name] or 0) - (ours[name] or 0) != offset]
    row.update(compared=len(shared), differing=len(elsewhere), examples=elsewhere[:_EXAMPLES])
    if row["differing"]:
        sentence = "{differing} of {compared} functions lie at another distance from {start}"
        row.update(verdict="another_kernel", reason=sentence.format(start=START, **row))
    elif row["compared"] > 1:
        row.update(verdict="same_kernel", offset=_signed(offset), build_id=source.build_id or other.build_id)
    else:
        row["reason"] = "they have no other function in common"
    return row


def _why_not(source: Source, addresses: t.Mapping[str, int | None]) -> str | None:
    """Return why a source cannot be compared by addresses."""
    if not source.has_addresses:
        return f"{source.name} shows no addresses: {source.reason or 'this source has none'}"
    if addresses.get(START) is None:
        return f"{source.name} has no symbol {START} to measure from"
    return None


def drift(name: str, source: SymbolTable, other: SymbolTable, verdict: str) -> str | None:
    """Return ``none``, ``only_here``, ``only_there`` or ``moved`` for a name; null when neither has it."""
    here, there = bool(source.find(name)), bool(other.find(name))
    if here and there:
        return "moved" if verdict == "another_kernel" and _moved(name, source, other) else "none"
    if not here and not there:
        return None
    return "only_here" if here else "only_there"


def _moved(name: str, source: SymbolTable, other: SymbolTable) -> bool:
    distances = []
    for table in (source, other):
        start = next((symbol.address for symbol in table.find(START)), None)
        distances.append({(symbol.address or 0) - (start or 0) for symbol in table.find(name)})
    return distances[0] != distances[1]


def _signed(number: int) -> str:
    return f"{'-' if number < 0 else ''}{abs(number):#x}"
