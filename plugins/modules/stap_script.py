#!/usr/bin/python
# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stap_script
short_description: Render, check and deploy a SystemTap script
version_added: 0.1.0
author: The tapvirt.host authors (!UNKNOWN)
description:
  - Renders a Jinja2 template on the controller, checks the script without a kernel, and writes it to the host
    atomically.
  - The check needs neither SystemTap nor a kernel. It parses the whole language as C(stap -p1) of release 5.6 does,
    with the same verdict. It also refuses misspelt keywords that would be read as names, a C(printf) with a wrong
    number of values, wrong forms of probe points, and code that switches protections off. An error names the line, the
    column, the expected token, and the nearest valid word.
  - Errors that do not depend on the kernel are found before a build. These are an array that is not declared, a
    variable such as C($count) in a probe that fires at no function, writing to such a variable without O(guru),
    C(exit) without parentheses, C(elif), and template expressions that were not rendered.
  - Probes at places in programs (C(function), C(statement), C(mark) and C(plt) of C(process)) are refused. They are not
    supported yet.
  - If SystemTap is installed, its own parser checks the script too.
  - Preprocessor conditionals are evaluated for an x86_64 6.12 kernel without a configuration, as C(stap -p1) does
    without a kernel. Global variables are collected from every branch. The builder checks groups of probe points in
    braces, and probes of tapsets that SystemTap does not ship.
  - Without O(dest), the script is rendered and checked, and nothing is written.
extends_documentation_fragment:
  - tapvirt.host._attributes
  - tapvirt.host._attributes.group_stap
options:
  src:
    description: A Jinja2 template on the controller, looked for as M(ansible.builtin.template) does.
    type: path
    required: true
  dest:
    description: Where to put the script on the host. The directory is made when it is absent.
    type: path
  variables:
    description:
      - Variables for the template, beside those of the task.
      - Names of probes belong here. Values that only change a number or a string belong in O(globals).
    type: dict
    default: {}
  globals:
    description:
      - Values for global variables that the script declares. They are set when the module is loaded, so that another
        value needs no other build.
    type: dict
    default: {}
  guru:
    description:
      - Allow embedded C, C(@const), C(@kregister) and C(@kderef) in the script. Give the reason in O(guru_reason).
    type: bool
    default: false
  guru_reason:
    description: Why embedded C, which nothing checks, is needed. It is in the result of every run of the script.
    type: str
  tapsets:
    description:
      - The directories that O(tapvirt.host.stap_module#module:tapsets) gets. They are on the builder and are not read
        here.
      - Set it if the script uses arrays that they declare. The builder then checks the names of arrays.
    type: list
    elements: path
    default: []
  _content:
    description: Internal. The rendered script. Set by the action plugin; a value given in a task is overwritten.
    type: str
notes:
  - A line C(#:) C(record KIND field:type ...) in the script declares a kind of record that it prints as a JSON line.
seealso:
  - module: tapvirt.host.stap_module
"""

EXAMPLES = r"""
- name: Render and check, write nothing
  tapvirt.host.stap_script:
    src: function_latency.stp.j2
    variables: {function: vfs_read}
    globals: {threshold_us: 100}
  register: script

- name: Deploy the script
  tapvirt.host.stap_script:
    src: function_latency.stp.j2
    dest: /etc/tapvirt/vfs_latency.stp
    variables: {function: vfs_read}
"""

RETURN = r"""
script:
  description: The script, to be given to M(tapvirt.host.stap_module).
  returned: success
  type: dict
  contains:
    name:
      description: The script's name, from O(dest) or O(src).
      type: str
      sample: vfs_latency
    path:
      description: Where it was deployed, or null.
      type: str
      sample: /etc/tapvirt/vfs_latency.stp
    text:
      description: The rendered text.
      type: str
      sample: "probe begin { exit() }"
    sha256:
      description: The text's SHA-256.
      type: str
      sample: 6a0e...
    globals:
      description: The global variables that the script declares, by type (V(long), V(string), V(array), V(unknown)).
      type: dict
      sample: {"threshold_us": "long"}
    assigned:
      description: The values of O(globals), as numbers and strings.
      type: dict
      sample: {"threshold_us": 100}
    probes:
      description: The probe points.
      type: list
      elements: str
      sample: [kernel.function("vfs_read").return]
    modules:
      description:
        - The kernel modules whose functions the probe points name, wildcards as they are. Those in other branches of
          conditionals are included.
        - V(*) is among them if an alias of a tapset may name any module.
      type: list
      elements: str
      sample: [kvm]
    schema:
      description: The kinds of record that the script declares, with the types of their fields.
      type: dict
      sample: {"histogram": {"buckets": "list", "count": "integer", "key": "string", "unit": "string"}}
    guru:
      description: Whether embedded C is allowed.
      type: bool
      sample: false
    guru_reason:
      description: O(guru_reason), or null without O(guru).
      type: str
      sample: null
checked_by:
  description: V(stap) when SystemTap's parser accepted the script too, V(grammar) when only this check could be made.
  returned: success
  type: str
  sample: stap
plan:
  description: What was changed, or would be.
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
    option: src
    value: null
    problem: >-
      Script vfs_latency, line 1, column 21: '}' was found where ')' or ',' after the first argument of printf is
      expected.
    hint: null
    candidates: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import NEEDS_PATH, InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script.deploy import (
    deploy,
    prepare,
    script_name,
)

ARGUMENT_SPEC = {
    "src": {"type": "path", "required": True},
    "dest": {"type": "path"},
    "variables": {"type": "dict", "default": {}},
    "globals": {"type": "dict", "default": {}},
    "guru": {"type": "bool", "default": False},
    "guru_reason": {"type": "str"},
    "tapsets": {"type": "list", "elements": "path", "default": []},
    "_content": {"type": "str"},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    """Check everything, then deploy."""
    params = module.params
    if params["guru"] and not params["guru_reason"].strip():
        raise InvalidInput("guru_reason", params["guru_reason"], "The reason is empty", "Say why guru mode is needed")
    source = "dest" if params["dest"] else "src"
    name = script_name(source, params[source])
    own_tapsets = bool(params["tapsets"])
    row, checked_by = prepare(
        "src", name, params["_content"], params["globals"], params["guru"], own_tapsets=own_tapsets
    )
    plan = deploy(params["dest"], row["text"], module.check_mode)
    reason = params["guru_reason"] if params["guru"] else None
    script = dict(row, path=params["dest"], guru_reason=reason)
    return {"script": script, "checked_by": checked_by, **plan.result(module._diff)}


def main() -> None:
    run_module(ARGUMENT_SPEC, body, NEEDS_PATH, required_if=[("guru", True, ("guru_reason",))])


if __name__ == "__main__":
    main()
