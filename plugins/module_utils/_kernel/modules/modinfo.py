# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse what modules declare: types and descriptions of parameters, of loadable and of built-in modules.

Private to the collection. Sources are the ``.modinfo`` section of a module's file and ``modules.builtin.modinfo`` (the
same, ``module.`` before each entry).
"""

from __future__ import annotations

import typing as t

#: Built-in modules whose parameters appear under another name: MODULE_PARAM_PREFIX in the kernel's sources.
#: ``modules.builtin.modinfo`` has the name of the source file, sysfs and the command line have the prefix.
SOURCE_NAMES = {
    "8250_core": ("8250_rsa",),
    "block": ("events",),
    "damon_lru_sort": ("lru_sort",),
    "damon_reclaim": ("reclaim",),
    "damon_stat": ("stat",),
    "kfence": ("core",),
    "mmcblk": ("block",),
    "module": ("main", "signing", "dups"),
    "rcupdate": ("update",),
    "rcutree": ("tree",),
    "xen": ("balloon", "events", "events_base", "grant_table"),
}


class ParameterInfo(t.NamedTuple):
    """A parameter as its module declares it. Either may be null: some have a type only, some a description only."""

    type: str | None
    description: str | None


def canonical(name: str) -> str:
    """Return a module's or parameter's name as sysfs has it: the kernel takes ``-`` and ``_`` as the same."""
    return name.replace("-", "_")


def parse_modinfo(data: bytes) -> list[tuple[str, str]]:
    """Return the entries of a ``.modinfo`` section: keys may repeat, values may hold line ends."""
    pairs = (entry.decode("utf-8", "replace").partition("=") for entry in data.split(b"\0") if entry)
    return [(key, value) for key, equals, value in pairs if equals]


def parameters_of(entries: t.Iterable[tuple[str, str]]) -> dict[str, ParameterInfo]:
    """Return the parameters that entries declare; ``parm`` and ``parmtype`` are joined by the name before the colon."""
    types: dict[str, str] = {}
    descriptions: dict[str, str] = {}
    for key, value in entries:
        name, _colon, rest = value.partition(":")
        if key == "parmtype":
            types[canonical(name)] = rest
        elif key == "parm":
            descriptions[canonical(name)] = rest
    return {name: ParameterInfo(types.get(name), descriptions.get(name)) for name in sorted({*types, *descriptions})}


def parse_builtin_modinfo(data: bytes) -> dict[str, list[tuple[str, str]]]:
    """Return the entries of ``modules.builtin.modinfo``, by module."""
    modules: dict[str, list[tuple[str, str]]] = {}
    for key, value in parse_modinfo(data):
        module, dot, field = key.partition(".")
        if dot:
            modules.setdefault(canonical(module), []).append((field, value))
    return modules
