# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Only what a module documents comes through from its host."""

from __future__ import annotations

import ast
import importlib
import json
import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport import module_result, pipelined
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.edge import MOST_LEVELS, Odd

PLUGINS = pathlib.Path(module_result.__file__).parents[2]
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py"))
WITH_ACTION = sorted(path.stem for path in (PLUGINS / "action").glob("*.py"))
CONTROLLERS = {
    "ansible_stats": {"data": {"approved": True}, "per_host": False},
    "add_host": {"host_name": "x"},
    "add_group": "x",
    "_ansible_no_log": True,
    "_ansible_notify": ["x"],
    "exception": "Traceback",
    "deprecations": [{"msg": "x"}],
    "diff": {"before": "a", "after": "b"},
    "invocation": {"module_args": {}},
    "results": [{"failed": True}],
    "skipped": True,
    "unreachable": True,
}


def full_name(module: str) -> str:
    return f"ansible_collections.tapvirt.host.plugins.modules.{module}"


@pytest.mark.parametrize("module", MODULES)
def test_the_keys_and_types_are_those_of_the_documentation(module: str) -> None:
    returns = yaml.safe_load(importlib.import_module(full_name(module)).RETURN)
    found = module_result.documented(full_name(module))
    assert set(found) - {"diff"} == set(returns)
    assert ("diff" in found) == ("plan" in returns)
    for key, row in returns.items():
        if key == "ansible_facts":
            assert set(found[key]) == set(row["contains"])
        else:
            assert found[key] is module_result.KINDS[row["type"]], key


@pytest.mark.parametrize("module", WITH_ACTION)
def test_no_field_of_an_error_is_lost(module: str) -> None:
    known = {*module_result.ALWAYS, *module_result.documented(full_name(module))}
    for name, text in pipelined.sources(full_name(module)).items():
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        for call in calls:
            called = ast.unparse(call.func).rpartition(".")[2]
            if called.endswith(
                ("Error", "NoEffect", "InvalidInput", "CommandMissing", "CommandTimeout", "BuildFailed")
            ):
                names = {word.arg for word in call.keywords if word.arg}
                # InvalidInput's own parameters are no fields.
                names -= {"hint", "candidates"}
                # Of shared code that this module does not get to: it starts no run, or has no plan.
                assert names - {"run", "plan"} <= known, (name, called, names - known)


@pytest.mark.parametrize("key", CONTROLLERS)
def test_a_key_that_a_controller_acts_on_does_not_come_through(key: str) -> None:
    sent = {"changed": False, "ansible_facts": {"tapvirt_kernel": {}}, key: CONTROLLERS[key]}
    result = module_result.keep_documented(full_name("kernel_facts"), sent)
    assert result == {"changed": False, "ansible_facts": {"tapvirt_kernel": {}}}


def test_of_the_facts_only_those_that_the_module_documents_come_through() -> None:
    facts = {
        "tapvirt_kernel": {"release": "6.12"},
        "tapvirt_libvirt_uri": "qemu+ext://x",
        "ansible_connection": "local",
    }
    kernel = module_result.keep_documented(full_name("kernel_facts"), {"ansible_facts": facts})
    assert kernel == {"ansible_facts": {"tapvirt_kernel": {"release": "6.12"}}}
    assert module_result.keep_documented(full_name("procfs_info"), {"ansible_facts": facts}) == {}


def test_what_ansible_adds_to_a_result_stays() -> None:
    sent = {
        **CONTROLLERS,
        "changed": True,
        "ansible_facts": {"discovered_interpreter_python": "/usr/bin/python3", "discovered_interpreter_x": 1},
        "ansible_job_id": "j1.2",
    }
    key = "discovered_interpreter_python"
    result = module_result.keep_of_ansible(full_name("procfs_info"), sent, key)
    kept = {"changed", "ansible_facts", "ansible_job_id", "invocation", "exception", "deprecations"}
    assert set(result) == kept | {"_ansible_no_log", "_ansible_notify"}
    assert result["ansible_facts"] == {key: "/usr/bin/python3"}
    assert "ansible_facts" not in module_result.keep_of_ansible(full_name("procfs_info"), sent)
    odd = {**sent, "ansible_facts": {key: ["x"]}}
    assert "ansible_facts" not in module_result.keep_of_ansible(full_name("procfs_info"), odd, key)
    assert "ansible_facts" not in module_result.keep_of_ansible(full_name("procfs_info"), {"ansible_facts": [1]}, key)


def test_a_changing_module_has_its_diff() -> None:
    sent = {"changed": True, "plan": [], "diff": {"before": "a", "after": "b", "prepared": "x"}}
    result = module_result.keep_documented(full_name("stap_run"), sent)
    assert result["diff"] == {"before": "a", "after": "b"}


def test_warnings_are_few_and_printable() -> None:
    sent = {"warnings": ["\x1b[2Jgone\n"] + ["x" * 9000] * 99}
    warnings = module_result.keep_documented(full_name("procfs_info"), sent)["warnings"]
    assert len(warnings) == 20 and warnings[0] == "?[2Jgone?" and len(warnings[1]) == 500


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"ansible_facts": "x"}, "ansible_facts is 'x', not a dictionary"),
        ({"ansible_facts": {"tapvirt_kernel": 5}}, "ansible_facts.tapvirt_kernel is 5, not a dictionary"),
        ({"ansible_facts": {"tapvirt_kernel": {"release": "a\ud800"}}}, r"release is 'a\ud800', which is not UTF-8"),
        ({"ansible_facts": {"tapvirt_kernel": {"tainted": float("nan")}}}, "tapvirt_kernel.tainted is nan"),
        ({"ansible_facts": {"tapvirt_kernel": {"tainted": 10**4000}}}, "is a number of 13288 bits"),
        ({"changed": "yes"}, "changed is 'yes', not true or false"),
        ({"failed": 1}, "failed is 1, not true or false"),
        ({"msg": {"a": 1}}, "msg is a dictionary, not a text"),
        ({"warnings": "x"}, "warnings is 'x', not a list"),
        ({"warnings": [{"msg": "x"}]}, "warnings[0] is a dictionary, not a text"),
    ],
)
def test_a_value_of_another_shape_is_named(sent: dict[str, t.Any], message: str) -> None:
    with pytest.raises(Odd) as caught:
        module_result.keep_documented(full_name("kernel_facts"), sent)
    assert message in str(caught.value)


def test_deep_nesting_is_refused_and_not_a_recursion() -> None:
    nested: t.Any = []
    for _level in range(MOST_LEVELS + 9):
        nested = [nested]
    with pytest.raises(Odd, match="nested deeper than"):
        module_result.keep_documented(full_name("procfs_info"), {"procfs": {"deep": nested}})


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "has no result"),
        ("no braces\n", "has no result"),
        ('{"cut": ', "not the JSON of a module"),
        ('{"deep": ' + "[" * 100_000, "not the JSON of a module"),
        ('{"huge": ' + "9" * 100_000 + "}", "not the JSON of a module"),
    ],
    ids=["nothing", "no object", "cut", "nested", "a huge number"],
)
def test_an_output_without_a_result_is_reported(output: str, message: str) -> None:
    with pytest.raises(Odd, match=message):
        module_result.parse_json(output)


def test_the_last_object_of_the_output_is_the_result() -> None:
    output = "a banner\n" + json.dumps({"changed": True}) + "\n" + json.dumps({"changed": False}) + "\nbye\n"
    assert module_result.parse_json(output) == {"changed": False}
