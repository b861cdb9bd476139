# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbook preflight is about: jobs, and what a host lacks for them. Private to the collection."""

from __future__ import annotations

import dataclasses
import typing as t

Row = t.Mapping[str, t.Any]
Job: t.TypeAlias = t.Literal["trace", "parameters", "domains"]
JOBS: tuple[Job, ...] = ("trace", "parameters", "domains")
"""The jobs that an inventory may ask for, in the order in which they are reported."""


@dataclasses.dataclass(frozen=True)
class Lack:
    """One cause: what is missing for some jobs, and its fix.

    ``blocks`` is whether the jobs cannot be done, else it is a note. ``detail`` is what differs between hosts with the
    same cause, such as ``42 s ahead``.
    """

    jobs: tuple[Job, ...]
    blocks: bool
    reason: str
    fix: str
    detail: str = ""
