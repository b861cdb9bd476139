# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a console printed, as plain text, however it was cut into pieces on its way.

Private to the collection. Pure.
"""

from __future__ import annotations

import codecs
import re
import typing as t

from ..._core.errors import InvalidInput

# How far before the newest text a match of a pattern may begin.
_WINDOW = 65536
# ECMA-48: control sequences, strings (OSC, DCS, ...) up to their end, other escapes; then the control bytes left over.
# A string ends with its line at the latest: a stray start of one must not swallow what comes after.
_BODY = "[^\x07\x18\x1a\x1b\n]{0,4096}"
_ESCAPES = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b[\\]PX^_]" + _BODY + "(?:\x07|\x1b\\\\)|\x1b[ -/]*[0-~]"
    "|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)  # fmt: skip
_LINE_ENDS = re.compile("\r+\n?")
# What the next piece may turn into a part of something longer.
_UNFINISHED = re.compile(
    "(?:(?<!\r)\r+|\x1b(?:\\[[0-?]{0,4096}[ -/]{0,4096}|[\\]PX^_]" + _BODY + "\x1b?|[ -/]{0,4096}))\\Z"
)  # fmt: skip


def compile_pattern(until: str | None) -> t.Pattern[str] | None:
    """Return the compiled pattern.

    :raises InvalidInput: it is no regular expression; says where.
    """
    if until is None:
        return None
    try:
        return re.compile(until, re.MULTILINE | re.DOTALL)
    except re.error as error:
        raise InvalidInput("until", until, f"This is not a regular expression: {error}.") from error


def clean_text(text: str) -> str:
    """Return console output as plain text: no escape sequences, one kind of line end."""
    return _ESCAPES.sub("", _LINE_ENDS.sub("\n", text))


class PlainText:
    """Console output that comes in pieces: at any time the text that all bytes so far would make in one piece."""

    def __init__(self, searched: bool = True) -> None:
        """Prepare; ``searched`` tells whether a pattern will be looked for, for which the last part is kept at hand."""
        self._searched = searched
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pieces: list[str] = []
        self._unfinished = ""
        self._window = ""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        text = self._unfinished + self._decoder.decode(data)
        found = _UNFINISHED.search(text)
        end = len(text) if found is None else found.start()
        piece = clean_text(text[:end])
        # Of several carriage returns one line end is made, as of one.
        self._unfinished = "\r" if text.startswith("\r", end) else text[end:]
        self._pieces.append(piece)
        if self._searched:
            self._window += piece

    def _rest(self) -> str:
        return clean_text(self._unfinished + self._decoder.getstate()[0].decode("utf-8", "replace"))

    def text(self) -> str:
        """Return all of the text."""
        return "".join(self._pieces) + self._rest()

    def has(self, pattern: t.Pattern[str]) -> bool:
        """Tell whether a match has come since the last question; one may begin up to 65536 characters before that."""
        # A cut window keeps one character more, so that its beginning does not look like that of a line.
        begin = 1 if len(self._window) > _WINDOW else 0
        found = pattern.search(self._window + self._rest(), begin) is not None
        self._window = self._window[-_WINDOW - 1 :]
        return found
