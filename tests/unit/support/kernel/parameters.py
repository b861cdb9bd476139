# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of the kernel parameters' code, as kernel_module_param makes them."""

from __future__ import annotations

import typing as t

from ansible_collections.tapvirt.host.plugins.module_utils._core.plan import Plan
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.model import wanted_list
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.run import Parameters


def set_parameters(
    root: Root,
    values: t.Mapping[str, t.Any],
    state: str = "present",
    check: bool = False,
    machine: str = "x86_64",
    **options: t.Any,
) -> tuple[Plan, dict[str, t.Any]]:
    """Converge parameters of a host.

    :param values: ``module.name`` -> value
    :param options: further options of every entry; by default it is set at run time only
    :return: the plan, and the result of the module
    :raises TapvirtError: as the module fails
    """
    entries = []
    for label, value in values.items():
        module, _dot, name = label.partition(".")
        entry = {"module": module, "name": name, "value": value, "runtime": True, "persist": "none"}
        entries.append({**entry, "read_back": "auto", **options})
    return Parameters(root, machine, wanted_list(entries, state), state).converge(check)
