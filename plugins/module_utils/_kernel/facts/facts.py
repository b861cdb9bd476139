# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that ``kernel_facts`` returns, subset by subset. Private to the collection.

A fact that this user cannot see, or that this kernel does not have, is null, and ``unavailable`` says why.
"""

from __future__ import annotations

import hashlib
import os
import re
import typing as t

from ..._core.errors import InvalidInput, nearest_names
from ..._core.root import Root
from ..image import config as kernel_config
from ..image import identity
from ..image.taints import taint_flags
from ..procfs.memory import meminfo
from ..procfs.mounts import mount_point
from ..symbols.table import KALLSYMS, SymbolTable, read_table
from .traceability import traceability

SUBSETS = (
    "command_line",
    "config",
    "cpus",
    "hypervisor",
    "identity",
    "memory",
    "parameters",
    "security",
    "symbols",
    "tracing",
)
_OWNERS_SHOWN = 24
_CPU_FLAGS = ("vmx", "ept", "vpid", "vnmi", "svm", "npt", "avic", "vgif", "v_vmsave_vmload", "x2apic", "hypervisor")
_DMI_VENDORS = (
    ("QEMU", "qemu"),
    ("KVM", "kvm"),
    ("Amazon EC2", "kvm"),
    ("Google", "kvm"),
    ("VMware", "vmware"),
    ("innotek GmbH", "virtualbox"),
    ("Microsoft Corporation", "hyperv"),
    ("Xen", "xen"),
)
_CLOCKS = (("kvm-clock", "kvm"), ("hyperv_clocksource", "hyperv"), ("xen", "xen"))


def chosen_subsets(gather_subset: t.Sequence[str]) -> set[str]:
    """Return the subsets to gather: ``all``, ``min`` (identity only), names, and ``!name`` to leave one out.

    Identity is always among them. With nothing but exclusions, everything else is gathered.

    :raises InvalidInput: no such subset.
    """
    choices = (*SUBSETS, "all", "min")
    for index, entry in enumerate(gather_subset):
        name = entry[1:] if entry.startswith("!") else entry
        if name not in choices:
            problem = f"{name!r} is not a subset. The subsets are {', '.join(choices)}."
            nearest = [entry[: -len(name)] + choice for choice in nearest_names(name, choices)] if name else []
            raise InvalidInput(f"gather_subset[{index}]", entry, problem, candidates=nearest)
    added = {name for name in gather_subset if not name.startswith("!")}
    removed = {name[1:] for name in gather_subset if name.startswith("!")}
    chosen = set(SUBSETS) if "all" in added or not added else added & set(SUBSETS)
    if "all" in removed:
        chosen = added & set(SUBSETS)
    return (chosen - removed) | {"identity"}


def gather(root: Root, subsets: t.Collection[str], config_names: t.Sequence[str], arch: str) -> dict[str, t.Any]:
    """Return the facts of the asked subsets."""
    return _Gatherer(root, subsets, config_names, arch).facts()


class _Gatherer:
    """One gathering: what several subsets need is read once, and what could not be seen is collected."""

    def __init__(self, root: Root, subsets: t.Collection[str], config_names: t.Sequence[str], arch: str) -> None:
        self._root = root
        self._subsets = subsets
        self._config_names = kernel_config.option_names(config_names)
        self._arch = arch
        self._unavailable: dict[str, str] = {}
        self._options: dict[str, t.Any] | None = None
        self._table: SymbolTable | None = None

    def facts(self) -> dict[str, t.Any]:
        facts: dict[str, t.Any] = self._identity()
        if {"config", "tracing", "security"} & set(self._subsets):
            self._options = kernel_config.read_config(self._root, facts["release"] or "")
        if {"symbols", "tracing", "security"} & set(self._subsets):
            self._read_symbols()
        for subset in SUBSETS:
            if subset in self._subsets and subset != "identity":
                facts.update(getattr(self, "_" + subset)())
        if "tracing" in self._subsets:
            known = dict(facts, config=self._options or {}, lockdown=self._lockdown())
            if self._options is not None:
                known["config"] = {name: self._options.get(name, False) for name in kernel_config.DEFAULT_OPTIONS}
            facts["traceability"] = traceability(known)
        facts["unavailable"] = self._unavailable
        return facts

    def _identity(self) -> dict[str, t.Any]:
        release = self._text("release", "proc/sys/kernel/osrelease")
        code = identity.running_version_code(self._root)
        source = "vdso"
        if code is None and release is not None:
            code, source = identity.version_code(release), "release"
        notes = self._bytes("build_id", "sys/kernel/notes")
        return {
            "release": release,
            "version": self._text("version", "proc/sys/kernel/version"),
            "version_code": code,
            "version_code_source": source if code is not None else None,
            "build_id": identity.build_id(notes) if notes is not None else None,
            "arch": self._arch,
        }

    def _config(self) -> dict[str, t.Any]:
        names = sorted({*kernel_config.DEFAULT_OPTIONS, *self._config_names})
        if self._options is None:
            self._unavailable["config"] = "neither /proc/config.gz nor a config file of this release can be read"
            return {"config": None}
        return {"config": {name: self._options.get(name, False) for name in names}}

    def _command_line(self) -> dict[str, t.Any]:
        text = self._text("command_line", "proc/cmdline")
        return {"command_line": None if text is None else identity.parse_command_line(text)}

    def _security(self) -> dict[str, t.Any]:
        tainted = self._number("tainted", "proc/sys/kernel/tainted")
        kptr_restrict = self._number("addresses", "proc/sys/kernel/kptr_restrict")
        paranoid = self._number("addresses", "proc/sys/kernel/perf_event_paranoid")
        return {
            "tainted": tainted,
            "taints": None if tainted is None else taint_flags(tainted),
            "lockdown": self._lockdown(),
            "addresses": {
                "kptr_restrict": kptr_restrict,
                "perf_event_paranoid": paranoid,
                "visible_to": _addresses_visible_to(kptr_restrict, paranoid),
                "visible": None if self._table is None or self._table.empty else not self._table.restricted,
            },
        }

    def _lockdown(self) -> str | None:
        text = self._root.read_text_or("sys/kernel/security/lockdown")
        if text is not None:
            return identity.selected_word(text)
        options = self._options
        if options is not None and not options.get("CONFIG_SECURITY_LOCKDOWN_LSM"):
            return "none"
        for mode in ("confidentiality", "integrity"):
            if options is not None and options.get("CONFIG_LOCK_DOWN_KERNEL_FORCE_" + mode.upper()):
                return mode
        self._unavailable["lockdown"] = "/sys/kernel/security/lockdown cannot be read (is securityfs mounted?)"
        return None

    def _hypervisor(self) -> dict[str, t.Any]:
        if self._root.exists("sys/hypervisor/type"):
            from ..image.xen import running_xen

            xen = running_xen(self._root)
            if xen is not None:
                return {"hypervisor": {"type": "xen", **{key: xen[key] for key in ("version", "role", "guest_type")}}}
        below = _guest_of(self._root)
        seen = {"type": below, "version": None, "role": None if below == "none" else "guest", "guest_type": None}
        return {"hypervisor": seen}

    def _cpus(self) -> dict[str, t.Any]:
        cpuinfo = self._root.read_text_or("proc/cpuinfo") or ""
        match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
        flags = set(match.group(1).split()) if match else set()
        model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
        online = self._text("cpus", "sys/devices/system/cpu/online")
        return {
            "cpus": {
                "online": None if online is None else _range_size(online),
                "model": model.group(1) if model else None,
                "virtualization_flags": [flag for flag in _CPU_FLAGS if flag in flags],
                "kvm_device": self._root.exists("dev/kvm"),
            }
        }

    def _memory(self) -> dict[str, t.Any]:
        text = self._text("memory", "proc/meminfo")
        if text is None:
            return {"memory": None}
        sizes = meminfo(text, [])
        return {
            "memory": {
                "total_bytes": sizes.get("MemTotal_bytes"),
                "free_bytes": sizes.get("MemFree_bytes"),
                "available_bytes": sizes.get("MemAvailable_bytes"),
                "buffers_bytes": sizes.get("Buffers_bytes"),
                "cached_bytes": sizes.get("Cached_bytes"),
            }
        }

    def _parameters(self) -> dict[str, t.Any]:
        digest = hashlib.sha256()
        count = unreadable = modules = 0
        for module in self._root.listdir("sys/module"):
            directory = f"sys/module/{module}/parameters"
            names = self._root.listdir(directory)
            modules += bool(names)
            for name in names:
                count += 1
                try:
                    value = self._root.read_bytes(f"{directory}/{name}")
                except OSError:
                    unreadable += 1
                    continue
                digest.update(f"{module}.{name}=".encode() + value + b"\0")
        fingerprint = digest.hexdigest()[:32]
        return {
            "parameters": {"modules": modules, "count": count, "unreadable": unreadable, "fingerprint": fingerprint}
        }

    def _read_symbols(self) -> None:
        try:
            self._table = read_table(self._root)
        except FileNotFoundError:
            self._unavailable["symbols"] = f"there is no /{KALLSYMS}"
        except OSError as error:
            self._unavailable["symbols"] = f"/{KALLSYMS}: {error.strerror}"

    def _symbols(self) -> dict[str, t.Any]:
        table = self._table
        if table is None or table.empty:
            return {"symbols": None if table is None else {"state": "absent"}}
        counts = table.counts()
        owners = list(counts.by_owner.items())
        return {
            "symbols": {
                "state": "restricted" if table.restricted else "readable",
                "data_symbols": counts.has_data_symbols,
                "total": counts.total,
                "by_type": counts.by_type,
                "by_owner": dict(owners[:_OWNERS_SHOWN]),
                "owners": len(owners),
                "truncated": len(owners) > _OWNERS_SHOWN,
                "core_fingerprint": counts.core_fingerprint,
                "extras_fingerprint": counts.extras_fingerprint,
            }
        }

    def _tracing(self) -> dict[str, t.Any]:
        debugfs = mount_point(self._root, "debugfs")
        blacklist = f"{debugfs}/kprobes/blacklist" if debugfs else None
        enabled = self._root.read_text_or(debugfs + "/kprobes/enabled") if debugfs else None
        disabled = self._root.read_text_or("proc/sys/kernel/modules_disabled")
        enforced = self._root.read_text_or("sys/module/module/parameters/sig_enforce")
        loadable = self._root.exists("proc/modules")
        if blacklist is None or not os.access(self._root.path(blacklist), os.R_OK):
            self._unavailable["blacklist"] = f"debugfs is not {'readable' if debugfs else 'mounted'}"
            blacklist = None
        return {
            "tracing": {
                "kprobes": self._has_kprobes(),
                "kprobes_enabled": None if enabled is None else enabled.strip() == "1",
                "modules_loadable": loadable and (disabled or "0").strip() == "0",
                "modules_disabled": None if disabled is None else disabled.strip() == "1",
                "module_signatures_enforced": None if enforced is None else enforced.strip() == "Y",
                "debugfs": debugfs,
                "tracefs": mount_point(self._root, "tracefs"),
                "blacklist_readable": blacklist is not None,
            }
        }

    def _has_kprobes(self) -> bool | None:
        if self._options is not None:
            return bool(self._options.get("CONFIG_KPROBES"))
        return None if self._table is None or self._table.empty else bool(self._table.find("register_kprobe"))

    def _text(self, fact: str, name: str) -> str | None:
        data = self._bytes(fact, name)
        return None if data is None else data.decode("utf-8", "replace").strip()

    def _number(self, fact: str, name: str) -> int | None:
        text = self._text(fact, name)
        return int(text) if text is not None and re.match(r"^-?\d+\Z", text) else None

    def _bytes(self, fact: str, name: str) -> bytes | None:
        try:
            return self._root.read_bytes(name)
        except OSError as error:
            self._unavailable[fact] = f"/{name}: {error.strerror}"
            return None


def _addresses_visible_to(kptr_restrict: int | None, paranoid: int | None) -> str | None:
    """Who sees addresses, as ``kallsyms_show_value`` in the kernel's kernel/ksyms_common.c decides."""
    if kptr_restrict is None:
        return None
    if kptr_restrict >= 2:
        return "nobody"
    return "everybody" if kptr_restrict == 0 and paranoid is not None and paranoid <= 1 else "cap_syslog"


def _guest_of(root: Root) -> str:
    """Name the hypervisor below us without a CPUID instruction: its clock, its firmware tables, the CPU's flag."""
    clocks = root.read_text_or("sys/devices/system/clocksource/clocksource0/available_clocksource") or ""
    for clock, kind in _CLOCKS:
        if clock in clocks:
            return kind
    vendor = (root.read_text_or("sys/class/dmi/id/sys_vendor") or "").strip()
    product = (root.read_text_or("sys/class/dmi/id/product_name") or "").strip()
    for text, kind in _DMI_VENDORS:
        if vendor.startswith(text) or product.startswith(text):
            return kind
    flagged = re.search(r"^flags\s*:.*\bhypervisor\b", root.read_text_or("proc/cpuinfo") or "", re.MULTILINE)
    return "unknown" if flagged else "none"


def _range_size(text: str) -> int:
    """Return how many numbers a list of ranges names: ``0-3,6`` -> 5."""
    size = 0
    for part in filter(None, text.split(",")):
        first, _dash, last = part.partition("-")
        size += int(last or first) - int(first) + 1
    return size
