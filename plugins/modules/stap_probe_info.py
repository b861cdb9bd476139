#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_probe_info
short_description: Check which SystemTap probe points a host's kernel can arm, without compiling
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - On a host to trace, parses probe points and compares them with the host's symbol table, its loaded modules, the
    kernel's blocklist of probes, and the first instruction of each function. The host needs neither SystemTap nor
    headers nor debug information.
  - On a builder, with O(list=true), lists the probe points that the debug information of a O(kernel) contains, as
    C(stap -l) and C(stap -L) do. Each point has its source file, line and form and, on request, the variables that a
    probe can read. O(build_id), O(module_build_ids) and O(debuginfod) require O(list=true). They have the same meaning
    as in M(tapvirt.host.stap_module).
  - Returns for each probe whether it is synchronous (it fires at a place in the code) or not (timers, begin, counters).
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_stap
  - tapvirt.host._transport
  - tapvirt.host._debuginfod
  - tapvirt.host._debuginfod.build_ids
options:
  probes:
    description:
      - Probe points such as V(kernel.function("vfs_read"\).call), lists of them with commas, and groups such as
        V(syscall.{open,close}). All of them are looked up in one reading of the symbol table.
    type: list
    elements: str
    required: true
  limit:
    description: How many matching points to return for each probe. RV(probes[].point_count) tells how many there are.
    type: int
    default: 10
  list:
    description: Ask this host's SystemTap and its debug information instead of the running kernel. For a builder.
    type: bool
    default: false
  kernel:
    description: With O(list), the release of the kernel to list for. By default the only one with headers there.
    type: str
  variables:
    description: With O(list), return the variables of every point as well.
    type: bool
    default: false
  match:
    description: With O(list), return only the points whose line has this regular expression in it.
    type: str
  store:
    description: Where the builder keeps its modules, and SystemTap's cache.
    type: path
    default: /var/lib/tapvirt/modules
  timeout_seconds:
    description:
      - With O(list), how many seconds each probe may take. All functions of a kernel take a minute or two.
    type: int
    default: 300
notes:
  - A function that exists only as an inlined copy is known to debug information alone. On a host it is V(missing), with
    that said as the reason.
  - A few functions are left out by SystemTap because of their source file, which a host does not know.
  - Names of functions in modules that are not loaded cannot be looked up. Such a probe registers without an error and
    stays silent until the module is loaded. On a host without C(modules.builtin), a function that the kernel itself
    has means that the module is built in.
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

- name: What can a probe in these functions read?
  tapvirt.host.stap_probe_info:
    probes: ['kernel.function("vfs_*").call']
    list: true
    kernel: 6.12.107+deb13-cloud-amd64
    variables: true
    match: '@fs/read_write\.c:'
    limit: 50
  delegate_to: builder1
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
    family:
      description:
        - The kind of event, such as V(function), V(tracepoint), V(timer), or V(alias) of a tapset. Null for V(invalid).
      type: str
      sample: function
    synchronous:
      description: Whether the probe fires at a place in the code. Null for V(invalid).
      type: bool
      sample: true
    verdict:
      description:
        - V(armable), V(missing), V(blacklisted) (the kernel's own list, or SystemTap's, holds it), V(discarded) (code
          of the start, of the kernel or a module, that is gone), V(refused) (what stands at its beginning cannot be
          probed, or the point is in a program), V(optimised_variant_only) (only C(name.isra.0) and the like are left),
          V(module_not_loaded), V(unknown) (only a builder with debug information can tell), or V(invalid) (the text is
          not a probe point; the others are judged).
        - With O(list), V(listed), V(missing), V(refused) or V(invalid).
      type: str
      sample: armable
    reason:
      description: The reason in words.
      type: str
      sample: the function is there
    candidates:
      description: What looks most like a name that is missing (for the first three), or the form that would work.
      type: list
      elements: str
      sample: []
    points:
      description:
        - The functions that match, up to O(limit), each with C(name) and C(owner) (V(vmlinux) or a module).
        - With O(list), rows of C(point) (as C(stap -l) prints it), C(family), C(module), C(function) (or the event),
          C(source), C(line), C(form) (V(call), V(return), V(inline), V(callee), ... or null), C(target) (the label or
          the callee) and C(variables) (each with C(name) and C(type)).
      type: list
      elements: dict
      sample: [{"name": "vfs_read", "owner": "vmlinux"}]
    point_count:
      description: How many points match.
      type: int
      sample: 1
    truncated:
      description: Whether there are more points than were returned.
      type: bool
      sample: false
module_build_ids:
  description:
    - The build-ids of the loaded modules whose functions O(probes) name, for the option
      O(tapvirt.host.stap_module#module:module_build_ids).
    - Those of all loaded modules, if one of O(probes) is an alias of a tapset.
    - With O(list), the given O(module_build_ids).
  returned: success
  type: dict
  sample: {"kvm": "bdf16e8f4359efc9e9f854e651c18b49829ffdbd"}
kernel:
  description: The kernel's release that was looked up.
  returned: success
  type: str
  sample: 6.12.107+deb13-cloud-amd64
seconds:
  description: How long reading the facts and looking everything up took.
  returned: success
  type: float
  sample: 0.12
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: limit
    value: 0
    problem: The number must be 1 or more.
    hint: null
    candidates: []
"""

import os
import re
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import NEEDS_PATH, InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import TRANSPORT, run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.probe_point import (
    ProbePoint,
    parse_probe_points,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.debuginfod import OPTIONS
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.paths import DEFAULT_STORE
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.resolve.host_facts import (
    module_build_ids,
    read_facts,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.resolve.resolve import (
    resolve_all,
    unresolved,
)

ARGUMENT_SPEC = {
    "probes": {"type": "list", "elements": "str", "required": True},
    "limit": {"type": "int", "default": 10},
    "list": {"type": "bool", "default": False},
    "kernel": {"type": "str"},
    "variables": {"type": "bool", "default": False},
    "match": {"type": "str"},
    "build_id": {"type": "str"},
    "module_build_ids": {"type": "dict"},
    "debuginfod": OPTIONS,
    "store": {"type": "path", "default": DEFAULT_STORE},
    "timeout_seconds": {"type": "int", "default": 300},
    **TRANSPORT,
}
_OF_LISTS = ("kernel", "variables", "match", "build_id", "module_build_ids", "debuginfod")


def body(module: AnsibleModule) -> dict[str, t.Any]:
    """Judge each probe point; what is none, or lies in a program, is a row as well."""
    started = time.monotonic()
    params = module.params
    for option in ("limit", "timeout_seconds"):
        if params[option] < 1:
            raise InvalidInput(option, params[option], "The number must be 1 or more")
    found: list[tuple[str, ProbePoint | InvalidInput]] = []
    for probe in params["probes"]:
        try:
            found += [(point.text, point) for point in parse_probe_points(probe)]
        except InvalidInput as error:
            found.append((probe, error))
    points = [point for _text, point in found if isinstance(point, ProbePoint) and not point.is_in_program]
    result = listed(params, points) if params["list"] else looked_up(params, points)
    judged = iter(result["probes"])
    rows = [
        next(judged) if isinstance(point, ProbePoint) and not point.is_in_program else unresolved(text, point)
        for text, point in found
    ]
    return {"changed": False, **result, "probes": rows, "seconds": round(time.monotonic() - started, 3)}


def looked_up(params: t.Mapping[str, t.Any], points: list[ProbePoint]) -> dict[str, t.Any]:
    """Look probe points up in this host's running kernel."""
    for option in _OF_LISTS:
        if params[option]:
            raise InvalidInput(option, params[option], "The option needs list: true, on a builder")
    release = os.uname().release
    # An alias of a tapset may name any module.
    names = [point.module or "*" for point in points if point.module is not None or point.family == "alias"]
    build_ids = module_build_ids(Root(), names)
    rows = resolve_all(points, read_facts(Root(), release), params["limit"])
    return {"kernel": release, "probes": rows, "module_build_ids": build_ids}


def listed(params: t.Mapping[str, t.Any], points: list[ProbePoint]) -> dict[str, t.Any]:
    """List probe points of one of this builder's kernels."""
    from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import listing, store, toolchain

    try:
        accept = re.compile(params["match"]).search if params["match"] else None
    except re.error as error:
        raise InvalidInput("match", params["match"], f"The pattern is not a regular expression: {error}") from error
    store.check_owner(params["store"])
    root = Root()
    tools = toolchain.read_toolchain(root)
    if tools.stap is None:
        from ansible_collections.tapvirt.host.plugins.module_utils._core import packages

        helps = packages.remedy("toolchain", packages.read_distribution(root))
        problem = "A list needs SystemTap's translator (stap), which is not installed on this host"
        raise InvalidInput("list", True, problem, f"Delegate the task to a builder, or {helps}")
    kernels = toolchain.read_kernels(root, tools.compilers)
    release = params["kernel"] or (next(iter(kernels)) if len(kernels) == 1 else None)
    if release is None:
        known = ", ".join(sorted(kernels)) or "no kernel"
        raise InvalidInput("kernel", None, f"A release is needed, because this builder has headers for {known}")
    kernel = toolchain.find_kernel(kernels, release, None)
    rows = listing.list_points(params, points, accept, kernel, root)
    return {"kernel": release, "probes": rows, "module_build_ids": params["module_build_ids"] or {}}


def main() -> None:
    run_module(ARGUMENT_SPEC, body, NEEDS_PATH)


if __name__ == "__main__":
    main()
