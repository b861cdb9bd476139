# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action plugin of stap_service asks a host for."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible_collections.tapvirt.host.plugins.action import stap_service

BUILD = {"name": "x", "kernel": "6.1", "sha256": "a" * 64, "key": "b" * 64, "globals": {}, "probes": []}
LATER = {**BUILD, "kernel": "6.2", "sha256": "c" * 64}


def task(services: list[t.Any]) -> stap_service.ActionModule:
    """Return the action of a task, without a connection."""
    action = stap_service.ActionModule.__new__(stap_service.ActionModule)
    action._task = type("Task", (), {"args": {"services": services}, "action": "tapvirt.host.stap_service"})()
    # The class has the name of the file that Ansible loads it from.
    action.__dict__["_module"] = lambda: "ansible_collections.tapvirt.host.plugins.modules.stap_service"
    return action


def test_each_module_has_a_path_and_an_option() -> None:
    services = [{"name": "gone", "state": "absent"}, {"name": "a", "modules": [BUILD, LATER]}]
    assert task(services)._wanted() == {
        "/var/lib/tapvirt/services/a/modules/6.1/x.ko": ("x", "a" * 64, "services[1].modules[0]"),
        "/var/lib/tapvirt/services/a/modules/6.2/x.ko": ("x", "c" * 64, "services[1].modules[1]"),
    }


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
    assert task([service])._wanted() == {}


def test_a_module_that_the_cache_lacks_is_named_by_its_option(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants.config, "get_config_value", lambda _name: str(tmp_path))
    action = task([{"name": "a", "modules": [BUILD]}])
    action.__dict__["_make_tmp_path"] = lambda: "/tmp/x"
    with pytest.raises(AnsibleActionFail) as caught:
        action._ship(list(action._wanted().values()))
    assert caught.value.message.startswith("Invalid value 'x' for services[0].modules[0]: The controller's cache does")
    assert caught.value.result["error"]["option"] == "services[0].modules[0]"
