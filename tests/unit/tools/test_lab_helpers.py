# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Helpers of the lab tests: what more than two test files need is in tests/lab/support."""

from __future__ import annotations

import ast
import collections
import pathlib

LAB = pathlib.Path(__file__).resolve().parents[2] / "lab"
MOST_FILES = 2
# Names that may be in more files, because they differ in kind: name -> why.
EXCEPTIONS: dict[str, str] = {}


def helpers() -> dict[str, list[str]]:
    """Return the functions and classes of the test files that are not tests: name -> files that define it."""
    files: dict[str, list[str]] = collections.defaultdict(list)
    for path in sorted(LAB.glob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("test_"):
                files[node.name].append(path.name)
    return files


def test_no_helper_is_defined_in_more_than_two_files():
    found = helpers()
    assert len(found) > 50
    repeated = {name: files for name, files in found.items() if len(files) > MOST_FILES}
    assert {name: files for name, files in repeated.items() if name not in EXCEPTIONS} == {}
    assert set(EXCEPTIONS) <= set(repeated), "an exception that is no longer needed"
