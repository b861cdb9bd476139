# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter over results of libvirt_domain; documented in the file named after it."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils._core.errors import InvalidInput
from ..plugin_utils._fleet import domain_drift
from ..plugin_utils._transport.edge import Odd


def domains_drift(result: t.Any) -> dict[str, t.Any]:
    """Return what is not as wanted."""
    try:
        return domain_drift.domains_drift(result)
    except Odd as error:
        problem = f"The input is not a result of libvirt_domain: {error}."
        raise AnsibleFilterError(InvalidInput("domains_drift", None, problem).message) from None


class FilterModule:
    """The filter by name."""

    def filters(self) -> dict[str, t.Callable[..., dict[str, t.Any]]]:
        return {"domains_drift": domains_drift}
