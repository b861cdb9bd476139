# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters over tables of module parameters; documented in the files named after them."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..plugin_utils._fleet import params
from ..plugin_utils._transport.edge import Odd


def merge_params(tables: t.Any, **defaults: t.Any) -> list[dict[str, t.Any]]:
    if not isinstance(tables, t.Mapping):
        raise AnsibleFilterError(f"the tables: {tables!r} is not a dictionary of names with tables.")
    try:
        return params.merge_params(tables, **defaults)
    except params.BadTable as error:
        raise AnsibleFilterError(error.message) from error


def params_drift(result: t.Any) -> list[str]:
    if not isinstance(result, t.Mapping):
        raise AnsibleFilterError(f"the result: {result!r} is not one of kernel_module_param.")
    try:
        return params.params_drift(result)
    except Odd as error:
        raise AnsibleFilterError(f"the result is not one of kernel_module_param: {error}.") from None


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"merge_params": merge_params, "params_drift": params_drift}
