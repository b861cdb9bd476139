# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run over module parameters: looking, planning, and telling what became of them.

Private to the collection. What changes anything is in apply.py, which most runs have no use for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ..._core import journal as core_journal
from ..._core.journal import Journal
from ..._core.plan import Plan, converge
from ..._core.root import Root
from ..image.taints import taint_flags
from .layers import layer_of, load_flaws
from .model import LoadedModule, Observed, Reader, Wanted
from .plan import Step, is_restored, persist_change, plan
from .result import row, steps_of
from .values import Kind

if t.TYPE_CHECKING:
    from ..modules.initramfs import Image
    from .apply import Applier

JOURNAL_NAME = "kernel_module_param"


class Parameters:
    """One run over a list of parameters."""

    def __init__(
        self,
        root: Root,
        arch: str,
        wanted: t.Sequence[Wanted],
        state: str,
        refresh_initramfs: bool = False,
        lock_seconds: float | None = None,
    ) -> None:
        self._root = root
        self._reader = Reader(root, arch)
        self._journal = Journal(root.path(core_journal.DIRECTORY), JOURNAL_NAME, lock_seconds)
        self._wanted = wanted
        self._state = state
        self._refresh_initramfs = refresh_initramfs
        self._seen: list[Observed] = []

    def converge(self, check_mode: bool) -> tuple[Plan, dict[str, t.Any]]:
        """Bring the parameters into the wanted state; return the plan and the other keys of the result.

        :raises InvalidInput: something cannot be; nothing was changed.
        :raises TapvirtError: a step failed; what came before it was put back.
        """
        recovered = [] if check_mode or not self._is_reloading() else self._steps().recover_modules()
        last = self._observe()
        planned = self._plan(last)
        if not check_mode and (planned or self._is_unsettled(last)):
            steps = self._steps()
            with self._journal.locked():
                self._seen.clear()
                planned, last = converge(False, self._observe, self._plan, steps.apply, self._verify, steps.undo)
                steps.finish_journal(self._seen[0])
        return self._result(planned, recovered, last, check_mode)

    def _steps(self) -> Applier:
        from .apply import Applier

        return Applier(self._root, self._reader, self._journal, self._wanted, self._state)

    def _is_reloading(self) -> bool:
        """Tell whether an interrupted run may have left a module unloaded."""
        with contextlib.suppress(PermissionError):
            return "reloading" in self._journal.read()
        return False

    def _observe(self) -> Observed:
        journal: dict[str, t.Any] = {}
        try:
            journal = self._journal.read()
        except PermissionError:
            # A user who may not read it may not set parameters either; reading their values is open to all. What they
            # were before they were first set is in the journal only.
            if self._state == "restored":
                raise
        given = {entry.key: entry.given for entry in self._wanted}
        observed = self._reader.observe(list(given), journal, given)
        for entry in self._wanted:
            if entry.read_back == "selector":
                item = observed.items[entry.key]
                observed.items[entry.key] = self._reader.item(*entry.key, kind=Kind("selector", item.kind.source))
        flaws = load_flaws(self._wanted, self._state, observed)
        observed = dataclasses.replace(observed, load_flaws=flaws)
        observed = dataclasses.replace(observed, modules=self._modules(observed))
        observed = dataclasses.replace(observed, image=self._image(observed))
        self._seen.append(observed)
        return observed

    def _modules(self, observed: Observed) -> dict[str, LoadedModule]:
        """Look at the loaded modules that may be loaded again."""
        found: dict[str, LoadedModule] = {}
        for entry in self._wanted:
            item = observed.items[entry.key]
            if entry.reload == "never" or item.built_in or not item.loaded or entry.module in found:
                continue
            from . import reload

            reload_blockers = reload.reload_blockers(self._root, entry.module, observed.lines, self._reader.aliases())
            if self._reader.installed.file_of(entry.module) is None:
                reload_blockers.append("it is not installed for this kernel, so it could not be loaded again")
            reload_blockers += observed.load_flaws.get(entry.module, [])
            found[entry.module] = LoadedModule(reload_blockers)
        return found

    def _image(self, observed: Observed) -> Image | None:
        """Look into the initramfs, unless nothing can have changed since it was made."""
        if not any(self._is_for_modprobe_d(entry, observed) for entry in self._wanted):
            return None
        from ..modules import initramfs

        name = initramfs.image_of(self._root, self._reader.release)
        if name is None:
            return None
        changing = any(self._is_about_to_change(entry, observed) for entry in self._wanted)
        if not changing and not initramfs.is_older_than_options(self._root, name):
            return None
        return initramfs.read_image(self._root, name, self._reader.release)

    def _is_for_modprobe_d(self, entry: Wanted, observed: Observed) -> bool:
        item = observed.items[entry.key]
        if item.built_in or self._state == "restored":
            return not item.built_in
        return layer_of(entry, item, observed).name == "modprobe_d"

    def _is_about_to_change(self, entry: Wanted, observed: Observed) -> bool:
        if self._state == "restored":
            return entry.key in observed.own
        return any(True for _change in persist_change(entry, observed.items[entry.key], observed))

    def _plan(self, observed: Observed) -> Plan:
        return plan(self._wanted, self._state, observed, self._refresh_initramfs)

    def _verify(self, observed: Observed) -> Plan:
        return plan(self._wanted, self._state, observed, self._refresh_initramfs, verifying=True)

    def _is_unsettled(self, observed: Observed) -> bool:
        """Tell whether the journal holds what is done with: an interrupted run, or an original that is back."""
        restored = self._state == "restored" and any(
            entry.label in observed.originals and is_restored(entry, observed) for entry in self._wanted
        )
        return restored or "in_progress" in observed.journal

    def _result(
        self, planned: Plan, recovered: t.Sequence[Step], last: Observed, check_mode: bool
    ) -> tuple[Plan, dict[str, t.Any]]:
        first, steps = self._seen[0], steps_of(planned)
        rows = [row(entry, self._state, first, last, steps, check_mode) for entry in self._wanted]
        named = {entry.key for entry in self._wanted}
        put_back = {step.what for step in steps if step.keys and not named & set(step.keys)}
        return Plan([*recovered, *planned]), {
            "params": rows,
            "recovered": sorted(put_back | {step.what for step in recovered}),
            "taints_added": _taints(last.tainted & ~first.tainted),
        }


def _taints(flags: int) -> list[str]:
    if not flags:
        return []
    return taint_flags(flags)
