# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host whose Python answers as it likes: what reaches the controller by each transport, in a real run of Ansible."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
import yaml

SENT: dict[str, t.Any] = {
    "changed": False,
    "ansible_stats": {"data": {"approved": True}, "per_host": False, "aggregate": False},
    "add_host": {"host_name": "intruder"},
    "ansible_facts": {"tapvirt_kernel": {"release": "6.12"}, "tapvirt_libvirt_uri": "qemu:///x", "other": 1},
    "exception": "Traceback of the host",
    "deprecations": [{"msg": "the host's deprecation", "version": "9"}],
    "warnings": ["the host's warning"],
    "diff": {"before": "a", "after": "b"},
    "invocation": {"module_args": {}},
    "run": {"outcome": "ok"},
    "surprise": 1,
}
# What is left of it by Ansible's own transport, beside what Ansible itself may have put there.
ANSIBLES = {"invocation", "deprecations", "exception", "failed", "discovered_interpreter_python"}
ODD = {"changed": False, "ansible_facts": {"tapvirt_kernel": 5}}
ODD_TRACE = {"changed": False, "module": 5, "services": 5}
TASKS: dict[str, dict[str, t.Any]] = {
    "by_source": {"tapvirt.host.kernel_facts": {"transport": "source"}},
    "by_module": {"tapvirt.host.kernel_facts": {"transport": "module"}},
    "of_procfs": {"tapvirt.host.procfs_info": {"transport": "source", "tables": ["version"]}},
    "of_service": {"tapvirt.host.stap_service": {"services": []}},
    "of_run": {"tapvirt.host.stap_run": {"module": {"name": "x", "sha256": "0"}}, "check_mode": True},
    "odd_by_source": {"tapvirt.host.kernel_facts": {"transport": "source"}},
    "odd_by_module": {"tapvirt.host.kernel_facts": {"transport": "module"}},
    "odd_trace_module": {"tapvirt.host.stap_module": {}},
    "odd_trace_service": {"tapvirt.host.stap_service": {"services": []}},
    "odd_trace_script": {"tapvirt.host.stap_script": {"src": 5}},
}
VARIABLES = {"uri": "{{ tapvirt_libvirt_uri | default(none) }}", "hosts": "{{ groups.all }}"}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, t.Any], str]:
    """Run all tasks on a host whose Python prints what it likes; return what they registered, and the output."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, sent in (("liar", SENT), ("odd_by", ODD), ("odd_trace", ODD_TRACE)):
        (folder / name).write_text(f"#!/bin/sh\nexec cat <<'END'\n{json.dumps(sent)}\nEND\n", encoding="ascii")
        (folder / name).chmod(0o755)
    tasks: list[dict[str, t.Any]] = []
    for name, task in TASKS.items():
        kind = "_".join(name.split("_")[:2])
        python = folder / (kind if kind.startswith("odd") else "liar")
        own = {"vars": {"ansible_python_interpreter": str(python)}, "register": name, "ignore_errors": True}
        tasks.append({**task, **own})
    known = {**VARIABLES, **{name: f"{{{{ {name} }}}}" for name in TASKS}}
    show = {"content": "{{ known | to_json }}", "dest": f"{folder}/known"}
    own = {"vars": {"ansible_python_interpreter": sys.executable, "known": known}}
    play = [{"hosts": "all", "gather_facts": False, "tasks": [*tasks, {"ansible.builtin.copy": show, **own}]}]
    (folder / "play.yml").write_text(yaml.safe_dump(play, sort_keys=False), encoding="utf-8")
    env = {**os.environ, "ANSIBLE_PIPELINING": "1", "ANSIBLE_SHOW_CUSTOM_STATS": "1", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [pathlib.Path(sys.executable).with_name("ansible-playbook"), "-i", "host,", "-c", "local", folder / "play.yml"],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "known").read_text(encoding="utf-8")), done.stdout + done.stderr


def test_a_host_sets_nothing_that_its_module_does_not_document(played: tuple[dict[str, t.Any], str]) -> None:
    known, output = played
    assert "approved" not in output, "an artifact of the job"
    assert (known["uri"], known["hosts"]) == (None, ["host"])
    facts = {"tapvirt_kernel": {"release": "6.12"}}
    assert known["by_source"] == {"changed": False, "failed": False, "ansible_facts": facts} | (
        {"warnings": ["the host's warning"]} if "warnings" in known["by_source"] else {}
    )
    assert known["by_module"]["ansible_facts"] == facts
    of_ansible = {"changed", "failed", "warnings", "invocation", "deprecations", "exception"}
    kept = {"by_module": {"ansible_facts"}, "of_procfs": set(), "of_service": {"diff"}, "of_run": {"diff", "run"}}
    for name, keys in kept.items():
        assert set(known[name]) <= of_ansible | keys, (name, known[name])


@pytest.mark.parametrize("name", ["odd_by_source", "odd_by_module"])
def test_a_result_of_another_shape_fails_its_host_in_one_sentence(
    played: tuple[dict[str, t.Any], str], name: str
) -> None:
    known, output = played
    assert known[name]["failed"] is True
    assert "ansible_facts.tapvirt_kernel is 5, not a dictionary" in known[name]["msg"], known[name]
    assert "Traceback (most" not in output


@pytest.mark.parametrize(
    ("name", "option", "problem"),
    [
        ("odd_by_module", None, "The host returned something else than kernel_facts returns"),
        ("odd_trace_module", None, "The host returned something else than stap_module returns: "),
        ("odd_trace_service", None, "The host returned something else than stap_service returns: "),
        ("odd_trace_script", "src", "The value is not the path of a template."),
    ],
)
def test_a_failure_of_the_controller_has_an_error(
    played: tuple[dict[str, t.Any], str], name: str, option: str | None, problem: str
) -> None:
    result = played[0][name]
    assert result["failed"] is True
    assert result["error"]["option"] == option
    assert result["error"]["problem"].startswith(problem) and result["error"]["problem"] in result["msg"]
