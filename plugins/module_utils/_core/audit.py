# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit trail: a line in the host's system log for each change, written before the change is made.

A line is ``MODULE key=value ...``. A value that is not one plain word is a JSON string, so that no value can look like
another key or another line. Private to the collection.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import syslog
import time
import typing as t

from .module import RUNNING, TaskModule
from .plan import Change

SOCKET = "/dev/log"
IDENTIFIER = "tapvirt"
# RFC 3164 allows 1024 bytes; the rest is for the date, the identifier and the process id.
LINE_BYTES = 960
_VALUE_CHARS = 500
_SHORT_CHARS = 60
_SEND_SECONDS = 1.0
_UNSET_UID = 0xFFFFFFFF
_MAX_ANCESTORS = 12
_ENVIRONMENT_BYTES = 1 << 18
_UNPRINTABLE = re.compile(r"[^ -~]")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,*-]+\Z")
# Why a line could not be written; no further one is tried.
broken: list[str] = []
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def log_change(**fields: t.Any) -> None:
    """Write one line about a change that is about to be made; a value that is ``None`` is left out.

    Nothing is written in check mode, with Ansible's ``no_target_syslog`` or ``no_log``, or where the host has no system
    log. No error leaves this function.
    """
    for task in RUNNING:
        if not (broken or task.check_mode or task.is_silent):
            _write(task, fields)


def log_plan(subject: t.Mapping[str, t.Any], changes: t.Iterable[Change]) -> None:
    """Write one line about all changes of one item, such as ``{"domain": "web1"}``."""
    texts = [_in_short(change.row()) for change in changes]
    if texts:
        log_change(**subject, changes=len(texts), plan="; ".join(texts))


def log_failure(message: str) -> None:
    """Write that a task failed after it had written a line about a change."""
    log_change(failed=message)


def _in_short(row: t.Mapping[str, t.Any]) -> str:
    return f"{row['what']}: {_short(row['before'])} -> {_short(row['after'])} ({row['how']})"


def _short(value: t.Any) -> str:
    text = " ".join(_text(value).split())
    return text if len(text) <= _SHORT_CHARS else text[:_SHORT_CHARS] + "..."


def _write(task: TaskModule, fields: t.Mapping[str, t.Any]) -> None:
    try:
        pairs = {**who(task), **{key: value for key, value in fields.items() if value is not None}}
        words = [task.short_name, *(f"{key}={_quoted(task.masked(_text(value)))}" for key, value in pairs.items())]
        _send(task.syslog_facility, _cut(" ".join(words)))
        task.on_failure = log_failure
    except (OSError, ValueError, TypeError, LookupError) as error:
        # The change matters more than its line. Each further line would wait as long.
        broken.append(str(error))


def _text(value: t.Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _quoted(text: str) -> str:
    text = text if len(text) <= _VALUE_CHARS else text[:_VALUE_CHARS] + "..."
    return text if _PLAIN.match(text) else json.dumps(text)


def _cut(line: str) -> str:
    return line if len(line) <= LINE_BYTES else line[: LINE_BYTES - 3] + "..."


def who(task: TaskModule) -> dict[str, str]:
    """Return who changes the host: ``user``, and as far as known ``login``, ``sudo_user``, ``from`` and ``info``."""
    told = {
        "user": _user_name(os.geteuid()),
        "login": _login_name(),
        "sudo_user": os.environ.get("SUDO_USER", ""),
        "from": _client(),
        "info": task.log_info,
    }
    # A user chooses some of them: they must leave room for what is changed.
    return {key: _UNPRINTABLE.sub("?", value)[:_SHORT_CHARS] for key, value in told.items() if value}


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _login_name() -> str:
    """Return the user who logged in (``/proc/self/loginuid``), which sudo and su do not change."""
    try:
        with open("/proc/self/loginuid", encoding="ascii") as stream:
            uid = int(stream.read())
    except (OSError, ValueError):
        return ""
    return "" if uid == _UNSET_UID else _user_name(uid)


def _client() -> str:
    """Return the address of the SSH client; sudo takes it from the task's environment, but not from its parents'."""
    address = os.environ.get("SSH_CLIENT", "")
    process = os.getppid()
    for _ancestor in range(_MAX_ANCESTORS):
        if address or process <= 1:
            break
        try:
            address = _environment_of(process).get("SSH_CLIENT", "")
            process = _parent_of(process)
        except (OSError, ValueError, LookupError):
            break
    return address.partition(" ")[0]


def _environment_of(process: int) -> dict[str, str]:
    with open(f"/proc/{process}/environ", "rb") as stream:
        rows = stream.read(_ENVIRONMENT_BYTES).decode("utf-8", "replace").split("\0")
    return {name: value for name, _sign, value in (row.partition("=") for row in rows)}


def _parent_of(process: int) -> int:
    with open(f"/proc/{process}/stat", "rb") as stream:
        # The program's name is in parentheses, and may have any character.
        return int(stream.read().rpartition(b")")[2].split()[1])


def _send(facility: str, line: str) -> None:
    """Send a line as syslog(3) does, but wait for a log daemon that hangs for a second only.

    :raises OSError: the host has no system log, or it did not take the line in time.
    """
    now = time.localtime()
    moment = f"{_MONTHS[now.tm_mon - 1]} {now.tm_mday:2} {time.strftime('%H:%M:%S', now)}"
    priority = getattr(syslog, facility, syslog.LOG_USER) | syslog.LOG_NOTICE
    data = f"<{priority}>{moment} {IDENTIFIER}[{os.getpid()}]: {line}".encode("ascii", "backslashreplace")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(_SEND_SECONDS)
        channel.connect(SOCKET)
        channel.send(data)
