# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter for ``hosts``; documented in the file named after it."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils._core.errors import InvalidInput
from ..plugin_utils._fleet import targets


def play_hosts(value: t.Any, **options: t.Any) -> targets.Pattern:
    """Return the pattern of a play's hosts."""
    try:
        return targets.play_hosts(value, **options)
    except InvalidInput as error:
        raise AnsibleFilterError(error.message) from None


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., targets.Pattern]]:
        return {"play_hosts": play_hosts}
