# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters over the records of trace runs; documented in the files named after them."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils._core.errors import InvalidInput
from ..plugin_utils._trace import records
from ..plugin_utils._transport.edge import display


def _filter(merge: t.Callable[[t.Any], list[dict[str, t.Any]]]) -> t.Callable[[t.Any], list[dict[str, t.Any]]]:
    def checked(runs: t.Any) -> list[dict[str, t.Any]]:
        if not isinstance(runs, t.Mapping):
            raise AnsibleFilterError(
                InvalidInput("runs", runs, "The runs are a dictionary of host names with lists of runs.").message
            )
        good, odd = records.valid_records(runs)
        for host, why in odd.items():
            display.warning(f"{host}: {why}; it is left out.")
        return merge(good)

    return checked


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[[t.Any], list[dict[str, t.Any]]]]:
        return {
            "histogram_plots": _filter(records.histogram_plots),
            "counter_plots": _filter(records.counter_plots),
        }
