#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_module_param_info
short_description: Describe parameters of kernel modules
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Returns the parameters of modules that are loaded, built into the kernel, or only installed for it. Each row has the
    type and the description as modinfo(8) prints them, the permissions, the value, the built-in default, and the
    configured values with their files.
  - Also finds parameters that the module information does not declare, in C(/sys/module) and in the module's file.
  - Works for every user. What the user may not read is V(restricted).
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_kernel
  - tapvirt.host._transport
options:
  modules:
    description:
      - The modules, as names or as shell patterns (V(kvm*)); V(-) and V(_) are the same. Parameters of the kernel
        itself are those of the module V(kernel).
      - A missing module is a row of RV(modules) with the status V(absent), not an error.
      - A pattern means modules that run before those that are only installed. The file of each is read, so V(*) takes
        a while where thousands are installed.
    type: list
    elements: str
    required: true
  names:
    description: Only these parameters, as names or as shell patterns.
    type: list
    elements: str
    default: ["*"]
  limit:
    description:
      - How many parameters to return at most, each of which takes about 350 bytes. Modules after the last one
        are not read.
    type: int
    default: 20
seealso:
  - module: tapvirt.host.kernel_module_param
"""

EXAMPLES = r"""
- name: All that KVM can be told
  tapvirt.host.kernel_module_param_info:
    modules: [kvm, "kvm_*"]
    limit: 200
  register: kvm

- name: What does not have the value that it was built with
  ansible.builtin.debug:
    msg: "{{ item.module }}.{{ item.name }} is {{ item.value }}, not {{ item.default }}"
  loop: "{{ kvm.params | selectattr('default', '!=', none) | selectattr('value_status', 'eq', 'known') }}"
  loop_control:
    label: "{{ item.name }}"
  when: item.value != item.default

- name: One parameter, wherever it is
  tapvirt.host.kernel_module_param_info:
    modules: [zswap]
    names: [compressor]

- name: What waits for a reload or a reboot
  tapvirt.host.kernel_module_param_info:
    modules: [kvm, kvm_amd, kvm_intel, nbd, zswap]
    limit: 200
  register: found
  failed_when: found.params | map(attribute='pending') | flatten | length > 0
"""

RETURN = r"""
modules:
  description:
    - One row for each module, in the order asked for, and for each entry of O(modules) that means none. Of those that a
      pattern means, the ones with parameters.
  returned: always
  type: list
  elements: dict
  contains:
    module: {description: The module (or the entry that means none)., returned: always, type: str, sample: kvm}
    status:
      description: V(loaded), V(built_in), V(installed) (for this kernel, and not loaded) or V(absent).
      returned: always
      type: str
      sample: loaded
    file:
      description: Its file; null where the running kernel's release has none.
      returned: always
      type: str
      sample: /lib/modules/6.12.107+deb13-cloud-amd64/kernel/arch/x86/kvm/kvm.ko.xz
    parameters: {description: How many parameters it has., returned: always, type: int, sample: 23}
    candidates:
      description: The most similar names, if the name does not exist.
      returned: always
      type: list
      elements: str
      sample: []
params:
  description: The parameters, by module and name.
  returned: always
  type: list
  elements: dict
  contains:
    module: {description: The module., returned: always, type: str, sample: kvm}
    name: {description: The parameter., returned: always, type: str, sample: halt_poll_ns}
    type: {description: The type; null when nothing shows it., returned: always, type: str, sample: uint}
    type_source:
      description: V(modinfo) when the module declares the type, V(sysfs) when it is what the value looks like.
      returned: always
      type: str
      sample: modinfo
    description: {description: "What the module says of it, unchanged.", returned: always, type: str, sample: null}
    mode:
      description:
        - The mode in C(/sys/module). For a module that is not loaded, the one that the file would have, as its file
          says; V("0000") is a parameter without a file. Null when it is not known.
        - Nobody, not even root, reads or sets a running value against its mode.
      returned: always
      type: str
      sample: "0644"
    unsafe:
      description: Whether setting it taints the kernel. Null when it is not known, as for most built-in modules.
      returned: always
      type: bool
      sample: false
    settable:
      description: When it can be set, V(run), V(load) (of the module) and V(boot) (on the kernel command line only).
      returned: always
      type: list
      elements: str
      sample: [run, load]
    persist:
      description: What O(tapvirt.host.kernel_module_param#module:params[].persist=auto) means for it.
      returned: always
      type: str
      sample: modprobe_d
    persist_as:
      description: What sets it there, when C(=) and a value follow.
      returned: always
      type: str
      sample: options kvm halt_poll_ns
    value:
      description: The running value. RV(params[].value_status) tells why it is null; a known null is an unset text.
      returned: always
      type: raw
      sample: 200000
    value_status:
      description:
        - V(known), V(restricted) (this user may not read it), V(write_only), V(no_file) (it has none in
          C(/sys/module)) or V(not_loaded).
      returned: always
      type: str
      sample: known
    default:
      description:
        - The value that is built into the module's file, which its code may still change when it is loaded.
        - Known for modules of 64-bit kernels that have a file which Python can unpack (C(.ko), C(.ko.gz), C(.ko.xz)),
          for the types of the kernel's own. Null for built-in modules and for types that a module defines itself.
      returned: always
      type: raw
      sample: 200000
    configured:
      description: The value that is configured, as the kernel understands it. The last one of several wins.
      returned: always
      type: raw
      sample: 400000
    configured_in:
      description: The source of the value, a file of C(modprobe.d) or C(/proc/cmdline); null if nothing is set.
      returned: always
      type: str
      sample: /etc/modprobe.d/zz-tapvirt.conf
    pending:
      description:
        - How the running value differs from the configured one, in words; empty when it does not.
        - Options of this parameter with which the kernel refuses the module, whatever other options follow.
      returned: always
      type: list
      elements: str
      sample: ["/etc/modprobe.d/kvm.conf says halt_poll_ns=400000: it takes effect when the module is loaded again"]
absent_names:
  description: Names of O(names) without a pattern that no module has, each with C(candidates). Empty if RV(truncated).
  returned: always
  type: list
  elements: dict
  sample: [{"name": "halt_pol_ns", "candidates": ["halt_poll_ns"]}]
truncated:
  description: Whether O(limit) left parameters out.
  returned: always
  type: bool
  sample: false
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: "modules[0]"
    value: "../kvm"
    problem: An entry is a name of letters, digits, hyphens and underscores, or a shell pattern.
    hint: null
    candidates: []
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import TRANSPORT, run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.info import parameter_info

ARGUMENT_SPEC: dict[str, t.Any] = {
    "modules": {"type": "list", "elements": "str", "required": True},
    "names": {"type": "list", "elements": "str", "default": ["*"]},
    "limit": {"type": "int", "default": 20},
    **TRANSPORT,
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    found = parameter_info(Root(), os.uname().machine, params["modules"], params["names"], params["limit"])
    return {"changed": False, **found}


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
