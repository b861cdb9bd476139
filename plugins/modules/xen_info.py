#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_info
short_description: Read which Xen runs below a kernel and which Xen images are installed
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Returns what the Xen hypervisor below the running kernel reports about itself, in a control domain and in a guest.
  - Reads the installed Xen images, compressed or not. Returns for each the type of the file, how a boot loader enters
    it, whether it is the running one, and which file has its symbols.
  - Works for every user. What this user or this domain may not see is null, and listed as restricted.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._attributes.group_kernel
  - tapvirt.host._transport
options:
  boot:
    description:
      - The directory with the installed images.
    type: path
    default: /boot
"""

EXAMPLES = r"""
- name: Which Xen is this, and which one will the next boot use?
  tapvirt.host.xen_info:
  register: xen

- name: Say where an image was installed and not booted yet
  ansible.builtin.debug:
    msg: "{{ item.path }} does not run"
  loop: "{{ xen.images | selectattr('running', 'equalto', false) }}"
  loop_control:
    label: "{{ item.path }}"
"""

RETURN = r"""
running:
  description: The Xen below this kernel; null if there is no Xen.
  returned: always
  type: dict
  contains:
    version:
      description: Its version.
      type: str
      returned: always
      sample: 4.20.2
    role:
      description: V(control_domain) or V(guest).
      type: str
      returned: always
      sample: control_domain
    guest_type:
      description: How this domain is virtualized, as V(pv), V(pvh) or V(hvm).
      type: str
      returned: always
      sample: pv
    uuid:
      description: The UUID of this domain.
      type: str
      returned: always
      sample: 00000000-0000-0000-0000-000000000000
    capabilities:
      description: The kinds of guests that it can run.
      type: list
      elements: str
      returned: always
      sample: [xen-3.0-x86_64, hvm-3.0-x86_64]
    build_id:
      description: The build-id of its image.
      type: str
      returned: always
      sample: 151b373fd64b321593bf987fd923cd10dabadac4
    changeset:
      description: What its source was, as far as the build noted it.
      type: str
      returned: always
      sample: null
    virtual_start:
      description: Where its part of the address space begins, in hexadecimal.
      type: str
      returned: always
      sample: ffff800000000000
    compiler:
      description: What compiled it.
      type: str
      returned: always
      sample: x86_64-linux-gnu-gcc (Debian 14.2.0-19) 14.2.0
    compiled_by:
      description: Who compiled it.
      type: str
      returned: always
      sample: pkg-xen-devel
    compile_date:
      description: When it was compiled.
      type: str
      returned: always
      sample: Mon Jan  1 00:00:00 UTC 2024
    page_bytes:
      description: The size of a page.
      type: int
      returned: always
      sample: 4096
    restricted:
      description: Keys of this result that Xen hides from this domain, or the kernel from this user.
      type: list
      elements: str
      returned: always
      sample: []
images:
  description: The images in O(boot), sorted by name, at most 32.
  returned: always
  type: list
  elements: dict
  contains:
    path:
      description: The file.
      type: str
      returned: always
      sample: /boot/xen-4.17-amd64.gz
    version:
      description: The version in its name.
      type: str
      returned: always
      sample: 4.17-amd64
    state:
      description: V(readable), V(restricted), V(damaged) or V(absent) (a link to nothing).
      type: str
      returned: always
      sample: readable
    reason:
      description: Why it is not readable.
      type: str
      returned: always
      sample: null
    size_bytes:
      description: The size of the file.
      type: int
      returned: always
      sample: 1178795
    compression:
      description: V(gzip), or null for a file that is not compressed.
      type: str
      returned: always
      sample: gzip
    format:
      description: What the uncompressed file is, as V(elf32), V(elf64), V(pe32) or V(pe32plus).
      type: str
      returned: always
      sample: elf32
    machine:
      description: The processor that its header names. An x86 image names V(i386), as boot loaders enter it in 32 bits.
      type: str
      returned: always
      sample: i386
    entry:
      description: The address at which it is entered.
      type: str
      returned: always
      sample: "0x200000"
    entry_kind:
      description: V(multiboot), V(efi), V(elf) for an ELF file without a multiboot header, or V(pe).
      type: str
      returned: always
      sample: multiboot
    multiboot:
      description: The multiboot headers, with the C(version) of the specification and the file C(offset).
      type: list
      elements: dict
      returned: always
      sample: [{"version": 1, "offset": 136}, {"version": 2, "offset": 152}]
    build_id:
      description: The build-id of an ELF file.
      type: str
      returned: always
      sample: 151b373fd64b321593bf987fd923cd10dabadac4
    running:
      description: Whether it is the image that runs, by its build-id; null when that cannot be known.
      type: bool
      returned: always
      sample: true
    symbols:
      description:
        - The file C(xen-syms) of the same version, with C(path), C(state), C(reason), C(size_bytes), C(format),
          C(machine), C(build_id), the C(count) of its symbols, whether its build-id C(matches) the image, and the
          C(map) beside it. Null if the image has no symbols.
      type: dict
      returned: always
      sample: {"path": "/usr/lib/debug/boot/xen-syms-4.17-amd64", "format": "elf64", "count": 6885, "matches": true}
truncated:
  description: Whether there were more than 32 images.
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
    option: "boot"
    value: '/boot\0'
    problem: A text cannot contain a NUL byte.
    hint: null
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import TRANSPORT, run_module
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image.xen import gather

ARGUMENT_SPEC: dict[str, t.Any] = {
    "boot": {"type": "path", "default": "/boot"},
    **TRANSPORT,
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    return {"changed": False, **gather(Root(), module.params["boot"])}


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
