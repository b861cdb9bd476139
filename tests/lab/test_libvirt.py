# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt on the lab's hosts: KVM domains under the daemon, their console, their exits, bad input on a real host."""

from __future__ import annotations

import collections
import re
import typing as t

import pytest
from ansible_collections.tapvirt.host.playbooks.filter_plugins.boot_sector import boot_sector

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts

HOST = "trace4"
IMAGE = "/var/lib/libvirt/images/libvirt-test.img"
POOL = "/var/lib/libvirt/images/libvirt-test"
POOLED = f"{POOL}/quiet.img"
LINE = "libvirt test of the lab"
XML = """
<domain type='kvm'>
  <name>NAME</name>
  <memory unit='MiB'>16</memory>
  <vcpu current='1'>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='IMAGE'/><target dev='hda' bus='ide'/>
    </disk>
    <serial type='pty'/>
  </devices>
</domain>
"""
TALKER, QUIET = "libvirt-test-talker", "libvirt-test-quiet"


def domain_xml(name: str, image: str = IMAGE) -> str:
    """Return the XML of a domain with one disk."""
    return XML.replace("NAME", name).replace("IMAGE", image)


def run_domains(lab: LabHosts, domains: list[dict[str, t.Any]], check: bool = False, **args: t.Any) -> dict[str, t.Any]:
    """Run libvirt_domain on the host with a list of domains."""
    return lab.ansible(HOST, "tapvirt.host.libvirt_domain", {"domains": domains, **args}, check=check)[HOST]


@pytest.fixture(scope="module")
def talker(lab: LabHosts, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[dict[str, t.Any]]:
    """The results by task of a playbook that defines two domains and runs the boot sector in one of them."""
    template = tmp_path_factory.mktemp("libvirt") / "boot_sector.img.j2"
    template.write_text("{{- sector | b64decode('iso-8859-1') }}", encoding="ascii")
    disk = {"src": str(template), "dest": IMAGE, "output_encoding": "iso-8859-1", "mode": "0644"}
    wanted = [
        {"name": TALKER, "xml": domain_xml(TALKER), "state": "running"},
        {"name": QUIET, "xml": domain_xml(QUIET, POOLED)},
    ]
    pool = f"mkdir {POOL} && cp {IMAGE} {POOLED} && virsh -q pool-create-as libvirt-test dir --target {POOL}"
    needed = {"name": QUIET, "state": "absent", "remove_disks": ["hda"]}
    renamed = {"name": "libvirt-test-renamed", "xml": domain_xml("libvirt-test-renamed")}
    tasks: list[dict[str, t.Any]] = [
        {"name": "Disk", "ansible.builtin.template": disk, "vars": {"sector": boot_sector(LINE)}},
        {"name": "Pool", "ansible.builtin.shell": pool},
        {"name": "Planned", "tapvirt.host.libvirt_domain": {"domains": wanted}, "check_mode": True},
        {"name": "Done", "tapvirt.host.libvirt_domain": {"domains": wanted}},
        {"name": "Again", "tapvirt.host.libvirt_domain": {"domains": wanted}},
        {
            "name": "Console",
            "tapvirt.host.libvirt_console": {"name": TALKER, "until": f"^{LINE}$", "timeout_seconds": 60},
        },
        {"name": "Info", "tapvirt.host.libvirt_domain_info": {"names": [QUIET, TALKER]}},
        {
            "name": "Renamed",
            "tapvirt.host.libvirt_domain": {"domains": [renamed]},
            "register": "refused",
            "failed_when": "refused is not failed",
        },
        {"name": "Removal planned", "tapvirt.host.libvirt_domain": {"domains": [needed]}, "check_mode": True},
        {"name": "Removed", "tapvirt.host.libvirt_domain": {"domains": [needed]}},
        {"name": "Left", "ansible.builtin.command": f"find {POOL} {IMAGE} -type f"},
    ]
    run = lab.run_tasks(HOST, tasks)
    try:
        assert run.rc == 0, run.stdout
        yield run.by_task()
    finally:
        gone = [{"name": name, "state": "absent"} for name in (TALKER, QUIET)]
        left = run_domains(lab, gone, on_timeout="destroy", wait_seconds=1)
        kept = lab.run(HOST, "stat", "-c", "%s", IMAGE)
        lab.run(HOST, "sh", "-c", f"virsh pool-destroy libvirt-test; rm -rf {IMAGE} {POOL}")
        assert [row["state"] for row in left["domains"]] == ["absent", "absent"]
        assert kept.stdout.strip() == "512", "absent must never take a disk"


def test_check_mode_returns_the_real_plan_and_a_second_run_is_empty(talker: dict[str, t.Any]) -> None:
    assert talker["Planned"]["plan"] == talker["Done"]["plan"]
    assert [row["state"] for row in talker["Done"]["domains"]] == ["running", "shutoff"]
    assert [row["plan_fidelity"] for row in talker["Done"]["domains"]] == ["exact", "exact"]
    assert (talker["Again"]["changed"], talker["Again"]["plan"]) == (False, [])
    assert [row["pending"] for row in talker["Again"]["domains"]] == [[], []]


def test_console_and_info_of_a_kvm_domain(talker: dict[str, t.Any]) -> None:
    assert talker["Console"]["matched"]
    assert [row["state"] for row in talker["Info"]["domains"]] == ["shutoff", "running"]
    assert talker["Info"]["domains"][1]["type"] == "kvm"


def test_only_the_named_disk_is_deleted_and_a_disk_in_use_is_refused(talker: dict[str, t.Any]) -> None:
    assert "is in use as disk hda of domain" in talker["Renamed"]["msg"]
    assert talker["Removal planned"]["plan"] == talker["Removed"]["plan"]
    rows = [(row["what"], row["before"], row["how"]) for row in talker["Removed"]["plan"]]
    assert rows[1:] == [(f"{QUIET} disk hda", POOLED, "deleteVolume")]
    assert talker["Left"]["stdout_lines"] == [IMAGE]


def test_every_line_of_the_boot_sector_costs_the_same_exits(lab: LabHosts, talker: dict[str, t.Any]) -> None:
    """The kernel's own tracepoint: between two halts, one I/O exit a byte and one for the timer, always."""
    script = f"""
        T=/sys/kernel/tracing; mountpoint -q $T || mount -t tracefs none $T
        mkdir -p $T/instances/libvirt-test; cd $T/instances/libvirt-test
        ls /proc/$(cat /run/libvirt/qemu/{TALKER}.pid)/task > set_event_pid
        echo 1 > events/kvm/kvm_exit/enable; sleep 2; echo 0 > events/kvm/kvm_exit/enable
        grep -o 'reason [a-z_]*' trace; cd /; rmdir $T/instances/libvirt-test
    """
    reasons = re.findall(r"reason (\w+)", lab.run(HOST, "sh", "-c", script, timeout=120).stdout)
    lines, count = [], collections.Counter[str]()
    for reason in reasons:
        if reason == "hlt":
            lines.append(count["io"])
            count.clear()
        count[reason] += 1
    assert len(lines) > 5
    assert set(lines[1:]) == {len(LINE) + 3}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            QUIET,
            domain_xml(QUIET, POOLED).replace("memory", "memroy"),
            "<memroy> is not an element of a domain. Did you mean memory",
        ),
        ("../" + QUIET, domain_xml(QUIET, POOLED), "domains[1].name: A name cannot be a path: "),
    ],
)
def test_bad_input_changes_nothing(lab: LabHosts, talker: dict[str, t.Any], name: str, text: str, message: str) -> None:
    fine = {"name": "libvirt-test-fine", "xml": domain_xml("libvirt-test-fine", POOLED + "2"), "state": "running"}
    result = run_domains(lab, [fine, {"name": name, "xml": text}])
    assert message in result["msg"]
    assert "\n" not in result["msg"]
    assert "libvirt-test-fine" not in lab.run(HOST, "virsh", "list", "--all", "--name").stdout
