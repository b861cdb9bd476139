# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_domain, libvirt_domain_info and libvirt_console against libvirt's real QEMU driver, without a daemon."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import typing as t
import xml.etree.ElementTree as ET

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.lifecycle import Waiting
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.mark import wanted_hash
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.plan import (
    Observed,
    Options,
    desired_definition,
    plan_domain,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.domain.run import read_wanted
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.results import plan_changes

if t.TYPE_CHECKING:
    from ansible_collections.tapvirt.host.tests.unit.support.libvirt.embed import Embed

HERE = pathlib.Path(__file__).resolve().parent
DEFINITIONS = sorted((HERE.parents[1] / "fixtures" / "libvirt").glob("*.xml"))


def named_definitions() -> list[dict[str, t.Any]]:
    return [{"name": path.stem, "xml": path.read_text(encoding="utf-8")} for path in DEFINITIONS]


def semantic_rows(name: str, wanted: list[dict[str, t.Any]], stored: ET.Element) -> list[str]:
    """Return the rows of a plan without libvirt's own reading of the XML."""
    (one,) = (item for item in read_wanted([{**item, "state": "present"} for item in wanted]) if item.name == name)
    observed = Observed(stored.findtext("uuid", ""), "shutoff", False, True, False, False, stored, None)
    planned = plan_domain(
        one, observed, desired_definition(one, observed, ""), None, Options("both", Waiting(60, "fail"))
    )
    return [f"{change.what}: {change.before} -> {change.after}" for change in planned.changes]


def test_every_definition_converges_once_and_the_plan_is_exact(embed: Embed) -> None:
    wanted = named_definitions()
    planned = embed.converge(*wanted, check=True)
    assert not (embed.root / "e").exists()
    done = embed.converge(*wanted)
    assert plan_changes(planned) == plan_changes(done)
    assert len(done["domains"]) == len(DEFINITIONS) >= 40
    assert {row["plan_fidelity"] for row in done["domains"]} == {"exact"}
    again = embed.converge(*wanted)
    assert (again["changed"], again["plan"]) == (False, [])
    # Without our mark, what the XML means decides; it is the same.
    embed.libvirt(
        """
        mark = "https://github.com/tapvirt/tapvirt.host/domain/1"
        for domain in connection.listAllDomains():
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, mark, 2)
        """
    )
    # So it is where only what the XML says can be compared.
    texts = embed.libvirt("print(*(domain.XMLDesc(3) for domain in connection.listAllDomains()), sep='\\0')").split(
        "\0"
    )
    stored = {root.findtext("name", ""): root for root in map(ET.fromstring, texts)}
    rows = {name: semantic_rows(name, wanted, stored[name]) for name in stored}
    xmls = {item["name"]: item["xml"] for item in wanted}
    # A display on a socket has no port, whatever the XML says.
    assert {name: found for name, found in rows.items() if found} == {
        "two_screens": [
            "two_screens devices/graphics[vnc]@port: None -> 5999",
            "two_screens devices/graphics[vnc]@autoport: None -> no",
            f"two_screens xml: None -> {wanted_hash(xmls['two_screens'])[:12]}",
        ]
    }
    unmarked = embed.converge(*wanted)
    assert unmarked["plan"] == []
    assert {row["plan_fidelity"] for row in unmarked["domains"]} == {"exact"}


def test_a_talker_runs_is_read_and_goes_without_its_disk_being_lost(embed: Embed) -> None:
    wanted = {"name": "talker", "xml": embed.talker(), "state": "running"}
    assert embed.converge(wanted)["domains"][0]["state"] == "running"
    assert embed.converge(wanted)["plan"] == []
    heard = embed.module("libvirt_console", name="talker", until=f"^{embed.line}$", timeout_seconds=30)
    assert heard["matched"], heard
    full = embed.module("libvirt_console", name="talker", timeout_seconds=20, max_bytes=4 * (len(embed.line) + 2))
    assert (full["stopped_by"], full["bytes"], full["truncated"]) == ("size", 4 * (len(embed.line) + 2), True)
    assert "\r" not in full["text"]
    gone = {"name": "talker", "state": "absent"}
    planned = embed.converge(gone, check=True, on_timeout="destroy", wait_seconds=1)
    done = embed.converge(gone, on_timeout="destroy", wait_seconds=1)
    assert plan_changes(planned) == plan_changes(done)
    assert done["domains"][0]["state"] == "absent"
    assert embed.image.stat().st_size == 512
    assert embed.converge(gone)["plan"] == []


def test_console_of_a_domain_that_is_off_or_unknown_or_read_by_another(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker()})
    assert "it has a console only while it runs" in embed.module("libvirt_console", name="talker")["msg"]
    unknown = embed.module("libvirt_console", name="tolker")
    assert unknown["msg"] == "Invalid value 'tolker' for name: No domain has this name. Did you mean talker?"
    assert unknown["error"] == {
        "option": "name",
        "value": "tolker",
        "problem": "No domain has this name.",
        "hint": None,
        "candidates": ["talker"],
    }
    assert "This is not a regular expression: " in embed.module("libvirt_console", name="talker", until="(")["msg"]


@pytest.mark.parametrize(
    ("change", "place", "before", "after"),
    [
        ({"description": "two"}, "description", "one", "two"),
        ({"memory": 24, "current": 24}, "memory", "16384", "24576"),
        ({"vcpus": 2}, "vcpu@current", "1", None),
        ({"devices": "<sound model='ac97'/>"}, "devices/sound[ac97]", None, "<sound "),
        ({"devices": "<interface type='user'/>"}, "devices/interface[52:54:00:", None, "<interface "),
    ],
)
def test_an_edit_gives_exactly_its_rows_and_check_mode_gives_the_same(
    embed: Embed, change: dict[str, t.Any], place: str, before: str | None, after: str | None
) -> None:
    embed.converge({"name": "talker", "xml": embed.talker()})
    wanted = {"name": "talker", "xml": embed.talker(**change)}
    planned = embed.converge(wanted, check=True)
    done = embed.converge(wanted)
    assert plan_changes(planned) == plan_changes(done)
    rows = [row for row in plan_changes(done) if row[0].startswith(f"talker {place}")]
    assert len(rows) == 1, plan_changes(done)
    assert rows[0][1] == before
    assert rows[0][2] == after or (after is not None and str(rows[0][2]).startswith(after))
    assert embed.converge(wanted)["plan"] == []
    back = embed.converge({"name": "talker", "xml": embed.talker()})
    assert back["changed"]


def test_edits_of_a_running_domain_take_effect_or_are_pending(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker(), "state": "running"})
    devices = "<sound model='ac97'/>"
    wanted = {"name": "talker", "xml": embed.talker(vcpus=2, devices=devices), "state": "running"}
    planned = embed.converge(wanted, check=True)
    done = embed.converge(wanted)
    assert plan_changes(planned) == plan_changes(done)
    assert ("talker running vcpu@current", 1, 2) in plan_changes(done)
    row = done["domains"][0]
    assert [(pending["what"], pending["reason"]) for pending in row["pending"]] == [("devices/sound[ac97]", "restart")]
    assert planned["domains"][0]["pending"] == row["pending"]
    info = embed.module("libvirt_domain_info", names=["talker"])["domains"][0]
    assert (info["vcpus"], info["state"]) == (2, "running")
    again = embed.converge(wanted)
    assert (again["plan"], again["domains"][0]["pending"]) == ([], row["pending"])
    restarted = embed.converge(wanted, apply="restart_if_needed", on_timeout="destroy", wait_seconds=1)
    assert (restarted["domains"][0]["pending"], restarted["domains"][0]["state"]) == ([], "running")
    assert embed.converge(wanted, apply="restart_if_needed")["plan"] == []


def test_apply_config_leaves_what_runs_and_reports_it(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker(), "state": "running"})
    wanted = {"name": "talker", "xml": embed.talker(vcpus=2)}
    done = embed.converge(wanted, apply="config")
    assert [row["what"] for row in done["plan"]] == ["talker vcpu@current"]
    assert [(row["what"], row["reason"]) for row in done["domains"][0]["pending"]] == [("vcpu@current", "apply")]
    assert embed.converge(wanted, apply="config")["plan"] == []
    assert embed.module("libvirt_domain_info", names=["talker"])["domains"][0]["vcpus"] == 1


def test_a_guest_that_ignores_its_balloon_is_asked_once(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker(memory=32, current=32), "state": "running"})
    wanted = {"name": "talker", "xml": embed.talker(memory=32, current=16), "state": "running"}
    done = embed.module("libvirt_domain", domains=[wanted])
    assert ("talker running currentMemory", 32768, 16384) in plan_changes(done)
    pending = [(row["what"], row["reason"]) for row in done["domains"][0]["pending"]]
    assert pending == [("currentMemory", "guest")]
    again = embed.converge(wanted)
    assert (again["plan"], again["domains"][0]["pending"]) == ([], done["domains"][0]["pending"])


def test_a_start_asks_the_guest_for_its_memory_and_nobody_asks_again(embed: Embed) -> None:
    wanted = {"name": "talker", "xml": embed.talker(memory=32, current=16), "state": "running"}
    done = embed.converge(wanted)
    assert [(row["what"], row["reason"]) for row in done["domains"][0]["pending"]] == [("currentMemory", "guest")]
    again = embed.converge(wanted)
    assert (again["plan"], again["domains"][0]["pending"]) == ([], done["domains"][0]["pending"])


def test_states_follow_one_another(embed: Embed) -> None:
    xml = embed.talker()
    for state, reached in (("paused", "paused"), ("running", "running"), ("paused", "paused"), ("saved", "shutoff")):
        wanted = {"name": "talker", "xml": xml, "state": state}
        planned = embed.converge(wanted, check=True)
        done = embed.converge(wanted)
        assert plan_changes(planned) == plan_changes(done)
        assert planned["domains"][0]["state"] == done["domains"][0]["state"] == reached
        assert embed.converge(wanted)["plan"] == []
    refused = embed.module("libvirt_domain", name="talker", state="absent")
    assert refused["failed"]
    assert "managed save" in refused["msg"]
    edited = embed.converge({"name": "talker", "xml": embed.talker(vcpus=2)})
    assert [row["reason"] for row in edited["domains"][0]["pending"]] == ["managed_save"]
    assert embed.converge(wanted)["domains"][0]["pending"] == []
    embed.converge({"name": "talker", "state": "absent"}, remove=["managed_save"])
    assert embed.module("libvirt_domain_info")["domains"] == []


def test_one_domain_that_fails_does_not_hide_the_others(embed: Embed) -> None:
    missing = embed.talker(name="broken").replace(str(embed.image), str(embed.root / "no.img"))
    result = embed.module(
        "libvirt_domain",
        domains=[
            {"name": "broken", "xml": missing, "state": "running"},
            {"name": "talker", "xml": embed.talker(), "state": "running"},
        ],
    )
    assert result["failed"]
    assert "no.img" in result["msg"]
    assert [(row["name"], row["state"]) for row in result["domains"]] == [("broken", "shutoff"), ("talker", "running")]
    assert "no.img" in result["domains"][0]["error"]["problem"]
    assert result["domains"][0]["error"] == result["error"]
    assert result["domains"][1]["error"] is None


@pytest.mark.parametrize(
    ("name", "wrong", "messages"),
    [
        (
            "talker",
            {"memory": "memroy"},
            (
                "Invalid value for domains[1].xml, line ",
                ": <memroy> is not an element of a domain. Did you mean memory",
            ),
        ),
        (
            "talker",
            {"type='raw'": "typ='raw'"},
            ("Invalid value for domains[1].xml, line ", ": typ is not an attribute of <driver>. Did you mean type"),
        ),
        (
            "talker",
            {"machine='pc'": "machine='pcx'"},
            ("Invalid value for domains[1].xml: libvirt refuses the definition of domain 'talker': ",),
        ),
        (
            "talker",
            {"<name>talker": "<name>other"},
            ("domains[1].xml: The <name> in the XML is 'other', but the name of the domain is 'talker'. Use the same",),
        ),
        (
            "talker",
            {"</domain>": ""},
            ("Invalid value for domains[1].xml, line ", ": The XML cannot be parsed: no elem"),
        ),
        (
            "../talker",
            {},
            ("Invalid value '../talker' for domains[1].name: A name cannot be a path: ", "Did you mean talker?"),
        ),
    ],
)
def test_bad_input_is_reported_before_anything_changes(
    embed: Embed, name: str, wrong: dict[str, str], messages: tuple[str, ...]
) -> None:
    xml = embed.talker()
    for right, replacement in wrong.items():
        xml = xml.replace(right, replacement)
    xml_of_another = embed.talker(name="fine").replace("talker.img", "fine.img")
    fine = {"name": "fine", "xml": xml_of_another, "state": "running"}
    result = embed.module("libvirt_domain", domains=[fine, {"name": name, "xml": xml}])
    assert result["failed"]
    assert "\n" not in result["msg"]
    for words in messages:
        assert words in result["msg"]
    assert not (embed.root / "e" / "etc" / "qemu").exists()


def test_entities_are_refused_unread(embed: Embed) -> None:
    bomb = "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/hostname'>]><domain><name>&a;</name></domain>"
    result = embed.module("libvirt_domain", name="talker", xml=bomb)
    assert "no document type" in result["msg"]


def test_passwords_are_compared_and_never_shown(embed: Embed) -> None:
    before, after = (f"<graphics type='vnc' passwd='hunter{number}'/>" for number in (2, 3))
    embed.converge({"name": "talker", "xml": embed.talker(devices=before)})
    done = embed.converge({"name": "talker", "xml": embed.talker(devices=after)})
    assert plan_changes(done) == [("talker devices/graphics[vnc]@passwd", "********", "********")]
    assert "hunter" not in str(done)


def test_start_reorders_controllers_and_nothing_is_planned(embed: Embed) -> None:
    devices = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    wanted = {"name": "talker", "xml": embed.talker(devices=devices), "state": "running"}
    embed.converge(wanted)
    again = embed.converge(wanted)
    assert (again["plan"], again["domains"][0]["pending"]) == ([], [])


def test_what_another_program_noted_in_the_metadata_stays(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker()})
    embed.libvirt(
        """
        domain = connection.lookupByName("talker")
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<note>kept</note>", "other", "urn:other", 2)
        """
    )
    embed.converge({"name": "talker", "xml": embed.talker(description="two")})
    xml = embed.libvirt("print(connection.lookupByName('talker').XMLDesc(2))")
    assert "<description>two" in xml
    assert re.search("note.*kept", xml)


def test_a_change_by_another_hand_is_seen_and_put_right(embed: Embed) -> None:
    wanted = {"name": "talker", "xml": embed.talker()}
    uuid = embed.converge(wanted)["domains"][0]["uuid"]
    embed.libvirt(
        """
        domain = connection.lookupByName("talker")
        connection.defineXML(domain.XMLDesc(2).replace("<description>one", "<description>three"))
        """
    )
    done = embed.converge(wanted)
    assert plan_changes(done) == [("talker description", "three", "one")]
    assert done["domains"][0]["uuid"] == uuid


def test_a_second_process_waits_for_the_root(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker()})
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, time; f = open({str(embed.root / 'e' / '.tapvirt' / 'lock')!r}, 'w'); "
         "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(2)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    started = time.monotonic()
    assert embed.module("libvirt_domain_info")["domains"]
    assert time.monotonic() - started > 1
    holder.wait()


def test_a_uri_that_does_not_answer_is_named_without_its_password(
    run_module: t.Callable[..., dict[str, t.Any]],
) -> None:
    args = {"uri": "qemu+tcp://joe:secret@127.0.0.1:9/system", "connect_timeout_seconds": 3}
    result = run_module("libvirt_domain_info", args)
    assert "qemu+tcp://joe:********@127.0.0.1:9/system" in result["msg"]
    assert "secret" not in str(result)


# ---- what other tools got wrong: one test each, named after it -------------------------------------------------------


def test_absent_twice_is_a_no_op_in_check_mode_and_for_real(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker()})
    embed.converge({"name": "talker", "state": "absent"})
    for check in (True, False):
        assert embed.converge({"name": "talker", "state": "absent"}, check=check)["plan"] == []


def test_absent_of_a_uefi_domain_works_and_keeps_its_nvram_unless_named(embed: Embed) -> None:
    nvram = embed.root / "vars.fd"
    shutil.copyfile("/usr/share/OVMF/OVMF_VARS.fd", nvram)
    firmware = f"""
        <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
        <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>{nvram}</nvram>
    """
    xml = embed.talker().replace("<boot dev='hd'/>", firmware)
    embed.converge({"name": "talker", "xml": xml})
    planned = embed.converge({"name": "talker", "state": "absent"}, check=True)
    assert "nvram" in planned["plan"][0]["why"]
    embed.converge({"name": "talker", "state": "absent"})
    assert nvram.exists()
    embed.converge({"name": "talker", "xml": xml})
    embed.converge({"name": "talker", "state": "absent"}, remove=["nvram"])
    assert not nvram.exists()


def test_shutdown_of_a_guest_that_ignores_it_is_a_failure_until_power_may_be_taken(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker(), "state": "running"})
    for _attempt in range(2):
        result = embed.module("libvirt_domain", name="talker", state="shutdown", wait_seconds=1)
        assert result["failed"]
        assert "still running 1 s after shutdown" in result["msg"]
        assert result["domains"][0]["state"] == "running"
    done = embed.converge({"name": "talker", "state": "shutdown"}, wait_seconds=1, on_timeout="destroy")
    assert done["domains"][0]["state"] == "shutoff"
    assert embed.converge({"name": "talker", "state": "shutdown"})["plan"] == []


def test_shutdown_of_a_paused_guest_wakes_it_first(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker(), "state": "paused"})
    done = embed.converge({"name": "talker", "state": "shutdown"}, wait_seconds=1, on_timeout="destroy")
    assert done["plan"][0]["how"] == "resume, shutdown"
    assert done["domains"][0]["state"] == "shutoff"


def test_an_interface_without_a_mac_keeps_the_one_it_got(embed: Embed) -> None:
    nic = "<interface type='user'><model type='virtio'/></interface>"
    embed.converge({"name": "talker", "xml": embed.talker(devices=nic)})
    mac = embed.module("libvirt_domain_info")["domains"][0]["interfaces"][0]["mac"]
    embed.converge({"name": "talker", "xml": embed.talker(devices=nic, description="two")})
    embed.converge({"name": "talker", "xml": embed.talker(devices=2 * nic)})
    macs = [interface["mac"] for interface in embed.module("libvirt_domain_info")["domains"][0]["interfaces"]]
    assert macs[0] == mac
    assert macs[1] != mac


def test_another_name_for_the_same_uuid_is_refused(embed: Embed) -> None:
    uuid = "<uuid>6b0b6a2e-6a0d-4f5e-8f0a-0a6f5d1b2c3d</uuid>"
    xml = embed.talker().replace("<name>", f"{uuid}<name>")
    embed.converge({"name": "talker", "xml": xml})
    result = embed.module("libvirt_domain", name="renamed", xml=xml.replace("talker<", "renamed<"))
    assert "is that of domain 'talker'. A new name does not rename a domain." in result["msg"]
    # Without dashes it is the same one.
    short = xml.replace("6b0b6a2e-6a0d-4f5e-8f0a-0a6f5d1b2c3d", "6B0B6A2E6A0D4F5E8F0A0A6F5D1B2C3D")
    assert plan_changes(embed.converge({"name": "talker", "xml": short})) == []
    renamed = embed.module("libvirt_domain", name="renamed", xml=short.replace("talker<", "renamed<"))
    assert "is that of domain 'talker'. A new name does not rename a domain." in renamed["msg"]


def test_a_diff_comes_only_when_it_is_asked_for(embed: Embed, run_module: t.Callable[..., dict[str, t.Any]]) -> None:
    embed.converge({"name": "talker", "xml": embed.talker()})
    args = {"uri": embed.uri, "name": "talker", "xml": embed.talker(description="two")}
    assert "diff" not in run_module("libvirt_domain", args, check=True)
    diff = run_module("libvirt_domain", args, check=True, diff=True)["diff"]
    assert diff == {"before": "talker description: one\n", "after": "talker description: two\n"}


def test_a_guest_that_died_during_the_run_is_seen_as_off_and_started_again(embed: Embed) -> None:
    wanted = {"name": "talker", "xml": embed.talker(), "state": "running"}
    embed.converge(wanted)
    pid = int((embed.root / "e" / "run" / "qemu" / "talker.pid").read_text(encoding="ascii"))
    os.kill(pid, signal.SIGKILL)
    done = embed.converge(wanted)
    assert [(row["before"], row["after"]) for row in done["plan"]] == [("shutoff", "running")]


# ---- edits of what runs ----------------------------------------------------------------------------------------------


def test_media_disks_and_interfaces_change_while_the_domain_runs(embed: Embed) -> None:
    cdrom = "<disk type='file' device='cdrom'>{0}<target dev='hdc' bus='ide'/><readonly/></disk>"
    for name in ("a.iso", "b.iso", "extra.raw"):
        (embed.root / name).write_bytes(bytes(1 << 20))
    disk = f"<disk type='file'><source file='{embed.root}/extra.raw'/><target dev='vda' bus='virtio'/></disk>"
    nic = "<interface type='user'><mac address='52:54:00:00:00:07'/><model type='virtio'/>{0}</interface>"
    first = cdrom.format(f"<source file='{embed.root}/a.iso'/>") + nic.format("")
    embed.converge({"name": "talker", "xml": embed.talker(devices=first), "state": "running"})
    second = cdrom.format(f"<source file='{embed.root}/b.iso'/>") + disk + nic.format("<link state='down'/>")
    wanted = {"name": "talker", "xml": embed.talker(devices=second), "state": "running"}
    planned = embed.converge(wanted, check=True)
    done = embed.converge(wanted)
    assert plan_changes(planned) == plan_changes(done)
    hows = {row["what"].partition("running ")[2]: row["how"] for row in done["plan"] if " running " in row["what"]}
    assert hows == {
        "devices/disk[hdc]": "updateDevice",
        "devices/disk[vda]": "attachDevice",
        "devices/interface[52:54:00:00:00:07]": "updateDevice",
    }
    assert done["domains"][0]["pending"] == []
    running = embed.libvirt("print(connection.lookupByName('talker').XMLDesc(0))")
    assert f"{embed.root}/b.iso" in running
    assert f"{embed.root}/extra.raw" in running
    assert "<link state='down'/>" in running
    assert embed.converge(wanted)["plan"] == []
    ejected = {
        "name": "talker",
        "xml": embed.talker(devices=cdrom.format("") + disk + nic.format("")),
        "state": "running",
    }
    assert embed.converge(ejected)["domains"][0]["pending"] == []
    assert "b.iso" not in embed.libvirt("print(connection.lookupByName('talker').XMLDesc(0))")
    assert embed.converge(ejected)["plan"] == []


def test_a_disk_that_the_guest_does_not_let_go_is_pending_and_asked_for_once(embed: Embed) -> None:
    (embed.root / "extra.raw").write_bytes(bytes(1 << 20))
    disk = f"<disk type='file'><source file='{embed.root}/extra.raw'/><target dev='vda' bus='virtio'/></disk>"
    embed.converge({"name": "talker", "xml": embed.talker(devices=disk), "state": "running"})
    wanted = {"name": "talker", "xml": embed.talker(), "state": "running"}
    done = embed.module("libvirt_domain", domains=[wanted])
    assert not done.get("failed"), done["msg"]
    assert "the guest does not follow" in str(done["warnings"])
    pending = [(row["what"], row["reason"]) for row in done["domains"][0]["pending"]]
    assert pending == [("devices/disk[vda]", "detach_pending")]
    again = embed.converge(wanted)
    assert (again["plan"], again["domains"][0]["pending"]) == ([], done["domains"][0]["pending"])


def test_a_disk_that_cannot_be_plugged_in_waits_for_a_restart_and_is_tried_once(embed: Embed) -> None:
    (embed.root / "extra.raw").write_bytes(bytes(1 << 20))
    disk = f"<disk type='file'><source file='{embed.root}/extra.raw'/><target dev='vda' bus='virtio'/></disk>"
    embed.converge({"name": "talker", "xml": embed.talker(features=""), "state": "running"})
    wanted = {"name": "talker", "xml": embed.talker(features="", devices=disk), "state": "running"}
    done = embed.module("libvirt_domain", domains=[wanted])
    assert not done.get("failed"), done["msg"]
    assert "does not support hotplugging" in str(done["warnings"])
    assert [(row["what"], row["reason"]) for row in done["domains"][0]["pending"]] == [("devices/disk[vda]", "restart")]
    again = embed.converge(wanted)
    assert (again["plan"], again["domains"][0]["pending"]) == ([], done["domains"][0]["pending"])
    restarted = embed.converge(wanted, apply="restart_if_needed", on_timeout="destroy", wait_seconds=1)
    assert restarted["domains"][0]["pending"] == []


def test_a_disk_without_its_file_is_tried_again(embed: Embed) -> None:
    disk = f"<disk type='file'><source file='{embed.root}/extra.raw'/><target dev='vda' bus='virtio'/></disk>"
    embed.converge({"name": "talker", "xml": embed.talker(), "state": "running"})
    wanted = {"name": "talker", "xml": embed.talker(devices=disk), "state": "running"}
    failed = embed.module("libvirt_domain", domains=[wanted])
    problem = failed["domains"][0]["error"]["problem"]
    assert problem.startswith("Changing devices/disk[vda] of the running domain talker failed: ")
    assert "extra.raw" in problem
    (embed.root / "extra.raw").write_bytes(bytes(1 << 20))
    done = embed.converge(wanted)
    assert [row["how"] for row in done["plan"]] == ["attachDevice"]
    assert done["domains"][0]["pending"] == []


def test_a_restart_if_needed_comes_with_the_refusal_and_leaves_a_paused_domain_paused(embed: Embed) -> None:
    (embed.root / "extra.raw").write_bytes(bytes(1 << 20))
    disk = f"<disk type='file'><source file='{embed.root}/extra.raw'/><target dev='vda' bus='virtio'/></disk>"
    options: dict[str, t.Any] = {"apply": "restart_if_needed", "on_timeout": "destroy", "wait_seconds": 1}
    embed.converge({"name": "talker", "xml": embed.talker(features=""), "state": "paused"})
    wanted = {"name": "talker", "xml": embed.talker(features="", devices=disk)}
    paused = embed.module("libvirt_domain", domains=[wanted], **options)
    assert not paused.get("failed"), paused["msg"]
    assert paused["domains"][0]["state"] == "paused"
    assert [row["reason"] for row in paused["domains"][0]["pending"]] == ["restart"]
    assert embed.converge(wanted, **options)["plan"] == []
    embed.converge({"name": "talker", "xml": embed.talker(features=""), "state": "shutdown"}, **options)
    embed.converge({"name": "talker", "xml": embed.talker(features=""), "state": "running"})
    done = embed.module("libvirt_domain", domains=[wanted], **options)
    assert not done.get("failed"), done["msg"]
    assert "does not support hotplugging" in str(done["warnings"])
    assert done["plan"][-1]["what"] == "talker restart"
    assert (done["domains"][0]["state"], done["domains"][0]["pending"]) == ("running", [])
    assert embed.converge(wanted, **options)["plan"] == []


# ---- overlays, purge, many at once -----------------------------------------------------------------------------------


@pytest.mark.scenario
def test_a_disk_stays_on_the_overlay_that_a_snapshot_put_above_it(embed: Embed) -> None:
    """Switched back to the file in the XML, the domain would lose what it wrote since, and the overlay its base."""
    wanted = {"name": "talker", "xml": embed.talker(), "state": "running"}
    embed.converge(wanted)
    overlay = embed.root / "talker.snap1"
    embed.libvirt(
        f"""
        xml = "<domainsnapshot><name>snap1</name><disks><disk name='hda' snapshot='external'>"
        xml += "<source file='{overlay}'/></disk></disks></domainsnapshot>"
        connection.lookupByName("talker").snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
        """
    )
    row = {"what": "devices/disk[hda]/source", "running": str(overlay), "stored": str(embed.image), "reason": "overlay"}
    for _state in ("running", "shutdown"):
        planned = embed.converge(wanted, check=True)
        again = embed.converge(wanted)
        assert (planned["plan"], again["plan"]) == ([], [])
        assert again["domains"][0]["pending"] == planned["domains"][0]["pending"] == [row]
        assert again["domains"][0]["plan_fidelity"] == "exact"
        wanted = {**wanted, "state": "shutdown"}
        embed.converge(wanted, on_timeout="destroy", wait_seconds=1)
    edited = {**wanted, "xml": embed.talker(description="two")}
    done = embed.converge(edited)
    assert plan_changes(done) == [("talker description", "one", "two")]
    assert embed.converge(edited)["domains"][0]["pending"] == [row]
    xml = embed.libvirt("print(connection.lookupByName('talker').XMLDesc(2))")
    assert f"<source file='{overlay}'" in xml
    assert "type='qcow2'" in xml
    # The overlay is what the disk is on, so that is what goes; what lies below was not named.
    done = embed.converge({"name": "talker", "state": "absent", "remove_disks": ["hda"]}, remove=["snapshots"])
    assert plan_changes(done)[1:] == [
        ("talker snapshots", ["snap1"], None),
        ("talker disk hda", str(overlay), None),
    ]
    assert embed.image.exists()
    assert not overlay.exists()


def test_purge_takes_what_was_ours_and_is_no_longer_in_the_list(embed: Embed) -> None:
    disks = {name: embed.root / f"{name}.img" for name in ("kept", "forgotten", "saved")}
    xmls = {}
    for name, path in disks.items():
        path.write_bytes(embed.image.read_bytes())
        xmls[name] = embed.talker(name).replace(str(embed.image), str(path))
    embed.converge(*({"name": name, "xml": xml} for name, xml in xmls.items()))
    embed.libvirt(f"connection.defineXML({embed.talker('foreign')!r})")
    embed.converge({"name": "saved", "state": "running"})
    embed.converge({"name": "saved", "state": "saved"})
    full = {"name": "kept", "xml": xmls["kept"]}
    refused = embed.module("libvirt_domain", domains=[full], purge=True)
    assert (
        "Undefining domain 'saved' would lose its managed save. Nothing was changed. Add managed_save to"
        in refused["msg"]
    )
    assert refused["changed"] is False
    planned = embed.converge(full, check=True, purge=True, remove=["managed_save"])
    done = embed.converge(full, purge=True, remove=["managed_save"])
    assert planned["plan"] == done["plan"]
    assert {row["what"] for row in done["plan"]} == {"forgotten definition", "saved definition", "saved managed_save"}
    assert "foreign" not in str(done["plan"]) + str(done["domains"])
    assert done["domains"][0]["name"] == "kept"
    assert {row["name"]: row["state"] for row in done["domains"]} == {
        "kept": "shutoff",
        "forgotten": "absent",
        "saved": "absent",
    }
    assert [row["name"] for row in embed.module("libvirt_domain_info")["domains"]] == ["foreign", "kept"]
    assert all(path.exists() for path in disks.values())
    assert embed.converge(full, purge=True)["plan"] == []
    assert "empty list" in embed.module("libvirt_domain", domains=[], purge=True)["msg"]
    assert "domains" in embed.module("libvirt_domain", name="kept", purge=True)["msg"]


def test_many_start_and_end_at_once_and_one_that_fails_hides_none(embed: Embed) -> None:
    names = [f"talker{number}" for number in range(5)]
    for name in names[1:]:
        (embed.root / f"{name}.img").write_bytes(embed.image.read_bytes())
    wanted = [
        {"name": name, "xml": embed.talker(name).replace("talker.img", f"{name}.img"), "state": "running"}
        for name in names
    ]
    result = embed.module("libvirt_domain", domains=wanted)
    errors = [row["error"] for row in result["domains"]]
    assert [row["name"] for row in result["domains"]] == names
    assert [row["state"] for row in result["domains"]] == ["shutoff", *["running"] * 4]
    assert "talker0.img" in errors[0]["problem"]
    assert errors[1:] == [None] * 4
    parts = ("definition", "state")
    assert [row["what"] for row in result["plan"][1:]] == [f"{name} {part}" for name in names for part in parts]
    off = [{"name": name, "state": "shutdown"} for name in names]
    stubborn = embed.module("libvirt_domain", domains=off, wait_seconds=1)
    assert [row["error"] is None for row in stubborn["domains"]] == [True, *[False] * 4]
    assert all("still running 1 s after shutdown" in row["error"]["problem"] for row in stubborn["domains"][1:])
    gone = [{"name": name, "state": "absent"} for name in names]
    done = embed.converge(*gone, on_timeout="destroy", wait_seconds=1)
    assert {row["state"] for row in done["domains"]} == {"absent"}


# ---- edits of each kind ----------------------------------------------------------------------------------------------

GRAPHICS = "<graphics type='vnc' passwd='{0}'/>"
CDROM = "<disk type='file' device='cdrom'>{0}<target dev='hdc' bus='ide'/><readonly/></disk>"
EDIT_NIC = "<interface type='user'><mac address='52:54:00:00:00:07'/><model type='{0}'/></interface>"


@pytest.mark.scenario
def test_edits_of_every_kind_give_their_rows_and_an_effect_or_a_pending_row(embed: Embed) -> None:
    """All kinds in one run: what the plan says, what libvirt then shows, what waits and for what."""
    for name in ("a.iso", "extra.raw"):
        (embed.root / name).write_bytes(bytes(1 << 20))
    medium = f"<source file='{embed.root}/a.iso'/>"
    disk = f"<disk type='file'><source file='{embed.root}/extra.raw'/><target dev='vda' bus='virtio'/></disk>"
    cpu = "<cpu mode='custom'><model>{0}</model></cpu>"
    before = embed.talker(
        memory=32, current=32, devices=CDROM.format("") + EDIT_NIC.format("e1000") + GRAPHICS.format("hunter1")
    ).replace("<devices>", cpu.format("qemu64") + "<devices>", 1)
    after = embed.talker(
        memory=40,
        current=40,
        vcpus=2,
        description="two",
        devices=CDROM.format(medium) + EDIT_NIC.format("virtio") + GRAPHICS.format("hunter2") + disk,
    ).replace("<devices>", cpu.format("Westmere") + "<devices>", 1)
    embed.converge({"name": "talker", "xml": before, "state": "running"})
    wanted = {"name": "talker", "xml": after, "state": "running"}
    planned = embed.converge(wanted, check=True)
    done = embed.converge(wanted)
    assert planned["plan"] == done["plan"]
    assert planned["domains"][0]["pending"] == done["domains"][0]["pending"]
    assert "hunter" not in str({key: value for key, value in done.items() if key != "invocation"})
    found = [(what.partition(" ")[2], old, new) for what, old, new in plan_changes(done)]
    stored = [row for row in found if not row[0].startswith("running ")]
    assert [row for row in stored if not row[0].startswith(("devices/controller", "devices/disk[vda]"))] == [
        ("description", "one", "two"),
        ("memory", "32768", "40960"),
        ("currentMemory", "32768", "40960"),
        ("vcpu@current", "1", None),
        ("cpu/model", "qemu64", "Westmere"),
        ("devices/disk[hdc]/source", None, f'<source file="{embed.root}/a.iso" />'),
        ("devices/interface[52:54:00:00:00:07]/model@type", "e1000", "virtio"),
        ("devices/graphics[vnc]@passwd", "********", "********"),
    ]
    pending = {row["what"]: row["reason"] for row in done["domains"][0]["pending"]}
    assert pending == {
        "memory": "restart",
        "currentMemory": "restart",
        "cpu/model": "restart",
        "devices/interface[52:54:00:00:00:07]/model@type": "restart",
    }
    assert {row[0] for row in found} - {row[0] for row in stored} == {
        "running description",
        "running vcpu@current",
        "running devices/disk[hdc]",
        "running devices/disk[vda]",
        "running devices/graphics[vnc]",
    }
    running = embed.libvirt("print(connection.lookupByName('talker').XMLDesc(1))")
    for there in ("a.iso", "extra.raw", "hunter2", "<vcpu placement='static'>2<", "e1000"):
        assert there in running
    again = embed.converge(wanted)
    assert (again["plan"], again["domains"][0]["pending"]) == ([], done["domains"][0]["pending"])
    restarted = embed.converge(wanted, apply="restart_if_needed", on_timeout="destroy", wait_seconds=1)
    assert restarted["domains"][0]["pending"] == []
    running = embed.libvirt("print(connection.lookupByName('talker').XMLDesc(1))")
    for there in ("Westmere", "<model type='virtio'/>", ">40960<"):
        assert there in running
