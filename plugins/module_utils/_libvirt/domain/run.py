# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many domains in one go: check the input, observe, plan, apply domain by domain, verify.

Private to the collection.
"""

from __future__ import annotations

import time
import typing as t
import uuid
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, NoEffect, TapvirtError, error_row
from ..._core.plan import Change
from ..connection.connection import Connection, Domain, check_uri, connected, libvirt, libvirt_errors
from ..connection.embed import EmbedRoot
from ..connection.kvm import kvm_warning
from ..connection.lookup import is_host
from ..connection.schema import schema_errors
from ..connection.workers import WorkerSlots, for_each
from ..connection.xml import fill_or_check_name, parse_definition, text_of, to_text
from ..disk.disks import disks_of
from ..disk.removal import DiskToDelete, delete, find_disks_to_delete
from ..item_run import Item, ItemRun, check_names, entry_path
from .apply import edit_running, record_balloon_request, undefine, write_mark
from .canonical import Canonical, Canonicalizer, Unavailable, embedded_driver_matches, managed_by
from .lifecycle import Lifecycle
from .mark import Mark, wanted_hash, with_mark, without_id
from .observe import HostContext, is_marked, observe_domain
from .plan import DomainPlan, Observed, Options, Wanted, desired_definition, plan_domain, plan_restart

# The states in which a domain gives back what others may need.
_ENDS = ("absent", "shutdown", "saved")
_ANY_HASH = wanted_hash("")


def read_wanted(items: t.Sequence[t.Mapping[str, t.Any]], option: str = "domains") -> list[Wanted]:
    """Turn a user's list into ``Wanted``, all of it checked.

    :param option: the option that lists the items; empty where the task's own options describe its only item.
    :raises InvalidInput: a name that is invalid or given twice, XML that is malformed or has another name.
    """
    check_names(option, (item["name"] for item in items))
    wanted: list[Wanted] = []
    for index, item in enumerate(items):
        with entry_path(option, index):
            wanted.append(_read_entry(item))
    return wanted


def _read_entry(item: t.Mapping[str, t.Any]) -> Wanted:
    name, xml = item["name"], item.get("xml") or None
    root = None
    if xml is not None:
        root = without_id(parse_definition(xml, "domain"))
        fill_or_check_name("domain", name, root)
    disks = tuple(item.get("remove_disks") or ())
    if disks and item["state"] != "absent":
        problem = f"Disks are deleted with state: absent only, but the state of domain {name!r} is {item['state']}."
        raise InvalidInput("remove_disks", list(disks), problem)
    return Wanted(name, item["state"], xml, root, item.get("autostart"), disks, bool(item.get("allow_device_removal")))


_Item = Item[Wanted, Observed, DomainPlan]


class DomainRun(ItemRun[Wanted, Observed, DomainPlan]):
    """Converges domains on one connection."""

    rows = "domains"

    def __init__(
        self,
        uri: str,
        timeout_seconds: float,
        wanted: t.Sequence[Wanted],
        options: Options,
        purge: bool = False,
        option: str | None = None,
    ) -> None:
        """Prepare the run.

        :param purge: the list is full: domains with our mark that are not in it have to be absent.
        :param option: as ``read_wanted`` takes it.
        :raises InvalidInput: the list is full and empty.
        """
        if purge and not wanted:
            problem = "With an empty list, purge would remove every domain that this collection defined."
            raise InvalidInput("purge", True, problem, "List the domains to remove with state: absent.")
        super().__init__(wanted, DomainPlan, option)
        self._uri = uri
        self._timeout_seconds = timeout_seconds
        self._options = options
        self._purge = purge
        self._canonicalizer: Canonicalizer | None = None
        # What is handed to libvirt, and what that makes of it, by domain.
        self._desired_roots: dict[str, ET.Element | None] = {}
        self._canonical_roots: dict[str, Canonical] = {}
        # The names of all domains, by UUID.
        self._owners: dict[str, str] = {}
        # Of a root that is still to be made: nothing.
        self._host = HostContext(None, uri, [])
        self._new_uuids = {one.name: str(uuid.uuid4()) for one in wanted if one.root is not None}

    def converge(self, check_mode: bool, with_diff: bool) -> dict[str, t.Any]:
        """Plan, apply unless in check mode, verify; return the module's result.

        :raises TapvirtError: at least one domain failed; the rows of all are in its fields.
        """
        root = check_uri(self._uri)
        if embedded_driver_matches(self._uri) and any(item.wanted.root is not None for item in self._items):
            self._canonicalizer = Canonicalizer()
            warning = kvm_warning()
            if warning is not None:
                self._warnings.append(warning)
        try:
            preparation = self._run(root, check_mode)
        finally:
            if self._canonicalizer is not None:
                self._canonicalizer.close()
        return self.result(check_mode, with_diff, preparation)

    def _run(self, root: EmbedRoot | None, check_mode: bool) -> list[Change]:
        if root is None or not root.is_new():
            with connected(self._uri, self._timeout_seconds) as connection:
                self.run(connection, check_mode)
            return []
        # Nothing is in a root that does not exist; opening it would make it.
        change = Change(root.config_path, None, root.config_text(), "file", "the embedded driver's root is new")
        self._plan_all(None)
        if not any(item.plan.changes for item in self._items):
            return []
        if not check_mode and not self._any_error():
            root.acquire(time.monotonic() + self._timeout_seconds)
            root.prepare()
            with connected(self._uri, self._timeout_seconds) as connection:
                self.run(connection, check_mode)
        return [change]

    # ---- observe ----

    def _observe(self, connection: Connection) -> None:
        with libvirt_errors("Listing the domains"):
            driver = connection.getType()
            domains = connection.listAllDomains()
        self._owners = {domain.UUIDString(): str(domain.name()) for domain in domains}
        found = {str(domain.name()): domain for domain in domains}
        if self._purge:
            self._add_forgotten(driver, found)
        host = self._host = self._host_context(connection, domains)
        for item in self._items:
            domain = found.get(item.wanted.name)
            item.observed = None
            if domain is None:
                continue
            if is_host(driver, domain.ID()):
                item.fail(InvalidInput("name", item.wanted.name, "This is the host itself, as Xen lists it."))
                continue
            try:
                with libvirt_errors(f"Reading domain {item.wanted.name}"):
                    observed = observe_domain(domain)
                    look = host.with_belongings if item.wanted.state == "absent" else host.with_overlays
                    item.observed = host.with_host_model(item.wanted, look(item.wanted, domain, observed))
            except TapvirtError as error:
                item.fail(error)

    def _host_context(self, connection: Connection, domains: t.Sequence[Domain]) -> HostContext:
        return HostContext(connection, self._uri, domains, [item.wanted for item in self._items])

    def _add_forgotten(self, driver: str, found: t.Mapping[str, Domain]) -> None:
        """Add the domains that we once defined and that are not in the list. Once: what comes later is not ours."""
        self._purge = False
        named = {item.wanted.name for item in self._items}
        for name in sorted(set(found) - named):
            domain = found[name]
            if is_host(driver, domain.ID()):
                continue
            with libvirt_errors(f"Reading the mark of domain {name}"):
                if is_marked(domain):
                    self._items.append(Item(Wanted(name, "absent"), DomainPlan()))

    # ---- plan ----

    def _plan_all(self, connection: Connection | None) -> None:
        """Plan every domain. Report all refusals before anything is changed."""
        desired: dict[str, ET.Element | None] = {}
        leaving = [item.wanted.name for item in self._items if item.wanted.state == "absent"]
        shared = self._shared_disks(leaving)
        for item in self._items:
            name = item.wanted.name
            if item.error:
                continue
            try:
                desired[name] = self._desired(item)
                self._check_uuid(item)
                item.fail(shared.get(name))
            except TapvirtError as error:
                item.fail(error)
        # A definition that was applied before was valid then. Others are checked with a mark, as libvirt gets them.
        mark = Mark(_ANY_HASH, _ANY_HASH)
        texts = {item.wanted.name: item.wanted.xml for item in self._items if item.wanted.xml is not None}
        marked = {name: with_mark(root, mark) for name, root in desired.items() if root is not None}
        wrong = schema_errors(marked, texts)
        for item in self._items:
            if item.wanted.name in wrong:
                item.fail(wrong[item.wanted.name])
                desired[item.wanted.name] = None
        canonical = self._canonical(desired, connection)
        misplaced = {name for name, answer in canonical.items() if answer.error is not None}
        again = {
            item.wanted.name: self._desired(item, with_addresses=False)
            for item in self._items
            if item.wanted.name in misplaced and item.observed is not None
        }
        desired.update(again)
        canonical.update(self._canonical(again, connection))
        self._desired_roots, self._canonical_roots = desired, canonical
        super()._plan_all(connection)

    def _shared_disks(self, leaving: t.Collection[str]) -> dict[str, TapvirtError]:
        """Return why domains cannot be added, by name; ``leaving`` are the names of those that go before."""
        new = [item.wanted for item in self._items if item.observed is None and item.wanted.state != "absent"]
        try:
            return self._host.shared_disks(new, leaving)
        except TapvirtError as error:
            return dict.fromkeys((one.name for one in new), error)

    def _plan(self, item: _Item) -> DomainPlan:
        wanted = item.wanted
        answer = self._canonical_roots.get(wanted.name)
        if answer is not None and answer.error is not None:
            raise InvalidInput("xml", None, f"libvirt refuses the definition of domain {wanted.name!r}: {answer.error}")
        root = answer.root if answer else None
        return plan_domain(
            wanted, item.observed, self._desired_roots[wanted.name], root, self._options, self._owners.values()
        )

    def _desired(self, item: _Item, with_addresses: bool = True) -> ET.Element | None:
        new_uuid = self._new_uuids.get(item.wanted.name, "")
        return desired_definition(item.wanted, item.observed, new_uuid, with_addresses)

    def _check_uuid(self, item: _Item) -> None:
        uuid_in_xml = None if item.wanted.root is None else text_of(item.wanted.root, "uuid")
        owner = self._owners.get((uuid_in_xml or "").lower())
        if owner is not None and owner != item.wanted.name:
            problem = f"The UUID {uuid_in_xml} is that of domain {owner!r}. A new name does not rename a domain."
            raise InvalidInput("xml", None, problem)

    def _canonical(
        self, desired: t.Mapping[str, ET.Element | None], connection: Connection | None
    ) -> dict[str, Canonical]:
        texts = {name: to_text(root) for name, root in desired.items() if root is not None}
        if not texts or self._canonicalizer is None:
            return {}
        managed = None if connection is None else managed_by(connection, self._uri)
        try:
            return dict(
                zip(texts, self._canonicalizer.canonicalize(list(texts.values()), managed, self._timeout_seconds))
            )
        except Unavailable as error:
            self._warnings += [f"The plan compares what the XML says only, it is not exact: {error}."]
            return {}

    # ---- apply ----

    def apply_all(self, connection: Connection, touched: t.Sequence[_Item]) -> None:
        """Apply to several domains at once; what ends goes before what begins, which may need its disks and memory."""
        turns = WorkerSlots()
        self._lifecycle = Lifecycle(connection, turns)
        if any(item.plan.steps for item in touched):
            self._lifecycle.watch()
        apply_each = super().apply_all
        try:
            ending = [item for item in touched if item.wanted.state in _ENDS and item.observed is not None]
            for_each(lambda item: apply_each(connection, [item]), ending, turns)
            self._refuse_what_did_not_go()
            beginning = [item for item in touched if item not in ending and not item.error]
            for_each(lambda item: apply_each(connection, [item]), beginning, turns)
        finally:
            self._lifecycle.close()

    def _refuse_what_did_not_go(self) -> None:
        """Refuse new domains whose disks are those of domains that were to go, and are still there."""
        absent = [item for item in self._items if item.wanted.state == "absent"]
        if any(item.error for item in absent):
            shared = self._shared_disks([item.wanted.name for item in absent if not item.error])
            for item in self._items:
                if item.error is None:
                    item.fail(shared.get(item.wanted.name))

    def _apply(self, connection: Connection, item: _Item) -> None:
        name, plan = item.wanted.name, item.plan
        if plan.define is not None:
            with libvirt_errors(f"Defining domain {name}"):
                domain = connection.defineXMLFlags(plan.define, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            item.done = True
            if plan.write_mark is not None and item.wanted.root is not None:
                write_mark(name, domain, plan.write_mark, item.wanted.root)
        with libvirt_errors(f"Looking up domain {name}"):
            domain = connection.lookupByName(name)
        wanted = item.wanted.autostart
        if wanted is not None and any(change.how == "setAutostart" for change in plan.changes):
            with libvirt_errors(f"Setting autostart of domain {name}"):
                domain.setAutostart(int(wanted))
            item.done = True
        self._edit(domain, item)
        for step in plan.steps:
            self._lifecycle.step(name, domain, step, self._options.waiting)
            item.done = True
            if step in ("create", "create_paused"):
                record_balloon_request(name, domain)
        if plan.undefine and item.observed is not None:
            undefine(name, connection, domain, item.observed.belongings, self._options.remove)
            item.done = True
        if plan.disks:
            self._delete_disks(connection, item)

    def _edit(self, domain: Domain, item: _Item) -> None:
        for edit in item.plan.edits:
            in_vain = edit_running(item.wanted.name, domain, edit)
            if in_vain is not None:
                reason, why = in_vain
                self._warnings.append(why)
                if reason == "restart" and self._options.apply == "restart_if_needed":
                    plan_restart(item.plan, item.wanted, item.observed)
            item.done = True

    def _delete_disks(self, connection: Connection, item: _Item) -> None:
        """Delete the named disks of a domain that is gone. Who needs them is looked at once more: time has passed.

        No later run can find those that stay, so all of them are named.
        """
        name, planned = item.wanted.name, item.plan.disks
        errors: list[str] = []
        left: list[DiskToDelete] = []
        try:
            now = self._doomed_now(connection, item)
        except TapvirtError as error:
            errors, left, now = [error.message], planned, []
        for before, after in zip(planned, now):
            try:
                delete(name, connection, before, after)
                item.done = True
            except TapvirtError as error:
                errors.append(error.message)
                left.append(before)
        if errors:
            places = ", ".join(f"{one.where} ({one.target})" for one in left)
            raise TapvirtError(f"{' '.join(errors)} These disks were not deleted; delete them manually: {places}.")

    def _doomed_now(self, connection: Connection, item: _Item) -> list[DiskToDelete]:
        name = item.wanted.name
        with libvirt_errors(f"Looking for users of the disks of domain {name}"):
            domains = connection.listAllDomains()
            if name in [domain.name() for domain in domains]:
                raise NoEffect(f"Domain {name} was undefined without an error, but it still exists.")
            host = self._host_context(connection, domains)
            disks = disks_of(None if item.observed is None else item.observed.stored)
            targets = [one.target for one in item.plan.disks]
            return find_disks_to_delete(name, targets, disks, [], host.places, host.all_uses())

    def _keep(self, item: _Item, planned: DomainPlan) -> None:
        super()._keep(item, planned)
        item.plan.fidelity = planned.fidelity

    def _row(self, item: _Item, check_mode: bool) -> dict[str, t.Any]:
        wanted, observed, plan = item.wanted, item.observed, item.plan
        state = "absent" if observed is None else observed.state
        if check_mode and plan.changes and not item.error:
            state = _planned_state(wanted, state)
        return {
            "name": wanted.name,
            "uuid": observed.uuid if observed else None,
            "state": state,
            "changed": item.changed(check_mode),
            "pending": plan.pending,
            "plan_fidelity": plan.fidelity,
            "error": error_row(item.error),
        }


def _planned_state(wanted: Wanted, state: str) -> str:
    if wanted.state == "present":
        return "shutoff" if state == "absent" else state
    return {"shutdown": "shutoff", "saved": "shutoff"}.get(wanted.state, wanted.state)
