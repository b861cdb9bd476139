# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parameters after a restart of the kernel and after a reload of their module, and taints, on one guest."""

from __future__ import annotations

import json
import re
import typing as t

import pytest

from .support.places import KEXEC

HOST = "trace4"
MODULE = "tapvirt.host.kernel_module_param"
OWN_FILE = "/etc/modprobe.d/zz-tapvirt.conf"
JOURNAL = "/var/lib/tapvirt/kernel_module_param.json"
KEPT_IMAGE = "/root/tapvirt-test-initrd"


def read_parameter(lab, label: str) -> str:
    """Return the value of a parameter in sysfs."""
    module, _dot, name = label.partition(".")
    return lab.shell(HOST, f"cat /sys/module/{module}/parameters/{name}")


def set_parameters(lab, params: list[dict[str, t.Any]], check: bool = False, **options) -> dict[str, t.Any]:
    """Run the module; return its result, with each row also under the name of its parameter."""
    result = lab.ansible(HOST, MODULE, {"params": params, **options}, check=check)[HOST]
    return {**result, **{f"{row['module']}.{row['name']}": row for row in result.get("params", [])}}


def entry(label: str, value: object = None, **options: object) -> dict[str, t.Any]:
    """Return an entry of the option params."""
    module, _dot, name = label.partition(".")
    return {"module": module, "name": name, "value": value, **options}


@pytest.fixture(scope="module", autouse=True)
def initrd(lab):
    """The initramfs of the guest; afterwards the guest has its old files again and its own command line."""
    assert HOST in lab.hosts
    release = lab.release(HOST)
    image = f"/boot/initrd.img-{release}"
    command_line = lab.shell(HOST, f"test ! -e {OWN_FILE}; test ! -e {JOURNAL}; cat /proc/cmdline")
    lab.shell(HOST, f"cp -a {image} {KEPT_IMAGE}")
    yield image
    lab.shell(HOST, f"rm -f {OWN_FILE} {JOURNAL}*; cmp -s {KEPT_IMAGE} {image} || cp -a {KEPT_IMAGE} {image}")
    lab.shell(HOST, f"rm {KEPT_IMAGE}; sync")
    lab.restart(HOST, "reboot")
    assert lab.shell(HOST, "cat /proc/cmdline") == command_line
    assert lab.shell(HOST, "cat /proc/sys/kernel/tainted; ls /etc/modprobe.d") == "0"


@pytest.fixture
def no_nbd(lab):
    """Unload the module nbd before and after the test."""
    lab.shell(HOST, "rmmod nbd 2> /dev/null || true")
    yield
    lab.shell(HOST, f"rmmod nbd 2> /dev/null || true; rm -f {OWN_FILE} {JOURNAL}")


@pytest.mark.soak  # 70 s with its restart; the other tests of this file load the module with its options
@pytest.mark.scenario
def test_persisted_values_survive_a_restart(lab, initrd, no_nbd):
    was = read_parameter(lab, "tcp_cubic.hystart")
    wanted = [
        entry("nbd.max_part", 10, persist="auto"),
        entry("nbd.nbds_max", 3, persist="auto"),
        entry("tcp_cubic.hystart", 0, persist="auto"),
        entry("virtio_blk.queue_depth", 64, persist="auto", reload="if_unused"),
    ]
    assert was == "1"
    assert read_parameter(lab, "virtio_blk.queue_depth") != "64"
    planned = set_parameters(lab, wanted, check=True, refresh_initramfs=True)
    assert lab.shell(HOST, f"ls -A /etc/modprobe.d; cmp {initrd} {KEPT_IMAGE}") == ""

    first = set_parameters(lab, wanted)
    assert not first["failed"], first
    for label in ("nbd.max_part", "nbd.nbds_max"):
        assert first[label]["persisted_in"] == OWN_FILE
        assert first[label]["pending"] == ["not in effect: it takes effect when the module is loaded"]
    assert first["tcp_cubic.hystart"]["after"] == 0
    (add,) = first["tcp_cubic.hystart"]["pending"]
    word = re.fullmatch(r"add (\S+) to the kernel command line and reboot", add).group(1)
    in_use, stale = first["virtio_blk.queue_depth"]["pending"]
    assert re.search("when the module is loaded again; that was not done now: it .*virtio|in use", in_use), in_use
    assert stale.startswith(f"{initrd} has the module without this option") and "update-initramfs" in stale, stale

    second = set_parameters(lab, wanted, refresh_initramfs=True)
    assert not second["failed"], second
    assert [row["what"] for row in second["plan"]] == [initrd]
    assert [row["what"] for row in planned["plan"]][-1] == initrd
    assert second["virtio_blk.queue_depth"]["pending"] == [in_use]

    lab.run(HOST, "python3", "-", "-", word, stdin=KEXEC, timeout=120)
    lab.restart(HOST, "kexec")
    lab.shell(HOST, "modprobe nbd")
    labels = ("nbd.max_part", "nbd.nbds_max", "tcp_cubic.hystart", "virtio_blk.queue_depth")
    assert [read_parameter(lab, label) for label in labels] == ["15", "3", "0", "64"]
    again = set_parameters(lab, wanted, refresh_initramfs=True)
    # What nbd makes of 10 partitions is seen for the first time now: a read-only value that the module itself changed.
    assert not again["failed"], again
    assert again["plan"] == []
    assert again["tcp_cubic.hystart"]["persisted_in"] == "/proc/cmdline"
    assert [again[label]["pending"] for label in labels[1:]] == [[], [], []]

    restored = set_parameters(lab, [entry(label) for label in labels], state="restored")
    assert not restored["failed"], restored
    assert "update-initramfs" in " ".join(restored["virtio_blk.queue_depth"]["pending"])
    assert lab.shell(HOST, "ls -A /etc/modprobe.d") == ""


@pytest.mark.scenario
def test_unused_module_is_reloaded_with_its_other_values(lab, no_nbd):
    # Neither value is configured anywhere: the one was given at load, the other at run time.
    lab.shell(HOST, "modprobe nbd nbds_max=5; modprobe vxlan; echo N > /sys/module/vxlan/parameters/log_ecn_error")
    wanted = [
        entry("nbd.max_part", 10, persist="auto", reload="if_unused"),
        entry("vxlan.udp_port", 4789, persist="auto", reload="if_unused"),
    ]
    first = set_parameters(lab, wanted)
    assert not first["failed"], first
    assert [(first[label]["verdict"], first[label]["after"]) for label in ("nbd.max_part", "vxlan.udp_port")] == [
        ("adjusted", 15),
        ("changed", 4789),
    ]
    assert (read_parameter(lab, "nbd.nbds_max"), read_parameter(lab, "vxlan.log_ecn_error")) == ("5", "N")
    assert {"the module nbd", "the module vxlan"} <= {row["what"] for row in first["plan"]}
    second = set_parameters(lab, wanted)
    assert (second["changed"], second["nbd.max_part"]["verdict"]) == (False, "adjusted")

    # As if a run had been killed between the two halves of a reload.
    journal = json.loads(lab.shell(HOST, f"cat {JOURNAL}"))
    journal["reloading"] = {"nbd": {"max_part": "31", "nbds_max": "7"}}
    lab.shell(HOST, f"rmmod nbd; cat > {JOURNAL} << 'END'\n{json.dumps(journal)}\nEND")
    recovered = set_parameters(lab, [entry("vxlan.udp_port", 4789)])
    assert (recovered["recovered"], recovered["changed"]) == (["the module nbd"], True), recovered
    assert (read_parameter(lab, "nbd.max_part"), read_parameter(lab, "nbd.nbds_max")) == ("31", "7")

    back = set_parameters(
        lab, [entry("nbd.max_part", reload="if_unused"), entry("vxlan.udp_port", reload="if_unused")], state="restored"
    )
    assert not back["failed"], back
    assert [back[label]["after"] for label in ("nbd.max_part", "vxlan.udp_port")] == [31, 8472]
    assert (read_parameter(lab, "nbd.nbds_max"), read_parameter(lab, "vxlan.log_ecn_error")) == ("7", "N")
    assert lab.shell(HOST, f"rmmod vxlan; ls -A /etc/modprobe.d; ls {JOURNAL} 2>&1 || true").startswith(
        "ls: cannot access"
    )


def test_failed_reload_restores_the_module(lab, no_nbd):
    lab.shell(HOST, "modprobe nbd nbds_max=5")
    result = set_parameters(lab, [entry("nbd.max_part", -1, persist="auto", reload="if_unused")])
    assert result["failed"]
    assert re.search("nbd could not be loaded: .*Invalid argument.*Everything is as it was before", result["msg"])
    assert (read_parameter(lab, "nbd.nbds_max"), read_parameter(lab, "nbd.max_part")) == ("5", "31")
    assert lab.shell(HOST, "ls -A /etc/modprobe.d") == ""


def test_module_in_use_is_not_reloaded_and_pending_names_its_user(lab, no_nbd):
    lab.shell(
        HOST,
        "modprobe nbd; ip link add tapvirt-test type vxlan id 5 dstport 4789 local 127.0.0.1 dev lo;"
        " ip link set tapvirt-test up;"
        " modprobe dummy; ip link add tapvirt-test2 type dummy; ip link set tapvirt-test2 up;"
        " sleep 600 < /dev/nbd0 > /dev/null 2>&1 & echo $! > /run/tapvirt-test.pid",
    )
    try:
        boot = lab.shell(HOST, "stat -c %i /sys/module/nbd /sys/module/kvm /sys/module/vxlan")
        result = set_parameters(
            lab,
            [
                entry("nbd.nbds_max", 3, persist="auto", reload="if_unused"),
                entry("kvm.vector_hashing", False, persist="auto", reload="if_unused"),
                entry("vxlan.udp_port", 4789, persist="auto", reload="if_unused"),
                entry("dummy.numdummies", 3, persist="auto", reload="if_unused"),
                entry("virtio_net.napi_weight", 32, persist="auto", reload="if_unused"),
            ],
        )
        assert not result["failed"], result
        again = "not in effect: it takes effect when the module is loaded again; that was not done now: "
        assert result["nbd.nbds_max"]["pending"][0].startswith(again + "it is in use (")
        assert result["kvm.vector_hashing"]["pending"] == [again + "it is used by kvm_amd"]
        assert result["vxlan.udp_port"]["pending"] == [again + "the network interface tapvirt-test is up"]
        assert result["dummy.numdummies"]["pending"][0].endswith("the network interface tapvirt-test2 is up")
        assert "it drives virtio" in result["virtio_net.napi_weight"]["pending"][0]
        assert lab.shell(HOST, "stat -c %i /sys/module/nbd /sys/module/kvm /sys/module/vxlan") == boot
    finally:
        lab.shell(
            HOST,
            "kill $(cat /run/tapvirt-test.pid); rm /run/tapvirt-test.pid; ip link del tapvirt-test;"
            f" ip link del tapvirt-test2; rmmod vxlan dummy; rm -f {OWN_FILE} {JOURNAL}",
        )


def test_parameter_without_a_file_is_loaded_once(lab):
    lab.shell(HOST, "modprobe dummy; test ! -e /sys/module/dummy/parameters/numdummies")
    wanted = [entry("dummy.numdummies", 2, persist="auto", reload="if_unused")]
    first = set_parameters(lab, wanted)
    assert (first["failed"], first["plan"][-1]["what"], first["dummy.numdummies"]["pending"]) == (
        False,
        "the module dummy",
        [],
    ), first
    assert lab.shell(HOST, "cd /sys/class/net; ls -d dummy*") == "dummy0\ndummy1"
    second = set_parameters(lab, wanted)
    assert second["plan"] == []
    assert second["dummy.numdummies"]["pending"][0].startswith("it cannot be seen whether it is in effect")
    lab.shell(HOST, f"rmmod dummy; rm -f {OWN_FILE} {JOURNAL}")


@pytest.mark.soak
def test_unsafe_parameter_is_refused_and_an_allowed_taint_is_reported(lab):
    # Emulated processors have no AVIC, so it stays off; the request alone taints the kernel.
    assert lab.shell(HOST, "cat /proc/sys/kernel/tainted; cat /sys/module/kvm_amd/refcnt") == "0\n0"
    lab.shell(HOST, "echo Y > /sys/module/kvm_amd/parameters/dump_invalid_vmcb")
    unsafe = entry("kvm_amd.force_avic", True, persist="auto", reload="if_unused")
    refused = set_parameters(lab, [unsafe], check=True)
    assert refused["failed"] and re.search(
        "value True for .*kvm_amd.force_avic as unsafe.*Set allow_taint to true", refused["msg"]
    )
    allowed = set_parameters(lab, [{**unsafe, "allow_taint": True}])
    assert not allowed["failed"], allowed
    assert (allowed["taints_added"], allowed["kvm_amd.force_avic"]["after"]) == (["user_request"], True)
    assert (read_parameter(lab, "kvm_amd.dump_invalid_vmcb"), lab.shell(HOST, "cat /proc/sys/kernel/tainted")) == (
        "Y",
        "64",
    )
    back = set_parameters(lab, [entry("kvm_amd.force_avic", reload="if_unused")], state="restored")
    assert (back["failed"], back["kvm_amd.force_avic"]["after"]) == (False, False), back
