# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls of libvirt's API as they are told, on the test driver."""

from __future__ import annotations

import pathlib
import typing as t

import libvirt
import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.api_trace import ApiTrace

Run = t.Callable[..., t.Dict[str, t.Any]]


def test_every_call_is_reported_in_its_order_and_arguments_are_not() -> None:
    trace = ApiTrace()
    connection = trace.wrap(libvirt.open("test:///default"))
    (domain,) = connection.listAllDomains()
    assert "<name>test</name>" in domain.XMLDesc(0)
    domain.suspend()
    with pytest.raises(libvirt.libvirtError):
        connection.lookupByName("s3cret")
    result = trace.result()
    calls = [(row["call"], row["name"], row["libvirt_error"]) for row in result["calls"]]
    assert calls == [
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


MODULES = pathlib.Path(__file__).resolve().parents[4] / "plugins" / "modules"
ITEMS = {
    "libvirt_console": {"name": "test"},
    "libvirt_domain": {"name": "test"},
    "libvirt_migration": {"name": "test", "destination": "test:///default"},
    "libvirt_network": {"name": "default"},
    "libvirt_pool": {"name": "default-pool"},
    "libvirt_snapshot": {"domain": "test", "name": "none", "state": "absent"},
    "libvirt_volume": {"pool": "default-pool", "name": "none", "state": "absent"},
}
WITH_TRACE = sorted(path.stem for path in MODULES.glob("*.py") if "CONNECTION_SPEC" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", WITH_TRACE)
def test_every_module_that_takes_trace_api_returns_its_calls(run_module: Run, module: str) -> None:
    args = {"uri": "test:///default", "trace_api": True, **ITEMS.get(module, {})}
    assert run_module(module, args)["api_trace"]["calls"]


@pytest.mark.parametrize("module", sorted(set(ITEMS) - {"libvirt_console", "libvirt_migration"}))
def test_a_list_and_the_options_of_one_item_exclude_each_other(run_module: Run, module: str) -> None:
    items = module.partition("_")[2] + "s"
    args = {"uri": "test:///default", "state": "absent", items: []}
    assert f"{items}|state" in run_module(module, args)["msg"]
    assert not run_module(module, {"uri": "test:///default", items: []}).get("failed")
