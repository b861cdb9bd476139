#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_module
short_description: Build a SystemTap module for a kernel, once
version_added: 0.1.0
author: The tapvirt.host authors (@tapvirt)
description:
  - Runs on a builder (C(delegate_to)), which has SystemTap, and headers and debug information of the kernels to trace.
    The traced hosts need neither.
  - The store is addressed by content, that is by the kernel's release and version, its symbol versions, the versions of
    SystemTap and of the compiler, the options and the rendered script. However many hosts ask at once, each distinct
    module is compiled once.
  - Chooses the compiler that the kernel's headers name, or the next newer one.
  - Fetches the module to the controller, from where M(tapvirt.host.stap_run) ships it.
extends_documentation_fragment:
  - tapvirt.host._attributes
options:
  script:
    description:
      - What M(tapvirt.host.stap_script) returned as RV(tapvirt.host.stap_script#module:script), or the absolute path
        of a script on the builder.
    type: raw
    required: true
  kernel:
    description: The release of the kernel to build for, as C(uname -r) says it on the traced host.
    type: str
    required: true
  kernel_version:
    description:
      - What C(uname -v) says on the traced host. With it, headers of another build of the same release are refused
        before the compile; without it, M(tapvirt.host.stap_run) refuses such a module before it is loaded.
    type: str
  cpu_ceiling_percent:
    description:
      - How much of each CPU the probes may take before the run ends itself as V(overloaded).
      - SystemTap's own default is 50.
    type: int
    default: 10
  store:
    description: Where the builder keeps its modules.
    type: path
    default: /var/lib/tapvirt/modules
seealso:
  - module: tapvirt.host.stap_script
  - module: tapvirt.host.stap_run
"""

EXAMPLES = r"""
- name: Build for this host's kernel
  tapvirt.host.stap_module:
    script: "{{ rendered.script }}"
    kernel: "{{ ansible_facts.tapvirt_kernel.release }}"
    kernel_version: "{{ ansible_facts.tapvirt_kernel.version }}"
  delegate_to: builder1
  register: built
"""

RETURN = r"""
module:
  description: The module, to be given to M(tapvirt.host.stap_run). Null in check mode when it is not built yet.
  returned: success
  type: dict
  contains:
    name:
      description: The kernel module's name.
      type: str
      sample: tapvirt_vfs_latency_6a0e4c1b
    path:
      description: The file on the builder.
      type: str
      sample: /var/lib/tapvirt/modules/2c11.../tapvirt_vfs_latency_6a0e4c1b.ko
    sha256:
      description: The file's SHA-256.
      type: str
      sample: 9b2d...
    bytes:
      description: The file's size.
      type: int
      sample: 242200
    key:
      description: What the store knows it by.
      type: str
      sample: 2c11...
    kernel:
      description: The kernel's release.
      type: str
      sample: 6.12.107+deb13-cloud-amd64
    kernel_version:
      description: The kernel's version, from the headers.
      type: str
      sample: "#1 SMP PREEMPT_DYNAMIC Debian 6.12.107-1 (2026-08-29)"
    stap:
      description: The version of SystemTap that built it.
      type: str
      sample: "5.6"
    compiler:
      description: The compiler that built it.
      type: str
      sample: gcc-14
    globals:
      description: The global variables that can be set when it is loaded, by type.
      type: dict
      sample: {"threshold_us": "long"}
    assigned:
      description: The values that the script's task gave.
      type: dict
      sample: {"threshold_us": 100}
    probes:
      description: The resolved probes, each with its C(point), C(asked) (the script's words), C(place) and C(optional).
      type: list
      elements: dict
      sample:
        - asked: kernel.function("vfs_read").call
          optional: false
          place: _stext+0x430990
          point: kernel.function("vfs_read@fs/read_write.c:549").call
    schema:
      description: The kinds of record that the script declares.
      type: dict
      sample: {}
    controller_path:
      description: The file in the controller's cache.
      type: str
      sample: /home/me/.ansible/tapvirt/modules/9b2d....ko
built:
  description: Whether it was compiled now, or would be in check mode.
  returned: success
  type: bool
  sample: true
seconds:
  description: How long this task worked or waited on the builder.
  returned: success
  type: float
  sample: 21.3
store:
  description: The store's own account, with C(directory), C(builds) (compilations ever done) and C(modules).
  returned: success
  type: dict
  sample: {"builds": 2, "directory": "/var/lib/tapvirt/modules", "modules": 2}
plan:
  description: What was built, or would be.
  returned: success
  type: list
  elements: dict
  sample: []
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.order import place_order
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.store import DEFAULT_STORE, Store

ARGUMENT_SPEC = {
    "script": {"type": "raw", "required": True},
    "kernel": {"type": "str", "required": True},
    "kernel_version": {"type": "str"},
    "cpu_ceiling_percent": {"type": "int", "default": 10},
    "store": {"type": "path", "default": DEFAULT_STORE},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    """Check the order, then build it or find it in the store."""
    started = time.monotonic()
    params = module.params
    plan, built = place_order(
        params["script"],
        params["kernel"],
        params["kernel_version"],
        params["cpu_ceiling_percent"],
        params["store"],
        module.check_mode,
    )
    return {
        "module": built,
        "built": bool(plan),
        "seconds": round(time.monotonic() - started, 1),
        "store": Store(params["store"]).row(),
        **plan.result(module._diff),
    }


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
