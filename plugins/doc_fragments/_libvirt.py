# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How every libvirt module reaches its hypervisor. Private to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  uri:
    description:
      - Which libvirt, as a connection URI.
      - V(qemu:///system) is the host's own, with its daemons. V(qemu:///embed?root=/DIR) is libvirt's QEMU driver
        inside the module, without any daemon, with all its files below a directory of at most 54 characters. A new
        directory is prepared so that domains can be started from it, which appears in the plan. Its C(etc/qemu.conf)
        lets guests run as the user who runs the module; an existing file is kept. One run at a time uses the directory,
        others wait.
      - V(xen:///system), V(qemu:///session), V(test:///default) and remote URIs work as far as libvirt's drivers do.
    type: str
    default: qemu:///system
  connect_timeout_seconds:
    description: How long to wait for an answer when the connection is opened, in seconds; at least 1.
    type: int
    default: 60
  trace_api:
    description:
      - Whether the result has C(api_trace). Its C(calls) are the first 200 calls of libvirt's API in their order, each
        with the C(name) of what it was made on, its C(milliseconds) and its C(libvirt_error); its C(totals) are of all
        calls, the dearest first; C(truncated) tells whether the list was cut. Arguments are not told.
    type: bool
    default: false
requirements:
  - libvirt's Python binding on the host (C(python3-libvirt), C(libvirt-python), C(python3-libvirt-python)),
    for any of its Pythons
"""
