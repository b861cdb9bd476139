# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter over results of kernel_module_param; documented in the file named after it."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..plugin_utils._fleet import params
from ..plugin_utils._transport.edge import Odd


def params_drift(result: t.Any) -> list[str]:
    if not isinstance(result, t.Mapping):
        raise AnsibleFilterError(f"the result: {result!r} is not one of kernel_module_param.")
    try:
        return params.params_drift(result)
    except Odd as error:
        raise AnsibleFilterError(f"the result is not one of kernel_module_param: {error}.") from None


class FilterModule:
    """The filter by name."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"params_drift": params_drift}
