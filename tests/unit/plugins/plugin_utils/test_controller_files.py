# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of the controller: names of hosts and domains become names of files, and a host does not choose a path."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.controller_files import controller_path, file_name


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("web1.example.org", "web1.example.org.log"),
        ("../../escaped", "%2E.%2F..%2Fescaped.log"),
        ("..", "%2E..log"),
        ("a%2Fb", "a%252Fb.log"),
        ("größe", "gr%C3%B6%C3%9Fe.log"),
    ],
)
def test_a_name_is_never_a_path(name: str, wanted: str) -> None:
    assert file_name(name, suffix=".log") == wanted
    assert file_name(name) == wanted.removesuffix(".log")


@pytest.mark.parametrize("value", ["", None, 7, ["a"], "h" * 252, "ö" * 43])
def test_what_cannot_be_one_is_refused(value: t.Any) -> None:
    with pytest.raises(TapvirtError, match=r"is not the name of a host or of a domain\.$|^The name .* is too long\.$"):
        file_name(value, suffix=".log")


@pytest.mark.parametrize("value", ["", None, 7, ["a"], "a\0b", "/srv/$HOME/x", "/srv/${A}/x", "/srv/\udcff\ud800"])
def test_what_is_not_a_path_is_refused(value: t.Any) -> None:
    with pytest.raises(InvalidInput, match=r"for trace_dest: The (value|path) .*\.$"):
        controller_path(value, name="trace_dest", facts={})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${A}x", "Invalid value '${A}x' for x: The path /somewhere/${A}x contains ${A}, which"),
        ("a/b.html", "Invalid value 'a/b.html' for x: "),
        ("", "Invalid value for x: "),
    ],
)
def test_what_the_user_wrote_is_the_value(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("PWD", "/somewhere" if "$" in value else str(tmp_path))
    (tmp_path / "a").write_text("", encoding="utf-8")
    with pytest.raises(InvalidInput) as caught:
        controller_path(value, name="x", facts={}, default="a/c")
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/tmp/${A}x", "Give a path without a dollar sign."),
        ("x", "Start the command in a directory whose path has no "),
    ],
)
def test_the_hint_does_not_repeat_a_path_with_a_variable(monkeypatch: pytest.MonkeyPatch, path: str, hint: str) -> None:
    monkeypatch.setenv("PWD", "/tmp/$HOME")
    with pytest.raises(InvalidInput) as caught:
        controller_path(path, name="x", facts={})
    assert (caught.value.hint or "").startswith(hint) and "$" not in (caught.value.hint or "")


def test_a_relative_path_counts_from_where_the_command_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/somewhere")
    monkeypatch.setenv("HOME", "/home/me")
    assert controller_path("a/../b", name="x", facts={"y": "a/../b"}) == "/somewhere/b"
    assert controller_path("~/b", name="x", facts={"x": "other"}) == "/home/me/b"


def test_a_host_does_not_choose_a_path() -> None:
    with pytest.raises(InvalidInput, match=r"a host must not choose a file .* Set x as an extra variable\.$"):
        controller_path("/srv/a", name="x", facts={"x": "/srv/a"})
