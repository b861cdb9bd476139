#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_pool
short_description: Define, start, stop and undefine libvirt storage pools
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Converges many storage pools in one task on one connection, including their definition, run state and autostart. All
    pools are validated before any is changed. If one fails later, the others are still processed and reported.
  - The requested definition is compared with the stored one as libvirt reads both, regardless of order. A pool keeps
    its UUID. Sizes that libvirt counts and the permissions of an existing directory are no difference.
  - A changed definition of an active pool is stored, and the pool keeps running as it was started. The changes are
    listed on every run, in RV(pools[].pending), until the pool is stopped and started manually. This module never
    restarts a pool.
  - Volumes and their directory are never deleted, whatever happens to the pool.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  pools:
    description: The pools. Instead of it, one pool can be given by O(name) and the options beside it.
    type: list
    elements: dict
    suboptions:
      name:
        description: The pool's name; in the XML it may be left out.
        type: str
        required: true
      xml:
        description:
          - Its definition, as in libvirt's storage pool XML. Without it the definition stays as it is.
          - A document type is refused, and XML that libvirt's schema does not know.
        type: str
      state:
        description:
          - V(present) is defined, active or not; V(active) is defined and started, so that its volumes can be used;
            V(inactive) is defined and stopped.
          - V(absent) is stopped and no longer defined.
        type: str
        choices: [present, active, inactive, absent]
        default: present
      autostart:
        description: Whether the pool starts with the host. Without it, this stays as it is.
        type: bool
      build:
        description:
          - Whether the pool's file system, volume group or partition table may be created when it is started. Existing
            data is never overwritten.
          - The directory of a pool of type C(dir) is created without this, if it is known to be missing.
        type: bool
        default: false
      allow_in_use:
        description: Whether a pool may be stopped or undefined while running domains use its volumes.
        type: bool
        default: false
  name:
    description: As in O(pools), for one pool.
    type: str
  xml:
    description: As in O(pools), for one pool.
    type: str
  state:
    description: As in O(pools), for one pool.
    type: str
    choices: [present, active, inactive, absent]
    default: present
  autostart:
    description: As in O(pools), for one pool.
    type: bool
  build:
    description: As in O(pools), for one pool.
    type: bool
    default: false
  allow_in_use:
    description: As in O(pools), for one pool.
    type: bool
    default: false
notes:
  - The embedded driver (C(qemu:///embed)) has no storage pools.
seealso:
  - module: tapvirt.host.libvirt_pool_info
  - module: tapvirt.host.libvirt_volume
"""

EXAMPLES = r"""
- name: A directory for images, and an old pool that goes while its files stay
  tapvirt.host.libvirt_pool:
    pools:
      - name: images
        xml: "<pool type='dir'><target><path>/srv/images</path></target></pool>"
        state: active
        autostart: true
      - name: old
        state: absent
"""

RETURN = r"""
pools:
  description: One row for each pool, in the order of the list.
  returned: always, also when a pool failed
  type: list
  elements: dict
  contains:
    name:
      description: The pool.
      type: str
    uuid:
      description: Its UUID; null while it is not defined.
      type: str
    state:
      description: C(active), C(inactive) or C(absent). In check mode, what it would be.
      type: str
    changed:
      description: Whether something was, or would be, changed.
      type: bool
    pending:
      description:
        - Where the active pool is not what its definition says - C(what), C(running), C(stored) and the C(reason),
          which is C(restart). At most 20.
      type: list
      elements: dict
    error:
      description: Why this pool made the task fail, as in RV(error); else null.
      type: dict
  sample:
    - name: images
      uuid: 8e0daee3-6e79-4d28-b8ae-65cebe72570e
      state: active
      changed: true
      pending: []
      error: null
plan:
  description: Each change with its place, before, after, the means and the reason.
  returned: always
  type: list
  elements: dict
  sample:
    - {what: images state, before: inactive, after: active, how: create, why: as wanted}
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: "pools[1].state"
    value: "inactive"
    problem: "Running domains use pool 'images': web1."
    hint: "Stop the domains, or set allow_in_use: true to do it anyway."
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import CONNECTION_SPEC
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.item_run import task_entries
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.pool_run import PoolRun, read_wanted

_POOL_SPEC = {
    "name": {"type": "str"},
    "xml": {"type": "str"},
    "state": {"type": "str", "default": "present", "choices": ["present", "active", "inactive", "absent"]},
    "autostart": {"type": "bool"},
    "build": {"type": "bool", "default": False},
    "allow_in_use": {"type": "bool", "default": False},
}
ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    **_POOL_SPEC,
    "pools": {
        "type": "list",
        "elements": "dict",
        "options": {**_POOL_SPEC, "name": {"type": "str", "required": True}},
    },
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    option, entries = task_entries(params, "pools")
    wanted = read_wanted(entries, option)
    run = PoolRun(wanted, option)
    return run.converge(params["uri"], params["connect_timeout_seconds"], module.check_mode, module._diff)


def main() -> None:
    run_libvirt_module(
        ARGUMENT_SPEC,
        body,
        mutually_exclusive=[("pools", name) for name in _POOL_SPEC],
        required_one_of=[("pools", "name")],
    )


if __name__ == "__main__":
    main()
