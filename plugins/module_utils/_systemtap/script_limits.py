# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The limits that SystemTap compiles into a module, by the name of their option.

Private to the collection.
"""

from __future__ import annotations

import typing as t

#: MAXSTRINGLEN of 64-bit kernels, with the end mark (runtime/runtime_defines.h).
DEFAULT_STRING_LENGTH = 512


class ScriptLimit(t.NamedTuple):
    """A limit: the macro of SystemTap, SystemTap's own default, the bounds, and how many of its units one is.

    ``default`` is None where it depends on the host or there is none.
    """

    macro: str
    default: int | None
    least: int
    most: int
    unit: int = 1


#: See man stap, RESOURCE LIMITS, and runtime/runtime_defines.h.
#:
#: The upper bounds keep a wrong number from harming a host. Handlers run with preemption off, most of them for
#: 10 x MAXACTION statements; one waits MAXTRYLOCK x 10 us for a lock; STP_MAXMEMORY in KiB times 1024 has to fit into
#: an int. A kernel since 6.7 has a ring for each CPU with KRETACTIVE places for each return probe (lib/objpool.c).
#: MAXNESTING has no option: nested functions use the kernel's stack, and SystemTap computes what a script needs.
SCRIPT_LIMITS = {
    "max_action": ScriptLimit("MAXACTION", 1000, 1, 100_000),
    "max_active": ScriptLimit("KRETACTIVE", None, 1, 4096),
    "max_backtrace": ScriptLimit("MAXBACKTRACE", 20, 1, 100),
    "max_errors": ScriptLimit("MAXERRORS", 0, 0, 10_000),
    "max_map_entries": ScriptLimit("MAXMAPENTRIES", 2048, 1, 1_000_000),
    "max_memory_mb": ScriptLimit("STP_MAXMEMORY", None, 1, 2047, unit=1024),
    "max_skipped": ScriptLimit("MAXSKIPPED", 100, 0, 1_000_000),
    "max_string_length": ScriptLimit("MAXSTRINGLEN", DEFAULT_STRING_LENGTH, 64, 4096),
    "max_trylock": ScriptLimit("MAXTRYLOCK", 100, 1, 1000),
}
