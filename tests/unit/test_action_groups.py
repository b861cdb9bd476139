# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action groups: every module is in exactly one, its documentation names that one, and module_defaults takes it."""

from __future__ import annotations

import importlib
import pathlib
import subprocess
import typing as t
from collections import Counter

import yaml
from ansible_collections.tapvirt.host.plugins.doc_fragments._attributes import ModuleDocFragment

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
FRAGMENT = "tapvirt.host._attributes.group_"
# The defaults are wrong on purpose: what a module answers names the value.
PLAY = """
- hosts: localhost
  gather_facts: false
  module_defaults:
    group/tapvirt.host.libvirt: {uri: "no-uri-of-group-libvirt"}
    group/tapvirt.host.kernel: {tables: ["no-table-of-group-kernel"]}
    group/tapvirt.host.stap: {src: "no-file-of-group-stap.j2"}
  tasks:
    - {tapvirt.host.libvirt_domain_info: {}, ignore_errors: true}
    - {tapvirt.host.procfs_info: {}, ignore_errors: true}
    - {tapvirt.host.stap_script: {}, ignore_errors: true}
"""


def groups() -> dict[str, list[str]]:
    """Return the modules of each group."""
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text(encoding="utf-8"))
    return t.cast("dict[str, list[str]]", runtime["action_groups"])


def test_every_module_is_in_exactly_one_group() -> None:
    assert set(groups()) == {"kernel", "libvirt", "stap"}
    assert Counter(name for names in groups().values() for name in names) == Counter(MODULES)


def test_the_documentation_of_every_module_names_its_group() -> None:
    named: dict[str, list[str]] = {group: [] for group in groups()}
    for name in MODULES:
        module = importlib.import_module(f"ansible_collections.tapvirt.host.plugins.modules.{name}")
        fragments = yaml.safe_load(module.DOCUMENTATION)["extends_documentation_fragment"]
        (group,) = (fragment[len(FRAGMENT) :] for fragment in fragments if fragment.startswith(FRAGMENT))
        named[group].append(name)
    assert named == groups()


def test_the_documentation_of_a_group_names_it_as_module_defaults_takes_it() -> None:
    for group in groups():
        text = getattr(ModuleDocFragment, f"GROUP_{group.upper()}")
        attribute = yaml.safe_load(text)["attributes"]["action_group"]
        assert attribute["membership"] == [f"tapvirt.host.{group}"]
        assert f"C(group/tapvirt.host.{group})" in attribute["description"]


def test_module_defaults_of_a_group_reach_its_modules(tmp_path: pathlib.Path) -> None:
    play = tmp_path / "play.yml"
    play.write_text(PLAY, encoding="utf-8")
    argv = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(play)]
    quiet: t.Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(argv, check=False, timeout=120, **quiet)
    assert done.returncode == 0, done.stderr
    for value in ("no-uri-of-group-libvirt", "no-table-of-group-kernel", "no-file-of-group-stap.j2"):
        assert value in done.stdout + done.stderr
