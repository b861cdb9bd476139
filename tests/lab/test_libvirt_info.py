# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports of libvirt's daemon about a KVM domain: console from the first byte, statistics, addresses, images."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.playbooks.filter_plugins.boot_sector import boot_sector

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts

# The unit tests have the same on a real libvirt, too; here it is the daemon of a host, and takes minutes.
pytestmark = pytest.mark.soak
HOST = "trace2"
FOLDER = "/var/lib/libvirt/images/info"
TALKER, QUIET = "info-talker", "info-quiet"
LINE = "hello from info-talker"
LOG = "/var/log/libvirt/qemu/info-console.log"
MAC = "52:54:00:1f:00:01"
LEASES = "/var/lib/libvirt/dnsmasq/info-br.status"
NETWORK = """
<network>
  <name>info-net</name><bridge name='info-br' stp='off'/>
  <ip address='192.168.211.1' netmask='255.255.255.0'>
    <dhcp><range start='192.168.211.70' end='192.168.211.70'/></dhcp>
  </ip>
</network>
"""
DOMAIN = f"""
<domain type='kvm'>
  <name>NAME</name>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/><bios useserial='yes'/></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{FOLDER}/boot.img'/><target dev='hda' bus='ide'/><shareable/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{FOLDER}/NAME.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'>
      <mac address='{MAC}'/><source network='info-net'/><model type='virtio'/><rom enabled='no'/>
    </interface>
    <serial type='pty'><log file='{LOG}' append='off'/></serial>
  </devices>
</domain>
"""
PREPARE = f"""
set -e; mkdir -p {FOLDER}; cd {FOLDER}
echo {boot_sector(LINE)} | base64 -d > boot.img
qemu-img create -q -f raw base.raw 1M
qemu-img create -q -f qcow2 -b {FOLDER}/base.raw -F raw mid.qcow2
for name in {TALKER} {QUIET}; do qemu-img create -q -f qcow2 -b {FOLDER}/mid.qcow2 -F qcow2 $name.qcow2; done
virsh pool-create-as info-pool dir --target {FOLDER}
cat > net.xml <<EOF
{NETWORK}
EOF
virsh net-create net.xml
"""
# A lease as libvirt's helper of the DHCP server writes it, because no system in the guest requests one; an entry in the
# ARP table; another reader of the console.
MEANWHILE = f"""
set -e; cd {FOLDER}
cmp -n $(stat -c %s console.raw) console.raw {LOG}
stat -c %a console.raw
echo '[{{"ip-address": "192.168.211.70", "mac-address": "{MAC}", "expiry-time": 4102444800}}]' > {LEASES}
ip neigh replace 192.168.211.99 lladdr {MAC} dev info-br nud stale
cat > hold.py <<EOF
import libvirt, time
connection = libvirt.open("qemu:///system")
stream = connection.newStream(0)
connection.lookupByName("{TALKER}").openConsole(None, stream, 0)
print("held", flush=True)
time.sleep(300)
EOF
nohup python3 hold.py > held 2> /dev/null < /dev/null & echo $! > hold.pid
for _ in $(seq 100); do grep -q held held && break; sleep 0.1; done
"""
CLEAN = f"""
(
kill $(cat {FOLDER}/hold.pid)
for name in {TALKER} {QUIET}; do virsh destroy $name; virsh undefine $name; done
virsh net-destroy info-net; virsh pool-destroy info-pool; rm -rf {FOLDER} /var/log/libvirt/qemu/info-* {LEASES}
) > /dev/null 2>&1
virsh list --all --name; virsh net-list --all --name; virsh pool-list --all --name
"""


@pytest.fixture(scope="module")
def results(lab: LabHosts) -> t.Iterator[dict[str, t.Any]]:
    """The results by task of a playbook that defines two domains and reads them; all is deleted afterwards."""
    wanted = [{"name": name, "xml": DOMAIN.replace("NAME", name)} for name in (TALKER, QUIET)]
    wanted[1]["xml"] = (
        wanted[1]["xml"].replace(MAC, "52:54:00:1f:00:02").replace(f"<log file='{LOG}' append='off'/>", "")
    )
    start = {
        "name": TALKER,
        "start": True,
        "until": f"^{LINE}$",
        "timeout_seconds": 90,
        "dest": f"{FOLDER}/console.raw",
    }
    forced = {"name": TALKER, "force": True, "until": LINE, "timeout_seconds": 90}
    gather = {"names": [TALKER, "info-*"], "gather": ["stats", "addresses", "backing"], "trace_api": True}
    tasks: list[dict[str, t.Any]] = [
        {"name": "Prepare", "ansible.builtin.shell": PREPARE},
        {"name": "Define", "tapvirt.host.libvirt_domain": {"domains": wanted}},
        {"name": "Started", "tapvirt.host.libvirt_console": start},
        {"name": "Meanwhile", "ansible.builtin.shell": MEANWHILE},
        {"name": "Refused", "tapvirt.host.libvirt_console": {"name": TALKER}, "ignore_errors": True},
        {"name": "Forced", "tapvirt.host.libvirt_console": forced},
        {"name": "Info", "tapvirt.host.libvirt_domain_info": gather},
    ]
    try:
        run = lab.run_tasks(HOST, tasks)
        assert run.rc == 0, run.stdout
        yield run.by_task()
    finally:
        left = lab.run(HOST, "sh", "-c", CLEAN, timeout=120)
        assert (left.returncode, "info-" in left.stdout) == (0, False), left.stdout + left.stderr


def test_console_is_read_from_the_first_byte(results: dict[str, t.Any]) -> None:
    started = results["Started"]
    assert (started["changed"], started["matched"]) == (True, True)
    # The firmware prints first, with escape sequences; the file is compared with the log of the daemon.
    assert "SeaBIOS" in started["text"].splitlines()[0]
    assert "\x1b" not in started["text"]
    assert results["Meanwhile"]["stdout_lines"] == ["600"]


def test_console_in_use_is_taken_only_with_force(results: dict[str, t.Any]) -> None:
    assert "left to whoever reads it now; force: true" in results["Refused"]["msg"]
    assert (results["Forced"]["matched"], results["Forced"]["changed"]) == (True, False)


def test_statistics_addresses_and_images(results: dict[str, t.Any]) -> None:
    talker, quiet = results["Info"]["domains"]
    assert (talker["name"], talker["state"], quiet["name"], quiet["state"]) == (TALKER, "running", QUIET, "shutoff")
    stats = talker["stats"]
    assert 0 < stats["cpu"]["time_seconds"] < 3600
    assert stats["memory"]["current_bytes"] == 16 << 20
    disks = {disk["target"]: disk for disk in stats["disks"]}
    assert disks["hda"]["read_bytes"] >= 512
    assert disks["vda"]["capacity_bytes"] == 1 << 20
    (interface,) = stats["interfaces"]
    assert interface["device"] == talker["interfaces"][0]["device"]
    # No system in the guest sends packets.
    assert interface["sent_packets"] == 0
    assert [(row["address"], row["source"], row["mac"]) for row in talker["addresses"]] == [
        ("192.168.211.70", "lease", MAC),
        ("192.168.211.99", "arp", MAC),
    ]
    assert (quiet["stats"], quiet["addresses"]) == (None, [])
    images = [{"source": f"{FOLDER}/mid.qcow2", "format": "qcow2"}, {"source": f"{FOLDER}/base.raw", "format": "raw"}]
    for row in (talker, quiet):
        assert {disk["target"]: (disk["images"], disk["complete"]) for disk in row["backing"]} == {
            "hda": ([], True),
            "vda": (images, True),
        }
    calls = {row["call"]: row["count"] for row in results["Info"]["api_trace"]["totals"]}
    assert (calls["virConnect.listAllDomains"], calls["virConnect.domainListGetStats"]) == (1, 1)
