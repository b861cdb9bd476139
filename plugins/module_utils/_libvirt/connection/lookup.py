# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding domains by name, with help for a wrong one; the host itself, as Xen lists it, is none of them.

Private to the collection.
"""

from __future__ import annotations

import fnmatch
import typing as t

from ..._core.errors import InvalidInput, nearest_names
from .connection import Connection, Domain, libvirt, libvirt_errors
from .xml import check_name

_GLOB = frozenset("*?[")
_MOST_ROWS = 10000


def is_host(driver: str, domain_id: int) -> bool:
    """Tell whether a domain is Xen's Domain-0: the system that libvirt itself runs in, which is no guest."""
    return driver == "Xen" and domain_id == 0


def all_domains(connection: Connection) -> dict[str, Domain]:
    """Return every domain but the host itself, by name, sorted."""
    with libvirt_errors("Listing the domains"):
        driver = connection.getType()
        found = {
            str(domain.name()): domain for domain in connection.listAllDomains() if not is_host(driver, domain.ID())
        }
    return dict(sorted(found.items()))


def select(names: t.Sequence[str], existing: t.Iterable[str], kind: str = "domain", option: str = "names") -> list[str]:
    """Return the existing names that are meant: exact ones and globs in their order, each once; all without any.

    A glob that matches nothing is not an error.

    :param option: the option that lists the names.
    :raises InvalidInput: an exact name is not valid or does not exist; with its path, such as ``names[2]``.
    """
    existing = list(existing)
    if not names:
        return existing
    known, selected = set(existing), {}  # a dictionary, to keep the order
    for index, name in enumerate(names):
        if name not in known and _GLOB.intersection(name):
            selected.update(dict.fromkeys(fnmatch.filter(existing, name)))
            continue
        check_name(f"{option}[{index}]", name)
        if name not in known:
            raise _unknown(f"{option}[{index}]", name, existing, kind)
        selected[name] = None
    return list(selected)


def check_limit(limit: int) -> None:
    """Refuse a limit that bounds nothing.

    :raises InvalidInput: it is not 1 to 10000.
    """
    if not 1 <= limit <= _MOST_ROWS:
        raise InvalidInput("limit", limit, f"The limit is a number from 1 to {_MOST_ROWS}.")


def find_domain(connection: Connection, name: str, option: str = "name") -> Domain:
    """Return a domain by its name.

    :param option: the option that has the name.
    :raises InvalidInput: the name is not valid, or no domain has it; with the nearest names.
    """
    check_name(option, name)
    with libvirt_errors(f"Looking up domain {name}"):
        try:
            domain = connection.lookupByName(name)
            if not is_host(connection.getType(), domain.ID()):
                return domain
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    raise _unknown(option, name, all_domains(connection), "domain")


def _unknown(option: str, name: str, existing: t.Iterable[str], kind: str) -> InvalidInput:
    return InvalidInput(option, name, f"No {kind} has this name.", candidates=nearest_names(name, existing))
