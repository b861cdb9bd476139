#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_module
short_description: Build a SystemTap module for a kernel, once
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Runs on a builder (C(delegate_to)), which needs SystemTap, and headers and debug information of the kernels to
    trace. The traced hosts need neither. With O(debuginfod), the builder needs no packages with debug information.
  - The store is addressed by the kernel's release, version and build-id, the build-id of the builder's own debug
    information, the kernel's symbol versions, the build-ids of probed modules, the versions of SystemTap and of the
    compiler, the options, the tapsets and the rendered script. Each distinct module is compiled once, however many
    hosts request it at the same time.
  - Uses the compiler that the kernel's headers name (gcc or clang), or its next newer version.
  - Limits a build to 600 seconds of CPU time and 4 GiB of address space for each process, and to 900 seconds for each
    run of stap. The number of concurrent builds is at most the number of the builder's processors.
  - Fetches the module to the controller. M(tapvirt.host.stap_run) ships it from there.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_stap
  - tapvirt.host._debuginfod
  - tapvirt.host._debuginfod.build_ids
  - tapvirt.host._build_options
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
  sign:
    description:
      - Signs the module for kernels that load signed modules only, with C(sign-file) of the kernel's headers and the
        hash that the kernel's configuration names.
      - The key stays on the builder. Its certificate has to be enrolled on the traced hosts, which
        M(tapvirt.host.stap_host_info) tells; M(tapvirt.host.stap_run) refuses what would not load.
      - A signed module is a copy of the build, which is not compiled again, with an entry of its own in the store.
    type: dict
    suboptions:
      key:
        description:
          - The absolute path of a private RSA key in PEM on the builder, not encrypted, that only its owner can read.
        type: path
        required: true
      certificate:
        description: The path of its X.509 certificate on the builder, in PEM or DER.
        type: path
        required: true
  store:
    description:
      - Where the builder keeps its modules. M(tapvirt.host.stap_store) prunes it.
      - The directory belongs to the user who builds, and so do those above it, unless they belong to root.
    type: path
    default: /var/lib/tapvirt/modules
  lock_timeout_seconds:
    description:
      - How long to wait while another task builds the same module, or while as many others build as the builder has
        processors. The message of a timeout names the process that works.
    type: int
    default: 1800
seealso:
  - module: tapvirt.host.stap_script
  - module: tapvirt.host.stap_run
  - module: tapvirt.host.stap_store
"""

EXAMPLES = r"""
- name: Build for this host's kernel
  tapvirt.host.stap_module:
    script: "{{ rendered.script }}"
    kernel: "{{ ansible_facts.tapvirt_kernel.release }}"
    kernel_version: "{{ ansible_facts.tapvirt_kernel.version }}"
  delegate_to: builder1
  register: built

- name: Build with debug information from Debian's debuginfod server, for a script that probes kvm
  tapvirt.host.stap_module:
    script: "{{ rendered.script }}"
    kernel: "{{ ansible_facts.tapvirt_kernel.release }}"
    kernel_version: "{{ ansible_facts.tapvirt_kernel.version }}"
    build_id: "{{ ansible_facts.tapvirt_kernel.build_id }}"
    module_build_ids: "{{ traced.module_build_ids }}" # of stap_probe_info on the traced host
    debuginfod:
      servers: [https://debuginfod.debian.net]
      max_cache_bytes: 20G
  delegate_to: builder1
  register: built

- name: Build with larger arrays and stacks that name functions of kvm
  tapvirt.host.stap_module:
    script: "{{ rendered.script }}"
    kernel: "{{ ansible_facts.tapvirt_kernel.release }}"
    limits: {max_map_entries: 20000, max_action: 5000}
    stack_modules: [kernel, kvm]
  delegate_to: builder1
  register: built

- name: Build for a host with Secure Boot, where the builder's certificate is enrolled
  tapvirt.host.stap_module:
    script: "{{ rendered.script }}"
    kernel: "{{ ansible_facts.tapvirt_kernel.release }}"
    sign:
      key: /etc/tapvirt/signing/key.pem
      certificate: /etc/tapvirt/signing/certificate.pem
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
    sha256: {description: The file's SHA-256., type: str, sample: 9b2d...}
    bytes: {description: The file's size., type: int, sample: 242200}
    key:
      description: What the store knows it by. Its first 40 letters are the module's version in sysfs.
      type: str
      sample: 2c11...
    kernel: {description: The kernel's release., type: str, sample: 6.12.107+deb13-cloud-amd64}
    kernel_version:
      description: The kernel's version, from the headers.
      type: str
      sample: "#1 SMP PREEMPT_DYNAMIC Debian 6.12.107-1 (2026-08-29)"
    stap: {description: The version of SystemTap that built it., type: str, sample: "5.6"}
    compiler: {description: The compiler that built it., type: str, sample: gcc-14}
    build_id:
      description: O(build_id) of the traced kernel, or null.
      type: str
      sample: 7c1f0f0f5ce3e0d4b6a2c2d5f1a0e6a7b8c9d0e1
    debuginfo:
      description:
        - Where the debug information came from when it was built, V(package) or V(debuginfod). Null without debug
          information.
      type: str
      sample: debuginfod
    signature:
      description:
        - Who signed it, with C(name), C(key_id) (the certificate's subject key identifier, as C(/proc/keys) shows it),
          C(certificate_sha256) and C(hash). Null for a module that is not signed.
      type: dict
      sample: {"certificate_sha256": "5a1c...", "hash": "sha256", "key_id": "c81d...", "name": "tapvirt builder1"}
    globals:
      description: The global variables that can be set when it is loaded, by type.
      type: dict
      sample: {"threshold_us": "long"}
    assigned:
      description: The values that the script's task gave.
      type: dict
      sample: {"threshold_us": 100}
    limits: {description: The limits of O(limits) in it., type: dict, sample: {"max_map_entries": 20000}}
    guru_reason: {description: "Why the script needs guru mode, or null.", type: str, sample: null}
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
  description: What was fetched, built and signed, or would be.
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
    option: kernel
    value: 6.12.108+deb13-amd64
    problem: This builder has no headers for that kernel; it has them for 6.12.107+deb13-amd64.
    hint: null
    candidates: [6.12.107+deb13-amd64]
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import NEEDS_PATH
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.debuginfod import OPTIONS
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.request import build_module
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.settings import LIMIT_OPTIONS
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import Store
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.paths import DEFAULT_STORE

ARGUMENT_SPEC = {
    "script": {"type": "raw", "required": True},
    "kernel": {"type": "str", "required": True},
    "kernel_version": {"type": "str"},
    "build_id": {"type": "str"},
    "module_build_ids": {"type": "dict"},
    "debuginfod": OPTIONS,
    "cpu_ceiling_percent": {"type": "int", "default": 10},
    "limits": LIMIT_OPTIONS,
    "skip_badvars": {"type": "bool", "default": False},
    "stack_modules": {"type": "list", "elements": "str", "default": []},
    "tapsets": {"type": "list", "elements": "path", "default": []},
    "sign": {
        "type": "dict",
        "options": {
            "key": {"type": "path", "required": True, "no_log": False},
            "certificate": {"type": "path", "required": True},
        },
    },
    "store": {"type": "path", "default": DEFAULT_STORE},
    "lock_timeout_seconds": {"type": "int", "default": 1800},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    """Check the order, then build it or find it in the store."""
    started = time.monotonic()
    plan, built = build_module(module.params, module.check_mode)
    return {
        "module": built,
        "built": any(change.how == "stap" for change in plan),
        "seconds": round(time.monotonic() - started, 1),
        "store": Store(module.params["store"]).row(),
        **plan.result(module._diff),
    }


def main() -> None:
    run_module(ARGUMENT_SPEC, body, NEEDS_PATH)


if __name__ == "__main__":
    main()
