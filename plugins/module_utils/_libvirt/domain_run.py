# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many domains in one go: check the input, observe, plan, apply domain by domain, verify.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import time
import typing as t
import uuid
import xml.etree.ElementTree as ET

from .._core.errors import InvalidInput, TapvirtError
from .._core.plan import Change
from . import lifecycle
from .canonical import Canonical, Canonicaliser, Unavailable, can_stand_for, managed_by
from .connection import Connection, Domain, check_uri, connected, libvirt, libvirt_errors
from .definition import check_inner_name, keyed, parse_definition, text_of, to_text
from .domain_plan import DomainPlan, Observed, Options, Wanted, desired_definition, plan_domain
from .domain_xml import Mark, definition_hash
from .embed import EmbedRoot
from .item_run import Item, ItemRun, check_names
from .lifecycle import Lifecycle
from .live import LiveEdit, asked_of
from .schema import schema_errors

_FOLLOW_SECONDS = 3.0
_Answer = t.TypeVar("_Answer")


def read_wanted(items: t.Sequence[t.Mapping[str, t.Any]]) -> list[Wanted]:
    """Turn a user's list into ``Wanted``, all of it checked.

    :raises InvalidInput: a name that is none or given twice, XML that is malformed or of another name.
    """
    check_names(item["name"] for item in items)
    wanted: list[Wanted] = []
    for item in items:
        name = item["name"]
        root = None
        if item.get("xml"):
            root = parse_definition("{0}: xml".format(name), item["xml"], "domain")
            check_inner_name("domain", name, root)
        wanted.append(Wanted(name, item["state"], item.get("xml") or None, root, item.get("autostart")))
    return wanted


_Item = Item[Wanted, Observed, DomainPlan]


class DomainRun(ItemRun[Wanted, Observed, DomainPlan]):
    """Converges domains on one connection."""

    rows = "domains"

    def __init__(self, uri: str, timeout_seconds: float, wanted: t.Sequence[Wanted], options: Options) -> None:
        super().__init__(wanted, DomainPlan)
        self._uri = uri
        self._timeout_seconds = timeout_seconds
        self._options = options
        self._canonicaliser: Canonicaliser | None = None
        # What is handed to libvirt, and what that makes of it, by domain.
        self._desired_roots: dict[str, ET.Element | None] = {}
        self._canonical_roots: dict[str, Canonical] = {}
        # The names of all domains, by UUID.
        self._owners: dict[str, str] = {}
        self._new_uuids = {one.name: str(uuid.uuid4()) for one in wanted if one.root is not None}

    def converge(self, check_mode: bool, with_diff: bool) -> dict[str, t.Any]:
        """Plan, apply unless in check mode, verify; return the module's result.

        :raises TapvirtError: at least one domain failed; the rows of all are in its fields.
        """
        root = check_uri(self._uri)
        if can_stand_for(self._uri) and any(item.wanted.root is not None for item in self._items):
            self._canonicaliser = Canonicaliser()
        try:
            preparation = self._run(root, check_mode)
        finally:
            if self._canonicaliser is not None:
                self._canonicaliser.end()
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
            root.prepare()
            with connected(self._uri, self._timeout_seconds) as connection:
                self.run(connection, check_mode)
        return [change]

    # ---- observe ----

    def _observe(self, connection: Connection) -> None:
        names = {item.wanted.name for item in self._items}
        with libvirt_errors("Listing the domains"):
            domains = connection.listAllDomains()
        self._owners = {domain.UUIDString(): str(domain.name()) for domain in domains}
        found = {domain.name(): domain for domain in domains if domain.name() in names}
        for item in self._items:
            domain = found.get(item.wanted.name)
            with libvirt_errors("{0}: reading it".format(item.wanted.name)):
                item.observed = None if domain is None else observe_domain(domain, item.wanted.state == "absent")

    # ---- plan ----

    def _plan_all(self, connection: Connection | None) -> None:
        """Plan every domain. What cannot be planned is told for all of them before anything is changed for any."""
        desired: dict[str, ET.Element | None] = {}
        for item in self._items:
            name = item.wanted.name
            try:
                desired[name] = self._desired(item)
                self._check_uuid(item)
            except TapvirtError as error:
                item.error = error.message
        # A definition that was applied before was valid then; only others are looked at.
        wrong = schema_errors({name: root for name, root in desired.items() if root is not None})
        for item in self._items:
            if item.wanted.name in wrong:
                item.error = wrong[item.wanted.name].message
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

    def _plan(self, item: _Item) -> DomainPlan:
        wanted = item.wanted
        answer = self._canonical_roots.get(wanted.name)
        if answer is not None and answer.error is not None:
            rule = "is refused by libvirt: {0}".format(answer.error)
            raise InvalidInput("{0}: xml".format(wanted.name), wanted.name, rule)
        root = answer.root if answer else None
        return plan_domain(wanted, item.observed, self._desired_roots[wanted.name], root, self._options)

    def _desired(self, item: _Item, with_addresses: bool = True) -> ET.Element | None:
        new_uuid = self._new_uuids.get(item.wanted.name, "")
        return desired_definition(item.wanted, item.observed, new_uuid, with_addresses)

    def _check_uuid(self, item: _Item) -> None:
        uuid_in_xml = None if item.wanted.root is None else text_of(item.wanted.root, "uuid")
        owner = self._owners.get((uuid_in_xml or "").lower())
        if owner is not None and owner != item.wanted.name:
            rule = "belongs to domain {0!r}; a domain is not renamed by another name in its XML".format(owner)
            raise InvalidInput("{0}: uuid".format(item.wanted.name), uuid_in_xml, rule)

    def _canonical(
        self, desired: t.Mapping[str, ET.Element | None], connection: Connection | None
    ) -> dict[str, Canonical]:
        texts = {name: to_text(root) for name, root in desired.items() if root is not None}
        if not texts or self._canonicaliser is None:
            return {}
        managed = None if connection is None else managed_by(connection, self._uri)
        try:
            return dict(zip(texts, self._canonicaliser.ask(list(texts.values()), managed, self._timeout_seconds)))
        except Unavailable as error:
            self._warnings += ["The plan compares what the XML says only, it is not exact: {0}.".format(error)]
            return {}

    # ---- apply ----

    def _apply_all(self, connection: Connection, touched: t.Sequence[_Item]) -> None:
        self._lifecycle = Lifecycle(connection)
        if any(item.plan.steps for item in touched):
            self._lifecycle.watch()
        try:
            super()._apply_all(connection, touched)
        finally:
            self._lifecycle.close()

    def _apply(self, connection: Connection, item: _Item) -> None:
        name, plan = item.wanted.name, item.plan
        if plan.define is not None:
            with libvirt_errors("{0}: defining it".format(name)):
                domain = connection.defineXMLFlags(plan.define, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            item.done = True
            if plan.remember is not None:
                _remember(name, domain, plan.remember)
        with libvirt_errors("{0}: looking it up".format(name)):
            domain = connection.lookupByName(name)
        wanted = item.wanted.autostart
        if wanted is not None and any(change.how == "setAutostart" for change in plan.changes):
            with libvirt_errors("{0}: setting autostart".format(name)):
                domain.setAutostart(int(wanted))
            item.done = True
        for edit in plan.edits:
            why = _edit(name, domain, edit)
            if why is not None:
                self._warnings.append(why)
            item.done = True
        for step in plan.steps:
            self._lifecycle.step(name, domain, step, self._options.waiting)
            item.done = True
        if plan.undefine and item.observed is not None:
            _undefine(name, connection, domain, item.observed, self._options)
            item.done = True

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
            "error": item.error,
        }


def _planned_state(wanted: Wanted, state: str) -> str:
    if wanted.state == "present":
        return "shutoff" if state == "absent" else state
    return {"shutdown": "shutoff", "saved": "shutoff"}.get(wanted.state, wanted.state)


def observe_domain(domain: Domain, for_absence: bool) -> Observed:
    """Read one domain. Snapshots and checkpoints are counted only where an undefine would lose them."""
    state, _reason = lifecycle.state_of(domain)
    active = bool(domain.isActive())
    secure = libvirt.VIR_DOMAIN_XML_SECURE
    running = domain.XMLDesc(secure) if active else None
    persistent = bool(domain.isPersistent())
    stored = domain.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_INACTIVE)
    managed_save = _unless_unknown(lambda: bool(domain.hasManagedSaveImage(0)), False)
    saved = _unless_unknown(lambda: domain.managedSaveGetXMLDesc(secure), None) if managed_save else None
    return Observed(
        uuid=domain.UUIDString(),
        state=state,
        active=active,
        persistent=persistent,
        autostart=bool(domain.autostart()) if persistent else False,
        managed_save=managed_save,
        stored=ET.fromstring(stored),
        running=None if running is None else ET.fromstring(running),
        saved=None if saved is None else ET.fromstring(saved),
        snapshots=_unless_unknown(lambda: domain.snapshotNum(0), 0) if for_absence else 0,
        checkpoints=_unless_unknown(lambda: len(domain.listAllCheckpoints()), 0) if for_absence else 0,
    )


def _unless_unknown(ask: t.Callable[[], _Answer], default: _Answer) -> _Answer:
    """Return an answer, or the default where the driver does not know the thing at all."""
    try:
        return ask()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED):
            return default
        raise


def _remember(name: str, domain: Domain, mark: Mark) -> None:
    """Note what libvirt made of the definition, so that the next run can tell that nobody changed it."""
    with libvirt_errors("{0}: noting what was applied".format(name)):
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        result = definition_hash(ET.fromstring(domain.XMLDesc(flags)))
        note = dataclasses.replace(mark, result=result).note()
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, *note, libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def _edit(name: str, domain: Domain, edit: LiveEdit) -> str | None:
    """Make an edit of a running domain; return why it did not take effect, null where it did.

    A guest may ignore what it is asked (a balloon without a driver, an unplugged device), a hypervisor may have no
    place left. That is noted in the running domain, so that the next run reports it instead of asking again.
    """
    why = None
    with libvirt_errors("{0}: changing {1} of the running domain".format(name, edit.path)):
        try:
            _EDITS[edit.kind](domain, edit)
        except libvirt.libvirtError as error:
            if edit.kind in ("memory", "vcpus"):
                raise
            why = " ".join(str(error.get_error_message()).split())
        if why is None and not _followed(domain, edit):
            why = "the guest does not follow"
        if why is not None:
            note = asked_of(_running(domain)).with_key(edit.key()).note()
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, *note, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    return why and "{0}: {1} of {2} has no effect before a restart: {3}.".format(name, edit.kind, edit.path, why)


_EDITS: dict[str, t.Callable[[Domain, LiveEdit], t.Any]] = {
    "memory": lambda domain, edit: domain.setMemoryFlags(edit.after, libvirt.VIR_DOMAIN_AFFECT_LIVE),
    "vcpus": lambda domain, edit: domain.setVcpusFlags(edit.after, libvirt.VIR_DOMAIN_AFFECT_LIVE),
    "attach": lambda domain, edit: domain.attachDeviceFlags(edit.xml, libvirt.VIR_DOMAIN_AFFECT_LIVE),
    "detach": lambda domain, edit: domain.detachDeviceFlags(edit.xml, libvirt.VIR_DOMAIN_AFFECT_LIVE),
    "update": lambda domain, edit: domain.updateDeviceFlags(edit.xml, libvirt.VIR_DOMAIN_AFFECT_LIVE),
}


def _running(domain: Domain) -> ET.Element:
    return ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))


def _followed(domain: Domain, edit: LiveEdit) -> bool:
    """Wait a moment for the guest; what libvirt does by itself is there at once."""
    deadline = time.monotonic() + _FOLLOW_SECONDS
    while True:
        if edit.kind == "memory":
            done = bool(domain.memoryStats().get("actual") == edit.after)
        elif edit.kind == "detach":
            devices = _running(domain).find("devices")
            done = devices is None or edit.path.partition("/")[2] not in keyed(devices)
        else:
            return True
        if done or time.monotonic() > deadline:
            return done
        time.sleep(0.1)


def _undefine(name: str, connection: Connection, domain: Domain, observed: Observed, options: Options) -> None:
    flags = lifecycle.undefine_flags(
        connection.getLibVersion(), options.remove, observed.managed_save, observed.snapshots, observed.checkpoints
    )
    with libvirt_errors("{0}: undefining it".format(name)):
        try:
            domain.undefineFlags(flags)
        except libvirt.libvirtError as error:
            # Drivers other than QEMU's know fewer flags; they have nothing that the others would keep.
            known = flags & (lifecycle.UNDEFINE_MANAGED_SAVE | lifecycle.UNDEFINE_SNAPSHOTS)
            if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG or known == flags:
                raise
            domain.undefineFlags(known)
