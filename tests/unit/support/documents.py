# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The code blocks of the documentation, as the tests of it read them.

What becomes of a block that could be run is said in a comment before it, which no reader of the page sees:
``.. run: here`` (``<!-- run: here -->`` in Markdown) on any machine, ``run: lab`` in the lab, ``run: in PLACE`` where
another page has the same or a test takes it from here, and ``run: no, WHY``. A text that shows what is printed says
``run: printed`` below the example that prints it, or one of the last two.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
import re
import shlex
import textwrap
import typing as t
import unittest.mock

import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

TREE = pathlib.Path(__file__).resolve().parents[3]
PAGES = [
    TREE / "README.md",
    TREE / "CONTRIBUTING.md",
    *sorted((TREE / "docs" / "docsite" / "rst").glob("*.rst")),
    *sorted((TREE / "roles").glob("*/README.md")),
]
_START = re.compile(r"^(?P<indent> *)(?:\.\. code-block:: (?P<rst>\w+)|```(?P<markdown>\w*))$")
_MARK = re.compile(r"^ *(?:\.\. run: (?P<rst>.+)|<!-- run: (?P<markdown>.+) -->)$")
_FILE = re.compile(r"^# ([\w./-]+\.(?:yml|j2|py))$")
_TEMPLATED = re.compile(r"\{\{.*\}\}", re.DOTALL)
# What stands for a templated value, which only a run would know.
_SAMPLES = {
    "bool": True,
    "bytes": "1",
    "dict": {},
    "float": 1.0,
    "int": 1,
    "list": [],
    "path": "/sample",
    "raw": "x",
    "str": "x",
}
_TASK_KEYS = {
    *("name", "register", "when", "loop", "loop_control", "vars", "delegate_to", "run_once", "become", "tags"),
    *("failed_when", "changed_when", "until", "retries", "delay", "no_log", "environment", "ignore_errors"),
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block: its page (relative to the tree), line, language and text, and its mark (``run:``)."""

    page: str
    line: int
    language: str
    text: str
    run: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """What the reader is to call it, such as ``group_vars/all.yml``: the comment that is its first line."""
        found = _FILE.match(self.text.partition("\n")[0])
        return found[1] if found else None

    @functools.cached_property
    def data(self) -> t.Any:
        """A YAML block, loaded."""
        return yaml.safe_load(self.text)

    @property
    def kind(self) -> str:
        """``console``, ``plays``, ``tasks``, ``inventory`` (a plugin's, too), ``variables``, ``text``."""
        if self.language == "console":
            return "console"
        if self.language != "yaml":
            return "text"
        if isinstance(self.data, list):
            return "plays" if any("hosts" in entry for entry in self.data) else "tasks"
        if "plugin" in self.data or any(isinstance(group, dict) and "hosts" in group for group in self.data.values()):
            return "inventory"
        return "text" if "collections" in self.data else "variables"  # what ansible-galaxy is to install

    @property
    def commands(self) -> list[tuple[list[str], str]]:
        """Each command of a console block in words, with the output that is shown below it."""
        rows: list[tuple[list[str], str]] = []
        for line in self.text.splitlines():
            if line.startswith(("$ ", "# ")):
                rows.append((shlex.split(line[2:]), ""))
            else:
                words, output = rows.pop()
                rows.append((words, f"{output}{line}\n"))
        return rows

    @property
    def steps(self) -> list[t.Any]:
        """What of it is run: each command's words, or each task's module and options."""
        if self.kind == "console":
            return [words for words, _output in self.commands]
        return [(key, options) for play in self.playbook for key, options, _task in tasks_of(play.get("tasks", []))]

    @property
    def playbook(self) -> list[dict[str, t.Any]]:
        """A block of plays or tasks as plays; tasks are this machine's."""
        if self.kind == "plays":
            return t.cast("list[dict[str, t.Any]]", self.data)
        return [{"name": str(self), "hosts": "localhost", "gather_facts": False, "tasks": self.data}]


def blocks_of(path: pathlib.Path) -> list[Block]:
    """Return the code blocks of a page in their order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    page = path.relative_to(TREE).as_posix()
    found = []
    number, mark = 0, ""
    while number < len(lines):
        start = _START.match(lines[number])
        if not start:
            marked = _MARK.match(lines[number])
            mark = (marked["rst"] or marked["markdown"]) if marked else mark if not lines[number].strip() else ""
            number += 1
            continue
        first = number + 1
        end = _end(lines, first, start)
        text = textwrap.dedent("\n".join(lines[first:end])).strip("\n") + "\n"
        found.append(Block(page, first, start["rst"] or start["markdown"] or "plain", text, mark))
        mark, number = "", end if start["rst"] else end + 1
    return found


def _end(lines: list[str], first: int, start: re.Match[str]) -> int:
    """Return the line that no longer belongs to a block."""
    rest = range(first, len(lines))
    if start["rst"] is None:
        ends = (number for number in rest if lines[number].strip() == "```")
    else:
        inner = start["indent"] + " "
        ends = (number for number in rest if lines[number] and not lines[number].startswith(inner))
    return next(ends, len(lines))


def all_blocks() -> list[Block]:
    """Return the code blocks of all pages."""
    return [block for path in PAGES for block in blocks_of(path)]


def write_files(blocks: t.Iterable[Block], folder: pathlib.Path) -> None:
    """Write the blocks that a reader is to keep as files."""
    for block in blocks:
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


def shown_in(shown: str, output: str, numbers_differ: bool = False) -> bool:
    """Whether the lines that a page shows are in an output, in this order; ``...`` is anything, N a number.

    Where the numbers of another machine may be there, each stands for any.
    """
    parts = []
    for line in filter(lambda line: line.strip(" ."), shown.splitlines()):
        part = re.sub(r"\bN\b", r"\\d+", re.escape(line.strip())).replace(r"\.\.\.", ".*")
        parts.append(re.sub(r"(?<!\\)\d+", r"\\d+", part) if numbers_differ else part)
    return re.search(r"[\s\S]*?".join(parts), output) is not None


def sample(page: str, begins: str, names: t.Mapping[str, str] | None = None) -> str:
    """Return the text that a page shows as printed and that has ``begins`` in it, with other names for its hosts.

    Raises StopIteration where the page has none.
    """
    text = next(block.text for block in blocks_of(TREE / page) if block.kind == "text" and begins in block.text)
    for shown, real in (names or {}).items():
        text = text.replace(shown, real)
    return text


def example(page: str, begins: str) -> Block:
    """Return the example of a page that has ``begins`` in it.

    Raises StopIteration where the page has none.
    """
    return next(block for block in blocks_of(TREE / page) if block.kind != "text" and begins in block.text)


class _Spec(Exception):
    pass


@functools.cache
def module_validator(name: str) -> ArgumentSpecValidator:
    """Return the validator of one of the collection's modules, with what its ``main`` gives to AnsibleModule."""

    def tell(_self: AnsibleModule, **options: t.Any) -> None:
        raise _Spec(options)

    module = importlib.import_module(f"ansible_collections.tapvirt.host.plugins.modules.{name}")
    with unittest.mock.patch.object(AnsibleModule, "__init__", tell):
        options: dict[str, t.Any] = {}
        try:
            module.main()
        except _Spec as marked:
            options = marked.args[0]
    keys = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")
    return ArgumentSpecValidator(options["argument_spec"], **{key: options.get(key) for key in keys})


@functools.cache
def role_options(name: str) -> dict[str, dict[str, t.Any]]:
    """Return the options of a role of this collection."""
    text = (TREE / "roles" / name / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    return t.cast("dict[str, dict[str, t.Any]]", yaml.safe_load(text)["argument_specs"]["main"]["options"])


def filled(value: t.Any, spec: t.Mapping[str, t.Any]) -> t.Any:
    """Return a value as its option takes it, with a sample in place of each template."""
    kind = spec.get("type", "str")
    if isinstance(value, str) and _TEMPLATED.search(value):
        return spec["choices"][0] if spec.get("choices") else _SAMPLES[kind]
    inner = spec.get("options") or {}
    if isinstance(value, dict):
        return {key: filled(entry, inner.get(key, {"type": "raw"})) for key, entry in value.items()}
    if isinstance(value, list):
        element = {"type": spec.get("elements", "raw"), "options": inner, "choices": spec.get("choices")}
        return [filled(entry, element) for entry in value]
    return value


def module_errors(name: str, options: dict[str, t.Any]) -> list[str]:
    """Return what a module of this collection says against its options."""
    if not (TREE / "plugins" / "modules" / f"{name}.py").exists():
        return [f"there is no module tapvirt.host.{name}"]
    validator = module_validator(name)
    spec = validator.argument_spec
    return list(
        validator.validate(
            {key: filled(value, spec.get(key, {"type": "raw"})) for key, value in options.items()}
        ).error_messages
    )


def variable_errors(variables: t.Mapping[str, t.Any], roles: t.Iterable[str], required: bool = False) -> list[str]:
    """Return what speaks against variables, each of which must be an option of one of these roles.

    A list such as ``domains_group`` may have a name after it.
    """
    specs = {key: spec for role in roles for key, spec in role_options(role).items()}
    grouped = {key: re.sub(r"^(\w+_group)_\w+$", r"\1", key) for key in variables}
    unknown = [f"no role has a variable {key}" for key in variables if grouped[key] not in specs]
    known = {grouped[key]: value for key, value in variables.items() if grouped[key] in specs}
    wanted = {key: spec if required else {**spec, "required": False} for key, spec in specs.items()}
    validator = ArgumentSpecValidator(wanted)
    values = {key: filled(value, wanted[key]) for key, value in known.items()}
    return unknown + list(validator.validate(values).error_messages)


def tasks_of(tasks: list[dict[str, t.Any]]) -> t.Iterator[tuple[str, dict[str, t.Any], dict[str, t.Any]]]:
    """Yield each task's module, options and the task itself, those in blocks too."""
    for task in tasks:
        for part in ("block", "rescue", "always"):
            yield from tasks_of(task.get(part, []))
        for key in set(task) - _TASK_KEYS - {"block", "rescue", "always"}:
            yield key, task[key] or {}, task


@dataclasses.dataclass(frozen=True)
class FleetPlaybook:
    """A playbook of the collection: the variables that its header or its roles tell of, and its tags."""

    variables: frozenset[str]
    tags: frozenset[str]


@functools.cache
def fleet_playbook(name: str) -> FleetPlaybook:
    """Return what is told of ``tapvirt.host.NAME``.

    Raises FileNotFoundError where there is none.
    """
    text = (TREE / "playbooks" / f"{name}.yml").read_text(encoding="utf-8")
    header = "\n".join(line for line in text.partition("\n- name:")[0].splitlines() if line.startswith("#"))
    roles = set(re.findall(r"(?:name|role): tapvirt\.host\.(\w+)", text))
    options = {key for role in roles for key in role_options(role)}
    tags = {tag for found in re.findall(r"tags: \[(.*)\]", text) for tag in found.split(", ")}
    return FleetPlaybook(frozenset(options | set(re.findall(r"\b[a-z]+_\w+\b", header))), frozenset(tags))
