# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters over the tables of an inventory; documented in the files named after them."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..plugin_utils._fleet import tables


def near_tables(variables: t.Any, prefix: str) -> dict[str, str]:
    """Warn of variables that hold a table under a name that is almost one of ours, and return them."""
    if not isinstance(variables, t.Mapping):
        raise AnsibleFilterError(f"near_tables: {variables!r} is not a dictionary of variables.")
    return tables.warn_of_near_tables(variables, prefix)


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"near_tables": near_tables}
