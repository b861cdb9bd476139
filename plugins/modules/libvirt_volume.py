#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_volume
short_description: Create, grow, fill and delete libvirt storage volumes
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Converges many storage volumes in one task on one connection. All volumes are validated before any is changed. If
    one fails later, the others are still processed and reported.
  - An existing volume keeps its content. It grows in place if libvirt can do that, which is in pools of files and of
    the types C(rbd) and C(sheepdog). Shrinking loses data and requires O(force_shrink=true). Format and backing file
    cannot change in place. Another format or backing file is an error, since nothing is deleted to create the volume
    again.
  - A volume that does not fit is refused before anything changes. The pool needs the space that libvirt allocates at
    once, which is the whole capacity for a raw volume without O(allocation) and nothing for other formats. A volume
    with a larger capacity than the whole pool is refused too.
  - The pool is refreshed first, so that files from other programs are seen. In check mode, only a pool whose directory
    on this host is readable is refreshed, since libvirt stops a pool that it cannot read.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  volumes:
    description: >-
      The volumes, in the order in which they are made. Instead of it, one volume can be given by O(pool), O(name) and
      the options beside them.
    type: list
    elements: dict
    suboptions:
      pool:
        description: The storage pool that it is in, which has to be active.
        type: str
        required: true
      name:
        description: The volume's name, in a pool of files the name of the file.
        type: str
        required: true
      state:
        description:
          - V(present) creates or changes the volume as described.
          - V(absent) deletes the volume and its content. Refused while a domain, running or not, or another volume
            uses it.
        type: str
        choices: [present, absent]
        default: present
      capacity:
        description:
          - How much it holds, in any of libvirt's units, V(10GiB), V(500 MB), V(4096) (bytes). V(KiB), V(MiB), V(GiB)
            and V(K), V(M), V(G) count in 1024, V(KB), V(MB), V(GB) in 1000.
          - A new volume needs one, unless O(source), O(clone_from) or O(backing) bring theirs.
        type: str
      allocation:
        description: How much of a new volume is allocated at once, in the same units. Not compared later.
        type: str
      format:
        description:
          - Such as V(raw) or V(qcow2). A new volume is V(raw) without it, V(qcow2) where it has a O(backing), and as
            its O(source) or O(clone_from) where there is one.
        type: str
      backing:
        description: The backing file of a new volume.
        type: dict
        suboptions:
          path:
            description: Its path, absolute.
            type: str
            required: true
          format:
            description: Its format. It is never guessed from what a guest may have written there.
            type: str
            required: true
      xml:
        description:
          - The definition, as in libvirt's storage volume XML, instead of O(capacity), O(allocation), O(format) and
            O(backing). These four are compared for an existing volume; permissions and the like are for a new one.
        type: str
      source:
        description:
          - A file of the managed host whose content goes into the volume when it is made, a raw image or a whole qcow2
            image. Read back afterwards. Progress is written to the host's log.
        type: str
      checksum:
        description:
          - The SHA-256 of O(source). With it, the content of an existing volume is compared on every run and uploaded
            again if it differs. This is refused if a domain or another volume uses the volume.
          - Without it, an existing volume is assumed to have its content, even if the host went down while a run was
            filling it.
        type: str
      clone_from:
        description:
          - A volume of the same pool, there already or before this one in O(volumes), whose content a new volume is
            made from. Refused while a running domain may write to it.
        type: str
      force_shrink:
        description: Whether the volume may become smaller. What is beyond its new end is lost.
        type: bool
        default: false
      allow_in_use:
        description: >-
          Whether it may be deleted, resized, overwritten or copied while domains or other volumes use it.
        type: bool
        default: false
  pool:
    description: As in O(volumes), for one volume.
    type: str
  name:
    description: As in O(volumes), for one volume.
    type: str
  state:
    description: As in O(volumes), for one volume.
    type: str
    choices: [present, absent]
    default: present
  capacity:
    description: As in O(volumes), for one volume.
    type: str
  allocation:
    description: As in O(volumes), for one volume.
    type: str
  format:
    description: As in O(volumes), for one volume.
    type: str
  backing:
    description: As in O(volumes), for one volume.
    type: dict
    suboptions:
      path:
        description: Its path, absolute.
        type: str
        required: true
      format:
        description: Its format.
        type: str
        required: true
  xml:
    description: As in O(volumes), for one volume.
    type: str
  source:
    description: As in O(volumes), for one volume.
    type: str
  checksum:
    description: As in O(volumes), for one volume.
    type: str
  clone_from:
    description: As in O(volumes), for one volume.
    type: str
  force_shrink:
    description: As in O(volumes), for one volume.
    type: bool
    default: false
  allow_in_use:
    description: As in O(volumes), for one volume.
    type: bool
    default: false
notes:
  - A pool of block devices, such as C(logical), rounds capacities up. A volume there that has more than O(capacity) is
    as wanted, unless O(force_shrink) is given; that it has another capacity in the end is refused.
seealso:
  - module: tapvirt.host.libvirt_volume_info
  - module: tapvirt.host.libvirt_pool
"""

EXAMPLES = r"""
- name: Create a base image, a disk backed by it, and a data disk
  tapvirt.host.libvirt_volume:
    volumes:
      - {pool: images, name: base.qcow2, source: /srv/downloads/base.qcow2, checksum: "{{ base_sha256 }}"}
      - pool: images
        name: web1.qcow2
        capacity: 20GiB
        backing: {path: /srv/images/base.qcow2, format: qcow2}
      - {pool: images, name: web1-data.qcow2, format: qcow2, capacity: 100 GiB}

- name: An old disk goes
  tapvirt.host.libvirt_volume:
    pool: images
    name: old7.qcow2
    state: absent
"""

RETURN = r"""
volumes:
  description: One row for each volume, in the order of the list.
  returned: always, also when a volume failed
  type: list
  elements: dict
  contains:
    pool: {description: The pool., type: str}
    name: {description: The volume., type: str}
    state: {description: "C(present) or C(absent). In check mode, what it would be.", type: str}
    path: {description: The path; null while the volume is absent., type: str}
    format: {description: The format; null while the volume is absent., type: str}
    capacity_bytes: {description: The capacity; null while the volume is absent., type: int}
    allocation_bytes: {description: The space that it uses in the pool; null while the volume is absent., type: int}
    checksum:
      description: The SHA-256 of its content as far as O(source) goes, where that was read; null where it was not.
      type: str
    changed: {description: "Whether something was, or would be, changed.", type: bool}
    error: {description: "Why this volume made the task fail, as in RV(error); else null.", type: dict}
  sample:
    - pool: images
      name: web1.qcow2
      state: present
      path: /srv/images/web1.qcow2
      format: qcow2
      capacity_bytes: 21474836480
      allocation_bytes: 200704
      checksum: null
      changed: true
      error: null
plan:
  description: Each change with its place, before, after, the means and the reason.
  returned: always
  type: list
  elements: dict
  sample:
    - {what: images/web1.qcow2 capacity, before: 10737418240, after: 21474836480, how: resize, why: as wanted}
error:
  description:
    - Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
      is at fault.
  returned: failure
  type: dict
  sample:
    option: "volumes[1].capacity"
    value: "10GiB"
    problem: The volume has 20 GiB, and shrinking it loses the data beyond its new end.
    hint: "Set force_shrink: true to shrink it."
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import CONNECTION_SPEC
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.item_run import task_entries
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.storage.volume_run import VolumeRun, read_wanted

_VOLUME_SPEC = {
    "pool": {"type": "str"},
    "name": {"type": "str"},
    "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
    "capacity": {"type": "str"},
    "allocation": {"type": "str"},
    "format": {"type": "str"},
    "backing": {
        "type": "dict",
        "options": {"path": {"type": "str", "required": True}, "format": {"type": "str", "required": True}},
    },
    "xml": {"type": "str"},
    "source": {"type": "str"},
    "checksum": {"type": "str"},
    "clone_from": {"type": "str"},
    "force_shrink": {"type": "bool", "default": False},
    "allow_in_use": {"type": "bool", "default": False},
}
_NEEDED = {name: {"type": "str", "required": True} for name in ("pool", "name")}
ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    **_VOLUME_SPEC,
    "volumes": {"type": "list", "elements": "dict", "options": {**_VOLUME_SPEC, **_NEEDED}},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    option, entries = task_entries(params, "volumes")
    wanted = read_wanted(entries, option)
    run = VolumeRun(wanted, module.log, option)
    return run.converge(params["uri"], params["connect_timeout_seconds"], module.check_mode, module._diff)


def main() -> None:
    run_libvirt_module(
        ARGUMENT_SPEC,
        body,
        mutually_exclusive=[("volumes", name) for name in _VOLUME_SPEC],
        required_one_of=[("volumes", "name")],
        required_together=[("pool", "name")],
    )


if __name__ == "__main__":
    main()
