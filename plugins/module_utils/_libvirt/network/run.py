# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many networks in one go: check the input, observe, plan, apply network by network, verify.

Private to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, TapvirtError, error_row, nearest_names
from ..connection.connection import Connection, LibvirtFailure, check_uri, connected, libvirt, libvirt_errors, shown_uri
from ..connection.lookup import all_domains
from ..connection.xml import fill_or_check_name, parse_definition, text_of
from ..item_run import Item, ItemRun, check_names, entry_path
from .canonical import Network, canonical_networks, define_network
from .live import NetworkEdit
from .plan import NetworkPlan, Observed, Options, Wanted, check_attached, desired_definition, plan_network
from .xml import OWN_BRIDGE_MODES, bridge_name, forward_mode

_Item = Item[Wanted, Observed, NetworkPlan]


def read_wanted(items: t.Sequence[t.Mapping[str, t.Any]], option: str = "networks") -> list[Wanted]:
    """Turn a user's list into ``Wanted``, all of it checked.

    :param option: the option that lists the items; empty where the task's own options describe its only item.
    :raises InvalidInput: a name that is invalid or given twice, XML that is malformed or has another name.
    """
    check_names(option, (item["name"] for item in items))
    wanted: list[Wanted] = []
    for index, item in enumerate(items):
        name, xml = item["name"], item.get("xml") or None
        root = None
        if xml is not None:
            with entry_path(option, index):
                root = parse_definition(xml, "network")
                fill_or_check_name("network", name, root)
        wanted.append(Wanted(name, item["state"], root, item.get("autostart"), xml))
    return wanted


def check_has_networks(uri: str) -> None:
    """Refuse a URI of the embedded driver.

    :raises InvalidInput: it is one, or none at all.
    """
    if check_uri(uri) is not None:
        problem = "libvirt's embedded driver has no networks."
        raise InvalidInput("uri", shown_uri(uri), problem, "Use the URI of a daemon, such as qemu:///system.")


def list_networks(connection: Connection) -> list[Network]:
    """Return all networks, by name.

    :raises TapvirtError: the driver knows none, or libvirt refused.
    """
    try:
        with libvirt_errors("Listing the networks"):
            return sorted(connection.listAllNetworks(), key=lambda network: str(network.name()))
    except LibvirtFailure as error:
        if error.code == libvirt.VIR_ERR_NO_SUPPORT:
            message = f"The driver of this connection ({connection.getType()}) has no networks."
            raise TapvirtError(message, **error.fields) from error
        raise


def observe_network(network: Network) -> Observed:
    """Read one network."""
    active, persistent = bool(network.isActive()), bool(network.isPersistent())
    running = ET.fromstring(network.XMLDesc(0)) if active else None
    tells_stored = True
    try:
        stored = ET.fromstring(network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE))
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
            raise
        # Libvirt's test driver does not know the flag. Off, a network shows what is stored anyway.
        tells_stored = not active
        stored = running if running is not None else ET.fromstring(network.XMLDesc(0))
    return Observed(
        uuid=network.UUIDString(),
        active=active,
        persistent=persistent,
        autostart=bool(network.autostart()) if persistent else False,
        stored=stored,
        running=running,
        tells_stored=tells_stored,
    )


def attached_domains(connection: Connection, networks: t.Mapping[str, str | None]) -> dict[str, tuple[str, ...]]:
    """Return the names of the running domains with an interface on each network (name -> its bridge or null)."""
    by_bridge = {bridge: name for name, bridge in networks.items() if bridge}
    found: dict[str, list[str]] = collections.defaultdict(list)
    with libvirt_errors("Listing the running domains"):
        domains = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    for domain in domains:
        try:
            root = ET.fromstring(domain.XMLDesc(0))
        except libvirt.libvirtError as error:
            # It ended meanwhile.
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                continue
            with libvirt_errors(f"Reading domain {domain.name()}"):
                raise
        used = set()
        for source in root.iterfind("devices/interface/source"):
            used |= {source.get("network"), by_bridge.get(source.get("bridge") or "")}
        for name in used & set(networks):
            found[str(name)].append(str(domain.name()))
    return {name: tuple(sorted(names)) for name, names in found.items()}


class NetworkRun(ItemRun[Wanted, Observed, NetworkPlan]):
    """Converges networks on one connection."""

    rows = "networks"

    def __init__(
        self,
        uri: str,
        timeout_seconds: float,
        wanted: t.Sequence[Wanted],
        options: Options,
        option: str | None = None,
    ) -> None:
        """Prepare the run.

        :param option: as ``read_wanted`` takes it.
        """
        super().__init__(wanted, NetworkPlan, option)
        self._uri = uri
        self._timeout_seconds = timeout_seconds
        self._options = options
        # What is handed to libvirt, and what that makes of it, by network.
        self._desired: dict[str, ET.Element] = {}
        self._canonical: dict[str, ET.Element] = {}
        # The names of all networks that there are or will be, by UUID and by bridge.
        self._by_uuid: dict[str, str] = {}
        self._by_bridge: dict[str, str] = {}

    def converge(self, check_mode: bool, with_diff: bool) -> dict[str, t.Any]:
        """Plan, apply unless in check mode, verify; return the module's result.

        :raises TapvirtError: at least one network failed; the rows of all are in its fields.
        """
        check_has_networks(self._uri)
        with connected(self._uri, self._timeout_seconds) as connection:
            self.run(connection, check_mode)
        return self.result(check_mode, with_diff)

    # ---- observe ----

    def _observe(self, connection: Connection) -> None:
        networks = {str(network.name()): network for network in list_networks(connection)}
        observed: dict[str, Observed] = {}
        for name, network in networks.items():
            try:
                with libvirt_errors(f"Reading network {name}"):
                    observed[name] = observe_network(network)
            except LibvirtFailure as error:
                # It vanished meanwhile.
                if error.code != libvirt.VIR_ERR_NO_NETWORK:
                    raise
        going = {item.wanted.name for item in self._items if item.wanted.state == "absent"}
        staying = {name: found for name, found in observed.items() if name not in going}
        self._by_uuid = {found.uuid: name for name, found in staying.items()}
        self._by_bridge = {bridge: name for name, found in staying.items() for bridge in _bridges(found)}
        for item in self._items:
            item.observed = observed.get(item.wanted.name)
        self._observe_attached(connection)

    def _observe_attached(self, connection: Connection) -> None:
        """Look for the guests of the networks that may be stopped; of the others nobody asks."""
        restart = self._options.apply == "restart_if_needed"
        stopped = {
            item.wanted.name: _bridge_of(item.observed)
            for item in self._items
            if item.observed is not None
            and item.observed.active
            and (restart or item.wanted.state in ("inactive", "absent"))
        }
        attached = attached_domains(connection, stopped) if stopped else {}
        for item in self._items:
            if item.observed is not None and item.wanted.name in attached:
                item.observed = dataclasses.replace(item.observed, attached=attached[item.wanted.name])

    # ---- plan ----

    def _plan_all(self, connection: Connection | None) -> None:
        """Plan every network. Report all refusals before anything is changed."""
        self._desired = {}
        for item in self._items:
            try:
                root = desired_definition(item.wanted, item.observed)
                if root is not None:
                    self._check_free(item.wanted, root)
                    self._desired[item.wanted.name] = root
            except TapvirtError as error:
                item.fail(error)
        self._canonical = {}
        texts = {item.wanted.name: item.wanted.xml for item in self._items if item.wanted.xml is not None}
        answers = canonical_networks(self._desired, texts)
        for item in self._items:
            answer = answers.get(item.wanted.name)
            if isinstance(answer, InvalidInput):
                if item.error is None:
                    item.fail(answer)
            elif answer is not None:
                self._canonical[item.wanted.name] = answer
        super()._plan_all(connection)
        if connection is not None and self._options.disconnect:
            self._check_disconnect(connection)

    def _check_disconnect(self, connection: Connection) -> None:
        """Refuse a name in ``disconnect`` that no domain has, where the option matters; else warn of it.

        A later run has the same list, when the networks and some of the domains are gone.

        :raises InvalidInput: a network with guests would stop, and no domain has the name.
        """
        known = all_domains(connection)
        matters = any(
            item.observed is not None and item.observed.attached and (item.error or "destroy" in item.plan.steps)
            for item in self._items
        )
        for index, name in enumerate(self._options.disconnect):
            if name in known:
                continue
            problem = "No domain has this name."
            error = InvalidInput(f"disconnect[{index}]", name, problem, candidates=nearest_names(name, known))
            if matters:
                raise error
            if error.message not in self._warnings:
                self._warnings.append(error.message)

    def _check_free(self, wanted: Wanted, root: ET.Element) -> None:
        """Refuse the UUID and the bridge of another network, one of this task or one that is not to go."""
        uuid, bridge = (text_of(root, "uuid") or "").lower(), bridge_name(root)
        owner = self._by_uuid.setdefault(uuid, wanted.name) if uuid else wanted.name
        if owner != wanted.name:
            problem = f"The UUID {uuid} is that of network {owner!r}. A new name does not rename a network."
            raise InvalidInput("xml", None, problem)
        if bridge and forward_mode(root) in OWN_BRIDGE_MODES:
            owner = self._by_bridge.setdefault(bridge, wanted.name)
            if owner != wanted.name:
                raise InvalidInput("xml", None, f"The bridge {bridge} is that of network {owner!r}.")

    def _plan(self, item: _Item) -> NetworkPlan:
        name, known = item.wanted.name, self._by_uuid.values()
        return plan_network(
            item.wanted, item.observed, self._desired.get(name), self._canonical.get(name), self._options, known
        )

    # ---- apply ----

    def apply_all(self, connection: Connection, touched: t.Sequence[_Item]) -> None:
        """Take away first what goes: others may get its UUID or bridge."""
        super().apply_all(connection, sorted(touched, key=lambda item: item.wanted.state != "absent"))

    def _apply(self, connection: Connection, item: _Item) -> None:
        name, plan = item.wanted.name, item.plan
        if plan.define is not None:
            with libvirt_errors(f"Defining network {name}"):
                define_network(connection, plan.define)
            item.done = True
        with libvirt_errors(f"Looking up network {name}"):
            network = connection.networkLookupByName(name)
        if plan.autostart is not None:
            with libvirt_errors(f"Setting autostart of network {name}"):
                network.setAutostart(int(plan.autostart))
            item.done = True
        for edit in plan.edits:
            with libvirt_errors(f"{_DOING[edit.command]} {edit.path} of the active network {name}"):
                _edit(network, edit)
            item.done = True
        for step in plan.steps:
            if step == "destroy":
                # A guest may have started since the plan was made.
                bridge = _bridge_of(item.observed)
                attached = attached_domains(connection, {name: bridge}).get(name, ())
                check_attached(item.wanted, attached, self._options)
            with libvirt_errors(f"{_DOING[step]} network {name}"):
                _STEPS[step](network)
            item.done = True

    def _row(self, item: _Item, check_mode: bool) -> dict[str, t.Any]:
        observed, plan = item.observed, item.plan
        state = "absent" if observed is None else "active" if observed.active else "inactive"
        if check_mode and plan.changes and not item.error:
            state = _planned_state(item.wanted, state)
        return {
            "name": item.wanted.name,
            "uuid": observed.uuid if observed else None,
            "state": state,
            "bridge": bridge_name(observed.stored) if observed else None,
            "changed": item.changed(check_mode),
            "pending": plan.pending,
            "error": error_row(item.error),
        }


def _planned_state(wanted: Wanted, state: str) -> str:
    if wanted.state == "present":
        return "inactive" if state == "absent" else state
    return wanted.state


def _bridge_of(observed: Observed | None) -> str | None:
    """Return the bridge that disappears when a running network stops; None if it is not libvirt's own."""
    if observed is None or observed.running is None or forward_mode(observed.running) not in OWN_BRIDGE_MODES:
        return None
    return bridge_name(observed.running)


def _bridges(observed: Observed) -> list[str]:
    """Return the bridges of a network: the stored one and the running one."""
    roots = [root for root in (observed.stored, observed.running) if root is not None]
    return [bridge for bridge in map(bridge_name, roots) if bridge]


# How the message of a step that failed begins.
_DOING = {
    "add": "Adding",
    "modify": "Changing",
    "delete": "Deleting",
    "create": "Starting",
    "destroy": "Stopping",
    "undefine": "Undefining",
}
_STEPS: dict[str, t.Callable[[Network], t.Any]] = {
    "create": lambda network: network.create(),
    "destroy": lambda network: network.destroy(),
    "undefine": lambda network: network.undefine(),
}


def _edit(network: Network, edit: NetworkEdit) -> None:
    command = {
        "add": libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST,
        "modify": libvirt.VIR_NETWORK_UPDATE_COMMAND_MODIFY,
        "delete": libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE,
    }[edit.command]
    section = getattr(libvirt, "VIR_NETWORK_SECTION_" + edit.section)
    network.update(command, section, edit.parent, edit.xml, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE)
