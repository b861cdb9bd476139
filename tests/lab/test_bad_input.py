# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users get wrong, each on a real host: one paragraph that helps, and nothing changed."""

from __future__ import annotations

import re

import pytest
import yaml

from .support.tasks import FACTS

SCRIPT = 'probe kernel.function("{function}").call {{ {body} }}'
DOMAIN = "<domain type='kvm'><name>{name}</name><{memory} unit='MiB'>32</{memory}><os><type>hvm</type></os></domain>"


def build_case(host, script, kernel="{{ ansible_facts.tapvirt_kernel.release }}", **options):
    return host, [
        {
            "name": "Render",
            "tapvirt.host.stap_script": {"src": "bad.stp.j2", "variables": {"script": script}, **options},
            "delegate_to": "builder",
            "register": "rendered",
        },
        {
            "name": "Refused",
            "tapvirt.host.stap_module": {"script": "{{ rendered.script }}", "kernel": kernel},
            "delegate_to": "builder",
        },
    ]


def module_case(host, module, **options):
    return host, [{"name": "Refused", f"tapvirt.host.{module}": options}]


def parameter_case(**options):
    return module_case("trace2", "kernel_module_param", params=[options])


def domain_case(name, memory="memory"):
    xml = DOMAIN.format(name=name, memory=memory)
    return module_case("trace2", "libvirt_domain", domains=[{"name": name, "xml": xml, "state": "present"}])


CASES = {
    "a function that the kernel does not have": (
        build_case("trace2", SCRIPT.format(function="vfs_raed", body="exit()")),
        ["vfs_raed", "vfs_read"],
    ),
    "a syntax error": (
        build_case("trace2", 'probe begin { printf("x" }'),
        [r"line 1", r"column \d+"],
    ),
    "a global that the script does not declare": (
        build_case("trace2", "global threshold_us = 0 probe begin { exit() }", globals={"treshold_us": 1}),
        ["treshold_us", "threshold_us"],
    ),
    "a parameter that does not exist": (
        parameter_case(module="kvm", name="halt_pol_ns", value=1),
        ["halt_pol_ns", "halt_poll_ns"],
    ),
    "a parameter that is read-only": (
        parameter_case(module="kvm_amd", name="nested", value=0, persist="none"),
        ["nested", "read-only"],
    ),
    "a value of the wrong type": (
        parameter_case(module="kvm", name="halt_poll_ns", value="fast"),
        ["halt_poll_ns", "fast"],
    ),
    "domain XML with a misspelt element": (
        domain_case("bad-typo", memory="memroy"),
        ["memroy", "memory"],
    ),
    "a domain name that is a path": (
        domain_case("../bad"),
        [r"\.\./bad"],
    ),
    "a builder without headers for the kernel": (
        build_case("trace2", "probe begin { exit() }", kernel="5.10.0-1-amd64"),
        ["5.10.0-1-amd64", r"6\.12\."],
    ),
}


@pytest.fixture(scope="module")
def answers(lab, tmp_path_factory):
    """Run every case in one playbook; return its result and the state of the host before and after."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "bad.stp.j2").write_text("{{ script }}\n", encoding="utf-8")
    before = fingerprint(lab)
    tasks: list[dict[str, object]] = [FACTS]
    for title, ((_host, steps), _words) in CASES.items():
        tasks += [
            {"name": title, "block": steps, "rescue": [{"name": "Go on", "ansible.builtin.meta": "clear_host_errors"}]}
        ]
    path = folder / "play.yml"
    path.write_text(yaml.safe_dump([{"hosts": "trace2", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    done = lab.playbook(path)
    return done, before, fingerprint(lab)


def fingerprint(lab):
    """Return the state that must not change on the host: parameters, configuration, domains, stap modules."""
    return lab.shell(
        "trace2",
        "cd /sys/module; grep -rs . */parameters | sort | sha256sum;"
        " find /etc -type f | sort | xargs sha256sum | sha256sum;"
        " virsh -q list --all; ls /proc/systemtap 2>/dev/null",
        check=False,
        timeout=180,
    )


@pytest.mark.parametrize("title", CASES)
def test_bad_input_is_refused_in_one_paragraph(answers, title):
    done = answers[0]
    order = [row for row in done.results if row["status"] == "failed"]
    assert len(order) == len(CASES), done.stdout[-3000:]
    result = order[list(CASES).index(title)]["result"]
    message = result["msg"]
    assert not result.get("changed"), result
    assert "Traceback" not in message and "exception" not in result, result
    assert len(message.splitlines()) == 1 and len(message) < 900, message
    assert set(result["error"]) == {"option", "value", "problem", "hint", "candidates"}, result
    for word in CASES[title][1]:
        assert re.search(word, message), message


def test_bad_input_changes_nothing_on_the_host(answers):
    _done, before, after = answers
    assert before == after and before


def test_host_info_explains_why_a_kernel_is_refused(lab):
    (result,) = lab.ansible("localhost", "tapvirt.host.stap_host_info", {}).values()
    assert result["verdict"] in {"ready", "refused"}
    if result["verdict"] == "refused":
        assert result["reason"] and result["remedy"], result
