# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A converge that is cut off at a random moment: the module, the daemon or the guests are killed.

The next run converges, no file is lost, and no domain is left half defined.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
import typing as t
import xml.etree.ElementTree as ET

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.system_daemon import SystemDaemon, system_daemon

TRIALS = 30
SEED = int(os.environ.get("TAPVIRT_SEED", random.randrange(10_000)))
IMAGES = "/var/lib/libvirt/images"
DISKS = ["web", "db", "old", "new"]
XML = """
<domain type='qemu'>
  <name>{name}</name>
  <description>{description}</description>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/var/lib/libvirt/images/{name}.img'/><target dev='hda' bus='ide'/>
    </disk>
    <interface type='user'><model type='e1000'/></interface>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def domain(name: str, state: str, **changes: t.Any) -> dict[str, t.Any]:
    values = {"description": "one", "memory": 32, **changes}
    autostart = values.pop("autostart", False)
    return {"name": name, "state": state, "autostart": autostart, "xml": XML.format(name=name, **values)}


# Between these two the host goes to and fro. Paused guests do all that is asked of them and cost no processor.
ONE = [domain("web", "paused"), domain("db", "shutdown", autostart=True), domain("old", "paused")]
ONE += [{"name": "new", "state": "absent"}]
OTHER = [domain("web", "paused", description="other"), domain("db", "paused", memory=48)]
OTHER += [{"name": "old", "state": "absent"}, domain("new", "paused")]
STAY = {"web", "db"}


@pytest.fixture(scope="module")
def libvirtd() -> t.Iterator[SystemDaemon]:
    with system_daemon() as daemon:
        daemon.path(IMAGES).mkdir()
        for name in DISKS:
            daemon.path(f"{IMAGES}/{name}.img").write_bytes(os.urandom(65536))
        yield daemon


def options(wanted: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    return {"domains": wanted, "on_timeout": "destroy", "wait_seconds": 2}


def disks(daemon: SystemDaemon) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(daemon.path(IMAGES).iterdir())}


def stored(daemon: SystemDaemon) -> dict[str, str | None]:
    """Return the description of every definition on disk: one that is half there does not parse."""
    files = daemon.path("/etc/libvirt/qemu").glob("*.xml")
    roots = [ET.parse(path).getroot() for path in files]
    return {str(root.findtext("name")): root.findtext("description") for root in roots}


@pytest.mark.soak  # 5 minutes
@pytest.mark.scenario
def test_the_next_run_converges_whenever_one_was_cut_off(libvirtd: SystemDaemon) -> None:
    chance = random.Random(SEED)
    libvirtd.done("libvirt_domain", **options(ONE))
    started = time.monotonic()
    libvirtd.done("libvirt_domain", **options(OTHER))
    whole = time.monotonic() - started
    before = disks(libvirtd)
    hits = 0
    for number in range(TRIALS):
        what = ("module", "daemon", "guests")[number % 3]
        moment = chance.uniform(0, whole)
        wanted = (ONE, OTHER)[number % 2]
        description = f"trial {number} of seed {SEED}: {what} killed after {moment:.2f} s of {whole:.2f} s"
        process = libvirtd.begin("libvirt_domain", options(wanted))
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            hits += 1
            {"module": process.kill, "daemon": libvirtd.kill, "guests": libvirtd.kill_guests}[what]()
        process.communicate(timeout=120)
        if what == "module":
            # What a real power cut would end too; a daemon that lives on has finished the call it was at.
            libvirtd.kill()
        assert disks(libvirtd) == before, description
        left = stored(libvirtd)
        assert set(left) >= STAY, description
        assert set(left.values()) <= {"one", "other"}, description
        listed = set(libvirtd.run("virsh", "-q", "list", "--all", "--name").split())
        assert listed >= set(left), description
        after = libvirtd.module("libvirt_domain", **options(wanted))
        assert not after.get("failed"), f"{description}: {after['msg']}"
        again = libvirtd.done("libvirt_domain", check=True, **options(wanted))
        assert again["plan"] == [], description
        assert disks(libvirtd) == before, description
        assert stored(libvirtd) == {
            row["name"]: "other" if "other" in row.get("xml", "") else "one"
            for row in wanted
            if row["state"] != "absent"
        }, description
    assert hits >= TRIALS / 3, f"only {hits} of {TRIALS} came before the run's end"
