# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Functions that SystemTap itself leaves out, whatever the kernel would allow.

Private to the collection. The list is that of release 5.6 (dwflpp.cxx, build_kernel_blocklist); it holds for probes
that are found by debug information or symbol tables (``kernel.function``, ``module().function``, ``.statement``), not
for ``kprobe.*``. What it excludes by source file is not here: a host does not know a function's source file.
"""

from __future__ import annotations

import re

# By what they do: locks and atomic operations, interrupts and exceptions, preemption, Xen's paravirtual calls.
_ANYWHERE = (
    "raw_.*_(try|un)?lock|(read|write|spin)_(try|un)?lock|write_seq(un)?lock|spin_is_locked|apic|APIC|softirq|IRQ|"
    "_intr|kernel_text|exception_tables|setup_rt_frame|preempt_count|mutex_.*lock"
)
_FROM_THE_START = (
    "rwsem_.*lock|atomic_|atomic64_|current_|xen_irq_|xen_iret|xen_sysret64|xen_.*_fl_direct|test_ti_thread_flag"
)
_WHOLE = (
    "atomic_notifier_call_chain|notifier_call_chain|default_do_nmi|__die|die_nmi|do_debug|do_general_protection|do_int3|"
    "do_page_fault|do_sparc64_fault|do_trap|dummy_nmi_callback|flush_icache_range|io_check_error|mem_parity_error|"
    "nmi_watchdog_tick|oops_begin|oops_end|program_check_exception|single_step_exception|sync_regs|unhandled_fault|"
    "unknown_nmi_error|xen_[gs]et_debugreg|check_events|xen_adjust_exception_frame|inat_get_opcode_attribute|"
    "system_call_after_swapgs|HYPERVISOR_[gs]et_debugreg|HYPERVISOR_event_channel_op|hash_64|hash_ptr|native_set_pte|"
    "get_bh|put_bh|__delay|get_current|preempt_schedule|__switch_to"
)
_LEFT_OUT = re.compile(f"^(?:.*(?:{_ANYWHERE}).*|(?:{_FROM_THE_START}).*|(?:{_WHOLE}))$")
# They never return, so a probe at their return would never fire.
_LEFT_OUT_AT_RETURN = frozenset(("do_exit", "sys_exit", "sys_exit_group"))


def is_blocklisted(function: str, at_return: bool) -> bool:
    """Tell whether SystemTap makes no probe for a function of this name, or none at its return."""
    return _LEFT_OUT.match(function) is not None or (at_return and function in _LEFT_OUT_AT_RETURN)
