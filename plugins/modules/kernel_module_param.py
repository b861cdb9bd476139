#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_module_param
short_description: Set and keep parameters of kernel modules
version_added: 0.1.0
author: The tapvirt.host authors (@tapvirt)
description:
  - Sets parameters of loaded and built-in modules while the kernel runs, through C(/sys/module), and keeps them for
    the next time the module is loaded.
  - Values are compared by the kernel's own rules for the parameter's type. V(Y), V(1) and V(yes) are one truth value,
    V(0x10) and V(16) one number, and V(010) is 8, as the kernel reads it. An equal value is no change.
  - Every value is read back. One that did not take is a failure; one that the kernel rounded is reported as adjusted,
    and is no change in the next run.
  - The list is set as a whole. When one parameter fails, those before it are put back. A run that was killed is
    undone by the next one.
  - Everything that cannot be is refused before anything is changed.
extends_documentation_fragment:
  - tapvirt.host._attributes
options:
  params:
    description: The parameters.
    type: list
    elements: dict
    required: true
    suboptions:
      module:
        description:
          - The module; V(-) and V(_) are the same. Parameters of the kernel itself are those of the module V(kernel).
        type: str
        required: true
      name:
        description: The parameter.
        type: str
        required: true
      value:
        description:
          - The value, as a number, a truth value, text, or a list for an array, which is always given whole.
          - Required with O(state=present).
        type: raw
      runtime:
        description: Whether to set the running value.
        type: bool
        default: true
      persist:
        description:
          - Where the value lasts. V(none) leaves what is there as it is.
          - V(modprobe_d) writes it to C(/etc/modprobe.d/zz-tapvirt.conf), a file of this module's own. Files of others
            are never changed; a line of theirs that wins is named in RV(params[].pending).
          - V(command_line) is for modules that are built into the kernel. The boot loader is not changed;
            RV(params[].pending) says what to add, until the running kernel was started with it.
          - V(auto) is V(modprobe_d) for a loadable module and V(command_line) for one that is built in.
        type: str
        choices: [none, auto, modprobe_d, command_line]
        default: none
      read_back:
        description:
          - What to expect when a value is read back.
          - With V(auto), the value itself, or another number that the kernel made of it.
          - With V(exact), the value itself. With V(adjusted), any number, also the one that was there before.
          - With V(trigger), nothing, as writing acts; it is written in every run. With V(opaque), nothing that could
            be compared after writing, as for a parameter that cannot be read.
        type: str
        choices: [auto, exact, adjusted, trigger, opaque]
        default: auto
  state:
    description:
      - V(present) sets the values. V(restored) puts back what each parameter was before this module first set it, and
        takes it out of the module's own file.
    type: str
    choices: [present, restored]
    default: present
notes:
  - What parameters were, and what is under way, is kept in C(/var/lib/tapvirt/kernel_module_param.json).
"""

EXAMPLES = r"""
- name: Let KVM poll longer, now and after a reboot
  tapvirt.host.kernel_module_param:
    params:
      - {module: kvm, name: halt_poll_ns, value: 400000, persist: auto}

- name: Several at once
  tapvirt.host.kernel_module_param:
    params:
      - {module: zswap, name: enabled, value: true}
      - {module: zswap, name: max_pool_percent, value: 30}
      - {module: tcp_cubic, name: hystart, value: 0}

- name: Nested virtualization, which can be set only when the module is loaded
  tapvirt.host.kernel_module_param:
    params:
      - {module: kvm_amd, name: nested, value: true, persist: modprobe_d}

- name: Put it back
  tapvirt.host.kernel_module_param:
    params:
      - {module: kvm, name: halt_poll_ns}
    state: restored
"""

RETURN = r"""
params:
  description: One row for each entry of O(params), in its order.
  returned: success
  type: list
  elements: dict
  contains:
    module: {description: The module., returned: always, type: str, sample: kvm}
    name: {description: The parameter., returned: always, type: str, sample: halt_poll_ns}
    type:
      description:
        - The type, as modinfo(8) names it. Where no module information is installed, what the value looks like, that
          is V(bool), V(number), V(array of number), V(selector) or V(opaque).
      returned: always
      type: str
      sample: uint
    before: {description: The running value before., returned: always, type: raw, sample: 200000}
    after: {description: The running value after., returned: always, type: raw, sample: 400000}
    wanted: {description: The value as the kernel understands it., returned: always, type: raw, sample: 400000}
    persisted_in:
      description: The file (or C(/proc/cmdline)) that sets the wanted value when the module is loaded.
      returned: always
      type: str
      sample: /etc/modprobe.d/zz-tapvirt.conf
    pending:
      description: What is still to be done by others, or is in the way, in words.
      returned: always
      type: list
      elements: str
      sample: ["add zswap.compressor=lz4 to the kernel command line and reboot"]
    changed: {description: Whether this parameter was changed., returned: always, type: bool, sample: true}
    verdict:
      description: V(changed), V(unchanged), V(adjusted), V(pending) or V(restored).
      returned: always
      type: str
      sample: changed
plan:
  description: The steps, in order.
  returned: success
  type: list
  elements: dict
  sample: [{"what": "kvm.halt_poll_ns", "before": 200000, "after": 400000, "how": "sysfs", "why": "..."}]
recovered:
  description: Parameters that an earlier, interrupted run had changed and this one put back.
  returned: success
  type: list
  elements: str
  sample: []
taints_added:
  description: Taint flags that the kernel raised meanwhile, as unsafe parameters do.
  returned: success
  type: list
  elements: str
  sample: []
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameter_apply import Parameters
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters import wanted_list

PARAM_SPEC: dict[str, t.Any] = {
    "module": {"type": "str", "required": True},
    "name": {"type": "str", "required": True},
    "value": {"type": "raw"},
    "runtime": {"type": "bool", "default": True},
    "persist": {"type": "str", "choices": ["none", "auto", "modprobe_d", "command_line"], "default": "none"},
    "read_back": {
        "type": "str",
        "choices": ["auto", "exact", "adjusted", "trigger", "opaque"],
        "default": "auto",
    },
}
ARGUMENT_SPEC: dict[str, t.Any] = {
    "params": {"type": "list", "elements": "dict", "required": True, "options": PARAM_SPEC},
    "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    state = module.params["state"]
    run = Parameters(Root(), os.uname().machine, wanted_list(module.params["params"], state), state)
    plan, result = run.converge(module.check_mode)
    return {**plan.result(module._diff), **result}


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
