#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_run
short_description: Run a SystemTap module for a bounded time and return its output
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Ships a module that M(tapvirt.host.stap_module) built from the controller's cache to hosts that do not have it.
  - Checks kernel, memory and lockdown, loads the module, verifies in the kernel's own list that the probes are armed,
    waits, and removes the module. A second run of the module at the same time is refused. The error names the first
    run, which continues.
  - A transient systemd unit with its own deadline supervises the run on the host. The run ends in time even if the
    connection breaks or the controller dies. The next run on the host then returns it in RV(run.previous_leftovers).
  - The controller asks for the progress every few seconds and prints it on a terminal. A broken connection is retried
    until the run must have ended. A start may take two minutes, and is retried for one; with O(wait=false) one minute
    and 20 seconds. Then the host is unreachable, the message names the run, and a start that arrives later is refused.
  - Restores the sysctls that staprun changes (C(kernel.kptr_restrict) and C(debug.kprobes-optimization)).
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_stap
  - tapvirt.host._run_result
options:
  module:
    description: What M(tapvirt.host.stap_module) returned as RV(tapvirt.host.stap_module#module:module).
    type: dict
    required: true
  duration_seconds:
    description: For how many seconds to trace, counted from when the probes are armed. At most 900.
    type: float
    default: 60
  globals:
    description: Values for the script's global variables, over those given to M(tapvirt.host.stap_script).
    type: dict
    default: {}
  wait:
    description:
      - Whether to wait for the end of the run and return its result. With V(false), the task returns a handle as soon
        as the host supervises the run, and M(tapvirt.host.stap_run_result) collects the result by RV(run.run_id).
      - A result that nobody collected stays on the host for 24 hours, together with at most 31 others and 64 MiB of
        output. Then the next run on that host removes it and returns it in RV(run.previous_leftovers).
    type: bool
    default: true
  start_at:
    description:
      - When the probes are to be armed, in seconds since 1970 by the controller's clock, at most 900 seconds ahead.
        All hosts need the same value; compute it once, not in this option. Without it, the run starts at once. So does
        a run whose host is reached too late, up to 900 seconds; RV(run.times) tells when it was armed.
      - The host starts staprun earlier than that, by the median of the last five times that loading and arming this
        module took on it, or other modules, or else by one second. The module is locked from the start of the task.
        If C(date) prints whole seconds there, the task warns, and RV(run.clock) is half a second less certain.
    type: float
  domain:
    description:
      - The name of a libvirt domain that QEMU runs on the host. The script's global variable C(target_pid) is set to
        its process id, which narrows the trace to that domain.
    type: str
  buffer_mb:
    description:
      - Output buffer for each online CPU, in MiB, from 1 to 64. All buffers together must fit into C(MemFree) and
        C(Buffers) of the host, and must leave 128 MiB of its C(MemAvailable).
    type: int
    default: 1
  max_output_bytes:
    description: How much of the script's output to keep; the rest is counted and dropped. At most 67108864 where
      O(wait=false).
    type: int
    default: 1048576
  record_limit:
    description: How many records to return.
    type: int
    default: 100
  _shipped:
    description: Internal. Where the action plugin put the module on the host. Set by the action plugin.
    type: path
attributes:
  idempotent:
    support: partial
    details: A run leaves the host as it was, so it reports no change, except for the module that it keeps in
      C(/var/cache/tapvirt/modules) if that was missing, and the time that loading took beside it.
notes:
  - The privileges of root are needed.
  - With Ansible's pipelining on, the host's Python gets the module's own source files on standard input, which is
    quicker than a packed module.
seealso:
  - module: tapvirt.host.stap_module
  - module: tapvirt.host.stap_run_result
  - module: tapvirt.host.stap_host_info
"""

EXAMPLES = r"""
- name: Trace for ten seconds
  tapvirt.host.stap_run:
    module: "{{ built.module }}"
    duration_seconds: 10
    globals: {threshold_us: 250}
  register: traced

- name: Trace and keep all that the script printed
  tapvirt.host.stap_run:
    module: "{{ built.module }}"
    duration_seconds: 60
    output: traces
    max_output_bytes: 10485760

- name: Start on all hosts, and collect when they are done (see stap_run_result)
  tapvirt.host.stap_run:
    module: "{{ built.module }}"
    duration_seconds: 10
    wait: false
  register: started

- name: Narrow it to one virtual machine
  tapvirt.host.stap_run:
    module: "{{ built.module }}"
    duration_seconds: 10
    domain: web1
"""

RETURN = r"""
run:
  description: What happened.
  returned: always
  type: dict
  contains:
    phase:
      description: How far it came, one of V(check), V(started) (not finished yet), V(load) and V(done).
      type: str
      sample: done
    run_id:
      description: The name of the run, for M(tapvirt.host.stap_run_result). Returned unless the run was refused.
      type: str
      sample: tapvirt_vfs_latency_6a0e4c1b-1f0c9be2d7a45e63
    finished:
      description: Whether the run has ended. If not, only C(phase), C(run_id), C(finished), C(times), C(clock),
        C(supervisor) and C(previous_leftovers) are returned.
      type: bool
      sample: true
    times:
      description:
        - Seconds since 1970 by the host's clock, each null if unknown. C(accepted) is when the host took the run over,
          C(start) when it starts staprun, C(armed) when the probes were armed, C(end) when they are removed.
        - Until the run is finished, C(start) and C(end) are what the host expects, and C(armed) is null until then.
      type: dict
      sample: {"accepted": 1764540000.12, "armed": 1764540010.02, "end": 1764540020.14, "start": 1764540009.10}
    clock:
      description:
        - How far the host's clock is ahead of that of the controller that started the run (C(skew_seconds)), and by
          how much this may be wrong at most (C(uncertainty_seconds)). Subtract the skew from RV(run.times) to get the
          controller's time.
        - The controller asks for the host's time just before it starts the run. The skew is that time minus the middle
          between sending and receiving, and the uncertainty is half of the time between them. A clock that is adjusted
          later is not noticed.
      type: dict
      sample: {"skew_seconds": -0.013, "uncertainty_seconds": 0.024}
    outcome:
      description:
        - V(ok), V(zero_hits) (armed, never hit), V(partial_arm) (a probe is not armed), V(overloaded), V(skipped),
          V(script_error), V(lost_output), V(timeout) or V(refused).
      type: str
      sample: ok
    reason: {description: The outcome in words., type: str, sample: 2 of 2 probes armed}
    hints: {description: "What to do about limits that the run met, also after V(ok).", type: list, elements: str}
    probes:
      description:
        - How many probes were C(asked) for, how many are C(armed), for how many of these the kernel's list is the proof
          (C(proved)), the C(missing) ones, and C(points) with the hits of each.
      type: dict
      sample: {"armed": 2, "asked": 2, "missing": [], "points": [], "proved": 2}
    hits: {description: How often a probe was hit; null when the module does not count hits., type: int, sample: 4711}
    skipped: {description: "How many hits were skipped, as SystemTap counts them.", type: int, sample: 0}
    errors: {description: How many run-time errors the script had., type: int, sample: 0}
    messages:
      description: What staprun printed, the errors first. Lines without a prefix come last and are no errors.
      type: list
      elements: str
    bytes: {description: How many bytes the script printed., type: int, sample: 812}
    sha256: {description: The SHA-256 of all that was printed., type: str, sample: 11f0...}
    duration_seconds: {description: How long the probes were armed., type: float, sample: 10.1}
    load_seconds: {description: How long loading and arming took., type: float, sample: 0.9}
    kernel: {description: The kernel's release., type: str, sample: 6.12.107+deb13-cloud-amd64}
    guru_reason: {description: "Why the script needed guru mode, or null.", type: str}
    builder: {description: "What built the module, as C(stap), C(compiler) and C(key).", type: dict}
    module:
      description: The module's C(name), C(sha256) and where the host keeps it (C(path)).
      type: dict
      sample: {"name": "tapvirt_vfs_latency_6a0e4c1b", "path": "/var/cache/tapvirt/modules/9b2d/x.ko", "sha256": "9b2d"}
    records:
      description: The rows that the script printed as JSON lines, up to O(record_limit).
      type: list
      elements: dict
      sample: [{"count": 3, "key": "io", "kind": "count"}]
    record_count: {description: How many rows there were., type: int, sample: 1}
    truncated: {description: Whether output or records were left out., type: bool, sample: false}
    supervisor: {description: "What supervised the run, V(systemd) or V(guard).", type: str, sample: systemd}
    restored:
      description: The sysctls that were put back, each with the value found and the value put back.
      type: dict
      sample: {"/proc/sys/kernel/kptr_restrict": ["1", "0"]}
    leftovers:
      description: What could not be removed or put back on the host, in words.
      type: list
      elements: str
    tainted:
      description: The kernel's taint flags before and after. An unsigned module sets two of them until a reboot.
      type: list
      elements: int
      sample: [0, 12288]
    output:
      description:
        - The file that was fetched for O(output), as C(path) on the controller, C(bytes), C(sha256) and whether it was
          C(truncated). The SHA-256 is that of RV(run.sha256) unless it was truncated.
      type: dict
      returned: when O(output) is given
      sample: {"bytes": 812, "path": "/home/me/traces/web1.tapvirt_x.txt", "sha256": "11f0...", "truncated": false}
    previous_leftovers:
      description:
        - Runs that nobody had collected, that had been killed, or that could not remove their module. What they had
          left on the host was cleaned up before this run began, except for what C(leftovers) names.
        - Each has C(module) (the name), C(state) (how it was found - V(done), V(killed), V(damaged) (with files that
          nobody can read), or how far it was when it and its supervisor were killed), C(started) (seconds since 1970),
          C(removed) (whether the module was still there and had to be removed), C(kept_bytes) (how much of its output
          was kept), C(records) (of what was kept, up to O(record_limit)), and, as in RV(run), C(outcome), C(reason),
          C(hits), C(skipped), C(bytes), C(sha256), C(duration_seconds), C(record_count), C(restored) and C(leftovers).
      type: list
      elements: dict
plan:
  description: What is kept on the host (the module), or would be.
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
    option: duration_seconds
    value: 0
    problem: The duration must be more than 0 and at most 900 seconds.
    hint: null
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.limits import MAX_OUTPUT_BYTES
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise.outcome import ACCEPT, answer

ARGUMENT_SPEC = {
    "module": {"type": "dict", "required": True},
    "duration_seconds": {"type": "float", "default": 60},
    "wait": {"type": "bool", "default": True},
    "start_at": {"type": "float"},
    "globals": {"type": "dict", "default": {}},
    "domain": {"type": "str"},
    "accept": ACCEPT,
    "buffer_mb": {"type": "int", "default": 1},
    "max_output_bytes": {"type": "int", "default": MAX_OUTPUT_BYTES},
    "output": {"type": "str"},
    "record_limit": {"type": "int", "default": 100},
    "_shipped": {"type": "path"},
    "_stage": {"type": "dict"},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    """Carry out a stage, and fail the task if the outcome is not accepted."""
    stage = module.params["_stage"]
    if stage is None and not module.check_mode:
        raise TapvirtError("stap_run works only through its action plugin, which starts one stage after the other.")
    if stage and stage["do"] == "collect":
        # A busy host is not to read what only the start needs.
        from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace.collect import collect

        result = collect(stage["directory"], float(stage["wait"]), bool(stage["output"]), int(stage["offset"]))
        return answer(result, module.params["accept"])
    from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import start

    plan, result = start.run(module.params, stage is None)
    diff = stage.get("diff", False) if stage else module._diff
    return {**answer(result, module.params["accept"]), **plan.result(diff)}


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
