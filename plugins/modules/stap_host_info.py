#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_host_info
short_description: Check whether a host can be traced with SystemTap, and what a builder can build
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Checks the running kernel, the host's staprun, lockdown and module signing, the user's privileges, the memory for
    output buffers, and loaded SystemTap modules. Returns the reasons that forbid tracing, with remedies.
  - On a builder, returns what it can build. The verdict of another host can take this into account.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_stap
  - tapvirt.host._transport
  - tapvirt.host._debuginfod
options:
  kernels:
    description:
      - Kernels that this host is to build for, as C(uname -r) returns them. RV(missing) then contains what it lacks to
        build for them. An empty list asks for SystemTap and a compiler alone.
    type: list
    elements: str
  builder:
    description:
      - What this module returned as RV(builder) on the builder. With it, the verdict covers the versions of the kernel,
        of the builder's SystemTap and compiler, and of the host's staprun together.
    type: dict
  store:
    description: Where the builder keeps its modules.
    type: path
    default: /var/lib/tapvirt/modules
seealso:
  - module: tapvirt.host.stap_module
  - module: tapvirt.host.stap_probe_info
"""

EXAMPLES = r"""
- name: What can the builder build?
  tapvirt.host.stap_host_info:
  delegate_to: builder1
  run_once: true
  register: builder

- name: Can this host be traced with modules from there?
  tapvirt.host.stap_host_info:
    builder: "{{ builder.builder }}"
  register: host

- name: Show what forbids it
  ansible.builtin.debug:
    msg: "{{ host.verdict }}: {{ host.reason }} ({{ host.remedy }})"
"""

RETURN = r"""
verdict:
  description: V(ready), or V(refused) when something forbids tracing.
  returned: success
  type: str
  sample: ready
reason:
  description: What forbids it, in words; for V(ready) what was found.
  returned: success
  type: str
  sample: kernel 6.12.107+deb13-cloud-amd64 can be traced, staprun 5.1
remedy:
  description: What helps; null when nothing forbids tracing.
  returned: success
  type: str
  sample: null
findings:
  description: Everything that forbids tracing (C(blocks)) or deserves to be known, each with a reason and a remedy.
  returned: success
  type: list
  elements: dict
  sample: []
missing:
  description:
    - What this host lacks to run modules and, with O(kernels), to build them.
    - Each has C(what) (V(runtime), V(toolchain), V(compiler), V(headers), V(debuginfo), or V(arch) for a kernel of
      another architecture), C(kernel) (its release, or null), C(packages), C(reason) and C(remedy).
    - C(packages) has names, or what packages provide, as this host's package manager takes them. It is empty if the
      distribution has no such package or is not known.
  returned: success
  type: list
  elements: dict
  sample:
    - kernel: 6.12.107+deb13-cloud-amd64
      packages: [linux-headers-6.12.107+deb13-cloud-amd64]
      reason: there are no headers for 6.12.107+deb13-cloud-amd64
      remedy: install the package linux-headers-6.12.107+deb13-cloud-amd64
      what: headers
host:
  description: The facts that were judged.
  returned: success
  type: dict
  contains:
    kernel:
      description: The running kernel's C(release), C(version), C(arch) and C(build_id).
      type: dict
      sample: {"arch": "x86_64", "build_id": "7f1c", "release": "6.12.107+deb13-cloud-amd64", "version": "#1 SMP"}
    distribution:
      description:
        - The C(name) of the distribution is C(ID) in C(/etc/os-release), or V(ubuntu) for a derivative of Ubuntu.
        - Its C(family) is V(Debian), V(RedHat), V(SUSE) or V(Arch). Both are null where they are not known.
      type: dict
      sample: {"family": "Debian", "name": "debian"}
    staprun:
      description: The version of staprun; null where it is not installed.
      type: str
      sample: "5.1"
    lockdown:
      description: The kernel's lockdown mode.
      type: str
      sample: none
    module_signatures_enforced:
      description: Whether the kernel loads signed modules only.
      type: bool
      sample: false
    trusted_keys:
      description:
        - The certificates in the kernel's keyrings for module signatures, each with C(name), C(key_id) and C(keyring).
          Those in C(.platform) count on kernels of Debian, Red Hat and SUSE. Null where they cannot be read.
      type: list
      elements: dict
      sample: [{"key_id": "c81d...", "keyring": ".platform", "name": "tapvirt builder1"}]
    privilege:
      description:
        - C(load_modules) tells whether the user has the capability to load modules, C(CAP_SYS_MODULE). Root lacks it in
          a container. C(groups) are those of SystemTap that the user is in.
      type: dict
      sample: {"groups": [], "load_modules": true}
    memory:
      description:
        - C(free_bytes), C(buffers_bytes), C(available_bytes) and C(cpus_online), against which output buffers of 1 MiB
          for each CPU are measured. C(available_bytes) is null on a kernel without C(MemAvailable).
      type: dict
      sample: {"available_bytes": 3221225472, "buffers_bytes": 12345344, "cpus_online": 2, "free_bytes": 2147483648}
    kvm_module:
      description: The loaded KVM module of the CPU's vendor, V(kvm_amd) or V(kvm_intel), or null.
      type: str
      sample: kvm_amd
    loaded:
      description: SystemTap modules that are loaded, with C(name), C(version) (the digest of its build) and C(users).
      type: list
      elements: dict
      sample: []
    traceability:
      description: Whether the kernel itself can be traced by modules, with C(reasons) and C(conditions).
      type: dict
      sample: {"conditions": [], "reasons": [], "traceable": true}
builder:
  description: What can be built on this host; null without SystemTap's translator.
  returned: success
  type: dict
  contains:
    arch:
      description: The builder's architecture, for which it builds.
      type: str
      sample: x86_64
    distribution:
      description: The builder's distribution, as in RV(host.distribution).
      type: dict
      sample: {"family": "Debian", "name": "debian"}
    stap:
      description: The version of SystemTap.
      type: str
      sample: "5.6"
    tested:
      description: The oldest and the newest kernel that this version was tested with.
      type: list
      elements: str
      sample: ["3.10", "7.3.0-rc3"]
    debuginfod:
      description:
        - The C(servers) of O(debuginfod), and which of them are C(answering). With one that answers, no debug
          information is reported as missing, although the server may lack that of a kernel. Null without O(debuginfod).
      type: dict
      sample: {"answering": ["https://debuginfod.debian.net"], "servers": ["https://debuginfod.debian.net"]}
    compilers:
      description: The installed compilers, one for each version of gcc and clang, as they are passed to make.
      type: list
      elements: str
      sample: [gcc-14, gcc-16]
    kernels:
      description:
        - The kernels that there are headers for, each with C(version), C(compiled_with), C(compiler) (the builder's own
          for it, or null) and C(debuginfo).
      type: dict
      sample:
        6.12.107+deb13-cloud-amd64:
          {"compiled_with": "gcc 14", "compiler": "gcc-14", "debuginfo": true, "version": "#1 SMP"}
    store:
      description: The store's C(directory), how many C(builds) were ever done there, and how many C(modules) it keeps.
      type: dict
      sample: {"builds": 2, "directory": "/var/lib/tapvirt/modules", "modules": 2}
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: null
    value: null
    problem: The user with uid 1000 was refused file /proc/kallsyms (Permission denied); the task needs root.
    hint: null
    candidates: []
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import NEEDS_PATH
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import TRANSPORT, run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.debuginfod import (
    OPTIONS,
    read_debuginfod,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import (
    check_absolute,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.toolchain import (
    builder_row,
    missing_to_build,
    missing_to_run,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.paths import DEFAULT_STORE
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.readiness import find_problems, read_host

ARGUMENT_SPEC = {
    "kernels": {"type": "list", "elements": "str"},
    "builder": {"type": "dict"},
    "store": {"type": "path", "default": DEFAULT_STORE},
    "debuginfod": OPTIONS,
    **TRANSPORT,
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    """Read both sides of this host, and judge the tracing side."""
    root = Root()
    host = read_host(root, os.uname().machine)
    check_absolute(module.params["store"])
    own = builder_row(root, module.params["store"], read_debuginfod(module.params["debuginfod"]))
    findings = find_problems(host, module.params["builder"])
    blocking = [finding for finding in findings if finding.blocks]
    kernels = module.params["kernels"]
    fine = f"kernel {host['kernel']['release']} can be traced, staprun {host['staprun']}"
    return {
        "changed": False,
        "verdict": "refused" if blocking else "ready",
        "reason": "; ".join(finding.reason for finding in blocking) or fine,
        "remedy": "; ".join(dict.fromkeys(finding.remedy for finding in blocking)) or None,
        "findings": [finding.row() for finding in findings],
        "missing": missing_to_run(root, host) + ([] if kernels is None else missing_to_build(root, own, kernels)),
        "host": host,
        "builder": own if own["stap"] else None,
    }


def main() -> None:
    run_module(ARGUMENT_SPEC, body, NEEDS_PATH)


if __name__ == "__main__":
    main()
