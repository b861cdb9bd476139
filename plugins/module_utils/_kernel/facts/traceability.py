# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can this kernel be traced by kernel modules at all? Answered from the facts of ``kernel_facts``, in words.

Private to the collection. The configuration that a SystemTap module needs is listed in SystemTap's README
("Prerequisites"); what may be loaded is decided by ``module_sig_check`` in the kernel's kernel/module/signing.c,
``kernel.modules_disabled`` (Documentation/admin-guide/sysctl/kernel.rst) and lockdown (kernel_lockdown(7)).
"""

from __future__ import annotations

import typing as t

_NEEDED = (
    ("CONFIG_KPROBES", "no function can be probed"),
    ("CONFIG_KALLSYMS", "a module cannot find the functions to probe"),
    ("CONFIG_RELAY", "a SystemTap module has no buffers to send its output through"),
)


def traceability(facts: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return ``traceable``, the ``reasons`` against it, and the ``conditions`` under which it holds.

    ``facts`` is ``ansible_facts.tapvirt_kernel``; of it ``config``, ``tracing`` and ``lockdown`` are read. What is
    null or missing there (not to be seen by this user) forbids nothing.
    """
    config = facts.get("config") or {}
    tracing = facts.get("tracing") or {}
    reasons = [
        f"cannot be traced: the kernel was built without {option}: {consequence}"
        for option, consequence in _NEEDED
        if config.get(option) is False
    ]
    if tracing.get("kprobes") is False and config.get("CONFIG_KPROBES") is not False:
        reasons.insert(0, "cannot be traced: the kernel has no kprobes: no function can be probed")
    if config.get("CONFIG_MODULES") is False:
        reasons.insert(0, "cannot be traced: the kernel was built without CONFIG_MODULES: no module can be loaded")
    elif tracing.get("modules_disabled"):
        reasons.insert(0, "cannot be traced: kernel.modules_disabled is 1: no module can be loaded until a reboot")
    elif tracing.get("modules_loadable") is False:
        reasons.insert(0, "cannot be traced: there is no /proc/modules: no module can be loaded")
    if facts.get("lockdown") == "confidentiality":
        reasons.append("cannot be traced: kernel lockdown is in confidentiality mode: kprobes are refused")
    return {"traceable": not reasons, "reasons": reasons, "conditions": [] if reasons else _conditions(facts, tracing)}


def _conditions(facts: t.Mapping[str, t.Any], tracing: t.Mapping[str, t.Any]) -> list[str]:
    conditions = []
    if facts.get("lockdown") == "integrity":
        conditions.append("kernel lockdown is in integrity mode: only modules signed with a key the kernel trusts load")
    elif tracing.get("module_signatures_enforced"):
        conditions.append("module signatures are enforced: only modules signed with a key the kernel trusts load")
    if tracing.get("kprobes_enabled") is False:
        conditions.append("kprobes are switched off: write 1 to kprobes/enabled in debugfs")
    return conditions
