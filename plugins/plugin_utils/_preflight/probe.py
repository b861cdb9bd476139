# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from a host with its shell alone, before a Python is known there. Private to the collection."""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing as t

_PREFIX = "tapvirt:"
_LINE = re.compile(rf"^{_PREFIX}(\w+)=(.*)$", re.MULTILINE)
# df -P: file system, blocks of 1024 bytes, used, available, capacity, mount point. Names may have spaces.
_DF = re.compile(r"\s(\d{1,20})\s+\d{1,3}%\s")
_NUMBER = re.compile(r"\d{1,18}")
_MOST_CHARS = 8000


@dataclasses.dataclass(frozen=True)
class Probe:
    """A host as its shell describes it. ``None``: not known. ``free_bytes`` has the directories that were asked for."""

    uid: int | None = None
    time: int | None = None
    enforces_selinux: bool = False
    refuses_modules: bool = False
    has_kvm: bool = False
    free_bytes: t.Mapping[str, int] = dataclasses.field(default_factory=dict)


def probe_command(directories: t.Sequence[str]) -> str:
    """Return a command for any POSIX shell that prints what :func:`parse_probe` reads. It writes nothing.

    :param directories: paths; the free space is that of the nearest existing parent.
    """
    names = " ".join(map(shlex.quote, directories))
    return (
        f'LC_ALL=C; export LC_ALL; say() {{ echo {shlex.quote(_PREFIX)}"$1=$2"; }}; '
        'say uid "$(id -u)"; say time "$(date +%s)"; '
        'if [ -r /sys/fs/selinux/enforce ]; then say selinux "$(cat /sys/fs/selinux/enforce)"; fi; '
        "if [ -r /sys/fs/selinux/booleans/secure_mode_insmod ]; "
        'then say insmod "$(cat /sys/fs/selinux/booleans/secure_mode_insmod)"; fi; '
        "if [ -c /dev/kvm ]; then say kvm 1; fi; number=0; "
        f"for path in {names}; do "
        'while [ ! -d "$path" ]; do '
        'case "$path" in */*) path="${path%/*}"; path="${path:-/}" ;; *) path=. ;; esac; done; '
        'say "disk$number" "$(df -kP "$path" 2>/dev/null | tail -n 1)"; number=$((number+1)); done'
    )


def parse_probe(output: str, directories: t.Sequence[str]) -> Probe | None:
    """Return what the command printed; ``None`` where it did not run. The output may be anything."""
    found = dict(_LINE.findall(output[:_MOST_CHARS].replace("\r", "")))
    if "uid" not in found:
        return None
    free = {}
    for number, directory in enumerate(directories):
        blocks = _DF.search(found.get(f"disk{number}", ""))
        if blocks:
            free[directory] = int(blocks[1]) * 1024
    return Probe(
        uid=_number(found["uid"]),
        time=_number(found.get("time", "")),
        enforces_selinux=found.get("selinux") == "1",
        refuses_modules=found.get("insmod", "").startswith("1"),
        has_kvm=found.get("kvm") == "1",
        free_bytes=free,
    )


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None
