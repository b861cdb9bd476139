# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this process may do: its effective capabilities, for root in a container lacks most of them.

Private to the collection.
"""

from __future__ import annotations

import os
import re

# include/uapi/linux/capability.h
_NUMBERS = {"CAP_DAC_OVERRIDE": 1, "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SYS_MODULE": 16, "CAP_SYS_ADMIN": 21}
_EFFECTIVE = r"(?m)^CapEff:\s*([0-9a-f]+)$"  # compiled when it is used


def lacking(*names: str, status: str | None = None) -> list[str]:
    """Return those of some capabilities that this process does not have (``CapEff``, capabilities(7)).

    :param names: such as ``CAP_SYS_MODULE``.
    :param status: the text of ``/proc/self/status``, by default that of this process. Without it, root has all.
    """
    found = re.search(_EFFECTIVE, _read_status() if status is None else status)
    if found is None:
        return [] if os.geteuid() == 0 else list(names)
    effective = int(found.group(1), 16)
    return [name for name in names if not effective >> _NUMBERS[name] & 1]


def missing_permission(error: PermissionError, needs: str) -> str:
    """Return one sentence that names the path, the user and what the task needs."""
    name, user = error.filename, os.geteuid()
    what = "a system call" if name is None else os.fsdecode(name) if isinstance(name, (str, bytes)) else f"file {name}"
    lacks = lacking(*_NUMBERS)
    if not lacks:
        who = "root" if user == 0 else f"the user with uid {user} and the capabilities of root"
        return (
            f"Even {who} was refused {what} ({error.strerror}): a security module or an attribute of it forbids that."
        )
    if user == 0:
        return (
            f"Root was refused {what} ({error.strerror}), and lacks {', '.join(lacks)}, as in a container; run the "
            "task on the host itself."
        )
    return f"The user with uid {user} was refused {what} ({error.strerror}); the task needs {needs}."


def _read_status() -> str:
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
