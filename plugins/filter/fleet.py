# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters over the facts of many hosts, and versions of kernels; documented in the files named after them."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ..module_utils._core.errors import InvalidInput, TapvirtError
from ..module_utils._kernel.image.identity import version_code
from ..plugin_utils._fleet import fleet
from ..plugin_utils._transport.edge import ANY, Each, Need, parse, parse_all, warn

_LARGEST_CODE = (1 << 32) - 1
_FACTS = Need(Each(ANY))


def kernel_version_code(release: t.Any) -> int:
    """Return LINUX_VERSION_CODE for a release such as ``3.12.0`` (199680)."""
    if not isinstance(release, str):
        raise _refusal(
            "kernel_version_code", release, "A release is a text that begins with a version, such as 6.12.0."
        )
    try:
        return version_code(release)
    except TapvirtError:
        problem = "A release begins with a kernel version, such as 6.12.0."
        raise _refusal("kernel_version_code", release, problem) from None


def kernel_version_from_code(code: t.Any) -> str:
    """Return the version for a LINUX_VERSION_CODE: 199680 is ``3.12.0``."""
    if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= _LARGEST_CODE:
        problem = "A LINUX_VERSION_CODE is a number, such as 199680 for 3.12.0."
        raise _refusal("kernel_version_from_code", code, problem)
    return f"{code >> 16}.{code >> 8 & 0xFF}.{code & 0xFF}"


def fact_diff(facts: t.Any, ignore: t.Any = ()) -> list[dict[str, t.Any]]:
    """Return the facts that are not the same on all hosts."""
    return fleet.fact_diff(_by_host("fact_diff", facts, _FACTS, "facts"), _names("fact_diff", "ignore", ignore))


def symbol_diff(symbols: t.Any) -> list[dict[str, t.Any]]:
    """Return the symbols that are not the same on all hosts."""
    return fleet.symbol_diff(_by_host("symbol_diff", symbols, Need([fleet.SYMBOL]), "rows of kernel_symbol_info"))


def group_hosts_by(facts: t.Any, names: t.Any) -> list[dict[str, t.Any]]:
    """Return the groups of hosts that have the same values of some facts."""
    checked = _names("group_hosts_by", "facts", [names] if isinstance(names, str) else names)
    return fleet.group_hosts_by(_by_host("group_hosts_by", facts, _FACTS, "facts"), checked)


def _by_host(name: str, values: t.Any, shape: t.Any, what: str) -> dict[str, t.Any]:
    """Return host -> what it has, of this shape; warn of hosts that have something else."""
    if not isinstance(values, t.Mapping):
        raise _refusal(name, values, f"The input is a dictionary of host names with their {what}.")
    good, odd = parse_all(values, lambda value: parse(value, shape))
    warn(name, odd)
    return good


def _names(name: str, option: str, names: t.Any) -> list[str]:
    if isinstance(names, str) or not isinstance(names, t.Sequence) or not all(isinstance(item, str) for item in names):
        raise _refusal(f"{name}.{option}", names, "The option is a list of names.")
    return list(names)


def _refusal(option: str, value: t.Any, problem: str) -> AnsibleFilterError:
    return AnsibleFilterError(InvalidInput(option, value, problem).message)


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {
            "fact_diff": fact_diff,
            "group_hosts_by": group_hosts_by,
            "kernel_version_code": kernel_version_code,
            "kernel_version_from_code": kernel_version_from_code,
            "symbol_diff": symbol_diff,
        }
