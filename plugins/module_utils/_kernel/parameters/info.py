# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to know of the parameters of modules: as rows, bounded.

Private to the collection. Nothing here writes.
"""

from __future__ import annotations

import fnmatch
import re
import typing as t

from ..._core.errors import InvalidInput, nearest_names
from ..._core.root import Root
from ..modules import modprobe_d
from ..modules.kernel_param_section import Declared
from ..modules.modinfo import SOURCE_NAMES, canonical
from .layers import flaw, flaw_sentence, value_of
from .model import Item, Key, Observed, Reader
from .values import Value, kind_of_value, read_value, same

_ASKED = re.compile(r"^[A-Za-z0-9_.\-*?\[\]!]+\Z")
_GLOB = re.compile(r"[*?\[]")


def parameter_info(
    root: Root, arch: str, modules: t.Sequence[str], names: t.Sequence[str], limit: int
) -> dict[str, t.Any]:
    """Return ``modules``, ``params``, ``absent_names`` and ``truncated``.

    :raises InvalidInput: an entry can be neither a name nor a shell pattern, or the limit is not positive.
    """
    for option, entries in (("modules", modules), ("names", names)):
        for index, entry in enumerate(entries):
            if not _ASKED.match(entry):
                problem = "An entry is a name of letters, digits, hyphens and underscores, or a shell pattern."
                raise InvalidInput(f"{option}[{index}]", entry, problem)
    if limit < 1:
        raise InvalidInput("limit", limit, "The limit must be 1 or more.")
    return _Look(Reader(root, arch), root, names, limit).rows(modules)


class _Look:
    """One look at modules, in the order asked for, that stops where the limit is reached."""

    def __init__(self, reader: Reader, root: Root, names: t.Sequence[str], limit: int) -> None:
        self._reader = reader
        self._root = root
        self._names = [_canonical_pattern(name) for name in names]
        self._left = limit
        self._truncated = False
        self._in_sysfs = root.listdir("sys/module")
        self._known = _known_modules(self._in_sysfs, reader.installed.names())
        self._all_names: set[str] = set()

    def rows(self, modules: t.Sequence[str]) -> dict[str, t.Any]:
        """Return the whole result."""
        module_rows: dict[str, dict[str, t.Any]] = {}
        params: list[dict[str, t.Any]] = []
        for entry in modules:
            pattern = _canonical_pattern(entry)
            for module in self._matching(pattern):
                if module not in module_rows and not self._truncated:
                    row, rows = self._module(module)
                    # Of those that a pattern means, hundreds may have no parameters.
                    if row["parameters"] or module == pattern:
                        module_rows[module] = row
                        params += rows
            if not self._truncated and not any(fnmatch.fnmatchcase(module, pattern) for module in module_rows):
                module_rows[entry] = self._absent(entry)
        absent = [] if self._truncated else [name for name in self._names if not _any_matches(name, self._all_names)]
        return {
            "modules": list(module_rows.values()),
            "params": params,
            "absent_names": [{"name": name, "candidates": _nearest(name, self._all_names)} for name in absent],
            "truncated": self._truncated,
        }

    def _matching(self, entry: str) -> list[str]:
        """Return the modules that an entry means: for a pattern, those that run before those that could."""
        if not _GLOB.search(entry):
            return [entry] if entry in self._known else []
        found = [module for module in self._known if fnmatch.fnmatchcase(module, entry)]
        running = set(self._in_sysfs)
        return sorted(found, key=lambda module: (module not in running, module))

    def _absent(self, entry: str) -> dict[str, t.Any]:
        nearest = [] if _GLOB.search(entry) else _nearest(canonical(entry), self._known)
        return {"module": entry, "status": "absent", "file": None, "parameters": 0, "candidates": nearest}

    def _module(self, module: str) -> tuple[dict[str, t.Any], list[dict[str, t.Any]]]:
        installed = self._reader.installed
        names = {*self._root.listdir(f"sys/module/{module}/parameters"), *installed.parameters(module)}
        self._all_names |= names
        asked = [name for name in sorted(names) if any(fnmatch.fnmatchcase(name, glob) for glob in self._names)]
        if len(asked) > self._left:
            self._truncated = True
        asked = asked[: self._left]
        self._left -= len(asked)
        path = installed.file_of(module)
        row: dict[str, t.Any] = {
            "module": module,
            "status": _status(self._root, module, path),
            "file": None if path is None else "/" + path,
            "parameters": len(names),
            "candidates": [],
        }
        return row, self._parameters(module, asked) if asked else []

    def _parameters(self, module: str, names: t.Sequence[str]) -> list[dict[str, t.Any]]:
        keys: list[Key] = [(module, name) for name in names]
        observed = self._reader.observe(keys, {})
        infos = self._reader.installed.parameters(module)
        declared = self._reader.installed.declared(module)
        rows = []
        for key in keys:
            item, info = observed.items[key], infos.get(key[1])
            option = observed.command_line.get(key)
            if option is None and not item.built_in:
                option = observed.file_options.get(key)
            row: dict[str, t.Any] = {
                "module": module,
                "name": item.name,
                "type": info.type if info is not None and info.type is not None else _seen_type(item),
                "type_source": "modinfo" if info is not None and info.type is not None else _seen_source(item),
                "description": None if info is None else info.description,
            }
            row.update(_access(item, declared.get(item.name)))
            row.update(_values(item, declared.get(item.name), option))
            row["pending"] = [*_flaws(key, observed), *row["pending"]]
            rows.append(row)
        return rows


def _access(item: Item, declared: Declared | None) -> dict[str, t.Any]:
    """Return who may do what with a parameter, and what else could set it."""
    mode = item.mode
    if mode is None and declared is not None:
        mode = declared.mode
    elsewhere = "boot" if item.built_in else "load"
    return {
        "mode": None if mode is None else f"{mode:04o}",
        "unsafe": (item.unsafe or None) if declared is None else declared.unsafe,
        "settable": ["run", elsewhere] if mode is not None and mode & 0o222 else [elsewhere],
        "persist": "command_line" if item.built_in else "modprobe_d",
        "persist_as": item.command_line_word if item.built_in else f"options {item.module} {item.name}",
    }


def _values(item: Item, declared: Declared | None, option: modprobe_d.Option | None) -> dict[str, t.Any]:
    """Return what a parameter is, was built with and would be."""
    current = item.current
    default = None if declared is None or declared.default is None else _built_with(item, declared.default)
    configured = None if option is None else value_of(option, item)
    return {
        "value": None if current is None else current.shown,
        "value_status": _value_status(item),
        "default": None if default is None else default.shown,
        "configured": None if configured is None else configured.shown,
        "configured_in": None if option is None else option.source,
        "pending": list(_pending(item, configured, option)),
    }


def _flaws(key: Key, observed: Observed) -> t.Iterator[str]:
    """Say which options of a parameter keep its module from being loaded."""
    for option, item in observed.load_options.get(key[0], []):
        reason = flaw(option, item) if option.key == key else None
        if reason is not None:
            yield flaw_sentence(option, item, reason)


def _pending(item: Item, configured: Value | None, option: modprobe_d.Option | None) -> t.Iterator[str]:
    """Say in which way a running value is not the configured one."""
    if option is None or configured is None or item.current is None or same(item.kind, item.current, configured):
        return
    word = option.word
    when = "the kernel is started with it" if item.built_in else "the module is loaded again"
    if item.built_in and option.source == "/" + modprobe_d.COMMAND_LINE:
        yield f"this kernel was started with {word}, and something has changed the value since"
        return
    yield f"{option.source} says {word}: it takes effect when {when}"


def _value_status(item: Item) -> str:
    if item.mode is None:
        return "no_file" if item.loaded else "not_loaded"
    if item.text is not None:
        return "known"
    return "restricted" if item.mode & 0o444 else "write_only"


def _built_with(item: Item, text: str) -> Value:
    kind = kind_of_value(text) if item.kind.word == "opaque" else item.kind
    return read_value(kind, text, item.word_bits)


def _seen_type(item: Item) -> str | None:
    return None if item.text is None else item.kind.word


def _seen_source(item: Item) -> str | None:
    return None if item.text is None else item.kind.source


def _status(root: Root, module: str, path: str | None) -> str:
    if root.exists(f"sys/module/{module}/initstate"):
        return "loaded"
    return "built_in" if path is None else "installed"


def _known_modules(in_sysfs: t.Iterable[str], installed: t.Iterable[str]) -> list[str]:
    """Return every module by the name that its parameters have: of built-in ones that is not always their file's."""
    names = set(installed)
    renamed = {name for sources in SOURCE_NAMES.values() for name in sources} - set(SOURCE_NAMES)
    owners = {owner for owner, sources in SOURCE_NAMES.items() if names.intersection(sources)}
    return sorted({*in_sysfs, *owners, *(names - renamed)})


def _canonical_pattern(pattern: str) -> str:
    """Return a name or pattern with ``_`` for ``-``, other than in a class of letters (``[a-f]``)."""
    return re.sub(r"\[[^\]]*\]|-", lambda match: "_" if match.group(0) == "-" else match.group(0), pattern)


def _any_matches(name: str, names: t.Collection[str]) -> bool:
    return bool(_GLOB.search(name)) or name in names


def _nearest(name: str, names: t.Iterable[str]) -> list[str]:
    return nearest_names(name, sorted(names))
