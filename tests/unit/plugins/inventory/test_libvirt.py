# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of libvirt's test driver, through ansible-inventory."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import shown_uri
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import domains

NODE = """
<node>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>{name}</name><memory unit='MiB'>64</memory><os><type>hvm</type></os><test:runstate>{state}</test:runstate>
  </domain>
  <domain type='test'><name>{name}-spare</name><memory>1024</memory><os><type>hvm</type></os></domain>
</node>
"""
DEAD = "qemu+tcp://admin:secret@127.0.0.1:1/system"
# What libvirt refuses to parse, it repeats.
UNREADABLE = [
    f"qemu+tcp://admin:{password}@127.0.0.1:1/system" for password in ("se%cret", "x@secret", "s#secret", "s/secret")
]
Inventory = t.Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def inventory(tmp_path: pathlib.Path) -> Inventory:
    """Run ansible-inventory on two hypervisors, with more options in the plugin's file."""
    uris = []
    for name, state in (("web", 1), ("db", 3)):
        node = tmp_path / f"{name}.xml"
        node.write_text(NODE.format(name=name, state=state), encoding="utf-8")
        uris.append(f"test://{node}")

    def run(how: str = "--list", before: t.Sequence[str] = (), **options: t.Any) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "lab.libvirt.yml"
        wanted = {"plugin": "tapvirt.host.libvirt", "uris": uris + options.pop("more", []), **options}
        path.write_text(json.dumps(wanted), encoding="utf-8")
        env = os.environ | {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true", "COLUMNS": "500"}
        argv = ["ansible-inventory", *before, "-i", str(path), how]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    return run


def plain(value: dict[str, t.Any]) -> t.Any:
    return value.get("__ansible_unsafe", value)


def hostvars_of(done: subprocess.CompletedProcess[str]) -> dict[str, t.Any]:
    assert done.returncode == 0, done.stderr
    return t.cast("dict[str, t.Any]", json.loads(done.stdout, object_hook=plain)["_meta"]["hostvars"])


def test_domains_of_several_libvirts_are_hosts_in_groups(inventory: Inventory) -> None:
    done = inventory(
        keyed_groups=[{"key": "tapvirt_domain.state", "prefix": "state"}],
        groups={"small": "tapvirt_domain.memory_bytes < 2000000"},
        compose={"ansible_host": "tapvirt_domain.name ~ '.example.org'"},
    )
    found = hostvars_of(done)
    assert sorted(found) == ["db", "db-spare", "web", "web-spare"]
    assert found["web"]["tapvirt_domain"]["memory_bytes"] == 64 << 20
    assert found["web"]["tapvirt_domain"]["hypervisor"] == "localhost"
    groups = json.loads(done.stdout)
    assert groups["state_paused"]["hosts"] == ["db"]
    assert sorted(groups["small"]["hosts"]) == ["db-spare", "web-spare"]
    assert found["web"]["ansible_host"] == "web.example.org"


def test_names_and_states_narrow(inventory: Inventory) -> None:
    assert sorted(hostvars_of(inventory(names=["*-spare", "web", "db"], states=["paused"]))) == ["db"]


def test_one_that_does_not_answer_is_named_without_its_password(inventory: Inventory) -> None:
    done = inventory(more=[DEAD])
    assert len(hostvars_of(done)) == 4
    assert "admin:********@127.0.0.1" in done.stderr
    assert "secret" not in done.stderr + done.stdout
    failed = inventory(more=[DEAD], on_error="fail")
    assert failed.returncode != 0
    assert "Connection refused" in failed.stderr
    assert "secret" not in failed.stderr


@pytest.mark.parametrize("uri", UNREADABLE)
def test_a_uri_that_cannot_be_read_is_named_without_its_password(uri: str) -> None:
    rows, (message,) = domains.ask_all([uri], 5, 1)
    assert rows == []
    assert "Unable to parse URI qemu+tcp://admin:********@127.0.0.1:1/system" in message
    assert "cret" not in message


def test_no_part_of_a_uri_is_taken_for_a_password() -> None:
    for uri in (
        "qemu+ssh://joe@hv:22/system?keyfile=/home/joe@home/key",
        "test:///a:b@c",
        "qemu+ssh://[::1]:22/system",
    ):
        assert shown_uri(uri) == uri


def test_a_name_that_looks_like_a_template_is_none(inventory: Inventory, tmp_path: pathlib.Path) -> None:
    name = "{{ 40 + 2 }}"
    (tmp_path / "odd.xml").write_text(NODE.format(name=name, state=1), encoding="utf-8")
    found = hostvars_of(inventory(names=["{*2 }}"], more=[f"test://{tmp_path / 'odd.xml'}"], host_name="'odd'"))
    assert found["odd"]["tapvirt_domain"]["name"] == name
    argv = ["ansible", "-i", str(tmp_path / "lab.libvirt.yml"), "odd", "-m", "debug", "-a", "var=tapvirt_domain.name"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert name in done.stdout, done.stderr


def test_a_host_of_another_inventory_has_its_domain_as_well(inventory: Inventory, tmp_path: pathlib.Path) -> None:
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"web": {"ansible_host": "10.0.0.1"}}}}))
    found = hostvars_of(inventory(before=["-i", str(tmp_path / "hosts.yml")]))
    assert found["web"]["ansible_host"] == "10.0.0.1"
    assert found["web"]["tapvirt_domain"]["state"] == "running"
    assert len(found) == 4


def test_domains_are_a_graph_of_groups(inventory: Inventory) -> None:
    done = inventory(how="--graph", keyed_groups=[{"key": "tapvirt_domain.hypervisor", "prefix": "hypervisor"}])
    assert "  |--@hypervisor_localhost:\n  |  |--web\n" in done.stdout


def test_another_python_is_asked_where_ansible_s_own_has_no_binding(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, python = tmp_path / "without", tmp_path / "python"
    without.mkdir()
    (without / "libvirt.py").write_text("raise ImportError", encoding="ascii")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="ascii")
    python.chmod(0o755)
    monkeypatch.setattr(domains, "libvirt", None)
    monkeypatch.syspath_prepend(without)
    monkeypatch.setattr(domains, "INTERPRETERS", [str(tmp_path / "none"), str(python)])
    assert [row["name"] for row in domains.ask_all(["test:///default"], 30, 1)[0]] == ["test"]
    monkeypatch.setattr(domains, "INTERPRETERS", [])
    rows, (message,) = domains.ask_all(["test:///default"], 30, 1)
    assert rows == []
    assert "No Python of this host can import 'libvirt'" in message


def test_who_asks_ends_in_time_with_all_that_it_started(tmp_path: pathlib.Path) -> None:
    pids, command = tmp_path / "pids", tmp_path / "ssh"
    command.write_text(f"#!/bin/sh\nps -o sid= -p $$ > {pids}; echo $$ >> {pids}; exec sleep 600\n")
    command.chmod(0o755)
    # The module would keep the deadline; it is stopped before it can.
    uri = f"qemu+ssh://nobody.invalid/system?command={command}"
    rows, (message,) = domains.ask_all([uri], 3, 1, grace_seconds=0)
    assert (rows, message) == ([], f"{uri}: no answer within 3 s.")
    session, pid = pids.read_text(encoding="ascii").split()
    assert int(session) != os.getsid(0)
    with contextlib.suppress(FileNotFoundError):  # nobody may have asked for its end yet
        assert pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] in "ZX"


def test_a_name_that_exists_twice_is_refused_until_it_is_distinguished(inventory: Inventory, tmp_path) -> None:
    other = tmp_path / "other.xml"
    other.write_text(NODE.format(name="web", state=1), encoding="utf-8")
    refused = inventory(more=[f"test://{other}"])
    assert refused.returncode != 0
    assert "is there twice" in refused.stderr
    result = inventory(more=[f"test://{other}"], host_name="name ~ '.' ~ (uri | basename)")
    assert {"web.web.xml", "web.other.xml"} < set(hostvars_of(result))


def test_the_cache_answers_without_any_libvirt(inventory: Inventory, tmp_path: pathlib.Path) -> None:
    options = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "cache_connection": str(tmp_path / "cache")}
    before = hostvars_of(inventory(**options))
    for node in tmp_path.glob("*.xml"):
        node.unlink()
    assert hostvars_of(inventory(**options)) == before
