# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in which somebody else changes the host between plan and apply."""

from __future__ import annotations

import typing as t

from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.item_run import ItemRun

RunT = t.TypeVar("RunT", bound=ItemRun[t.Any, t.Any, t.Any])


def interfering_run(run: type[RunT], interfere: t.Callable[[t.Any], object]) -> type[RunT]:
    """Return a kind of run that calls ``interfere(connection)`` after it has planned and before it changes anything."""

    def apply_all(self: RunT, connection: t.Any, touched: t.Sequence[t.Any]) -> None:
        interfere(connection)
        run.apply_all(self, connection, touched)

    return t.cast("type[RunT]", type("InterferingRun", (run,), {"apply_all": apply_all}))
