# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying a plan for module parameters out: all of it or, when one step fails, nothing.

Private to the collection. The journal is written before the first step, so that the next run can put back what a
killed one had begun, and ``state: restored`` knows what a parameter was before it was first set.
"""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from .._core import journal as core_journal
from .._core.errors import NoEffect, TapvirtError
from .._core.journal import Journal
from .._core.plan import Plan, converge
from .._core.root import Root
from .._core.write import sync_directory, write_atomic
from . import modprobe_d
from .identity import taint_flags
from .parameter_plan import OWN_FILE, Persist, Write, layer_of, plan, read_only_reason, takes_effect, wanted_of
from .parameters import Item, Observed, Reader, Wanted, parameter_file
from .values import Value, is_put_back, read_value, said_value, same

JOURNAL_NAME = "kernel_module_param"


class Parameters:
    """One run over a list of parameters."""

    def __init__(self, root: Root, arch: str, wanted: t.Sequence[Wanted], state: str) -> None:
        self._root = root
        self._reader = Reader(root, arch)
        self._journal = Journal(root.path(core_journal.DIRECTORY), JOURNAL_NAME)
        self._wanted = wanted
        self._state = state
        self._seen: list[Observed] = []

    def converge(self, check_mode: bool) -> tuple[Plan, dict[str, t.Any]]:
        """Bring the parameters into the wanted state; return the plan and the other keys of the result.

        :raises InvalidInput: something cannot be; nothing was changed.
        :raises TapvirtError: a step failed; what came before it was put back.
        """
        planned, last = converge(True, self._observe, self._plan, self._apply)
        if not check_mode and (planned or "in_progress" in last.journal):
            with self._journal.locked():
                self._seen.clear()
                planned, last = converge(False, self._observe, self._plan, self._apply, self._verify)
                if not planned:
                    self._settle(last, {}, {})
        return planned, self._result(planned, self._seen[0], last, check_mode)

    def _observe(self) -> Observed:
        journal: dict[str, t.Any] = {}
        # A user who may not read the journal may not set parameters either; reading their values is open to all.
        with contextlib.suppress(PermissionError):
            journal = self._journal.read()
        observed = self._reader.observe([entry.key for entry in self._wanted], journal)
        self._seen.append(observed)
        return observed

    def _plan(self, observed: Observed) -> Plan:
        return plan(self._wanted, self._state, observed)

    def _verify(self, observed: Observed) -> Plan:
        return plan(self._wanted, self._state, observed, verifying=True)

    def _apply(self, planned: Plan, observed: Observed) -> None:
        writes = [change for change in steps_of(planned) if isinstance(change, Write)]
        persists = [change for change in steps_of(planned) if isinstance(change, Persist)]
        self._begin(writes, observed)
        begun: list[Write] = []
        adjusted: dict[str, dict[str, str]] = {}
        failed = OWN_FILE
        try:
            for write in writes:
                failed = write.what
                begun.append(write)
                read = self._write(write, observed.items[write.key])
                if read is not None:
                    adjusted[write.what] = {"wanted": write.text, "read": read}
            failed = OWN_FILE
            if persists:
                self._persist(persists, observed)
        except (OSError, TapvirtError) as error:
            kept = self._roll_back(begun, observed)
            self._journal.write({key: value for key, value in observed.journal.items() if key != "in_progress"})
            raise _failure(error, failed, kept) from error
        self._settle(observed, {write.what: write for write in writes}, adjusted)

    def _begin(self, writes: t.Sequence[Write], observed: Observed) -> None:
        """Write down what is about to change, and what it was when it was first set."""
        record = dict(observed.journal)
        originals = dict(record.get("originals", {}))
        if self._state == "present":
            labels = {entry.label for entry in self._wanted}
            for write in writes:
                if write.what in labels and write.undo is not None:
                    originals.setdefault(write.what, write.undo)
        unfinished = {write.what: write.undo for write in writes if write.undo is not None}
        unfinished.update(observed.interrupted)
        record.update(originals=originals, in_progress=unfinished, boot_id=observed.boot_id)
        self._journal.write(record)

    def _settle(self, observed: Observed, writes: t.Mapping[str, Write], adjusted: t.Mapping[str, t.Any]) -> None:
        """Write down that nothing is under way any more, what was restored, and what the kernel made of values."""
        record = self._journal.read()
        record.pop("in_progress", None)
        known = {label: fact for label, fact in record.get("adjusted", {}).items() if label not in writes}
        known.update(adjusted)
        originals = dict(record.get("originals", {}))
        if self._state == "restored":
            for entry in self._wanted:
                originals.pop(entry.label, None)
                known.pop(entry.label, None)
        record.update(originals=originals, adjusted=known, boot_id=observed.boot_id)
        self._journal.write(record if originals or known else {})

    def _write(self, write: Write, item: Item) -> str | None:
        """Write one parameter and read it back; return what the kernel made of it if that is another number.

        :raises NoEffect: the kernel took it and did something else.
        :raises TapvirtError: the kernel refused it.
        """
        name = parameter_file(item.module, item.name)
        try:
            write_parameter(self._root.path(name), write.text)
        except OSError as error:
            reason = "{}: the kernel refused {!r}: {}".format(write.what, write.text, cause(error, item))
            raise TapvirtError(reason, value=write.text, errno=error.errno) from error
        if write.read_back in ("trigger", "opaque"):
            return None
        text = self._root.read_text(name)
        now = read_value(item.kind, text, item.word_bits)
        intended = said_value(item.kind, write.text, item.word_bits)
        if same(item.kind, now, intended):
            return None
        both_numbers = isinstance(now.shown, int) and isinstance(intended.shown, int)
        moved = write.before != now.shown or write.read_back != "auto"
        if write.read_back in ("auto", "rounded", "clamped") and both_numbers and moved:
            return now.text
        raise NoEffect(
            "{}: the kernel took {!r}, yet {!r} reads back{}".format(
                write.what, write.text, "" if now.shown is None else now.shown, _hint(now, write)
            ),
            wanted=write.text,
            read_back=now.shown,
        )

    def _persist(self, persists: t.Sequence[Persist], observed: Observed) -> None:
        options = dict(observed.own)
        for change in persists:
            if change.value is None:
                options.pop(change.key, None)
            else:
                options[change.key] = change.value
        path = self._root.path(modprobe_d.OWN_FILE)
        text = modprobe_d.render(options)
        if text:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_atomic(path, text.encode("utf-8", "surrogateescape"))
        else:
            os.unlink(path)
            sync_directory(os.path.dirname(path))

    def _roll_back(self, begun: t.Sequence[Write], observed: Observed) -> list[str]:
        """Put back what was begun, the last first; return what could not be, in words."""
        kept = []
        for write in reversed(begun):
            item = observed.items[write.key]
            name = parameter_file(item.module, item.name)
            if write.undo is None:
                kept.append("{} cannot be put back".format(write.what))
                continue
            try:
                before = said_value(item.kind, write.undo, item.word_bits)
                now = read_value(item.kind, self._root.read_text(name), item.word_bits)
                if not is_put_back(item.kind, now, before):
                    write_parameter(self._root.path(name), write.undo)
            except OSError as error:
                kept.append("{}: {}".format(write.what, error.strerror))
        return kept

    def _result(self, planned: Plan, first: Observed, last: Observed, check_mode: bool) -> dict[str, t.Any]:
        rows = []
        for entry in self._wanted:
            steps = [change for change in steps_of(planned) if change.key == entry.key]
            rows.append(self._row(entry, first, last, steps, check_mode))
        named = {entry.key for entry in self._wanted}
        return {
            "params": rows,
            "recovered": sorted({change.what for change in steps_of(planned) if change.key not in named}),
            "taints_added": taint_flags(last.tainted & ~first.tainted),
        }

    def _row(
        self, entry: Wanted, first: Observed, last: Observed, steps: t.Sequence[Write | Persist], check_mode: bool
    ) -> dict[str, t.Any]:
        item, before, now = last.items[entry.key], first.items[entry.key].current, last.items[entry.key].current
        row: dict[str, t.Any] = {
            "module": entry.module,
            "name": entry.name,
            "type": item.kind.word,
            "before": None if before is None else before.shown,
            "after": None if now is None else now.shown,
            "wanted": None,
            "persisted_in": None,
            "pending": [],
            "notes": [],
            "changed": bool(steps),
            "verdict": ("restored" if self._state == "restored" else "changed") if steps else "unchanged",
        }
        writes = [step for step in steps if isinstance(step, Write)]
        if check_mode and writes:
            row["after"] = writes[-1].after
        if self._state == "restored":
            return row
        value = wanted_of(entry, item)
        layer = layer_of(entry, item, last)
        planned_file = OWN_FILE if check_mode and any(isinstance(step, Persist) for step in steps) else None
        row.update(wanted=value.shown, persisted_in=layer.persisted_in or planned_file, pending=list(layer.pending))
        reached = now is not None and same(item.kind, now, value)
        if entry.runtime and not reached and not item.writable:
            row["pending"].insert(0, takes_effect(item))
        if (
            entry.runtime
            and not reached
            and item.writable
            and not check_mode
            and entry.read_back in ("auto", "rounded", "clamped")
        ):
            row["verdict"] = "adjusted"
        elif row["pending"] and not steps:
            row["verdict"] = "pending"
        return row


def steps_of(planned: Plan) -> list[Write | Persist]:
    """Return the plan's steps as what they are."""
    return [change for change in planned if isinstance(change, (Write, Persist))]


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


def cause(error: OSError, item: Item) -> str:
    """Say why the kernel refused a write (kernel/params.c, fs/kernfs/file.c, kernel/module/sysfs.c)."""
    causes = {
        errno.EACCES: read_only_reason(item) if not item.writable else "this user may not write it; become root",
        errno.EIO: "the kernel has no way to set it while it runs, whatever its file's mode says",
        errno.EPERM: "kernel lockdown protects this hardware parameter, or it has no way to be set",
        errno.EROFS: "it can only be switched on, not off, until a reboot (or /sys is mounted read-only)",
        errno.ENODEV: "the module is being unloaded",
        errno.ENOENT: "the module is gone",
        errno.EINVAL: "the kernel does not accept this value",
        errno.ERANGE: "the value is out of the type's range",
        errno.ENOSPC: "the value is longer than the parameter can hold",
    }
    return "{} ({})".format(causes.get(error.errno or 0, error.strerror), errno.errorcode.get(error.errno or 0, "?"))


def _hint(now: Value, write: Write) -> str:
    if now.shown == write.before:
        return "; if writing only triggers something, say read_back: trigger"
    return "; if that is what is wanted, say so"


def _failure(error: Exception, failed: str, kept: t.Sequence[str]) -> TapvirtError:
    """Return one error that names the step, the cause and what became of the steps before it."""
    reason = error.message if isinstance(error, TapvirtError) else str(error)
    undone = "Everything is as it was before"
    if kept:
        undone = "Not everything could be put back: " + "; ".join(kept)
    fields = dict(error.fields) if isinstance(error, TapvirtError) else {"errno": getattr(error, "errno", None)}
    fields.update(item=failed, not_put_back=list(kept))
    return TapvirtError("{}. {}.".format(reason.rstrip("."), undone), **fields)
