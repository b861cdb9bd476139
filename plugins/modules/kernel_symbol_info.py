#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_symbol_info
short_description: Look up symbols of a kernel or of Xen
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Looks up names, shell patterns and regular expressions in C(/proc/kallsyms), in one pass, or in another list of
    symbols.
  - Distinguishes missing symbols, symbols with hidden addresses, and symbols that this kernel does not list.
  - Returns for each symbol whether modules may use it and whether a kprobe can be placed on it, as far as the user of
    the task can see that.
  - Compares two lists and reports whether they belong to the same kernel, regardless of address randomization. If a
    file belongs to another kernel, none of its addresses is returned.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_kernel
  - tapvirt.host._transport
options:
  symbols:
    description:
      - What to look up. Each entry is a name (V(vfs_read)), a shell pattern (V(kvm_vcpu_*)), or a V(~) followed by a
        regular expression (V(~^kvm_.*_exit$)) that is searched in the names.
    type: list
    elements: str
    required: true
  owner:
    description:
      - Only symbols of this owner, that is V(vmlinux) for the kernel image, or the name of a module.
    type: str
  limit:
    description:
      - How many matches to return at most, in all entries together.
    type: int
    default: 40
  source:
    description:
      - Where to look. V(kallsyms) is the running kernel's own table.
      - V(system_map) is the C(System.map) of the running kernel's release, in C(/boot), C(/lib/modules) or
        C(/usr/lib/debug). Its addresses are those of the link, without address randomization. A placeholder
        that only names the package with the real file is recognised.
      - V(module_symvers) is the C(Module.symvers) of its headers, with what it exports, and no addresses.
      - V(xen_syms) is the Xen hypervisor, from C(/proc/xen/xensyms) in a control domain, else from the C(xen-syms)
        file of the one that runs, or its map.
    type: str
    choices: [kallsyms, system_map, module_symvers, xen_syms]
    default: kallsyms
  path:
    description:
      - The file of O(source), if it is at an unusual path.
    type: path
  compare_with:
    description:
      - A second source to compare O(source) with. V(system_map) compared with V(kallsyms) tells whether the file
        belongs to the kernel that runs.
    type: str
    choices: [kallsyms, system_map, module_symvers, xen_syms]
  compare_path:
    description:
      - The file of O(compare_with), if it is at an unusual path.
    type: path
"""

EXAMPLES = r"""
- name: Are these there, and can they be probed?
  tapvirt.host.kernel_symbol_info:
    symbols: [vfs_read, do_sys_openat2, "kvm_vcpu_*"]
  register: found

- name: Name the functions that cannot be probed
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.reason or item.probeable_reason }}"
  loop: "{{ found.symbols | rejectattr('probeable') }}"
  loop_control:
    label: "{{ item.name }}"

- name: Exit handlers of one module
  tapvirt.host.kernel_symbol_info:
    symbols: ["~_(exit|intercept)ion$"]
    owner: kvm_amd
    limit: 200

- name: Addresses of the link, only if the file belongs to the kernel that runs
  tapvirt.host.kernel_symbol_info:
    symbols: [vfs_read]
    source: system_map
    compare_with: kallsyms
"""

RETURN = r"""
symbols:
  description: One row for each entry of O(symbols), in its order.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The entry.
      type: str
      returned: always
      sample: vfs_read
    status:
      description:
        - V(found), or V(ambiguous) when several different symbols have the name.
        - V(restricted) when it is there, but the kernel hides its address from this user.
        - V(absent) when it does not exist; V(data_unavailable) when it is no function, and the table would not list a
          variable, when there is no table, or when O(compare_with) shows it to be another kernel's.
      type: str
      returned: always
      sample: found
    reason:
      description: The status in words, where it needs some.
      type: str
      returned: always
      sample: 2 symbols have this name
    count:
      description: How many symbols match.
      type: int
      returned: always
      sample: 1
    matches:
      description:
        - The matches. C(type) is the letter that nm(1) prints; an address is text, as JSON numbers cannot hold it.
        - Where Module.symvers has the symbol, C(gpl_only) and C(namespace) say how it is exported.
      type: list
      elements: dict
      returned: always
      sample: [{"name": "vfs_read", "type": "T", "address": "0xffffffff813de0f0", "owner": "vmlinux"}]
    truncated:
      description: Whether O(limit) left matches out.
      type: bool
      returned: always
      sample: false
    exported:
      description: Whether modules may use it; null when that cannot be known, or differs between the matches.
      type: bool
      returned: always
      sample: true
    gpl_only:
      description: Whether only modules under the GPL may use it.
      type: bool
      returned: for a name found in Module.symvers
      sample: true
    namespace:
      description: The namespace that it is exported in.
      type: str
      returned: for a name found in Module.symvers
      sample: null
    probeable:
      description: Whether a kprobe can be put on it; null when that cannot be known, or differs between the matches.
      type: bool
      returned: always
      sample: true
    probeable_reason:
      description: Why not, or why it is not known.
      type: str
      returned: for a name
      sample: is in the kernel's kprobe blacklist
    section:
      description:
        - The part of the kernel image's text that it lies in, as V(text), V(init), V(entry), V(noinstr) or V(kprobes);
          null for what is elsewhere, when addresses are hidden, or when symbols of this name lie in several.
      type: str
      returned: for a name
      sample: text
    ftrace:
      description: Whether ftrace can hook it; null when tracefs cannot be read.
      type: bool
      returned: for a name
      sample: true
    drift:
      description:
        - With O(compare_with), V(none), V(only_here) or V(only_there) when one of the sources does not have the name,
          or V(moved) when it lies elsewhere in the other kernel; null when neither has it.
      type: str
      returned: for a name
      sample: null
    aliases:
      description: Other names of the same address; null when addresses are hidden.
      type: list
      elements: str
      returned: for a name
      sample: []
    variants:
      description: What the compiler made of the function (C(kinds) is a list of V(isra), V(part), V(cold) and others).
      type: list
      elements: dict
      returned: for a name
      sample: []
    candidates:
      description: Functions with the most similar names, if the name does not exist.
      type: list
      elements: str
      returned: for a name
      sample: []
source:
  description:
    - The source that was read. C(state) is V(readable), V(restricted), V(absent), V(denied), V(damaged), or
      V(placeholder) for a file that only says where the real one is, with the C(reason).
  returned: always
  type: dict
  sample: {"kind": "kallsyms", "name": "/proc/kallsyms", "state": "readable", "reason": null}
comparison:
  description:
    - What O(compare_with) showed, null without it. C(verdict) is V(same_kernel), V(another_kernel) or V(unknown), with
      the C(reason). C(compared) functions were compared, C(differing) of them lie at another distance from C(_stext),
      such as C(examples).
    - Of the same kernel, C(offset) is what has to be added to an address of O(source), and C(build_id) the one it has.
  returned: always
  type: dict
  sample: {"verdict": "same_kernel", "compared": 98263, "differing": 0, "offset": "0x20e00000"}
truncated:
  description: Whether O(limit) left matches out.
  returned: always
  type: bool
  sample: false
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: "symbols[0]"
    value: "vfs read"
    problem: An entry is the name of a symbol, a shell pattern, or ~ and a regular expression.
    hint: null
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import TRANSPORT, run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.lookup import Place, look_up
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.symbols.sources import SOURCES

ARGUMENT_SPEC: dict[str, t.Any] = {
    "symbols": {"type": "list", "elements": "str", "required": True},
    "owner": {"type": "str"},
    "limit": {"type": "int", "default": 40},
    "source": {"type": "str", "choices": list(SOURCES), "default": "kallsyms"},
    "path": {"type": "path"},
    "compare_with": {"type": "str", "choices": list(SOURCES)},
    "compare_path": {"type": "path"},
    **TRANSPORT,
}
RULES: dict[str, t.Any] = {"required_by": {"compare_path": "compare_with"}}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    if params["limit"] < 1:
        raise InvalidInput("limit", params["limit"], "The limit must be 1 or more.")
    place = Place(params["source"], params["path"])
    against = Place(params["compare_with"], params["compare_path"]) if params["compare_with"] else None
    found = look_up(Root(), params["symbols"], params["owner"], params["limit"], place, against)
    return {"changed": False, **found}


def main() -> None:
    run_module(ARGUMENT_SPEC, body, **RULES)


if __name__ == "__main__":
    main()
