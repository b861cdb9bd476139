# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which domains are meant by names and globs, and which is none. Pure."""

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.lookup import is_host, select

EXISTING = ["db1", "odd[1]", "web1", "web2", "web30"]


@pytest.mark.parametrize(
    ("names", "selected"),
    [
        ([], EXISTING),
        (["web2", "db1", "web2"], ["web2", "db1"]),
        (["web?", "web*"], ["web1", "web2", "web30"]),
        (["web2", "web*"], ["web2", "web1", "web30"]),
        (["[dw]*1"], ["db1", "web1"]),
        (["odd[1]"], ["odd[1]"]),
        (["none*"], []),
    ],
)
def test_names_and_globs_in_their_order_each_once(names: list[str], selected: list[str]) -> None:
    assert select(names, EXISTING) == selected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wbe1", "Invalid value 'wbe1' for names[1]: No domain has this name. Did you mean web1, db1 or web2?"),
        (
            "../db1",
            "Invalid value '../db1' for names[1]: A name cannot be a path: it has no '/', and it is not '.' or '..'. "
            "Did you mean db1?",
        ),
        (
            "",
            "Invalid value '' for names[1]: A name has 1 to 200 printable characters, and no space at its start or "
            "end.",
        ),
    ],
)
def test_a_wrong_name_is_an_error(name: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        select(["web1", name], EXISTING)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("driver", "ident", "host"), [("Xen", 0, True), ("Xen", 3, False), ("Xen", -1, False), ("QEMU", 0, False)]
)
def test_only_the_first_domain_of_xen_is_the_host(driver: str, ident: int, host: bool) -> None:
    assert is_host(driver, ident) is host
