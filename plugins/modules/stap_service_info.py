#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_service_info
short_description: Read the persistent SystemTap tracers of a host and the kernels that it can boot
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Returns the tracers that M(tapvirt.host.stap_service) keeps on a host, whether they run, and whether they will run
    after a reboot into each of the installed kernels.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_stap
  - tapvirt.host._transport
options:
  names:
    description: The tracers to look at; all of them by default.
    type: list
    elements: str
    default: []
notes:
  - Without the privileges of root, files that only root may read count as absent.
seealso:
  - module: tapvirt.host.stap_service
"""

EXAMPLES = r"""
- name: Which kernels need a module, and what runs
  tapvirt.host.stap_service_info:
  register: tracers

- name: Show what waits for something
  ansible.builtin.debug:
    msg: "{{ tracers.services | map(attribute='pending') | flatten }}"
"""

RETURN = r"""
services:
  description:
    - A row for each tracer, as RV(tapvirt.host.stap_service#module:services), without C(changed), C(changes) and
      C(error).
  returned: success
  type: list
  elements: dict
  sample: []
kernels:
  description: The kernels that the host can boot, each with its C(release), C(version) and whether it is C(running).
  returned: success
  type: list
  elements: dict
  sample:
    - release: 6.12.107+deb13-cloud-amd64
      running: true
      version: "#1 SMP PREEMPT_DYNAMIC Debian 6.12.107-1 (2026-08-29)"
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: null
    value: null
    problem: "'systemctl show tapvirt-trace-reads.service' did not end within 60 s and was ended."
    hint: null
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import TRANSPORT, run_module
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service import run

ARGUMENT_SPEC = {"names": {"type": "list", "elements": "str", "default": []}, **TRANSPORT}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    return run.info(module.params["names"])


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
