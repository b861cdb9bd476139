#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_network_info
short_description: Read libvirt networks as typed rows
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Returns the named networks, or all networks, on one connection. Each row has the state, the bridge, the addresses,
    the DHCP leases, and the changes that an active network has not picked up yet.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  names:
    description:
      - The networks, by name or by a glob such as V(lab*), in this order; all of them where none is named.
      - A name that does not exist is an error, a glob that fits none is not.
    type: list
    elements: str
    default: []
  limit:
    description: How many networks at most, up to 10000.
    type: int
    default: 100
"""

EXAMPLES = r"""
- name: Every network of the host
  tapvirt.host.libvirt_network_info:
  register: found

- name: Those that wait for a restart
  ansible.builtin.debug:
    msg: "{{ found.networks | selectattr('pending') | map(attribute='name') }}"
"""

RETURN = r"""
networks:
  description: The networks, those that were named in the order of O(names), else by name.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: The network., type: str}
    uuid: {description: Its UUID., type: str}
    active: {description: Whether it is started., type: bool}
    persistent: {description: Whether it is defined beyond its run., type: bool}
    autostart: {description: Whether it starts with the host., type: bool}
    bridge: {description: Its bridge on the host; null where it has none., type: str}
    forward_mode:
      description: How it reaches the outside such as C(nat), C(route) or C(bridge); null where it does not.
      type: str
    domain: {description: Its DNS domain., type: str}
    ips:
      description:
        - The host's addresses on it. C(address), C(prefix) (its length in bits; null where the class of the address
          gives it), C(family) (C(ipv4) or C(ipv6)), C(dhcp_ranges) (C(start) and C(end)), C(dhcp_hosts) (how many hosts
          have an address of their own).
      type: list
      elements: dict
    interfaces: {description: How many interfaces of guests are on it while it is active., type: int}
    pending:
      description:
        - As RV(tapvirt.host.libvirt_network#module:networks[].pending). The reason C(apply) stands for what
          M(tapvirt.host.libvirt_network) could change without a restart.
      type: list
      elements: dict
    leases:
      description:
        - What its DHCP server gave out; at most 100. C(address), C(prefix), C(family), C(mac), C(hostname),
          C(client_id), C(expires_seconds) (in seconds since the epoch; 0 is never).
        - Null where libvirt knows no leases.
      type: list
      elements: dict
    leases_truncated: {description: Whether there are more leases., type: bool}
  sample:
    - name: lab
      uuid: 3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11
      active: true
      persistent: true
      autostart: true
      bridge: virbr1
      forward_mode: nat
      domain: null
      ips:
        - address: 192.168.40.1
          prefix: 24
          family: ipv4
          dhcp_ranges: [{start: 192.168.40.100, end: 192.168.40.200}]
          dhcp_hosts: 1
      interfaces: 1
      pending: []
      leases:
        - address: 192.168.40.11
          prefix: 24
          family: ipv4
          mac: "52:54:00:6b:3c:58"
          hostname: web1
          client_id: "01:52:54:00:6b:3c:58"
          expires_seconds: 1767225600
      leases_truncated: false
truncated:
  description: Whether O(limit) cut the list.
  returned: success
  type: bool
  sample: false
error:
  description: >-
    Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
    is at fault.
  returned: failure
  type: dict
  sample:
    option: "names[0]"
    value: lba
    problem: No network has this name.
    hint: null
    candidates: [lab]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import (
    CONNECTION_SPEC,
    connected,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.lookup import check_limit
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.info import network_rows
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.run import check_has_networks

ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    "names": {"type": "list", "elements": "str", "default": []},
    "limit": {"type": "int", "default": 100},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    check_limit(params["limit"])
    check_has_networks(params["uri"])
    with connected(params["uri"], params["connect_timeout_seconds"], read_only=True) as connection:
        rows, truncated = network_rows(connection, params["names"], params["limit"])
    return {"changed": False, "networks": rows, "truncated": truncated}


def main() -> None:
    run_libvirt_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
