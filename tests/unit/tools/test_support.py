# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Helpers of tests: what more than two test files need is in tests/lab/support or tests/unit/support."""

from __future__ import annotations

import ast
import collections
import pathlib

import pytest

TESTS = pathlib.Path(__file__).resolve().parents[2]
MOST_FILES = 2


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
