# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of domains in one go: check the input, observe, plan, apply one after another, verify.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, NoEffect, TapvirtError, did_you_mean, duplicate, error_row
from ..connection.connection import Connection, Domain, check_uri, connected, is_unsupported, libvirt, libvirt_errors
from ..connection.deadline import call_with_deadline
from ..connection.lookup import find_domain
from ..connection.xml import check_name
from ..disk.images import is_of_this_host
from ..domain.lifecycle import state_of
from ..item_run import Item, ItemRun, entry_path
from .model import NO, Snapshot, domain_disks, parse_snapshot, snapshot_xml
from .plan import memory_file_to_go, plan_snapshot
from .plan_create import file_error
from .projection import Observed, ProjectedState, SnapshotPlan, Wanted, WantedDisk


def read_wanted(items: t.Sequence[t.Mapping[str, t.Any]], option: str = "snapshots") -> list[Wanted]:
    """Turn a user's list into ``Wanted``, all of it checked.

    :param option: the option that lists the items; empty where the task's own options describe its only item.
    :raises InvalidInput: an invalid name, an item given twice, or a revert next to other items of its domain.
    """
    wanted: list[Wanted] = []
    for index, item in enumerate(items):
        with entry_path(option, index):
            wanted.append(_read_entry(item))
    for index, one in enumerate(wanted):
        with entry_path(option, index):
            _check_others(one, wanted[:index], wanted, option)
    return wanted


def _read_entry(item: t.Mapping[str, t.Any]) -> Wanted:
    check_name("domain", item["domain"])
    _check_snapshot_name(item["name"])
    return Wanted(
        domain=item["domain"],
        snapshot=item["name"],
        state=item["state"],
        description=_description(item["description"]),
        kind=item["kind"],
        memory_file=item["memory_file"],
        quiesce=item["quiesce"],
        disks=tuple(WantedDisk(disk["target"], disk["file"], disk["include"]) for disk in item["disks"] or ()),
        with_children=item["with_children"],
    )


def _check_others(one: Wanted, before: t.Sequence[Wanted], wanted: t.Sequence[Wanted], option: str) -> None:
    for index, other in enumerate(before):
        if (other.domain, other.snapshot) == (one.domain, one.snapshot):
            raise duplicate("name", one.snapshot, f"{option}[{index}]", "domain and name")
    if one.state == "reverted" and sum(other.domain == one.domain for other in wanted) > 1:
        problem = f"The task has other snapshots of domain {one.domain!r}, which cannot be planned before the revert"
        raise InvalidInput("state", one.state, problem, "Revert in a task of its own")


def _check_snapshot_name(name: str) -> None:
    check_name("name", name)
    if name.startswith("."):
        problem = "The name of a snapshot cannot start with '.', because libvirt stores it in a file of this name"
        raise InvalidInput("name", name, problem)


def _description(text: str | None) -> str | None:
    if text is None:
        return None
    if any(not character.isprintable() and character not in "\n\t" for character in text):
        problem = "The description has a control character, and only printable text is allowed"
        raise InvalidInput("description", text, problem)
    return text.strip()


_Item = Item[Wanted, Observed, SnapshotPlan]


class SnapshotRun(ItemRun[Wanted, Observed, SnapshotPlan]):
    """Converges snapshots on one connection."""

    rows = "snapshots"

    def __init__(
        self,
        uri: str,
        timeout_seconds: float,
        wanted: t.Sequence[Wanted],
        wait_seconds: float,
        option: str | None = None,
    ) -> None:
        """Prepare the run.

        :param option: as ``read_wanted`` takes it.
        """
        super().__init__(wanted, SnapshotPlan, option)
        self._uri = uri
        self._timeout_seconds = timeout_seconds
        self._wait_seconds = wait_seconds
        self._outlooks: dict[str, ProjectedState] = {}
        # Who has the files of the domains: whether they can be looked at from here.
        self._local = is_of_this_host(uri)

    def converge(self, check_mode: bool, with_diff: bool) -> dict[str, t.Any]:
        """Plan, apply unless in check mode, verify; return the module's result.

        :raises TapvirtError: at least one snapshot failed; the rows of all are in its fields.
        """
        root = check_uri(self._uri)
        if root is None or not root.is_new():
            with connected(self._uri, self._timeout_seconds) as connection:
                self.run(connection, check_mode)
        else:
            # Nothing is in a root that does not exist; opening it would make it.
            for item in self._items:
                if item.wanted.state != "absent":
                    problem = f"No domain has this name, because nothing is in {root.path} yet"
                    item.fail(InvalidInput("domain", item.wanted.domain, problem))
        return self.result(check_mode, with_diff)

    # ---- observe ----

    def _observe(self, connection: Connection) -> None:
        seen: dict[str, Observed | TapvirtError] = {}
        for item in self._items:
            name = item.wanted.domain
            if name not in seen:
                try:
                    seen[name] = observe_domain(connection, find_domain(connection, name, "domain"), self._local)
                except TapvirtError as error:
                    seen[name] = error
            found = seen[name]
            item.observed = found if isinstance(found, Observed) else None
            if isinstance(found, InvalidInput) and item.wanted.state == "absent":
                # Without its domain a snapshot is gone, too, unless the name is a mistyped one.
                title = f"{item.wanted.title[0].upper()}{item.wanted.title[1:]}"
                warning = f"{title} is absent, because no domain has this name.{did_you_mean(found.candidates)}"
                if warning not in self._warnings:
                    self._warnings.append(warning)
            elif isinstance(found, TapvirtError):
                item.fail(found)

    # ---- plan ----

    def _plan_all(self, connection: Connection | None) -> None:
        wanted = [item.wanted for item in self._items]
        taken: set[str] = set()
        self._outlooks = {
            item.wanted.domain: ProjectedState(
                item.observed, [one for one in wanted if one.domain == item.wanted.domain], taken
            )
            for item in self._items
            if item.observed is not None
        }
        super()._plan_all(connection)

    def _plan(self, item: _Item) -> SnapshotPlan:
        plan = plan_snapshot(item.wanted, self._outlooks.get(item.wanted.domain), item.done)
        if plan.create is not None:
            self._check_places(item.wanted, plan.create)
        return plan

    def _check_places(self, wanted: Wanted, new: Snapshot) -> None:
        """Refuse files that already exist, and those without an existing directory.

        Libvirt refuses to put an overlay over a file, but empties the one that the memory goes to.
        """
        if not self._local:
            if new.memory_file is not None:
                problem = "is on another host, where this module cannot check that it does not exist yet"
                hint = "Run the task on that host with a local URI, or leave memory_file out"
                raise file_error(wanted, new, new.memory_file, problem, hint)
            return
        for file in new.files:
            if os.path.lexists(file):
                raise file_error(wanted, new, file, "already exists and is not overwritten")
            if not os.path.isdir(os.path.dirname(file)):
                raise file_error(wanted, new, file, "cannot be created, because its directory does not exist")

    # ---- apply ----

    def _apply(self, connection: Connection, item: _Item) -> None:
        plan, title = item.plan, item.wanted.title
        domain = find_domain(connection, item.wanted.domain, "domain")
        if plan.create is not None:
            # Something may have been put there since the plan was made.
            self._check_places(item.wanted, plan.create)
            text, flags = snapshot_xml(plan.create), _creation_flags(plan)
            self._do(f"Taking {title}", domain, lambda: domain.snapshotCreateXML(text, flags))
            item.done = True
        if plan.revert:
            with libvirt_errors(f"Looking up {title}"):
                snapshot = domain.snapshotLookupByName(item.wanted.snapshot)
            self._do(f"Reverting to {title}", domain, lambda: domain.revertToSnapshot(snapshot))
            item.done = True
        for one in plan.delete:
            self._delete(domain, one, item)

    def _do(self, doing: str, domain: Domain, call: t.Callable[[], t.Any]) -> None:
        call_with_deadline(self._wait_seconds, doing, call, domain.abortJob)

    def _delete(self, domain: Domain, snapshot: Snapshot, item: _Item) -> None:
        title = f"snapshot {snapshot.name!r} of domain {item.wanted.domain!r}"
        doing = f"Removing {title}"
        with libvirt_errors(doing):
            found = domain.snapshotLookupByName(snapshot.name)
        self._do(doing, domain, found.delete)
        item.done = True
        file = memory_file_to_go(snapshot, observe_snapshots(domain).values())
        if file is None:
            return
        if self._local:
            # Libvirt leaves it behind in some versions.
            _remove_file(title, file)
        else:
            self._warnings.append(f"The memory file {file} of {title} may still be on the domain's host.")

    # ---- verify ----

    def _verify(self, connection: Connection, touched: t.Sequence[_Item]) -> None:
        planned = {item.wanted.name: item.plan for item in touched}
        super()._verify(connection, touched)
        expected: dict[tuple[str, str], str] = {}
        for item in touched:
            left = [file for file in planned[item.wanted.name].goes if self._local and os.path.lexists(file)]
            if left and not item.error:
                item.fail(NoEffect(f"Files that belonged to {item.wanted.title} still exist: {', '.join(left)}."))
            new = planned[item.wanted.name].create
            if new is not None and item.observed is not None and not item.error:
                item.fail(_not_as_planned(item.wanted, new, item.observed))
                expected.update({(item.wanted.domain, target): file for target, file in new.overlays.items()})
        for item in touched:
            if item.observed is None or item.error or planned[item.wanted.name].create is None:
                continue
            for disk in domain_disks(item.observed.definition):
                file = expected.get((item.wanted.domain, disk.target), disk.source)
                if disk.source != file:
                    message = (
                        f"libvirt took {item.wanted.title}, but disk {disk.target} still writes to {disk.source} and "
                        f"not to the overlay {file}."
                    )
                    item.fail(NoEffect(message))

    # ---- result ----

    def _row(self, item: _Item, check_mode: bool) -> dict[str, t.Any]:
        wanted, observed = item.wanted, item.observed
        row = {"domain": wanted.domain, "name": wanted.snapshot, "state": "absent", "current": False, "kind": None}
        row.update(files=[], domain_state=None, disks=[])
        outlook = self._outlooks.get(wanted.domain) if check_mode and not item.error else None
        if outlook is None and observed is not None:
            outlook = ProjectedState(observed, [])
        if outlook is not None:
            found = outlook.snapshots.get(wanted.snapshot)
            row["domain_state"] = outlook.state
            row["disks"] = [{"target": target, "source": source} for target, source in outlook.sources.items()]
            if found is not None:
                current = outlook.current == found.name
                row.update(state="present", current=current, kind=found.kind, files=found.files)
        return {**row, "changed": item.changed(check_mode), "error": error_row(item.error)}


def _creation_flags(plan: SnapshotPlan) -> int:
    flags = 0
    if plan.create is not None and plan.create.overlays:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        if plan.create.memory == NO:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    if plan.quiesce:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE
    return flags


def _not_as_planned(wanted: Wanted, new: Snapshot, observed: Observed) -> NoEffect | None:
    found = observed.snapshots.get(new.name)
    if found is None or (found.kind, sorted(found.files)) == (new.kind, sorted(new.files)):
        return None
    return NoEffect(
        f"libvirt took {wanted.title} as {found.kind} with the files {found.files}, but it was planned as {new.kind} "
        f"with the files {new.files}."
    )


def _remove_file(title: str, file: str) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(os.lstat(file).st_mode):
                os.unlink(file)
    except OSError as error:
        raise TapvirtError(f"The memory file {file} of {title} was not removed: {error.strerror}.") from error


def observe_domain(connection: Connection, domain: Domain, local: bool) -> Observed:
    """Read one domain and all of its snapshots; ``local``: their files can be looked at from here.

    :raises TapvirtError: it cannot be read, or its driver knows no snapshots.
    """
    with libvirt_errors(f"Reading domain {domain.name()}"):
        active = bool(domain.isActive())
        stored = ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        definition = ET.fromstring(domain.XMLDesc(0)) if active else stored
        version = connection.getLibVersion()
    snapshots = observe_snapshots(domain)
    with libvirt_errors(f"Reading the snapshots of domain {domain.name()}"):
        current = domain.snapshotCurrent().getName() if snapshots and domain.hasCurrentSnapshot() else None
        managed_save = bool(domain.hasManagedSaveImage())
    return Observed(
        state=state_of(domain)[0],
        active=active,
        managed_save=managed_save,
        definition=definition,
        stored=stored,
        snapshots=snapshots,
        current=current,
        library_version=version,
        missing=frozenset(file for one in snapshots.values() for file in one.files if not os.path.lexists(file))
        if local
        else frozenset(),
    )


def observe_snapshots(domain: Domain) -> dict[str, Snapshot]:
    """Read all snapshots of a domain, by name.

    :raises TapvirtError: they cannot be read, or the domain's driver knows none.
    """
    with libvirt_errors(f"Reading the snapshots of domain {domain.name()}"):
        found = [parse_snapshot(one.getXMLDesc(0)) for one in list_snapshots(domain)]
    return {one.name: one for one in found}


def list_snapshots(domain: Domain, flags: int = 0) -> list[t.Any]:
    """Return the binding's objects for the snapshots of a domain.

    :raises TapvirtError: the domain's driver knows none.
    """
    try:
        return list(domain.listAllSnapshots(flags))
    except libvirt.libvirtError as error:
        if not is_unsupported(error):
            raise
        driver = domain.connect().getType()
        message = f"Domain {str(domain.name())!r} cannot have snapshots, because libvirt's driver {driver} has none."
        raise TapvirtError(message) from error
