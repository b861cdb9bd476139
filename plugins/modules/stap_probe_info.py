#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_probe_info
short_description: Tell which SystemTap probe points a host's kernel can arm, before any compile
version_added: 0.1.0
author: The tapvirt.host authors (@tapvirt)
description:
  - Takes probe points of SystemTap's language apart and compares them with the host's own facts, that is its symbol
    table, its loaded modules and the list of places where the kernel refuses probes.
  - Needs neither SystemTap nor headers nor debug information on the host.
  - Says for each probe whether it is synchronous (it fires at a place in the code) or not (timers, begin, end).
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._transport
options:
  probes:
    description:
      - Probe points such as V(kernel.function("vfs_read"\).call). All of them are looked up in one reading of the
        symbol table.
    type: list
    elements: str
    required: true
  limit:
    description: How many matching functions to return for each probe.
    type: int
    default: 10
notes:
  - A function that exists only as an inlined copy is known to debug information alone. Here it is V(missing), with that
    said as the reason.
  - Names of functions in modules that are not loaded cannot be looked up. Such a probe registers without an error and
    stays silent until the module is loaded.
seealso:
  - module: tapvirt.host.stap_host_info
  - module: tapvirt.host.kernel_symbol_info
"""

EXAMPLES = r"""
- name: Which of these can be armed here?
  tapvirt.host.stap_probe_info:
    probes:
      - kernel.function("vfs_read").call
      - module("kvm").function("kvm_vcpu_ioctl").return.maxactive(20)
      - kernel.trace("sched:sched_switch")
      - timer.s(5)
  register: traced

- name: Stop before anything is built when one cannot
  ansible.builtin.assert:
    that: traced.probes | rejectattr('verdict', 'in', ['armable', 'unknown']) | length == 0
"""

RETURN = r"""
probes:
  description: A row for each probe point, in the order asked.
  returned: success
  type: list
  elements: dict
  contains:
    probe:
      description: The probe point as given.
      type: str
      sample: kernel.function("vfs_read").call
    synchronous:
      description: Whether the probe fires at a place in the code.
      type: bool
      sample: true
    verdict:
      description:
        - V(armable), V(missing), V(blacklisted) (the kernel refuses probes there), V(discarded) (code of the boot phase
          that is gone), V(optimised_variant_only) (only C(name.isra.0) and the like are left), V(module_not_loaded), or
          V(unknown) (only a builder with debug information can tell).
      type: str
      sample: armable
    reason:
      description: The reason in words.
      type: str
      sample: the function is there
    nearest:
      description: What looks most like a name that is missing, or the form that would work.
      type: list
      elements: str
      sample: []
    points:
      description: The functions that match, up to O(limit), each with C(name) and C(owner) (V(vmlinux) or a module).
      type: list
      elements: dict
      sample: [{"name": "vfs_read", "owner": "vmlinux"}]
    point_count:
      description: How many functions match.
      type: int
      sample: 1
seconds:
  description: How long reading the facts and looking everything up took.
  returned: success
  type: float
  sample: 0.12
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import TRANSPORT, run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.probes import (
    parse_probe_points,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.resolve import read_facts, resolve

ARGUMENT_SPEC = {
    "probes": {"type": "list", "elements": "str", "required": True},
    "limit": {"type": "int", "default": 10},
    **TRANSPORT,
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    """Parse all probe points before the first is looked up: a wrong one stops the task at once."""
    started = time.monotonic()
    points = [point for probe in module.params["probes"] for point in parse_probe_points(probe)]
    facts = read_facts(Root(), os.uname().release)
    rows = [resolve(point, facts, module.params["limit"]) for point in points]
    return {"changed": False, "probes": rows, "seconds": round(time.monotonic() - started, 3)}


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
