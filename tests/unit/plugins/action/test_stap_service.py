# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action plugin of stap_service asks a host for."""

from __future__ import annotations

from ansible_collections.tapvirt.host.plugins.action import stap_service


def test_a_name_with_a_nul_byte_is_left_to_the_module() -> None:
    """The host's shell gets no such path."""
    good, odd = ({"name": name, "kernel": "6.1", "sha256": "aa"} for name in ("x", "x\0"))
    services = [{"name": name, "modules": [good, odd]} for name in ("a", "a\0b")]
    assert stap_service._wanted(services) == {"/var/lib/tapvirt/services/a/modules/6.1/x.ko": "aa"}
