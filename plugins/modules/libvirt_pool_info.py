#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_pool_info
short_description: Read libvirt storage pools as typed rows
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Returns the named storage pools, or all pools, on one connection. Each row has the state, the path, the sizes, the
    number of volumes, and the changes that an active pool has not picked up yet.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  names:
    description: The pools, by name or by a pattern of the shell's kind such as V(img*); all where none is named.
    type: list
    elements: str
    default: []
  limit:
    description: How many pools at most.
    type: int
    default: 100
seealso:
  - module: tapvirt.host.libvirt_pool
  - module: tapvirt.host.libvirt_volume_info
"""

EXAMPLES = r"""
- name: Every pool of the host
  tapvirt.host.libvirt_pool_info:
  register: found

- name: Those that are nearly full
  ansible.builtin.debug:
    msg: "{{ found.pools | selectattr('state', 'eq', 'active') | selectattr('available_bytes', 'lt', 10737418240) }}"
"""

RETURN = r"""
pools:
  description: The pools by name.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: The pool., type: str}
    uuid: {description: Its UUID., type: str}
    type: {description: "Its type such as C(dir), C(fs), C(logical) or C(rbd).", type: str}
    state: {description: C(active) or C(inactive)., type: str}
    persistent: {description: Whether it is defined beyond its run., type: bool}
    autostart: {description: Whether it starts with the host., type: bool}
    path: {description: The path below which its volumes are; null where it has none., type: str}
    capacity_bytes: {description: What it holds; null while it is inactive., type: int}
    allocation_bytes: {description: What is taken; null while it is inactive., type: int}
    available_bytes: {description: What is left; null while it is inactive., type: int}
    volumes: {description: How many volumes are in it; null while it is inactive., type: int}
    pending:
      description: As RV(tapvirt.host.libvirt_pool#module:pools[].pending).
      type: list
      elements: dict
  sample:
    - name: images
      uuid: 8e0daee3-6e79-4d28-b8ae-65cebe72570e
      type: dir
      state: active
      persistent: true
      autostart: true
      path: /srv/images
      capacity_bytes: 270553174016
      allocation_bytes: 48987295744
      available_bytes: 221565878272
      volumes: 12
      pending: []
truncated:
  description: Whether O(limit) cut the list.
  returned: success
  type: bool
  sample: false
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: "names[0]"
    value: "imges"
    problem: No storage pool has this name.
    hint: null
    candidates: [images]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import (
    CONNECTION_SPEC,
    connected_for_reading,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.pool_info import pool_rows

ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    "names": {"type": "list", "elements": "str", "default": []},
    "limit": {"type": "int", "default": 100},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    with connected_for_reading(params["uri"], params["connect_timeout_seconds"]) as connection:
        rows, truncated = pool_rows(connection, params["names"], params["limit"])
    return {"changed": False, "pools": rows, "truncated": truncated}


def main() -> None:
    run_libvirt_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
