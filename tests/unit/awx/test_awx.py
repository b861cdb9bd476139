# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What AWX is given: the execution environment, as ansible-builder takes it, job templates, and surveys."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace import campaign
from ansible_collections.tapvirt.host.tests.unit.support.stubs import Stubs

COLLECTIONS = pathlib.Path(campaign.__file__).resolve().parents[6]
ROOT = pathlib.Path(__file__).resolve().parents[3]
AWX = ROOT / "docs" / "awx"
BIN = pathlib.Path(sys.executable).parent
# What awx/main/models/mixins.py knows, and what of Python's each answer is.
ANSWERS: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "textarea": str,
    "password": str,
    "integer": int,
    "float": (int, float),
    "multiplechoice": str,
    "multiselect": list,
}
TEMPLATES = yaml.safe_load((AWX / "job_templates.yml").read_text(encoding="utf-8"))["job_templates"]
QUESTIONS = [
    pytest.param(template["playbook"], question, id=question["variable"])
    for template in TEMPLATES
    for question in json.loads((AWX / template["survey"]).read_text(encoding="utf-8"))["spec"]
]


def run_program(*argv: str | pathlib.Path, **options: t.Any) -> str:
    words = [str(BIN / argv[0]), *map(str, argv[1:])]
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **options.pop("env", {})}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_the_collection_needs_is_found_in_it() -> None:
    needs = yaml.safe_load(run_program("ansible-builder", "introspect", COLLECTIONS))
    ours = {
        kind: [row.partition("  # from")[0] for row in rows if "tapvirt.host" in row] for kind, rows in needs.items()
    }
    assert ours["python"] == ["libvirt-python >= 8.0.0"]
    assert {
        "libvirt-devel [compile platform:rpm]",
        "libvirt-libs [platform:rpm]",
        "openssh-clients [platform:rpm]",
    } <= {*ours["system"]}


def test_bindep_reads_what_the_system_has_to_have(tmp_path: pathlib.Path) -> None:
    shutil.copy(ROOT / "meta" / "ee-bindep.txt", tmp_path / "bindep.txt")
    argv = [str(BIN / "bindep"), "--list_all", "newline", "--file", str(tmp_path / "bindep.txt"), "compile"]
    listed = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert not listed.stderr, listed.stderr
    assert len(listed.stdout.split()) == 6, listed.stdout


def test_the_execution_environment_can_be_made(tmp_path: pathlib.Path) -> None:
    run_program("ansible-galaxy", "collection", "build", "--output-path", tmp_path, ROOT)
    shutil.copy(AWX / "execution-environment.yml", tmp_path)
    env = {"ANSIBLE_HOME": str(tmp_path / "home")}
    run_program(
        "ansible-builder",
        "create",
        "--file",
        "execution-environment.yml",
        "--context",
        "context",
        cwd=tmp_path,
        env=env,
    )
    (recipe,) = [path for name in ("Containerfile", "Dockerfile") if (path := tmp_path / "context" / name).exists()]
    text = recipe.read_text(encoding="utf-8")
    assert re.search(r'EE_BASE_IMAGE="registry\.fedoraproject\.org/fedora:\d+"', text)
    assert "introspect" in text
    build = tmp_path / "context" / "_build"
    (row,) = yaml.safe_load((build / "requirements.yml").read_text(encoding="utf-8"))["collections"]
    assert (build / row["name"]).is_file(), "the name is the path of the archive in the context"


def test_every_playbook_has_a_job_template_and_every_survey_is_used() -> None:
    found = {path.stem for path in (ROOT / "playbooks").glob("*.yml")} - {"awx", "demo"}
    assert {pathlib.Path(template["playbook"]).stem for template in TEMPLATES} >= found
    assert {template["survey"] for template in TEMPLATES} == {path.name for path in AWX.glob("*_survey.json")}
    for template in TEMPLATES:
        assert (ROOT / template["playbook"]).is_file()
        survey = json.loads((AWX / template["survey"]).read_text(encoding="utf-8"))
        assert {"name", "description", "spec"} == set(survey)
        variables = [question["variable"] for question in survey["spec"]]
        assert len(variables) == len(set(variables))


def test_tags_are_asked_for_where_a_playbook_has_some_and_no_template_takes_any_variable() -> None:
    for template in TEMPLATES:
        text = (ROOT / template["playbook"]).read_text(encoding="utf-8")
        assert template["tags"] is any("tags" in play for play in yaml.safe_load(text)), template["name"]
        assert template["extra_variables"] is False


def test_the_guide_reports_of_every_artifact() -> None:
    guide = (ROOT / "docs" / "docsite" / "rst" / "guide_awx.rst").read_text(encoding="utf-8")
    for template in TEMPLATES:
        (last, *_others) = reversed(yaml.safe_load((ROOT / template["playbook"]).read_text(encoding="utf-8")))
        kept = [task["ansible.builtin.set_stats"] for task in last["tasks"] if "ansible.builtin.set_stats" in task]
        for name in kept[0]["data"]:
            row = f"    * - ``{pathlib.Path(template['playbook']).stem}``\n      - ``{name}``\n"
            assert row in guide, f"no row for {name}"


def test_templates_are_chosen_by_name_and_a_wrong_name_is_reported(tmp_path: pathlib.Path) -> None:
    stubs = Stubs(tmp_path)
    awx = tmp_path / "ansible_collections" / "awx" / "awx"
    for name in ("execution_environment", "project", "job_template"):
        stubs.put(awx, name, "return {'changed': False}")
    names = [template["name"] for template in TEMPLATES]
    done = stubs.run("awx", {}, awx_inventory="fleet", awx_only=f"{names[0]}, {names[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    made = {options["name"]: options for _host, _checked, options in stubs.calls("job_template")}
    assert list(made) == [names[0], names[-1]]
    for name, options in made.items():
        (template,) = (template for template in TEMPLATES if template["name"] == name)
        assert options["ask_tags_on_launch"] is template["tags"]
        assert options["ask_variables_on_launch"] is False
    done = stubs.run("awx", {}, awx_inventory="fleet", awx_only="Reprot")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"awx_only: no job template is called Reprot; there are: {', '.join(names)}." in done.stdout
    assert stubs.calls("project") == []


@pytest.mark.parametrize(("playbook", "question"), QUESTIONS)
def test_a_question_is_one_that_its_playbook_takes(playbook: str, question: dict[str, t.Any]) -> None:
    text = (ROOT / playbook).read_text(encoding="utf-8")
    header = "\n".join(re.findall(r"^#.*$", text.partition("\n- name:")[0], re.MULTILINE))
    assert re.search(rf"\b{question['variable']}\b", header), "the playbook's first lines do not tell of it"
    roles = re.findall(r"name: tapvirt\.host\.(\w+)", text)
    specs = "".join(
        (ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8") for role in roles
    )
    assert question["variable"] in text.replace(header, "") or f"\n      {question['variable']}:\n" in specs


@pytest.mark.parametrize(("_playbook", "question"), QUESTIONS)
def test_a_question_can_be_asked_and_its_default_is_an_answer(_playbook: str, question: dict[str, t.Any]) -> None:
    allowed = {
        "question_name",
        "question_description",
        "required",
        "type",
        "variable",
        "min",
        "max",
        "choices",
        "default",
    }
    assert set(question) <= allowed
    assert question["type"] in ANSWERS
    default = question["default"]
    assert isinstance(default, ANSWERS[question["type"]]) and not isinstance(default, bool)
    if question["type"].startswith("multi"):
        chosen = default if isinstance(default, list) else [default]
        assert chosen and set(chosen) <= set(question["choices"])
    else:
        size = len(default) if isinstance(default, str) else default
        assert question["min"] <= size <= question["max"]
        assert question["required"] is (question["min"] > 0 or question["type"] in ("integer", "float"))
