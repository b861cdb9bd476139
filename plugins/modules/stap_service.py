#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_service
short_description: Run persistent SystemTap tracers on a host, across reboots
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Keeps persistent tracers as systemd units. Each is a module that M(tapvirt.host.stap_module) built, for the running
    kernel and for every other kernel that the host may boot.
  - The loaded module is identified by the digest that it carries (C(/sys/module/NAME/version)). A tracer that runs as
    requested is left alone. A tracer that was stopped, removed or replaced manually is restored.
  - The output is a flight recorder, a ring of size-limited files in C(/var/log/tapvirt/NAME).
  - A tracer that is killed is started again, at most five times in ten minutes. A tracer that used more of a CPU than
    its build allows is not started again, not even at boot, until it changes.
  - The sysctls that staprun changes (C(kernel.kptr_restrict) and C(debug.kprobes-optimization)) are restored as soon as
    the probes are armed.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_stap
options:
  services:
    description: The tracers.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The name of the tracer on the host, 1 to 32 lower-case letters, digits, dashes and underscores. Its
            unit is C(tapvirt-trace-NAME.service).
        type: str
        required: true
      state:
        description:
          - Whether it is to run now. V(absent) stops it and removes everything but its output.
        type: str
        choices: [started, stopped, absent]
        default: started
      enabled:
        description: Whether it starts at boot.
        type: bool
        default: true
      modules:
        description:
          - What M(tapvirt.host.stap_module) returned as RV(tapvirt.host.stap_module#module:module), of one script, for
            each kernel. Needed unless O(services[].state=absent).
          - Other kernels of the host are listed in RV(services[].pending).
        type: list
        elements: raw
        default: []
      globals:
        description:
          - Values for the script's global variables, over those given to M(tapvirt.host.stap_script).
          - SystemTap sets them only while a module is loaded. Another value needs no build, and restarts the tracer.
        type: dict
        default: {}
      buffer_mb:
        description:
          - Output buffer for each online CPU, in MiB, from 1 to 64. All buffers together must fit into C(MemFree) and
            C(Buffers) of the host, and must leave 128 MiB of its C(MemAvailable).
        type: int
        default: 1
      output_file_bytes:
        description: How large a file of the output may become. Lines are kept whole.
        type: int
        default: 16777216
      output_files:
        description: How many such files are kept, at least 2. The oldest makes room for the newest.
        type: int
        default: 4
      remove_output:
        description: Remove the output too, with O(services[].state=absent).
        type: bool
        default: false
  lock_timeout_seconds:
    description: How long to wait while another task changes tracers of this host. The message of a timeout names it.
    type: int
    default: 120
  _shipped:
    description: Internal. Where the action plugin put modules on the host. Set by the action plugin.
    type: dict
notes:
  - The privileges of root are needed, and systemd.
  - A module is named after its script, and a kernel loads it once. While a tracer runs, M(tapvirt.host.stap_run)
    refuses the same script.
seealso:
  - module: tapvirt.host.stap_service_info
  - module: tapvirt.host.stap_module
  - module: tapvirt.host.stap_run
"""

EXAMPLES = r"""
- name: Keep a tracer, now and from boot on
  tapvirt.host.stap_service:
    services:
      - name: slow_reads
        modules: "{{ built.results | map(attribute='module') }}"
        globals: {threshold_us: 250}

- name: Take it away with all that it wrote
  tapvirt.host.stap_service:
    services:
      - {name: slow_reads, state: absent, remove_output: true}
"""

RETURN = r"""
services:
  description: A row for each tracer, in the order of O(services).
  returned: success, and failure when one of them failed
  type: list
  elements: dict
  contains:
    name:
      description: The tracer.
      type: str
      sample: slow_reads
    state:
      description:
        - V(running); V(restarting) between two starts; V(stopped); V(overloaded) when it took more of a CPU than its
          build allows, and stays stopped; V(pending) when there is no module for the running kernel; V(failed);
          V(ended) when the script ended itself; or V(absent).
      type: str
      sample: running
    reason:
      description: Why it does not run, in words, or null.
      type: str
      sample: null
    outcome:
      description: How it ended, as in RV(tapvirt.host.stap_run#module:run.outcome), or V(killed); null while it runs.
      type: str
      sample: null
    enabled:
      description: Whether it starts at boot.
      type: bool
      sample: true
    restarts:
      description: How often systemd has restarted it automatically.
      type: int
      sample: 0
    started:
      description: When it was last started, in seconds since the epoch.
      type: float
      sample: 1790000000.5
    digest:
      description: The digest of the module that is C(loaded), and of the one that is C(wanted), or null.
      type: dict
      sample: {"loaded": "2c11...", "wanted": "2c11..."}
    kernels:
      description: The installed kernels, each with C(release), C(running), C(ready) and the C(reason) when it is not.
      type: list
      elements: dict
      sample: [{"ready": true, "reason": null, "release": "6.12.107+deb13-cloud-amd64", "running": true}]
    probes:
      description:
        - How many probes were C(asked) for, how many are C(armed), for how many of these the kernel's list is the proof
          (C(proved)), and the C(missing) ones; null unless it runs.
      type: dict
      sample: {"armed": 2, "asked": 2, "missing": [], "proved": 2}
    output:
      description:
        - The C(directory), how many C(files) and C(bytes) are in it, the C(limit_bytes), and how many bytes could not
          be written (C(dropped_bytes)).
      type: dict
      sample:
        bytes: 4096
        directory: /var/log/tapvirt/slow_reads
        dropped_bytes: 0
        files: 1
        limit_bytes: 67108864
    pending:
      description: What is not as it should be and waits for something else, in words.
      type: list
      elements: str
      sample: ["kernel 6.12.108+deb13-cloud-amd64: there is no module for it, so the tracer does not start with it"]
    hints:
      description: What to do about limits that the tracer met since its last start, as in
        RV(tapvirt.host.stap_run#module:run.hints).
      type: list
      elements: str
      sample: []
    changed:
      description: Whether this tracer was changed, or would be.
      type: bool
      sample: false
    changes:
      description: Which rows of RV(plan) are this tracer's.
      type: list
      elements: str
      sample: []
    error:
      description: Why this tracer made the task fail, as in RV(error); null where it did not.
      type: dict
      sample: null
kernels:
  description: The kernels that the host can boot, each with its C(release), C(version) and whether it is C(running).
  returned: success
  type: list
  elements: dict
  sample:
    - release: 6.12.107+deb13-cloud-amd64
      running: true
      version: "#1 SMP PREEMPT_DYNAMIC Debian 6.12.107-1 (2026-08-29)"
plan:
  description: What was changed, or would be. A restart says why there is no way around it.
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
    option: 'services[0].name'
    value: Slow reads
    problem: The name of a service is 1 to 32 lower-case letters, digits, dashes and underscores, and begins with a
      letter or a digit.
    hint: null
    candidates: [slow_reads]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service import run

ARGUMENT_SPEC = {
    "services": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "default": "started", "choices": ["started", "stopped", "absent"]},
            "enabled": {"type": "bool", "default": True},
            "modules": {"type": "list", "elements": "raw", "default": []},
            "globals": {"type": "dict", "default": {}},
            "buffer_mb": {"type": "int", "default": 1},
            "output_file_bytes": {"type": "int", "default": 16 << 20},
            "output_files": {"type": "int", "default": 4},
            "remove_output": {"type": "bool", "default": False},
        },
    },
    "lock_timeout_seconds": {"type": "int", "default": 120},
    "_shipped": {"type": "dict"},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    """Converge the tracers, and fail if one of them does not reach the requested state."""
    return run.run(module.params, module.check_mode, module._diff)


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
