# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters over facts of many hosts, and versions of kernels."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tapvirt.host.plugins.filter import fleet
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport import edge

HERE = pathlib.Path(__file__).resolve()


@pytest.mark.parametrize(
    ("release", "code"),
    [
        ("3.12.0", 199680),
        ("4.9.337", (4 << 16) + (9 << 8) + 255),
        ("6.12.107+deb13-cloud-amd64", 396395),
        ("7.2", 459264),
    ],
)
def test_version_code(release, code):
    assert fleet.kernel_version_code(release) == code


@pytest.mark.parametrize("version", ["0.0.0", "2.6.32", "3.12.0", "4.9.255", "6.18.44", "7.2.12", "65535.255.255"])
def test_the_inverse_of_version_code(version):
    assert fleet.kernel_version_from_code(fleet.kernel_version_code(version)) == version


def test_the_headers_of_this_machine_agree():
    header = pathlib.Path("/usr/include/linux/version.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    names = {line.split()[1]: line.split()[2] for line in header.read_text().splitlines() if len(line.split()) == 3}
    parts = [names["LINUX_VERSION_" + part] for part in ("MAJOR", "PATCHLEVEL", "SUBLEVEL")]
    code = int(names["LINUX_VERSION_CODE"])
    assert fleet.kernel_version_code(".".join(parts)) == code
    assert fleet.kernel_version_from_code(code) == ".".join([*parts[:2], str(min(int(parts[2]), 255))])


@pytest.mark.parametrize("value", ["vanilla", "", 6.1, None, ["6.1"]])
def test_what_is_no_release_is_refused(value):
    with pytest.raises(AnsibleFilterError, match="such as"):
        fleet.kernel_version_code(value)


@pytest.mark.parametrize("value", [-1, 1 << 32, "199680", 1.5, True, None])
def test_what_is_no_version_code_is_refused(value):
    with pytest.raises(AnsibleFilterError, match="for kernel_version_from_code: A LINUX_VERSION_CODE is a number"):
        fleet.kernel_version_from_code(value)


FACTS = {
    "web1": {"release": "6.1", "config": {"CONFIG_HZ": 250, "CONFIG_KVM": "m"}, "taints": [], "memory": {"free": 1}},
    "web2": {"release": "6.1", "config": {"CONFIG_KVM": "m", "CONFIG_HZ": 250}, "taints": [], "memory": {"free": 2}},
    "db1": {"release": "6.1", "config": {"CONFIG_HZ": 1000}, "taints": ["died"], "memory": {"free": 3}},
    "db2": {"release": "6.1", "config": {"CONFIG_HZ": 1000, "CONFIG_KVM": None}, "taints": [], "memory": None},
}


def test_fact_diff():
    rows = fleet.fact_diff(FACTS, ["memory*"])
    assert [row["fact"] for row in rows] == ["config.CONFIG_HZ", "config.CONFIG_KVM", "taints"]
    assert rows[0]["groups"] == [
        {"value": 1000, "present": True, "hosts": ["db1", "db2"]},
        {"value": 250, "present": True, "hosts": ["web1", "web2"]},
    ]
    assert rows[1]["groups"] == [
        {"value": "m", "present": True, "hosts": ["web1", "web2"]},
        {"value": None, "present": False, "hosts": ["db1"]},
        {"value": None, "present": True, "hosts": ["db2"]},
    ]
    assert rows[2]["groups"][0]["hosts"] == ["db2", "web1", "web2"]
    assert {"memory", "memory.free"} <= {row["fact"] for row in fleet.fact_diff(FACTS)}
    assert fleet.fact_diff({}) == fleet.fact_diff({"a": {}, "b": {}}) == []
    assert len(fleet.fact_diff({"a": {"x": 1}, "b": {"x": "1"}})) == 1
    assert fleet.fact_diff({"a": {"x": [{"p": 1, "q": 2}]}, "b": {"x": [{"q": 2, "p": 1}]}}) == []


def symbol(name, **changes):
    row = {"name": name, "status": "found", "count": 1, "exported": True, "probeable": True, "variants": []}
    match = {"name": name, "type": "T", "owner": "vmlinux", "address": f"0x{id(row):x}"}
    return {**row, "matches": [match], **changes}


def test_symbol_diff():
    symbols = {
        "web1": [symbol("vfs_read"), symbol("vfs_write"), symbol("gone")],
        "web2": [symbol("vfs_read"), symbol("vfs_write"), symbol("gone", status="absent", count=0, matches=[])],
        "db1": [symbol("vfs_read", variants=[{"name": "vfs_read.cold", "address": "0x1", "kinds": ["cold"]}])],
    }
    gone, read, write = fleet.symbol_diff(symbols)
    assert (gone["name"], gone["differs"]) == ("gone", ["status", "count", "matches"])
    assert [group["hosts"] for group in gone["groups"]] == [["db1"], ["web1"], ["web2"]]
    assert (read["name"], read["differs"]) == ("vfs_read", ["variants"])
    assert (read["groups"][0]["hosts"], read["groups"][1]["value"]["variants"]) == (["web1", "web2"], ["vfs_read.cold"])
    assert (write["name"], write["differs"]) == ("vfs_write", [])
    assert write["groups"][1] == {"value": None, "present": False, "hosts": ["db1"]}
    assert fleet.symbol_diff({"a": [symbol("x")], "b": [symbol("x")]}) == []


def test_hosts_are_grouped_by_facts():
    rows = fleet.group_hosts_by(FACTS, "config.CONFIG_HZ")
    assert rows == [
        {"value": {"config.CONFIG_HZ": 1000}, "hosts": ["db1", "db2"]},
        {"value": {"config.CONFIG_HZ": 250}, "hosts": ["web1", "web2"]},
    ]
    rows = fleet.group_hosts_by(FACTS, ["release", "memory.free"])
    assert [row["hosts"] for row in rows] == [["db1"], ["db2"], ["web1"], ["web2"]]
    assert rows[1]["value"] == {"release": "6.1", "memory.free": None}
    dotted = {"a": {"parameters": {"net.ifnames": ["0"]}}}
    assert fleet.group_hosts_by(dotted, "parameters.net.ifnames")[0]["value"] == {"parameters.net.ifnames": ["0"]}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fleet.fact_diff([1]), "The input is a dictionary of host names"),
        (lambda: fleet.fact_diff({}, "memory"), "value 'memory' for fact_diff.ignore: The option is a list of names"),
        (lambda: fleet.symbol_diff([1]), "The input is a dictionary of host names"),
        (lambda: fleet.group_hosts_by({"a": {}}, [1]), "for group_hosts_by.facts: The option is a list of names"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(AnsibleFilterError, match=words):
        call()


@pytest.mark.parametrize(
    ("compare", "fine", "odd", "why"),
    [
        (fleet.fact_diff, [{"x": 1}, {"x": 2}], 5, "it is 5, not a dictionary"),
        (fleet.fact_diff, [{"x": 1}, {"x": 2}], {"x": [float("nan")]}, "x[0] is nan, not a finite number"),
        (fleet.symbol_diff, [[symbol("x")], [symbol("x", count=2)]], "text", "it is 'text', not a list"),
        (fleet.symbol_diff, [[symbol("x")], [symbol("x", count=2)]], [{"name": "x"}], "[0].matches is missing"),
        (fleet.symbol_diff, [[symbol("x")], [symbol("x", count=2)]], [symbol(5)], "[0].name is 5, not a text"),
        (functools.partial(fleet.group_hosts_by, names="x"), [{"x": 1}, {"x": 2}], "x", "it is 'x', not a dictionary"),
    ],
)
def test_a_host_with_something_else_is_left_out_and_named(compare, fine, odd, why, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(edge.display, "warning", warnings.append)
    rows = compare({"a": fine[0], "b": fine[1]})
    assert rows
    assert compare({"a": fine[0], "odd1": odd, "b": fine[1]}) == rows
    assert [warning.partition(": ")[2] for warning in warnings] == [f"odd1 is left out: {why}."]


# Programs of BPF come and go, and each has a symbol: two looks at one host may differ in their counts.
PLAY = """
- hosts: all
  connection: local
  gather_facts: false
  tasks:
    - tapvirt.host.kernel_facts:
        gather_subset: [config, symbols]
    - tapvirt.host.kernel_symbol_info:
        symbols: [vfs_read]
      register: found
    - ansible.builtin.copy:
        dest: "{{ result }}"
        content: >-
          {{ {'same': facts | tapvirt.host.fact_diff(['symbols.*']),
              'kernels': facts | tapvirt.host.group_hosts_by(['build_id', 'symbols.core_fingerprint']) | length,
              'symbols': symbols | tapvirt.host.symbol_diff,
              'version': ansible_facts.tapvirt_kernel.version_code | tapvirt.host.kernel_version_from_code,
              'codes': ['3.12.0', '4.9.337'] | map('tapvirt.host.kernel_version_code')} | to_json }}
      vars:
        kernels: "{{ ansible_play_hosts | map('extract', hostvars, ['ansible_facts', 'tapvirt_kernel']) }}"
        facts: "{{ dict(ansible_play_hosts | zip(kernels)) }}"
        lookups: "{{ ansible_play_hosts | map('extract', hostvars, ['found', 'symbols']) }}"
        symbols: "{{ dict(ansible_play_hosts | zip(lookups)) }}"
      run_once: true
"""


@pytest.mark.usefixtures("this_kernel")
def test_the_filters_in_a_play(tmp_path):
    (tmp_path / "play.yml").write_text(PLAY)
    python = f"ansible_python_interpreter={sys.executable}"
    argv = ["-i", "one,two", "-e", python, "-e", f"result={tmp_path / 'result'}", "play.yml"]
    program = pathlib.Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [str(program), *argv],
        cwd=str(tmp_path),
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(HERE.parents[6])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "result").read_text())
    assert (result["same"], result["symbols"], result["kernels"]) == ([], [], 1)
    assert result["codes"] == [199680, 264703]
    assert os.uname().release.startswith(".".join(result["version"].split(".")[:2]))
