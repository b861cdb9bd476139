# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module as Ansible does; for a role, name the options of its tables in messages."""

from __future__ import annotations

from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.origins import TableAction


class ActionModule(TableAction):
    OPTION = "domains"
    VARIABLE = "domains_origins"
