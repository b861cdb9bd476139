# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module says of itself. Private to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: Plans and returns what would change, and changes nothing.
  diff_mode:
    support: full
    description: Returns the plan as before and after.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
  platform:
    support: full
    platforms: linux
    description: Linux hosts.
"""

    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: Only reads; check mode makes no difference.
  diff_mode:
    support: N/A
    description: Only reads.
  idempotent:
    support: full
    description: Only reads.
  platform:
    support: full
    platforms: linux
    description: Linux hosts.
"""

    FACTS_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: Only reads; check mode makes no difference.
  diff_mode:
    support: N/A
    description: Only reads.
  facts:
    support: full
    description: Returns C(ansible_facts) only.
  idempotent:
    support: full
    description: Only reads.
  platform:
    support: full
    platforms: linux
    description: Linux hosts.
"""

    GROUP_KERNEL = r"""
options: {}
attributes:
  action_group:
    support: full
    membership: [tapvirt.host.kernel]
    description: Use C(group/tapvirt.host.kernel) in C(module_defaults) to set defaults for this module.
"""

    GROUP_LIBVIRT = r"""
options: {}
attributes:
  action_group:
    support: full
    membership: [tapvirt.host.libvirt]
    description: Use C(group/tapvirt.host.libvirt) in C(module_defaults) to set defaults for this module.
"""

    GROUP_STAP = r"""
options: {}
attributes:
  action_group:
    support: full
    membership: [tapvirt.host.stap]
    description: Use C(group/tapvirt.host.stap) in C(module_defaults) to set defaults for this module.
"""
