# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do with the result of a run. Private to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  accept:
    description: Outcomes that are no failure of the task. The result is returned whole either way.
    type: list
    elements: str
    default: [ok, zero_hits]
    choices: [ok, zero_hits, partial_arm, overloaded, skipped, script_error, lost_output, timeout, refused]
  output:
    description:
      - A directory on the controller for what the script printed, up to C(max_output_bytes) of the run. It is made if
        missing. The file in it is called C(HOST.MODULE.txt), after the host's name in the inventory, in which all but
        letters, digits, dots, dashes and underscores is percent-encoded, and the module's name. An older file is
        replaced.
      - The output of C(run.previous_leftovers) is not fetched, only its records.
    type: str
  _stage:
    description: Internal. Which part of the run the action plugin asks for. Set by the action plugin.
    type: dict
"""
