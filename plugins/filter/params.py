# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter over results of kernel_module_param; documented in the file named after it."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils._core.errors import InvalidInput
from ..plugin_utils._fleet import params
from ..plugin_utils._transport.edge import Odd


def params_drift(result: t.Any) -> list[str]:
    if not isinstance(result, t.Mapping):
        problem = "The input is a result of kernel_module_param, which is a dictionary."
        raise AnsibleFilterError(InvalidInput("params_drift", result, problem).message)
    try:
        return params.params_drift(result)
    except Odd as error:
        problem = f"The input is not a result of kernel_module_param: {error}."
        raise AnsibleFilterError(InvalidInput("params_drift", None, problem).message) from None


class FilterModule:
    """The filter by name."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"params_drift": params_drift}
