#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_domain
short_description: Define, start, stop and undefine libvirt domains
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Converges many domains in one task on one connection, including their definition, run state and autostart. All
    domains are validated before any is changed. If one fails later, the others are still processed and reported.
  - The guest-visible identity (UUID, MAC addresses, machine version, device addresses, NVRAM file) is kept from the
    existing definition unless the XML overrides it.
  - The plan is exact if this host has libvirt's embedded QEMU driver in the version that is managed. The same code then
    processes the definition in advance, in C(/var/cache/tapvirt). Otherwise the XML is compared with the stored
    definition, and what the XML omits is removed unless libvirt adds it on its own. RV(domains[].plan_fidelity) reports
    which of the two was used.
  - Several domains are started and stopped in parallel. Domains to stop are processed before domains to start. A new
    domain is refused if one of its disks belongs to another domain that stays, as after a renaming.
  - Xen's Domain-0 is the host itself and is never touched.
  - Changes that a running domain has not picked up yet are listed on every run, in RV(domains[].pending). A domain is
    restarted only with O(apply=restart_if_needed).
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  domains:
    description: The domains. Instead of it, one domain can be given by O(name) and the options beside it.
    type: list
    elements: dict
    suboptions:
      name:
        description: The domain's name; in the XML it may be left out.
        type: str
        required: true
      xml:
        description:
          - Its definition, as in libvirt's domain XML. Without it the definition stays as it is.
          - A document type is refused, and XML that libvirt's schema does not know.
          - Without it, a running domain is not edited either. Its differences are in RV(domains[].pending).
        type: str
      state:
        description:
          - V(present) is defined, running or not; V(shutdown) is defined and off; V(saved) is off with its memory in a
            file, from where V(running) goes on.
          - V(absent) is stopped and no longer defined. Its disks stay unless O(domains[].remove_disks) names them; what
            else would be lost must be named in O(remove). The plan has a row for everything that goes.
        type: str
        choices: [present, running, shutdown, paused, saved, absent]
        default: present
      autostart:
        description: Whether the domain starts with the host. Without it, this stays as it is.
        type: bool
      remove_disks:
        description:
          - With O(domains[].state=absent), the targets of the disks, such as V(vda), whose file or volume is deleted
            once the domain is gone. Only the disk's own file is deleted, not its backing files.
          - Nothing is changed if a named disk is read-only, shareable or removable, if another domain, disk or volume
            uses it or is backed by it, or if it is neither a plain file of this host nor a volume of an active pool.
        type: list
        elements: str
      allow_device_removal:
        description:
          - Whether O(domains[].xml) may remove devices from a domain that this module did not define. A stored device
            that the XML does not declare is removed, and the plan has a row for it. Without this option, such a task is
            refused and names the devices.
          - Devices that libvirt adds on its own stay without being declared - controllers, input devices, USB hubs, the
            memory balloon, the default video and audio devices - also with this option. To remove such a device,
            declare it in one run and leave it out in the next.
          - A domain that this module defined once carries its mark and needs no permission.
          - A disk or interface that somebody attached to a running domain only, as backup programs do, is unplugged
            with this option only. This holds for every domain.
        type: bool
        default: false
  name:
    description: As in O(domains), for one domain.
    type: str
  xml:
    description: As in O(domains), for one domain.
    type: str
  state:
    description: As in O(domains), for one domain.
    type: str
    choices: [present, running, shutdown, paused, saved, absent]
    default: present
  autostart:
    description: As in O(domains), for one domain.
    type: bool
  remove_disks:
    description: As in O(domains), for one domain.
    type: list
    elements: str
  allow_device_removal:
    description: As in O(domains), for one domain.
    type: bool
    default: false
  apply:
    description:
      - What a changed definition changes. V(config) is what is stored, for the next start; V(live) is what runs, as far
        as that is possible without a restart (memory, number of processors, disks and interfaces, media, links, the
        password of a display that has one, title and description); V(both) is both.
      - V(restart_if_needed) also shuts a running domain down and starts it again where something still waits for that.
        What waits for its guest only is no reason, and a domain that may stay paused is not restarted.
      - A domain that does not exist is always defined.
    type: str
    choices: [config, live, both, restart_if_needed]
    default: both
  remove:
    description:
      - What O(state=absent) may lose beside the definition. NVRAM and TPM state stay unless they are named; saved
        memory, snapshots or checkpoints that are not named are a reason to refuse, and so is TPM state where libvirt
        cannot keep it (before 8.9).
    type: list
    elements: str
    choices: [nvram, tpm, managed_save, snapshots, checkpoints]
    default: []
  purge:
    description:
      - Whether O(domains) is the full list of the domains that this module has to do with here. Those that it once
        defined and that are not in the list become V(absent), by the same rules; their rows come after the list's.
      - Domains that this module never defined are not touched. An empty list is refused.
    type: bool
    default: false
  wait_seconds:
    description: How long a guest may take to reach a state, in seconds.
    type: int
    default: 60
  on_timeout:
    description: What happens to a guest that does not shut down in time. V(destroy) takes its power away.
    type: str
    choices: [fail, destroy]
    default: fail
notes:
  - A host whose C(/dev/kvm) can be opened and does not work is slow. libvirt starts QEMU again for its capabilities at
    nearly every definition there, which takes seconds each. The module warns once and gives the error of the node.
"""

EXAMPLES = r"""
- name: One domain runs, one is gone
  tapvirt.host.libvirt_domain:
    domains:
      - name: web1
        xml: "{{ lookup('ansible.builtin.template', 'web1.xml.j2') }}"
        state: running
        autostart: true
      - name: old7
        state: absent
        remove_disks: [vda]

- name: These are all of our domains here
  tapvirt.host.libvirt_domain:
    domains: "{{ domains }}"
    purge: true

- name: A domain without any daemon
  tapvirt.host.libvirt_domain:
    uri: qemu:///embed?root=/var/lib/tapvirt/embed
    name: probe
    xml: "{{ lookup('ansible.builtin.file', 'probe.xml') }}"
    state: running
"""

RETURN = r"""
domains:
  description: One row for each domain, in the order of the list.
  returned: always, also when a domain failed
  type: list
  elements: dict
  contains:
    name:
      description: The domain.
      type: str
    uuid:
      description: Its UUID; null while it is not defined.
      type: str
    state:
      description:
        - One of C(nostate), C(running), C(blocked), C(paused), C(shutdown), C(shutoff), C(crashed), C(pmsuspended),
          C(absent).
        - In check mode, what it would be.
      type: str
    changed:
      description: Whether something was, or would be, changed.
      type: bool
    pending:
      description:
        - Where the running domain is not what its definition says - C(what), C(running), C(stored) and the C(reason).
        - The reason is C(restart) (it takes one), C(apply) (O(apply) forbade it), C(guest) (the guest was asked and
          does not follow), C(detach_pending) (the guest was asked to let a device go and has not) or C(managed_save)
          (saved memory is in the way).
        - With C(xml), the task gives no O(domains[].xml), so the running domain is not edited. With C(permission),
          somebody attached the device to the running domain only, and O(domains[].allow_device_removal) is false.
        - With C(overlay), a disk is on an overlay of the file that the XML names, as an external snapshot leaves it,
          and stays there; C(running) is the overlay. Back on that file, the domain would lose what it wrote since.
        - At most 20 of a kind; devices that would be removed are always listed.
      type: list
      elements: dict
    plan_fidelity:
      description: C(exact) or C(semantic); null where no XML was compared.
      type: str
    error:
      description: Why this domain failed, as RV(error); null where it did not.
      type: dict
  sample:
    - name: web1
      uuid: 3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11
      state: running
      changed: true
      pending: []
      plan_fidelity: exact
      error: null
plan:
  description: Each change with its place, before, after, the means and the reason.
  returned: always
  type: list
  elements: dict
  sample:
    - {what: web1 state, before: shutoff, after: running, how: create, why: as wanted}
error:
  description: >-
    Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
    is at fault.
  returned: failure
  type: dict
  sample:
    {option: "domains[1].xml", value: null, problem: <memroy> is not an element of a domain., hint: null,
     candidates: [memory]}
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import CONNECTION_SPEC
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.lifecycle import Waiting
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.plan import Options
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.run import DomainRun, read_wanted
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.item_run import task_entries

_DOMAIN_SPEC = {
    "name": {"type": "str"},
    "xml": {"type": "str"},
    "state": {
        "type": "str",
        "default": "present",
        "choices": ["present", "running", "shutdown", "paused", "saved", "absent"],
    },
    "autostart": {"type": "bool"},
    "remove_disks": {"type": "list", "elements": "str"},
    "allow_device_removal": {"type": "bool", "default": False},
}
ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    **_DOMAIN_SPEC,
    "domains": {
        "type": "list",
        "elements": "dict",
        "options": {**_DOMAIN_SPEC, "name": {"type": "str", "required": True}},
    },
    "apply": {"type": "str", "default": "both", "choices": ["config", "live", "both", "restart_if_needed"]},
    "remove": {
        "type": "list",
        "elements": "str",
        "default": [],
        "choices": ["nvram", "tpm", "managed_save", "snapshots", "checkpoints"],
    },
    "purge": {"type": "bool", "default": False},
    "wait_seconds": {"type": "int", "default": 60},
    "on_timeout": {"type": "str", "default": "fail", "choices": ["fail", "destroy"]},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    option, entries = task_entries(params, "domains")
    wanted = read_wanted(entries, option)
    options = Options(params["apply"], Waiting(params["wait_seconds"], params["on_timeout"]), tuple(params["remove"]))
    run = DomainRun(params["uri"], params["connect_timeout_seconds"], wanted, options, params["purge"], option)
    return run.converge(module.check_mode, module._diff)


def main() -> None:
    run_libvirt_module(
        ARGUMENT_SPEC,
        body,
        mutually_exclusive=[("domains", name) for name in _DOMAIN_SPEC],
        required_one_of=[("domains", "name")],
        required_if=[("purge", True, ("domains",))],
    )


if __name__ == "__main__":
    main()
