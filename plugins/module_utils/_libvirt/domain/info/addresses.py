# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network addresses of running domains, with the source of each: lease, ARP table, guest agent.

Private to the collection.
"""

from __future__ import annotations

import time
import typing as t
import xml.etree.ElementTree as ET

from ...connection.connection import Domain, libvirt

MAX_ADDRESSES = 64
# How long one guest's agent may take, and those of all guests together.
AGENT_SECONDS = 3
ALL_AGENTS_SECONDS = 30
_FAMILIES = ("ipv4", "ipv6")
_AGENT_CHANNEL = "devices/channel/target[@name='org.qemu.guest_agent.0']"
# virDomainAgentResponseTimeoutValues: what a domain has that nobody has set.
_AGENT_UNBOUNDED = -2


class Addresses:
    """Asks domain after domain, within one time for all of their agents."""

    def __init__(self) -> None:
        self._agents_seconds = float(ALL_AGENTS_SECONDS)

    def rows(self, domain: Domain, running: ET.Element | None) -> tuple[list[dict[str, t.Any]], str]:
        """Return the addresses of a domain, those from the most trusted source first, and how its agent did.

        An address that several sources know is returned once. The second value is ``absent`` (no agent is there, or the
        driver knows none), ``answered``, ``silent`` (not within its time) or ``skipped`` (the time of all was over).

        :raises libvirt.libvirtError: the domain is gone.
        """
        if running is None:
            return [], "absent"
        found: dict[tuple[str | None, str], dict[str, t.Any]] = {}
        if running.find("devices/interface") is not None:
            for source, number in (
                ("lease", libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE),
                ("arp", libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP),
            ):
                _add(found, source, _ask(domain, number) or {})
        agent = self._ask_agent(domain, running, found)
        return list(found.values())[:MAX_ADDRESSES], agent

    def _ask_agent(
        self, domain: Domain, running: ET.Element, found: dict[tuple[str | None, str], dict[str, t.Any]]
    ) -> str:
        channel = running.find(_AGENT_CHANNEL)
        if channel is None or channel.get("state") != "connected":
            return "absent"
        if self._agents_seconds <= 0:
            return "skipped"
        started = time.monotonic()
        try:
            # Else a guest that stopped in the middle of an answer would be waited for without end.
            domain.agentSetResponseTimeout(AGENT_SECONDS, 0)
        except libvirt.libvirtError as error:
            _raise_if_gone(error)
            return "absent"
        try:
            answer = _ask(domain, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)
        finally:
            self._agents_seconds -= time.monotonic() - started
            _put_back(domain)
        if answer is None:
            return "silent"
        _add(found, "agent", answer)
        return "answered"


def _put_back(domain: Domain) -> None:
    try:
        domain.agentSetResponseTimeout(_AGENT_UNBOUNDED, 0)
    except libvirt.libvirtError as error:
        _raise_if_gone(error)


def _ask(domain: Domain, source: int) -> t.Mapping[str, t.Any] | None:
    """Return libvirt's answer; null where the source has none, such as a driver without networks."""
    try:
        return t.cast("t.Mapping[str, t.Any]", domain.interfaceAddresses(source, 0))
    except libvirt.libvirtError as error:
        _raise_if_gone(error)
        return None


def _raise_if_gone(error: t.Any) -> None:
    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
        raise error


def _add(found: dict[tuple[str | None, str], dict[str, t.Any]], source: str, answer: t.Mapping[str, t.Any]) -> None:
    for interface, values in answer.items():
        mac = values.get("hwaddr")
        for row in values.get("addrs") or ():
            address, family = row["addr"], row["type"]
            found.setdefault(
                (mac, address),
                {
                    "address": address,
                    "prefix": row.get("prefix"),
                    "family": _FAMILIES[family] if family in (0, 1) else None,
                    "mac": mac,
                    # The host's name of it; the guest's own where the agent is the source.
                    "interface": interface,
                    "source": source,
                },
            )
