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


def select(names: t.Sequence[str], existing: t.Iterable[str], kind: str = "domain") -> list[str]:
    """Return the existing names that are meant: exact ones and globs in their order, each once; all without any.

    A glob that fits none is no error.

    :raises InvalidInput: an exact name that is not a name, or does not exist; with the nearest ones.
    """
    existing = list(existing)
    if not names:
        return existing
    known, selected = set(existing), {}  # a dictionary, to keep the order
    for name in names:
        if name not in known and _GLOB.intersection(name):
            selected.update(dict.fromkeys(fnmatch.filter(existing, name)))
            continue
        check_name("name", name)
        if name not in known:
            raise _unknown(name, existing, kind)
        selected[name] = None
    return list(selected)


def check_limit(limit: int) -> None:
    """Refuse a limit that bounds nothing.

    :raises InvalidInput: it is not 1 to 10000.
    """
    if not 1 <= limit <= _MOST_ROWS:
        raise InvalidInput("limit", limit, f"must be 1 to {_MOST_ROWS}")


def find_domain(connection: Connection, name: str) -> Domain:
    """Return a domain by its name.

    :raises InvalidInput: not a name, or none of this libvirt's domains; with the nearest ones.
    """
    check_name("name", name)
    with libvirt_errors(f"Looking up {name}"):
        try:
            domain = connection.lookupByName(name)
            if not is_host(connection.getType(), domain.ID()):
                return domain
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    raise _unknown(name, all_domains(connection))


def _unknown(name: str, existing: t.Iterable[str], kind: str = "domain") -> InvalidInput:
    return InvalidInput("name", name, f"is no {kind} of this libvirt", nearest_names(name, existing))
