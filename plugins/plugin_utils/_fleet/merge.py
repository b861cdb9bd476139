# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables for all hosts, for groups and for one host, merged into one. Private to the collection."""

from __future__ import annotations

import typing as t

from ...module_utils._core.errors import InvalidInput
from ...module_utils._kernel.modules.modinfo import canonical
from .origins import Origin

Identity = dict[str, str]
Identify = t.Callable[[str, t.Mapping[str, t.Any]], Identity]

_PARAM = "{module: kvm, name: halt_poll_ns, value: 200000}"
_DOMAIN = "{name: web1, state: running}"


def merge_params(tables: t.Any, **defaults: t.Any) -> list[dict[str, t.Any]]:
    """Return one table of module parameters; see :func:`_merge`.

    An entry is one of :ansplugin:`tapvirt.host.kernel_module_param#module`. Its ``module`` and ``name`` identify it;
    ``-`` and ``_`` are the same to the kernel.

    :param defaults: keys that every entry has unless a table sets them.
    :raises InvalidInput: an entry is not a parameter, or a table contains a parameter twice.
    """
    return _merge(tables, _param_identity, defaults, _PARAM)


def merge_domains(tables: t.Any) -> list[dict[str, t.Any]]:
    """Return one table of domains, which their ``name`` identifies; see :func:`_merge`.

    :raises InvalidInput: an entry is not a domain, or a table contains a domain twice.
    """
    return _merge(tables, _domain_identity, {}, _DOMAIN)


def param_origins(entries: t.Sequence[t.Mapping[str, t.Any]], tables: t.Any, **defaults: str) -> list[Origin]:
    """Return where each merged entry of parameters comes from.

    :param defaults: for the keys of :func:`merge_params`, the variables with these defaults.
    """
    return _origins(entries, tables, _param_identity, defaults, _PARAM)


def domain_origins(entries: t.Sequence[t.Mapping[str, t.Any]], tables: t.Any) -> list[Origin]:
    """Return where each merged entry of domains comes from."""
    return _origins(entries, tables, _domain_identity, {}, _DOMAIN)


def _merge(tables: t.Any, identify: Identify, defaults: t.Mapping[str, t.Any], example: str) -> list[dict[str, t.Any]]:
    """Return one entry for each identity, in the order of its first one. A later table wins, key by key."""
    merged: dict[tuple[str, ...], dict[str, t.Any]] = {}
    for _option, entry, identity in _entries(tables, identify, example):
        key = tuple(identity.values())
        merged[key] = {**merged.get(key, defaults), **entry, **identity}
    return list(merged.values())


def _origins(
    entries: t.Sequence[t.Mapping[str, t.Any]],
    tables: t.Any,
    identify: Identify,
    defaults: t.Mapping[str, str],
    example: str,
) -> list[Origin]:
    origins: dict[tuple[str, ...], Origin] = {}
    for option, entry, identity in _entries(tables, identify, example):
        key = tuple(identity.values())
        keys = {
            **(origins[key]["keys"] if key in origins else defaults),
            **{name: f"{option}.{name}" for name in entry},
        }
        origins[key] = Origin(name=".".join(key), path=option, keys=keys)
    return [origins[tuple(identify("entry", entry).values())] for entry in entries]


def _entries(
    tables: t.Any, identify: Identify, example: str
) -> t.Iterator[tuple[str, t.Mapping[str, t.Any], Identity]]:
    """Return the path of each entry, the entry and its identity, table by table.

    :param tables: lists of entries, by the name of their variable. None is an empty table.
    """
    if not isinstance(tables, t.Mapping):
        raise InvalidInput("tables", tables, "The tables are a dictionary of variables with their lists.")
    for variable, table in tables.items():
        if table is None:
            continue
        if isinstance(table, str) or not isinstance(table, t.Sequence):
            raise InvalidInput(variable, table, f"A table is a list of entries, such as {example}.")
        first: dict[tuple[str, ...], int] = {}
        for index, entry in enumerate(table):
            option = f"{variable}[{index}]"
            if not isinstance(entry, t.Mapping):
                raise InvalidInput(option, entry, f"An entry is a dictionary, such as {example}.")
            identity = identify(option, entry)
            key = tuple(identity.values())
            if key in first:
                name = ".".join(key)
                raise InvalidInput(option, name, f"The table already contains {name}, as {variable}[{first[key]}].")
            first[key] = index
            yield option, entry, identity


def _param_identity(option: str, entry: t.Mapping[str, t.Any]) -> Identity:
    for key in ("module", "name"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise InvalidInput(f"{option}.{key}", entry.get(key), f"An entry has a {key}, such as {_PARAM}.")
    return {"module": canonical(entry["module"]), "name": canonical(entry["name"])}


def _domain_identity(option: str, entry: t.Mapping[str, t.Any]) -> Identity:
    """Return the name; YAML reads a name such as 101 as a number."""
    name = entry.get("name")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise InvalidInput(f"{option}.name", name, f"An entry has a name, such as {_DOMAIN}.")
    return {"name": str(name)}
