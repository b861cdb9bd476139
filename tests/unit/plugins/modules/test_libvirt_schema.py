# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions against libvirt's own schema, by its test driver."""

from __future__ import annotations

import contextlib
import pathlib
import xml.etree.ElementTree as ET

import libvirt
import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.schema import schema_errors
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.identity import with_identity
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.mark import Mark, with_mark

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "libvirt"
EXISTING = """
<domain type='qemu'>
  <name>existing</name><uuid>6b0b6a2e-6a0d-4f5e-8f0a-0a6f5d1b2c3d</uuid><genid>6b0b6a2e-6a0d-4f5e-8f0a-0a6f5d1b2c3e</genid>
  <metadata><note xmlns='urn:note'/></metadata>
</domain>
"""


def test_what_is_carried_over_and_noted_leaves_every_definition_valid() -> None:
    """A UUID at the end makes a definition invalid that has its <memoryBacking> below its <os>: places matter."""
    existing = ET.fromstring(EXISTING)
    paths = sorted(FIXTURES.glob("*.xml"))
    handed_over = {
        path.stem: with_mark(with_identity(ET.parse(path).getroot(), existing), Mark("w", "r")) for path in paths
    }
    assert len(handed_over) >= 40
    assert all(root.findtext("uuid") and root.find("metadata") is not None for root in handed_over.values())
    assert schema_errors(handed_over) == {}


def test_a_wrong_name_is_reported_with_the_nearest_one() -> None:
    right = (FIXTURES / "minimal.xml").read_text(encoding="utf-8")
    texts = {
        "fine": right,
        "tag": right.replace("memory", "memroy"),
        "attribute": right.replace("<memory", "<memory unti='KiB'"),
        "twice": right.replace("<os>", "<title>a</title>\n<title>b</title>\n<os>"),
        "place": right.replace("<os>", "<devices>\n<disk type='fil'/></devices>\n<os>"),
    }
    errors = schema_errors({name: ET.fromstring(text) for name, text in texts.items()}, texts)
    assert {name: error.message for name, error in errors.items()} == {
        "tag": "Invalid value for xml, line 8: <memroy> is not an element of a domain. "
        "Did you mean memory, maxMemory or memnode?",
        "attribute": "Invalid value for xml, line 8: unti is not an attribute of <memory>. "
        "Did you mean unit, units or count?",
        "twice": "Invalid value for xml: libvirt's schema refuses <title>: Extra element title in interleave; "
        "Element domain failed to validate content.",
        "place": "Invalid value for xml, line 9: libvirt's schema refuses <devices>: Extra element devices in "
        "interleave; Element domain failed to validate content.",
    }


NAME = "<name>guest</name>"
UUID = "<uuid>6b0b6a2e-6a0d-4f5e-8f0a-0a6f5d1b2c3d</uuid>"
TITLE = "<title>one</title>"
REST = "<memory>1024</memory><os><type>hvm</type></os>"


@pytest.mark.parametrize("parts", [(NAME, UUID, TITLE, REST), (NAME, REST), (TITLE, NAME, REST), (UUID, NAME, REST)])
@pytest.mark.parametrize("number", ["", " id='1'"])
def test_mark_keeps_valid_definition_valid(parts: tuple[str, ...], number: str) -> None:
    """libvirt 9.0 allows nothing between name, UUID and generation ID in a definition with an ID."""
    root = ET.fromstring(f"<domain type='test'{number}>{''.join(parts)}</domain>")
    assert schema_errors({"guest": root}) == {}
    for result in (root, with_identity(root, ET.fromstring(EXISTING))):
        assert schema_errors({"guest": with_mark(result, Mark("w", "r"))}) == {}


def test_schema_check_leaves_domains_of_the_test_host_alone() -> None:
    """Connections to test:///default share one host in a process."""
    with contextlib.closing(libvirt.open("test:///default")) as connection:
        domain = connection.lookupByName("test")
        uuid = domain.UUIDString()
        text = f"<domain type='test'><name>test</name><uuid>{uuid}</uuid><title>two</title>{REST}</domain>"
        before = domain.XMLDesc(0)
        assert schema_errors({"test": ET.fromstring(text)}) == {}
        assert connection.lookupByName("test").XMLDesc(0) == before
        assert connection.lookupByName("test").isPersistent()
