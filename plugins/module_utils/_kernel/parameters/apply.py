# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying a plan for module parameters out: all of it or, when one step fails, nothing.

Private to the collection. The journal is written before the first step, so that the next run can put back what a
killed one had begun, and ``state: restored`` knows what a parameter was before it was first set.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ..._core.audit import log_change
from ..._core.disk import disk_errors, disk_failure
from ..._core.errors import NoEffect, TapvirtError
from ..._core.journal import Journal
from ..._core.plan import Plan
from ..._core.root import Root
from ..._core.write import make_directories, sync_directory, write_atomic
from ..image.taints import taint_flags
from ..modules import initramfs, modprobe_d
from . import reload as module_reload
from .layers import OWN_FILE, wanted_of
from .model import Item, Key, Observed, Reader, Wanted, parameter_file
from .plan import Persist, Refresh, Reload, Step, Write, is_restored, plan, undo_text
from .result import failed_row, steps_of
from .values import Value, is_put_back, parse_value, read_value
from .write import TAINT_USER, check_read_back, explain_errno, tainted, write_parameter

_UNDER_WAY = ("in_progress", "persisting", "reloading")


class Applier:
    """What a run over a list of parameters does to the host, and how it undoes it."""

    def __init__(self, root: Root, reader: Reader, journal: Journal, wanted: t.Sequence[Wanted], state: str) -> None:
        self._root = root
        self._reader = reader
        self._journal = journal
        self._wanted = wanted
        self._state = state
        self._observed: Observed | None = None
        self._own_text = ""
        self._done: list[Step] = []
        self._image_made = False
        self._touched: set[str] = set()
        self._adjusted: dict[str, dict[str, str]] = {}

    def recover_modules(self) -> list[Step]:
        """Load what an interrupted run had unloaded, with the values that it had."""
        recovered: list[Step] = []
        with self._journal.locked():
            record = self._journal.read()
            reloading = record.pop("reloading", {})
            observed = self._reader.observe([], record)
            for module, values in reloading.items() if record.get("boot_id") == observed.boot_id else []:
                step = Step("the module " + module, None, "loaded", "modprobe", "an interrupted run had unloaded it")
                missing = [] if self._root.exists("sys/module/" + module) else [step]
                _log(missing)
                module_reload.recover(self._root, module, self._kept(module, values))
                recovered += missing
            self._journal.write(record)
        return recovered

    def apply(self, planned: Plan, observed: Observed) -> None:
        """Carry a plan out.

        :raises TapvirtError: a step failed, or the journal cannot be written; the steps before it were undone.
        """
        steps = steps_of(planned)
        self._observed = observed
        self._own_text = self._root.read_text_or(modprobe_d.OWN_FILE) or ""
        with disk_errors("Nothing was changed."):
            self._begin(steps, observed)
        _log(steps)
        try:
            self._carry_out(steps, observed)
        except (OSError, TapvirtError) as error:
            failed = self._done[-1]
            keys: t.Collection[Key] = failed.keys
            if isinstance(failed, Persist):
                keys = [step.key for step in steps if isinstance(step, Persist)]
            raise self._undone(error, keys) from error
        self._touched = {label for step in steps for label in _labels(step)}
        if self._adjusted:
            # Verifying has to know it; all else stays under way until then.
            record = self._journal.read()
            self._write_journal({**record, "adjusted": {**record.get("adjusted", {}), **self._adjusted}})

    def _carry_out(self, steps: t.Sequence[Step], observed: Observed) -> None:
        """Do the steps: values that can be set now, our own file, and then what is made from it."""
        for write in steps:
            if isinstance(write, Write):
                self._done.append(write)
                self._adjusted.update(self._write(write, observed.items[write.key], observed))
        persists = [step for step in steps if isinstance(step, Persist)]
        if persists:
            self._done += persists
            self._persist(persists)
        for reload in steps:
            if isinstance(reload, Reload):
                self._done.append(reload)
                self._adjusted.update(self._reload(reload, observed))
        for refresh in steps:
            if isinstance(refresh, Refresh):
                self._done.append(refresh)
                self._refresh()

    def undo(self, error: Exception) -> TapvirtError:
        """Undo what was applied, as verifying it failed; return the error to raise."""
        left = error.fields.get("not_effective", []) if isinstance(error, TapvirtError) else []
        names = {row["what"] for row in left}
        keys = [key for step in self._done if step.what in names for key in step.keys]
        return self._undone(error, keys)

    def _undone(self, error: Exception, keys: t.Collection[Key]) -> TapvirtError:
        """Undo what was done; return one error that names the cause and what became of each parameter.

        :param keys: the parameters that failed.
        """
        observed = self._observed
        if observed is None:  # nothing was applied
            return error if isinstance(error, TapvirtError) else TapvirtError(str(error))
        left = self._roll_back(observed)
        texts = [text for _step, text in left]
        try:
            # What an earlier, interrupted run has left is still to be undone.
            self._journal.write({**observed.journal, **self._not_loaded(observed)})
        except OSError as failure:
            # It still says what was under way: the next run puts it back once more.
            texts.append(f"the journal {failure.filename}: {failure.strerror}")
        undone = "Everything is as it was before"
        if texts:
            undone = "Not everything could be put back: " + "; ".join(texts)
        reason = error.message if isinstance(error, TapvirtError) else _reason_of(error)
        fields = dict(error.fields) if isinstance(error, TapvirtError) else {}
        fields.update(
            not_rolled_back=texts,
            changed=bool(texts),
        )
        result = TapvirtError(f"{reason.rstrip('.')}. {undone}.", **fields)
        result.fields["params"] = [self._failed_row(entry, observed, keys, left, result) for entry in self._wanted]
        return result

    def _failed_row(
        self,
        entry: Wanted,
        observed: Observed,
        failed: t.Collection[Key],
        left: t.Sequence[tuple[Step, str]],
        failure: TapvirtError,
    ) -> dict[str, t.Any]:
        item = observed.items[entry.key]
        return failed_row(
            entry,
            item,
            self._reader.item(*entry.key, kind=item.kind),
            wanted=wanted_of(entry, item).shown if self._state == "present" else None,
            error=failure if entry.key in failed else None,
            is_done=any(entry.key in step.keys for step in self._done),
            left=[text for step, text in left if entry.key in step.keys],
        )

    def _begin(self, steps: t.Sequence[Step], observed: Observed) -> None:
        """Write down what is about to change, and what it was when it was first set."""
        record = dict(observed.journal)
        originals = observed.originals
        writes = [step for step in steps if isinstance(step, Write) and step.undo is not None]
        if self._state == "present":
            labels = {entry.label for entry in self._wanted}
            for write in writes:
                if write.what in labels:
                    originals.setdefault(write.what, str(write.undo))
            for reload in steps:
                for key in reload.keys if isinstance(reload, Reload) else ():
                    current = observed.items[key].current
                    if current is not None:
                        originals.setdefault(observed.items[key].label, undo_text(current))
        unfinished = {write.what: write.undo for write in writes}
        unfinished.update(observed.interrupted)
        lines: dict[Key, modprobe_d.Setting | None] = {}
        for step in steps:
            if isinstance(step, Persist):
                own = observed.own.get(step.key)
                lines[step.key] = None if own is None else own.setting
        lines.update(observed.interrupted_lines)
        persisting = {".".join(key): before for key, before in lines.items()}
        record.update(originals=originals, in_progress=unfinished, persisting=persisting, boot_id=observed.boot_id)
        self._journal.write(record)

    def finish_journal(self, observed: Observed) -> None:
        """Write down that nothing is under way any more, what was restored, and what the kernel made of values.

        :raises TapvirtError: the journal cannot be written; everything was undone.
        """
        touched = self._touched
        record = _settled(self._journal.read())
        known = {label: fact for label, fact in record.get("adjusted", {}).items() if label not in touched}
        known.update(self._adjusted)
        originals = dict(record.get("originals", {}))
        if self._state == "restored":
            for entry in self._wanted:
                known.pop(entry.label, None)
                if entry.label in touched or is_restored(entry, observed):
                    originals.pop(entry.label, None)
        record.update(originals=originals, adjusted=known, boot_id=observed.boot_id)
        self._write_journal(record if originals or known else {})

    def _write_journal(self, record: t.Mapping[str, t.Any]) -> None:
        """Write the journal after the steps, or undo them: with the old journal the next run would put them back.

        :raises TapvirtError: the journal cannot be written; everything was undone.
        """
        try:
            self._journal.write(record)
        except OSError as error:
            if not self._done:
                raise
            raise self._undone(error, ()) from error

    def _write(self, write: Write, item: Item, observed: Observed) -> dict[str, dict[str, str]]:
        """Write one parameter and read it back; return what the kernel made of it if that is another number.

        :raises NoEffect: the kernel took it and did something else.
        :raises TapvirtError: the kernel refused it, or was tainted by it.
        """
        name = parameter_file(item.module, item.name)
        before = tainted(self._root)
        try:
            write_parameter(self._root.path(name), write.text)
        except OSError as error:
            lockdown = self._root.read_text_or("sys/kernel/security/lockdown")
            reason = f"The kernel refused {write.text!r} for {write.what}: {explain_errno(error, item, lockdown)}."
            raise TapvirtError(reason) from error
        self._check_taint(f"Setting {write.what}", before, write.allow_taint)
        if write.read_back in ("trigger", "opaque"):
            return {}
        now = read_value(item.kind, self._root.read_text(name), item.word_bits)
        intended = parse_value(item.kind, write.text, item.word_bits)
        made = check_read_back(item, write.read_back, item.current, intended, now)
        return {} if made is None else {write.what: {"wanted": write.text, "read": made}}

    def _check_taint(self, act: str, before: int, allowed: bool) -> None:
        if tainted(self._root) & ~before & TAINT_USER and not allowed:
            raise TapvirtError(
                f"{act} tainted the kernel (U) until a reboot, because the module marks a parameter as unsafe. "
                "Set allow_taint to true to set it all the same.",
                taints_added=taint_flags(TAINT_USER),
            )

    def _persist(self, persists: t.Sequence[Persist]) -> None:
        own_text = self._root.read_text_or(modprobe_d.OWN_FILE) or ""
        self._write_own_file(modprobe_d.edited(own_text, {change.key: change.value for change in persists}))

    def _write_own_file(self, text: str) -> None:
        path = self._root.path(modprobe_d.OWN_FILE)
        if text:
            make_directories(os.path.dirname(path))
            write_atomic(path, text.encode("utf-8", "surrogateescape"))
        else:
            os.unlink(path)
            sync_directory(os.path.dirname(path))

    def _reload(self, reload: Reload, observed: Observed) -> dict[str, dict[str, str]]:
        """Load a module again; return what it made of the named parameters, if that is other numbers.

        :raises TapvirtError: it was not unloaded or not loaded, a value was lost or not taken, or it tainted
            the kernel.
        """
        values = self._values(reload.module)
        record = self._journal.read()
        self._journal.write({**record, "reloading": {**record.get("reloading", {}), reload.module: values}})
        before = tainted(self._root)
        keep = {name: value for name, value in {**values, **reload.given}.items() if name not in reload.named}
        module_reload.reload_module(self._root, reload.module, self._kept(reload.module, keep))
        self._check_taint(f"Loading {reload.what} again", before, reload.allow_taint)
        adjusted: dict[str, dict[str, str]] = {}
        for name, (text, read_back) in reload.named.items():
            item = observed.items[reload.module, name]
            now = self._root.read_text_or(parameter_file(reload.module, name))
            if now is None or read_back in ("trigger", "opaque"):
                continue
            intended = parse_value(item.kind, text, item.word_bits)
            made = check_read_back(item, read_back, item.current, intended, read_value(item.kind, now, item.word_bits))
            if made is not None:
                adjusted[item.label] = {"wanted": text, "read": made}
        return adjusted

    def _values(self, module: str) -> dict[str, str]:
        """Return the running values of a module's parameters; texts that were never set are left out."""
        values = {name: item.current for name, item in self._reader.items_of(module).items()}
        return {name: value.text for name, value in values.items() if value is not None and value.key is not None}

    def _kept(self, module: str, values: t.Mapping[str, str]) -> dict[str, tuple[Item, Value]]:
        kept: dict[str, tuple[Item, Value]] = {}
        for name, text in values.items():
            item = self._reader.item(module, name)
            kept[name] = (item, parse_value(item.kind, text, item.word_bits))
        return kept

    def _refresh(self) -> None:
        """Make the initramfs anew, and look whether that changed what it should.

        :raises TapvirtError: it failed, or the new one still has other options.
        """
        name = initramfs.image_of(self._root, self._reader.release) or ""
        image = initramfs.read_image(self._root, name, self._reader.release)
        initramfs.make_image(image)
        self._image_made = True
        made = initramfs.read_image(self._root, name, self._reader.release)
        observed = dataclasses.replace(self._reader.observe([entry.key for entry in self._wanted], {}), image=made)
        left = [step for step in plan(self._wanted, self._state, observed, True) if isinstance(step, Refresh)]
        if left:
            raise NoEffect(f"{image.path} was rebuilt by {image.maker[0]}, but still has {left[0].before}.")

    def _roll_back(self, observed: Observed) -> list[tuple[Step, str]]:
        """Undo what was done, the last first; return the steps whose undo failed, with the reason in words.

        Our own file comes before all else: modules and images are made from it.
        """
        steps = [step for step in self._done if not isinstance(step, Persist)]
        steps += [step for step in self._done if isinstance(step, Persist)]
        left = []
        for step in reversed(steps):
            try:
                self._undo_step(step, observed)
            except OSError as error:
                what = OWN_FILE if isinstance(step, Persist) else step.what
                left.append((step, f"{what}: {error.strerror}"))
            except TapvirtError as error:
                left.append((step, error.message.rstrip(".")))
        return left

    def _undo_step(self, step: Step, observed: Observed) -> None:
        """Undo one step.

        :raises OSError: the kernel or the file system refused it.
        :raises TapvirtError: it cannot be undone, or undoing it had no effect.
        """
        if isinstance(step, Persist):
            if (self._root.read_text_or(modprobe_d.OWN_FILE) or "") != self._own_text:
                self._write_own_file(self._own_text)
        elif isinstance(step, Refresh):
            self._undo_refresh(step)
        elif isinstance(step, Reload):
            self._undo_reload(step)
        elif isinstance(step, Write) and step.undo is None:
            raise TapvirtError(f"{step.what} cannot be put back")
        elif isinstance(step, Write):
            self._undo_write(observed.items[step.key], step.undo or "")

    def _undo_refresh(self, refresh: Refresh) -> None:
        """Make the initramfs from what our own file was before, if this run made one from something else."""
        if not self._image_made:
            return
        if not any(isinstance(step, Persist) for step in self._done):
            raise TapvirtError(f"{refresh.what} was made again, and stays so")
        name = initramfs.image_of(self._root, self._reader.release) or ""
        initramfs.make_image(initramfs.read_image(self._root, name, self._reader.release))

    def _undo_write(self, item: Item, text: str) -> None:
        name = parameter_file(item.module, item.name)
        before = parse_value(item.kind, text, item.word_bits)
        if is_put_back(item.kind, read_value(item.kind, self._root.read_text(name), item.word_bits), before):
            return
        write_parameter(self._root.path(name), text)
        now = read_value(item.kind, self._root.read_text(name), item.word_bits)
        if not is_put_back(item.kind, now, before):
            raise TapvirtError(f"{item.label} was set back to {text!r}, but {now.text!r} reads back")

    def _undo_reload(self, reload: Reload) -> None:
        """Load a module as it was loaded before."""
        values = self._journal.read().get("reloading", {}).get(reload.module, {})
        lost = module_reload.recover(self._root, reload.module, self._kept(reload.module, values))
        if lost:
            module_reload.reload_module(self._root, reload.module, self._kept(reload.module, values))

    def _not_loaded(self, observed: Observed) -> dict[str, t.Any]:
        """Return what the journal has to keep of modules that could not even be loaded as before."""
        reloading = self._journal.read().get("reloading", {})
        left = {name: values for name, values in reloading.items() if not self._root.exists("sys/module/" + name)}
        return {"reloading": left, "boot_id": observed.boot_id} if left else {}


def _log(steps: t.Iterable[Step]) -> None:
    """Write to the system log what is about to be changed."""
    for row in (step.row() for step in steps):
        log_change(change=row["what"], before=row["before"], after=row["after"], how=row["how"])


def _reason_of(error: Exception) -> str:
    """Return a sentence about an error that is not one of ours."""
    if not isinstance(error, OSError):
        return str(error)
    return disk_failure(error) or f"{error.filename or 'A file'} cannot be used: {error.strerror}."


def _settled(record: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {key: value for key, value in record.items() if key not in _UNDER_WAY}


def _labels(step: Step) -> list[str]:
    return [".".join(key) for key in step.keys] if isinstance(step, (Write, Reload)) else []
