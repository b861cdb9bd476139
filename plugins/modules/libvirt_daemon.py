#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_daemon
short_description: Set and read the log of a libvirt daemon
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Sets the log filters and outputs of a libvirt daemon while it runs and, on request, for its next start. Nothing is
    restarted, so domains and clients are not affected.
  - Returns the end of the log, limited by time and size.
  - Debug logs of libvirt contain the XML of domains with its secrets. Restrict who may read the result.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_libvirt
options:
  daemon:
    description: Which daemon. V(libvirtd) is the one that does everything; the others do a part each.
    type: str
    choices:
      - libvirtd
      - virtqemud
      - virtxend
      - virtlxcd
      - virtnetworkd
      - virtstoraged
      - virtnodedevd
      - virtsecretd
      - virtnwfilterd
      - virtinterfaced
      - virtproxyd
      - virtlogd
      - virtlockd
    default: libvirtd
  log_filters:
    description:
      - What is logged, each as C(LEVEL:NAME). The level is 1 (debug), 2 (info), 3 (warning) or 4 (error); the name is
        that of a part of libvirt, such as C(qemu) or C(rpc). The first filter that matches decides.
      - An empty list takes all filters away. Without the option, they stay as they are.
    type: list
    elements: str
  log_outputs:
    description:
      - Where to, each as C(LEVEL:stderr), C(LEVEL:journald), C(LEVEL:syslog:NAME) or C(LEVEL:file:/PATH).
      - Without the option, they stay as they are.
    type: list
    elements: str
  persist:
    description: Whether the daemon's file in C(/etc/libvirt) says the same, for the daemon's next start.
    type: bool
    default: false
  fetch_log:
    description: Whether the last part of the log is returned, from the first file of the outputs, else from journald.
    type: bool
    default: false
  log_seconds:
    description: Of how many seconds back, 1 to 604800.
    type: int
    default: 60
  log_max_bytes:
    description: How much of it at most, from its end, 1 to 524288.
    type: int
    default: 65536
  log_match:
    description: Only lines in which this regular expression is found; looked for in the last 16 MiB of a file.
    type: str
requirements:
  - C(virt-admin) on the host (Debian - C(libvirt-clients))
"""

EXAMPLES = r"""
- name: See what the QEMU driver does
  tapvirt.host.libvirt_daemon:
    log_filters: ["1:qemu", "3:rpc"]
    log_outputs: ["1:file:/var/log/libvirt/libvirtd.log", "3:journald"]

- name: Fetch the errors of the last five minutes
  tapvirt.host.libvirt_daemon:
    fetch_log: true
    log_seconds: 300
    log_match: ": error :"
  register: daemon

- name: Be quiet again, after the next start too
  tapvirt.host.libvirt_daemon:
    log_filters: []
    log_outputs: ["3:journald"]
    persist: true
"""

RETURN = r"""
logging:
  description:
    - C(running) is what is logged now, C(stored) what the daemon's file says for its next start. Both have
      C(log_filters) and C(log_outputs); null where the file does not say.
    - The daemon tells a filter with a wildcard on either side of its name.
  returned: success
  type: dict
  sample:
    running: {log_filters: ["1:*qemu*"], log_outputs: ["3:journald"]}
    stored: {log_filters: ["1:qemu"], log_outputs: null}
log:
  description: C(source) (a file, or C(journald)), C(text), its C(bytes), and whether it was C(truncated).
  returned: with O(fetch_log)
  type: dict
  sample:
    source: journald
    text: "2026-11-23T17:37:12+0000 web1 libvirtd[811]: internal error: ...\n"
    bytes: 69
    truncated: false
plan:
  description: Each change with its place, before, after, the means and the reason.
  returned: success
  type: list
  elements: dict
  sample:
    - {what: libvirtd log_filters, before: [], after: ["1:qemu"], how: virt-admin, why: as wanted}
error:
  description: >-
    Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
    is at fault.
  returned: failure
  type: dict
  sample:
    option: log_seconds
    value: 0
    problem: The time is a number of seconds from 1 to 604800.
    hint: null
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.plan import converge
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.daemon import logging as daemons

ARGUMENT_SPEC = {
    "daemon": {"type": "str", "choices": list(daemons.DAEMONS), "default": "libvirtd"},
    "log_filters": {"type": "list", "elements": "str"},
    "log_outputs": {"type": "list", "elements": "str"},
    "persist": {"type": "bool", "default": False},
    "fetch_log": {"type": "bool", "default": False},
    "log_seconds": {"type": "int", "default": 60},
    "log_max_bytes": {"type": "int", "default": 65536},
    "log_match": {"type": "str"},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params, root, name = module.params, Root(), module.params["daemon"]
    wanted = daemons.read_wanted(params["log_filters"], params["log_outputs"])
    window = daemons.read_window(params["log_seconds"], params["log_max_bytes"], params["log_match"])
    plan, observed = converge(
        module.check_mode,
        observe=lambda: daemons.observe(root, name),
        plan=lambda found: daemons.plan(name, wanted, found, params["persist"]),
        apply=lambda planned, _found: daemons.apply(root, name, planned),
    )
    result = plan.result(module._diff)
    result["logging"] = {"running": observed.running.row(), "stored": observed.stored.row()}
    if params["fetch_log"]:
        result["log"] = daemons.read_log(name, observed.running.outputs or (), window)
    return result


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
