# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of many domains, with the parts that were asked for, on one connection.

Private to the collection.
"""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

from ...connection.connection import Connection, Domain, LibvirtFailure, libvirt
from ...connection.lookup import all_domains, select
from .addresses import Addresses
from .backing_chain import Backing
from .info import MAX_DEVICES, domain_row
from .stats import bulk_stats, stats_row

STATS, ADDRESSES, BACKING = "stats", "addresses", "backing"
PARTS = (STATS, ADDRESSES, BACKING)


def domain_rows(
    connection: Connection, names: t.Sequence[str], limit: int, parts: t.Collection[str]
) -> tuple[list[dict[str, t.Any]], bool]:
    """Return the rows of the domains that names and globs mean (all of them without any), and whether ``limit`` cut.

    A domain that vanishes meanwhile is left out.

    :raises InvalidInput: a name that is no domain here.
    :raises LibvirtFailure: libvirt refused to tell.
    """
    domains = all_domains(connection)
    selected = select(names, domains)
    wanted = [domains[name] for name in selected[:limit]]
    gather = Gather(connection, wanted, parts)
    rows = [gather.row(domain) for domain in wanted]
    return [row for row in rows if row is not None], len(selected) > limit


class Gather:
    """What the rows of all domains have in common: bulk answers, images looked up, time for agents."""

    def __init__(self, connection: Connection, domains: t.Sequence[Domain], parts: t.Collection[str]) -> None:
        self._parts = parts
        self._bulk = bulk_stats(connection, domains) if STATS in parts else {}
        self._addresses = Addresses()
        self._backing = Backing(connection)

    def row(self, domain: Domain) -> dict[str, t.Any] | None:
        """Return the row of one domain; null where it vanished meanwhile.

        :raises LibvirtFailure: libvirt refused to tell.
        """
        try:
            row, stored, running = domain_row(domain)
            return {**row, **self._asked_for(domain, stored, running)}
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise LibvirtFailure(f"Reading domain {domain.name()}", error) from error

    def _asked_for(self, domain: Domain, stored: ET.Element, running: ET.Element | None) -> dict[str, t.Any]:
        found: dict[str, t.Any] = {}
        if STATS in self._parts:
            found[STATS] = stats_row(domain, running, self._bulk.get(domain.UUIDString()))
        if ADDRESSES in self._parts:
            found[ADDRESSES], found["agent"] = self._addresses.rows(domain, running)
        if BACKING in self._parts:
            disks = (stored if running is None else running).findall("devices/disk")
            found[BACKING] = [self._backing.row(disk) for disk in disks[:MAX_DEVICES]]
        return found
