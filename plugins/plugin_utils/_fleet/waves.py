# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many hosts at a time, as Ansible's ``serial`` takes it: which means all of them by 0 and by what is below it.

Private to the collection.
"""

from __future__ import annotations

import re
import typing as t

from ...module_utils._core.errors import InvalidInput

Wave: t.TypeAlias = int | str

_NUMBER = re.compile(r"0*[1-9][0-9]{0,8}")
_PERCENTAGE = re.compile(r"0*([1-9][0-9]?|100)%")


def waves(value: t.Any, default: t.Sequence[Wave], name: str) -> list[Wave]:
    """Return the sizes of waves: numbers of hosts, and percentages as text.

    :param value: a list, one number or percentage, or a text with commas between them; ``default`` when it is empty.
    :param name: the variable that the value comes from, for the message.
    :raises InvalidInput: one of them is no size of a wave.
    """
    sizes: t.Sequence[t.Any]
    if isinstance(value, str):
        sizes = value.split(",") if value.strip() else ()
    elif isinstance(value, (list, tuple)):
        sizes = value
    else:
        sizes = () if value is None else (value,)
    if sizes is value:  # each of them has a path of its own
        return [_wave(size, size, default, f"{name}[{index}]") for index, size in enumerate(sizes or default)]
    return [_wave(size, value, default, name) for size in sizes or default]


def _wave(size: t.Any, shown: t.Any, default: t.Sequence[Wave], name: str) -> Wave:
    text = str(size).strip() if isinstance(size, (int, str)) and not isinstance(size, bool) else ""
    if _NUMBER.fullmatch(text):
        return int(text)
    percentage = _PERCENTAGE.fullmatch(text)
    if percentage:
        return f"{percentage[1]}%"
    raise InvalidInput(
        name,
        shown,
        "The size of a wave is a number of hosts, at least 1, or a whole percentage from 1% to 100%.",
        f"Several sizes are a list, or a string with commas, such as {', '.join(map(str, default))}.",
    )
