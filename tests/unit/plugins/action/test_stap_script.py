# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action plugin of stap_script refuses on the controller."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible.errors import AnsibleError
from ansible.plugins.loader import lookup_loader
from ansible_collections.tapvirt.host.plugins.action import stap_script
from ansible_collections.tapvirt.host.tests.unit.support.actions import Result, run_action


def refuse(args: dict[str, t.Any]) -> Result:
    """Return the result of a task that the action refuses before it runs anything on the host."""

    def execute(command: str, _in_data: bytes | None) -> str:
        raise AssertionError(command)

    result = run_action(stap_script.ActionModule, args, execute)
    assert result["failed"] is True
    return result


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "Invalid value for src: The option is missing. Give the template of a SystemTap script."),
        ({"src": 5}, "Invalid value 5 for src: The value is not the path of a template."),
        ({"src": ["a"]}, "Invalid value ['a'] for src: The value is not the path of a template."),
        ({"src": "a\0b"}, r"Invalid value 'a\x00b' for src: A text cannot contain a NUL byte."),
        ({"src": "a", "variables": [1]}, "Invalid value [1] for variables: The value is not a dictionary."),
    ],
)
def test_options_of_another_type_are_refused(args: dict[str, t.Any], message: str) -> None:
    result = refuse(args)
    assert result["msg"] == message
    assert result["error"]["option"] == ("variables" if "variables" in args else "src")


def test_a_template_that_is_not_utf8_is_refused_with_its_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "latin.stp"
    path.write_bytes(b"probe begin {\n  exit() # f\xfcr\n}\n")
    message = f"Invalid value '{path}' for src, line 2: The template is not UTF-8."
    assert refuse({"src": str(path)})["msg"] == message


def test_the_cause_of_a_failed_template_is_printed_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lookup:
        def run(self, *_terms: object, **_options: object) -> list[str]:
            raise AnsibleError("'x' is undefined")

    monkeypatch.setattr(lookup_loader, "get", lambda *_names, **_options: Lookup())
    path = tmp_path / "x.stp"
    path.write_text("{{ x }}", encoding="ascii")
    result = refuse({"src": str(path)})
    assert result["error"]["problem"] == "The template cannot be rendered: 'x' is undefined."
    assert result["msg"].count("'x' is undefined") == 1
