# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done to a storage pool: a pure function of what is wanted and what was observed.

Private to the collection. Rules: libvirt's page "Storage pool and volume XML format".
"""

from __future__ import annotations

import copy
import dataclasses
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, nearest_names
from ..._core.plan import Change
from ..connection.xml import Difference, differences, text_of, to_text
from ..domain.live.edits import pending_row
from .storage import unknown_users

# What libvirt counts. It also fills in the permissions of an existing directory. Requested permissions take
# effect only when a directory is created.
_COUNTED = ("capacity", "allocation", "available", "uuid")
_MAX_PENDING = 20
_MAX_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class WantedPool:
    """One pool as the user wants it; ``root`` is the parsed ``xml``."""

    name: str
    state: str
    root: ET.Element | None = None
    autostart: bool | None = None
    build: bool = False
    allow_in_use: bool = False
    xml: str | None = None


@dataclasses.dataclass(frozen=True)
class ObservedPool:
    """One pool as it was found. ``stored`` and ``running`` (only while active) are parsed XML.

    ``users``: running domains that stand on it; null where the driver cannot tell.
    """

    uuid: str
    active: bool
    persistent: bool
    autostart: bool
    stored: ET.Element
    running: ET.Element | None = None
    users: tuple[str, ...] | None = ()


@dataclasses.dataclass
class PoolPlan:
    """The steps for one pool, in the order of the fields, and what would still wait after them."""

    changes: list[Change] = dataclasses.field(default_factory=list)
    pending: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    define: str | None = None
    autostart: bool | None = None
    build: bool = False
    start: bool = False
    stop: bool = False
    undefine: bool = False


def type_of(root: ET.Element) -> str:
    """Return a pool's type."""
    return root.get("type", "")


def path_of(root: ET.Element) -> str | None:
    """Return the path below which a pool's volumes are, where it has one."""
    return text_of(root, "target/path")


def comparable(root: ET.Element) -> ET.Element:
    """Return a definition without what is not the user's to say, and without the order of source devices."""
    bare = copy.deepcopy(root)
    for tag in _COUNTED:
        for element in bare.findall(tag):
            bare.remove(element)
    target, source = bare.find("target"), bare.find("source")
    if target is not None:
        for element in target.findall("permissions"):
            target.remove(element)
    if source is not None:
        source[:] = sorted(source, key=lambda element: (element.tag, element.get("path", ""), element.get("name", "")))
        if not len(source) and not source.attrib:
            bare.remove(source)
    return bare


def pending_rows(stored: ET.Element, running: ET.Element) -> list[dict[str, t.Any]]:
    """Return where an active pool is not what its definition says."""
    rows = differences(comparable(running), comparable(stored))
    return [pending_row(row.path, row.before, row.after, "restart", row.secret) for row in rows[:_MAX_PENDING]]


def plan_pool(
    wanted: WantedPool,
    observed: ObservedPool | None,
    canonical: ET.Element | None,
    is_missing: t.Callable[[str], bool | None],
    known: t.Collection[str] = (),
) -> PoolPlan:
    """Return the plan for one pool.

    :param canonical: what libvirt makes of the wanted XML; null without XML.
    :param is_missing: tells whether a directory is not there; null where that cannot be seen from here.
    :param known: the names of all pools, to help with a wrong one.
    :raises InvalidInput: it cannot be done, or running domains would lose their volumes.
    """
    if wanted.state == "absent":
        return _plan_absence(wanted, observed)
    plan = PoolPlan()
    stored = _plan_definition(plan, wanted, observed, canonical, known)
    persistent = plan.define is not None or (observed is not None and observed.persistent)
    if wanted.autostart is not None and wanted.autostart != (observed.autostart if observed else False):
        if not persistent:
            problem = f"Pool {wanted.name!r} has no stored definition, so it cannot start with the host"
            raise InvalidInput("autostart", wanted.autostart, problem, "Set xml to define the pool")
        plan.autostart = wanted.autostart
        _add(plan, wanted, "autostart", not wanted.autostart, wanted.autostart, "setAutostart", "as wanted")
    active = observed is not None and observed.active
    if wanted.state == "active" and not active:
        _plan_start(plan, wanted, observed, stored, is_missing(path_of(stored) or "/"))
    elif wanted.state == "inactive" and active:
        if not persistent:
            problem = f"Pool {wanted.name!r} has no stored definition, so it would disappear when it stops"
            raise InvalidInput("state", wanted.state, problem, "Set state: absent, or set xml to define the pool")
        _plan_stop(plan, wanted, observed)
    if observed is not None and observed.running is not None and not plan.stop:
        plan.pending = pending_rows(stored, observed.running)
    return plan


def _add(plan: PoolPlan, wanted: WantedPool, part: str, before: t.Any, after: t.Any, how: str, why: str) -> None:
    plan.changes.append(Change(f"{wanted.name} {part}", before, after, how, why))


def _plan_definition(
    plan: PoolPlan,
    wanted: WantedPool,
    observed: ObservedPool | None,
    canonical: ET.Element | None,
    known: t.Collection[str],
) -> ET.Element:
    """Plan the stored definition; return what it will be."""
    if canonical is None or wanted.root is None:
        if observed is None:
            problem = "No storage pool has this name, and the task has no xml to define one."
            raise InvalidInput("name", wanted.name, problem, candidates=nearest_names(wanted.name, known))
        return observed.stored
    if observed is None:
        _add(plan, wanted, "definition", None, summary(canonical), "defineXML", "there is no such pool")
        plan.define = to_text(wanted.root)
        return canonical
    uuid = text_of(wanted.root, "uuid")
    if uuid is not None and uuid.lower() != observed.uuid:
        problem = f"Pool {wanted.name!r} has the UUID {observed.uuid}, and the definition has {uuid}"
        raise InvalidInput("xml", None, problem, "Leave <uuid> out to keep the UUID")
    rows: list[Difference] = differences(comparable(observed.stored), comparable(canonical))
    for row in rows:
        _add(plan, wanted, row.path, row.before, row.after, "defineXML", "the definition is another one")
    if not observed.persistent:
        _add(plan, wanted, "persistent", False, True, "defineXML", "the pool would vanish when it stops")
    if not plan.changes:
        return observed.stored
    plan.define = to_text(_with_identity(wanted.root, observed))
    return canonical


def _with_identity(root: ET.Element, observed: ObservedPool) -> ET.Element:
    """Return a copy of the wanted definition with the UUID, and with the stored permissions where it has none.

    Permissions are not compared, so a definition that leaves them out would lose them without a row.
    """
    root = copy.deepcopy(root)
    element = root.find("uuid")
    if element is None:
        element = ET.SubElement(root, "uuid")
    element.text = observed.uuid
    target, permissions = root.find("target"), observed.stored.find("target/permissions")
    if target is not None and permissions is not None and target.find("permissions") is None:
        target.append(copy.deepcopy(permissions))
    return root


def summary(root: ET.Element) -> dict[str, t.Any]:
    """Return what a definition is, in a few words."""
    return {"type": type_of(root), "path": path_of(root)}


def _plan_start(
    plan: PoolPlan, wanted: WantedPool, observed: ObservedPool | None, stored: ET.Element, missing: bool | None
) -> None:
    kind = type_of(stored)
    if kind == "dir":
        if missing or (missing is None and wanted.build):
            plan.build = True
            _add(plan, wanted, "directory", None, path_of(stored), "build", "it is not there yet")
    elif wanted.build:
        plan.build = True
        _add(plan, wanted, "build", None, kind, "build", "asked for; what is made already stays")
    plan.start = True
    _add(plan, wanted, "state", "inactive" if observed else None, "active", "create", "as wanted")


def _plan_stop(plan: PoolPlan, wanted: WantedPool, observed: ObservedPool | None) -> None:
    refuse_users(wanted, observed)
    plan.stop = True
    _add(plan, wanted, "state", "active", "inactive", "destroy", "as wanted; nothing in it is deleted")


def refuse_users(wanted: WantedPool, observed: ObservedPool | None) -> None:
    """Refuse to stop or undefine a pool that running domains use.

    :raises InvalidInput: running domains use the pool, or the driver cannot tell.
    """
    if observed is None or wanted.allow_in_use:
        return
    if observed.users is None:
        raise InvalidInput("state", wanted.state, *unknown_users(f"pool {wanted.name!r}"))
    if observed.users:
        shown = ", ".join(observed.users[:_MAX_SHOWN]) + (", ..." if len(observed.users) > _MAX_SHOWN else "")
        problem = f"Running domains use pool {wanted.name!r}: {shown}"
        hint = "Stop the domains, or set allow_in_use: true to do it anyway"
        raise InvalidInput("state", wanted.state, problem, hint)


def _plan_absence(wanted: WantedPool, observed: ObservedPool | None) -> PoolPlan:
    plan = PoolPlan()
    if observed is None:
        return plan
    refuse_users(wanted, observed)
    if observed.active:
        _plan_stop(plan, wanted, observed)
    if observed.persistent:
        plan.undefine = True
        why = "as wanted; its volumes and their directory stay"
        _add(plan, wanted, "definition", summary(observed.stored), None, "undefine", why)
    return plan
