# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module that only reads gets to the host. Private to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  transport:
    description:
      - How the module gets to the host. The result is the same.
      - V(module) packs it as Ansible packs every module. V(source) sends its own source files to the host's Python,
        which needs a fraction of the time; it needs pipelining, and a Python that is set or was discovered before.
      - V(auto) is V(source) where that is possible, else V(module).
    type: str
    choices: [auto, source, module]
    default: auto
"""
