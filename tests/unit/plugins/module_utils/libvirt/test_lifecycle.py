# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The run states, the ways between them, and what an undefine may take. Pure."""

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain import lifecycle
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.lifecycle import (
    STATES,
    steps_to,
    undefine_flags,
)


@pytest.mark.parametrize(
    ("wanted", "state", "active", "saved", "steps"),
    [
        ("present", "crashed", True, False, []),
        ("running", "running", True, False, []),
        ("running", "blocked", True, False, []),
        ("running", "nostate", True, False, []),
        ("running", "shutoff", False, False, ["create"]),
        ("running", "paused", True, False, ["resume"]),
        ("running", "pmsuspended", True, False, ["wakeup"]),
        ("running", "crashed", True, False, ["destroy", "create"]),
        ("running", "crashed", False, False, ["create"]),
        ("running", "shutdown", True, False, ["wait_off", "create"]),
        ("shutdown", "running", True, False, ["shutdown"]),
        ("shutdown", "paused", True, False, ["resume", "shutdown"]),
        ("shutdown", "pmsuspended", True, False, ["wakeup", "shutdown"]),
        ("shutdown", "crashed", True, False, ["destroy"]),
        ("shutdown", "shutdown", True, False, ["wait_off"]),
        ("shutdown", "shutoff", False, True, []),
        ("paused", "running", True, False, ["suspend"]),
        ("paused", "shutoff", False, False, ["create_paused"]),
        ("paused", "pmsuspended", True, False, ["wakeup", "suspend"]),
        ("saved", "running", True, False, ["managed_save"]),
        ("saved", "paused", True, False, ["managed_save"]),
        ("saved", "shutoff", False, True, []),
    ],
)
def test_the_way_to_a_state(wanted: str, state: str, active: bool, saved: bool, steps: list[str]) -> None:
    assert steps_to(wanted, state, active, saved) == steps


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("wanted", ["running", "paused", "shutdown"])
@pytest.mark.parametrize("active", [True, False])
def test_there_is_a_way_from_every_state(state: str, wanted: str, active: bool) -> None:
    for step in steps_to(wanted, state, active, False):
        assert step in (*lifecycle.CALLS, "shutdown", "wait_off")


def test_memory_of_a_domain_that_is_off_cannot_be_saved() -> None:
    with pytest.raises(
        InvalidInput, match="^Invalid value 'saved' for state: The domain does not run, so it has no memory to save.$"
    ):
        steps_to("saved", "shutoff", False, False)


@pytest.mark.parametrize(
    ("version", "remove", "counts", "flags"),
    [
        (9000000, (), (False, 0, 0), 8 | 64),
        (8008000, (), (False, 0, 0), 8),
        (9000000, ("nvram", "tpm"), (False, 0, 0), 4 | 32),
        (9000000, ("managed_save", "snapshots", "checkpoints"), (True, 2, 1), 1 | 2 | 8 | 16 | 64),
        (5000000, ("checkpoints",), (False, 0, 1), 8),
    ],
)
def test_undefine_keeps_what_is_not_named(
    version: int, remove: tuple[str, ...], counts: tuple[bool, int, int], flags: int
) -> None:
    assert undefine_flags(version, remove, *counts) == flags
