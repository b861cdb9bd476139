#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_domain_info
short_description: Read libvirt domains as typed rows
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Returns the named domains, or all domains, on one connection. Each row has the run state, the configuration, the
    devices, the console, and the changes that the running domain has not picked up yet. O(gather) adds values that need
    more calls or more room.
  - Leaves out a domain that is undefined while the module runs, and Xen's Domain-0, which is the host itself.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  names:
    description:
      - The domains, by name or by a glob such as V(web*), in this order; all of them where none is named.
      - A name that does not exist is an error, a glob that fits none is not.
    type: list
    elements: str
    default: []
  gather:
    description:
      - Additional values of each domain.
      - V(stats) is what it has used since it was started, read for all domains at once where the driver has that.
      - V(addresses) are its network addresses. A guest's agent is asked if it is connected, for 3 seconds at most, all
        of them together for 30 seconds; its response timeout in libvirt is the unlimited default afterwards. This takes
        a connection that may write.
      - V(backing) are the images below its disks. For a domain that is off they are known only for disks in an active
        storage pool, as of its last refresh.
    type: list
    elements: str
    choices: [stats, addresses, backing]
    default: []
  limit:
    description: How many domains at most, up to 10000.
    type: int
    default: 100
"""

EXAMPLES = r"""
- name: Every domain of the host
  tapvirt.host.libvirt_domain_info:
  register: found

- name: Read statistics and addresses of the web servers
  tapvirt.host.libvirt_domain_info:
    names: ["web*"]
    gather: [stats, addresses]
  register: web

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
    managed_by_tapvirt: {description: Whether M(tapvirt.host.libvirt_domain) defined it., type: bool}
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
    stats:
      description:
        - Null for a domain that does not run. What the driver does not count is null.
        - C(cpu) has C(time_seconds), C(user_seconds), C(system_seconds).
        - C(memory) has C(current_bytes) and C(maximum_bytes), what the host spends in C(resident_bytes), what the
          guest's balloon driver told in C(available_bytes), C(unused_bytes), C(usable_bytes), C(cache_bytes),
          C(swap_in_bytes), C(swap_out_bytes), and counts in C(major_faults), C(minor_faults).
        - C(disks) have C(target), C(read_requests), C(read_bytes), C(read_seconds), the same for C(write_), then
          C(flush_requests), C(flush_seconds), C(errors), C(allocation_bytes), C(capacity_bytes), C(physical_bytes).
        - C(interfaces) have C(device), C(received_bytes), C(received_packets), C(received_errors), C(received_drops),
          and the same for C(sent_). An interface without a device on the host is not counted. At most 32 of each.
      returned: with V(stats) in O(gather)
      type: dict
    addresses:
      description: >-
        C(address), C(prefix), C(family) (C(ipv4) or C(ipv6)), C(mac), C(interface) (the host's name for it, the
        guest's own where its agent told) and the C(source), C(lease), C(arp) or C(agent) - the first of them, in this
        order of trust, that knows the address. At most 64.
      returned: with V(addresses) in O(gather)
      type: list
      elements: dict
      sample:
        - {address: 192.168.122.34, prefix: 24, family: ipv4, mac: "52:54:00:6b:3c:58", interface: vnet0, source: lease}
    agent:
      description: >-
        C(answered), C(absent) (none is connected), C(silent) (no answer in its time) or C(skipped) (the time for all
        agents was over).
      returned: with V(addresses) in O(gather)
      type: str
      sample: answered
    backing:
      description: >-
        For each disk its C(target), the C(images) below it, the nearest first, with C(source) and C(format), and
        whether that is C(complete). C(images) is null where nothing is known, empty where nothing is below. At most 32.
      returned: with V(backing) in O(gather)
      type: list
      elements: dict
      sample:
        - {target: vda, images: [{source: /srv/base.qcow2, format: qcow2}], complete: true}
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
      managed_by_tapvirt: true
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
error:
  description: >-
    Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
    is at fault.
  returned: failure
  type: dict
  sample:
    option: "names[0]"
    value: wbe1
    problem: No domain has this name.
    hint: null
    candidates: [web1]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import (
    CONNECTION_SPEC,
    connected_for_reading,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.lookup import check_limit
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.info.gather import (
    ADDRESSES,
    PARTS,
    domain_rows,
)

ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    "names": {"type": "list", "elements": "str", "default": []},
    "gather": {"type": "list", "elements": "str", "choices": list(PARTS), "default": []},
    "limit": {"type": "int", "default": 100},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    check_limit(params["limit"])
    # Libvirt lets only those who may write ask a guest's agent.
    writing = ADDRESSES in params["gather"]
    with connected_for_reading(params["uri"], params["connect_timeout_seconds"], writing) as connection:
        rows, truncated = domain_rows(connection, params["names"], params["limit"], params["gather"])
    return {"changed": False, "domains": rows, "truncated": truncated}


def main() -> None:
    run_libvirt_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
