# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kernel this is, how it was started, and what its state says of it. Private to the collection."""

from __future__ import annotations

import re
import sys
import typing as t

from ..._core.errors import TapvirtError
from ..._core.root import Root
from .cmdline import split_word, split_words
from .elf import Note, parse_notes, program_notes

_NT_GNU_BUILD_ID = 3
_NT_LINUX_VERSION = 0
_RELEASE = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_VDSO_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]$", re.MULTILINE)


def version_code(release: str) -> int:
    """Return LINUX_VERSION_CODE for a release such as ``3.12.0`` (199680).

    The sublevel is clamped at 255, as the kernel's own Makefile does it for long-lived stable kernels.

    :raises TapvirtError: the text does not begin with a version.
    """
    match = _RELEASE.match(release)
    if match is None:
        raise TapvirtError(f"{release!r} does not begin with a kernel version, such as 6.12.0.")
    version, patchlevel, sublevel = (int(part or 0) for part in match.groups())
    return (version << 16) + (patchlevel << 8) + min(sublevel, 255)


def running_version_code(root: Root) -> int | None:
    """Return the LINUX_VERSION_CODE that the running kernel gives to every process, in its vDSO; null without one.

    A release string may hide it (Debian's ``6.1.0-56`` is 6.1.192), and installed headers may be another kernel's.
    """
    try:
        mapping = _VDSO_MAPPING.search(root.read_bytes("proc/self/maps"))
        if mapping is None:
            return None
        start, end = (int(address, 16) for address in mapping.groups())
        with open(root.path("proc/self/mem"), "rb", buffering=0) as memory:
            memory.seek(start)
            image = memory.read(end - start)
        return _linux_version(program_notes(image))
    except (OSError, OverflowError, TapvirtError):
        # No vDSO that can be read (a recorded tree, an architecture without one).
        return None


def build_id(notes: bytes) -> str | None:
    """Return the build-id, in hex, from the bytes of ``/sys/kernel/notes``; None if they contain none."""
    return build_id_of(parse_notes(notes))


def build_id_of(notes: t.Iterable[Note]) -> str | None:
    """Return the build-id, in hex, from notes; null when it is not among them."""
    for note in notes:
        if note.name == "GNU" and note.type == _NT_GNU_BUILD_ID:
            return note.content.hex()
    return None


def selected_word(text: str) -> str | None:
    """Return the word in brackets of a selector file: ``none [integrity] confidentiality`` -> integrity."""
    match = re.search(r"\[([^\]]+)\]", text)
    return match.group(1) if match else None


def parse_command_line(text: str) -> dict[str, t.Any]:
    """Return ``parameters`` (name to the list of its values; null: no value) and ``init_arguments`` (after ``--``).

    Split as ``next_arg`` in the kernel's lib/cmdline.c does it: double quotes protect spaces, around a value or
    around the whole word; nothing escapes a quote.
    """
    words = split_words(text)
    end = words.index("--") if "--" in words else len(words)
    parameters: dict[str, list[str | None]] = {}
    for word in words[:end]:
        name, value = split_word(word)
        parameters.setdefault(name, []).append(value)
    return {"parameters": parameters, "init_arguments": words[end + 1 :]}


def _linux_version(notes: t.Iterable[Note]) -> int | None:
    for note in notes:
        if note.name == "Linux" and note.type == _NT_LINUX_VERSION and len(note.content) >= 4:
            return int.from_bytes(note.content[:4], sys.byteorder)
    return None
