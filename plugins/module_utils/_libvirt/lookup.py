# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding a domain by its name, with help for a wrong one.

Private to the collection.
"""

from __future__ import annotations

from .._core.errors import InvalidInput, nearest_names
from .connection import Connection, Domain, libvirt, libvirt_errors
from .definition import check_name


def find_domain(connection: Connection, name: str) -> Domain:
    """Return a domain by its name.

    :raises InvalidInput: not a name, or none of this libvirt's domains; with the nearest ones.
    """
    check_name("name", name)
    with libvirt_errors("Looking up {0}".format(name)):
        try:
            return connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
        names = [domain.name() for domain in connection.listAllDomains()]
    raise InvalidInput("name", name, "is no domain of this libvirt", nearest_names(name, names))
