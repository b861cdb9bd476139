#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_store
short_description: Prune a builder's store of SystemTap modules
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Runs on a builder and removes modules that M(tapvirt.host.stap_module) built and that nobody requested for some
    time. A removed module is built again when it is requested.
  - Modules that are being built, signed or read are kept. So are modules requested in the last 10 minutes, which may
    still be on their way to a controller.
  - Leftovers of killed builds are removed too. Nothing else in the store is touched, neither the log of compilations
    nor SystemTap's cache about the kernels' headers. The debug information that M(tapvirt.host.stap_module) fetched has
    separate limits.
  - In a store of another user, a task of root runs as that user. A store that every user can write to is refused.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_stap
options:
  older_than:
    description:
      - Removes modules that nobody requested in this time, a whole number with one of the units C(s), C(m), C(h),
        C(d) and C(w).
    type: str
  larger_than:
    description:
      - When the store has more bytes than this, removes the least recently used modules until it fits. A number,
        or one with a unit as in V(5G).
    type: bytes
  store:
    description: Where the builder keeps its modules.
    type: path
    default: /var/lib/tapvirt/modules
seealso:
  - module: tapvirt.host.stap_module
"""

EXAMPLES = r"""
- name: Keep at most 5 GiB of what was used in the last 30 days
  tapvirt.host.stap_store:
    older_than: 30d
    larger_than: 5G
  delegate_to: builder1
  run_once: true
  register: pruned

- name: Show what that freed
  ansible.builtin.debug:
    msg: "{{ pruned.removed | length }} modules, {{ pruned.freed_bytes | human_readable }}"
"""

RETURN = r"""
removed:
  description:
    - What was removed, or would be in check mode, each with its C(key), C(name) (null for what a killed build left),
      C(kernel), C(bytes), C(idle_seconds) (since its last request) and the C(reason).
  returned: success
  type: list
  elements: dict
  sample:
    - bytes: 251904
      idle_seconds: 2764800
      kernel: 6.12.107+deb13-cloud-amd64
      key: 2c11...
      name: tapvirt_vfs_latency_6a0e4c1b
      reason: nobody asked for it for 32 days
in_use:
  description: What would have been removed, but somebody builds, signs or reads it now; in the same form.
  returned: success
  type: list
  elements: dict
  sample: []
freed_bytes:
  description: How many bytes were freed.
  returned: success
  type: int
  sample: 251904
kept_bytes:
  description: How many bytes the modules take that are kept.
  returned: success
  type: int
  sample: 1048576
store:
  description: The store's own account, with C(directory), C(builds) (compilations ever done) and C(modules).
  returned: success
  type: dict
  sample: {"builds": 7, "directory": "/var/lib/tapvirt/modules", "modules": 4}
plan:
  description: What was removed, or would be.
  returned: success
  type: list
  elements: dict
  sample: []
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: older_than
    value: "30"
    problem: The age must be a whole number with one of the units s, m, h, d and w, such as 30d.
    hint: null
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import NEEDS_PATH
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.prune import prune
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import (
    Store,
    as_owner,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.paths import DEFAULT_STORE

ARGUMENT_SPEC = {
    "older_than": {"type": "str"},
    "larger_than": {"type": "bytes"},
    "store": {"type": "path", "default": DEFAULT_STORE},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    """Prune the store."""
    store = Store(module.params["store"])
    with as_owner(store.directory, module.check_mode):
        plan, told = prune(store, module.params["older_than"], module.params["larger_than"], module.check_mode)
        row = store.row()
    return {**told, "store": row, **plan.result(module._diff)}


def main() -> None:
    run_module(ARGUMENT_SPEC, body, NEEDS_PATH, required_one_of=[("older_than", "larger_than")])


if __name__ == "__main__":
    main()
