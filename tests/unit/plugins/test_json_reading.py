# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON of a host, a script or a guest may be nested so deeply that json raises RecursionError, up to Python 3.11."""

from __future__ import annotations

import ast
import pathlib

PLUGINS = pathlib.Path(__file__).parents[3] / "plugins"
# They read what this collection itself wrote a moment ago, for a process of its own.
OWN = {"plugin_utils/_transport/bootstrap.py", "module_utils/_libvirt/domain/canonical.py"}
GUARDS = {"RecursionError", "making_sense", "Exception"}


def guards_of(node: ast.AST) -> set[str]:
    """Return what a statement that may guard a call names: the errors it handles, or its context managers."""
    if isinstance(node, ast.Try):
        types = [handler.type for handler in node.handlers if handler.type is not None]
        return {word.id for kind in types for word in ast.walk(kind) if isinstance(word, ast.Name)}
    if isinstance(node, ast.With):
        return {word.id for item in node.items for word in ast.walk(item.context_expr) if isinstance(word, ast.Name)}
    return set()


def unguarded(tree: ast.AST) -> list[int]:
    """Return the lines of calls of json.load and json.loads without a guard around them."""
    guarded = {
        id(call)
        for node in ast.walk(tree)
        if guards_of(node) & GUARDS
        for statement in getattr(node, "body", [])
        for call in ast.walk(statement)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in guarded]
    return [call.lineno for call in calls if ast.unparse(call.func) in ("json.loads", "json.load")]


def test_whoever_reads_json_of_others_expects_a_recursion_error():
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(PLUGINS.rglob("*.py"))}
    found = {
        str(path.relative_to(PLUGINS)): unguarded(ast.parse(text))
        for path, text in texts.items()
        if "json.load" in text
    }
    assert len(found) >= 10, "the readers are found"
    assert {name for name, lines in found.items() if lines} <= OWN, found
