#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_migration
short_description: Live-migrate libvirt domains to another host
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Live-migrates running or paused domains to another libvirt, one at a time. To migrate back, exchange O(uri) and
    O(destination).
  - The definition of a persistent domain and its autostart move along and are deleted at the source. A transient domain
    stays transient.
  - Both ends are checked before any domain is changed. A domain that is only at the destination is left alone. A domain
    is refused if it is at both ends, has snapshots or a running job, or if the destination lacks its machine type,
    emulator or processor.
  - Both hosts need access to the storage; storage is not copied. A file that the domain writes is refused if it is on a
    local file system of the source, or if the destination's pool of its directory does not contain it. Libvirt's own
    checks stay on, including those of caches and storage. File systems that only libvirt's C(shared_filesystems)
    declares as shared are refused.
  - After a failure, the error reports where the domain is, as read from both ends.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  name:
    description: The domain. It has the same name at both ends.
    type: str
  domains:
    description: The names of several domains, instead of O(name).
    type: list
    elements: str
  destination:
    description:
      - The connection URI of the libvirt that the domains are to run at. This host opens it, and with an O(mode) other
        than V(client) the source's daemon does so too.
    type: str
    required: true
  mode:
    description:
      - Who drives the migration. With V(peer_to_peer) the source's daemon does, so it goes on when this module dies.
        With V(client) this module does, and the source's daemon needs no way to the destination's.
      - The guest's memory goes from hypervisor to hypervisor; with V(tunnelled) it goes, peer to peer, through the
        connection of the two daemons, which is slower and needs no further port.
    type: str
    choices: [peer_to_peer, tunnelled, client]
    default: peer_to_peer
  migrate_uri:
    description:
      - Where the destination's hypervisor takes the memory, as the source reaches it, such as V(tcp://10.0.0.2).
        Without it libvirt takes the destination's host name.
    type: str
  bandwidth_mib_per_second:
    description: How many MiB a second the migration may take.
    type: int
  deadline_seconds:
    description:
      - How long the migration of one domain may take, in seconds. Past it libvirt is asked to abort it, and the domain
        goes on at the source. A guest that writes to its memory faster than that is sent never arrives otherwise.
    type: float
    default: 300
"""

EXAMPLES = r"""
- name: Before maintenance
  tapvirt.host.libvirt_migration:
    domains: [web1, web2]
    destination: qemu+ssh://root@virt2.example.org/system
    deadline_seconds: 600

- name: And back, from the other host
  tapvirt.host.libvirt_migration:
    domains: [web1, web2]
    destination: qemu+ssh://root@virt1.example.org/system
  delegate_to: virt2.example.org
"""

RETURN = r"""
domains:
  description: One row for each domain, in the order of the list.
  returned: always, also when a domain failed
  type: list
  elements: dict
  contains:
    name: {description: The domain., type: str}
    uuid: {description: Its UUID; null if it is unknown., type: str}
    source: {description: "The source's URI, without a password.", type: str}
    destination: {description: "The destination's URI, without a password.", type: str}
    location:
      description:
        - Where the domain is, C(source), C(destination), C(both) or C(none); null where that could not be read back. In
          check mode, where it would be.
      type: str
    state: {description: "Its state, as in M(tapvirt.host.libvirt_domain).", type: str}
    elapsed_seconds: {description: How long the migration took; null where there was none., type: float}
    downtime_seconds: {description: How long the guest stood still., type: float}
    transferred_bytes: {description: What was sent., type: int}
    memory_bytes: {description: "The guest's memory, the devices' own included.", type: int}
    changed: {description: "Whether it was, or would be, moved.", type: bool}
    error: {description: "Why this domain made the task fail, as in RV(error); else null.", type: dict}
  sample:
    - name: web1
      uuid: 3f2a1f9e-2f1c-4f55-9a43-0a7f6a1f2b11
      source: qemu:///system
      destination: qemu+ssh://root@virt2.example.org/system
      location: destination
      state: running
      elapsed_seconds: 4.2
      downtime_seconds: 0.012
      transferred_bytes: 467733
      memory_bytes: 17170432
      changed: true
      error: null
plan:
  description: Each change with its place, before, after, the means and the reason.
  returned: always
  type: list
  elements: dict
  sample:
    - what: web1 place
      before: qemu:///system
      after: qemu+ssh://root@virt2.example.org/system
      how: migrateToURI3
      why: it has to run at the destination
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: "domains[0]"
    value: "web1"
    problem: Disk vda (/srv/web1.img) is on ext4, which only the source has.
    hint: "Put a writable disk on storage that both hosts share."
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import CONNECTION_SPEC
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.item_run import task_entries
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.migration.apply import Options
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.migration.run import MigrationRun, read_wanted

ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    "name": {"type": "str"},
    "domains": {"type": "list", "elements": "str"},
    "destination": {"type": "str", "required": True},
    "mode": {"type": "str", "default": "peer_to_peer", "choices": ["peer_to_peer", "tunnelled", "client"]},
    "migrate_uri": {"type": "str"},
    "bandwidth_mib_per_second": {"type": "int"},
    "deadline_seconds": {"type": "float", "default": 300},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    option, _entries = task_entries(params, "domains")
    wanted = read_wanted(params["domains"] if option else [params["name"]], option)
    options = Options(
        params["mode"], params["deadline_seconds"], params["migrate_uri"], params["bandwidth_mib_per_second"]
    )
    timeout_seconds = params["connect_timeout_seconds"]
    run = MigrationRun(params["uri"], params["destination"], timeout_seconds, wanted, options, module.log, option)
    return run.converge(module.check_mode, module._diff)


def main() -> None:
    run_libvirt_module(
        ARGUMENT_SPEC,
        body,
        mutually_exclusive=[("domains", "name")],
        required_one_of=[("domains", "name")],
    )


if __name__ == "__main__":
    main()
