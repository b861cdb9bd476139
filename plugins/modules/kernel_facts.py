#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_facts
short_description: Gather facts of a running kernel for tracing and virtualization
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Returns which kernel a host runs, how it was built and booted, which modules it accepts, which of its symbols it
    lists, and whether kernel modules can trace it, with reasons.
  - Fingerprints of the symbol table and of all module parameters show which hosts of a fleet are alike.
  - Works without privileges. A fact that the user of the task cannot see is null, and
    RV(ansible_facts.tapvirt_kernel.unavailable) contains the reason.
  - Runs whenever a play gathers facts if the setting C(ansible_facts_modules) lists it.
extends_documentation_fragment:
  - tapvirt.host._attributes.facts_module
  - tapvirt.host._attributes.group_kernel
  - tapvirt.host._transport
options:
  gather_subset:
    description:
      - What to gather. V(all) is everything, V(min) only the identity, which is always gathered.
      - A name with V(!) before it leaves that subset out.
      - The subsets are V(command_line), V(config), V(cpus), V(hypervisor), V(identity), V(memory), V(parameters),
        V(security), V(symbols) and V(tracing).
    type: list
    elements: str
    default: [all]
  config:
    description:
      - Options of the kernel's configuration to return beside those that matter for tracing and virtualization.
      - The prefix C(CONFIG_) may be left out.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Gather everything
  tapvirt.host.kernel_facts:

- name: Stop where the kernel cannot be traced, and say why
  ansible.builtin.assert:
    that: ansible_facts.tapvirt_kernel.traceability.traceable
    fail_msg: "{{ ansible_facts.tapvirt_kernel.traceability.reasons | join('; ') }}"

- name: Identity and two options of the configuration
  tapvirt.host.kernel_facts:
    gather_subset: [config]
    config: [NF_TABLES, CONFIG_BPF_JIT]

- name: Everything but the symbol table
  tapvirt.host.kernel_facts:
    gather_subset: ["!symbols"]
"""

RETURN = r"""
ansible_facts:
  description: The facts.
  returned: always
  type: dict
  contains:
    tapvirt_kernel:
      description: Facts of the running kernel. What was not gathered is missing, what cannot be seen is null.
      returned: always
      type: dict
      contains:
        release:
          description: The release, as C(uname -r) prints it.
          returned: always
          type: str
          sample: 6.12.117+deb13-cloud-amd64
        version:
          description: The version, as C(uname -v) prints it.
          returned: always
          type: str
          sample: "#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1"
        version_code:
          description: C(LINUX_VERSION_CODE) as the running kernel tells it, with the sublevel clamped at 255.
          returned: always
          type: int
          sample: 396405
        version_code_source:
          description: V(vdso), or V(release) where the kernel does not tell it and it comes from the release.
          returned: always
          type: str
          sample: vdso
        build_id:
          description: The build-id of the kernel image, from C(/sys/kernel/notes).
          returned: always
          type: str
          sample: 7c1f0f0f5ce3e0d4b6a2c2d5f1a0e6a7b8c9d0e1
        arch:
          description: The machine, as C(uname -m) prints it.
          returned: always
          type: str
          sample: x86_64
        command_line:
          description: C(parameters) (each name with the list of its values, null for none) and C(init_arguments).
          returned: with the subset V(command_line)
          type: dict
          sample: {"parameters": {"root": ["/dev/vda"], "quiet": [null]}, "init_arguments": []}
        config:
          description: Options as true, false, V(m), numbers or text. One that the kernel was built without is false.
          returned: with the subset V(config)
          type: dict
          sample: {"CONFIG_KPROBES": true, "CONFIG_KVM": "m", "CONFIG_HZ": 250}
        tainted:
          description: The taint value.
          returned: with the subset V(security)
          type: int
          sample: 12288
        taints:
          description: The names of its flags.
          returned: with the subset V(security)
          type: list
          elements: str
          sample: [out_of_tree_module, unsigned_module]
        lockdown:
          description: V(none), V(integrity) or V(confidentiality).
          returned: with the subset V(security)
          type: str
          sample: none
        addresses:
          description: Who may see addresses (V(everybody), V(cap_syslog) or V(nobody)), and whether we could.
          returned: with the subset V(security)
          type: dict
          sample: {"kptr_restrict": 0, "perf_event_paranoid": 2, "visible_to": "cap_syslog", "visible": true}
        hypervisor:
          description: What the kernel runs on; V(none) on bare metal. C(role) is V(guest) or V(control_domain).
          returned: with the subset V(hypervisor)
          type: dict
          sample: {"type": "xen", "version": "4.20.2", "role": "control_domain", "guest_type": "pv"}
        cpus:
          description: CPUs online, their model and virtualization flags, and whether there is a C(/dev/kvm).
          returned: with the subset V(cpus)
          type: dict
          sample: {"online": 2, "model": "AMD EPYC", "virtualization_flags": ["svm", "npt"], "kvm_device": true}
        memory:
          description: Sizes of memory.
          returned: with the subset V(memory)
          type: dict
          sample: {"total_bytes": 1034000000, "free_bytes": 512000000, "available_bytes": 614000000}
        parameters:
          description: How many module parameters there are, and one fingerprint of all readable values.
          returned: with the subset V(parameters)
          type: dict
          sample: {"modules": 72, "count": 305, "unreadable": 0, "fingerprint": "5bfc6d2a0b1d6a3c9f04b9f7a1f6f2ab"}
        symbols:
          description:
            - The symbol table. C(state) is V(readable), V(restricted) (addresses hidden) or V(absent).
            - C(core_fingerprint) is the same for every user and on every boot of one kernel image;
              C(extras_fingerprint) covers modules and BPF programs.
          returned: with the subset V(symbols)
          type: dict
          sample: {"state": "readable", "data_symbols": true, "total": 163021, "core_fingerprint": "d5f8cfa97bdc1860"}
        tracing:
          description: What tracing needs, each true, false or null.
          returned: with the subset V(tracing)
          type: dict
          sample: {"kprobes": true, "modules_loadable": true, "debugfs": "/sys/kernel/debug", "tracefs": null}
        traceability:
          description:
            - Whether kernel modules can trace this kernel at all, the C(reasons) why not, and the C(conditions).
          returned: with the subset V(tracing)
          type: dict
          sample: {"traceable": true, "reasons": [], "conditions": []}
        unavailable:
          description: Facts that could not be seen, each with the reason.
          returned: always
          type: dict
          sample: {"lockdown": "/sys/kernel/security/lockdown cannot be read (is securityfs mounted?)"}
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: "gather_subset[0]"
    value: "symbol"
    problem: >-
      'symbol' is not a subset. The subsets are command_line, config, cpus, hypervisor, identity, memory, parameters,
      security, symbols, tracing, all, min.
    hint: null
    candidates: ["symbols"]
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import TRANSPORT, run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.facts.facts import chosen_subsets, gather

ARGUMENT_SPEC: dict[str, t.Any] = {
    "gather_subset": {"type": "list", "elements": "str", "default": ["all"]},
    "config": {"type": "list", "elements": "str", "default": []},
    **TRANSPORT,
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    subsets = chosen_subsets(module.params["gather_subset"])
    facts = gather(Root(), subsets, module.params["config"], os.uname().machine)
    return {"changed": False, "ansible_facts": {"tapvirt_kernel": facts}}


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
