# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to change for module parameters to be as wanted: a pure function of what is wanted and what was observed.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import InvalidInput, nearest_names
from .._core.plan import Change, Plan
from . import modprobe_d
from .modinfo import canonical
from .parameters import Item, Key, Observed, Wanted
from .values import Rejected, Value, is_put_back, said_value, same, wanted_value

OWN_FILE = "/" + modprobe_d.OWN_FILE
_UNVERIFIED = ("trigger", "opaque")


@dataclasses.dataclass(frozen=True)
class Write(Change):
    """Write ``text`` to the parameter's file; ``undo`` is what to write to put it back (null: nothing would)."""

    key: Key = ("", "")
    text: str = ""
    undo: str | None = None
    read_back: str = "auto"


@dataclasses.dataclass(frozen=True)
class Persist(Change):
    """Say ``value`` in our own file; null: no longer say anything."""

    key: Key = ("", "")
    value: str | None = None


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where a value lasts: ``none``, ``modprobe_d`` or ``command_line``."""

    name: str
    persisted_in: str | None
    pending: list[str]


def plan(wanted: t.Sequence[Wanted], state: str, observed: Observed, verifying: bool = False) -> Plan:
    """Return the changes; with ``verifying``, those that a look after the run must no longer find.

    :raises InvalidInput: something cannot be; nothing was changed.
    """
    changes: list[Change] = []
    for entry in wanted:
        item = observed.items[entry.key]
        if state == "restored":
            changes += _restore(entry, item, observed)
        else:
            changes += _runtime_change(entry, item, observed, verifying)
            changes += _persist_change(entry, item, observed)
    named = {entry.key for entry in wanted}
    return Plan(changes + list(_recovery(named, observed)))


def wanted_of(entry: Wanted, item: Item) -> Value:
    """Return the wanted value as the kernel would take it.

    :raises InvalidInput: it would not.
    """
    try:
        value = wanted_value(item.kind, entry.value, item.word_bits)
    except Rejected as error:
        raise InvalidInput(entry.label, entry.value, "{} (type: {})".format(error, item.kind.word)) from error
    if item.choices is not None and value.text not in item.choices:
        nearest = nearest_names(value.text, item.choices)
        raise InvalidInput(entry.label, entry.value, "is nothing that this kernel has or could load", nearest)
    current = item.current
    if value.key is None and (current is None or current.key is not None or entry.persist != "none"):
        rule = "is what a text that was never set looks like; one that was set cannot be unset, only be empty ('')"
        raise InvalidInput(entry.label, entry.value, rule)
    if current is not None and item.kind.is_array and _count(current) > _count(value):
        rule = "has {} elements, and the parameter {}: the kernel would keep the rest; give all".format(
            _count(value), _count(current)
        )
        raise InvalidInput(entry.label, entry.value, rule)
    return value


def layer_of(entry: Wanted, item: Item, observed: Observed) -> Layer:
    """Return where a value lasts, whether it does already, and what stands in its way."""
    name = entry.persist
    if name == "auto":
        name = "command_line" if item.built_in else "modprobe_d"
    if name == "none":
        return Layer(name, None, [])
    value = wanted_of(entry, item)
    on_command_line = observed.command_line.get(entry.key)
    if on_command_line is not None and _says(on_command_line, item, value):
        return Layer(name, on_command_line.source, [])
    if name == "command_line":
        word = "{}={}".format(item.command_line_word, value.text)
        return Layer(name, None, ["add {} to the kernel command line and reboot".format(word)])
    if item.built_in:
        rule = "is built into the kernel, so modprobe.d does not reach it; say persist: command_line or auto"
        raise InvalidInput("module", item.module, rule)
    winner = observed.file_options.get(entry.key)
    persisted_in = winner.source if winner is not None and _says(winner, item, value) else None
    return Layer(name, persisted_in, list(_in_the_way(entry, observed, winner, persisted_in)))


def unchanged_adjustment(entry: Wanted, item: Item, observed: Observed) -> bool:
    """Tell whether the running value is what the kernel made of this very value in an earlier run."""
    known = observed.journal.get("adjusted", {}).get(entry.label)
    current = item.current
    if known is None or current is None:
        return False
    return bool(known == {"wanted": wanted_of(entry, item).text, "read": current.text})


def takes_effect(item: Item) -> str:
    """Say when a parameter that cannot be set now gets the value that is kept for it."""
    if item.built_in:
        return "not in effect: it takes effect when the kernel is started with it"
    return "not in effect: it takes effect when the module is loaded" + (" again" if item.loaded else "")


def read_only_reason(item: Item) -> str:
    """Say why a parameter cannot be set while the kernel runs, and where it can be set."""
    where = "on the kernel command line, as {}=VALUE".format(item.command_line_word)
    if not item.built_in:
        where = "when the module is loaded (persist: modprobe_d)"
    if not item.loaded:
        return "the module is not loaded; the parameter can be set " + where
    if item.mode is None:
        return "it has no file in sysfs; it can be set only " + where
    return "it is read-only (mode {:04o} in sysfs); it can be set only {}".format(item.mode, where)


def _runtime_change(entry: Wanted, item: Item, observed: Observed, verifying: bool) -> t.Iterator[Change]:
    value = wanted_of(entry, item)
    current = item.current
    if not entry.runtime or (verifying and entry.read_back in _UNVERIFIED):
        return
    reached = current is not None and (same(item.kind, current, value) or unchanged_adjustment(entry, item, observed))
    if reached and entry.read_back != "trigger":
        return
    if not item.writable:
        if entry.persist == "none":
            raise InvalidInput(entry.label, entry.value, "cannot be set now: " + read_only_reason(item))
        return
    if current is None and entry.read_back not in _UNVERIFIED:
        rule = "cannot be verified: the parameter cannot be read back (mode {:04o}); say read_back: opaque".format(
            item.mode or 0
        )
        raise InvalidInput(entry.label, entry.value, rule)
    if item.kind.word == "bool_enable_only" and current is not None and current.key:
        raise InvalidInput(entry.label, entry.value, "cannot be set: once enabled it stays enabled until a reboot")
    yield Write(
        what=entry.label,
        before=None if current is None else current.shown,
        after=value.shown,
        how="sysfs",
        why="a write always acts" if entry.read_back == "trigger" else "it has another value",
        key=entry.key,
        text=value.text,
        undo=None if current is None or entry.read_back == "trigger" else _undo_text(current),
        read_back=entry.read_back,
    )


def _persist_change(entry: Wanted, item: Item, observed: Observed) -> t.Iterator[Change]:
    layer = layer_of(entry, item, observed)
    if layer.name != "modprobe_d" or layer.persisted_in is not None:
        return
    value = wanted_of(entry, item)
    try:
        modprobe_d.quoted(value.text)
    except modprobe_d.Unwritable as error:
        raise InvalidInput(entry.label, entry.value, "cannot be persisted: it {}".format(error)) from error
    own = observed.own.get(entry.key)
    if own is not None and same(item.kind, said_value(item.kind, own, item.word_bits), value):
        return
    winner = observed.file_options.get(entry.key)
    yield Persist(
        what="{} in {}".format(entry.label, OWN_FILE),
        before=None if winner is None else _said(winner, item).shown,
        after=value.shown,
        how=OWN_FILE,
        why="nothing sets it when the module is loaded"
        if winner is None
        else "{} sets another value".format(winner.source),
        key=entry.key,
        value=value.text,
    )


def _restore(entry: Wanted, item: Item, observed: Observed) -> t.Iterator[Change]:
    original = observed.journal.get("originals", {}).get(entry.label)
    current = item.current
    if original is not None and current is not None:
        first = said_value(item.kind, original, item.word_bits)
        if not is_put_back(item.kind, current, first):
            yield Write(
                what=entry.label,
                before=current.shown,
                after=first.shown,
                how="sysfs",
                why="this is what it was before it was first set",
                key=entry.key,
                text=_undo_text(first),
                undo=_undo_text(current),
            )
    if entry.key in observed.own:
        yield Persist(
            what="{} in {}".format(entry.label, OWN_FILE),
            before=said_value(item.kind, observed.own[entry.key], item.word_bits).shown,
            after=None,
            how=OWN_FILE,
            why="it was not persisted before it was first set",
            key=entry.key,
        )


def _recovery(named: t.Collection[tuple[str, str]], observed: Observed) -> t.Iterator[Change]:
    """Put back what an interrupted run had set and this run does not name."""
    for label, before in sorted(observed.interrupted.items()):
        module, _dot, name = label.partition(".")
        item = observed.items.get((module, name))
        if (module, name) in named or item is None or item.current is None:
            continue
        first = said_value(item.kind, before, item.word_bits)
        if not is_put_back(item.kind, item.current, first):
            yield Write(
                what=label,
                before=item.current.shown,
                after=first.shown,
                how="sysfs",
                why="an interrupted run had changed it",
                key=(module, name),
                text=_undo_text(first),
                undo=_undo_text(item.current),
            )


def _in_the_way(
    entry: Wanted, observed: Observed, winner: modprobe_d.Option | None, persisted_in: str | None
) -> t.Iterator[str]:
    on_command_line = observed.command_line.get(entry.key)
    if on_command_line is not None:
        word = "{}.{}={}".format(on_command_line.module, on_command_line.name, on_command_line.value)
        yield "the kernel command line says {}, which wins".format(word)
    if persisted_in is None and winner is not None and entry.key in observed.own and winner.source != OWN_FILE:
        yield "{} says {}={}, which comes after our file and wins".format(winner.source, winner.name, winner.value)
    for line in observed.lines:
        if line.command == "install" and [canonical(word) for word in line.rest.split(None, 1)[:1]] == [entry.module]:
            yield "{} replaces the loading of the module: install {}".format(line.source, line.rest)


def _says(option: modprobe_d.Option, item: Item, value: Value) -> bool:
    return same(item.kind, _said(option, item), value)


def _said(option: modprobe_d.Option, item: Item) -> Value:
    # A bare name switches a truth value on (param_set_bool in the kernel's kernel/params.c).
    return said_value(item.kind, "Y" if option.value is None else option.value, item.word_bits)


def _undo_text(value: Value) -> str:
    return "" if value.key is None else value.text


def _count(value: Value) -> int:
    return len(value.key) if isinstance(value.key, list) else 1
