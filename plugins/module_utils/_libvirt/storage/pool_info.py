# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said of storage pools: one typed row each.

Private to the collection. Only reads.
"""

from __future__ import annotations

import typing as t

from ..connection.connection import Connection, libvirt, libvirt_errors
from ..connection.lookup import check_limit, select
from .pool_plan import path_of, pending_rows, type_of
from .pool_run import observe_pool
from .storage import Pool, Rows, list_pools


def pool_rows(connection: Connection, names: t.Sequence[str], limit: int) -> tuple[Rows, bool]:
    """Return the rows of the pools that are asked for, by name, and whether ``limit`` cut the list.

    :raises InvalidInput: a name that is no pool here.
    """
    check_limit(limit)
    pools = {str(pool.name()): pool for pool in list_pools(connection)}
    chosen = sorted(select(names, pools, "storage pool"))
    rows = [_pool_row(name, pools[name]) for name in chosen[:limit]]
    return [row for row in rows if row is not None], len(chosen) > limit


def _pool_row(name: str, pool: Pool) -> dict[str, t.Any] | None:
    with libvirt_errors(f"Reading pool {name}"):
        try:
            seen = observe_pool(pool)
            _state, capacity, allocation, available = pool.info()
            volumes = pool.numOfVolumes() if seen.active else None
        except libvirt.libvirtError as error:
            # It vanished meanwhile.
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                return None
            raise
    root = seen.running if seen.running is not None else seen.stored
    return {
        "name": name,
        "uuid": seen.uuid,
        "type": type_of(root),
        "state": "active" if seen.active else "inactive",
        "persistent": seen.persistent,
        "autostart": seen.autostart,
        "path": path_of(root),
        "capacity_bytes": capacity if seen.active else None,
        "allocation_bytes": allocation if seen.active else None,
        "available_bytes": available if seen.active else None,
        "volumes": volumes,
        "pending": [] if seen.running is None else pending_rows(seen.stored, seen.running),
    }
