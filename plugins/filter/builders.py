# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter over builders; documented in the file named after it."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..plugin_utils._trace import builders as _builders
from ..plugin_utils._transport.edge import Odd


def trace_builder_for(host: t.Any, builders: t.Any) -> dict[str, t.Any]:
    """Return which builder builds for a host, or why none can."""
    if not isinstance(host, t.Mapping) or not {"kernel", "traceability", "memory"} <= set(host):
        raise AnsibleFilterError("trace_builder_for: give what tapvirt.host.stap_host_info returned as its host.")
    try:
        known = _builders.parse_host(host)
    except Odd as error:
        raise AnsibleFilterError(f"trace_builder_for: the host is not what stap_host_info returned: {error}.") from None
    if not isinstance(builders, t.Mapping):
        raise AnsibleFilterError(f"trace_builder_for: builders: {builders!r} is not a dictionary of builders' names.")
    return _builders.trace_builder_for(known, builders)


class FilterModule:
    """The filter by name."""

    def filters(self) -> dict[str, t.Callable[..., dict[str, t.Any]]]:
        return {"trace_builder_for": trace_builder_for}
