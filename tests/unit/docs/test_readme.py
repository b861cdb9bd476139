# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README: short, with an index of everything that the collection has."""

from __future__ import annotations

import pathlib
import re

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.documents import TREE

TEXT = (TREE / "README.md").read_text(encoding="utf-8")
MOST_LINES = 150


def names(pattern: str) -> set[str]:
    """Return the names of files or directories, without the ending."""
    return {path.stem for path in TREE.glob(pattern) if path.stem != "__init__"}


def index(kind: str) -> list[str]:
    """Return the names in the first column of the table whose heading begins with ``kind``."""
    rows = TEXT.split(f"\n| {kind} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])]


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) < MOST_LINES


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("Module", "plugins/modules/*.py"),
        ("Role", "roles/*"),
        ("Playbook", "playbooks/*.yml"),
        ("Filter", "plugins/filter/*.yml"),
    ],
)
def test_the_index_has_each_name_once(kind: str, pattern: str):
    listed = index(kind)
    assert sorted(listed) == sorted(names(pattern))


def test_every_link_to_a_file_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links and [link for link in links if not pathlib.Path(TREE, link).exists()] == []
