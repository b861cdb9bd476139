# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role virt_host on a lab host that has libvirt: looked at, refused, prepared, and nothing left to do."""

from __future__ import annotations

import typing as t

import pytest

from .support.tasks import role_task

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts, PlaybookResult

pytestmark = [pytest.mark.soak, pytest.mark.scenario]
HOST = "trace1"
USER, NAME = "games", "virt-host-test"
FOLDER, CONFIG, SAVED = f"/var/tmp/{NAME}", "/etc/libvirt/virtlogd.conf", f"/etc/libvirt/virtlogd.conf.{NAME}"
FILTERS = ["4:virt_host_test"]
WANTED: dict[str, t.Any] = {
    "virt_host_packages": ["libvirt-daemon-system", "python3-libvirt"],
    "virt_host_users": [USER],
    "virt_host_logging": [{"daemon": "virtlogd", "log_filters": FILTERS}],
    "virt_host_networks": [{"name": NAME, "xml": "<network/>", "state": "active"}],
    "virt_host_pools": [
        {"name": NAME, "state": "active", "xml": f"<pool type='dir'><target><path>{FOLDER}</path></target></pool>"}
    ],
}


@pytest.fixture
def prepare(lab: LabHosts) -> t.Iterator[t.Callable[..., PlaybookResult]]:
    """A function that runs the role with variables; the host is restored afterwards."""
    begin = f"set -e; mkdir {FOLDER}; touch {CONFIG}; cp -a {CONFIG} {SAVED}; virt-admin -c virtlogd:///system"
    before = lab.run(HOST, "sh", "-c", f"{begin} daemon-log-filters")
    assert before.returncode == 0, before.stderr
    found = before.stdout.partition(":")[2].strip()

    def run(*options: str, **wanted: t.Any) -> PlaybookResult:
        return lab.run_tasks(HOST, [role_task("virt_host", wanted)], *options)

    yield run
    end = (
        f"gpasswd -d {USER} libvirt; virsh net-destroy {NAME}; virsh net-undefine {NAME}; virsh pool-destroy {NAME};"
        f"virsh pool-undefine {NAME}; rmdir {FOLDER}; mv {SAVED} {CONFIG};"
        f"virt-admin -c virtlogd:///system daemon-log-filters --filters '{found}'"
    )
    lab.run(HOST, "sh", "-c", end)
    assert role_effects(lab) == [""]


def role_effects(lab: LabHosts) -> list[str]:
    """Return what the role made: the user's group, the network, the pool and the log filter."""
    command = (
        f"id -nG {USER} | grep -wo libvirt; virsh -q net-list --name | grep {NAME};"
        f"virsh -q pool-list --name | grep {NAME};"
        f"virt-admin -c virtlogd:///system daemon-log-filters | grep -o virt_host_test; grep -o virt_host_test {CONFIG}"
    )
    return lab.shell(HOST, command, check=False).split("\n")


def test_debian_host_is_prepared_once(lab: LabHosts, prepare: t.Callable[..., PlaybookResult]) -> None:
    bare = prepare("--check", **{**WANTED, "virt_host_packages": ["cowsay"]})
    assert (bare.rc, bare.recap[HOST]["changed"]) == (0, 1), bare.stdout[-3000:]
    assert "Packages would be installed." in bare.stdout
    planned = prepare("--check", **WANTED)
    assert planned.rc == 0, planned.stdout[-3000:]
    assert "Packages would be installed." not in planned.stdout
    assert role_effects(lab) == [""]
    for wrong in ({"virt_host_users": [USER, "nobody-at-all"]}, {"virt_host_logging": [{"daemon": "virtlod"}]}):
        refused = prepare(**{**WANTED, **wrong})
        assert refused.rc != 0
        assert refused.recap[HOST]["changed"] == 0
    done = prepare(**WANTED)
    assert done.rc == 0, done.stdout[-3000:]
    assert done.recap[HOST]["changed"] == planned.recap[HOST]["changed"] == 4
    assert role_effects(lab) == ["libvirt", NAME, NAME, "virt_host_test", "virt_host_test"]
    again = prepare(**WANTED)
    assert (again.rc, again.recap[HOST]["changed"]) == (0, 0), again.stdout[-3000:]
