# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup of the collection's own playbooks: one result, and errors as one sentence."""

from __future__ import annotations

import inspect
import pathlib
import re

import pytest
from ansible.errors import AnsibleError
from ansible_collections.tapvirt.host.plugins.lookup.playbook import FUNCTIONS, RENDERING, LookupModule

ROOT = pathlib.Path(__file__).resolve().parents[4]
CALL = re.compile(r"'tapvirt\.host\.playbook',\s*'(\w+)'(?:, function='(\w+)')?")


def test_the_result_is_the_only_element() -> None:
    assert LookupModule().run(["waves"], variables={}, value="1,2", default=[1], name="x") == [[1, 2]]


def test_an_error_keeps_its_sentence() -> None:
    with pytest.raises(AnsibleError, match="^Invalid value 0 for x: The size of a wave"):
        LookupModule().run(["waves"], value=0, default=[1], name="x")


def test_an_unknown_function_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        AnsibleError, match=r"^Invalid value 'weaves' for _terms\[0\]: The lookup has the internal functions .*waves"
    ):
        LookupModule().run(["weaves"])


def test_arguments_are_given_by_name() -> None:
    with pytest.raises(AnsibleError, match="^The function waves takes arguments by name only"):
        LookupModule().run(["waves", "1,2"], default=[1], name="x")


@pytest.mark.parametrize("terms", [[], [None], [["waves"]], ["problem"], ["domain_items"], ["waves"]])
def test_wrong_terms_and_arguments_are_one_sentence(terms: list[object]) -> None:
    with pytest.raises(AnsibleError, match=r"^(Invalid value .*for _terms\[0\]|The arguments of the function \w+ are)"):
        LookupModule().run(terms, variables={}, entries=1, arguments=2)


def test_playbooks_and_roles_call_every_function_and_no_other() -> None:
    files = [path for folder in ("playbooks", "roles") for path in (ROOT / folder).rglob("*.*") if path.is_file()]
    called = {call for path in files for call in CALL.findall(path.read_text(encoding="utf-8", errors="ignore"))}
    assert {name for call in called for name in call if name} == {*FUNCTIONS, *RENDERING}


def test_a_problem_is_the_sentence_of_a_refusal() -> None:
    refused = {"function": "waves", "value": 0, "default": [1], "name": "x"}
    (problem,) = LookupModule().run(["problem"], **refused)
    assert problem.startswith("Invalid value 0 for x: The size of a wave")
    assert LookupModule().run(["problem"], **{**refused, "value": 1}) == [""]


def test_no_function_takes_an_argument_that_the_lookup_keeps() -> None:
    for name, function in FUNCTIONS.items():
        kept = {"allow_unsafe", "errors", "terms", "variables", "wantlist"}
        assert not kept & inspect.signature(function).parameters.keys(), name
