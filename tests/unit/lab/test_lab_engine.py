# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the lab's engine that need no lab."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from engine import describe, inventory, machines, packages, process, qemu, ssh, state
from engine.commands import last_lines
from engine.errors import LabError
from engine.lab import Lab
from engine.store import Store, digest

LAB = Path(describe.__file__).resolve().parents[1]


@pytest.fixture
def description():
    return describe.read(LAB / "lab.toml")


def test_the_dom0_is_only_up_when_it_is_named(description):
    assert "xen1" not in [host.name for host in description.choose(None)]
    assert [host.name for host in description.choose(["xen1", "trace1", "xen1"])] == ["xen1", "trace1"]


def test_an_unknown_host_is_named_together_with_the_known_ones(description):
    with pytest.raises(LabError, match=r"no host trace9; it has trace1, trace2"):
        description.choose(["trace1", "trace9"])


def test_a_builder_serves_the_kernels_of_the_hosts_beside_it_and_all_of_them_alone(description):
    hosts = description.hosts
    assert description.kernels_for([hosts["trace2"], hosts["trace4"], hosts["builder"]]) == ["trixie"]
    assert description.kernels_for([hosts["builder"]]) == ["bookworm", "trixie", "forky"]


@pytest.mark.parametrize(
    "text",
    ["[hosts", "[hosts.a]\nkind='guest'\n[roots]", "[hosts.a]\nkind='ghost'\ngroups=[]\n[roots]",
     "[hosts.a]\nkind='guest'\ngroups=[]\n[roots]"],
)  # fmt: skip
def test_a_wrong_description_is_refused_in_words(tmp_path, text):
    path = tmp_path / "lab.toml"
    path.write_text(text)
    with pytest.raises(LabError):
        describe.read(path)


def test_only_packages_of_the_kernel_itself_are_followed():
    record = (
        "Package: linux-headers-7.2.12+deb14-cloud-amd64\n"
        "Depends: gcc-16-for-host, linux-base (>= 4.12~), linux-base-7.2.12+deb14-cloud-amd64 (= 7.2.12-1),"
        " linux-image-1 | linux-image-2, linux-compiler-gcc-12-x86, linux-kbuild-7.2.12+deb14\n"
    )
    assert packages.dependencies(record) == [
        "linux-base-7.2.12+deb14-cloud-amd64",
        "linux-image-1",
        "linux-kbuild-7.2.12+deb14",
    ]
    assert packages.dependencies("Package: x\n") == []


def test_an_artifact_is_built_once_however_many_ask(tmp_path):
    store = Store(tmp_path, lambda _sentence: None)
    built = []

    def build(out):
        built.append(out)
        (out / "content").write_text("whole")

    threads = [threading.Thread(target=store.ensure, args=("disk", ["recipe"], build)) for _number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (store.path("disk", ["recipe"]) / "content").read_text() == "whole"
    assert store.path("disk", ["recipe"]) != store.path("disk", ["other recipe"])


def test_an_interrupted_build_leaves_no_artifact_and_does_not_hinder_the_next(tmp_path):
    store = Store(tmp_path, lambda _sentence: None)

    def interrupted(out):
        (out / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.ensure("disk", 1, interrupted)
    assert not store.path("disk", 1).exists()
    made = store.ensure("disk", 1, lambda out: (out / "all").write_text(""))
    assert [path.name for path in made.iterdir()] == ["all"]


def test_a_dropped_artifact_is_gone(tmp_path):
    store = Store(tmp_path, lambda _sentence: None)
    made = store.ensure("disk", 1, lambda _out: None)
    store.prune()
    assert made.exists()
    store.prune(days=-1)
    assert not made.exists()


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": (2,)}) == digest({"b": [2], "a": 1})


def test_a_process_is_ended_only_if_it_is_the_one_that_was_started():
    child = subprocess.Popen(["sleep", "60"])
    try:
        started = process.start_time(child.pid)
        assert started is not None
        process.end(child.pid, started + 1)
        assert process.is_running(child.pid, started)
        process.end(child.pid, started)
        assert not process.is_running(child.pid, started)
    finally:
        child.kill()
        child.wait()


def test_a_port_is_no_part_of_what_a_snapshot_depends_on(description):
    disk = machines.Disk(Path("/cache/disk-1"), "6.1")
    host = description.hosts["trace1"]
    saved, started = (machines.words(host, disk, "tcg", port, str) for port in (0, 20022))
    assert "hostfwd" not in " ".join(saved)
    assert [word.replace(",hostfwd=tcp:127.0.0.1:20022-:22", "") for word in started] == saved


def test_a_dom0_gets_its_kernel_as_a_module_of_the_hypervisor(description):
    words = machines.words(
        description.hosts["xen1"], machines.Disk(Path("/cache/disk-1"), "6.12"), "tcg", 0, lambda path: path.name
    )
    assert words[words.index("-kernel") + 1] == "xen"
    modules = words[words.index("-initrd") + 1]
    assert modules.startswith("vmlinuz root=/dev/vda ")
    assert modules.endswith(",initrd")


def test_only_a_guest_of_signed_modules_has_firmware_whose_variables_are_its_own(description):
    host = description.hosts["secure1"]
    disk = machines.Disk(Path("/cache/disk-1"), "6.12", Path("/cache/firmware-1"))
    words = machines.words(host, disk, "tcg", 0, str)
    assert words[words.index("-append") + 1].endswith(" module.sig_enforce=1")
    assert "if=pflash,unit=1,format=qcow2,file=secure1.vars.qcow2" in words
    assert [(image.name, image.backing.name) for image in machines.images(host, disk)] == [
        ("secure1.qcow2", "root.ext4"),
        ("secure1.vars.qcow2", "vars.fd"),
    ]
    other = machines.words(description.hosts["trace2"], machines.Disk(disk.folder, "6.12"), "tcg", 0, str)
    assert not any("pflash" in word or "sig_enforce" in word for word in other)


def test_only_a_guest_with_selinux_enforces_it_and_logs_denials(description):
    disk = machines.Disk(Path("/cache/disk-1"), "6.12")
    lines = {}
    for name in ("selinux1", "trace2"):
        words = machines.words(description.hosts[name], disk, "tcg", 0, str)
        lines[name] = words[words.index("-append") + 1].split()
    assert {"security=selinux", "enforcing=1", "audit=1"} <= set(lines["selinux1"])
    assert "audit=0" in lines["trace2"] and not {"security=selinux", "enforcing=1"} & set(lines["trace2"])


def test_the_inventory_has_every_group_and_the_running_hosts_in_theirs(tmp_path, description):
    started = state.Started("trace1", 1, 2, 20022, "tcg", "boot", "6.1.0-1-cloud-amd64")
    path = inventory.write(
        tmp_path / "inventory.yml", [(description.hosts["trace1"], started)], tmp_path / "key", tmp_path / "known hosts"
    )
    groups = json.loads(path.read_text())
    assert set(groups) == {"trace_hosts", "builders", "xen_hosts", "virt_hosts", "secure_hosts", "selinux_hosts"}
    host = groups["trace_hosts"]["hosts"]["trace1"]
    assert host == groups["virt_hosts"]["hosts"]["trace1"]
    assert (host["ansible_port"], host["lab_kernel"]) == (20022, "6.1.0-1-cloud-amd64")
    assert groups["builders"]["hosts"] == {}
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {host['ansible_ssh_common_args']}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words == ssh.options(tmp_path / "known hosts")


def test_what_was_started_is_read_back_and_a_panic_is_a_death(tmp_path):
    child = subprocess.Popen(["sleep", "60"])
    try:
        started = state.Started("trace1", child.pid, process.start_time(child.pid) or 0, 1, "tcg", "boot")
        state.save(tmp_path, started)
        assert state.load(tmp_path, "trace1") == started
        assert started.state(tmp_path) == "starting"
        started.ready = True
        assert started.state(tmp_path) == "running"
        state.serial_log(tmp_path, "trace1").write_text("---[ end Kernel panic - not syncing: for a test ]---\n")
        assert started.state(tmp_path) == "died"
    finally:
        child.kill()
        child.wait()
    state.serial_log(tmp_path, "trace1").unlink()
    assert started.state(tmp_path) == "died"
    state.forget(tmp_path, "trace1")
    assert state.load(tmp_path, "trace1") is None


def test_last_lines_are_those_that_say_something():
    assert last_lines("one\n\n  two \nthree\n\n", 2) == "two | three"


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")
def test_paused_guests_stand_still_until_the_lab_goes_on(tmp_path):
    """A guest is an emulator with a monitor here; ssh to it fails, which must not keep the others from going on."""
    lab = Lab(LAB / "lab.toml", tmp_path, tmp_path / "cache", lambda _sentence: None)
    argv = ["qemu-system-x86_64", "-machine", "none", "-accel", "tcg", "-display", "none", "-nodefaults"]
    emulator = subprocess.Popen([*argv, "-qmp", "unix:trace1.qmp,server=on,wait=off"], cwd=tmp_path)

    def status():
        with pytest.raises(LabError, match="VM status: ") as answer:
            qemu.hmp(tmp_path, "trace1", "info status")
        return str(answer.value).rpartition(" ")[2]

    try:
        while not (tmp_path / "trace1.qmp").exists():
            time.sleep(0.01)
        started = process.start_time(emulator.pid)
        state.save(tmp_path, state.Started("trace1", emulator.pid, started, 1, "tcg", "boot", ready=True))
        lab.pause()
        assert status() == "paused"
        lab.resume()
        assert status() == "running"
        lab.resume()  # nothing is paused any more
    finally:
        emulator.kill()
        emulator.wait()
