#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_volume_info
short_description: Read libvirt storage volumes as typed rows
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Returns the volumes of the named storage pools, or of all active pools, on one connection. Each row has the path,
    the format, the sizes, the backing file, and the domains that use the volume.
  - This is libvirt's own list. It contains files that other programs created after the next refresh of the pool. Every
    run of M(tapvirt.host.libvirt_volume) refreshes it.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  pools:
    description: The pools, by name or by a pattern of the shell's kind; all that are active where none is named.
    type: list
    elements: str
    default: []
  names:
    description: The volumes, by name or by a pattern of the shell's kind such as V(web*); all where none is named.
    type: list
    elements: str
    default: []
  limit:
    description: How many volumes at most.
    type: int
    default: 100
seealso:
  - module: tapvirt.host.libvirt_volume
  - module: tapvirt.host.libvirt_pool_info
"""

EXAMPLES = r"""
- name: Find the volumes of a pool that no domain uses
  tapvirt.host.libvirt_volume_info:
    pools: [images]
  register: found

- name: Show them
  ansible.builtin.debug:
    msg: "{{ found.volumes | selectattr('used_by', 'eq', []) | map(attribute='path') }}"
"""

RETURN = r"""
volumes:
  description: The volumes, by pool and name.
  returned: success
  type: list
  elements: dict
  contains:
    pool: {description: The pool that it is in., type: str}
    name: {description: The volume., type: str}
    key: {description: Libvirt's key for it., type: str}
    path: {description: Where it is., type: str}
    type: {description: "C(file), C(block), C(dir), C(network), C(netdir) or C(ploop).", type: str}
    format: {description: Its format such as C(raw) or C(qcow2); null where it has none., type: str}
    capacity_bytes: {description: What it holds., type: int}
    allocation_bytes: {description: What it takes from the pool., type: int}
    backing:
      description: The path and the format of its backing file; null if it has none.
      type: dict
    used_by:
      description:
        - The names of the domains that use it, running or not, including domains that use it through an overlay.
        - Null if libvirt's driver knows no domains (C(storage:///system)).
      type: list
      elements: str
  sample:
    - pool: images
      name: web1.qcow2
      key: /srv/images/web1.qcow2
      path: /srv/images/web1.qcow2
      type: file
      format: qcow2
      capacity_bytes: 21474836480
      allocation_bytes: 200704
      backing: {path: /srv/images/base.qcow2, format: qcow2}
      used_by: [web1]
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
    option: "pools[0]"
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
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.volume_info import volume_rows

ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    "pools": {"type": "list", "elements": "str", "default": []},
    "names": {"type": "list", "elements": "str", "default": []},
    "limit": {"type": "int", "default": 100},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    with connected_for_reading(params["uri"], params["connect_timeout_seconds"]) as connection:
        rows, truncated = volume_rows(connection, params["pools"], params["names"], params["limit"])
    return {"changed": False, "volumes": rows, "truncated": truncated}


def main() -> None:
    run_libvirt_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
