# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words of the kernel command line and of module options (``next_arg`` in the kernel's lib/cmdline.c).

Private to the collection.
"""

from __future__ import annotations

import re

# What isspace() of the kernel's lib/ctype.c takes as white space. It reads bytes: 0xa0 is one inside a UTF-8 character.
_SPACES = "\t\n\v\f\r \xa0"
_WORD = re.compile(r'(?:"[^"]*(?:"|$)|[^"' + _SPACES + "])+")


def split_words(text: str) -> list[str]:
    """Split at white space outside double quotes; the quotes stay."""
    found = _WORD.findall(text.encode("utf-8", "surrogateescape").decode("latin-1"))
    return [word.encode("latin-1").decode("utf-8", "surrogateescape") for word in found]


def quote(value: str) -> str:
    """Return a value, in double quotes where it has white space; it must not hold a double quote itself."""
    spaces = frozenset(_SPACES.encode("latin-1"))
    return f'"{value}"' if spaces.intersection(value.encode("utf-8", "surrogateescape")) else value


def split_word(word: str) -> tuple[str, str | None]:
    """Split ``name=value``, without the quotes around the value or around the whole word; no ``=``: value null."""
    whole = word.startswith('"')
    if whole:
        word = word[1:-1] if word.endswith('"') else word[1:]
    # At the begin of a word it separates nothing: "size = 5" are three words, none of which has a value.
    equals = word.find("=", 1)
    if equals < 0:
        return word, None
    name, value = word[:equals], word[equals + 1 :]
    if not whole and value.startswith('"'):
        value = value[1:-1] if value.endswith('"') and len(value) > 1 else value[1:]
    return name, value
