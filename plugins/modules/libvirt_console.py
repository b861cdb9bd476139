#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_console
short_description: Read the serial console of a libvirt domain, from now on or from its start
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
description:
  - Returns the output of a domain's console from now on, until a pattern, a size or a deadline. Earlier output is lost,
    as with C(virsh console).
  - With O(start), starts a domain that is off and reads it from its first byte.
  - Does not take over a console that somebody else reads, and reports that; see O(force).
  - In check mode, nothing is started, written or taken over. A running domain is read all the same; RV(stopped_by) is
    null if nothing was read.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_libvirt
  - tapvirt.host._libvirt
options:
  name:
    description: The domain.
    type: str
    required: true
  start:
    description:
      - Have the domain run. One that is off is started paused, its console is opened, then it goes on, so that not a
        byte is lost. One that is paused goes on when its console is open.
      - One that runs is only read. Without this option a domain that is off is an error.
    type: bool
    default: false
  device:
    description:
      - Which console, port or channel, by its alias in the running domain, such as V(serial0), V(console1) or
        V(channel0). By default the first console.
      - Consoles and ports can be read if they are of type C(pty), channels if they are of type C(unix).
    type: str
  force:
    description:
      - Take the console over from its current reader.
    type: bool
    default: false
  until:
    description:
      - A Python regular expression; reading stops as soon as it is found anywhere in the text so far. C(^) and C($)
        match at newlines, C(.) matches a newline too. Plain words are found as they are. What it matches may begin
        up to 65536 characters back.
      - Without it, or where it is not found, reading goes on until O(timeout_seconds) is over. That is no failure;
        see RV(matched).
    type: str
  timeout_seconds:
    description: How long to read at most, in seconds, up to 86400.
    type: float
    default: 30
  max_bytes:
    description: How much to read at most, up to 524288, or up to 16777216 with O(dest).
    type: int
    default: 65536
  dest:
    description:
      - A file on the managed host for the bytes as they came, escape sequences and all. It is written when the reading
        has ended, whole or not at all; a new one has mode 0600. Its directory must exist.
      - A log of what was read and no state, so it does not count in RV(changed).
    type: path
"""

EXAMPLES = r"""
- name: Wait for the login prompt
  tapvirt.host.libvirt_console:
    name: web1
    until: 'login:'
    timeout_seconds: 60
  register: console
  failed_when: not console.matched

- name: Start a domain and keep all that its firmware and kernel say
  tapvirt.host.libvirt_console:
    name: web1
    start: true
    until: 'login:|Kernel panic'
    timeout_seconds: 300
    max_bytes: 1048576
    dest: /var/log/web1-boot.raw
"""

RETURN = r"""
changed:
  description: Whether the domain was started, or would be.
  returned: always
  type: bool
  sample: false
plan:
  description: The start with its place, before, after, the means and the reason; empty where the domain runs.
  returned: success
  type: list
  elements: dict
  sample:
    - what: web1 state
      before: shutoff
      after: running
      how: create_paused, resume
      why: its console is read from there on
text:
  description: >-
    What the domain printed - without escape sequences, with line feeds as newlines. With O(dest), the last 65536
    characters of it.
  returned: success
  type: str
  sample: "Debian GNU/Linux 12 web1 ttyS0\n\nweb1 login: "
bytes:
  description: How many bytes the domain printed.
  returned: success
  type: int
  sample: 45
matched:
  description: Whether O(until) was found.
  returned: success
  type: bool
  sample: true
truncated:
  description: Whether O(max_bytes) ended the reading.
  returned: success
  type: bool
  sample: false
stopped_by:
  description: >-
    C(pattern), C(size), C(timeout) or C(end), the end of the domain's run; null where check mode read nothing.
  returned: success
  type: str
  sample: pattern
path:
  description: The file that was written, or null.
  returned: success
  type: str
  sample: /var/log/web1-boot.raw
sha256:
  description: The SHA-256 of that file, or null.
  returned: success
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
error:
  description: >-
    Why the task failed. C(option), C(value), C(problem), C(hint) and C(candidates); C(option) is null where no option
    is at fault.
  returned: failure
  type: dict
  sample:
    option: name
    value: tolker
    problem: No domain has this name.
    hint: null
    candidates: [talker]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import (
    CONNECTION_SPEC,
    connected_for_reading,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.module import run_libvirt_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.console.capture import read_console, read_request

ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    "name": {"type": "str", "required": True},
    "start": {"type": "bool", "default": False},
    "device": {"type": "str"},
    "force": {"type": "bool", "default": False},
    "until": {"type": "str"},
    "timeout_seconds": {"type": "float", "default": 30},
    "max_bytes": {"type": "int", "default": 65536},
    "dest": {"type": "path"},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    request = read_request(params)
    with connected_for_reading(params["uri"], params["connect_timeout_seconds"], writing=True) as connection:
        return read_console(connection, request, module.check_mode, module._diff)


def main() -> None:
    run_libvirt_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
