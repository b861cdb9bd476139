# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of libvirt's test driver: its objects are in the memory of the process that opens it."""

from __future__ import annotations

import pathlib


def node_uri(directory: pathlib.Path, node: str) -> str:
    """Write the XML of a host to a directory, and return the URI of that host; each connection starts with it."""
    path = directory / "node.xml"
    path.write_text(node, encoding="utf-8")
    return f"test://{path}"
