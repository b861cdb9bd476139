# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbook preflight reads of a host, by its jobs. Private to the collection."""

from __future__ import annotations

import typing as t

from ...module_utils._systemtap.paths import DEFAULT_STORE
from .model import Job

HOST_CACHE = "/var/cache/tapvirt"
"""Where a traced host keeps modules, and a builder what it downloaded."""
IMAGES = "/var/lib/libvirt/images"
DEFAULT_URI = "qemu:///system"
# As Ansible runs the modules that change something: ansible-core may need a newer Python than this collection.
_PACKED = {"transport": "module"}


def host_reads(jobs: t.Collection[Job], uri: str = "") -> dict[str, t.Any]:
    """Return the options of the action that reads a host: ``{"modules": {name: options}, "directories": [path]}``.

    :param uri: the host's ``domains_uri``, if it is set.
    """
    modules: dict[str, t.Any] = {"kernel_facts": _PACKED}
    directories = []
    if "trace" in jobs:
        modules["stap_host_info"] = {}
        directories.append(HOST_CACHE)
    if "domains" in jobs:
        # Addresses need the right to manage domains; anybody may read the rest.
        modules["libvirt_domain_info"] = {"uri": uri or DEFAULT_URI, "limit": 1, "gather": ["addresses"]}
        directories.append(IMAGES)
    return {"modules": modules, "directories": directories}


def builder_reads(store: str = "", debuginfod: t.Any = None) -> dict[str, t.Any]:
    """Return the same for a builder.

    :param store: the builder's ``trace_builder_store``, if it is set.
    :param debuginfod: its ``trace_builder_debuginfod``, if it is set.
    """
    options = {"kernels": [], "store": store or DEFAULT_STORE}
    if debuginfod:
        options["debuginfod"] = debuginfod
    modules = {"kernel_facts": _PACKED, "stap_host_info": options}
    return {"modules": modules, "directories": [options["store"], HOST_CACHE]}
