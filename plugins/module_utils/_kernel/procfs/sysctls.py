# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values below ``/proc/sys`` by name or pattern. Private to the collection.

Names as sysctl(8) and sysctl.d(5) take them: if the first separator is a slash, slashes separate and dots are part of
names, else the other way round.
"""

from __future__ import annotations

import fnmatch
import os
import re
import typing as t

from ..._core.errors import InvalidInput
from ..._core.root import Root
from .parse import Value, decode
from .tables import ABSENT, PRESENT, Reading, status_of

_TOP = "proc/sys"
_VALUE_BYTES = 8192
_MOST = 2000
_INTEGERS = re.compile(r"(?:0|-?[1-9][0-9]{0,19})(?:[ \t]+(?:0|-?[1-9][0-9]{0,19}))*")


def parts_of(name: str) -> list[str]:
    """Return a name or pattern as the path's components.

    :raises InvalidInput: the name leads out of ``/proc/sys``, or is not a name.
    """
    first = re.search(r"[./]", name)
    text = name if first and first.group() == "/" else name.translate(str.maketrans("./", "/."))
    parts = text.split("/")
    if any(part in ("", ".", "..") for part in parts) or not text.isprintable():
        problem = "An entry names a value below /proc/sys, such as kernel.panic or net.ipv4.conf.*.forwarding."
        raise InvalidInput("", name, problem)
    return parts


def read_sysctls(root: Root, names: t.Sequence[str]) -> tuple[Reading, dict[str, str]]:
    """Return the values by name, and the status of each that was found without a value, or not found by its name.

    A pattern that matches nothing gives nothing.
    """
    found: dict[str, Value] = {}
    status: dict[str, str] = {}
    left_out = 0
    for name in names:
        paths = list(_matches(root, _TOP, parts_of(name)))
        if not paths and not re.search(r"[*?\[]", name):
            paths = ["/".join([_TOP, *parts_of(name)])]
        for path in paths:
            key = path[len(_TOP) + 1 :].translate(str.maketrans("./", "/."))
            if len(found) >= _MOST and key not in found:
                left_out += 1
                continue
            found[key] = None
            try:
                found[key] = sysctl_value(decode(root.read_bytes(path, _VALUE_BYTES)))
            except OSError as error:
                status[key] = status_of(error)
    there = root.exists(_TOP)
    return Reading(PRESENT if there else ABSENT, found, left_out=left_out), status


def sysctl_value(text: str) -> Value:
    """Return a number, a list of numbers, or the text without its last line end."""
    text = text[:-1] if text.endswith("\n") else text
    if not _INTEGERS.fullmatch(text):
        return text
    numbers = [int(word) for word in text.replace("\t", " ").split(" ") if word]
    return numbers[0] if len(numbers) == 1 else numbers


def _matches(root: Root, directory: str, parts: t.Sequence[str]) -> t.Iterator[str]:
    """Yield the paths of files whose components match the patterns, one directory at a time."""
    pattern, rest = parts[0], parts[1:]
    for name in root.listdir(directory):
        if not fnmatch.fnmatchcase(name, pattern):
            continue
        path = f"{directory}/{name}"
        if rest:
            yield from _matches(root, path, rest)
        elif not os.path.isdir(root.path(path)):
            yield path
