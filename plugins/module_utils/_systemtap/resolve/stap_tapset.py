# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel modules that probe aliases of SystemTap's own tapset name.

Private to the collection. Only the heads of aliases are read, and those of every branch of a conditional: a module too
many costs a download at most, as only modules with a known build-id are fetched.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import typing as t

from ..._core.files import open_regular
from ..._core.root import Root

_DIRECTORIES = ("usr/share/systemtap/tapset", "usr/local/share/systemtap/tapset")
_MOST_FILES = 2000
_MOST_FILE_BYTES = 1 << 20
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|^[ \t]*#[^\n]*", re.DOTALL | re.MULTILINE)
# "probe nfs.proc.read = module("nfs").{function("a"), function("b")}? {"
_HEAD = re.compile(r"^[ \t]*probe\s+([\w.]+)[^={\n]*\+?=((?:[^{]|(?<=\.)\{[^{}]*\})*)\{", re.MULTILINE)
_MODULE = re.compile(r'\bmodule\s*\(\s*"([^"]+)"\s*\)\s*\.\s*(?:\{|function|statement)')
_NAME = re.compile(r"(?<![\w.\")])[A-Za-z_][\w*]*(?:\.[\w*]+)+")


def modules_of_aliases(root: Root, names: t.Iterable[str]) -> set[str]:
    """Return the names of the modules whose functions aliases probe, also by way of other aliases.

    :param names: of aliases, with wildcards and suffixes as in ``nfs.proc.*`` and ``nfs.proc.read.return``.
    """
    pending = list(names)
    if not pending:
        return set()
    heads: dict[str, str] = {}
    for alias, points in _read_heads(root):
        heads[alias] = f"{heads.get(alias, '')} {points}"
    modules: set[str] = set()
    done: set[str] = set()
    while pending:
        wanted = pending.pop()
        if wanted in done:
            continue
        done.add(wanted)
        for alias in _matching(heads, wanted):
            points = heads.pop(alias)
            modules.update(name.replace("-", "_") for name in _MODULE.findall(points))
            pending += _NAME.findall(points)
    return modules


def _matching(heads: t.Mapping[str, str], wanted: str) -> list[str]:
    """Return the aliases that a name stands for: by its wildcards, or with the suffixes that it has."""
    words = wanted.split(".")
    names = [name for name in (".".join(words[:end]) for end in range(1, len(words) + 1)) if name in heads]
    return names or ([] if "*" not in wanted else fnmatch.filter(heads, wanted))


def _read_heads(root: Root) -> list[tuple[str, str]]:
    """Return the aliases of the tapset, each with its probe points as text."""
    heads = []
    for path in _files(root):
        with contextlib.suppress(OSError), open_regular(path) as stream:
            text = stream.read(_MOST_FILE_BYTES).decode("utf-8", "replace")
            heads += _HEAD.findall(_COMMENT.sub(" ", text))
    return heads


def _files(root: Root) -> list[str]:
    found: list[str] = []
    for tree in _DIRECTORIES:
        for directory, _directories, names in os.walk(root.path(tree)):
            found += [os.path.join(directory, name) for name in names if name.endswith(".stp")]
    return found[:_MOST_FILES]
