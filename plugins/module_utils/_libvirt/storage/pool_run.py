# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many storage pools in one go: check the input, observe, plan, apply pool by pool, verify.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, TapvirtError, error_row
from ..connection.connection import Connection, LibvirtFailure, connected, libvirt, libvirt_errors
from ..connection.schema import empty_host, schema_error
from ..connection.xml import fill_or_check_name, parse_definition, text_of, to_text
from ..item_run import Item, ItemRun, check_names, entry_path
from .pool_plan import ObservedPool, PoolPlan, WantedPool, path_of, plan_pool, refuse_users, type_of
from .storage import Pool, Users, check_has_storage, is_local, list_pools

_PREFIX = "{http://libvirt.org/schemas/storagepool/"


def read_wanted(items: t.Sequence[t.Mapping[str, t.Any]], option: str = "pools") -> list[WantedPool]:
    """Turn a user's list into ``WantedPool``, all of it checked.

    :param option: the option that lists the items; empty where the task's own options describe its only item.
    :raises InvalidInput: a name that is invalid or given twice, XML that is malformed or has another name.
    """
    check_names(option, (item["name"] for item in items))
    wanted = []
    for index, item in enumerate(items):
        xml = item.get("xml") or None
        root = None
        if xml is not None:
            with entry_path(option, index):
                root = parse_definition(xml, "pool")
                fill_or_check_name("pool", item["name"], root)
        wanted.append(
            WantedPool(
                name=item["name"],
                state=item["state"],
                root=root,
                autostart=item.get("autostart"),
                build=item["build"],
                allow_in_use=item["allow_in_use"],
                xml=xml,
            )
        )
    return wanted


_Item = Item[WantedPool, ObservedPool, PoolPlan]


class PoolRun(ItemRun[WantedPool, ObservedPool, PoolPlan]):
    """Converges storage pools on one connection."""

    rows = "pools"

    def __init__(self, wanted: t.Sequence[WantedPool], option: str | None = None) -> None:
        """Prepare the run.

        :param option: as ``read_wanted`` takes it.
        """
        super().__init__(wanted, PoolPlan, option)
        self._local = False
        # What libvirt makes of the wanted definitions, or why it refuses, by name; asked for once.
        self._canonical: dict[str, ET.Element | InvalidInput] = {}
        # The pools that are there or planned: the name by UUID, and by the directory of those that are one.
        self._owners: dict[str, str] = {}
        self._directories: dict[str, str] = {}

    def converge(self, uri: str, timeout_seconds: float, check_mode: bool, with_diff: bool) -> dict[str, t.Any]:
        """Plan, apply unless in check mode, verify; return the module's result.

        :raises TapvirtError: at least one pool failed; the rows of all are in its fields.
        """
        wanted = [item.wanted for item in self._items if item.wanted.root is not None and item.wanted.state != "absent"]
        check_has_storage(uri)
        with connected(uri, timeout_seconds) as connection:
            self._local = is_local(connection)
            self._canonical = canonical_pools(wanted)
            self.run(connection, check_mode)
        return self.result(check_mode, with_diff)

    # ---- observe ----

    def _observe(self, connection: Connection) -> None:
        pools = list_pools(connection)
        names = {item.wanted.name: item for item in self._items}
        leaving = any(item.wanted.state in ("inactive", "absent") for item in self._items)
        users = Users(connection, self._local) if leaving else None
        self._owners, self._directories = {}, {}
        found: dict[str, ObservedPool] = {}
        for pool in pools:
            name = str(pool.name())
            try:
                with libvirt_errors(f"Reading pool {name}"):
                    seen = observe_pool(pool)
                    if name in names:
                        seen = found[name] = self._with_users(names[name], pool, seen, users)
            except LibvirtFailure as error:
                # It vanished meanwhile.
                if error.code == libvirt.VIR_ERR_NO_STORAGE_POOL:
                    continue
                raise
            self._owners[seen.uuid] = name
            path = path_of(seen.stored)
            if type_of(seen.stored) == "dir" and path is not None:
                self._directories[path] = name
        for item in self._items:
            item.observed = found.get(item.wanted.name)

    @staticmethod
    def _with_users(item: _Item, pool: Pool, seen: ObservedPool, users: Users | None) -> ObservedPool:
        if users is None or item.wanted.state not in ("inactive", "absent"):
            return seen
        root = seen.running if seen.running is not None else seen.stored
        # What is below /dev belongs to many pools; the volumes themselves tell.
        directory = path_of(root)
        directory = None if directory is None or directory.startswith("/dev") else directory
        paths = [str(volume.path()) for volume in pool.listAllVolumes()] if seen.active else []
        running = users.running_in(item.wanted.name, directory, paths)
        return dataclasses.replace(seen, users=None if running is None else tuple(running))

    # ---- plan ----

    def _plan(self, item: _Item) -> PoolPlan:
        wanted = item.wanted
        canonical = self._canonical.get(wanted.name)
        if isinstance(canonical, InvalidInput):
            raise canonical
        plan = plan_pool(wanted, item.observed, canonical, self._is_missing, self._owners.values())
        if canonical is not None and plan.define is not None:
            self._check_others(wanted, canonical)
        return plan

    def _is_missing(self, path: str) -> bool | None:
        return not os.path.isdir(path) if self._local else None

    def _check_others(self, wanted: WantedPool, canonical: ET.Element) -> None:
        uuid = text_of(wanted.root, "uuid")
        owner = self._owners.setdefault(uuid.lower(), wanted.name) if uuid else wanted.name
        if owner != wanted.name:
            problem = f"The UUID {uuid} is the one of pool {owner!r}, and a pool cannot be renamed"
            raise InvalidInput("xml", None, problem, "Leave <uuid> out to define a new pool")
        path = path_of(canonical)
        if type_of(canonical) != "dir" or path is None:
            return
        other = self._directories.setdefault(path, wanted.name)
        if other != wanted.name:
            raise InvalidInput("xml", None, f"The directory {path} already belongs to pool {other!r}")

    # ---- apply ----

    def _apply(self, connection: Connection, item: _Item) -> None:
        name, plan = item.wanted.name, item.plan
        if plan.define is not None:
            with libvirt_errors(f"Defining pool {name}"):
                connection.storagePoolDefineXML(plan.define, 0)
            item.done = True
        with libvirt_errors(f"Looking up pool {name}"):
            pool = connection.storagePoolLookupByName(name)
        if plan.autostart is not None:
            with libvirt_errors(f"Setting autostart of pool {name}"):
                pool.setAutostart(int(plan.autostart))
            item.done = True
        if plan.build:
            with libvirt_errors(f"Building pool {name}"):
                _build(pool)
            item.done = True
        if plan.stop or plan.undefine:
            # A guest may have started since the plan was made.
            with libvirt_errors(f"Reading pool {name}"):
                now = self._with_users(item, pool, observe_pool(pool), Users(connection, self._local))
            refuse_users(item.wanted, now)
        for asked, doing, step in (
            (plan.start, "Starting", pool.create),
            (plan.stop, "Stopping", pool.destroy),
            (plan.undefine, "Undefining", pool.undefine),
        ):
            if asked:
                with libvirt_errors(f"{doing} pool {name}"):
                    step()
                item.done = True

    def _row(self, item: _Item, check_mode: bool) -> dict[str, t.Any]:
        wanted, observed, plan = item.wanted, item.observed, item.plan
        state = "absent" if observed is None else "active" if observed.active else "inactive"
        if check_mode and plan.changes and not item.error:
            state = _planned_state(wanted, state)
        return {
            "name": wanted.name,
            "uuid": observed.uuid if observed else None,
            "state": state,
            "changed": item.changed(check_mode),
            "pending": plan.pending,
            "error": error_row(item.error),
        }


def _planned_state(wanted: WantedPool, state: str) -> str:
    if wanted.state == "present":
        return "inactive" if state == "absent" else state
    return wanted.state


def _build(pool: Pool) -> None:
    """Build a pool; never overwrite existing data."""
    kind = type_of(stored_xml(pool))
    try:
        # An existing directory is kept. For the others, libvirt checks first.
        pool.build(0 if kind == "dir" else libvirt.VIR_STORAGE_POOL_BUILD_NO_OVERWRITE)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_STORAGE_POOL_BUILT:
            raise


def observe_pool(pool: Pool) -> ObservedPool:
    """Read one pool."""
    active, persistent = bool(pool.isActive()), bool(pool.isPersistent())
    return ObservedPool(
        uuid=pool.UUIDString(),
        active=active,
        persistent=persistent,
        autostart=bool(pool.autostart()) if persistent else False,
        stored=stored_xml(pool),
        running=ET.fromstring(pool.XMLDesc(0)) if active else None,
    )


def stored_xml(pool: Pool) -> ET.Element:
    """Return a pool's stored definition; the test driver has only one."""
    try:
        text = pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
            raise
        text = pool.XMLDesc(0)
    return ET.fromstring(text)


def canonical_pools(wanted: t.Sequence[WantedPool]) -> dict[str, ET.Element | InvalidInput]:
    """Return what libvirt makes of the definitions, or why it refuses them, by name.

    Libvirt's test driver lives in its client library and reads a pool as the storage driver does.
    """
    canonical: dict[str, ET.Element | InvalidInput] = {}
    if not wanted:
        return canonical
    with empty_host() as connection:
        for one in wanted:
            try:
                canonical[one.name] = _canonical(connection, one)
            except InvalidInput as error:
                canonical[one.name] = error
    return canonical


def _canonical(connection: Connection, wanted: WantedPool) -> ET.Element:
    if wanted.root is None:
        raise TapvirtError(f"Pool {wanted.name!r} has no definition.")
    # Older versions do not have it; without it a wrong name in the XML is dropped silently, as everywhere.
    flags = getattr(libvirt, "VIR_STORAGE_POOL_DEFINE_VALIDATE", 0)
    try:
        pool = connection.storagePoolDefineXML(to_text(wanted.root), flags)
    except libvirt.libvirtError as error:
        reason = str(error.get_error_message())
        if error.get_error_code() == libvirt.VIR_ERR_XML_INVALID_SCHEMA:
            raise schema_error(wanted.root, reason, wanted.xml) from error
        problem = f"libvirt refuses the definition of pool {wanted.name!r}: {' '.join(reason.split())}"
        raise InvalidInput("xml", None, problem) from error
    root = ET.fromstring(pool.XMLDesc(0))
    pool.undefine()
    # Options of one backend are known to the storage driver only.
    known = {child.tag for child in root}
    root.extend(child for child in wanted.root if child.tag.startswith(_PREFIX) and child.tag not in known)
    return root
