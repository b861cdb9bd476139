# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading one domain as the plan needs it, and only as much of it.

Private to the collection. Only reads.
"""

from __future__ import annotations

import dataclasses
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, TapvirtError
from ..connection.connection import Connection, Domain, default_if_unsupported, libvirt
from ..connection.xml import text_of
from ..disk.disks import Disk, Source, disks_of
from ..disk.images import ImageLocator, Use, is_of_this_host
from ..disk.removal import find_disks_to_delete
from .canonical import embedded_driver_matches, state_directory
from .lifecycle import state_of
from .live.edits import HostModel, is_expanded, model_of
from .mark import MARK_URI
from .plan import Observed, Overlay, Wanted
from .undefine import find_belongings


def observe_domain(domain: Domain) -> Observed:
    """Read what every plan needs."""
    state, _reason = state_of(domain)
    active = bool(domain.isActive())
    secure = libvirt.VIR_DOMAIN_XML_SECURE
    running = domain.XMLDesc(secure) if active else None
    persistent = bool(domain.isPersistent())
    stored = domain.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_INACTIVE)
    managed_save = default_if_unsupported(lambda: bool(domain.hasManagedSaveImage(0)), False)
    saved = default_if_unsupported(lambda: domain.managedSaveGetXMLDesc(secure), None) if managed_save else None
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
    )


def is_marked(domain: Domain) -> bool:
    """Tell whether a domain's definition carries our mark, which its first converge left there."""
    kind = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else libvirt.VIR_DOMAIN_AFFECT_LIVE
    try:
        return bool(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, MARK_URI, kind))
    except libvirt.libvirtError as error:
        # None of ours, no metadata in this driver, or gone meanwhile.
        unknown = ("NO_DOMAIN_METADATA", "NO_SUPPORT", "OPERATION_UNSUPPORTED", "NO_DOMAIN")
        if error.get_error_code() in [getattr(libvirt, "VIR_ERR_" + name) for name in unknown]:
            return False
        raise


class HostContext:
    """What lies around domains - their disks' places, other users of these; read once, when first asked for."""

    def __init__(
        self, connection: Connection | None, uri: str, domains: t.Sequence[Domain], wanted: t.Sequence[Wanted] = ()
    ) -> None:
        """Prepare; without a connection there is nothing yet. ``wanted`` are the domains of the task."""
        self.places = ImageLocator(connection, is_of_this_host(uri))
        self._connection: Connection = connection
        self._uri = uri
        self._domains = domains
        self._wanted = wanted
        self._uses: list[Use] | None = None
        self._version: int | None = None
        self._host_models: dict[tuple[str | None, ...], HostModel | None] = {}

    def uses(self) -> list[Use]:
        """Return all uses of disks by domains."""
        if self._uses is None:
            self._uses = self.places.uses(self._domains)
        return self._uses

    def all_uses(self) -> list[Use]:
        """Return all uses of disks by domains and volumes, and by what the task makes of domains."""
        coming = [
            use for one in self._wanted if one.state != "absent" for use in self.places.uses_in(one.name, one.root)
        ]
        return self.uses() + self.places.volume_uses() + coming

    def shared_disks(self, new: t.Sequence[Wanted], leaving: t.Collection[str]) -> dict[str, TapvirtError]:
        """Return why domains cannot be added, by name: a disk of their own is that of another domain.

        Two guests that write to one disk destroy what is on it. So it is with a definition under another name, too.

        :param new: domains that do not exist yet; ``leaving`` are the names of those that will be gone before.
        :raises LibvirtFailure: a domain cannot be read, so that its disks are not known.
        """
        own = [
            (one.name, disk, disk.source)
            for one in new
            for disk in disks_of(one.root)
            if disk.own and disk.source is not None
        ]
        if not own:
            return {}
        owners = {name: use for use in self.uses() if use.domain not in leaving for name in use.names if use.domain}
        wrong: dict[str, TapvirtError] = {}
        for name, disk, source in own:
            names, _why = self.places.known_names(source)
            other = next((owners[one] for one in sorted(names) if one in owners), None)
            if other is not None and other.domain != name:
                problem = (
                    f"Disk {disk.target} ({source.shown()}) of domain {name!r} is in use as disk {other.target} of "
                    f"domain {other.domain!r}."
                )
                hint = (
                    "To rename a domain, list the old name with state: absent. To share a disk, declare it "
                    "<shareable/> or <readonly/>."
                )
                wrong[name] = InvalidInput("xml", None, problem, hint)
            owners.update(dict.fromkeys(names, Use(name, disk.target, names)))
        return wrong

    def with_belongings(self, wanted: Wanted, domain: Domain, observed: Observed) -> Observed:
        """Add what goes, or could go, with a domain that has to be absent.

        :raises TapvirtError: a disk was named that the domain does not have, or libvirt cannot tell where one is.
        """
        if self._version is None:
            self._version = int(self._connection.getLibVersion())
        directory = state_directory(self._uri) if embedded_driver_matches(self._uri) else None
        found = find_belongings(domain, observed.stored, observed.managed_save, directory, self._version)
        if wanted.remove_disks:
            doomed = find_disks_to_delete(
                wanted.name,
                wanted.remove_disks,
                disks_of(observed.stored),
                disks_of(observed.running),
                self.places,
                self.all_uses(),
            )
            found = dataclasses.replace(found, disks=tuple(doomed))
        return dataclasses.replace(observed, belongings=found)

    def with_overlays(self, wanted: Wanted, domain: Domain, observed: Observed) -> Observed:
        """Add the disks that are on an overlay of the file that the wanted XML names. Costs nothing where none differs.

        An external snapshot leaves a domain so: the file in the XML is frozen, and what the guest writes is above it.
        """
        existing = {disk.target: disk for disk in disks_of(observed.stored)}
        running = {disk.target: disk for disk in disks_of(observed.running)}
        overlays = []
        for disk in disks_of(wanted.root):
            now = existing.get(disk.target)
            if disk.source is None or disk.removable or now is None or now.source in (None, disk.source):
                continue
            chain = self._chain(domain, now, running.get(disk.target))
            base = self.places.names(disk.source)
            if now.source is not None and any(self.places.names(below) & base for below in chain):
                overlays.append(Overlay(disk.target, disk.source.shown(), now.source.shown()))
        return dataclasses.replace(observed, overlays=tuple(overlays)) if overlays else observed

    def with_host_model(self, wanted: Wanted, observed: Observed) -> Observed:
        """Add the host's own processor, where a domain may run with what a start wrote in place of it."""
        definitions = [root for root in (observed.stored, wanted.root) if root is not None]
        running = observed.running
        if running is None or not any(is_expanded(definition, running) for definition in definitions):
            return observed
        kind = running.find("os/type")
        where = (
            text_of(running, "devices/emulator"),
            None if kind is None else kind.get("arch"),
            None if kind is None else kind.get("machine"),
            running.get("type"),
        )
        if where not in self._host_models:
            text = default_if_unsupported(lambda: self._connection.getDomainCapabilities(*where, 0), None)
            mode = None if text is None else ET.fromstring(text).find("cpu/mode[@name='host-model'][@supported='yes']")
            self._host_models[where] = None if mode is None else model_of(mode)
        return dataclasses.replace(observed, host_model=self._host_models[where])

    def _chain(self, domain: Domain, disk: Disk, running: Disk | None) -> list[Source]:
        """Return all that a disk stands on, as far as the domain, its snapshots, the files or the volumes tell."""
        chain = [*disk.backing]
        if running is not None and running.source == disk.source:
            chain += running.backing
        if disk.source is not None:
            chain += self.places.below(disk.source)
            chain += _below_by_snapshots(domain, disk.target, disk.source)
        return chain


def _below_by_snapshots(domain: Domain, target: str, source: Source) -> list[Source]:
    """Return what a source stands on by what the domain's external snapshots tell, nearest first."""
    below: dict[Source, Source] = {}
    snapshots: list[t.Any] = default_if_unsupported(domain.listAllSnapshots, [])
    for snapshot in snapshots:
        root = ET.fromstring(snapshot.getXMLDesc(0))
        before = next((disk.source for disk in disks_of(root.find("domain")) if disk.target == target), None)
        for disk in root.iterfind("disks/disk[@snapshot='external']"):
            overlay = disk.find("source")
            path = None if overlay is None else overlay.get("file") or overlay.get("dev")
            if disk.get("name") == target and path and before is not None:
                below[Source(disk.get("type", "file"), path)] = before
    chain: list[Source] = []
    while source in below and below[source] not in chain:
        source = below[source]
        chain.append(source)
    return chain
