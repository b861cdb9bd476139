#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_network
short_description: Define, start, stop and undefine libvirt networks
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Converges many networks in one task on one connection, including their definition, run state and autostart. All
    networks are validated before any is changed. If one fails later, the others are still processed and reported.
  - UUID, bridge name and MAC address are kept from the existing definition unless the XML overrides them.
  - The definition is compared in the form that libvirt's client library makes of it. Neither the order nor what libvirt
    fills in is a difference. What the XML omits is one.
  - In an active network, libvirt can change DHCP hosts and ranges, DNS hosts, texts and services, port groups, and the
    pool of forward interfaces. Other changes take effect when the network is started again. They are listed on every
    run, in RV(networks[].pending). A guest's interface keeps the settings that its port group had when the interface
    was plugged in.
  - A network that running domains use is not stopped, since starting it again would not restore their link.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  networks:
    description: >-
      The networks; those that go, go first. Instead of it, one network can be given by O(name) and the options beside
      it.
    type: list
    elements: dict
    suboptions:
      name:
        description: The network's name; in the XML it may be left out.
        type: str
        required: true
      xml:
        description:
          - Its definition, as in libvirt's network XML. Without it the definition stays as it is.
          - A document type is refused, and XML that libvirt's schema does not know.
        type: str
      state:
        description:
          - V(present) is defined, active or not; V(active) is defined and started; V(inactive) is defined and stopped.
            A network that is not defined, but runs, is defined as it runs if there is no O(networks[].xml).
          - V(absent) is stopped and no longer defined.
        type: str
        choices: [present, active, inactive, absent]
        default: present
      autostart:
        description: Whether the network starts with the host. Without it, this stays as it is.
        type: bool
  name:
    description: As in O(networks), for one network.
    type: str
  xml:
    description: As in O(networks), for one network.
    type: str
  state:
    description: As in O(networks), for one network.
    type: str
    choices: [present, active, inactive, absent]
    default: present
  autostart:
    description: As in O(networks), for one network.
    type: bool
  apply:
    description:
      - What a changed definition changes. V(config) is what is stored, for the next start; V(live) is what runs, as far
        as that is possible without a restart; V(both) is both.
      - V(restart_if_needed) also stops an active network and starts it again where something still waits for that. It
        is refused while a running domain that O(disconnect) does not name has an interface on the network.
      - A network that does not exist is always defined.
    type: str
    choices: [config, live, both, restart_if_needed]
    default: both
  disconnect:
    description:
      - The running domains that may lose their link when a network stops, by O(state=inactive), O(state=absent) or
        O(apply=restart_if_needed). As long as another one has an interface on it, that is refused.
      - They are looked for on the same connection, by network and by bridge.
      - A name that no domain has is refused where a network with such domains would stop; otherwise it is a warning.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: One network is active, one is gone
  tapvirt.host.libvirt_network:
    networks:
      - name: lab
        xml: |
          <network>
            <forward mode='nat'/>
            <ip address='192.168.40.1' netmask='255.255.255.0'>
              <dhcp>
                <range start='192.168.40.100' end='192.168.40.200'/>
                <host mac='52:54:00:6b:3c:58' name='web1' ip='192.168.40.11'/>
              </dhcp>
            </ip>
          </network>
        state: active
        autostart: true
      - name: old
        state: absent

- name: A guest that may be cut off
  tapvirt.host.libvirt_network:
    name: old
    state: absent
    disconnect: [web7]
"""

RETURN = r"""
networks:
  description: One row for each network, in the order of the list.
  returned: always, also when a network failed
  type: list
  elements: dict
  contains:
    name:
      description: The network.
      type: str
    uuid:
      description: Its UUID; null while it is not defined.
      type: str
    state:
      description: C(active), C(inactive) or C(absent). In check mode, what it would be.
      type: str
    bridge:
      description: Its bridge on the host; null where it has none, or is not defined.
      type: str
    changed:
      description: Whether something was, or would be, changed.
      type: bool
    pending:
      description:
        - Where the active network is not what its definition says - C(what), C(running), C(stored) and the C(reason).
          With O(apply=live), C(stored) may be the requested value.
        - The reason is C(restart) (it takes a stop and a start of the network) or C(apply) (O(apply) forbade it). At
          most 20 of a kind.
      type: list
      elements: dict
    error:
      description: Why this network failed, as RV(error); null where it did not.
      type: dict
  sample:
    - name: lab
      uuid: 3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11
      state: active
      bridge: virbr1
      changed: true
      pending:
        - {what: domain@name, running: null, stored: lab.example.org, reason: restart}
      error: null
plan:
  description: Each change with its place, before, after, the means and the reason.
  returned: always
  type: list
  elements: dict
  sample:
    - what: lab running ip[192.168.40.1]/dhcp/host[52:54:00:6b:3c:58]
      before: null
      after: <host mac="52:54:00:6b:3c:58" name="web1" ip="192.168.40.11" />
      how: networkUpdate add
      why: the running network differs
error:
  description: >-
    Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
    is at fault.
  returned: failure
  type: dict
  sample:
    option: "networks[0].xml"
    value: null
    problem: adress is not an attribute of <ip>.
    hint: null
    candidates: [address]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import CONNECTION_SPEC
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.item_run import task_entries
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.plan import Options
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.network.run import NetworkRun, read_wanted

_NETWORK_SPEC = {
    "name": {"type": "str"},
    "xml": {"type": "str"},
    "state": {"type": "str", "default": "present", "choices": ["present", "active", "inactive", "absent"]},
    "autostart": {"type": "bool"},
}
ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    **_NETWORK_SPEC,
    "networks": {
        "type": "list",
        "elements": "dict",
        "options": {**_NETWORK_SPEC, "name": {"type": "str", "required": True}},
    },
    "apply": {"type": "str", "default": "both", "choices": ["config", "live", "both", "restart_if_needed"]},
    "disconnect": {"type": "list", "elements": "str", "default": []},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    option, entries = task_entries(params, "networks")
    wanted = read_wanted(entries, option)
    options = Options(params["apply"], tuple(params["disconnect"]))
    run = NetworkRun(params["uri"], params["connect_timeout_seconds"], wanted, options, option)
    return run.converge(module.check_mode, module._diff)


def main() -> None:
    run_libvirt_module(
        ARGUMENT_SPEC,
        body,
        mutually_exclusive=[("networks", name) for name in _NETWORK_SPEC],
        required_one_of=[("networks", "name")],
    )


if __name__ == "__main__":
    main()
