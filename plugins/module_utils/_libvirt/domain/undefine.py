# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The artifacts that an undefine deletes or keeps. Every file that it deletes is named in advance.

Private to the collection. ``find_belongings`` reads; the rest is pure.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import TapvirtError
from ..._core.plan import Change
from ..connection.connection import Domain, default_if_unsupported
from ..disk.disks import nvram_path
from ..disk.removal import DiskToDelete
from .lifecycle import TPM_KEPT_SINCE

_MOST_NAMES = 20


@dataclasses.dataclass(frozen=True)
class DomainArtifacts:
    """What a domain has beside its definition and disks; a file that is known not to be there is null.

    ``keeps_tpm`` tells whether this libvirt can undefine a domain without taking its TPM's state.
    """

    managed_save: str | None = None
    snapshots: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    nvram: str | None = None
    tpm: str | None = None
    keeps_tpm: bool = True
    disks: tuple[DiskToDelete, ...] = ()


def find_belongings(
    domain: Domain, stored: ET.Element, managed_save: bool, state_directory: str | None, library_version: int
) -> DomainArtifacts:
    """Find what goes, or could go, with a domain.

    :param state_directory: where the managed libvirt keeps its state, on this host; null: not known, or elsewhere.
    """
    name, uuid = str(domain.name()), domain.UUIDString()
    nvram = nvram_path(stored)
    tpm = None
    if stored.find("devices/tpm/backend[@type='emulator']") is not None:
        tpm = _below(state_directory, "swtpm", uuid) or "the TPM's state"
    saved = _below(state_directory, "qemu", "save", name + ".save") or "saved memory"
    return DomainArtifacts(
        managed_save=saved if managed_save else None,
        snapshots=default_if_unsupported(lambda: tuple(str(one.getName()) for one in domain.listAllSnapshots()), ()),
        checkpoints=default_if_unsupported(
            lambda: tuple(str(one.getName()) for one in domain.listAllCheckpoints()), ()
        ),
        nvram=None if state_directory is not None and nvram and not os.path.exists(nvram) else nvram,
        tpm=None if state_directory is not None and tpm and not os.path.isdir(tpm) else tpm,
        keeps_tpm=library_version >= TPM_KEPT_SINCE,
    )


def _below(directory: str | None, *parts: str) -> str | None:
    return None if directory is None else os.path.join(directory, *parts)


def refuse_unnamed_losses(name: str, found: DomainArtifacts, remove: t.Collection[str]) -> None:
    """Refuse to lose what was not named.

    :raises TapvirtError: an undefine would take something that ``remove`` does not name.
    """
    for what, there in (
        ("managed_save", bool(found.managed_save)),
        ("snapshots", bool(found.snapshots)),
        ("checkpoints", bool(found.checkpoints)),
        ("tpm", bool(found.tpm) and not found.keeps_tpm),
    ):
        if there and what not in remove:
            shown = "TPM state (this libvirt cannot keep it)" if what == "tpm" else what.replace("_", " ")
            raise TapvirtError(
                f"Undefining domain {name!r} would lose its {shown}. Nothing was changed. Add {what} to remove to "
                "allow that."
            )


def loss_changes(name: str, found: DomainArtifacts, remove: t.Collection[str]) -> list[Change]:
    """Return a row for everything beside definition and disks that goes: files by their path, the rest by its names."""
    lost: list[tuple[str, t.Any]] = [
        ("managed_save", found.managed_save),
        ("snapshots", _first(found.snapshots)),
        ("checkpoints", _first(found.checkpoints)),
        ("nvram", found.nvram),
        ("tpm", found.tpm),
    ]
    return [
        Change(f"{name} {what}", there, None, "undefine", "named in remove")
        for what, there in lost
        if there and what in remove
    ]


def _first(names: t.Sequence[str]) -> list[str]:
    more = len(names) - _MOST_NAMES
    return [*names[:_MOST_NAMES], *([f"and {more} more"] if more > 0 else [])]


def disk_changes(name: str, disks: t.Iterable[DiskToDelete]) -> list[Change]:
    """Return a row for each disk that goes."""
    return [
        Change(f"{name} disk {one.target}", one.where, None, one.how, "named in remove_disks")
        for one in disks
        if one.there
    ]
