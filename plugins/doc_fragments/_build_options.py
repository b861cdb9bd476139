# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of SystemTap that change a module. Private to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  limits:
    description:
      - The limits that SystemTap compiles into the module. A run that meets one ends with an error, and
        RV(tapvirt.host.stap_run#module:run.hints) names the option. Without a limit, the default of SystemTap applies.
      - SystemTap's protection against overload is not among them. Only O(cpu_ceiling_percent) sets it.
    type: dict
    suboptions:
      max_action:
        description:
          - How many statements a handler may execute for one hit, from 1 to 100000 (C(MAXACTION), by default 1000).
          - SystemTap allows 10 times as many in handlers that run with interrupts enabled, which are most.
        type: int
      max_active:
        description:
          - How many calls of a function a return probe follows at the same time, from 1 to 4096 (C(KRETACTIVE)). The
            default is 6 for each possible CPU and at least 15. A C(.maxactive(N)) in the script has priority.
        type: int
      max_backtrace:
        description: How many frames a stack has at most, from 1 to 100 (C(MAXBACKTRACE), by default 20).
        type: int
      max_errors:
        description:
          - How many errors a run survives, from 0 to 10000 (C(MAXERRORS), by default 0). Its outcome is V(script_error)
            all the same.
        type: int
      max_map_entries:
        description:
          - How many entries an array without a size of its own has, from 1 to 1000000 (C(MAXMAPENTRIES), by default
            2048). They take memory when the module is loaded, arrays of statistics for each CPU.
        type: int
      max_memory_mb:
        description:
          - How much memory the module may take for its arrays and its own code, in MiB, from 1 to 2047
            (C(STP_MAXMEMORY)). A module that needs more is not loaded.
          - The default is 256 with O(limits.max_map_entries), otherwise there is no limit. Output buffers do not count.
        type: int
      max_skipped:
        description: How many hits a run may skip, from 0 to 1000000 (C(MAXSKIPPED), by default 100).
        type: int
      max_string_length:
        description:
          - The length of strings with their end mark, in bytes, from 64 to 4096 (C(MAXSTRINGLEN), by default 512). With
            longer strings, a probe needs as much more of the kernel's stack, and is skipped where that is not free.
        type: int
      max_trylock:
        description:
          - How often a probe tries to lock a global variable before it is skipped, every 10 microseconds, from 1 to
            1000 (C(MAXTRYLOCK), by default 100).
        type: int
  skip_badvars:
    description:
      - Compile a script that names variables of a function (C($name)) which the traced kernel does not have. Such a
        variable is 0, and so is one that cannot be read, without an error (C(--skip-badvars)).
    type: bool
    default: false
  stack_modules:
    description:
      - Modules of the kernel whose symbols and unwind data become part of the module, so that stacks name their
        functions (C(-d)). V(kernel) is the kernel itself, whose data has about 16 MB. SystemTap adds the probed modules
        on its own.
      - With O(debuginfod), each needs a build-id in O(module_build_ids), except V(kernel).
      - There is no option for all loaded modules, because SystemTap would take those of the builder.
    type: list
    elements: str
    default: []
  tapsets:
    description:
      - Directories on the builder with your own tapsets. Their files C(NAME.stp) are checked, copied into the build,
        and part of its key by their content. Subdirectories and other files are ignored.
      - At most 200 files of together 4 MiB. Files with macros (C(.stpm)) are refused.
      - A tapset with embedded C needs a script with O(tapvirt.host.stap_script#module:guru).
    type: list
    elements: path
    default: []
"""
