# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter for names that become files of the controller; documented in the file named after it."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..plugin_utils._fleet import progress


def file_name(value: t.Any, suffix: str = "") -> str:
    if not isinstance(value, str) or not value:
        raise AnsibleFilterError(f"tapvirt.host.file_name: {value!r} is not the name of anything.")
    try:
        return progress.encoded(value, suffix)
    except progress.NameTooLong as error:
        raise AnsibleFilterError(f"tapvirt.host.file_name: {error}") from None


class FilterModule:
    """The filter by name."""

    def filters(self) -> dict[str, t.Callable[..., str]]:
        return {"file_name": file_name}
