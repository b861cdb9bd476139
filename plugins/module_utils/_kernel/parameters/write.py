# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing one module parameter, judging what reads back, and the causes of errors.

Private to the collection.
"""

from __future__ import annotations

import errno
import os
import re

from ..._core.errors import NoEffect
from ..._core.root import Root
from .model import Item, read_only_reason
from .values import Value, is_in_effect

#: "U" in ``/proc/sys/kernel/tainted``: a user did what the kernel's developers do not answer for.
TAINT_USER = 1 << 6
_LOCKED_DOWN = re.compile(r"\[(integrity|confidentiality)\]")


def write_parameter(path: str, text: str) -> None:
    """Hand a value to the kernel in one write, which is all that counts: a second one would be a second value.

    :raises OSError: the kernel refused it, or (ENOSPC) took a part only.
    """
    # A write of no bytes does nothing; one zero byte is the empty text.
    data = text.encode("utf-8", "surrogateescape") or b"\0"
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, "the kernel took only a part of the value")
    finally:
        os.close(descriptor)


def tainted(root: Root) -> int:
    """Return the kernel's taint flags, as one number."""
    return int(root.read_text_or("proc/sys/kernel/tainted") or "0")


def check_read_back(item: Item, read_back: str, before: Value | None, intended: Value, now: Value) -> str | None:
    """Judge what reads back after a value was set: null when it is the value, else what the kernel made of it.

    :raises NoEffect: it is something that the policy ``read_back`` does not allow.
    """
    if is_in_effect(item.kind, now, intended):
        return None
    numbers = isinstance(now.shown, int) and isinstance(intended.shown, int)
    moved = before is None or before.shown != now.shown
    if numbers and ((read_back == "auto" and moved) or read_back == "rounded"):
        return now.text
    if numbers and read_back == "clamped" and _is_between(before, now.shown, intended.shown):
        return now.text
    raise NoEffect(
        f"The kernel took {intended.text!r} for {item.label}, but {'' if now.shown is None else now.shown!r} reads "
        f"back. {_hint(read_back, moved, numbers)}",
        wanted=intended.text,
        read_back=now.shown,
    )


def explain_errno(error: OSError, item: Item, lockdown: str | None) -> str:
    """Say why the kernel refused a write (kernel/params.c, fs/kernfs/file.c, kernel/module/sysfs.c).

    ``lockdown`` is the text of ``/sys/kernel/security/lockdown``; None if it does not exist or cannot be read.
    """
    causes = {
        errno.EACCES: read_only_reason(item) if not item.writable else "this user may not write it; become root",
        errno.EBUSY: "what it sets is in use",
        errno.EINVAL: "the kernel does not accept this value",
        errno.EIO: "the kernel has no way to set it while it runs, whatever its file's mode says",
        errno.ENODEV: "the module is being unloaded, or it does not have what the value asks for",
        errno.ENOENT: "the module is gone, or it does not have what the value names",
        errno.ENOMEM: "the kernel has too little memory for it",
        errno.ENOSPC: "the value is longer than the parameter can hold",
        errno.EOPNOTSUPP: "this kernel or its hardware does not support it",
        errno.EPERM: _not_permitted(lockdown),
        errno.ERANGE: "the value is out of the type's range",
        errno.EROFS: "it can only be switched on, not off, until a reboot (or /sys is mounted read-only)",
    }
    if item.kind.word == "bool_enable_only":
        causes[errno.EROFS] = "it can only be switched on, not off, until a reboot"
    return f"{causes.get(error.errno or 0, error.strerror)} ({errno.errorcode.get(error.errno or 0, '?')})"


def _not_permitted(lockdown: str | None) -> str:
    mode = _LOCKED_DOWN.search(lockdown or "")
    if mode:
        return f"kernel lockdown ({mode.group(1)}) protects this hardware parameter"
    if lockdown is None:
        return "kernel lockdown protects this hardware parameter, or it has no way to be set"
    return "it has no way to be set, or not now (kernel lockdown is off)"


def _is_between(before: Value | None, now: int, intended: int) -> bool:
    """Tell whether a number went from what it was towards what was intended, as far as it may."""
    if before is None or not isinstance(before.shown, int):
        return True
    return min(before.shown, intended) <= now <= max(before.shown, intended)


def _hint(read_back: str, moved: bool, numbers: bool) -> str:
    if read_back == "auto" and not moved:
        also = " If the kernel rounds the value, set read_back to rounded." if numbers else ""
        return "If a write only triggers an action, set read_back to trigger." + also
    return "If that is intended, set read_back to a policy that allows it."
