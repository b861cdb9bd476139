#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: procfs_info
short_description: Read tables of C(/proc), processes and the kernel's log, typed and bounded
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Reads tables of C(/proc), values below C(/proc/sys), processes, and the kernel's log, in one task.
  - Numbers are numbers. Sizes are in bytes and end in C(_bytes), times are in seconds and end in C(_seconds), addresses
    are text. A row that the parser does not know is returned as it is.
  - Works without privileges and in containers. A value that does not exist, or that the user of the task may not see,
    is null and has a status. It is never an error.
  - Command lines of processes may contain secrets.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_kernel
  - tapvirt.host._transport
options:
  tables:
    description:
      - The tables to read. V(all) is every one of them.
    type: list
    elements: str
    choices: [all, buddyinfo, cmdline, cpuinfo, devices, diskstats, filesystems, interrupts, iomem, ioports,
              latency_stats, loadavg, locks, meminfo, modules, mountinfo, mounts, net_dev, net_snmp, partitions,
              schedstat, slabinfo, softirqs, stat, swaps, uptime, version, vmstat, zoneinfo]
  sysctls:
    description:
      - Values below C(/proc/sys), by name (V(kernel.panic)) or shell pattern (V(net.ipv4.conf.*.forwarding)). A
        pattern does not match across dots.
      - As with sysctl(8), a name whose first separator is a slash is a path (V(net/ipv4/conf/eth0.100/forwarding)).
    type: list
    elements: str
  processes:
    description:
      - Read processes. Of the first five options, all that are given have to hold.
    type: dict
    suboptions:
      pid:
        description: These numbers.
        type: list
        elements: int
      name:
        description: A shell pattern for the name, as C(ps -o comm) prints it.
        type: str
      user:
        description: The effective user, by name or number.
        type: str
      cgroup:
        description: A control group, as a shell pattern; processes in groups below it are taken, too.
        type: str
      domain:
        description: The name of a libvirt domain, found in the command lines of QEMU and of libvirt's containers.
        type: str
      sections:
        description: What to return beside the few numbers that every row has. C(maps) is a summary.
        type: list
        elements: str
        choices: [stat, status, cmdline, io, limits, cgroup, maps]
        default: []
      sort:
        description: The order. All but V(pid) begin with the largest; V(start) begins with the youngest.
        type: str
        choices: [pid, cpu, memory, threads, start]
        default: pid
      limit:
        description: How many processes to return at most.
        type: int
        default: 20
  kmsg:
    description:
      - Read the kernel's log from C(/dev/kmsg), the last records that match. Other readers miss nothing by it.
    type: dict
    suboptions:
      level:
        description: This level and the more severe ones.
        type: str
        choices: [emerg, alert, crit, err, warning, notice, info, debug]
        default: debug
      since:
        description: Seconds after boot of the first record; a negative number counts back from now.
        type: float
      pattern:
        description: A regular expression that is searched in the messages.
        type: str
      limit:
        description: How many records to return at most.
        type: int
        default: 50
  limit:
    description: How many rows of each table to return at most.
    type: int
    default: 100
  max_bytes:
    description:
      - How large the result may be as JSON, at least V(8000). A table that needs more than its share is cut, small ones
        stay whole.
    type: int
    default: 48000
"""

EXAMPLES = r"""
- name: Memory, modules and interrupts
  tapvirt.host.procfs_info:
    tables: [meminfo, modules, interrupts]
  register: tables

- name: Show how much memory is available
  ansible.builtin.debug:
    msg: "{{ tables.procfs.meminfo.MemAvailable_bytes | human_readable }}"

- name: The threads, limits and memory of one virtual machine
  tapvirt.host.procfs_info:
    processes:
      domain: web1
      sections: [cmdline, status, limits, maps]

- name: The five processes with most memory, and the kernel's warnings of the last hour
  tapvirt.host.procfs_info:
    processes: {sort: memory, limit: 5}
    kmsg: {level: warning, since: -3600}

- name: Values below /proc/sys
  tapvirt.host.procfs_info:
    sysctls: [kernel.kptr_restrict, "net.ipv4.conf.*.forwarding"]
"""

RETURN = r"""
procfs:
  description:
    - What was asked for - the tables by name, C(sysctls) (name to number, list of numbers, or text), C(processes) and
      C(kmsg) (rows). Null where there is nothing to return.
    - C(meminfo) and C(vmstat) map names to numbers, C(net_snmp) protocols to such names. C(stat) has C(cpu), C(cpus)
      and counters, C(loadavg) C(load_1m), C(load_5m), C(load_15m), C(runnable), C(entities) and C(last_pid), C(uptime)
      C(uptime_seconds) and C(idle_seconds), C(version) C(text), C(release), C(builder), C(compiler) and C(version),
      C(cmdline) C(parameters) and C(init_arguments), C(schedstat) C(version), C(timestamp) and C(cpus).
    - C(cpuinfo) has C(common), what all processors share, C(processors), where they differ, and C(machine), the rest.
      C(devices) has rows of C(major) and C(name) in C(character) and C(block).
    - All others are lists of rows. Those of C(interrupts) and C(softirqs) have a C(total) and C(counts) by CPU, without
      the CPUs that counted none, those of C(iomem) and C(ioports) C(start), C(end), C(size_bytes), C(name), C(depth).
    - Names of fields are those of the kernel's documentation, proc(5) and the files themselves.
    - An address that the kernel hides is null, and so is a limit that is unlimited. A byte that is not UTF-8 is
      written as C(\xNN).
  returned: always
  type: dict
  sample:
    meminfo: {"MemTotal_bytes": 3120132096, "HugePages_Total": 0}
    modules:
      - name: kvm
        size_bytes: 1515520
        references: 1
        used_by: [kvm_amd]
        permanent: false
        state: live
        address: "0xffffffffc0640000"
        taints: []
    sysctls: {"kernel.panic": 0, "kernel.printk": [4, 4, 1, 7]}
    processes:
      - pid: 812
        name: qemu-system-x86
        state: S
        ppid: 1
        threads: 4
        rss_bytes: 1203273728
        vsize_bytes: 3322941440
        cpu_seconds: 81.5
        start_seconds: 40.11
        uid: 64055
        user: libvirt-qemu
        unavailable: {}
    kmsg:
      - sequence: 401
        seconds: 12.25
        level: warning
        facility: 0
        message: "kvm: support for 'kvm_amd' disabled by bios"
        fields: {}
status:
  description:
    - For each key of RV(procfs), V(present), V(absent) (this kernel or mount does not have it), V(restricted) (the user
      of the task may not read it, or the kernel hides its values or some of its rows), or V(unreadable).
    - Of values below C(/proc/sys), only those that have none.
    - C(unavailable) of a process says the same of its sections.
  returned: always
  type: dict
  sample: {"meminfo": "present", "modules": "absent", "kernel.no_such": "absent"}
truncated:
  description:
    - What was cut, with the number of rows or entries left out (at least). Empty when RV(procfs) is complete.
  returned: always
  type: dict
  sample: {"slabinfo": 57}
unparsed:
  description: Rows that the parser does not know, the first few of each table, as they are.
  returned: always
  type: dict
  sample: {"interrupts": ["XYZ: 1 2 3 of a kind that is not known"]}
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: "processes.limit"
    value: 0
    problem: The limit must be 1 or more.
    hint: null
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import TRANSPORT, run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.gather import gather
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.kmsg import LEVELS
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.processes import SECTIONS, SORTS
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.tables import TABLES

ARGUMENT_SPEC: dict[str, t.Any] = {
    "tables": {"type": "list", "elements": "str", "choices": ["all", *TABLES]},
    "sysctls": {"type": "list", "elements": "str"},
    "processes": {
        "type": "dict",
        "options": {
            "pid": {"type": "list", "elements": "int"},
            "name": {"type": "str"},
            "user": {"type": "str"},
            "cgroup": {"type": "str"},
            "domain": {"type": "str"},
            "sections": {"type": "list", "elements": "str", "choices": list(SECTIONS), "default": []},
            "sort": {"type": "str", "choices": list(SORTS), "default": "pid"},
            "limit": {"type": "int", "default": 20},
        },
    },
    "kmsg": {
        "type": "dict",
        "options": {
            "level": {"type": "str", "choices": list(LEVELS), "default": "debug"},
            "since": {"type": "float"},
            "pattern": {"type": "str"},
            "limit": {"type": "int", "default": 50},
        },
    },
    "limit": {"type": "int", "default": 100},
    "max_bytes": {"type": "int", "default": 48000},
    **TRANSPORT,
}
RULES: dict[str, t.Any] = {"required_one_of": [["tables", "sysctls", "processes", "kmsg"]]}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    return {"changed": False, **gather(Root(), module.params)}


def main() -> None:
    run_module(ARGUMENT_SPEC, body, **RULES)


if __name__ == "__main__":
    main()
