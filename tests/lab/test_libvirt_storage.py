# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage pools and volumes of a lab host, under the system's own daemon, with a KVM domain that uses a volume."""

from __future__ import annotations

import typing as t

import pytest

from .support.tasks import module_task

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts

# The unit tests have the same on a real libvirt, too; here it is the daemon of a host, and takes minutes.
pytestmark = pytest.mark.soak
HOST = "trace2"
POOL = DOMAIN = "libvirt-storage-test"
PATH = f"/var/lib/libvirt/images/{POOL}"
MIB = 1 << 20
SOURCE = "/usr/bin/qemu-img"
DISK_XML = f"""
<domain type='kvm'>
  <name>{DOMAIN}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='qcow2'/><source pool='{POOL}' volume='top'/><target dev='hda' bus='ide'/>
    </disk>
  </devices>
</domain>
"""
POOL_ARGS = {"name": POOL, "xml": f"<pool type='dir'><target><path>{PATH}</path></target></pool>", "state": "active"}
VOLUMES: list[dict[str, t.Any]] = [
    {"name": "base", "format": "qcow2", "capacity": "8MiB"},
    {"name": "top", "backing": {"path": f"{PATH}/base", "format": "qcow2"}, "capacity": "16 MiB"},
    {"name": "up", "source": SOURCE, "checksum": "{{ source.stat.checksum }}"},
    {"name": "copy", "clone_from": "up", "capacity": "32MB"},
]


@pytest.fixture(scope="module")
def storage(lab: LabHosts) -> t.Iterator[dict[str, t.Any]]:
    """The results by task of a playbook that makes a pool, volumes, and a running domain on one of them."""
    wanted = {"volumes": [{"pool": POOL, **volume} for volume in VOLUMES]}
    tasks = [
        module_task("Pool", "libvirt_pool", POOL_ARGS),
        {"name": "Source", "ansible.builtin.stat": {"path": SOURCE, "checksum_algorithm": "sha256"}},
        module_task("Planned", "libvirt_volume", wanted, check_mode=True),
        module_task("Done", "libvirt_volume", wanted),
        module_task("Again", "libvirt_volume", wanted),
        module_task("Domain", "libvirt_domain", {"name": DOMAIN, "xml": DISK_XML, "state": "running"}),
        module_task("Info", "libvirt_volume_info", {"pools": [POOL]}),
        module_task("Deleted", "libvirt_volume", {"pool": POOL, "name": "top", "state": "absent"}, ignore_errors=True),
        module_task("Stopped", "libvirt_pool", {**POOL_ARGS, "state": "absent"}, ignore_errors=True),
    ]
    tasks[1]["register"] = "source"
    run = lab.run_tasks(HOST, tasks)
    gone = [
        module_task(
            "Off", "libvirt_domain", {"name": DOMAIN, "state": "absent", "on_timeout": "destroy", "wait_seconds": 1}
        ),
        module_task("Pool gone", "libvirt_pool", {"name": POOL, "state": "absent"}),
    ]
    try:
        assert run.rc == 0, run.stdout
        yield run.by_task()
    finally:
        left = lab.run_tasks(HOST, gone)
        kept = lab.run(HOST, "ls", PATH).stdout.split()
        lab.run(HOST, "rm", "-rf", PATH)
        assert left.rc == 0, left.stdout
        assert run.rc or kept == ["base", "copy", "top", "up"], "a pool that goes must never take a volume"


def test_check_mode_returns_the_real_plan_and_a_second_run_is_empty(storage: dict[str, t.Any]) -> None:
    assert storage["Pool"]["pools"][0]["state"] == "active"
    assert storage["Planned"]["plan"] == storage["Done"]["plan"]
    assert (storage["Again"]["changed"], storage["Again"]["plan"]) == (False, [])
    size = storage["Source"]["stat"]["size"]
    assert {row["name"]: (row["format"], row["capacity_bytes"]) for row in storage["Done"]["volumes"]} == {
        "base": ("qcow2", 8 * MIB),
        "top": ("qcow2", 16 * MIB),
        "up": ("raw", size),
        "copy": ("raw", 32000000),
    }
    assert storage["Done"]["volumes"][2]["checksum"] == storage["Source"]["stat"]["checksum"]


def test_volumes_of_a_running_domain_are_not_deleted(storage: dict[str, t.Any]) -> None:
    used = {row["name"]: row["used_by"] for row in storage["Info"]["volumes"]}
    assert used == {"base": [DOMAIN], "top": [DOMAIN], "up": [], "copy": []}
    for name, thing in (("Deleted", "the volume"), ("Stopped", f"pool '{POOL}'")):
        assert f" use {thing}: {DOMAIN}. " in storage[name]["msg"], name
        assert storage[name]["changed"] is False, name
