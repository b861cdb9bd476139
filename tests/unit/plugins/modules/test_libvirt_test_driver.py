# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The domain modules on libvirt's test driver: states that are hard to reach for real, and the semantic plan."""

from __future__ import annotations

import pathlib
import typing as t

import libvirt
import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.lifecycle import call_unless_off
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.node import node_uri

NODE = """
<node>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>guest</name>
    <uuid>3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11</uuid>
    <description>one</description>
    <memory>65536</memory>
    <vcpu>2</vcpu>
    <os><type>hvm</type></os>
    <devices>
      <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
    </devices>
    <test:runstate>{state}</test:runstate>
    {more}
  </domain>
</node>
"""
Run = t.Callable[..., dict[str, t.Any]]
STATES = {"running": 1, "paused": 3, "shutoff": 5, "crashed": 6, "pmsuspended": 7}


@pytest.fixture
def run_on_guest(tmp_path: pathlib.Path, run_module: Run) -> Run:
    """Run a module on a host of the test driver that is as the test says; nothing is kept from run to run."""

    def run(
        found: str, more: str = "", check: bool = False, module: str = "libvirt_domain", **args: t.Any
    ) -> dict[str, t.Any]:
        uri = node_uri(tmp_path, NODE.format(state=STATES[found], more=more))
        if "wanted" in args:
            args["state"] = args.pop("wanted")
        return run_module(module, {"uri": uri, **args}, check=check)

    return run


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_read(run_on_guest: Run, state: str) -> None:
    (row,) = run_on_guest(state, module="libvirt_domain_info")["domains"]
    assert row["state"] == state
    assert (row["memory_bytes"], row["vcpus"], row["interfaces"][0]["mac"]) == (64 << 20, 2, "52:54:00:00:00:01")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("wanted", ["running", "paused", "shutdown"])
def test_states_are_reached_as_planned(run_on_guest: Run, state: str, wanted: str) -> None:
    planned = run_on_guest(state, check=True, name="guest", wanted=wanted)
    done = run_on_guest(state, name="guest", wanted=wanted, wait_seconds=5)
    assert planned["plan"] == done["plan"]
    if state == "pmsuspended":
        # This driver cannot wake a guest up: the step is planned, fails, and the row says what is.
        assert "Waking up domain " in done["msg"]
        assert done["domains"][0]["state"] == "pmsuspended"
        return
    assert not done.get("failed"), done["msg"]
    assert done["domains"][0]["state"] == {"shutdown": "shutoff"}.get(wanted, wanted)
    assert done["changed"] is (state != done["domains"][0]["state"])


NIC = "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>"
MARK = "<metadata><t:domain xmlns:t='https://github.com/tapvirt/tapvirt.host/domain/1' wanted='earlier'/></metadata>"
XML = (
    "<domain type='test'><name>guest</name><description>one</description><memory unit='MiB'>{memory}</memory>"
    "<vcpu>2</vcpu><os><type>hvm</type></os>"
    "<devices>{devices}</devices></domain>"
)


def test_a_semantic_plan_reports_it_and_keeps_the_identity(run_on_guest: Run) -> None:
    same = run_on_guest("shutoff", name="guest", xml=XML.format(memory=64, devices=NIC))
    assert (same["plan"], same["domains"][0]["plan_fidelity"]) == ([], "semantic")
    more = run_on_guest("shutoff", name="guest", xml=XML.format(memory=32, devices=NIC))
    (memory, text) = more["plan"]
    assert (memory["what"], memory["before"], memory["after"]) == ("guest memory", "65536", "32768")
    assert (text["what"], text["before"], text["why"]) == ("guest xml", None, "the XML is not the one applied last")
    assert more["domains"][0]["uuid"] == "3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11"


@pytest.mark.parametrize(("state", "devices"), [("shutoff", ""), ("running", "<sound model='ac97'/>")])
def test_undeclared_interface_is_a_removal_row_or_refused(run_on_guest: Run, state: str, devices: str) -> None:
    xml = XML.format(memory=64, devices=devices)
    refused = run_on_guest(state, name="guest", xml=xml)
    assert refused["failed"]
    assert "interface[52:54:00:00:00:01] (network=default)" in refused["msg"]
    assert "allow_device_removal: true" in refused["msg"]
    assert (refused["changed"], run_on_guest(state, check=True, name="guest", xml=xml)["msg"]) == (
        False,
        refused["msg"],
    )
    for more, allowed in (("", True), (MARK, False)):
        args = {"name": "guest", "xml": xml, "allow_device_removal": allowed}
        planned, done = (run_on_guest(state, more, check=check, **args) for check in (True, False))
        assert planned["plan"] == done["plan"]
        removals = [row["what"] for row in done["plan"] if row["after"] is None and " running " not in row["what"]]
        assert removals == ["guest devices/interface[52:54:00:00:00:01]"]
        assert not done.get("failed"), done["msg"]


def test_absent_refuses_to_lose_saved_memory(run_on_guest: Run) -> None:
    refused = run_on_guest("shutoff", "<test:hasmanagedsave/>", name="guest", wanted="absent")
    assert "managed save" in refused["msg"]
    assert refused["changed"] is False
    gone = run_on_guest("shutoff", "<test:hasmanagedsave/>", name="guest", wanted="absent", remove=["managed_save"])
    assert gone["domains"][0]["state"] == "absent"


def test_a_domain_that_ended_by_itself_needs_no_end() -> None:
    connection = libvirt.open("test:///default")
    domain = connection.lookupByName("test")
    domain.destroy()
    for ending in (domain.destroy, domain.shutdown):
        call_unless_off(domain, ending)
    domain.create()
    with pytest.raises(libvirt.libvirtError):
        call_unless_off(domain, domain.create)
    connection.close()


def test_the_name_of_another_uuid_is_refused(run_on_guest: Run) -> None:
    uuid = "<uuid>3f2a1f9e-2f1c-4f55-9a43-000000000000</uuid>"
    xml = f"<domain type='test'><name>guest</name>{uuid}<memory>1024</memory><os><type>hvm</type></os></domain>"
    assert (
        "The UUID in the XML is 3f2a1f9e-2f1c-4f55-9a43-000000000000, but that of domain 'guest' is "
        in run_on_guest("shutoff", name="guest", xml=xml)["msg"]
    )


@pytest.mark.parametrize("title", ["", "<title>one</title>"])
def test_xml_with_the_number_of_a_running_domain_is_accepted(run_on_guest: Run, title: str) -> None:
    """The number is in the output of "virsh dumpxml"; the mark and a title stand between name and UUID."""
    uuid = "<uuid>3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11</uuid>"
    nic = "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>"
    xml = (
        f"<domain type='test' id='1'><name>guest</name>{title}{uuid}<description>two</description>"
        f"<memory>65536</memory><os><type>hvm</type></os><devices>{nic}</devices></domain>"
    )
    planned = run_on_guest("running", check=True, name="guest", xml=xml)
    done = run_on_guest("running", name="guest", xml=xml)
    assert not done.get("failed"), done["msg"]
    assert planned["plan"] == done["plan"]
    assert "guest description" in [row["what"] for row in done["plan"]]
    assert "guest @id" not in [row["what"] for row in done["plan"]]
