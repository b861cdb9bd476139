# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the collection keeps what it builds, by default. Private to the collection."""

from __future__ import annotations

DEFAULT_STORE = "/var/lib/tapvirt/modules"
