# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The architecture page against the tree: rooms, their size, and imports inside functions."""

from __future__ import annotations

import ast
import pathlib
import re
import typing as t

from ansible_collections.tapvirt.host.tests.unit.support.documents import TREE

PAGE = (TREE / "docs/docsite/rst/architecture.rst").read_text("utf-8")
UTILS = TREE / "plugins" / "module_utils"
MOST_MODULES = 15


def rooms() -> list[pathlib.Path]:
    """Return every directory with modules below module_utils and plugin_utils."""
    tops = (UTILS, TREE / "plugins" / "plugin_utils")
    return sorted({path.parent for top in tops for path in top.rglob("*.py")})


def function_imports() -> t.Iterator[tuple[str, str]]:
    """Yield (file, what it imports inside a function) as the page writes them."""
    for path in UTILS.rglob("*.py"):
        place = path.relative_to(UTILS)
        functions = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
        for node in (node for function in functions for node in ast.walk(function)):
            if isinstance(node, ast.Import):
                yield from ((str(place), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                package = (
                    [*place.parts[: -node.level], *(node.module or "").split(".")] if node.level else [node.module]
                )
                name = ".".join(filter(None, t.cast("list[str]", package)))
                for alias in node.names:
                    is_module = UTILS.joinpath(*name.split("."), alias.name).with_suffix(".py").is_file()
                    yield str(place), f"{name}.{alias.name}" if is_module else name


def test_no_room_has_too_many_modules():
    assert len(rooms()) > 30
    crowded = {str(room): count for room in rooms() if (count := len(list(room.glob("*.py")))) > MOST_MODULES}
    assert crowded == {}


def test_every_room_is_on_the_page():
    names = {room.name for room in rooms() if room.parent.name.startswith("_") or room.name.startswith("_")}
    missing = {name for name in names if not re.search(rf"(?<![\w/]){name}(?!\w)", PAGE)}
    assert missing == set()


def test_every_import_inside_a_function_is_on_the_page_and_no_other():
    listed = re.findall(r"\* - ``(_\w+/[\w/]+\.py)``\n     - ``([\w.]+)``\n", PAGE)
    assert len(listed) > 10
    assert set(listed) == set(function_imports()), "bench_imports.py says what an import costs"
