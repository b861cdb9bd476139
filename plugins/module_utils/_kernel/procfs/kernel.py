# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of the kernel itself. Private to the collection.

Formats: m_show in the kernel's kernel/module/procfs.c, fs/proc/version.c, fs/proc/cmdline.c.
"""

from __future__ import annotations

import re
import typing as t

from ..image.identity import parse_command_line
from ..image.taints import TAINTS
from .parse import NotARow, address, at_least, integer, lines_of, parse_rows, words_of

_TAINT_LETTERS = "PFSRMBUDAWCIOELKXTNJ"
_VERSION = re.compile(r"Linux version (\S+) \((.*?)\) \((.*)\) (#.*)")


def modules(text: str, unparsed: list[str]) -> list[dict[str, t.Any]]:
    """Return rows of ``name``, ``size_bytes``, ``references``, ``used_by``, ``state``, ``address``, ``taints``.

    ``references`` is null on a kernel that cannot unload modules, ``address`` where the kernel hides it. A module that
    never goes is ``permanent``. A flag without a name here stays a letter.
    """

    def row(line: str) -> dict[str, t.Any]:
        words = at_least(words_of(line), 6)
        users = [] if words[3] == "-" else [user for user in words[3].split(",") if user]
        flags = re.fullmatch(r"\((\S*)\)", words[6]) if len(words) > 6 else None
        if len(words) > 6 and flags is None:
            raise NotARow(line)
        return {
            "name": words[0],
            "size_bytes": integer(words[1]),
            "references": None if words[2] == "-" else integer(words[2]),
            "used_by": [user for user in users if user != "[permanent]"],
            "permanent": "[permanent]" in users,
            "state": words[4].lower(),
            "address": address(words[5]),
            "taints": [_taint(letter) for letter in (flags.group(1) if flags else "") if letter not in "+-"],
        }

    return parse_rows(text, unparsed, row)


def _taint(letter: str) -> str:
    bit = _TAINT_LETTERS.find(letter)
    return TAINTS[bit] if bit >= 0 else letter


def version(text: str, unparsed: list[str]) -> dict[str, t.Any]:
    """Return ``release``, ``builder``, ``compiler`` and ``version``; the whole ``text`` is always there."""
    line = next(lines_of(text), "")
    match = _VERSION.fullmatch(line)
    parts = match.groups() if match else (None,) * 4
    if match is None and line:
        unparsed.append(line)
    return {"text": line, **dict(zip(("release", "builder", "compiler", "version"), parts))}


def cmdline(text: str, _unparsed: list[str]) -> dict[str, t.Any]:
    """Return ``parameters`` (name to the list of its values; null: no value) and ``init_arguments``."""
    return parse_command_line(text.rstrip("\n"))
