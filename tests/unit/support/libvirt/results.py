# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the results of libvirt modules."""

from __future__ import annotations

import typing as t


def plan_changes(result: t.Mapping[str, t.Any]) -> list[tuple[str, t.Any, t.Any]]:
    """Return the rows of a plan: what changes, its value before and after."""
    return [(row["what"], row["before"], row["after"]) for row in result["plan"]]
