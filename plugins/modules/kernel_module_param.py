#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_module_param
short_description: Set and persist kernel module parameters
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Sets parameters of loaded and built-in modules while the kernel runs, through C(/sys/module), and persists them for
    the next load of the module.
  - Values are compared by the kernel's own rules for the parameter's type. V(Y), V(1) and V(yes) are the same boolean,
    V(0x10) and V(16) the same number, and V(010) is 8, as in the kernel. An equal value is no change.
  - Every value is read back. The task fails if a value had no effect. A value that the kernel rounded is reported as
    adjusted, and is no change in the next run.
  - The list is set as a whole. If one parameter fails or has no effect, all values and files that the run changed are
    restored in reverse order. The error names what could not be restored; the rest is restored nevertheless. The next
    run undoes a run that was killed.
  - Everything impossible is refused before anything changes.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_kernel
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
          - The value, as a number, a boolean, text, or a list for an array. An array that is set now is given whole,
            as the kernel would keep the rest; one that only a load can set may be given in part.
          - An empty list, an element that is null, a list, a dictionary or has a comma, and more elements or bytes than
            the module declares are refused. With such a value the module could no longer be loaded.
          - A boolean is one of V(Y), V(N), V(1), V(0), V(t), V(f), V(on), V(off), V(yes), V(no), V(true) and V(false).
            Other texts and fractions are refused, although the kernel would read the first characters of a text.
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
            are never changed; a line of theirs that wins is named in RV(params[].pending). Comments and other lines
            that somebody wrote into the module's own file are kept.
          - V(command_line) is for modules that are built into the kernel. The boot loader is not changed;
            RV(params[].pending) says what to add, until the running kernel was started with it.
          - V(auto) is V(modprobe_d) for a loadable module and V(command_line) for one that is built in.
        type: str
        choices: [none, auto, modprobe_d, command_line]
        default: none
      read_back:
        description:
          - What to expect when a value is read back. What was read back for a wanted value is remembered, so that
            the next run finds it unchanged.
          - V(exact) is the value itself, compared by the rules of the type.
          - V(selector) is one of the words that the parameter lists, or the same word in the kernel's own spelling.
          - V(rounded) is any number that the kernel made of the value; V(clamped) is a number between the one that
            was there before and the wanted one, as far as the kernel goes.
          - V(trigger) is nothing to compare with, as writing acts; it is written in every run.
          - V(opaque) is nothing that can be compared; a value that cannot be read is written in every run.
          - V(auto) is V(trigger), V(rounded) or V(clamped) for parameters that are known to be so, V(opaque) for one
            that cannot be read, V(selector) for one that lists its words, V(rounded) for another number when it
            moved the value, and V(exact) for everything else.
        type: str
        choices: [auto, exact, selector, rounded, clamped, trigger, opaque]
        default: auto
      reload:
        description:
          - What to do about a parameter that cannot be set while its module is loaded.
          - With V(never), RV(params[].pending) says that the value waits for the module's next load.
          - With V(if_unused), the module is unloaded and loaded again, if no module and nothing else uses it, no
            device is bound to it and no network interface of it is up; otherwise RV(params[].pending) says what does.
            The module's other parameters keep their running values. If it does not come back, it is loaded as it was
            before. Needs O(params[].persist); with O(state=restored), it brings back what was there before.
        type: str
        choices: [never, if_unused]
        default: never
      allow_taint:
        description:
          - Whether the value may taint the kernel. Setting a parameter that its module marks as unsafe does, until
            the next reboot; such a parameter is refused otherwise. Not all unsafe parameters of built-in modules are
            known in advance. A write that tainted the kernel is then undone, and the task fails.
        type: bool
        default: false
  state:
    description:
      - V(present) sets the values. V(restored) puts back what each parameter was before this module first set it, and
        takes it out of the module's own file.
    type: str
    choices: [present, restored]
    default: present
  refresh_initramfs:
    description:
      - Whether to rebuild the running kernel's initramfs with C(update-initramfs) or C(dracut), if it contains a named
        module with other options than those in C(modprobe.d). That takes minutes.
      - Otherwise RV(params[].pending) says that it is stale.
    type: bool
    default: false
  lock_timeout_seconds:
    description: How long to wait while another task sets parameters of this host. The message of a timeout names it.
    type: int
    default: 120
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

- name: Nested virtualization, which can be set only when the module is loaded; now, unless a guest runs
  tapvirt.host.kernel_module_param:
    params:
      - {module: kvm_amd, name: nested, value: 1, persist: auto, reload: if_unused}

- name: An option of a storage driver, which is loaded from the initramfs
  tapvirt.host.kernel_module_param:
    params:
      - {module: virtio_blk, name: queue_depth, value: 64, persist: auto}
    refresh_initramfs: true

- name: Put it back
  tapvirt.host.kernel_module_param:
    params:
      - {module: kvm, name: halt_poll_ns}
    state: restored
"""

RETURN = r"""
params:
  description: One row for each entry of O(params), in its order.
  returned: success, and when a step failed after something was changed
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
      description:
        - The file (or C(/proc/cmdline)) that sets the wanted value when the module is loaded. Null where none does, or
          where the kernel refuses another option of the module, which RV(params[].pending) names. Then it cannot be
          loaded at all.
      returned: always
      type: str
      sample: /etc/modprobe.d/zz-tapvirt.conf
    pending:
      description: What is still to be done by others, or is in the way, in words.
      returned: always
      type: list
      elements: str
      sample: ["add zswap.compressor=lz4 to the kernel command line and reboot"]
    notes:
      description: What else bears on the module's loading, such as C(blacklist) and C(softdep) lines, in words.
      returned: always
      type: list
      elements: str
      sample: []
    changed: {description: Whether this parameter was changed., returned: always, type: bool, sample: true}
    verdict:
      description:
        - V(changed), V(unchanged), V(adjusted), V(pending) or V(restored).
        - In a task that failed, V(failed) for a parameter that made it fail, V(rolled_back) for one that was changed
          and is as before, V(not_rolled_back) for one that is not, and V(unchanged).
      returned: always
      type: str
      sample: changed
    error:
      description: Why this parameter made the task fail or could not be put back, as in RV(error); else null.
      returned: always
      type: dict
      sample: null
plan:
  description: The steps, in order.
  returned: success
  type: list
  elements: dict
  sample: [{"what": "kvm.halt_poll_ns", "before": 200000, "after": 400000, "how": "sysfs", "why": "..."}]
not_rolled_back:
  description: What a task that failed had changed and could not put back, with the reason.
  returned: when a step failed after something was changed
  type: list
  elements: str
  sample: []
recovered:
  description: Parameters that an interrupted run had changed, and modules that it had unloaded; this one put them back.
  returned: success
  type: list
  elements: str
  sample: []
taints_added:
  description: Taint flags that the kernel raised during the run, such as V(user_request) for an unsafe parameter.
  returned: success
  type: list
  elements: str
  sample: []
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: "params[0].value"
    value: "20x"
    problem: kvm.halt_poll_ns takes a whole number from 0 to 4294967295.
    hint: null
    candidates: []
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.options import read_lock_timeout
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.model import wanted_list
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.run import Parameters

PARAM_SPEC: dict[str, t.Any] = {
    "module": {"type": "str", "required": True},
    "name": {"type": "str", "required": True},
    "value": {"type": "raw"},
    "runtime": {"type": "bool", "default": True},
    "persist": {"type": "str", "choices": ["none", "auto", "modprobe_d", "command_line"], "default": "none"},
    "read_back": {
        "type": "str",
        "choices": ["auto", "exact", "selector", "rounded", "clamped", "trigger", "opaque"],
        "default": "auto",
    },
    "reload": {"type": "str", "choices": ["never", "if_unused"], "default": "never"},
    "allow_taint": {"type": "bool", "default": False},
}
ARGUMENT_SPEC: dict[str, t.Any] = {
    "params": {"type": "list", "elements": "dict", "required": True, "options": PARAM_SPEC},
    "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
    "refresh_initramfs": {"type": "bool", "default": False},
    "lock_timeout_seconds": {"type": "int", "default": 120},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    state, lock_seconds = module.params["state"], read_lock_timeout(module.params)
    wanted = wanted_list(module.params["params"], state)
    run = Parameters(Root(), os.uname().machine, wanted, state, module.params["refresh_initramfs"], lock_seconds)
    plan, result = run.converge(module.check_mode)
    return {**plan.result(module._diff), **result}


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
