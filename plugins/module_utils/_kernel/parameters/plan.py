# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to change for module parameters to be as wanted: a pure function of what is wanted and what was observed.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..._core.errors import InvalidInput
from ..._core.plan import Change, Plan
from ..modules import modprobe_d
from .layers import OWN_FILE, flaw, is_stale_in_initramfs, layer_of, own_file_matches, value_of, wanted_of
from .model import Item, Key, Observed, Wanted, read_only_hint, read_only_reason
from .values import Value, is_in_effect, is_put_back, parse_value

_UNVERIFIED = ("trigger", "opaque")


@dataclasses.dataclass(frozen=True)
class Step(Change):
    """One step; ``keys`` are the parameters that it is taken for."""

    keys: tuple[Key, ...] = ()


@dataclasses.dataclass(frozen=True)
class Write(Step):
    """Write ``text`` to the parameter's file; ``undo`` is what to write to put it back (null: nothing would)."""

    key: Key = ("", "")
    text: str = ""
    undo: str | None = None
    read_back: str = "auto"
    allow_taint: bool = True


@dataclasses.dataclass(frozen=True)
class Persist(Step):
    """Set an option in our own file to ``value`` (``True``: the bare name); ``None``: remove it."""

    key: Key = ("", "")
    value: modprobe_d.Setting | None = None


@dataclasses.dataclass(frozen=True)
class Reload(Step):
    """Unload and load a module.

    ``named`` are the parameters that this is done for and what modprobe.d says of them, each with its read-back
    policy; ``given`` are those that have to be what they are here whatever modprobe.d says.
    """

    module: str = ""
    named: t.Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    given: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    allow_taint: bool = True


@dataclasses.dataclass(frozen=True)
class Refresh(Step):
    """Rebuild the initramfs."""


def plan(
    wanted: t.Sequence[Wanted], state: str, observed: Observed, refresh_initramfs: bool = False, verifying: bool = False
) -> Plan:
    """Return the changes; with ``verifying``, those that a look after the run must no longer find.

    :raises InvalidInput: something cannot be; nothing was changed.
    """
    changes: list[Step] = []
    for entry in wanted:
        item = observed.items[entry.key]
        if state == "restored":
            changes += _restore(entry, item, observed)
        else:
            steps = [*_runtime_change(entry, item, observed, verifying), *persist_change(entry, item, observed)]
            if steps:
                _check_taint(entry, item)
            changes += steps
    changes += _recovery({entry.key for entry in wanted}, observed)
    changes += _reloads(wanted, state, observed, {key for change in changes for key in change.keys})
    changes += _refresh(wanted, state, observed, refresh_initramfs)
    return Plan(changes)


def is_reached(entry: Wanted, item: Item, observed: Observed) -> bool:
    """Tell whether the running value is the wanted one, or what the kernel made of it in an earlier run."""
    current = item.current
    if current is None:
        return False
    value = wanted_of(entry, item)
    known = observed.journal.get("adjusted", {}).get(entry.label)
    return is_in_effect(item.kind, current, value) or bool(known == {"wanted": value.text, "read": current.text})


def needs_reload(entry: Wanted, item: Item, state: str, observed: Observed, persisting: t.Collection[Key] = ()) -> bool:
    """Tell whether a parameter only waits for its loaded module to be loaded again, and that was asked for.

    ``persisting`` are the parameters that a plan is about to write to modprobe.d: of one that cannot be read nothing
    else tells that it is not in effect.
    """
    if entry.reload == "never" or entry.module not in observed.modules or item.writable:
        return False
    if state == "restored":
        original = observed.originals.get(entry.label)
        current = item.current
        if original is None or current is None:
            return False
        return not is_put_back(item.kind, current, parse_value(item.kind, original, item.word_bits))
    if not entry.runtime or is_reached(entry, item, observed):
        return False
    kept = item.text is not None and layer_of(entry, item, observed).set_in is not None
    return kept or entry.key in persisting


def is_restored(entry: Wanted, observed: Observed) -> bool:
    """Tell whether a parameter is what it was before it was first set, as far as it can be while it runs."""
    item, original = observed.items[entry.key], observed.originals.get(entry.label)
    if original is None or item.current is None or item.writable:
        return True
    return is_put_back(item.kind, item.current, parse_value(item.kind, original, item.word_bits))


def persist_change(entry: Wanted, item: Item, observed: Observed) -> t.Iterator[Persist]:
    """Yield the change to our own file, if there has to be one.

    :raises InvalidInput: modprobe.d cannot hold the value.
    """
    layer = layer_of(entry, item, observed)
    own = observed.own.get(entry.key)
    refused = own is not None and flaw(own, item) is not None
    if layer.name != "modprobe_d" or (layer.set_in is not None and not refused):
        return
    value = wanted_of(entry, item)
    try:
        modprobe_d.check_writable(value.text)
    except modprobe_d.Unwritable as error:
        raise entry.refusal("value", f"The value of {entry.label} cannot be persisted: {error}.") from error
    if own_file_matches(entry, item, observed):
        return
    winner = observed.file_options.get(entry.key)
    why = "nothing sets it when the module is loaded"
    if refused:
        why = f"the kernel refuses the value that {OWN_FILE} has"
    elif winner is not None:
        why = f"{winner.source} sets another value"
    yield Persist(
        what=f"{entry.label} in {OWN_FILE}",
        before=_shown(winner, item),
        after=value.shown,
        how=OWN_FILE,
        why=why,
        keys=(entry.key,),
        key=entry.key,
        value=value.text,
    )


def _shown(option: modprobe_d.Option | None, item: Item) -> t.Any:
    """Return the value that an option gives, as it is returned; ``None``: it gives none."""
    value = None if option is None else value_of(option, item)
    return None if value is None else value.shown


def undo_text(value: Value) -> str:
    """Return what to write to put a value back."""
    return "" if value.key is None else value.text


def _runtime_change(entry: Wanted, item: Item, observed: Observed, verifying: bool) -> t.Iterator[Step]:
    value = wanted_of(entry, item)
    current = item.current
    read_back = item.read_back(entry.read_back)
    if not entry.runtime or (verifying and read_back in _UNVERIFIED):
        return
    # A known trigger that reads back as the wanted value (0) was not asked to act; one that is named as one was.
    if is_reached(entry, item, observed) and entry.read_back != "trigger":
        return
    if not item.writable:
        if entry.persist == "none":
            problem = f"{entry.label} cannot be set now: {read_only_reason(item)}."
            raise entry.refusal("value", problem, read_only_hint(item))
        return
    if current is None and read_back not in _UNVERIFIED:
        problem = f"{entry.label} cannot be read back (mode {item.mode or 0:04o}), so its value cannot be verified."
        raise entry.refusal("value", problem, "Set read_back to opaque to write it without a check.")
    if item.kind.word == "bool_enable_only" and current is not None and current.key:
        raise entry.refusal("value", f"Once enabled, {entry.label} stays enabled until a reboot.")
    undo = None
    if current is not None and read_back != "trigger":
        # What an interrupted run had set is not what this one goes back to when it fails.
        undo = observed.interrupted.get(entry.label, undo_text(current))
    yield Write(
        what=entry.label,
        before=None if current is None else current.shown,
        after=value.shown,
        how="sysfs",
        why="a write always acts" if read_back in _UNVERIFIED else "it has another value",
        keys=(entry.key,),
        key=entry.key,
        text=value.text,
        undo=undo,
        read_back=read_back,
        allow_taint=entry.allow_taint,
    )


def _check_taint(entry: Wanted, item: Item) -> None:
    if item.unsafe and not entry.allow_taint:
        problem = f"The module marks {entry.label} as unsafe: setting it taints the kernel (U) until a reboot."
        raise entry.refusal("value", problem, "Set allow_taint to true to set it all the same.")


def _reloads(
    wanted: t.Sequence[Wanted], state: str, observed: Observed, changing: t.Collection[Key]
) -> t.Iterator[Reload]:
    """Yield one step for each module that has to be loaded again, and can be."""
    for module, loaded in sorted(observed.modules.items()):
        entries = [
            entry
            for entry in wanted
            if entry.module == module and needs_reload(entry, observed.items[entry.key], state, observed, changing)
        ]
        if not entries or loaded.reload_blockers:
            continue
        before: dict[str, t.Any] = {}
        after: dict[str, t.Any] = {}
        given: dict[str, str] = {}
        named: dict[str, tuple[str, str]] = {}
        for entry in entries:
            item = observed.items[entry.key]
            before[entry.name] = None if item.current is None else item.current.shown
            if state == "restored":
                given[entry.name] = observed.originals[entry.label]
                after[entry.name] = parse_value(item.kind, given[entry.name], item.word_bits).shown
            else:
                _check_taint(entry, item)
                value = wanted_of(entry, item)
                named[entry.name], after[entry.name] = (value.text, item.read_back(entry.read_back)), value.shown
        yield Reload(
            what=f"the module {module}",
            before=before,
            after=after,
            how="rmmod, modprobe",
            why=f"nothing uses it, and {', '.join(sorted(after))} can be set only when it is loaded",
            keys=tuple(entry.key for entry in entries),
            module=module,
            named=named,
            given=given,
            allow_taint=all(entry.allow_taint for entry in entries),
        )


def _refresh(
    wanted: t.Sequence[Wanted], state: str, observed: Observed, refresh_initramfs: bool
) -> t.Iterator[Refresh]:
    image = observed.image
    if not refresh_initramfs or image is None:
        return
    stale = [entry for entry in wanted if is_stale_in_initramfs(entry, observed.items[entry.key], state, observed)]
    if not stale:
        return
    if not image.maker:
        problem = f"This host has neither update-initramfs nor dracut, so {image.path} cannot be rebuilt."
        raise InvalidInput("refresh_initramfs", refresh_initramfs, problem)
    names = ", ".join(entry.label for entry in stale)
    yield Refresh(
        what=image.path,
        before=f"other options than modprobe.d for {names}",
        after="those of modprobe.d",
        how=" ".join(image.maker),
        why="the module is loaded from it, before the root file system is there",
        keys=tuple(entry.key for entry in stale),
    )


def _restore(entry: Wanted, item: Item, observed: Observed) -> t.Iterator[Step]:
    original = observed.originals.get(entry.label)
    current = item.current
    if original is not None and current is not None and item.writable:
        first = parse_value(item.kind, original, item.word_bits)
        if not is_put_back(item.kind, current, first):
            yield Write(
                what=entry.label,
                before=current.shown,
                after=first.shown,
                how="sysfs",
                why="this is what it was before it was first set",
                keys=(entry.key,),
                key=entry.key,
                text=undo_text(first),
                undo=undo_text(current),
            )
    if entry.key in observed.own:
        yield Persist(
            what=f"{entry.label} in {OWN_FILE}",
            before=_shown(observed.own[entry.key], item),
            after=None,
            how=OWN_FILE,
            why="it was not persisted before it was first set",
            keys=(entry.key,),
            key=entry.key,
        )


def _recovery(named: t.Collection[Key], observed: Observed) -> t.Iterator[Step]:
    """Put back what an interrupted run had set, or kept, and this run does not name."""
    for key, line in sorted(observed.interrupted_lines.items()):
        own = observed.own.get(key)
        setting = None if own is None else own.setting
        if key not in named and setting != line:
            yield Persist(
                what=f"{'.'.join(key)} in {OWN_FILE}",
                before=setting,
                after=line,
                how=OWN_FILE,
                why="an interrupted run had changed it",
                keys=(key,),
                key=key,
                value=line,
            )
    for label, before in sorted(observed.interrupted.items()):
        module, _dot, name = label.partition(".")
        item = observed.items.get((module, name))
        if (module, name) in named or item is None or item.current is None:
            continue
        first = parse_value(item.kind, before, item.word_bits)
        if not is_put_back(item.kind, item.current, first):
            yield Write(
                what=label,
                before=item.current.shown,
                after=first.shown,
                how="sysfs",
                why="an interrupted run had changed it",
                keys=((module, name),),
                key=(module, name),
                text=undo_text(first),
                undo=undo_text(item.current),
            )
