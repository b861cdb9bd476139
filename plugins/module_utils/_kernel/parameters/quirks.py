# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parameters that behave otherwise than their type says, as the kernel's sources show.

Private to the collection. The list of a kernel is its own business: what is not named here is found out by reading
back, and what taints the kernel by looking at ``/proc/sys/kernel/tainted``.
"""

from __future__ import annotations

import typing as t

#: What a parameter's own functions make of a value, where its type does not tell.
READ_BACK: dict[tuple[str, str], str] = {
    ("brd", "max_part"): "rounded",  # drivers/block: to a power of two, or one less
    ("damon_lru_sort", "commit_inputs"): "trigger",  # mm/damon/lru_sort.c
    ("damon_reclaim", "commit_inputs"): "trigger",  # mm/damon/reclaim.c
    ("fuse", "max_user_bgreq"): "rounded",  # fs/fuse/inode.c: 0 means as many as the memory allows
    ("fuse", "max_user_congthresh"): "rounded",
    ("loop", "max_part"): "rounded",
    ("nbd", "max_part"): "rounded",
    ("nf_conntrack", "hashsize"): "rounded",  # net/netfilter/nf_conntrack_core.c: whole pages
    ("rcutree", "do_rcu_barrier"): "trigger",  # kernel/rcu/tree.c
    ("rcutree", "jiffies_till_first_fqs"): "clamped",
    ("rcutree", "jiffies_till_next_fqs"): "clamped",
}

# Of modules that may be built in, as their files cannot be asked: module_param_unsafe and its kin.
_UNSAFE_BUILT_IN: dict[str, str] = {
    "drm_display_helper": "dp_aux_i2c_speed_khz dp_aux_i2c_transfer_size",
    "drm_kms_helper": "dp_aux_i2c_speed_khz dp_aux_i2c_transfer_size drm_leak_fbdev_smem",
    "fb": "lockless_register_fb",
    "i915": "disable_power_well dmc_firmware_path edp_vswing enable_dc enable_dmc_wl enable_dp_mst enable_dpt"
    " enable_dsb enable_fbc enable_guc enable_hangcheck enable_psr enable_psr2_sel_fetch enable_sagv force_probe"
    " force_reset_modeset_test gsc_firmware_path guc_firmware_path huc_firmware_path inject_probe_failure"
    " invert_brightness live_selftests lmem_bar_size lmem_size load_detect_test lvds_channel_mode mitigations"
    " mock_selftests nuclear_pageflip panel_use_ssc perf_selftests request_timeout_ms reset vbt_firmware"
    " vbt_sdvo_panel_type",
    "intel_vpu": "disable_recovery firmware test_mode",
    "kvm_amd": "force_avic",
    "panfrost": "unstable_ioctls",
    "xe": "force_execlist force_probe gsc_firmware_path guc_firmware_path huc_firmware_path wedged_mode",
}


def unsafe_built_in(module: str, name: str) -> bool:
    """Tell whether a built-in parameter is known to taint the kernel when it is set (``param_check_unsafe``)."""
    return name in _UNSAFE_BUILT_IN.get(module, "").split()


#: Declared as booleans, yet they take more words (set_nx_huge_pages in the kernel's arch/x86/kvm/mmu/mmu.c).
MORE_THAN_DECLARED: t.Collection[tuple[str, str]] = (("kvm", "nx_huge_pages"),)
