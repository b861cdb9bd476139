# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls of libvirt's API as they are told, on the test driver."""

from __future__ import annotations

import libvirt
import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.api_trace import ApiTrace


def test_every_call_is_told_in_its_order_and_arguments_are_not() -> None:
    trace = ApiTrace()
    connection = trace.wrap(libvirt.open("test:///default"))
    (domain,) = connection.listAllDomains()
    assert "<name>test</name>" in domain.XMLDesc(0)
    domain.suspend()
    with pytest.raises(libvirt.libvirtError):
        connection.lookupByName("s3cret")
    result = trace.result()
    told = [(row["call"], row["name"], row["libvirt_error"]) for row in result["calls"]]
    assert told == [
        ("virConnect.listAllDomains", None, None),
        ("virDomain.XMLDesc", "test", None),
        ("virDomain.suspend", "test", None),
        ("virConnect.lookupByName", None, libvirt.VIR_ERR_NO_DOMAIN),
    ]
    assert "s3cret" not in str(result)
    assert {row["call"]: row["failed"] for row in result["totals"]}["virConnect.lookupByName"] == 1


def test_objects_go_back_into_the_binding_as_they_came() -> None:
    trace = ApiTrace()
    connection = trace.wrap(libvirt.open("test:///default"))
    pool = connection.storagePoolLookupByName("default-pool")
    first = pool.createXML("<volume><name>a</name><capacity>1024</capacity></volume>", 0)
    pool.createXMLFrom("<volume><name>b</name><capacity>1024</capacity></volume>", first, 0)
    assert sorted(pool.listVolumes()) == ["a", "b"]


def test_the_list_of_calls_is_bounded_and_the_totals_are_not() -> None:
    trace = ApiTrace()
    connection = trace.wrap(libvirt.open("test:///default"))
    for _turn in range(250):
        connection.getLibVersion()
    result = trace.result()
    assert (len(result["calls"]), result["truncated"]) == (200, True)
    assert [(row["call"], row["count"]) for row in result["totals"]] == [("virConnect.getLibVersion", 250)]
