# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception the lab raises for anything a user has to know."""

from __future__ import annotations


class LabError(Exception):
    """What went wrong, as one paragraph for the user."""
