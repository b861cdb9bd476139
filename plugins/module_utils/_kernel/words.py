# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words of the kernel command line and of module options (``next_arg`` in the kernel's lib/cmdline.c).

Private to the collection.
"""

from __future__ import annotations

import re


def split_words(text: str) -> list[str]:
    """Split at white space outside double quotes; the quotes stay."""
    return re.findall(r'(?:"[^"]*(?:"|$)|[^\s"])+', text)


def split_word(word: str) -> tuple[str, str | None]:
    """Split ``name=value``, without the quotes around the value or around the whole word; no ``=``: value null."""
    whole = word.startswith('"')
    if whole:
        word = word[1:-1] if word.endswith('"') else word[1:]
    name, equals, value = word.partition("=")
    if not equals:
        return name, None
    if not whole and value.startswith('"'):
        value = value[1:-1] if value.endswith('"') and len(value) > 1 else value[1:]
    return name, value
