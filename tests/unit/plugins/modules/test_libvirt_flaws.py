# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What other tools get wrong with domains, one test each, named after the flaw: libvirt's real drivers, our modules.

The QEMU driver runs real guests; the test driver has pools and the states that are hard to reach for real.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import textwrap
import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.node import node_uri

if t.TYPE_CHECKING:
    from ansible_collections.tapvirt.host.tests.unit.support.libvirt.embed import Embed

Run = t.Callable[..., dict[str, t.Any]]
POOLED = """
<node>
  <pool type='dir'>
    <name>images</name><target><path>/images</path></target>
    <volume type='file'><name>vm.qcow2</name><capacity>1000</capacity><target><path>/images/vm.qcow2</path></target>
    </volume>
    <volume type='file'><name>shared.iso</name><capacity>1000</capacity><target><path>/images/shared.iso</path></target>
    </volume>
    <volume type='file'><name>base.img</name><capacity>1000</capacity><target><path>/images/base.img</path></target>
    </volume>
    <volume type='file'><name>over.img</name><capacity>1000</capacity><target><path>/images/over.img</path></target>
      <backingStore><path>/images/base.img</path></backingStore>
    </volume>
  </pool>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>vm</name><memory>65536</memory><os><type>hvm</type></os>
    <devices>
      <disk type='file' device='disk'><source file='/images/vm.qcow2'/><target dev='vda'/></disk>
      <disk type='file' device='disk'><source file='/elsewhere/data.img'/><target dev='vdb'/></disk>
      <disk type='volume' device='disk'><source pool='images' volume='base.img'/><target dev='vdc'/></disk>
      <disk type='file' device='disk'><source file='/images/seed.img'/><target dev='vdd'/><readonly/></disk>
      <disk type='file' device='disk'><source file='/images/quorum.img'/><target dev='vde'/><shareable/></disk>
      <disk type='file' device='cdrom'><source file='/images/shared.iso'/><target dev='hdc'/><readonly/></disk>
    </devices>
    <test:runstate>{state}</test:runstate>{more}
  </domain>
  {others}
</node>
"""
OTHER = """
<domain type='test'><name>other</name><memory>65536</memory><os><type>hvm</type></os>
  <devices><disk type='file' device='disk'><source file='{0}'/><target dev='vdx'/></disk></devices>
</domain>
"""
RUNNING, PAUSED, OFF, CRASHED, ASLEEP = 1, 3, 5, 6, 7


@pytest.fixture
def pooled(tmp_path: pathlib.Path, run_module: Run) -> Run:
    """Run libvirt_domain on a made-up host with a pool and a domain ``vm``; nothing is kept from run to run."""

    def run(state: int = OFF, others: str = "", more: str = "", check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        uri = node_uri(tmp_path, POOLED.format(state=state, others=others, more=more))
        if "wanted" in args:
            args["state"] = args.pop("wanted")
        return run_module("libvirt_domain", {"uri": uri, **args}, check=check)

    return run


def removals(result: dict[str, t.Any]) -> list[tuple[str, t.Any, str]]:
    """Return what the plan takes, from where, and how."""
    assert not result.get("failed"), result["msg"]
    return [(row["what"], row["before"], row["how"]) for row in result["plan"] if row["after"] is None]


# ---- undefine --------------------------------------------------------------------------------------------------------


def test_undefine_deletes_disks_and_a_shared_iso_of_a_pool(pooled: Run) -> None:
    everything = ["nvram", "tpm", "managed_save", "snapshots", "checkpoints"]
    gone = pooled(name="vm", wanted="absent", remove=everything)
    assert [row[0] for row in removals(gone)] == ["vm definition"]
    named = pooled(name="vm", wanted="absent", remove_disks=["vda"])
    assert removals(named)[1:] == [("vm disk vda", "/images/vm.qcow2", "deleteVolume")]
    assert named["plan"] == pooled(name="vm", wanted="absent", remove_disks=["vda"], check=True)["plan"]
    for target in ("hdc", "vdd", "vde"):
        refused = pooled(name="vm", wanted="absent", remove_disks=["vda", target])
        assert refused["changed"] is False
        message = f"Invalid value '{target}' for remove_disks[1]: Disk {target} (/images/"
        assert refused["msg"].startswith(message)


def test_undefine_of_a_running_domain_deletes_its_disk_under_it(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker(), "state": "running"})
    wanted = {"name": "talker", "state": "absent", "remove_disks": ["hda"]}
    failed = embed.module("libvirt_domain", domains=[wanted], wait_seconds=1)
    assert "still running" in failed["msg"]
    assert embed.image.exists()
    assert embed.module("libvirt_domain_info")["domains"][0]["persistent"]
    planned = embed.converge(wanted, check=True, on_timeout="destroy", wait_seconds=1)
    done = embed.converge(wanted, on_timeout="destroy", wait_seconds=1)
    assert planned["plan"] == done["plan"]
    assert [(row["what"], row["how"]) for row in done["plan"]] == [
        ("talker state", "shutdown"),
        ("talker definition", "undefine"),
        ("talker disk hda", "unlink"),
    ]
    assert done["plan"][2]["before"] == str(embed.image)
    assert not embed.image.exists()
    assert embed.converge(wanted)["plan"] == []


def test_undefine_deletes_one_disk_then_fails_and_leaves_the_domain_without_it(embed: Embed) -> None:
    """The second disk cannot be deleted: that is found out before the first one is touched."""
    second = embed.root / "second.img"
    second.symlink_to(embed.image)
    disk = f"<disk type='file'><source file='{second}'/><target dev='hdb' bus='ide'/><shareable/></disk>"
    embed.converge({"name": "talker", "xml": embed.talker(devices=disk)})
    refused = embed.module("libvirt_domain", name="talker", state="absent", remove_disks=["hda", "hdb"])
    assert refused["changed"] is False
    assert f"Invalid value 'hdb' for remove_disks[1]: Disk hdb ({second}) of domain 'talker' is " in refused["msg"]
    assert embed.image.exists()
    assert embed.module("libvirt_domain_info")["domains"][0]["name"] == "talker"


def test_what_cannot_be_read_counts_as_standing_on_nothing(embed: Embed) -> None:
    """An image that this user may not read may stand on the file that is to go: it stays."""
    program = textwrap.dedent(
        """
        import os, sys
        from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.disk.images import ImageLocator
        import xml.etree.ElementTree as ET
        os.setresuid(65534, 65534, 65534)
        for kind in ("qcow2", "raw"):
            disk = f"<disk type='file'><driver type='{kind}'/><source file='{sys.argv[1]}'/><target dev='vda'/></disk>"
            root = ET.fromstring(f"<domain><devices>{disk}</devices></domain>")
            print(*(use.unseen for use in ImageLocator(None, True).uses_in("web1", root)))
        """
    )
    closed = embed.root / "closed.qcow2"
    closed.write_bytes(b"")
    closed.chmod(0)
    done = subprocess.run([sys.executable, "-c", program, str(closed)], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{closed} cannot be read: Permission denied", "None"]


def test_undefine_deletes_the_disk_that_another_domain_of_the_list_is_to_have(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker()})
    gone = {"name": "talker", "state": "absent", "remove_disks": ["hda"]}
    refused = embed.module("libvirt_domain", domains=[gone, {"name": "heir", "xml": embed.talker("heir")}])
    assert "Invalid value 'hda' for domains[0].remove_disks[0]: Disk hda (" in refused["msg"]
    assert "is needed by hda of 'heir'" in refused["msg"]
    assert refused["changed"] is False
    assert embed.image.exists()


def test_a_domain_takes_the_disk_of_one_that_was_to_go_and_has_not(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker(), "state": "running"})
    for state in ("running", "shutdown"):
        heir = {"name": "heir", "xml": embed.talker("heir"), "state": state}
        failed = embed.module("libvirt_domain", domains=[heir, {"name": "talker", "state": "absent"}], wait_seconds=1)
        assert "is in use as disk hda of domain 'talker'" in failed["domains"][0]["error"]["problem"]
        assert "still running" in failed["domains"][1]["error"]["problem"]
        assert [row["changed"] for row in failed["domains"]] == [False, False]
        assert [row["name"] for row in embed.module("libvirt_domain_info")["domains"]] == ["talker"]


def test_undefine_fails_for_a_disk_in_no_pool(embed: Embed, pooled: Run) -> None:
    """A plain file of this host goes without a pool; one of another host is told beforehand."""
    embed.converge({"name": "talker", "xml": embed.talker()})
    done = embed.converge({"name": "talker", "state": "absent", "remove_disks": ["hda"]})
    assert removals(done)[1:] == [("talker disk hda", str(embed.image), "unlink")]
    assert not embed.image.exists()
    refused = pooled(name="vm", wanted="absent", remove_disks=["vdb"])
    assert "is no volume of an active pool" in refused["msg"]
    assert refused["changed"] is False


@pytest.mark.parametrize("found", [OFF, RUNNING])
def test_undefine_in_check_mode_reports_another_thing_than_for_real(pooled: Run, found: int) -> None:
    for name in ("vm", "nobody"):
        planned = pooled(found, name=name, wanted="absent", check=True)
        done = pooled(found, name=name, wanted="absent")
        assert not done.get("failed"), done["msg"]
        assert (planned["plan"], planned["changed"]) == (done["plan"], done["changed"])
        assert done["changed"] is (name == "vm")
        assert done["domains"][0]["state"] == planned["domains"][0]["state"] == "absent"


def test_undefine_of_a_domain_with_nvram_fails_without_flags(embed: Embed) -> None:
    """And the TPM's state, which other tools lose unasked, stays as well."""
    nvram = embed.root / "vars.fd"
    shutil.copyfile("/usr/share/OVMF/OVMF_VARS.fd", nvram)
    firmware = f"""
        <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
        <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>{nvram}</nvram>
    """
    tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"
    xml = embed.talker(devices=tpm).replace("<boot dev='hd'/>", firmware)
    wanted = {"name": "talker", "xml": xml, "state": "running"}
    uuid = embed.converge(wanted)["domains"][0]["uuid"]
    state = next((embed.root / "e" / "lib").rglob(f"swtpm/{uuid}"))
    gone = {"name": "talker", "state": "absent"}
    forced: dict[str, t.Any] = {"on_timeout": "destroy", "wait_seconds": 1}
    planned = embed.converge(gone, check=True, **forced)
    done = embed.converge(gone, **forced)
    assert planned["plan"] == done["plan"]
    assert [row[0] for row in removals(done)] == ["talker definition"]
    assert nvram.exists()
    assert any(state.rglob("*.permall"))
    embed.converge({**wanted, "xml": xml.replace("<name>", f"<uuid>{uuid}</uuid><name>"), "state": "present"})
    done = embed.converge(gone, remove=["nvram", "tpm"])
    assert removals(done)[1:] == [("talker nvram", str(nvram), "undefine"), ("talker tpm", str(state), "undefine")]
    assert not nvram.exists()
    assert not state.exists()


def test_undefine_has_flags_that_no_driver_knows(pooled: Run) -> None:
    """What may go is a word; those that a driver has no bit for are left out, and unknown ones are refused."""
    saved = "<test:hasmanagedsave/>"
    every = ["nvram", "tpm", "managed_save", "snapshots", "checkpoints"]
    done = pooled(more=saved, name="vm", wanted="absent", remove=every)
    assert removals(done)[1:] == [("vm managed_save", "saved memory", "undefine")]
    assert "no match for: agent" in pooled(name="vm", wanted="absent", remove=["agent"])["msg"]


def test_absent_takes_the_disk_that_another_domain_needs(pooled: Run, embed: Embed) -> None:
    """Used as it is, by another name of the same file, or below an overlay."""
    for other in ("/images/vm.qcow2", "/images/over.img"):
        target = "vda" if other.endswith("vm.qcow2") else "vdc"
        refused = pooled(others=OTHER.format(other), name="vm", wanted="absent", remove_disks=[target])
        assert refused["changed"] is False
        assert "is needed by" in refused["msg"]
    assert "is needed by /images/over.img" in pooled(name="vm", wanted="absent", remove_disks=["vdc"])["msg"]
    link = embed.root / "link.img"
    link.symlink_to(embed.image)
    overlay = embed.root / "over.qcow2"
    name = str(link).encode()
    overlay.write_bytes(b"QFI\xfb" + (3).to_bytes(4, "big") + (104).to_bytes(8, "big") + len(name).to_bytes(4, "big"))
    with overlay.open("ab") as stream:
        stream.write(bytes(104 - stream.tell()) + name)
    user = "<domain type='qemu'><name>{0}</name><memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os>"
    user += "<devices><disk type='file'><driver name='qemu' type='{2}'/><source file='{1}'/><target dev='vda'/>"
    user += "</disk></devices></domain>"
    talker = {"name": "talker", "xml": embed.talker()}
    for file, form in ((link, "raw"), (overlay, "qcow2")):
        embed.converge(talker)
        embed.libvirt(f"connection.defineXML({user.format('user', file, form)!r})")
        refused = embed.module("libvirt_domain", name="talker", state="absent", remove_disks=["hda"])
        assert "is needed by vda of 'user'" in refused["msg"]
        assert embed.image.exists()
        embed.converge({"name": "user", "state": "absent"})


def test_a_disk_that_the_domain_does_not_have_is_named(pooled: Run) -> None:
    refused = pooled(name="vm", wanted="absent", remove_disks=["vba"])
    assert "'vba' for remove_disks[0]: Domain 'vm' has no such disk. Did you mean vd" in refused["msg"]
    assert (
        "Disks are deleted with state: absent only, but"
        in pooled(name="vm", wanted="shutdown", remove_disks=["vda"])["msg"]
    )


# ---- states ----------------------------------------------------------------------------------------------------------


def test_state_running_fails_on_a_crashed_domain_and_paused_does_nothing_on_one_that_is_off(pooled: Run) -> None:
    for found, wanted in ((CRASHED, "running"), (OFF, "paused"), (PAUSED, "shutdown"), (CRASHED, "shutdown")):
        done = pooled(found, name="vm", wanted=wanted, wait_seconds=5)
        assert not done.get("failed"), done["msg"]
        assert done["changed"] is True
        assert done["domains"][0]["state"] == {"shutdown": "shutoff"}.get(wanted, wanted)


def test_a_state_of_a_missing_domain_fails_in_its_own_way_each_time(pooled: Run) -> None:
    for wanted in ("running", "paused", "shutdown", "present", "saved"):
        result = pooled(name="mv", wanted=wanted)
        assert result["msg"] == (
            "Invalid value 'mv' for name: No domain has this name, and the task has no xml to define one. Did you mean "
            "vm?"
        )
    assert pooled(name="mv", wanted="absent")["changed"] is False


def test_start_pause_and_shutdown_change_the_state_and_say_unchanged(pooled: Run) -> None:
    for found, wanted in ((OFF, "running"), (RUNNING, "paused"), (PAUSED, "running"), (RUNNING, "shutdown")):
        done = pooled(found, name="vm", wanted=wanted, wait_seconds=5)
        assert done["changed"] is True
        assert pooled(found, name="vm", wanted=wanted, check=True)["plan"] == done["plan"]


# ---- definitions -----------------------------------------------------------------------------------------------------


def test_a_rename_makes_a_second_domain_on_the_same_disk(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker()})
    for check in (True, False):
        refused = embed.module("libvirt_domain", check=check, name="renamed", xml=embed.talker("renamed"))
        assert refused["msg"].startswith("Invalid value for xml: Disk hda (")
        assert "is in use as disk hda of domain 'talker'" in refused["msg"]
        assert refused["changed"] is False
    twins = [{"name": name, "xml": embed.talker(name)} for name in ("one", "two")]
    assert "is in use" in embed.module("libvirt_domain", domains=twins)["msg"]
    done = embed.converge({"name": "renamed", "xml": embed.talker("renamed")}, {"name": "talker", "state": "absent"})
    assert [row["state"] for row in done["domains"]] == ["shutoff", "absent"]
    shared = embed.talker("reader").replace("bus='ide'/>", "bus='ide'/><shareable/>")
    embed.converge({"name": "reader", "xml": shared})


def test_saved_memory_is_resumed_with_the_old_definition_and_nothing_is_reported(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker(memory=32, current=32), "state": "running"})
    embed.converge({"name": "talker", "state": "saved"})
    wanted = {"name": "talker", "xml": embed.talker(memory=40, current=40), "state": "running"}
    done = embed.converge(wanted)
    pending = [(row["what"], row["running"], row["stored"]) for row in done["domains"][0]["pending"]]
    assert pending == [("memory", "32768", "40960"), ("currentMemory", "32768", "40960")]
    again = embed.converge(wanted)
    assert (again["plan"], again["domains"][0]["pending"]) == ([], done["domains"][0]["pending"])


def test_a_second_identical_define_rewrites_the_mac_and_check_mode_always_reports_changed(embed: Embed) -> None:
    nic = "<interface type='user'/><interface type='user'><model type='virtio'/></interface>"
    wanted = {"name": "talker", "xml": embed.talker(devices=nic)}
    embed.converge(wanted)
    before = embed.module("libvirt_domain_info")["domains"][0]["interfaces"]
    for check in (True, False):
        again = embed.converge(wanted, check=check)
        assert (again["changed"], again["plan"]) == (False, [])
    assert embed.module("libvirt_domain_info")["domains"][0]["interfaces"] == before
    assert [nic["type"] for nic in before] == ["user", "user"]


def test_memory_beyond_what_it_booted_with_changes_the_file_only_and_is_forgotten(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker(), "state": "running"})
    wanted = {"name": "talker", "xml": embed.talker(memory=24, current=24), "state": "running"}
    done = embed.converge(wanted)
    reasons = {(row["what"], row["reason"]) for row in done["domains"][0]["pending"]}
    assert reasons == {("memory", "restart"), ("currentMemory", "restart")}
    again = embed.converge(wanted)
    assert (again["changed"], again["domains"][0]["pending"]) == (False, done["domains"][0]["pending"])


def test_its_own_definition_is_another_one(embed: Embed) -> None:
    """The XML that libvirt shows, given back, changes nothing; the mark in it is no difference."""
    embed.converge({"name": "talker", "xml": embed.talker()})
    xml = embed.libvirt("print(connection.lookupByName('talker').XMLDesc(2))")
    assert embed.converge({"name": "talker", "xml": xml})["plan"] == []


def test_a_disk_that_finds_no_place_on_a_q35_is_reported_as_plugged_in(embed: Embed) -> None:
    (embed.root / "extra.raw").write_bytes(bytes(1 << 20))
    disk = f"<disk type='file'><source file='{embed.root}/extra.raw'/><target dev='{{0}}' bus='virtio'/></disk>"
    xml = embed.talker().replace("machine='pc'", "machine='q35'").replace("bus='ide'", "bus='sata'")
    embed.converge({"name": "talker", "xml": xml, "state": "running"})
    more = xml.replace("<serial", disk.format("vda") + disk.format("vdb").replace("extra", "second") + "<serial")
    (embed.root / "second.raw").write_bytes(bytes(1 << 20))
    done = embed.module("libvirt_domain", domains=[{"name": "talker", "xml": more}])
    assert not done.get("failed"), done["msg"]
    attached = [row["what"] for row in done["plan"] if row["how"] == "attachDevice"]
    assert attached == ["talker running devices/disk[vda]", "talker running devices/disk[vdb]"]
    assert "attach of devices/disk[vdb] has no effect before a restart" in str(done["warnings"])
    running = embed.libvirt("print(connection.lookupByName('talker').XMLDesc(0))")
    assert ("dev='vda'" in running, "dev='vdb'" in running) == (True, False)
    pending = {row["what"]: row["reason"] for row in done["domains"][0]["pending"]}
    assert pending == {"devices/disk[vdb]": "restart", "devices/controller[pci:4]": "restart"}
    assert embed.converge({"name": "talker", "xml": more})["plan"] == []


def test_a_network_that_does_not_run_is_found_out_at_the_start_only_and_the_row_reports_it(embed: Embed) -> None:
    """Only a start can tell. The other domain starts, the definition stays, the error is in the domain's own row."""
    nic = "<interface type='network'><source network='nowhere'/></interface>"
    (embed.root / "own.img").write_bytes(embed.image.read_bytes())
    alone = embed.talker("alone", devices=nic).replace(str(embed.image), f"{embed.root}/own.img")
    wanted = [{"name": "alone", "xml": alone, "state": "running"}, {"name": "talker", "xml": embed.talker()}]
    result = embed.module("libvirt_domain", domains=wanted)
    assert result["domains"][0]["error"]["problem"].startswith("Starting domain alone failed: ")
    assert (result["domains"][0]["state"], result["domains"][1]["error"]) == ("shutoff", None)


def test_the_uri_is_ignored_where_the_kernel_s_name_is_xen(
    run_module: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other tool asks the program uname, and opens libvirt's default URI where that says xen.
    uname = tmp_path / "uname"
    uname.write_text("#!/bin/sh\necho 6.1.0-xen-amd64\n", encoding="ascii")
    uname.chmod(0o755)
    other = tmp_path / "other.xml"
    other.write_text(f"<node>{OTHER.format('/images/other.img')}</node>", encoding="ascii")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", f"test://{other}")
    assert subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout == "6.1.0-xen-amd64\n"
    listed = run_module("libvirt_domain_info", {"uri": "test:///default"})["domains"]
    assert [row["name"] for row in listed] == ["test"]
    elsewhere = run_module("libvirt_domain_info", {"uri": f"test://{other}"})["domains"]
    assert [row["name"] for row in elsewhere] == ["other"]
