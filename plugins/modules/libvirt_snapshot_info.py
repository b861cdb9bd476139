#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_snapshot_info
short_description: Read snapshots of libvirt domains as typed rows
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Returns the snapshots of the named domains, or of all domains, on one read-only connection. Each row has the place
    in the tree, the content, and every file of the snapshot.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  domains:
    description:
      - The domains, by name or by a glob such as V(web*), in this order; all of them where none is named.
      - A name that does not exist is an error, a glob that fits none is not.
    type: list
    elements: str
    default: []
  limit:
    description: How many snapshots at most, up to 10000.
    type: int
    default: 100
"""

EXAMPLES = r"""
- name: Every snapshot of the host
  tapvirt.host.libvirt_snapshot_info:
  register: found

- name: Those that are older than a week
  ansible.builtin.debug:
    msg: "{{ found.snapshots | selectattr('created_seconds', 'lt', now(utc=true).timestamp() - 7 * 86400) }}"
"""

RETURN = r"""
snapshots:
  description: The snapshots, domain by domain, each after its parent.
  returned: success
  type: list
  elements: dict
  contains:
    domain: {description: The domain., type: str}
    name: {description: The snapshot., type: str}
    description: {description: "Its description, or null.", type: str}
    parent: {description: "The snapshot that it goes on from, or null.", type: str}
    children: {description: How many snapshots go on from it., type: int}
    current: {description: Whether it is the one that the domain goes on from., type: bool}
    state:
      description: >-
        The domain's run state in it, such as C(running) or C(shutoff); C(disk-snapshot) is of a running domain's disks
        only.
      type: str
    created_seconds: {description: When it was taken in seconds since 1970 (UTC)., type: int}
    kind:
      description: C(internal) is inside the images, C(external) beside them; C(mixed) is both.
      type: str
    memory: {description: "Where the memory is - C(internal), C(external) or null.", type: str}
    disks:
      description:
        - The C(target) of each disk, the C(image) that it had, how the snapshot took it (C(internal), C(external) or
          null) and the overlay C(file) that was put above the image.
      type: list
      elements: dict
    files: {description: Its overlays and its memory file., type: list, elements: str}
  sample:
    - domain: db1
      name: nightly
      description: null
      parent: weekly
      children: 0
      current: true
      state: disk-snapshot
      created_seconds: 1795454839
      kind: external
      memory: null
      disks: [{target: vda, snapshot: external, file: /srv/db1.nightly, image: /srv/db1.qcow2}]
      files: [/srv/db1.nightly]
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
    option: "domains[0]"
    value: "wbe1"
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
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.snapshot.info import snapshot_rows

ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    "domains": {"type": "list", "elements": "str", "default": []},
    "limit": {"type": "int", "default": 100},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    with connected_for_reading(params["uri"], params["connect_timeout_seconds"]) as connection:
        rows, truncated = snapshot_rows(connection, params["domains"], params["limit"])
    return {"changed": False, "snapshots": rows, "truncated": truncated}


def main() -> None:
    run_libvirt_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
