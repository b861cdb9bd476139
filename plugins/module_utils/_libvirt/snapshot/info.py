# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said of snapshots: one typed row each.

Private to the collection.
"""

from __future__ import annotations

import typing as t

from ..connection.connection import Connection, Domain, libvirt, libvirt_errors
from ..connection.lookup import all_domains, check_limit, select
from .model import NO, parse_snapshot
from .run import list_snapshots


def snapshot_rows(connection: Connection, domains: t.Sequence[str], limit: int) -> tuple[list[dict[str, t.Any]], bool]:
    """Return the rows of the snapshots of the domains that are asked for, and whether ``limit`` cut the list.

    :raises InvalidInput: a domain that does not exist here, or an invalid limit.
    :raises TapvirtError: the driver knows no snapshots.
    """
    check_limit(limit)
    there = all_domains(connection)
    with libvirt_errors("Listing the snapshots"):
        snapshots = [
            (name, one) for name in select(domains, there, option="domains") for one in _snapshots_of(there[name])
        ]
        rows = [_row(domain, snapshot) for domain, snapshot in snapshots[:limit]]
    return [row for row in rows if row is not None], len(snapshots) > limit


def _snapshots_of(domain: Domain) -> list[t.Any]:
    try:
        return list_snapshots(domain, libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)
    except libvirt.libvirtError as error:
        # It vanished meanwhile.
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return []
        raise


def _row(domain: str, snapshot: t.Any) -> dict[str, t.Any] | None:
    """Return the row of one snapshot; null where it vanished meanwhile."""
    try:
        found = parse_snapshot(snapshot.getXMLDesc(0))
        children, current = snapshot.numChildren(), bool(snapshot.isCurrent())
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT):
            return None
        raise
    return {
        "domain": domain,
        "name": found.name,
        "description": found.description,
        "parent": found.parent,
        "children": children,
        "current": current,
        "state": found.state,
        "created_seconds": found.created_seconds,
        "kind": found.kind,
        "memory": None if found.memory == NO else found.memory,
        "disks": [
            {
                "target": target,
                "snapshot": None if disk.mode == NO else disk.mode,
                "file": disk.file,
                "image": found.sources.get(target),
            }
            for target, disk in found.disks.items()
        ],
        "files": found.files,
    }
