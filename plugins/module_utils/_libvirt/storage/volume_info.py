# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said of storage volumes: one typed row each.

Private to the collection. Only reads.
"""

from __future__ import annotations

import typing as t

from ..._core.errors import InvalidInput
from ..connection.connection import Connection, libvirt, libvirt_errors
from ..connection.lookup import check_limit, select
from .storage import INACTIVE_POOL, START_POOL, Rows, Users, Volume, is_local, list_pools
from .volume_read import read_volume

# virStorageVolType, in libvirt's order.
_TYPES = ("file", "block", "dir", "network", "netdir", "ploop")


def volume_rows(
    connection: Connection, pools: t.Sequence[str], names: t.Sequence[str], limit: int
) -> tuple[Rows, bool]:
    """Return the rows of the volumes that are asked for, by pool and name, and whether ``limit`` cut the list.

    :raises InvalidInput: a name that is no active pool here, or no volume of these pools.
    """
    check_limit(limit)
    there = {str(pool.name()): pool for pool in list_pools(connection)}
    chosen = select(pools, sorted(there), "storage pool", "pools")
    found: list[tuple[str, str, t.Any]] = []
    for name in chosen:
        with libvirt_errors(f"Listing the volumes of pool {name}"):
            if there[name].isActive():
                found += [(name, str(volume.name()), volume) for volume in there[name].listAllVolumes()]
            elif name in pools:
                raise InvalidInput(f"pools[{pools.index(name)}]", name, INACTIVE_POOL, START_POOL)
    meant = set(select(names, [name for _pool, name, _volume in found], "volume of these pools"))
    found = sorted((one for one in found if one[1] in meant), key=lambda one: one[:2])
    users = Users(connection, is_local(connection))
    rows = [_volume_row(pool, name, volume, users) for pool, name, volume in found[:limit]]
    return [row for row in rows if row is not None], len(found) > limit


def _volume_row(pool: str, name: str, volume: Volume, users: Users) -> dict[str, t.Any] | None:
    with libvirt_errors(f"Reading volume {pool}/{name}"):
        try:
            kind = volume.info()[0]
            seen, key = read_volume(volume), volume.key()
        except libvirt.libvirtError as error:
            # It vanished meanwhile.
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                return None
            raise
    used_by = users.of_volume(pool, name, seen.path)
    return {
        "pool": pool,
        "name": name,
        "key": key,
        "path": seen.path,
        "type": _TYPES[kind] if kind < len(_TYPES) else "unknown",
        "format": seen.format,
        "capacity_bytes": seen.capacity,
        "allocation_bytes": seen.allocation,
        "backing": None if seen.backing is None else {"path": seen.backing.path, "format": seen.backing.format},
        "used_by": None if used_by is None else sorted({user.domain for user in used_by}),
    }
