# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a libvirt daemon logs: at run time by its admin server, after the next start by its file, and the log itself.

Private to the collection. The rules are those of libvirt's page "Logging in the library and the daemon": the first
filter that matches decides, so that their order counts. The binding has no admin API; ``virt-admin`` has.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import time
import typing as t

from ..._core import command
from ..._core.audit import log_plan
from ..._core.errors import NEEDS_ROOT, InvalidInput, TapvirtError
from ..._core.plan import Change, Plan
from ..._core.privilege import missing_permission
from ..._core.root import Root
from ..._core.write import write_atomic

DAEMONS = (
    "libvirtd", "virtqemud", "virtxend", "virtlxcd", "virtnetworkd", "virtstoraged", "virtnodedevd", "virtsecretd",
    "virtnwfilterd", "virtinterfaced", "virtproxyd", "virtlogd", "virtlockd",
)  # fmt: skip
_TIMEOUT_SECONDS = 30.0
_DENIED = re.compile("permission denied|not permitted|authenticat|access denied", re.IGNORECASE)
# A plus sign before the name once asked for a stack trace; libvirt has dropped that, and takes the sign away.
_FILTER = re.compile(r"[1-4]:[^\s\"+\0][^\s\"\0]*\Z")
_OUTPUT = re.compile(r"[1-4]:(?:stderr|journald|syslog:[^\s\"\0]+|file:/[^\s\"\0]+)\Z")
_LEVELS = "LEVEL is 1 (debug), 2 (info), 3 (warning) or 4 (error)."
_SETTING = re.compile(r"^[ \t]*(log_filters|log_outputs)[ \t]*=[ \t]*(\"\"\"|\"|')([\s\S]*?)\2[^\n]*$", re.MULTILINE)
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.\d+\+0000: ")
_JOURNAL_ENTRIES = 5000
_MAX_SECONDS = 7 * 86400
_MAX_BYTES = 1 << 19
# How much of a file is looked through for what is asked for.
_READ_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Logging:
    """What is logged, and where to; null where a file does not say."""

    filters: tuple[str, ...] | None
    outputs: tuple[str, ...] | None

    def row(self) -> dict[str, t.Any]:
        """Return both as lists."""
        both = {"log_filters": self.filters, "log_outputs": self.outputs}
        return {key: None if value is None else list(value) for key, value in both.items()}


@dataclasses.dataclass(frozen=True)
class Observed:
    """A daemon's logging: ``running`` now, ``stored`` for the next start."""

    running: Logging
    stored: Logging


@dataclasses.dataclass(frozen=True)
class Window:
    """Which part of a log: of the last seconds, lines that match, at most so many bytes from its end."""

    seconds: int
    max_bytes: int
    match: t.Pattern[str] | None


def read_wanted(filters: t.Sequence[str] | None, outputs: t.Sequence[str] | None) -> Logging:
    """Check what a user wants; null leaves it as it is.

    :raises InvalidInput: not a filter or output, or no output at all.
    """
    for index, item in enumerate(filters or ()):
        if not _FILTER.match(item):
            problem = f"A filter has the form LEVEL:NAME. {_LEVELS}"
            raise InvalidInput(f"log_filters[{index}]", item, problem, "Use a filter such as 1:qemu.")
    for index, item in enumerate(outputs or ()):
        if not _OUTPUT.match(item):
            problem = (
                f"An output has the form LEVEL:stderr, LEVEL:journald, LEVEL:syslog:NAME or LEVEL:file:/PATH. {_LEVELS}"
            )
            raise InvalidInput(f"log_outputs[{index}]", item, problem, "Use an output such as 3:journald.")
    if outputs is not None and not outputs:
        raise InvalidInput("log_outputs", outputs, "A daemon needs at least one output.")
    return Logging(None if filters is None else tuple(filters), None if outputs is None else tuple(outputs))


def read_window(seconds: int, max_bytes: int, match: str | None) -> Window:
    """Check which part of the log a user wants.

    :raises InvalidInput: a number out of its bounds, or no regular expression.
    """
    for name, value, noun, most in (
        ("log_seconds", seconds, "time is a number of seconds", _MAX_SECONDS),
        ("log_max_bytes", max_bytes, "size is a number of bytes", _MAX_BYTES),
    ):
        if not 1 <= value <= most:
            raise InvalidInput(name, value, f"The {noun} from 1 to {most}.")
    return Window(seconds, max_bytes, compile_match(match))


def compile_match(match: str | None) -> t.Pattern[str] | None:
    """Return the compiled pattern.

    :raises InvalidInput: it is no regular expression; says where.
    """
    try:
        return None if match is None else re.compile(match)
    except re.error as error:
        raise InvalidInput("log_match", match, f"This is not a regular expression: {error}.") from error


def as_told(name: str, items: t.Sequence[str]) -> list[str]:
    """Return filters as the daemon tells them, with a wildcard on either side of the name; outputs as they are."""
    if name != "log_filters":
        return list(items)
    return [re.sub(r"^([1-4]:)(.*)$", r"\1*\2*", item) for item in items]


def _as_given(items: t.Sequence[str]) -> list[str]:
    """Return filters without the wildcards that the daemon added and adds again; outputs as they are."""
    return [re.sub(r"^([1-4]:)\*(.*)\*$", r"\1\2", item) for item in items]


# ---- observe --------------------------------------------------------------------------------------------------------


def observe(root: Root, daemon: str) -> Observed:
    """Read a daemon's logging from its admin server and from its file.

    :raises TapvirtError: one of them does not tell.
    """
    running = Logging(_told(daemon, "filters"), _told(daemon, "outputs"))
    return Observed(running, stored_in(_config_text(root, daemon)))


def config_path(daemon: str) -> str:
    """Return the file that a daemon reads when it starts."""
    return f"/etc/libvirt/{daemon}.conf"


def _config_text(root: Root, daemon: str) -> str:
    path = config_path(daemon)
    try:
        return root.read_text(path)
    except FileNotFoundError:
        return ""
    except PermissionError:
        raise
    except OSError as error:
        raise TapvirtError(f"{path} cannot be read: {error.strerror}.") from error


def stored_in(text: str) -> Logging:
    """Return what a daemon's file says; the first of several lines counts (virConfGetValue)."""
    found: dict[str, tuple[str, ...]] = {}
    for name, _quotes, value in _SETTING.findall(text):
        found.setdefault(name, tuple(value.split()))
    return Logging(found.get("log_filters"), found.get("log_outputs"))


def _told(daemon: str, what: str) -> tuple[str, ...]:
    # Quiet, it prints no label.
    return tuple(_admin(daemon, what).split())


def _admin(daemon: str, what: str, *words: str) -> str:
    argv = ["virt-admin", "-q", "-c", f"{daemon}:///system", f"daemon-log-{what}", *words]
    result = command.run(argv, timeout_seconds=_TIMEOUT_SECONDS)
    if result.rc != 0:
        said = [line.partition("error: ")[2].strip() for line in result.stderr.splitlines() if "error: " in line]
        reason = said[-1].rstrip(".") if said else f"virt-admin ended with status {result.rc}"
        text = f"The log {what} of {daemon} could not be {'set' if words else 'read'}: {reason}."
        if os.geteuid() != 0 and _DENIED.search(reason):
            text += f" The task needs {NEEDS_ROOT}."
        raise TapvirtError(text)
    return result.stdout


# ---- plan -----------------------------------------------------------------------------------------------------------


def plan(daemon: str, wanted: Logging, observed: Observed, persist: bool) -> Plan:
    """Return what differs at run time and, with ``persist``, in the daemon's file."""
    changes = []
    now, later, then = observed.running.row(), observed.stored.row(), wanted.row()
    for name, items in then.items():
        if items is None:
            continue
        if now[name] != as_told(name, items):
            changes.append(Change(f"{daemon} {name}", now[name], items, "virt-admin", "as wanted"))
        if persist and later[name] != items:
            place = f"{config_path(daemon)} {name}"
            changes.append(Change(place, later[name], items, "file", "as wanted"))
    return Plan(changes)


def with_settings(text: str, settings: t.Mapping[str, str]) -> str:
    """Return a daemon's file with settings replaced where they are, else added at the end."""
    for name, value in settings.items():
        line = f'{name} = "{value}"'
        there = next((found for found in _SETTING.finditer(text) if found.group(1) == name), None)
        if there is not None:
            text = text[: there.start()] + line + text[there.end() :]
        else:
            text += ("" if not text or text.endswith("\n") else "\n") + line + "\n"
    return text


# ---- apply ----------------------------------------------------------------------------------------------------------


def apply(root: Root, daemon: str, planned: Plan) -> None:
    """Set what the daemon logs; write its file where that is in the plan.

    :raises TapvirtError: the daemon refused, or the file cannot be written; the runtime settings were put back.
    """
    log_plan({"daemon": daemon}, planned)
    stored = {_setting_of(change): " ".join(change.after) for change in planned if change.how == "file"}
    runtime = [change for change in planned if change.how != "file"]
    done: list[Change] = []
    try:
        # A daemon refuses outputs, such as a file that it cannot open, but hardly any filter: outputs come first.
        for change in sorted(runtime, key=_setting_of, reverse=True):
            _set_running(daemon, change, change.after)
            done.append(change)
        if stored:
            _write_settings(root, daemon, stored)
    except TapvirtError as error:
        raise TapvirtError(error.message + _put_back(daemon, done), **error.fields) from error


def _setting_of(change: Change) -> str:
    return change.what.rpartition(" ")[2]


def _set_running(daemon: str, change: Change, items: t.Sequence[str]) -> None:
    what = _setting_of(change).partition("_")[2]
    _admin(daemon, what, f"--{what}", " ".join(items))


def _put_back(daemon: str, done: t.Sequence[Change]) -> str:
    """Put runtime settings back, the last first; return the end of a message that reports it."""
    sentences = []
    for change in reversed(done):
        try:
            _set_running(daemon, change, _as_given(change.before))
            sentences.append(f" The running {_setting_of(change)} were put back.")
        except TapvirtError as error:
            sentences.append(f" The running {_setting_of(change)} could not be put back: {error.message}")
    return "".join(sentences)


def _write_settings(root: Root, daemon: str, stored: t.Mapping[str, str]) -> None:
    """Write settings into a daemon's file.

    :raises TapvirtError: the file cannot be read or written.
    """
    path = config_path(daemon)
    try:
        text = with_settings(_config_text(root, daemon), stored)
        write_atomic(root.path(path), text.encode("utf-8", "surrogateescape"), mode=0o600)
    except PermissionError as error:
        raise TapvirtError(missing_permission(error, NEEDS_ROOT)) from error
    except OSError as error:
        raise TapvirtError(f"{path} could not be written: {error.strerror}.") from error


# ---- the log --------------------------------------------------------------------------------------------------------


def read_log(daemon: str, outputs: t.Sequence[str], window: Window) -> dict[str, t.Any]:
    """Return the window of a daemon's log: ``source`` (a file, or journald), ``text``, ``bytes`` and ``truncated``.

    :raises TapvirtError: it logs to nowhere that can be read, or it could not be read.
    """
    files = [output.partition(":file:")[2] for output in outputs if ":file:" in output]
    if files:
        text, cut = _end_of_file(files[0])
        found, source = text.splitlines(), files[0]
        lines = recent(found, time.time() - window.seconds)
        # A line that is too old shows that nothing of the window was before what was read.
        cut = cut and not any(_STAMP.match(line) for line in found[: len(found) - len(lines)])
    elif any(output.endswith(":journald") for output in outputs):
        # The newest first: what is too much to be kept is dropped at its end.
        argv = ["journalctl", "--no-pager", "-q", "-r", "-o", "short-iso", "-n", str(_JOURNAL_ENTRIES), "-u", daemon]
        result = command.run([*argv, f"--since=-{window.seconds}s"], timeout_seconds=_TIMEOUT_SECONDS)
        if result.rc != 0:
            said = " ".join(result.stderr.split()).rstrip(".") or f"journalctl ended with status {result.rc}"
            raise TapvirtError(f"The log of {daemon} could not be read from journald: {said}.")
        entries = entries_in(result.stdout)
        # The last one of a cut answer is cut, too.
        lines = [line for entry in reversed(entries[:-1] if result.truncated else entries) for line in entry]
        cut, source = result.truncated or len(entries) >= _JOURNAL_ENTRIES, "journald"
    else:
        raise TapvirtError(
            f"{daemon} logs to {' '.join(outputs) or 'nothing'}, where no log can be read. Add a file or journald to "
            "log_outputs."
        )
    if window.match is not None:
        lines = [line for line in lines if window.match.search(line)]
    kept = "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
    cut = cut or len(kept) > window.max_bytes
    text = kept[-window.max_bytes :].decode("utf-8", "replace")
    return {"source": source, "text": text, "bytes": len(kept[-window.max_bytes :]), "truncated": cut}


def entries_in(text: str) -> list[list[str]]:
    """Return the lines of each entry that journalctl prints; those after an entry's first line are indented."""
    entries: list[list[str]] = []
    for line in text.splitlines():
        if entries and line.startswith(" "):
            entries[-1].append(line)
        else:
            entries.append([line])
    return entries


def _end_of_file(path: str) -> tuple[str, bool]:
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - _READ_BYTES, 0))
            data = stream.read(_READ_BYTES)
    except OSError as error:
        raise TapvirtError(f"The log {path} cannot be read: {error.strerror}.") from error
    return data.decode("utf-8", "replace"), size > _READ_BYTES


def recent(lines: t.Sequence[str], since: float) -> list[str]:
    """Return the lines from the first on that was written at or after a time (seconds since 1970).

    A line without a time belongs to the one before.
    """
    for number, line in enumerate(lines):
        found = _STAMP.match(line)
        if found:
            stamp = datetime.datetime.strptime(found.group(1), "%Y-%m-%d %H:%M:%S").replace(
                tzinfo=datetime.timezone.utc
            )
            if stamp.timestamp() >= since - 1:
                return list(lines[number:])
    return []
