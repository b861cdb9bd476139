#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_run_result
short_description: Collect the result of a SystemTap run that stap_run started
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Collects the result of a run that M(tapvirt.host.stap_run) started with O(tapvirt.host.stap_run#module:wait=false).
  - The result stays on the host, so a second task with the same O(run_id) returns the same. The next run on the host
    removes it one hour after it was collected, or 24 hours after the start of the run if nobody collected it. It counts
    as collected when the controller has it with its O(output). An answer that is lost on its way changes nothing.
  - If the run could not remove its module, each task that collects the result tries again and updates C(run.leftovers).
  - A connection that breaks is retried until the run must have ended, and for 20 seconds in any case. After that the
    host is unreachable, and its result can be collected later.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_stap
  - tapvirt.host._run_result
options:
  run_id:
    description: What M(tapvirt.host.stap_run) returned as RV(tapvirt.host.stap_run#module:run.run_id).
    type: str
    required: true
  wait:
    description:
      - Whether to wait for the end of a run that is not finished. The task waits for what is left of it, and at most
        90 seconds more.
      - With V(false), the task returns C(run.finished) as V(false) and C(run.progress) instead. A run that was killed
        has ended; the task waits at most 20 seconds for its cleanup and returns its result.
    type: bool
    default: true
  remove:
    description: Whether to remove the result from the host as soon as the controller has it. It can then not be
      collected again.
    type: bool
    default: false
attributes:
  check_mode:
    details: In check mode, the task neither waits, nor removes anything, nor writes O(output).
  diff_mode:
    support: N/A
    description: Changes nothing that a diff could show.
  idempotent:
    support: partial
    details: Returns the same until the result is removed.
notes:
  - The privileges of root are needed.
seealso:
  - module: tapvirt.host.stap_run
"""

EXAMPLES = r"""
- name: Start the trace on every host
  tapvirt.host.stap_run:
    module: "{{ built.module }}"
    duration_seconds: 60
    wait: false
  register: started

- name: Collect what it printed
  tapvirt.host.stap_run_result:
    run_id: "{{ started.run.run_id }}"
    output: traces
    remove: true
  register: traced
"""

RETURN = r"""
run:
  description:
    - What happened, with the keys of RV(tapvirt.host.stap_run#module:run). V(true) in C(finished) says that the run has
      ended. Otherwise only C(phase), which is V(started), C(run_id), C(finished), C(times), C(clock), C(supervisor),
      C(previous_leftovers) and C(run.progress) are returned.
  returned: success, and failure where the outcome is not accepted
  type: dict
  contains:
    progress:
      description:
        - How far the run is. C(state) is V(waiting) (for O(tapvirt.host.stap_run#module:start_at)), V(starting),
          V(loading), V(loaded), V(running) or V(stopping); in check mode also V(killed). C(elapsed_seconds) is for how
          long, C(of_seconds) of how many at most. C(armed) of C(sites) probe places are armed, and the script has
          printed C(records) and C(bytes).
      returned: when the run is not finished
      type: dict
      sample: {"armed": 2, "elapsed_seconds": 3.1, "of_seconds": 10.0, "sites": 2, "state": "running"}
  sample: {"finished": true, "outcome": "ok", "run_id": "tapvirt_vfs_latency_6a0e4c1b-1f0c9be2d7a45e63"}
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: run_id
    value: tapvirt_vfs_latency_6a0e4c1b-1f0c9be2d7a45e63
    problem: This host keeps no run of this name.
    hint: A result is kept for 24 hours, until it is removed or the host reboots.
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise.outcome import ACCEPT, answer
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace.collect import collect_by_id

ARGUMENT_SPEC = {
    "run_id": {"type": "str", "required": True},
    "wait": {"type": "bool", "default": True},
    "remove": {"type": "bool", "default": False},
    "accept": ACCEPT,
    "output": {"type": "str"},
    "_stage": {"type": "dict"},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    """Collect the result, and fail the task if the outcome is not accepted."""
    stage = module.params["_stage"]
    if stage is None:
        raise TapvirtError("stap_run_result works only through its action plugin, which asks for it.")
    result = collect_by_id(
        module.params["run_id"], float(stage["wait"]), bool(stage["output"]), int(stage["offset"]), module.check_mode
    )
    return answer(result, module.params["accept"])


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
