# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes: found by filters, sorted, limited, and gone at any moment. Private to the collection.

What a process shows is read through one descriptor of its directory, so that two processes that have the same number
one after the other are never mixed. The numbers are read twice: once to choose, once for the rows that are returned.
"""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import os
import posixpath
import pwd
import re
import typing as t

from ..._core.root import Root
from . import devices, process_files
from .parse import NotARow, Value, decode
from .tables import ABSENT, PRESENT, RESTRICTED, Reading, status_of

SECTIONS: dict[str, t.Callable[[str, list[str]], Value]] = {
    "stat": lambda text, _unparsed: process_files.stat(text),
    "status": process_files.status,
    "cmdline": lambda text, _unparsed: process_files.cmdline(text),
    "io": process_files.io,
    "limits": process_files.limits,
    "cgroup": process_files.cgroup,
    "maps": process_files.maps,
}
SORTS = ("pid", "cpu", "memory", "threads", "start")
_SORT_FIELDS = {"cpu": "cpu_seconds", "memory": "rss_bytes", "threads": "threads", "start": "start_seconds"}
_SMALL_BYTES = 65536
_MAPS_BYTES = 2 << 20
_GONE = (errno.ENOENT, errno.ESRCH, errno.ENOTDIR)


class Gone(Exception):
    """The process ended while it was read."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which processes (all that is given has to hold), which sections of them, in which order, and how many."""

    pids: t.Sequence[int] | None = None
    name: str | None = None
    user: str | None = None
    cgroup: str | None = None
    domain: str | None = None
    sections: t.Sequence[str] = ()
    sort: str = "pid"
    limit: int = 20


class Process:
    """One process, held by a descriptor of its directory."""

    def __init__(self, root: Root, pid: int) -> None:
        """Open the directory of a process.

        :raises Gone: the process ended.
        :raises OSError: this user may not open the directory.
        """
        self.pid = pid
        try:
            self._directory = os.open(root.path(f"proc/{pid}"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _gone_or(error) from None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self._directory)

    def read(self, name: str) -> str:
        """Return a file's text.

        :raises Gone: the process ended.
        :raises OSError: the file may not be read, or this kernel does not have it.
        """
        limit = _MAPS_BYTES if name == "maps" else _SMALL_BYTES
        data = bytearray()
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                while len(data) < limit:
                    part = os.read(descriptor, min(limit - len(data), 65536))
                    if not part:
                        break
                    data += part
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in _GONE and not self._alive():
                raise Gone from None
            raise
        if len(data) == limit and b"\n" in data:
            del data[data.rindex(b"\n") :]
        return decode(bytes(data))

    def _alive(self) -> bool:
        try:
            os.close(os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory))
        except OSError as error:
            return error.errno not in _GONE
        return True

    def stat(self) -> dict[str, Value]:
        """Return the process's numbers.

        :raises Gone: it ended, or shows none.
        """
        try:
            return process_files.stat(self.read("stat"))
        except NotARow:
            raise Gone from None


def _gone_or(error: OSError) -> Exception:
    return Gone() if error.errno in _GONE else error


def read_processes(root: Root, wanted: Wanted) -> Reading:
    """Return the processes that are wanted; ``restricted`` when the kernel hides processes from this user."""
    if not root.exists("proc"):
        return Reading(ABSENT)
    reading = Reading(RESTRICTED if _hidden(root) else PRESENT, [])
    chosen = _chosen(root, wanted, reading)
    if wanted.sort != "pid":
        # Of two that started in the same tick, the one with the larger number is nearly always the younger.
        chosen.sort(key=lambda row: (row[_SORT_FIELDS[wanted.sort]], row["pid"]), reverse=True)
    for position, summary in enumerate(chosen):
        if len(reading.value) == wanted.limit:
            reading.left_out = len(chosen) - position
            break
        try:
            reading.value.append(read_row(root, summary, wanted, reading.unparsed))
        except (Gone, OSError):
            continue
    return reading


def _chosen(root: Root, wanted: Wanted, reading: Reading) -> list[dict[str, Value]]:
    numbers = [int(name) for name in root.listdir("proc") if re.fullmatch(r"[0-9]{1,9}", name)]
    chosen = []
    for pid in sorted(numbers):
        if wanted.pids is not None and pid not in wanted.pids:
            continue
        try:
            summary = _summary_if_wanted(root, pid, wanted)
        except Gone:
            continue
        except OSError as error:
            if status_of(error) == RESTRICTED:
                reading.status = RESTRICTED
            continue
        if summary is not None:
            chosen.append(summary)
    return chosen


def _summary_if_wanted(root: Root, pid: int, wanted: Wanted) -> dict[str, Value] | None:
    with Process(root, pid) as process:
        summary = _summary(process.stat())
        if wanted.name is not None and not fnmatch.fnmatchcase(summary["name"], wanted.name):
            return None
        if wanted.user is not None and not _is_users(process, wanted.user):
            return None
        if wanted.cgroup is not None and not _is_in_cgroup(process, wanted.cgroup):
            return None
        if wanted.domain is not None and domain_of(process_files.cmdline(process.read("cmdline"))) != wanted.domain:
            return None
        return summary


def _summary(stat: t.Mapping[str, Value]) -> dict[str, Value]:
    return {
        "pid": stat["pid"],
        "name": stat["comm"],
        "state": stat["state"],
        "ppid": stat["ppid"],
        "threads": stat["num_threads"],
        "rss_bytes": stat["rss_bytes"],
        "vsize_bytes": stat["vsize_bytes"],
        "cpu_seconds": round(stat["utime_seconds"] + stat["stime_seconds"], 3),
        "start_seconds": stat["starttime_seconds"],
    }


def read_row(root: Root, summary: dict[str, Value], wanted: Wanted, unparsed: list[str]) -> dict[str, Value]:
    """Return the row of a process: its summary, its user, and the wanted sections.

    :param unparsed: gets a message for each section that cannot be parsed.
    :raises Gone: the process ended; another one may have its number now.
    :raises OSError: this user may not read the process.
    """
    with Process(root, summary["pid"]) as process:
        if process.stat()["starttime_seconds"] != summary["start_seconds"]:
            raise Gone
        status = process_files.status(process.read("status"), [])
        uid = _effective_uid(status)
        # What stat says of memory is an estimate since Linux 6.2.
        memory = status.get("VmRSS_bytes", summary["rss_bytes"])
        row = {**summary, "rss_bytes": memory, "uid": uid, "user": _user_name(uid), "unavailable": {}}
        for section in wanted.sections:
            row[section] = None
            try:
                row[section] = SECTIONS[section](process.read(section), unparsed)
            except NotARow as error:
                unparsed.append(str(error))
            except OSError as error:
                row["unavailable"][section] = status_of(error)
        return row


def _effective_uid(status: t.Mapping[str, Value]) -> int | None:
    user = status.get("Uid")
    return user["effective"] if user else None


def _user_name(uid: int | None) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name if uid is not None else None
    except (KeyError, OverflowError):
        return None


def _is_users(process: Process, user: str) -> bool:
    uid = _effective_uid(process_files.status(process.read("status"), []))
    return uid is not None and user in (str(uid), _user_name(uid))


def _is_in_cgroup(process: Process, cgroup: str) -> bool:
    """Tell whether a process is in a control group, given as a pattern, or in one below it."""
    pattern = "/" + cgroup.strip("/")
    for row in process_files.cgroup(process.read("cgroup"), []):
        path = row["path"]
        if pattern == "/" or fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, pattern + "/*"):
            return True
    return False


def domain_of(arguments: t.Sequence[str]) -> str | None:
    """Return the name of the libvirt domain that a process runs, from its command line; null for any other process.

    libvirt starts QEMU with ``-name guest=NAME,...``, in which a comma of the name is doubled (as in every option of
    QEMU), libxl with ``-name NAME``, and a container with ``libvirt_lxc --name NAME``.
    """
    program = posixpath.basename(arguments[0]) if arguments else ""
    option = "--name" if program == "libvirt_lxc" else "-name"
    if not program.startswith(("qemu", "kvm", "libvirt_lxc")) or option not in arguments[:-1]:
        return None
    value = arguments[list(arguments).index(option) + 1]
    if program == "libvirt_lxc":
        return value
    first = re.sub(r"^((?:[^,]|,,)*),.*", r"\1", value, flags=re.DOTALL)
    return (first[len("guest=") :] if first.startswith("guest=") else first).replace(",,", ",")


def _hidden(root: Root) -> bool:
    """Tell whether procfs is mounted so that processes of others are hidden, and from this user.

    The option is a number, or a word since Linux 5.8 (proc(5)). Process 1 is one of others' for all but root.
    """
    mounts = devices.mounts(root.read_text_or("proc/self/mounts") or "", [])
    # The last one lies over the others.
    options = [mount["options"] for mount in mounts if mount["target"] == "/proc"][-1:]
    if not any(re.fullmatch(r"hidepid=(?!0$|off$).*", option) for option in (options or [[]])[0]):
        return False
    try:
        root.read_bytes("proc/1/stat", 1)
    except OSError:
        return True
    return False
