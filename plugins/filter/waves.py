# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter for ``serial``; documented in the file named after it."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils._core.errors import InvalidInput
from ..plugin_utils._fleet import waves as _waves


def waves(value: t.Any, default: t.Sequence[_waves.Wave], name: str) -> list[_waves.Wave]:
    """Return how many hosts at a time."""
    try:
        return _waves.waves(value, default, name)
    except InvalidInput as error:
        raise AnsibleFilterError(error.message) from None


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., list[_waves.Wave]]]:
        return {"waves": waves}
