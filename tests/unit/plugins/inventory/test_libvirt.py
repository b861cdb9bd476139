# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of libvirt's test driver, through ansible-inventory."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import typing as t

import pytest

NODE = """
<node>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>{name}</name><memory unit='MiB'>64</memory><os><type>hvm</type></os><test:runstate>{state}</test:runstate>
  </domain>
  <domain type='test'><name>{name}-spare</name><memory>1024</memory><os><type>hvm</type></os></domain>
</node>
"""
DEAD = "qemu+tcp://admin:secret@127.0.0.1:1/system"
Inventory = t.Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def inventory(tmp_path: pathlib.Path) -> Inventory:
    """Run ansible-inventory on two hypervisors, with more options in the plugin's file."""
    uris = []
    for name, state in (("web", 1), ("db", 3)):
        node = tmp_path / f"{name}.xml"
        node.write_text(NODE.format(name=name, state=state), encoding="utf-8")
        uris.append(f"test://{node}")

    def run(**options: t.Any) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "lab.libvirt.yml"
        wanted = {"plugin": "tapvirt.host.libvirt", "uris": uris + options.pop("more", []), **options}
        path.write_text(json.dumps(wanted), encoding="utf-8")
        env = os.environ | {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true", "COLUMNS": "500"}
        argv = ["ansible-inventory", "-i", str(path), "--list"]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    return run


def plain(value: dict[str, t.Any]) -> t.Any:
    return value.get("__ansible_unsafe", value)


def hosts(done: subprocess.CompletedProcess[str]) -> dict[str, t.Any]:
    assert done.returncode == 0, done.stderr
    return t.cast("dict[str, t.Any]", json.loads(done.stdout, object_hook=plain)["_meta"]["hostvars"])


def test_domains_of_several_libvirts_are_hosts_in_groups(inventory: Inventory) -> None:
    done = inventory(
        keyed_groups=[{"key": "tapvirt_domain.state", "prefix": "state"}],
        groups={"small": "tapvirt_domain.memory_bytes < 2000000"},
        compose={"ansible_host": "tapvirt_domain.name ~ '.example.org'"},
    )
    found = hosts(done)
    assert sorted(found) == ["db", "db-spare", "web", "web-spare"]
    assert found["web"]["tapvirt_domain"]["memory_bytes"] == 64 << 20
    assert found["web"]["tapvirt_domain"]["hypervisor"] == "localhost"
    groups = json.loads(done.stdout)
    assert groups["state_paused"]["hosts"] == ["db"]
    assert sorted(groups["small"]["hosts"]) == ["db-spare", "web-spare"]
    assert found["web"]["ansible_host"] == "web.example.org"


def test_names_and_states_narrow(inventory: Inventory) -> None:
    assert sorted(hosts(inventory(names=["*-spare", "web", "db"], states=["paused"]))) == ["db"]


def test_one_that_does_not_answer_is_named_without_its_password(inventory: Inventory) -> None:
    done = inventory(more=[DEAD])
    assert len(hosts(done)) == 4
    assert "admin:********@127.0.0.1" in done.stderr
    assert "secret" not in done.stderr + done.stdout
    failed = inventory(more=[DEAD], on_error="fail")
    assert failed.returncode != 0
    assert "Connection refused" in failed.stderr
    assert "secret" not in failed.stderr


def test_a_name_that_is_there_twice_is_refused_until_it_is_told_apart(inventory: Inventory, tmp_path) -> None:
    other = tmp_path / "other.xml"
    other.write_text(NODE.format(name="web", state=1), encoding="utf-8")
    refused = inventory(more=[f"test://{other}"])
    assert refused.returncode != 0
    assert "is there twice" in refused.stderr
    told = inventory(more=[f"test://{other}"], host_name="name ~ '.' ~ (uri | basename)")
    assert {"web.web.xml", "web.other.xml"} < set(hosts(told))


def test_the_cache_answers_without_any_libvirt(inventory: Inventory, tmp_path: pathlib.Path) -> None:
    options = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "cache_connection": str(tmp_path / "cache")}
    before = hosts(inventory(**options))
    for node in tmp_path.glob("*.xml"):
        node.unlink()
    assert hosts(inventory(**options)) == before
