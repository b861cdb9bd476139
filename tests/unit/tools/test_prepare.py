# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.tapvirt.host.tests.tools import prepare
from ansible_collections.tapvirt.host.tests.tools.prepare import copy_tree, missing_packages, real_path, tree_files
from ansible_collections.tapvirt.host.tests.tools.steps import DevError


@pytest.fixture
def git_tree(tmp_path, monkeypatch):
    root = tmp_path / "any name"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / ".gitignore").write_text("ignored\n")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "ignored").write_text("x")
    (root / "sub").mkdir()
    (root / "sub" / "new").write_text("x")
    monkeypatch.setattr(prepare, "ROOT", root)
    monkeypatch.setattr(prepare, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("ansible_collections.tapvirt.host.tests.tools.steps.CACHE", tmp_path / "cache")
    return root


def test_tree_files_are_tracked_and_new_ones_but_not_ignored_ones(git_tree):
    subprocess.run(["git", "-C", str(git_tree), "add", "run"], check=True)
    assert tree_files() == [".gitignore", "run", "sub/new"]


def test_a_directory_without_git_is_reported(git_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "ROOT", tmp_path / "cache")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "cache").mkdir()
    with pytest.raises(DevError, match="git ls-files failed"):
        tree_files()


def test_the_copy_follows_the_tree_and_keeps_only_the_output_of_ansible_test(git_tree):
    copy = copy_tree("exec")
    assert copy.parts[-3:] == ("ansible_collections", "tapvirt", "host")
    assert os.access(copy / "run", os.X_OK)
    assert not (copy / "ignored").exists()
    (copy / "tests" / "output").mkdir(parents=True)
    (copy / "tests" / "output" / "kept").write_text("x")
    (copy / "left").write_text("x")
    (git_tree / "sub" / "new").unlink()
    (git_tree / "run").write_text("#!/bin/sh\ntrue\n")
    assert copy_tree("exec") == copy
    assert (copy / "run").read_text() == "#!/bin/sh\ntrue\n"
    assert not (copy / "left").exists()
    assert not (copy / "sub").exists()
    assert (copy / "tests" / "output" / "kept").exists()


def test_missing_packages_reads_dpkg_s_listing():
    status = "git ii\ngcc rc\nlibvirt-dev un\n"
    assert missing_packages(["git", "gcc", "libvirt-dev", "nosuch"], status) == ["gcc", "libvirt-dev", "nosuch"]


def test_the_search_path_has_no_shims(monkeypatch):
    monkeypatch.setenv("PATH", "/home/x/.pyenv/shims:/opt/here:/usr/bin")
    path = real_path()
    assert not [folder for folder in path if "shims" in folder]
    assert "/opt/here" in path
    assert "/usr/sbin" in path
    assert len(path) == len(set(path))
