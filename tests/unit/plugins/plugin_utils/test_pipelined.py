# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules sent to a host as their own source files."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import pytest
from ansible.module_utils import basic
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport import bootstrap, module_result, pipelined

PLUGINS = pathlib.Path(pipelined.__file__).parents[2]
SENT = sorted(path.stem for path in (PLUGINS / "action").glob("*.py") if "SourceAction" in path.read_text())
PYTHONS = [sys.executable, *filter(None, (shutil.which(f"python3.{minor}") for minor in range(8, 15)))]


def full_name(module):
    return f"ansible_collections.tapvirt.host.plugins.modules.{module}"


def defaults(module):
    """Return the options of a module as a task without any has them."""
    spec = importlib.import_module(full_name(module)).ARGUMENT_SPEC
    return {name: rule.get("default") for name, rule in spec.items()}


def run_payload(module, options, python=sys.executable, **surroundings):
    """Run what is sent to a host, and return the process."""
    program = pipelined.payload(full_name(module), {**defaults(module), **options})
    return subprocess.run([python, "-IS", "-"], input=program, capture_output=True, check=False, **surroundings)


def names_of(name, node):
    """Return the modules that one import statement may mean, by their full names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    base = ".".join([*name.split(".")[: -node.level], *filter(None, [node.module])]) if node.level else node.module
    return {base} | {f"{base}.{alias.name}" for alias in node.names}


@pytest.mark.parametrize("module", SENT)
def test_all_that_is_imported_is_sent_and_only_the_standard_library_is_asked_for(module):
    texts = pipelined.sources(full_name(module))
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
def test_it_runs_on_a_bare_python_and_takes_nothing_from_its_directory(python, tmp_path):
    if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} does not start")
    (tmp_path / "json.py").write_text("raise SystemExit('a file of somebody else')\n")
    done = run_payload("kernel_facts", {"gather_subset": ["!symbols"]}, python, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["ansible_facts"]["tapvirt_kernel"]
    assert facts["release"] == pathlib.Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert set(facts) > {"config", "memory", "traceability", "unavailable"}


def old_pythons() -> list[str]:
    """Return the Pythons before 3.8 that this machine has."""
    top = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv")) / "versions"
    found = [str(path) for minor in (6, 7) for path in top.glob(f"3.{minor}.*/bin/python")]
    return found or [path for path in (shutil.which(f"python3.{minor}") for minor in (6, 7)) if path]


@pytest.mark.skipif(not old_pythons(), reason="this machine has no Python before 3.8")
def test_an_old_python_gives_one_sentence():
    for python in old_pythons():
        done = run_payload("kernel_facts", {"gather_subset": ["min"]}, python)
        assert (done.returncode, done.stderr) == (0, b"")
        kept = module_result.keep_documented(full_name("kernel_facts"), module_result.parse_json(done.stdout.decode()))
        assert kept["failed"] is True
        assert re.match(
            rf"The host's Python {re.escape(python)}\S* has the version 3\.[67]\.\d+, and this collection needs Python"
            r" 3\.8 or newer\. Install a newer Python beside it",
            kept["msg"],
        )
        assert json.loads(done.stdout)["error"]["problem"] == kept["msg"]


def test_an_error_is_a_result_as_a_module_gives_it():
    result = json.loads(run_payload("kernel_facts", {"gather_subset": ["symbls"]}).stdout)
    assert result["failed"] is True
    assert "symbols" in result["msg"]


VALUE = pathlib.Path("/sys/module/tcp_cubic/parameters/hystart_low_window")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount over a file of sysfs")
@pytest.mark.skipif(not VALUE.exists(), reason="this kernel has no such parameter")
def test_a_byte_that_is_not_utf8_costs_no_task(tmp_path):
    """Ansible and the parser of results refuse what JSON cannot carry."""
    value = tmp_path / "value"
    value.write_bytes(b"a\xffb \xc3\xa9\n")
    name = full_name("kernel_module_param_info")
    program = pipelined.payload(name, {**defaults("kernel_module_param_info"), "modules": ["tcp_cubic"]})
    mount = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', value, VALUE]
    done = subprocess.run([*mount, sys.executable, "-IS", "-"], input=program, capture_output=True, check=True)
    kept = module_result.keep_documented(name, module_result.parse_json(done.stdout.decode()))
    assert "a\\\\xffb \u00e9" in json.dumps(kept, ensure_ascii=False)


def test_a_path_with_a_nul_byte_is_refused_in_one_sentence():
    result = json.loads(run_payload("kernel_symbol_info", {"path": "/boot/a\0b"}).stdout)
    assert result["msg"] == "Invalid value '/boot/a\\x00b' for path: A text cannot contain a NUL byte."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from ..module_utils._core import root\n", ["_core.root"]),
        ("    from ..module_utils._kernel.symbols.table import SymbolTable as Table\n", ["_kernel.symbols.table"]),
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
    assert pipelined.imported(full_name("some_module"), text) == [head + name for name in expected]


def test_a_path_is_the_hosts(tmp_path):
    image = tmp_path / "boot" / "xen-4.20-amd64.gz"
    image.parent.mkdir()
    image.write_bytes(b"")
    result = json.loads(run_payload("xen_info", {"boot": "~/boot"}, env={"HOME": str(tmp_path)}).stdout)
    assert [row["path"] for row in result["images"]] == [str(image)]


@pytest.mark.parametrize("module", SENT)
def test_no_path_is_hidden_within_another_option(module):
    for name, rule in importlib.import_module(full_name(module)).ARGUMENT_SPEC.items():
        kinds = [rule.get("elements"), *(inner["type"] for inner in rule.get("options", {}).values())]
        assert "path" not in kinds, name


def module_parts(text):
    """Return what a source uses of AnsibleModule: attributes of its objects, and names of ansible.module_utils."""
    tree = ast.parse(text)
    names, imported = {"module", "_module"}, set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.arg)
            and node.annotation is not None
            and "AnsibleModule" in ast.unparse(node.annotation)
        ):
            names.add(node.arg)
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("AnsibleModule("):
            names |= {ast.unparse(target).rpartition(".")[2] for target in node.targets}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ansible.module_utils"):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    heirs = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "AnsibleModule" in map(ast.unparse, node.bases)
    ]
    real = set(vars(basic.AnsibleModule)) | set(re.findall(r"self\.(\w+)\b[^=\n]* = ", inspect.getsource(basic)))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] in names and node.attr in real
    }
    for heir in heirs:
        own = {node.name for node in heir.body if isinstance(node, ast.FunctionDef)}
        used |= {
            node.attr
            for node in ast.walk(heir)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self" and node.attr in real - own
        }
    return used, imported


@pytest.mark.parametrize("module", SENT)
def test_the_stand_in_has_all_that_is_used_of_ansiblemodule(module):
    offered = set(dir(bootstrap.AnsibleModule))
    for name, text in pipelined.sources(full_name(module)).items():
        used, imported = module_parts(text)
        assert used <= offered, (name, used - offered)
        assert imported <= {"ansible.module_utils.basic.AnsibleModule"}, name


@pytest.mark.parametrize(
    ("text", "used", "imported"),
    [
        ("def body(module: AnsibleModule):\n    module.run_command(['x'])\n", {"run_command"}, set()),
        ("def body(given: AnsibleModule):\n    return given.get_bin_path('x')\n", {"get_bin_path"}, set()),
        ("class A:\n    def b(self):\n        self._module.add_path_info({})\n", {"add_path_info"}, set()),
        (
            "def main():\n    it = AnsibleModule(a={})\n    it.tmpdir\n    it.no_log_values\n",
            {"tmpdir", "no_log_values"},
            set(),
        ),
        ("def body(module):\n    return module.text, module.params, module._diff\n", {"params", "_diff"}, set()),
        ("class A(AnsibleModule):\n    def b(self):\n        return self.no_log, self.c\n", {"no_log"}, set()),
        ("from ansible.module_utils.basic import env_fallback\n", set(), {"ansible.module_utils.basic.env_fallback"}),
    ],
)
def test_a_use_of_ansiblemodule_is_found(text, used, imported):
    assert module_parts(text) == (used, imported)


@pytest.mark.parametrize("module", SENT)
def test_no_option_is_secret_as_the_stand_in_hides_nothing(module):
    assert not any(rule.get("no_log") for rule in importlib.import_module(full_name(module)).ARGUMENT_SPEC.values())


BODY = """
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.module import run_module
def body(module: AnsibleModule):
    module.warn("once")
    module.warn("once")
    module.deprecate("Option old does nothing.", version="2.0.0", collection_name="tapvirt.host")
    if module.check_mode:
        raise TapvirtError("no", warnings=["of the error"])
    return {"diff": module._diff, "warnings": ["of the body"]}
def main():
    run_module({}, body)
"""


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_body_that_warns_has_its_warnings(monkeypatch, check_mode):
    name = full_name("warns")
    texts = {name: BODY}
    for part in ("errors", "module"):
        texts.update(pipelined.sources(f"ansible_collections.tapvirt.host.plugins.module_utils._core.{part}"))
    monkeypatch.setattr(pipelined, "sources", lambda _name: texts)
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(ARGUMENT_SPEC={}))
    program = pipelined.payload(name, {}, check_mode, True)
    done = subprocess.run([sys.executable, "-IS", "-"], input=program, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    own = ["once", "Deprecated: Option old does nothing. It will be removed in version 2.0.0."]
    if check_mode:
        result = json.loads(done.stdout)
        assert (result["failed"], result["msg"], result["warnings"]) == (True, "no", [*own, "of the error"])
    else:
        assert json.loads(done.stdout) == {"diff": True, "warnings": [*own, "of the body"]}
