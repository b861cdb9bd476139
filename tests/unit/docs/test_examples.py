# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every example of the documentation: its options, variables and commands exist, and what can run here does."""

from __future__ import annotations

import argparse
import functools
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.inventory import libvirt as inventory_plugin
from ansible_collections.tapvirt.host.tests.unit.support.documents import (
    PAGES,
    TREE,
    Block,
    all_blocks,
    blocks_of,
    fleet_playbook,
    module_errors,
    role_options,
    shown_in,
    tasks_of,
    variable_errors,
    write_files,
)

BLOCKS = all_blocks()
RUNNABLE = [block for block in BLOCKS if block.kind in ("console", "plays", "tasks")]
FILES = {(block.page, block.file): block for block in BLOCKS if block.file}
ROLES = [path.parent.name for path in sorted((TREE / "roles").glob("*/README.md"))]
THIS_MACHINE = TREE / "playbooks" / "inventory" / "this_machine.yml"
OURS = "tapvirt.host."
# What a page itself adds to the collection.
ADDED = {f"{OURS}{pathlib.Path(name).stem}" for _page, name in FILES if name.startswith("plugins/modules/")}
# Files of extra variables, which the commands of the same page name.
EXTRA = {(block.page, name) for block in BLOCKS for name in re.findall(r"-e @([\w./-]+)", block.text)}
HERE = sorted({block.page for block in RUNNABLE if block.run == "here"})


def ansible(*argv: str | pathlib.Path, cwd: pathlib.Path | None = None, collections: pathlib.Path | None = None) -> str:
    """Run one of Ansible's commands and return what it printed; it has to succeed."""
    env = os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_INVENTORY": str(THIS_MACHINE), "COLUMNS": "200"}
    if cwd:
        env["PWD"] = str(cwd)  # as a shell has it there
    if collections:
        env |= {"ANSIBLE_COLLECTIONS_PATH": str(collections), "PYTHONPATH": str(collections)}
    done = subprocess.run(
        [*argv], cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{shlex.join(map(str, argv))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_page_has_examples_that_say_whether_they_are_run():
    assert {block.page for block in BLOCKS} >= {"README.md", "docs/docsite/rst/guide_first_trace.rst"}
    marks = {False: r"here|lab|in \S+|no, .{5,}", True: r"printed|in \S+|no, .{5,}"}
    shown = [block for block in BLOCKS if block.kind == "text" and not block.file and block.language == "text"]
    result = [(block, marks[False]) for block in RUNNABLE] + [(block, marks[True]) for block in shown]
    assert [str(block) for block, mark in result if not re.fullmatch(mark, block.run)] == []
    places = {name for block in RUNNABLE for name in re.findall(r"\b(?:tests/\S+|guide_\w+\.rst)", block.run)}
    assert [name for name in places if not any((TREE / top / name).exists() for top in (".", "docs/docsite/rst"))] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.run.startswith("in ")], ids=str)
def test_what_is_run_in_another_place_is_there(block):
    place = block.run.removeprefix("in ")
    if place.startswith("tests/"):
        assert f'"{block.page}"' in (TREE / place).read_text(encoding="utf-8")
        return
    others = [other for other in blocks_of(TREE / "docs" / "docsite" / "rst" / place) if other.run in ("here", "lab")]
    run = [step for other in others for step in other.steps]
    assert [step for step in block.steps if step not in run] == []


@functools.cache
def builtin_options() -> dict[str, set[str]]:
    """Return the options of every module that is not this collection's, as ansible-doc knows them."""
    others = {key for block in RUNNABLE for key, _options, _task in tasks_in(block) if not key.startswith(OURS)}
    result = json.loads(ansible("ansible-doc", "--json", *sorted(others)))
    missing = others - set(result)
    assert not missing, f"no such module: {missing}"
    return {name: set(entry["doc"].get("options", {})) for name, entry in result.items()}


def tasks_in(block: Block) -> t.Iterator[tuple[str, dict[str, t.Any], dict[str, t.Any]]]:
    """Yield module, options and task of each task that a block shows."""
    if block.kind in ("plays", "tasks"):
        for play in block.playbook:
            yield from tasks_of(play.get("tasks", []))


def task_errors(key: str, options: dict[str, t.Any], task: dict[str, t.Any]) -> list[str]:
    """Return what speaks against one task."""
    if key.startswith(OURS):
        return [] if key in ADDED else module_errors(key.removeprefix(OURS), options)
    free = key == "ansible.builtin.set_fact"  # any name
    unknown = [f"{key} has no option {name}" for name in sorted(set(options) - builtin_options()[key]) if not free]
    role = str(options.get("name", ""))
    if "role" not in key or not role.startswith(OURS):
        return unknown
    folder = TREE / "roles" / role.removeprefix(OURS)
    entry = folder / "tasks" / f"{options.get('tasks_from', 'main')}.yml"
    if not entry.exists():
        return [*unknown, f"{role} has no {entry.name}"]
    return unknown + variable_errors(task.get("vars", {}), [folder.name])


@pytest.mark.parametrize("block", [block for block in RUNNABLE if block.kind != "console"], ids=str)
def test_the_options_of_tasks_are_real(block):
    assert [error for task in tasks_in(block) for error in task_errors(*task)] == []


def test_ansible_takes_every_play(tmp_path):
    paths = []
    for number, block in enumerate(block for block in RUNNABLE if block.kind != "console" and block.run != "here"):
        paths.append(tmp_path / f"{number}.yml")
        paths[-1].write_text(yaml.safe_dump(block.playbook), encoding="utf-8")
    ansible("ansible-playbook", "--syntax-check", *paths)


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.kind == "variables" and (block.page, block.file) not in EXTRA], ids=str
)
def test_variables_are_those_of_roles(block):
    assert variable_errors(block.data, ROLES) == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "inventory"], ids=str)
def test_inventories_can_be_read(block, tmp_path):
    if "plugin" in block.data:
        options = set(yaml.safe_load(inventory_plugin.DOCUMENTATION)["options"]) | {"keyed_groups", "groups", "compose"}
        assert block.data["plugin"] == "tapvirt.host.libvirt"
        assert set(block.data) - options == set()
        return
    path = tmp_path / "inventory.yml"
    path.write_text(block.text, encoding="utf-8")
    result = json.loads(ansible("ansible-inventory", "-i", path, "--list"))
    assert set(block.data) <= set(result)
    shown = {key: value for group in block.data.values() for key, value in group.get("vars", {}).items()}
    assert variable_errors({key: value for key, value in shown.items() if not key.startswith("ansible_")}, ROLES) == []


@functools.cache
def dev_parser() -> t.Callable[[list[str]], argparse.Namespace]:
    """Return what reads the command line of ./dev."""
    loader = importlib.machinery.SourceFileLoader("dev", str(TREE / "dev"))
    module = importlib.util.module_from_spec(t.cast("t.Any", importlib.util.spec_from_loader("dev", loader)))
    loader.exec_module(module)
    return t.cast("t.Callable[[list[str]], argparse.Namespace]", module.parse)


def playbook_errors(words: list[str], page: str) -> list[str]:
    """Return what speaks against a call of ansible-playbook: its playbook, tags and extra variables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("playbook")
    parser.add_argument("-i", "--inventory", action="append", default=[])
    parser.add_argument("-e", "--extra-vars", action="append", default=[])
    parser.add_argument("-t", "--tags", default="")
    parser.add_argument("-l", "--limit")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--diff", action="store_true")
    call = parser.parse_args(words)
    extra: set[str] = set()
    for text in call.extra_vars:
        if text.startswith("@"):
            file = FILES.get((page, text[1:]))
            if file is None:
                return [f"the page has no block that is called {text[1:]}"]
            extra |= set(file.data)
        else:
            extra |= set(json.loads(text)) if text.startswith("{") else {pair.partition("=")[0] for pair in [text]}
    tags = set(filter(None, call.tags.split(",")))
    if not call.playbook.startswith(OURS):
        block = FILES.get((page, call.playbook))
        if block is None:
            return [f"the page has no block that is called {call.playbook}"]
        return [f"{call.playbook} has no variable {name}" for name in extra if name not in block.text]
    try:
        result = fleet_playbook(call.playbook.removeprefix(OURS))
    except FileNotFoundError:
        return [f"there is no playbook {call.playbook}"]
    return [f"{call.playbook} tells of no variable {name}" for name in extra - result.variables] + [
        f"{call.playbook} has no tag {tag}" for tag in tags - result.tags
    ]


def module_call_errors(words: list[str]) -> list[str]:
    """Return what speaks against a call of ansible with one module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pattern")
    for option in ("-m", "-a", "-i", "-e"):
        parser.add_argument(option, default="")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--diff", action="store_true")
    call = parser.parse_args(words)
    if not call.m.startswith(OURS) or call.m in ADDED:
        return []
    given = call.a if call.a.startswith("{") else json.dumps(dict(pair.split("=", 1) for pair in shlex.split(call.a)))
    return module_errors(call.m.removeprefix(OURS), json.loads(given))


def command_errors(words: list[str], page: str) -> list[str]:
    """Return what speaks against a command; programs that are nobody's here are left to whoever reads it."""
    if words[0] == "./dev":
        call = dev_parser()(words[1:])
        return command_errors(call.words, page) if call.command == "exec" and call.words else []
    if words[0] == "ansible-playbook":
        return playbook_errors(words[1:], page)
    if words[0] == "ansible":
        return module_call_errors(words[1:])
    return []


@pytest.mark.parametrize("block", [block for block in RUNNABLE if block.kind == "console"], ids=str)
def test_commands_exist(block):
    assert block.commands, "no line begins with a prompt"
    assert [error for words, _output in block.commands for error in command_errors(words, block.page)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(TREE).as_posix())
def test_commands_in_sentences_exist(path):
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    spans = re.findall(r"(?<!`)`{1,2}((?:\./dev|ansible-playbook tapvirt|ansible-doc) ?[^`|]*)`{1,2}", text)
    errors = []
    for words in map(shlex.split, {span for span in spans if span.strip() != "./dev" and "COMMAND" not in span}):
        if words[0] == "ansible-doc":
            ansible(*words)
        else:
            errors += command_errors(words, path.relative_to(TREE).as_posix())
    assert errors == []


def test_what_a_role_s_readme_lists_is_what_it_takes():
    for role in ROLES:
        text = (TREE / "roles" / role / "README.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| (`.+?`) \|", text.partition("\n## Variables")[2].partition("\n## ")[0], re.MULTILINE)
        listed = set(re.findall(rf"`({role}_\w+)`", " ".join(rows)))
        assert listed <= set(role_options(role)), role


@pytest.mark.parametrize("page", HERE)
def test_what_can_run_on_any_machine_does(page, tmp_path):
    blocks = blocks_of(TREE / page)
    folder, collections = tmp_path, None
    if any(block.file.startswith("plugins/") for block in blocks if block.file):
        collections = tmp_path
        folder = tmp_path / "ansible_collections" / "tapvirt" / "host"
        for part in ("meta", "plugins", "playbooks"):
            shutil.copytree(TREE / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(TREE / "pyproject.toml", folder)
    write_files(blocks, folder)
    plays = [play for block in blocks if block.run == "here" and block.kind != "console" for play in block.playbook]
    if plays:
        (folder / "plays.yml").write_text(yaml.safe_dump(plays), encoding="utf-8")
        ansible("ansible-playbook", "plays.yml", cwd=folder, collections=collections)
    for block in blocks:
        for words, shown in block.commands if block.run == "here" and block.kind == "console" else []:
            argv = words[2 if words[:2] == ["./dev", "exec"] else 0 :]
            output = ansible(*argv, cwd=folder, collections=collections)
            assert shown_in(shown, output), f"{block} shows\n{shown}\nand this came:\n{output}"
