# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a scratch host."""

from __future__ import annotations

import pathlib
import typing as t


def write_files(top: str | pathlib.Path, files: t.Mapping[str, str | bytes]) -> None:
    """Write files below a directory, and make the directories that they lie in.

    :param files: path below ``top`` -> content; a text is written as UTF-8
    """
    for name, content in files.items():
        path = pathlib.Path(top, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
