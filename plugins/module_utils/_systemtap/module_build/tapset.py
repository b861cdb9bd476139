# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tapset directories of a builder: checked, copied into a build, and part of its key.

Private to the collection. stap reads the files of a tapset as if guru mode were on, and leaves out without an error a
file that it cannot parse or whose name its own tapset has (main.cxx, passes_0_4). So the files are checked here, and a
build gets copies with names of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import typing as t

from ..._core.errors import InvalidInput
from ..._core.files import open_regular
from ..._core.write import make_directories, write_atomic
from ..language.grammar import Parsed, parse
from ..language.preprocessor import Target
from ..language.tokens import ScriptError, tokenize
from ..script.check import check_text_safety, read_globals
from ..script.semantics import check_reading

_FOLDER = "tapset"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}\.stp\Z")
_MOST_FILES = 200
_MOST_FILE_BYTES = 1 << 20
_MOST_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Tapset:
    """The files of all tapset directories of a task: name (with a part of its digest) and content, in order.

    ``points`` are the probe points that they name, ``globals`` the global variables that they declare.
    """

    files: tuple[tuple[str, bytes], ...] = ()
    points: tuple[str, ...] = ()
    globals: frozenset[str] = frozenset()

    def options(self) -> list[str]:
        """Return the options of stap. The path is relative, so that no place of a store is in a module."""
        return ["-I", _FOLDER] if self.files else []

    def digests(self) -> dict[str, str]:
        """Return what a build's key holds of the files: name to SHA-256."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.files}

    def copy_to(self, work: str) -> None:
        """Write the files to where :meth:`options` names them, below a build's directory."""
        if self.files:
            make_directories(os.path.join(work, _FOLDER))
        for name, data in self.files:
            write_atomic(os.path.join(work, _FOLDER, name), data)


NO_TAPSET = Tapset()


def read_tapsets(directories: t.Sequence[str], target: Target) -> Tapset:
    """Read and check the files ``NAME.stp`` of directories of this host.

    :param target: what conditionals are evaluated for, and whether embedded C is allowed.
    :raises InvalidInput: a directory or a file cannot be read or is too large, or a file needs guru mode.
    :raises ScriptError: a file is not in the language.
    """
    files: dict[str, bytes] = {}
    points: set[str] = set()
    declared: set[str] = set()
    left = _MOST_BYTES
    for index, directory in enumerate(directories):
        option = f"tapsets[{index}]"
        for name in _names(option, directory):
            data = _read(option, os.path.join(directory, name), left)
            left -= len(data)
            parsed = _check(option, os.path.join(directory, name), data, target)
            if parsed is not None:
                points.update(point.text for point in parsed.points)
                declared.update(read_globals(parsed.tokens))
            files[f"{name[: -len('.stp')]}-{hashlib.sha256(data).hexdigest()[:12]}.stp"] = data
            if len(files) > _MOST_FILES:
                raise InvalidInput(option, directory, f"Tapsets have at most {_MOST_FILES} files together.")
    return Tapset(tuple(sorted(files.items())), tuple(sorted(points)), frozenset(declared))


def _names(option: str, directory: str) -> list[str]:
    """Return the names of the files of a tapset directory."""
    if not directory.startswith("/"):
        raise InvalidInput(option, directory, "A tapset is the absolute path of a directory on the builder.")
    try:
        entries = sorted(os.listdir(directory))
    except OSError as error:
        problem = f"The directory cannot be read on the builder: {error.strerror}."
        raise InvalidInput(option, directory, problem) from None
    macros = next((name for name in entries if name.endswith(".stpm")), None)
    if macros is not None:
        problem = f"The directory contains {macros}, and stap_script checks a script without macros of a file."
        raise InvalidInput(option, directory, problem, "Define the macros in the script or in files NAME.stp.")
    names = [name for name in entries if name.endswith(".stp")]
    if not names:
        raise InvalidInput(option, directory, "The directory contains no file NAME.stp.")
    for name in names:
        if not _NAME.match(name):
            problem = f"The file name {name!r} has other characters than letters, digits, dots, dashes and underscores."
            raise InvalidInput(option, directory, problem, "Rename the file.")
    return names


def _read(option: str, path: str, left: int) -> bytes:
    """Return the content of a file.

    :param left: how many bytes all tapsets may still have.
    """
    try:
        with open_regular(path) as stream:
            data = stream.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidInput(option, path, f"The file cannot be read on the builder: {error.strerror}.") from None
    if len(data) > _MOST_FILE_BYTES:
        raise InvalidInput(option, path, f"A file of a tapset has at most {_MOST_FILE_BYTES >> 20} MiB.")
    if len(data) > left:
        raise InvalidInput(option, path, f"Tapsets have at most {_MOST_BYTES >> 20} MiB together.")
    return data


def _check(option: str, path: str, data: bytes, target: Target) -> Parsed | None:
    """Check a file of a tapset; return what it declares, None for comments alone."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        check_text_safety(option, f"tapset {path}", text, target.guru)
        if not tokenize(text):
            return None
        parsed = parse(path, text, target.guru, target)
        check_reading(path, parsed)
        return parsed
    except ScriptError as error:
        error.option = option
        raise
