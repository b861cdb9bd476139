# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's build configuration, typed. Private to the collection."""

from __future__ import annotations

import gzip
import re
import typing as t
import zlib

from ..._core.errors import InvalidInput
from ..._core.root import Root

PREFIX = "CONFIG_"

#: What decides whether and how a host can be traced and can run virtual machines.
DEFAULT_OPTIONS = tuple(
    PREFIX + name
    for name in (
        "BPF_SYSCALL",
        "DEBUG_FS",
        "DEBUG_INFO",
        "DEBUG_INFO_BTF",
        "DYNAMIC_FTRACE",
        "FTRACE_SYSCALLS",
        "FUNCTION_TRACER",
        "HYPERVISOR_GUEST",
        "HZ",
        "KALLSYMS",
        "KALLSYMS_ALL",
        "KPROBES",
        "KRETPROBES",
        "KVM",
        "KVM_AMD",
        "KVM_GUEST",
        "KVM_INTEL",
        "LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY",
        "LOCK_DOWN_KERNEL_FORCE_INTEGRITY",
        "MODULES",
        "MODULE_SIG",
        "MODULE_SIG_FORCE",
        "MODULE_UNLOAD",
        "MODVERSIONS",
        "NR_CPUS",
        "OPTPROBES",
        "PERF_EVENTS",
        "PREEMPT",
        "PREEMPT_DYNAMIC",
        "PREEMPT_RT",
        "RANDOMIZE_BASE",
        "RELAY",
        "SECURITY_LOCKDOWN_LSM",
        "STACKTRACE",
        "TRACEPOINTS",
        "UPROBES",
        "VFIO",
        "VHOST_NET",
        "XEN",
        "XEN_DOM0",
    )
)

_SET = re.compile(r"^(CONFIG_\w+)=(.*)$", re.MULTILINE)
_NAME = re.compile(r"^CONFIG_[A-Za-z0-9_]+\Z")
_INTEGER = re.compile(r"^-?(?:[0-9]+|0[xX][0-9a-fA-F]+)\Z")


def parse_config(text: str) -> dict[str, t.Any]:
    """Return the options that are set: ``y`` as true, ``m`` as ``"m"``, numbers as numbers, text unquoted."""
    return {match.group(1): _typed(match.group(2)) for match in _SET.finditer(text)}


def option_names(names: t.Sequence[str]) -> list[str]:
    """Return the full names of the entries of the option ``config``; the prefix may be left out.

    :raises InvalidInput: an entry cannot be an option's name.
    """
    found = [name if name.startswith(PREFIX) else PREFIX + name for name in names]
    for index, full in enumerate(found):
        if not _NAME.match(full):
            problem = "The name of a kernel option consists of letters, digits and underscores, as in CONFIG_KPROBES."
            raise InvalidInput(f"config[{index}]", names[index], problem)
    return found


def read_config(root: Root, release: str) -> dict[str, t.Any] | None:
    """Return the running kernel's options, from the first place that has them; null where none has.

    An option that is missing from the result is not set, whether its name is known to the kernel or not.
    """
    try:
        compressed = root.read_bytes("proc/config.gz")
        return parse_config(gzip.decompress(compressed).decode("utf-8", "replace"))
    except (OSError, EOFError, zlib.error):
        # Not built in (CONFIG_IKCONFIG_PROC), or not readable: distributions install the file instead.
        pass
    for name in (
        "boot/config-{}",
        "lib/modules/{}/config",
        "usr/lib/modules/{}/config",
        "lib/modules/{}/build/.config",
    ):
        text = root.read_text_or(name.format(release))
        if text is not None and _SET.search(text):
            return parse_config(text)
    return None


def _typed(value: str) -> t.Any:
    if value in ("y", "n"):
        return value == "y"
    if _INTEGER.match(value):
        return int(value, 0) if value.lstrip("-").lower().startswith("0x") else int(value)
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value
