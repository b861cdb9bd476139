#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_domain_info
short_description: Read libvirt domains as typed rows
author: The tapvirt.host authors (@tapvirt)
version_added: 0.1.0
description:
  - Returns the named domains, or all, in one connection - run state, configuration, devices, console, and what the
    running domain lacks of its stored definition.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._libvirt
options:
  names:
    description: The domains; all of them where none is named.
    type: list
    elements: str
    default: []
  limit:
    description: How many domains at most.
    type: int
    default: 100
"""

EXAMPLES = r"""
- name: Every domain of the host
  tapvirt.host.libvirt_domain_info:
  register: found

- name: Those that wait for a restart
  ansible.builtin.debug:
    msg: "{{ found.domains | selectattr('pending') | map(attribute='name') }}"
"""

RETURN = r"""
domains:
  description: The domains, those that were named in the order of O(names), else by name.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: The domain., type: str}
    uuid: {description: Its UUID., type: str}
    state:
      description: >-
        C(nostate), C(running), C(blocked), C(paused), C(shutdown), C(shutoff), C(crashed) or C(pmsuspended).
      type: str
    reason: {description: Why it is in this state in libvirt's words such as C(booted) or C(destroyed)., type: str}
    autostart: {description: Whether it starts with the host., type: bool}
    persistent: {description: Whether it is defined beyond its run., type: bool}
    managed_save: {description: Whether a start would go on from saved memory., type: bool}
    managed_by_us: {description: Whether M(tapvirt.host.libvirt_domain) defined it., type: bool}
    type: {description: The hypervisor type such as C(kvm) or C(qemu)., type: str}
    machine: {description: The machine version., type: str}
    vcpus: {description: How many processors are switched on., type: int}
    max_vcpus: {description: How many there are at most., type: int}
    memory_bytes: {description: The memory that it has now., type: int}
    max_memory_bytes: {description: The memory that it can have without a restart., type: int}
    disks:
      description: Target, bus, device, format, source and whether it is read-only; at most 32.
      type: list
      elements: dict
    interfaces:
      description: Type, MAC address, source, model and host device; at most 32.
      type: list
      elements: dict
    console: {description: Type and path of the first console., type: dict}
    pending:
      description: As RV(tapvirt.host.libvirt_domain#module:domains[].pending); at most 20.
      type: list
      elements: dict
  sample:
    - name: web1
      uuid: 3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11
      state: running
      reason: booted
      autostart: true
      persistent: true
      managed_save: false
      managed_by_us: true
      type: kvm
      machine: pc-q35-7.2
      vcpus: 2
      max_vcpus: 4
      memory_bytes: 1073741824
      max_memory_bytes: 2147483648
      disks: [{target: vda, bus: virtio, device: disk, format: qcow2, source: /srv/web1.qcow2, readonly: false}]
      interfaces: [{type: network, mac: "52:54:00:6b:3c:58", source: default, model: virtio, device: vnet0}]
      console: {type: pty, path: /dev/pts/3}
      pending: []
truncated:
  description: Whether O(limit) cut the list.
  returned: success
  type: bool
  sample: false
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection import (
    CONNECTION_SPEC,
    connected_for_reading,
    require_binding,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain_info import domain_rows

ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    "names": {"type": "list", "elements": "str", "default": []},
    "limit": {"type": "int", "default": 100},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    require_binding()
    with connected_for_reading(params["uri"], params["connect_timeout_seconds"]) as connection:
        rows, truncated = domain_rows(connection, params["names"], params["limit"])
    return {"changed": False, "domains": rows, "truncated": truncated}


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
