# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the libvirt modules refuse: each message names the option that the task has, and its value as it is there."""

from __future__ import annotations

import pathlib
import re
import socket
import typing as t

import libvirt
import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, ItemsFailed, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection import module
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import (
    LibvirtFailure,
    OpenFailure,
    connected,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.migration.apply import Options
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.migration.run import (
    MigrationFailure,
    MigrationRun,
    read_wanted,
)
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.session_daemon import run_here

URI = "test:///default"
DESTINATION = {"destination": "qemu://host.invalid/system"}
POOL = "<pool type='dir'><target><path>/x</path></target></pool>"


def refused(module_name: str, /, **args: t.Any) -> dict[str, t.Any]:
    """Return the error of a task that fails; with the message, as ``msg``."""
    result = run_here(module_name, {"uri": URI, **args}, check=True)
    assert result.get("failed"), result
    assert result["error"]["problem"] in result["msg"]
    return {**result["error"], "msg": result["msg"]}


@pytest.mark.parametrize(
    ("name", "args", "option"),
    [
        ("libvirt_domain", {"domains": None}, "domains"),
        ("libvirt_domain", {"name": None, "state": "absent"}, "name"),
        ("libvirt_network", {"networks": None}, "networks"),
        ("libvirt_pool", {"pools": None}, "pools"),
        ("libvirt_volume", {"volumes": None}, "volumes"),
        ("libvirt_snapshot", {"snapshots": None}, "snapshots"),
        ("libvirt_migration", {"domains": None, **DESTINATION}, "domains"),
        ("libvirt_migration", {"name": None, **DESTINATION}, "name"),
        ("libvirt_snapshot", {"domain": None, "name": None}, "domain"),
    ],
)
def test_null_is_no_list_and_no_name(name: str, args: dict[str, t.Any], option: str) -> None:
    error = refused(name, **args)
    assert (error["option"], error["value"]) == (option, None)
    assert error["problem"].startswith("The task needs either ")


@pytest.mark.parametrize(
    ("name", "args", "option"),
    [
        ("libvirt_volume", {"pool": None, "name": "v"}, "pool"),
        ("libvirt_snapshot", {"domain": "test", "name": None}, "name"),
    ],
)
def test_null_is_no_name_beside_another(name: str, args: dict[str, t.Any], option: str) -> None:
    assert refused(name, **args)["msg"] == f"Invalid value for {option}: A name is needed."


@pytest.mark.parametrize("names", [["defualt-pool"], ["default-pool", "defualt-pool"]])
def test_a_pool_without_xml_that_does_not_exist_is_a_wrong_name(names: list[str]) -> None:
    error = refused("libvirt_pool", pools=[{"name": name, "state": "active"} for name in names])
    assert error["msg"] == (
        f"Invalid value 'defualt-pool' for pools[{len(names) - 1}].name: No storage pool has this name, and the task "
        "has no xml to define one. Did you mean default-pool?"
    )


def test_a_memory_file_without_kind_is_refused_by_its_own_option() -> None:
    assert refused("libvirt_snapshot", domain="test", name="s", memory_file="rel")["msg"] == (
        "Invalid value 'rel' for memory_file: An internal snapshot has the memory in the image, so it cannot have a "
        "memory_file. Set kind: external."
    )


def test_a_size_is_shown_as_it_was_written() -> None:
    error = refused("libvirt_volume", pool="default-pool", name="v", capacity="1024k", allocation="2MiB")
    assert error["msg"] == "Invalid value '2MiB' for allocation: The allocation is larger than the capacity, 1 MiB."


@pytest.mark.parametrize(
    ("name", "entry", "part"),
    [
        ("domain", {"name": "web", "state": "absent"}, "name"),
        ("network", {"name": "web", "state": "absent"}, "name"),
        ("pool", {"name": "web", "state": "absent"}, "name"),
        ("volume", {"pool": "p", "name": "web", "state": "absent"}, "pool and name"),
        ("snapshot", {"domain": "d", "name": "web", "state": "absent"}, "domain and name"),
    ],
)
def test_an_entry_that_is_in_the_list_again_is_refused(name: str, entry: dict[str, t.Any], part: str) -> None:
    error = refused(f"libvirt_{name}", **{f"{name}s": [dict(entry), {**entry, "name": "other"}, dict(entry)]})
    assert error["msg"] == f"Invalid value 'web' for {name}s[2].name: {name}s[0] has the same {part}."


def test_a_domain_that_is_to_move_twice_is_refused() -> None:
    error = refused("libvirt_migration", domains=["web", "web"], **DESTINATION)
    assert error["msg"] == "Invalid value 'web' for domains[1]: domains[0] has the same name."


def test_a_network_with_guests_names_its_state_and_the_remedy() -> None:
    error = refused("libvirt_network", name="default", state="absent")
    assert (error["option"], error["value"]) == ("state", "absent")
    assert error["hint"] == "Name the domains in disconnect to allow that."


def test_a_domain_to_disconnect_that_does_not_exist_is_refused_where_a_network_would_stop() -> None:
    error = refused("libvirt_network", name="default", state="absent", disconnect=["test", "tset"])
    assert error["msg"] == "Invalid value 'tset' for disconnect[1]: No domain has this name. Did you mean test?"


def test_a_domain_to_disconnect_that_is_gone_with_its_network_is_a_warning() -> None:
    result = run_here("libvirt_network", {"uri": URI, "name": "gone", "state": "absent", "disconnect": ["tset"]})
    assert result["changed"] is False
    assert result["warnings"] == ["Invalid value 'tset' for disconnect[0]: No domain has this name. Did you mean test?"]


def test_a_connection_that_fails_names_the_option_and_a_misspelt_driver() -> None:
    error = refused("libvirt_domain", uri="tset:///default", name="a", state="absent")
    assert (error["option"], error["value"]) == ("uri", "tset:///default")
    assert error["candidates"] == ["test:///default"]
    assert error["msg"].endswith(" Did you mean test:///default?")


def test_a_destination_that_cannot_be_reached_is_named() -> None:
    error = refused("libvirt_migration", name="test", destination="qemu+tcp://u:secret@127.0.0.1:1/system")
    assert (error["option"], error["value"]) == ("destination", "qemu+tcp://u:********@127.0.0.1:1/system")
    assert error["candidates"] == []
    assert "secret" not in error["msg"]


@pytest.fixture
def mute(tmp_path: pathlib.Path) -> t.Iterator[str]:
    """Return the URI of a socket that accepts connections and never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        yield f"test+unix:///default?socket={tmp_path}/s"


def test_a_connection_that_times_out_fails_as_one_that_is_refused(mute: str) -> None:
    with pytest.raises(OpenFailure) as caught, connected(mute, 0.3, option="destination"):
        pass
    error = caught.value.row()
    assert (error["option"], error["value"]) == ("destination", mute)
    assert error["problem"] == f"Opening {mute} failed: no answer within 0.3 s."


def test_a_domain_whose_destination_is_lost_keeps_the_option(mute: str) -> None:
    run = MigrationRun(URI, mute, 0.3, read_wanted(["test"]), Options("client", 5.0), lambda _text: None)
    run.run(None, check_mode=True)
    with pytest.raises(ItemsFailed) as caught:
        run.result(True, False)
    error = caught.value.fields["domains"][0]["error"]
    assert (error["option"], error["value"]) == ("destination", mute)


def test_a_migration_that_fails_keeps_the_record_of_its_cause() -> None:
    refusal = libvirt.libvirtError("")
    refusal.err = (38, 7, "Failed to connect to remote libvirt URI qemu+tcp://u:secret@h/system", 2)
    failure = MigrationFailure(LibvirtFailure("Migrating domain web", refusal), "It is running at the source.")
    assert failure.fields == {"libvirt_error": 38}
    assert failure.message == (
        "Migrating domain web failed: Failed to connect to remote libvirt URI qemu+tcp://u:********@h/system "
        "(libvirt error 38). It is running at the source."
    )
    assert failure.row()["problem"] == failure.message
    unopened = OpenFailure(TapvirtError("Opening x:/ failed."), "x:/", "destination")
    row = MigrationFailure(unopened, "It is running at the source.").row()
    assert (row["option"], row["value"]) == ("destination", "x:/")
    assert row["problem"] == "Opening x:/ failed. It is running at the source."


def test_a_profile_that_apparmor_does_not_get_leads_to_the_log() -> None:
    refusal = libvirt.libvirtError("")
    profile = "libvirt-1f0c35c2-3a3b-4d0e-8d3a-9a6d3c1f7a11"
    refusal.err = (1, 24, f"internal error: cannot load AppArmor profile '{profile}'", 2)
    assert LibvirtFailure("Starting domain web", refusal).message == (
        f"Starting domain web failed: internal error: cannot load AppArmor profile '{profile}' (libvirt error 1). "
        "The log of libvirt's daemon has the reason of virt-aa-helper, such as an image below /usr/share."
    )


def test_names_that_resemble_a_mistyped_one_are_a_list(tmp_path: pathlib.Path) -> None:
    pools = "".join(f"<pool type='dir'><name>pool{n}</name><target><path>/x{n}</path></target></pool>" for n in "123")
    domain = "<domain type='test'><name>guest{}</name><memory>1</memory><os><type>hvm</type></os></domain>"
    (tmp_path / "node.xml").write_text(f"<node>{pools}{''.join(map(domain.format, '123'))}</node>", encoding="ascii")
    uri = f"test://{tmp_path}/node.xml"
    for module_name, args in (
        ("libvirt_volume", {"pool": "pool", "name": "v"}),
        ("libvirt_snapshot", {"domain": "guest", "name": "s"}),
    ):
        (warning,) = run_here(module_name, {"uri": uri, "state": "absent", **args})["warnings"]
        assert re.search(r"\. Did you mean (\w+\d), (\w+\d) or (\w+\d)\?$", warning), warning


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"connect_timeout_seconds": 0}, "value 0 for connect_timeout_seconds: The time is a whole number of seconds"),
        ({"connect_timeout_seconds": -1}, "for connect_timeout_seconds: .* at least 1.$"),
        ({"connect_timeout_seconds": 1, "wait_seconds": -1}, "value -1 for wait_seconds: .* at least 0.$"),
    ],
)
def test_a_time_that_is_none_is_refused(params: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        module.check_times(params)


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("pool", POOL.replace("dir", "dri"), ", line 1: The type of a pool is one of dir, .* Did you mean dir"),
        (
            "domain",
            "<domain type='kmv'><memory>1</memory><os><type>hvm</type></os></domain>",
            ", line 1: The type of a domain is one of bhyve, .* Did you mean kvm",
        ),
    ],
)
def test_a_type_that_the_schema_does_not_know_has_its_line_and_candidates(name: str, root: str, message: str) -> None:
    assert re.search(message, refused(f"libvirt_{name}", name="n", xml=root)["msg"])
