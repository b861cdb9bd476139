# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Helpers of tests: what more than two test files need is in tests/lab/support or tests/unit/support.

Unit tests use public names only.
"""

from __future__ import annotations

import ast
import collections
import pathlib
import re
import typing as t

import pytest

TESTS = pathlib.Path(__file__).resolve().parents[2]
MOST_FILES = 2
COLLECTION = "ansible_collections.tapvirt.host"
PRIVATE = re.compile(r"_[A-Za-z]\w*|__dict__")
PATCHERS = re.compile(r"(?:\b|_)(?:[a-z]+attr|patch|patch\.object)$")
# Python's end of a child that a test forked, and how every module of Ansible asks whether a diff is wanted.
EXCEPTIONS = {"module._diff", "os._exit"}


def find_helpers(top: pathlib.Path) -> dict[str, list[str]]:
    """Return the functions and classes of the test files that are not tests: name -> files that define it."""
    files: dict[str, list[str]] = collections.defaultdict(list)
    for path in sorted(top.rglob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("test_"):
                files[node.name].append(str(path.relative_to(top)))
    return files


@pytest.mark.parametrize("kind", ["lab", "unit"])
def test_no_helper_is_defined_in_more_than_two_files(kind: str) -> None:
    helpers = find_helpers(TESTS / kind)
    assert len(helpers) > 50
    assert {name: files for name, files in helpers.items() if len(files) > MOST_FILES} == {}


def find_private_names(text: str) -> t.Iterator[str]:
    """Yield the private names of other code that a test file uses: attributes, names to patch, and imports.

    Attributes of ``self``, ``cls`` and ``super()`` are a class's own. Programs in strings count as well.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            if PRIVATE.fullmatch(node.attr) and ast.unparse(node.value) not in ("self", "cls", "super()"):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from private_imports(node)
        elif isinstance(node, ast.Call) and PATCHERS.search(ast.unparse(node.func)):
            for argument in node.args[:2]:
                last = argument.values[-1] if isinstance(argument, ast.JoinedStr) else argument
                if isinstance(last, ast.Constant) and PRIVATE.fullmatch(str(last.value).rpartition(".")[2]):
                    yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and f"from {COLLECTION}." in str(node.value):
            for line in str(node.value).splitlines():
                yield from re.findall(r"\b(?!self\b)\w+\._[A-Za-z]\w*", "" if COLLECTION in line else line)


def private_imports(node: ast.ImportFrom) -> t.Iterator[str]:
    """Yield the private names of an import; a package such as ``_core`` is private to the collection, not to a file."""
    directory = TESTS.parent.joinpath(*(node.module or "").split(".")[3:])
    for alias in node.names:
        if PRIVATE.fullmatch(alias.name) and not (directory / alias.name).is_dir():
            yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("run._items[0]", ["run._items"]),
        ("run.x._items()", ["run.x._items"]),
        ("self._x = cls._y + super()._z() + x.__name__", []),
        ("os._exit(0)", ["os._exit"]),
        ("x.__dict__.update(_y=1)", ["x.__dict__"]),
        ("patch.setattr(cleanup, '_PROC', '')", ["patch.setattr(cleanup, '_PROC', '')"]),
        ("patch.setattr(f'{x.__module__}._Y', 1)", ["patch.setattr(f'{x.__module__}._Y', 1)"]),
        ("mock.patch.object(x, '_y')", ["mock.patch.object(x, '_y')"]),
        ("mock.patch('a.b._c')", ["mock.patch('a.b._c')"]),
        ("patch.setattr(cleanup, 'PROC', '_x')", []),
        (f"from {COLLECTION}.plugins.module_utils import _core", []),
        (f"from {COLLECTION}.plugins.x import _y", [f"{COLLECTION}.plugins.x._y"]),
        (f"PROGRAM = 'from {COLLECTION}.plugins.module_utils._core import x\\nx._y'", ["x._y"]),
    ],
)
def test_find_private_names(text: str, names: list[str]) -> None:
    assert list(find_private_names(text)) == names


def test_unit_tests_use_public_names() -> None:
    texts = {path: path.read_text("utf-8") for path in sorted((TESTS / "unit").rglob("*.py"))}
    assert len(texts) > 150
    found = {str(path.relative_to(TESTS)): {*find_private_names(text)} - EXCEPTIONS for path, text in texts.items()}
    assert {path: names for path, names in found.items() if names} == {}
