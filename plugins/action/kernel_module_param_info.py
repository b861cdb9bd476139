# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send the module's sources where that is possible, as it costs a host far less."""

from __future__ import annotations

from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.pipelined import SourceAction


class ActionModule(SourceAction):
    pass
