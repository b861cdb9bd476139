# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_migration between two real libvirtds of this machine, with guests that run and write to their memory."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import tempfile
import threading
import time
import typing as t

import libvirt
import pytest
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.daemon_pair import OneOfTwo, daemon_pair
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.session_daemon import run_here

NAME = "web"
XML = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>{devices}<memballoon model='none'/></devices>
</domain>
"""
DISK = "<disk type='file'><driver name='qemu' type='raw'/><source file='{file}'/><target dev='vda'/>{more}</disk>"
POOL = "<pool type='dir'><name>media</name><target><path>{path}</path></target></pool>"
# In MiB. An empty page is sent as 9 bytes: 2 GiB of them take more than four seconds at 1 MiB a second.
LARGE = 2048
# Writes to half a MiB of memory for ever: mov bx,0x1000; next: mov es,bx; xor di,di; mov cx,0x8000; inc ax; rep stosw;
# add bx,0x1000; cmp bx,0x9000; jne next; jmp to the beginning.
WRITER = bytes.fromhex("bb0010 8ec3 31ff b90080 40 f3ab 81c30010 81fb0090 75ec ebe7")


class Hosts:
    """The two hosts, a folder that both see, and the module between them."""

    def __init__(self, one: OneOfTwo, other: OneOfTwo, folder: pathlib.Path) -> None:
        self.one, self.other, self.folder = one, other, folder
        self.writer = folder / "writer.img"
        self.writer.write_bytes(WRITER + bytes(510 - len(WRITER)) + b"\x55\xaa" + bytes(1 << 20))

    def options(self, back: bool = False, **args: t.Any) -> dict[str, t.Any]:
        uris = [self.one.uri, self.other.uri]
        source, destination = reversed(uris) if back else uris
        options = {"uri": source, "destination": destination, "migrate_uri": f"unix://{self.folder}/m", "name": NAME}
        return {key: value for key, value in {**options, **args}.items() if value is not None}

    def move(self, check: bool = False, back: bool = False, **args: t.Any) -> dict[str, t.Any]:
        return run_here("libvirt_migration", self.options(back, **args), check)

    def refused(self, **args: t.Any) -> str:
        """Run the module, which has to fail and to change nothing; return what it says."""
        before = self.found()
        result = self.move(**args)
        assert result.get("failed"), result
        assert self.found() == before
        assert not result.get("changed")
        return str(result["msg"])

    def found(self) -> list[dict[str, tuple[str, bool, bool, str]]]:
        """Return the domains of both hosts: UUID, whether it runs, starts with its host, and its definition."""
        return [_domains(daemon.uri) for daemon in (self.one, self.other)]


def _domains(uri: str) -> dict[str, tuple[str, bool, bool, str]]:
    with contextlib.closing(libvirt.open(uri)) as connection:
        return {
            domain.name(): (
                domain.UUIDString(),
                domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING,
                bool(domain.isPersistent() and domain.autostart()),
                domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE),
            )
            for domain in connection.listAllDomains()
        }


def start(daemon: OneOfTwo, devices: str = "", autostart: bool = False, name: str = NAME, memory: int = 16) -> None:
    with contextlib.closing(libvirt.open(daemon.uri)) as connection:
        domain = connection.defineXML(XML.format(name=name, devices=devices, memory=memory))
        domain.setAutostart(int(autostart))
        domain.create()


@pytest.fixture(scope="module")
def both() -> t.Iterator[Hosts]:
    # Short: sockets lie in it.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tv", dir="/tmp"))
    try:
        with daemon_pair() as (one, other):
            yield Hosts(one, other, folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def hosts(both: Hosts) -> t.Iterator[Hosts]:
    yield both
    for daemon in (both.one, both.other):
        with contextlib.closing(libvirt.open(daemon.uri)) as connection:
            for domain in connection.listAllDomains():
                persistent = domain.isPersistent()
                if domain.isActive():
                    domain.destroy()
                if persistent:
                    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
            for pool in connection.listAllStoragePools():
                pool.destroy()


def writer(hosts: Hosts) -> str:
    return DISK.format(file=hosts.writer, more="<readonly/>")


def test_a_domain_moves_with_all_that_is_its_own(hosts: Hosts) -> None:
    start(hosts.one, autostart=True)
    before = hosts.found()
    planned = hosts.move(check=True)
    assert hosts.found() == before
    assert planned["domains"][0]["location"] == "destination"
    done = hosts.move()
    assert not done.get("failed"), done
    assert done["plan"] == planned["plan"]
    assert [row["what"] for row in done["plan"]] == ["web place", "web definition", "web autostart"]
    assert hosts.found() == before[::-1]
    row = done["domains"][0]
    assert (row["location"], row["state"], row["changed"], row["error"]) == ("destination", "running", True, None)
    assert row["uuid"] == before[0][NAME][0]
    assert row["memory_bytes"] >= 16 << 20
    assert row["transferred_bytes"] > 0
    assert 0 <= row["downtime_seconds"] <= row["elapsed_seconds"]
    again = hosts.move()
    assert (again["changed"], again["plan"]) == (False, [])


def test_past_the_deadline_it_runs_on_where_it_was(hosts: Hosts) -> None:
    start(hosts.one, writer(hosts), autostart=True, memory=LARGE)
    message = hosts.refused(bandwidth_mib_per_second=1, deadline_seconds=1.0)
    assert "aborted after 1 s" in message
    assert "It is running at the source as before, and it does not exist at the destination." in message


def test_what_cannot_move_is_reported_before_anything_changes(hosts: Hosts) -> None:
    assert "for name: Neither the source nor the destination has a domain of this name." in hosts.refused()
    start(hosts.one)
    assert "Did you mean web?" in hosts.refused(name="wep")
    assert "for destination: The destination is the same host as the source" in hosts.refused(
        destination=hosts.one.uri + "&mode=legacy"
    )
    assert "Invalid value 'nonsense' for destination: A libvirt URI " in hosts.refused(destination="nonsense")
    assert "for destination: libvirt's embedded driver does not migrate domains" in hosts.refused(
        destination=f"qemu:///embed?root={hosts.folder}/e"
    )
    assert "for deadline_seconds: The deadline has to be more than 0 seconds." in hosts.refused(deadline_seconds=0)
    assert "for migrate_uri: With mode: tunnelled, the data goes through" in hosts.refused(mode="tunnelled")
    assert "for migrate_uri: The destination cannot receive the data at this URI." in hosts.refused(
        migrate_uri="/tmp/m"
    )
    nobody = f"qemu+unix:///system?socket={hosts.folder}/nobody"
    assert nobody in hosts.refused(destination=nobody)
    assert "for uri: libvirt's driver TEST does not support live migration." in hosts.refused(
        uri="test:///default", name="test"
    )
    with contextlib.closing(libvirt.open(hosts.one.uri)) as connection:
        domain = connection.lookupByName(NAME)
        text = domain.XMLDesc()
        domain.destroy()
        assert "The domain is defined and off at the source, and only a running" in hosts.refused()
        with contextlib.closing(libvirt.open(hosts.other.uri)) as other:
            other.defineXML(text)
            assert "and a domain with the same UUID is defined and off at the destination" in hosts.refused()
            other.lookupByName(NAME).undefine()
            other.defineXML(XML.format(name=NAME, devices="", memory=16))
            assert "and another domain of this name, with the UUID " in hosts.refused()
            domain.undefine()
            assert "The domain is already at the destination, but it is off." in hosts.refused()


def test_storage_that_the_destination_lacks_is_reported_before_anything_changes(hosts: Hosts) -> None:
    file = hosts.folder / "own.img"
    file.write_bytes(bytes(1 << 20))
    start(hosts.one, DISK.format(file=file, more=""))
    before = hosts.found()
    # Beside the daemon, so that the file is of the module's own host.
    message = hosts.one.module("libvirt_migration", **hosts.options(uri="qemu:///system"))["msg"]
    assert hosts.found() == before
    assert f"Disk vda ({file}) is on " in message
    assert ", which only the source has. Put a writable disk on storage that both hosts share." in message
    medium, media = hosts.folder / "medium.img", hosts.folder / "media"
    medium.write_bytes(bytes(1 << 20))
    media.mkdir()
    start(hosts.one, DISK.format(file=medium, more="<readonly/>"), name="reader")
    with contextlib.closing(libvirt.open(hosts.other.uri)) as connection:
        connection.storagePoolCreateXML(POOL.format(path=hosts.folder))
        assert [row["what"] for row in hosts.move(name="reader", check=True)["plan"]][:1] == ["reader place"]
        medium.rename(media / "medium.img")
        assert f"Disk vda ({medium}) does not exist at the destination." in hosts.refused(name="reader")


@pytest.mark.soak
def test_every_mode_moves_a_guest_that_writes_there_and_back(hosts: Hosts) -> None:
    start(hosts.one, writer(hosts), autostart=True)
    before = hosts.found()
    for number, mode in enumerate(["peer_to_peer", "tunnelled", "client", "peer_to_peer"]):
        uri = None if mode == "tunnelled" else f"unix://{hosts.folder}/m"
        done = hosts.move(back=bool(number % 2), mode=mode, migrate_uri=uri)
        assert not done.get("failed"), done
        assert any("It is not known whether disk vda" in warning for warning in done["warnings"])
        assert hosts.found() == (before if number % 2 else before[::-1])


@pytest.mark.soak
def test_a_paused_or_transient_domain_stays_so(hosts: Hosts) -> None:
    with contextlib.closing(libvirt.open(hosts.one.uri)) as connection:
        connection.createXML(XML.format(name=NAME, devices="", memory=16), libvirt.VIR_DOMAIN_START_PAUSED)
    done = hosts.move()
    assert not done.get("failed"), done
    assert [row["what"] for row in done["plan"]] == ["web place"]
    assert done["domains"][0]["state"] == "paused"
    with contextlib.closing(libvirt.open(hosts.other.uri)) as connection:
        assert not connection.lookupByName(NAME).isPersistent()


@pytest.mark.soak
def test_a_destination_that_does_not_answer_is_named(hosts: Hosts) -> None:
    start(hosts.one)
    before = hosts.found()
    os.kill(hosts.other.process.pid, signal.SIGSTOP)
    try:
        result = hosts.move(connect_timeout_seconds=2)
    finally:
        os.kill(hosts.other.process.pid, signal.SIGCONT)
    assert f"Opening {hosts.other.uri} failed: no answer within 2 s" in result["msg"]
    assert hosts.found() == before


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["peer_to_peer", "client"])
def test_a_destination_that_dies_in_the_midst_leaves_it_at_the_source(hosts: Hosts, mode: str) -> None:
    start(hosts.one, writer(hosts), memory=LARGE)
    before = hosts.found()

    def kill_in_the_midst() -> None:
        with contextlib.closing(libvirt.open(hosts.one.uri)) as connection:
            domain = connection.lookupByName(NAME)
            while not domain.jobStats().get("data_processed"):
                time.sleep(0.05)
        hosts.other.kill()

    killer = threading.Thread(target=kill_in_the_midst)
    killer.start()
    result = hosts.move(mode=mode, bandwidth_mib_per_second=1, deadline_seconds=60.0)
    killer.join()
    assert result.get("failed")
    assert "It is running at the source as before, and it does not exist at the destination." in result["msg"]
    assert hosts.found() == before
