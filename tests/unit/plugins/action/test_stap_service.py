# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action plugin of stap_service asks a host for."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.action import stap_service
from ansible_collections.tapvirt.host.tests.unit.support.actions import Result, run_action

BUILD = {"name": "x", "kernel": "6.1", "sha256": "a" * 64, "key": "b" * 64, "globals": {}, "probes": []}
LATER = {**BUILD, "kernel": "6.2", "sha256": "c" * 64}


class TracedHost:
    """A host; ``has`` is what its sha256sum prints. It keeps the commands that it gets, and its module's options."""

    def __init__(self, *has: str) -> None:
        self.has = has
        self.commands: list[str] = []
        self.options: dict[str, t.Any] = {}

    def execute(self, command: str, _in_data: bytes | None) -> str:
        self.commands.append(command)
        return "\n".join(self.has) if "sha256sum" in command else "x=/tmp/x"

    def run_module(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        self.options = options
        return {"changed": False}

    def run(self, services: list[t.Any]) -> Result:
        return run_action(stap_service.ActionModule, {"services": services}, self.execute, self.run_module)


def test_each_module_has_a_path_and_an_option(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache lacks the modules; the host has none, the first, or both."""
    monkeypatch.setattr(stap_service, "cache_path", lambda sha256: str(tmp_path / sha256))
    services = [{"name": "gone", "state": "absent"}, {"name": "a", "modules": [BUILD, LATER]}]
    paths = [f"/var/lib/tapvirt/services/a/modules/{release}/x.ko" for release in ("6.1", "6.2")]
    rows = [f"{build['sha256']}  {path}" for build, path in zip((BUILD, LATER), paths, strict=True)]
    for count in (0, 1):
        host = TracedHost(*rows[:count])
        result = host.run(services)
        assert f"sha256sum {' '.join(paths)}" in host.commands[0]
        option = f"services[1].modules[{count}]"
        assert result["failed"] and result["msg"].startswith(
            f"Invalid value 'x' for {option}: The controller's cache does not"
        )
        assert result["error"]["option"] == option
    host = TracedHost(*rows)
    host.run(services)
    assert host.options == {"services": services, "_shipped": {}}


@pytest.mark.parametrize(
    "service",
    [
        {"name": "a\0b", "modules": [BUILD]},
        {"name": "a", "modules": [{**BUILD, "name": "x\0"}]},
        {"name": "a", "modules": [{**BUILD, "globals": None}]},
        {"name": "a", "modules": [{**BUILD, "sha256": "../../x"}]},
        {"name": "a", "modules": [BUILD], "globals": {"unknown": 1}},
        {"name": "a", "modules": [BUILD], "remove_output": True},
        {"name": "a", "modules": [BUILD], "buffer_mb": "x"},
        {"name": "a", "modules": [BUILD], "unknown": 1},
        5,
    ],
)
def test_what_the_module_refuses_is_left_to_it(service: t.Any) -> None:
    """Check mode and a run have the same message then, and the host's shell gets no such path."""
    host = TracedHost()
    host.run([service])
    assert host.options == {"services": [service], "_shipped": {}}
    assert host.commands == []
