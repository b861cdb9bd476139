# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the value of a parameter lasts, whether it does already, and what stands in its way.

Private to the collection. Pure functions of what is wanted and what was observed.
"""

from __future__ import annotations

import typing as t

from ..._core.errors import nearest_names
from ..image.cmdline import quote
from ..modules import modprobe_d
from ..modules.modinfo import canonical
from .model import Item, Observed, Wanted
from .values import Rejected, Value, kernel_value, parse_value, same, wanted_value

OWN_FILE = "/" + modprobe_d.OWN_FILE


# Types that take a bare name: KERNEL_PARAM_OPS_FL_NOARG in the kernel's kernel/params.c.
_BARE = ("bool", "bool_enable_only", "bint")


class Layer(t.NamedTuple):
    """Where a value lasts: ``none``, ``modprobe_d`` or ``command_line``.

    ``set_in`` is the file whose option wins and gives the value. ``flaws`` are options with which the module cannot be
    loaded at all, whatever wins.
    """

    name: str
    set_in: str | None
    pending: list[str]
    flaws: t.Sequence[str] = ()

    @property
    def persisted_in(self) -> str | None:
        """Return the file that gives the value when the module is loaded; ``None``: it cannot be loaded so."""
        return None if self.flaws else self.set_in


def wanted_of(entry: Wanted, item: Item) -> Value:
    """Return the wanted value as the kernel would take it.

    :raises InvalidInput: it would not.
    """
    try:
        value = wanted_value(item.kind, entry.value, item.word_bits)
    except Rejected as error:
        raise entry.refusal("value", f"{entry.label} {error}.", error.hint) from error
    if item.choices is not None and not _is_choice(value, item.choices, item.kind.word):
        problem = f"{entry.label} takes only what this kernel has or can load."
        if item.kind.word == "selector":
            problem = f"{entry.label} takes one of the words that it lists: {', '.join(item.choices)}."
        raise entry.refusal("value", problem, candidates=nearest_names(value.text, item.choices))
    current = item.current
    if value.key is None and (current is None or current.key is not None or entry.persist != "none"):
        problem = f"(null) stands for a text that was never set, and the kernel cannot unset {entry.label}."
        raise entry.refusal("value", problem, "Write '' for an empty text.")
    written = entry.runtime and item.writable
    if written and current is not None and item.kind.is_array and _count(current) > _count(value):
        count = _count(current)
        problem = f"{entry.label} has {count} elements, and the kernel would keep those that the value leaves out."
        raise entry.refusal("value", problem, f"Give all {count} elements.")
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
    flaws = [] if item.built_in else observed.load_flaws.get(entry.module, [])
    if on_command_line is not None and matches(on_command_line, item, value):
        return Layer(name, on_command_line.source, list(flaws), flaws)
    if name == "command_line":
        word = f"{item.command_line_word}={quote(value.text)}"
        return Layer(name, None, [f"add {word} to the kernel command line and reboot"])
    if item.built_in:
        problem = f"The module {item.module} is built into the kernel, and modprobe.d has no effect on it."
        raise entry.refusal("persist", problem, "Set persist to command_line or auto.")
    winner = observed.file_options.get(entry.key)
    set_in = winner.source if winner is not None and matches(winner, item, value) else None
    return Layer(name, set_in, [*flaws, *_overriding_settings(entry, observed, winner, set_in)], flaws)


def flaw(option: modprobe_d.Option, item: Item) -> str | None:
    """Return what the kernel takes for an option instead, as the end of a sentence; ``None``: it takes the option.

    One refused value is enough, whatever comes later (``parse_args`` in the kernel's kernel/params.c, ``load_module``).
    """
    if not item.strict:
        return None
    if option.value is None:
        return None if item.kind.word in _BARE else "needs a value"
    try:
        kernel_value(item.kind, option.value, item.word_bits)
    except Rejected as error:
        return str(error)
    return None


def load_flaws(wanted: t.Sequence[Wanted], state: str, observed: Observed) -> dict[str, list[str]]:
    """Return, for each loadable module, the options that the kernel refuses, in sentences.

    Those of our own file that this run sets or removes are left out.
    """
    edited = {entry.key for entry in wanted if state == "restored" or entry.persist in ("auto", "modprobe_d")}
    found: dict[str, list[str]] = {}
    for module, options in observed.load_options.items():
        for option, item in options:
            reason = flaw(option, item)
            if reason is not None and not (option.source == OWN_FILE and option.key in edited):
                found.setdefault(module, []).append(flaw_sentence(option, item, reason))
    return found


def flaw_sentence(option: modprobe_d.Option, item: Item, reason: str) -> str:
    """Say which option keeps a module from being loaded, and why."""
    return (
        f"{option.source} sets {option.word} for {item.module}, but {item.name} {reason}: the module cannot be loaded "
        "until that is corrected"
    )


def notes_of(item: Item, observed: Observed) -> list[str]:
    """Return what else the configuration says about a loadable module's loading, in words."""
    if item.built_in:
        return []
    found = []
    for command in ("blacklist", "softdep", "weakdep"):
        line = modprobe_d.line_about(observed.lines, command, item.module)
        if line is not None:
            found.append(f"{line.source} says: {line.command} {line.rest}")
    for option in observed.boot_options:
        # Each of several such words counts (kmod_config_parse_kcmdline in kmod's libkmod-config.c).
        is_list = option.key in (("kernel", "module_blacklist"), ("modprobe", "blacklist"))
        if is_list and item.module in map(canonical, (option.value or "").split(",")):
            prefix = "" if option.module == "kernel" else option.module + "."
            found.append(f"{option.source} says: {prefix}{option.word}")
    return found


def is_stale_in_initramfs(entry: Wanted, item: Item, state: str, observed: Observed) -> bool:
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
        value = None if left is None else value_of(left, item)
        return value is None or not matches(there, item, value)
    layer = layer_of(entry, item, observed)
    if layer.name != "modprobe_d" or layer.set_in == "/" + modprobe_d.COMMAND_LINE:
        return False
    if layer.set_in is None and own_file_matches(entry, item, observed):
        return False
    return there is None or not matches(there, item, wanted_of(entry, item))


def own_file_matches(entry: Wanted, item: Item, observed: Observed) -> bool:
    """Return whether our own file has the wanted value, even if another file wins."""
    own = observed.own.get(entry.key)
    return own is not None and matches(own, item, wanted_of(entry, item))


def matches(option: modprobe_d.Option, item: Item, value: Value) -> bool:
    """Tell whether an option gives a value."""
    given = value_of(option, item)
    return given is not None and same(item.kind, given, value)


def value_of(option: modprobe_d.Option, item: Item) -> Value | None:
    """Return the value that an option gives; ``None``: a bare name, and the parameter is no boolean."""
    if option.value is not None:
        return parse_value(item.kind, option.value, item.word_bits)
    # param_set_bool in the kernel's kernel/params.c.
    return parse_value(item.kind, "1", item.word_bits) if item.kind.word in _BARE or not item.strict else None


def _is_choice(value: Value, choices: t.Collection[str], word: str) -> bool:
    if word == "selector":
        return value.text.casefold() in [choice.casefold() for choice in choices]
    return value.text in choices


def _overriding_settings(
    entry: Wanted, observed: Observed, winner: modprobe_d.Option | None, set_in: str | None
) -> t.Iterator[str]:
    on_command_line = observed.command_line.get(entry.key)
    if on_command_line is not None:
        yield f"the kernel command line says {on_command_line.module}.{on_command_line.word}, which wins"
    if set_in is None and winner is not None and entry.key in observed.own and winner.source != OWN_FILE:
        yield f"{winner.source} says {winner.word}, which comes after our file and wins"
    install = modprobe_d.install_line(observed.lines, entry.module)
    if install is not None:
        yield f"{install.source} replaces the loading of the module: install {install.rest}"


def _is_own(option: modprobe_d.Option, entry: Wanted) -> bool:
    return option.source == OWN_FILE and (option.module, option.name) == entry.key


def _count(value: Value) -> int:
    return len(value.key) if isinstance(value.key, list) else 1
