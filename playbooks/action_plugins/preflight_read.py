# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read one host for the playbook preflight. Private to the playbook."""

from __future__ import annotations

from ansible_collections.tapvirt.host.plugins.plugin_utils._preflight.reader import ReadAction


class ActionModule(ReadAction):
    pass
