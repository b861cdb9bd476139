# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the value of a parameter lasts, whether it does already, and what stands in its way.

Private to the collection. Pure functions of what is wanted and what was observed.
"""

from __future__ import annotations

import typing as t

from .._core.errors import InvalidInput, nearest_names
from . import modprobe_d
from .modinfo import canonical
from .parameters import Item, Observed, Wanted
from .values import Rejected, Value, said_value, same, wanted_value

OWN_FILE = "/" + modprobe_d.OWN_FILE


class Layer(t.NamedTuple):
    """Where a value lasts: ``none``, ``modprobe_d`` or ``command_line``."""

    name: str
    persisted_in: str | None
    pending: list[str]


def wanted_of(entry: Wanted, item: Item) -> Value:
    """Return the wanted value as the kernel would take it.

    :raises InvalidInput: it would not.
    """
    try:
        value = wanted_value(item.kind, entry.value, item.word_bits)
    except Rejected as error:
        raise InvalidInput(entry.label, entry.value, "{} (type: {})".format(error, item.kind.word)) from error
    if item.choices is not None and not _is_choice(value, item.choices, item.kind.word):
        rule = "is nothing that this kernel has or could load"
        if item.kind.word == "selector":
            rule = "is none of the words that the parameter lists ({})".format(", ".join(item.choices))
        raise InvalidInput(entry.label, entry.value, rule, nearest_names(value.text, item.choices))
    current = item.current
    if value.key is None and (current is None or current.key is not None or entry.persist != "none"):
        rule = "is what a text that was never set looks like; one that was set cannot be unset, only be empty ('')"
        raise InvalidInput(entry.label, entry.value, rule)
    written = entry.runtime and item.writable
    if written and current is not None and item.kind.is_array and _count(current) > _count(value):
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
    if on_command_line is not None and says(on_command_line, item, value):
        return Layer(name, on_command_line.source, [])
    if name == "command_line":
        word = "{}={}".format(item.command_line_word, value.text)
        return Layer(name, None, ["add {} to the kernel command line and reboot".format(word)])
    if item.built_in:
        rule = "is built into the kernel, so modprobe.d does not reach it; say persist: command_line or auto"
        raise InvalidInput("module", item.module, rule)
    winner = observed.file_options.get(entry.key)
    persisted_in = winner.source if winner is not None and says(winner, item, value) else None
    return Layer(name, persisted_in, list(_in_the_way(entry, observed, winner, persisted_in)))


def notes_of(item: Item, observed: Observed) -> list[str]:
    """Return what else the configuration says about a loadable module's loading, in words."""
    if item.built_in:
        return []
    found = []
    for command in ("blacklist", "softdep", "weakdep"):
        line = modprobe_d.line_about(observed.lines, command, item.module)
        if line is not None:
            found.append("{} says: {} {}".format(line.source, line.command, line.rest))
    for module, name in (("kernel", "module_blacklist"), ("modprobe", "blacklist")):
        option = observed.command_line.get((module, name))
        if option is not None and item.module in map(canonical, (option.value or "").split(",")):
            word = name if module == "kernel" else "{}.{}".format(module, name)
            found.append("{} says: {}={}".format(option.source, word, option.value))
    return found


def waits_in_image(entry: Wanted, item: Item, state: str, observed: Observed) -> bool:
    """Tell whether the initramfs loads the module with another value than modprobe.d says (or is about to)."""
    image = observed.image
    if image is None or item.built_in or entry.module not in image.modules:
        return False
    there = image.options.get(entry.key)
    if state == "restored":
        others = [option for option in modprobe_d.options_of(observed.lines) if not _is_own(option, entry)]
        left = modprobe_d.effective(others).get(entry.key)
        if there is None or there.source != OWN_FILE:
            return False
        return left is None or not says(there, item, said(left, item))
    layer = layer_of(entry, item, observed)
    if layer.name != "modprobe_d" or layer.persisted_in == "/" + modprobe_d.COMMAND_LINE:
        return False
    if layer.persisted_in is None and own_says(entry, item, observed):
        return False
    return there is None or not says(there, item, wanted_of(entry, item))


def own_says(entry: Wanted, item: Item, observed: Observed) -> bool:
    """Tell whether our own file has the wanted value, whoever wins."""
    own = observed.own.get(entry.key)
    return own is not None and same(item.kind, said_value(item.kind, own, item.word_bits), wanted_of(entry, item))


def says(option: modprobe_d.Option, item: Item, value: Value) -> bool:
    """Tell whether an option gives a value."""
    return same(item.kind, said(option, item), value)


def said(option: modprobe_d.Option, item: Item) -> Value:
    """Return the value that an option gives."""
    # A bare name switches a truth value on (param_set_bool in the kernel's kernel/params.c).
    return said_value(item.kind, "Y" if option.value is None else option.value, item.word_bits)


def _is_choice(value: Value, choices: t.Collection[str], word: str) -> bool:
    if word == "selector":
        return value.text.casefold() in [choice.casefold() for choice in choices]
    return value.text in choices


def _in_the_way(
    entry: Wanted, observed: Observed, winner: modprobe_d.Option | None, persisted_in: str | None
) -> t.Iterator[str]:
    on_command_line = observed.command_line.get(entry.key)
    if on_command_line is not None:
        word = "{}.{}={}".format(on_command_line.module, on_command_line.name, on_command_line.value)
        yield "the kernel command line says {}, which wins".format(word)
    if persisted_in is None and winner is not None and entry.key in observed.own and winner.source != OWN_FILE:
        yield "{} says {}={}, which comes after our file and wins".format(winner.source, winner.name, winner.value)
    install = modprobe_d.install_line(observed.lines, entry.module)
    if install is not None:
        yield "{} replaces the loading of the module: install {}".format(install.source, install.rest)


def _is_own(option: modprobe_d.Option, entry: Wanted) -> bool:
    return option.source == OWN_FILE and (option.module, option.name) == entry.key


def _count(value: Value) -> int:
    return len(value.key) if isinstance(value.key, list) else 1
