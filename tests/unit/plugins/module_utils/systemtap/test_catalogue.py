# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The trace role's catalogue: what it lists is what there is, and every script is one that the collection accepts."""

from __future__ import annotations

import pathlib
import re

import jinja2
import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.probe_point import (
    parse_probe_point,
    split_probe_points,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script.check import (
    Script,
    check_globals,
    check_safety,
    read_script,
)

ROLE = pathlib.Path(__file__).resolve().parents[5] / "roles/trace"
TEMPLATES = ROLE / "templates"
VARS = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
CATALOGUE = VARS["trace_catalogue"]
# What the scripts that require variables are given here.
VARIABLES = {
    "function_count": {"functions": "vfs_* ksys_read"},
    "function_latency": {"function": "vfs_read"},
    "function_rate": {"function": "vfs_read"},
    "kvm_exits": {"kvm_module": "kvm_intel"},
    "module_functions": {"module": "tun"},
}


def script(name: str) -> Script:
    """Render a script of the catalogue as ansible.builtin.template does, and read it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template(f"{name}.stp.j2")
    text = template.render(**VARIABLES.get(name, {}), trace_kvm_exit_names=VARS["trace_kvm_exit_names"])
    return read_script(name, text)


def test_the_catalogue_lists_every_script() -> None:
    assert sorted(CATALOGUE) == sorted(path.name.split(".")[0] for path in TEMPLATES.glob("*.stp.j2"))
    assert len(CATALOGUE) >= 10


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_script_is_accepted(name: str) -> None:
    read = script(name)
    check_safety("src", read, guru=False)
    assert [parse_probe_point(point) for probe in read.probes for point in split_probe_points(probe)]
    assert any(probe.startswith("end") for probe in read.probes)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_listed_global_can_be_set(name: str) -> None:
    read = script(name)
    declared = {key: variable.kind for key, variable in read.globals.items()}
    given = {key: "vda" if declared.get(key) == "string" else 1 for key in CATALOGUE[name]["globals"]}
    assert check_globals(name, declared, given) == given
    # What has an initial value is there to be set; the rest is the script's own.
    assert sorted(given) == sorted(key for key, variable in read.globals.items() if variable.initial is not None)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_script_declares_the_records_that_its_plot_needs(name: str) -> None:
    read = script(name)
    kind = CATALOGUE[name]["plot"]["kind"]
    record, needed = {
        "histogram": ("histogram", {"key", "unit", "count", "buckets"}),
        "series": ("series", {"key", "unit", "step_ms", "count", "values"}),
        "bars": ("count", {"key", "count"}),
    }[kind]
    assert needed <= set(read.schema[record])
    # Every record that is printed is of a declared kind, with every field that is declared.
    printed = re.findall(r'printf\("\{\\"kind\\":\\"(\w+)\\"(.*)', read.text)
    assert {found for found, _rest in printed} == set(read.schema)
    for found, rest in printed:
        assert all(f'\\"{field}\\":' in rest for field in read.schema[found]), (name, rest)


@pytest.mark.parametrize("name", CATALOGUE)
def test_arrays_are_bounded(name: str) -> None:
    """An array's size is stated, or its keys are few by nature (exit reasons)."""
    text = script(name).text
    keyed = set(re.findall(r"\b(\w+)\[[^\]]*\] (?:<<<|=) ", text)) - {"names", "exits"}
    for array in keyed:
        assert re.search(rf"^global .*\b{array}%?\[\d+\]", text, re.MULTILINE), (name, array)


@pytest.mark.parametrize("name", CATALOGUE)
def test_variables_fit_their_patterns(name: str) -> None:
    variables = CATALOGUE[name]["variables"]
    given = VARIABLES.get(name, {})
    assert {key for key, rule in variables.items() if rule["required"]} <= set(given) <= set(variables)
    for key, rule in variables.items():
        assert key not in given or re.match(rule["pattern"], given[key])
        assert not re.match(rule["pattern"], 'x") { } probe begin')


def test_the_readme_has_a_row_for_every_script() -> None:
    readme = (ROLE / "README.md").read_text(encoding="utf-8")
    for name, entry in CATALOGUE.items():
        (row,) = re.findall(rf"^\| `{name}` .*$", readme, re.MULTILINE)
        assert all(f"`{word}`" in row for word in (*entry["globals"], *set(entry["variables"]) - {"kvm_module"})), row
