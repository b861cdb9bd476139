# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A paravirtual guest on a real Xen, from definition to removal, twice; Domain-0 is never changed."""

from __future__ import annotations

import pytest

from .support.tasks import module_task

HOST = "xen1"
URI = "xen:///system"
NAME = "xen-test"
# The dom0's own kernel: it prints to Xen's console and ends in the shell of its initial file system.
XML = """
<domain type='xen'>
  <name>xen-test</name>
  <memory unit='MiB'>{most}</memory>
  <currentMemory unit='MiB'>{now}</currentMemory>
  <vcpu current='{vcpus}'>2</vcpu>
  <os>
    <type arch='x86_64' machine='xenpv'>linux</type>
    <kernel>/boot/vmlinuz-{release}</kernel>
    <initrd>/boot/initrd.img-{release}</initrd>
    <cmdline>console=hvc0 root=/dev/none</cmdline>
  </os>
  <devices><console type='pty'><target type='xen' port='0'/></console></devices>
</domain>
"""


@pytest.fixture
def xen_release(lab):
    """The release of the dom0's kernel; the guest is removed afterwards."""
    if HOST not in lab.hosts:
        pytest.skip("xen1 is only started when it is named: ./dev lab up xen1")
    release = lab.release(HOST)
    yield release
    lab.run(HOST, "sh", "-c", f"virsh -c {URI} destroy {NAME}; virsh -c {URI} undefine {NAME}")


def life_of_a_guest(release):
    """Return the steps in the life of a guest as (name, module, options)."""

    def domain(state, now=160, vcpus=1, **more):
        xml = XML.format(release=release, most=192, now=now, vcpus=vcpus)
        return {"uri": URI, "domains": [{"name": NAME, "state": state, "xml": xml, **more}], "wait_seconds": 120}

    gone = {"uri": URI, "name": NAME, "state": "absent", "on_timeout": "destroy", "wait_seconds": 5}
    off = {"uri": URI, "name": NAME, "state": "shutdown", "on_timeout": "destroy", "wait_seconds": 60}
    console = {"uri": URI, "name": NAME, "start": True, "until": "Linux version|Run /init", "timeout_seconds": 120}
    return [
        ("define", "libvirt_domain", domain("present")),
        ("start and read", "libvirt_console", console),
        ("run", "libvirt_domain", domain("running")),
        ("less memory", "libvirt_domain", domain("running", now=128)),
        ("more processors", "libvirt_domain", domain("running", now=128, vcpus=2)),
        ("shut down", "libvirt_domain", off),
        ("start", "libvirt_domain", domain("running", now=128, vcpus=2)),
        ("absent", "libvirt_domain", gone),
    ]


@pytest.mark.scenario
def test_every_step_of_a_guest_is_done_once(lab, xen_release):
    tasks = []
    for turn in ("first", "second"):
        for name, module, args in life_of_a_guest(xen_release):
            for again in ("", " again"):
                if module == "libvirt_console" and again:
                    continue
                tasks.append(module_task(f"{turn}: {name}{again}", module, args))
    run = lab.run_tasks(HOST, tasks, timeout=1800)
    assert run.rc == 0, run.stdout[-3000:]
    for turn in ("first", "second"):
        assert run.of(HOST, f"{turn}: start and read")["matched"]
        for name, module, _args in life_of_a_guest(xen_release):
            if module == "libvirt_domain":
                done, again = (run.of(HOST, f"{turn}: {name}{word}") for word in ("", " again"))
                assert done["changed"] is (name != "run"), (turn, name, done["plan"])
                assert again["plan"] == [], (turn, name)
        (row,) = run.of(HOST, f"{turn}: less memory")["domains"]
        assert row["pending"] == [] or {item["reason"] for item in row["pending"]} == {"guest"}


def test_domain_0_is_neither_listed_nor_changed(lab, xen_release):
    info = lab.ansible(HOST, "tapvirt.host.libvirt_domain_info", {"uri": URI})[HOST]
    assert "Domain-0" not in [row["name"] for row in info["domains"]]
    for state in ("shutdown", "absent", "paused"):
        refused = lab.ansible(HOST, "tapvirt.host.libvirt_domain", {"uri": URI, "name": "Domain-0", "state": state})
        assert refused[HOST]["failed"] and refused[HOST]["changed"] is False
        assert "Domain-0" in refused[HOST]["msg"]
    assert "running" in lab.run(HOST, "virsh", "-c", URI, "domstate", "Domain-0").stdout
