# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules sent to a host as their own source files."""

from __future__ import annotations

import ast
import importlib
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from ansible_collections.tapvirt.host.plugins.plugin_utils import _source

PLUGINS = pathlib.Path(_source.__file__).parents[1]
SENT = sorted(path.stem for path in (PLUGINS / "action").glob("*.py") if "SourceAction" in path.read_text())
PYTHONS = [sys.executable, *filter(None, (shutil.which(f"python3.{minor}") for minor in range(8, 15)))]


def full_name(module):
    return f"ansible_collections.tapvirt.host.plugins.modules.{module}"


def defaults(module):
    """Return the options of a module as a task without any has them."""
    spec = importlib.import_module(full_name(module)).ARGUMENT_SPEC
    return {name: rule.get("default") for name, rule in spec.items()}


def run(module, options, python=sys.executable, **surroundings):
    """Run what is sent to a host, and return the process."""
    program = _source.payload(full_name(module), {**defaults(module), **options})
    return subprocess.run([python, "-IS", "-"], input=program, capture_output=True, check=False, **surroundings)


def names_of(name, node):
    """Return the modules that one import statement may mean, by their full names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    base = ".".join([*name.split(".")[: -node.level], *filter(None, [node.module])]) if node.level else node.module
    return {base} | {f"{base}.{alias.name}" for alias in node.names}


@pytest.mark.parametrize("module", SENT)
def test_all_that_is_imported_is_sent_and_only_the_standard_library_is_asked_for(module):
    texts = _source.sources(full_name(module))
    for name, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            for wanted in names_of(name, node):
                if wanted.startswith("ansible_collections."):
                    path = PLUGINS.joinpath(*wanted.split(".")[4:]).with_suffix(".py")
                    assert wanted in texts or not path.exists(), (name, wanted)
                elif not wanted.startswith("ansible.module_utils.basic") and wanted != "__future__":
                    assert wanted.split(".")[0] in sys.stdlib_module_names, (name, wanted)


@pytest.mark.parametrize("python", PYTHONS)
def test_it_runs_on_a_bare_python_and_takes_nothing_from_its_folder(python, tmp_path):
    if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} does not start")
    (tmp_path / "json.py").write_text("raise SystemExit('a file of somebody else')\n")
    done = run("kernel_facts", {"gather_subset": ["!symbols"]}, python, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["ansible_facts"]["tapvirt_kernel"]
    assert facts["release"] == pathlib.Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert set(facts) > {"config", "memory", "traceability", "unavailable"}


def test_an_error_is_a_result_as_a_module_gives_it():
    result = json.loads(run("kernel_facts", {"gather_subset": ["symbls"]}).stdout)
    assert result["failed"] is True
    assert "symbols" in result["msg"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from ..module_utils._core import root\n", ["_core.root"]),
        ("    from ..module_utils._kernel.symbols import SymbolTable as Table\n", ["_kernel.symbols"]),
        ("from ..module_utils._core import (\n    root,\n    errors,\n)\n", ["_core.root", "_core.errors"]),
        (
            "from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root\n",
            ["_core.root"],
        ),
        ("import os\nfrom ansible.module_utils.basic import AnsibleModule\nfrom __future__ import annotations\n", []),
    ],
    ids=["a package's module", "within a function", "in parentheses", "by its full name", "not ours"],
)
def test_imports_are_found_wherever_they_stand(text, expected):
    head = "ansible_collections.tapvirt.host.plugins.module_utils."
    assert _source.imported(full_name("some_module"), text) == [head + name for name in expected]


def test_a_host_has_no_say_in_what_is_the_controllers():
    facts = {
        "tapvirt_kernel": {"release": "6.12"},
        "ansible_connection": "local",
        "discovered_interpreter_python": "/x",
    }
    sent = {"changed": False, "_ansible_no_log": True, "add_host": {"host_name": "x"}, "ansible_facts": facts}
    result = _source.told("a banner\n" + json.dumps({"changed": True}) + "\n" + json.dumps(sent) + "\nbye\n")
    assert result == {"changed": False, "ansible_facts": {"tapvirt_kernel": {"release": "6.12"}}}


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("", IndexError),
        ("no braces\n", IndexError),
        ('{"cut": ', ValueError),
        ('{"deep":' + "[" * 200_000 + "]" * 200_000 + "}", ValueError),
    ],
)
def test_no_whole_result_is_none(output, error):
    with pytest.raises(error):
        _source.told(output)


def test_a_path_is_the_hosts(tmp_path):
    image = tmp_path / "boot" / "xen-4.20-amd64.gz"
    image.parent.mkdir()
    image.write_bytes(b"")
    result = json.loads(run("xen_info", {"boot": "~/boot"}, env={"HOME": str(tmp_path)}).stdout)
    assert [row["path"] for row in result["images"]] == [str(image)]


@pytest.mark.parametrize("module", SENT)
def test_no_path_is_hidden_within_another_option(module):
    for name, rule in importlib.import_module(full_name(module)).ARGUMENT_SPEC.items():
        kinds = [rule.get("elements"), *(inner["type"] for inner in rule.get("options", {}).values())]
        assert "path" not in kinds, name
