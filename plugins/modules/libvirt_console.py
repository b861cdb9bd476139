#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_console
short_description: Read the serial console of a running libvirt domain
author: The tapvirt.host authors (@tapvirt)
version_added: 0.1.0
description:
  - Returns what a domain prints on its first console from now on, until a pattern, a size or a deadline. What was
    printed before the module looked is gone, as it is with C(virsh console).
  - A console that somebody else reads is left to them, and the module says so.
extends_documentation_fragment:
  - tapvirt.host._attributes.info_module
  - tapvirt.host._libvirt
options:
  name:
    description: The domain.
    type: str
    required: true
  until:
    description:
      - A Python regular expression; reading stops as soon as it is found anywhere in the text so far. C(^) and C($)
        match at line ends, C(.) matches a line end too. Plain words are found as they are.
      - Without it, or where it is not found, reading goes on until O(timeout); that is no failure, see RV(matched).
    type: str
  timeout:
    description: How long to read at most, in seconds.
    type: float
    default: 30
  max_bytes:
    description: How much to read at most.
    type: int
    default: 65536
"""

EXAMPLES = r"""
- name: Wait for the login prompt
  tapvirt.host.libvirt_console:
    name: web1
    until: 'login:'
    timeout: 60
  register: console
  failed_when: not console.matched
"""

RETURN = r"""
text:
  description: What the domain printed - without escape sequences, with line feeds as line ends.
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
  description: C(pattern), C(size), C(timeout) or C(end), the end of the domain's run.
  returned: success
  type: str
  sample: pattern
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection import (
    CONNECTION_SPEC,
    connected_for_reading,
    require_binding,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.console import capture, compile_pattern

ARGUMENT_SPEC = {
    **CONNECTION_SPEC,
    "name": {"type": "str", "required": True},
    "until": {"type": "str"},
    "timeout": {"type": "float", "default": 30},
    "max_bytes": {"type": "int", "default": 65536},
}


def body(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    params = module.params
    pattern = compile_pattern(params["until"])
    require_binding()
    with connected_for_reading(params["uri"], params["connect_timeout_seconds"], console=True) as connection:
        seen = capture(connection, params["name"], pattern, params["timeout"], params["max_bytes"])
    return {
        "changed": False,
        "text": seen.text,
        "bytes": seen.bytes,
        "matched": seen.stopped_by == "pattern",
        "truncated": seen.stopped_by == "size",
        "stopped_by": seen.stopped_by,
    }


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
