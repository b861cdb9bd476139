# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of a KVM domain under libvirt's daemon, which can merge external snapshots and revert to them."""

from __future__ import annotations

import typing as t

import pytest

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts

# The unit tests use this machine's libvirt; here it is the daemon of a host with a later version, and takes minutes.
pytestmark = [pytest.mark.soak, pytest.mark.scenario]
HOST = "trace3"
NAME = "snapshot-test"
IMAGES = "/var/lib/libvirt/images"
XML = f"""
<domain type='kvm'>
  <name>{NAME}</name>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file'>
      <driver name='qemu' type='qcow2'/><source file='{IMAGES}/{NAME}.qcow2'/><target dev='vda'/>
    </disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""
FILES = {name: f"{IMAGES}/{NAME}.{name}" for name in ("qcow2", "over", "whole", "memory")}


def domain_args(state: str) -> dict[str, t.Any]:
    """Return the options of the domain."""
    return {"name": NAME, "state": state, "on_timeout": "destroy", "wait_seconds": 1}


def snapshot_args(name: str, **options: t.Any) -> dict[str, t.Any]:
    """Return the options of a snapshot of the domain."""
    return {"domain": NAME, "name": name, **options}


OVER = snapshot_args("over", kind="external")
WHOLE = snapshot_args("whole", kind="external", memory_file=FILES["memory"])
STEPS: list[tuple[str, str, dict[str, t.Any]]] = [
    ("Define", "domain", {**domain_args("running"), "xml": XML}),
    ("Inside", "snapshot", snapshot_args("inside")),
    ("Back inside", "snapshot", snapshot_args("inside", state="reverted")),
    ("Gone inside", "snapshot", snapshot_args("inside", state="absent")),
    ("Outside, planned", "snapshot", {"snapshots": [OVER, WHOLE]}),
    ("Outside", "snapshot", {"snapshots": [OVER, WHOLE]}),
    ("Outside again", "snapshot", {"snapshots": [OVER, WHOLE]}),
    ("Back outside, planned", "snapshot", snapshot_args("over", state="reverted")),
    ("Back outside", "snapshot", snapshot_args("over", state="reverted")),
    ("Info", "snapshot_info", {"domains": [NAME]}),
    ("Gone, planned", "snapshot", snapshot_args("over", state="absent", with_children=True)),
    ("Gone", "snapshot", snapshot_args("over", state="absent", with_children=True)),
]


@pytest.fixture(scope="module")
def steps(lab: LabHosts) -> t.Iterator[dict[str, t.Any]]:
    """The results of one playbook by step; the domain and its files are deleted afterwards."""
    create = f"qemu-img create -q -f qcow2 {FILES['qcow2']} 1M"
    find = f"find {IMAGES} -name '{NAME}.*'"
    tasks: list[dict[str, t.Any]] = [{"name": "Image", "ansible.builtin.command": create}]
    tasks += [
        {"name": name, f"tapvirt.host.libvirt_{module}": args, "check_mode": name.endswith("planned")}
        for name, module, args in STEPS
    ]
    tasks.append({"name": "Files", "ansible.builtin.command": find})
    run = lab.run_tasks(HOST, tasks)
    try:
        assert run.rc == 0, run.stdout
        yield run.by_task()
    finally:
        end = ["virsh destroy NAME", "virsh undefine --snapshots-metadata NAME", f"rm -f {IMAGES}/NAME.*"]
        lab.run(HOST, "sh", "-c", "; ".join(end).replace("NAME", NAME))


def test_check_mode_returns_the_real_plan_and_a_second_run_is_empty(steps: dict[str, t.Any]) -> None:
    for name in ("Outside", "Back outside", "Gone"):
        assert steps[f"{name}, planned"]["plan"] == steps[name]["plan"]
        assert steps[name]["changed"]
    assert steps["Outside again"]["plan"] == []


def test_internal_snapshots_include_the_memory(steps: dict[str, t.Any]) -> None:
    assert steps["Inside"]["plan"][0]["after"]["memory"] == "internal"
    assert [row["domain_state"] for row in steps["Back inside"]["snapshots"]] == ["running"]
    assert [row["state"] for row in steps["Gone inside"]["snapshots"]] == ["absent"]


def test_revert_lists_the_deleted_overlays_and_keeps_the_images(steps: dict[str, t.Any]) -> None:
    rows = {row["what"]: row["after"] for row in steps["Back outside"]["plan"]}
    assert rows[f"{NAME} disk vda"] == f"a new overlay above {FILES['qcow2']}, named by libvirt"
    assert rows[f"{NAME} file {FILES['whole']}"] is None
    (row,) = steps["Back outside"]["snapshots"]
    assert (row["domain_state"], row["current"]) == ("shutoff", True)
    assert row["disks"][0]["source"] not in FILES.values()
    found = {item["name"]: item for item in steps["Info"]["snapshots"]}
    assert found["over"]["files"] == [FILES["over"], row["disks"][0]["source"]]
    assert (found["whole"]["parent"], found["whole"]["memory"]) == ("over", "external")


def test_only_the_image_remains_after_deletion(steps: dict[str, t.Any]) -> None:
    gone = {row["what"].rpartition("/")[2] for row in steps["Gone"]["plan"] if " file " in row["what"]}
    branch = steps["Back outside"]["snapshots"][0]["disks"][0]["source"].rpartition("/")[2]
    assert gone == {f"{NAME}.over", f"{NAME}.memory", branch}
    assert [disk["source"] for disk in steps["Gone"]["snapshots"][0]["disks"]] == [FILES["qcow2"]]
    assert steps["Files"]["stdout"] == FILES["qcow2"]
