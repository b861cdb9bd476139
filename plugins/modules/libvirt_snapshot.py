#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_snapshot
short_description: Take, delete and revert to snapshots of libvirt domains
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Converges many snapshots in one task on one connection, in the order of the list. All snapshots are validated before
    anything is changed. If one fails later, the others are still processed and reported.
  - The plan names every file that is created or deleted. The path of each file of a new snapshot is known before
    libvirt is called, and an existing file is refused.
  - Refuses everything that would damage images or leave data behind, even if libvirt allows it. This covers a revert to
    internal state below overlays that were taken later, deleting such a state while the domain runs, and deleting an
    overlay that contains the internal state of another snapshot.
  - While a domain writes to an overlay, its definition names the overlay. M(tapvirt.host.libvirt_domain) keeps the
    overlay if its XML names the image below, and reports it in
    RV(tapvirt.host.libvirt_domain#module:domains[].pending).
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
attributes:
  idempotent:
    support: partial
    description: >-
      A second run changes nothing, but for O(snapshots[].state=reverted), which is an action. Nobody can tell whether
      a domain is still exactly as its snapshot is, so it always reverts and reports a change.
options:
  snapshots:
    description: The snapshots. Instead of it, one snapshot can be given by O(domain), O(name) and the options beside.
    type: list
    elements: dict
    suboptions:
      domain:
        description: The domain's name.
        type: str
        required: true
      name:
        description:
          - The snapshot's name. That of an internal one is no number below a million, which QEMU would take for the
            number of another snapshot in the image.
        type: str
        required: true
      state:
        description:
          - V(present) takes the snapshot. An existing one is never edited or taken again; a difference is refused.
          - V(absent) is gone. The data of an external one is merged into the image below it (libvirt 9.0 and later).
          - V(reverted) takes the domain back to the snapshot, its definition and run state too; what it did since is
            lost. It stands alone for its domain in a task. External ones need libvirt 9.9 or later, which puts new
            overlays of its own naming above the images and removes those that the domain wrote to until then.
        type: str
        choices: [present, absent, reverted]
        default: present
      kind:
        description:
          - V(internal) keeps everything inside the disks' images, all of which must be qcow2, with the memory of a
            running domain. A new snapshot is V(internal) unless this says otherwise.
          - V(external) freezes the images and lets the domain write to overlays above them. It is of the disks only,
            as after a power cut, unless O(snapshots[].memory_file) is given.
        type: str
        choices: [internal, external]
      description:
        description: Some words about it.
        type: str
      disks:
        description: What differs for single disks of an external snapshot. Every other writable disk takes part.
        type: list
        elements: dict
        suboptions:
          target:
            description: The disk's target, such as V(vda).
            type: str
            required: true
          file:
            description:
              - The path of its overlay. Without it, the overlay lies beside the disk's image, with the snapshot's name
                as its suffix.
            type: str
          include:
            description: Whether the disk takes part.
            type: bool
            default: true
      memory_file:
        description:
          - Where an external snapshot of a running domain keeps its memory. It then has all writable disks.
          - Only if O(uri) is of this host. Libvirt empties an existing file, so the module must see that none exists.
        type: str
      quiesce:
        description: Whether the guest agent freezes the file systems. For external snapshots without memory.
        type: bool
        default: false
      with_children:
        description:
          - What becomes of the snapshots below one that goes. They go too if V(true), or stay below its parent if
            V(false). Without it, a snapshot that has children is refused, and they are listed.
        type: bool
  domain:
    description: As in O(snapshots), for one snapshot.
    type: str
  name:
    description: As in O(snapshots), for one snapshot.
    type: str
  state:
    description: As in O(snapshots), for one snapshot.
    type: str
    choices: [present, absent, reverted]
    default: present
  kind:
    description: As in O(snapshots), for one snapshot.
    type: str
    choices: [internal, external]
  description:
    description: As in O(snapshots), for one snapshot.
    type: str
  disks:
    description: As in O(snapshots), for one snapshot.
    type: list
    elements: dict
    suboptions:
      target: {description: The disk's target., type: str, required: true}
      file: {description: The path of its overlay., type: str}
      include: {description: Whether the disk takes part., type: bool, default: true}
  memory_file:
    description: As in O(snapshots), for one snapshot.
    type: str
  quiesce:
    description: As in O(snapshots), for one snapshot.
    type: bool
    default: false
  with_children:
    description: As in O(snapshots), for one snapshot.
    type: bool
  wait_seconds:
    description:
      - How long one snapshot, removal or revert may take, in seconds. Past it libvirt is asked to abort the job and the
        task fails. A job that cannot be aborted continues in libvirt's daemon. The embedded driver has no daemon, so
        allow it enough time.
    type: int
    default: 600
"""

EXAMPLES = r"""
- name: A way back before the upgrade
  tapvirt.host.libvirt_snapshot:
    domain: web1
    name: before-upgrade
    description: PostgreSQL 15

- name: Freeze the images of two domains, and remove an older snapshot
  tapvirt.host.libvirt_snapshot:
    snapshots:
      - {domain: web1, name: nightly, kind: external, quiesce: true}
      - domain: db1
        name: nightly
        kind: external
        disks:
          - {target: vda, file: /srv/overlays/db1-vda.nightly}
          - {target: vdb, include: false}
      - {domain: db1, name: weekly, state: absent, with_children: false}

- name: Go back
  tapvirt.host.libvirt_snapshot:
    domain: web1
    name: before-upgrade
    state: reverted
"""

RETURN = r"""
snapshots:
  description: One row for each snapshot, in the order of the list. In check mode, what it would be.
  returned: always, also when a snapshot failed
  type: list
  elements: dict
  contains:
    domain: {description: The domain., type: str}
    name: {description: The snapshot., type: str}
    state: {description: C(present) or C(absent)., type: str}
    current: {description: Whether it is the one that the domain goes on from., type: bool}
    kind: {description: "C(internal), C(external) or C(mixed); null where it is absent.", type: str}
    files: {description: Its overlays and its memory file., type: list, elements: str}
    domain_state: {description: The domain's run state; null where there is no such domain., type: str}
    disks: {description: The C(target) and C(source) of each of the domain's disks., type: list, elements: dict}
    changed: {description: "Whether something was, or would be, changed.", type: bool}
    error: {description: "Why this snapshot made the task fail, as in RV(error); else null.", type: dict}
  sample:
    - domain: db1
      name: nightly
      state: present
      current: true
      kind: external
      files: [/srv/overlays/db1-vda.nightly]
      domain_state: running
      disks: [{target: vda, source: /srv/overlays/db1-vda.nightly}, {target: vdb, source: /srv/db1-data.raw}]
      changed: true
      error: null
plan:
  description: Each change with its place, before, after, the means and the reason.
  returned: always
  type: list
  elements: dict
  sample:
    - what: db1 file /srv/overlays/db1-vda.nightly
      before: null
      after: {disk: vda, format: qcow2, backing: /srv/db1.qcow2}
      how: snapshotCreateXML
      why: takes what the guest writes from now on; its backing file stays as it is
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: "snapshots[0].with_children"
    value: null
    problem: "A value is needed, because snapshot 'weekly' of domain 'db1' has children: nightly."
    hint: "Set with_children: true to remove them too, or with_children: false to keep them below its parent."
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import CONNECTION_SPEC
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.item_run import task_entries
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.snapshot.run import SnapshotRun, read_wanted

_SNAPSHOT_SPEC = {
    "domain": {"type": "str"},
    "name": {"type": "str"},
    "state": {"type": "str", "default": "present", "choices": ["present", "absent", "reverted"]},
    "kind": {"type": "str", "choices": ["internal", "external"]},
    "description": {"type": "str"},
    "disks": {
        "type": "list",
        "elements": "dict",
        "options": {
            "target": {"type": "str", "required": True},
            "file": {"type": "str"},
            "include": {"type": "bool", "default": True},
        },
    },
    "memory_file": {"type": "str"},
    "quiesce": {"type": "bool", "default": False},
    "with_children": {"type": "bool"},
}
_REQUIRED = {"type": "str", "required": True}
ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    **_SNAPSHOT_SPEC,
    "snapshots": {
        "type": "list",
        "elements": "dict",
        "options": {**_SNAPSHOT_SPEC, "domain": _REQUIRED, "name": _REQUIRED},
    },
    "wait_seconds": {"type": "int", "default": 600},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    option, entries = task_entries(params, "snapshots", "domain")
    wanted = read_wanted(entries, option)
    run = SnapshotRun(params["uri"], params["connect_timeout_seconds"], wanted, params["wait_seconds"], option)
    return run.converge(module.check_mode, module._diff)


def main() -> None:
    run_libvirt_module(
        ARGUMENT_SPEC,
        body,
        mutually_exclusive=[("snapshots", name) for name in _SNAPSHOT_SPEC],
        required_one_of=[("snapshots", "domain")],
        required_together=[("domain", "name")],
    )


if __name__ == "__main__":
    main()
