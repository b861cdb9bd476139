# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said of networks: one typed row each.

Private to the collection.
"""

from __future__ import annotations

import typing as t

from ..connection.connection import Connection, LibvirtFailure, default_if_unsupported, libvirt, libvirt_errors
from ..connection.lookup import select
from .canonical import Network
from .plan import Observed, pending_of
from .run import list_networks, observe_network
from .xml import Address, addresses, bridge_name, forward_mode, users_of

_MAX_LEASES = 100
_FAMILIES = {0: "ipv4", 1: "ipv6"}


def network_rows(connection: Connection, names: t.Sequence[str], limit: int) -> tuple[list[dict[str, t.Any]], bool]:
    """Return the rows of the networks that names and globs mean (all without any), and whether ``limit`` cut the list.

    :raises InvalidInput: a name that is no network here.
    """
    by_name = {str(network.name()): network for network in list_networks(connection)}
    chosen = select(names, by_name, "network")
    rows = [network_row(by_name[name]) for name in chosen[:limit]]
    return [row for row in rows if row is not None], len(chosen) > limit


def network_row(network: Network) -> dict[str, t.Any] | None:
    """Return the row of one network; null where it vanished meanwhile."""
    name = str(network.name())
    try:
        with libvirt_errors(f"Reading network {name}"):
            observed = observe_network(network)
            leases = _leases(network)
    except LibvirtFailure as error:
        if error.code == libvirt.VIR_ERR_NO_NETWORK:
            return None
        raise
    return {
        "name": name,
        "uuid": observed.uuid,
        "active": observed.active,
        "persistent": observed.persistent,
        "autostart": observed.autostart,
        **describe(observed),
        "leases": None if leases is None else [lease_row(lease) for lease in leases[:_MAX_LEASES]],
        "leases_truncated": leases is not None and len(leases) > _MAX_LEASES,
    }


def _leases(network: Network) -> list[dict[str, t.Any]] | None:
    # The driver has no leases, or (a network on a bridge of the host's) this network has none.
    return default_if_unsupported(lambda: list(network.DHCPLeases()), None)


def describe(observed: Observed) -> dict[str, t.Any]:
    """Return what the XML says of a network; of the running one where it is active, else of the stored one."""
    root = observed.stored if observed.running is None else observed.running
    domain = root.find("domain")
    return {
        "bridge": bridge_name(root),
        "forward_mode": forward_mode(root),
        "domain": None if domain is None else domain.get("name"),
        "ips": [_ip(ip) for ip in addresses(root)],
        "interfaces": 0 if observed.running is None else users_of(observed.running),
        "pending": [] if observed.running is None else pending_of(observed.stored, observed.running),
    }


def _ip(ip: Address) -> dict[str, t.Any]:
    return {
        "address": ip.address,
        "prefix": ip.prefix,
        "family": ip.family,
        "dhcp_ranges": [{"start": start, "end": end} for start, end in ip.dhcp_ranges],
        "dhcp_hosts": ip.dhcp_hosts,
    }


def lease_row(lease: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return a row of one lease, as the binding tells it."""
    return {
        "address": lease.get("ipaddr"),
        "prefix": lease.get("prefix"),
        "family": _FAMILIES.get(lease.get("type", -1)),
        "mac": lease.get("mac"),
        "hostname": lease.get("hostname"),
        "client_id": lease.get("clientid"),
        "expires_seconds": lease.get("expirytime"),
    }
