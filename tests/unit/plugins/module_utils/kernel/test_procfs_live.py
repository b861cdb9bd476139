# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine's own procfs: value by value against other readers, and as users and in mounts that see less of it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import time
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.gather import gather
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.kmsg import LEVELS
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.tables import TABLES

pytestmark = pytest.mark.usefixtures("this_kernel")

OPTIONS: dict[str, t.Any] = {
    "tables": [],
    "sysctls": [],
    "processes": None,
    "kmsg": None,
    "limit": 100000,
    "max_bytes": 10_000_000,
}
ROOT_ONLY = {"slabinfo"}
HIDDEN_FROM_OTHERS = {"iomem", "ioports"}
OF_THIS_PROCESS = {"mountinfo", "mounts", "net_dev", "net_snmp"}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def may_mount():
    """Skip where not even root may mount, as in most containers."""
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mount namespaces are not allowed here")


def gather_all(**changes):
    result = gather(Root(), {**OPTIONS, **changes})
    assert result["truncated"] == {}
    return result


def table(name):
    result = gather_all(tables=[name])
    if result["status"][name] == "absent":
        pytest.skip(f"this kernel has no table {name}")
    assert result["unparsed"] == {}
    return result["procfs"][name]


def output_of(*argv):
    environment = dict(os.environ, LC_ALL="C")
    return subprocess.run(argv, stdout=subprocess.PIPE, check=True, env=environment).stdout.decode("utf-8", "replace")


def awk(program, name):
    return output_of("awk", program, "/proc/" + name).split("\n")[:-1]


def test_every_table_of_this_kernel_is_known_whole():
    result = gather_all(tables=["all"])
    assert result["unparsed"] == {}
    assert set(result["status"]) == set(TABLES)
    for name, status in result["status"].items():
        assert (status == "absent") == (not os.path.exists("/" + TABLES[name].path)), name


def test_memory():
    found = table("meminfo")
    free = output_of("free", "-b", "-w").split("\n")
    assert found["MemTotal_bytes"] == int(free[1].split()[1])
    assert found["SwapTotal_bytes"] == int(free[2].split()[1])
    assert abs(found["MemAvailable_bytes"] - int(free[1].split()[-1])) < found["MemTotal_bytes"] / 10
    names = awk('{sub(":", "", $1); print $3 == "kB" ? $1 "_bytes" : $1}', "meminfo")
    assert list(found) == names
    huge = awk('/^HugePages_Total|^Hugepagesize/ {print $3 == "kB" ? $2 * 1024 : $2}', "meminfo")
    assert [found["HugePages_Total"], found["Hugepagesize_bytes"]] == [int(number) for number in huge]


def test_counters_of_memory_are_between_two_looks():
    before = dict(line.split() for line in awk("{print}", "vmstat"))
    found = table("vmstat")
    after = dict(line.split() for line in awk("{print}", "vmstat"))
    assert list(found) == list(before)
    for name in ("pgfault", "pgalloc_normal", "pgfree"):
        assert int(before[name]) <= found[name] <= int(after[name])


def test_zones():
    zones = table("zoneinfo")
    assert ["{node} {zone} {counters[managed]}".format(**zone) for zone in zones] == awk(
        '/^Node/ {sub(",", "", $2); zone = $2 " " $4} $1 == "managed" {print zone, $2}', "zoneinfo"
    )
    assert ["{node} {zone}".format(**zone) for zone in table("buddyinfo")] == awk(
        '{sub(",", "", $2); print $2, $4}', "buddyinfo"
    )


@needs_root
def test_slabs():
    rows = ["{name} {objsize_bytes} {objperslab}".format(**row) for row in table("slabinfo")]
    assert rows == awk("NR > 2 {print $1, $4, $5}", "slabinfo")


def test_modules_are_those_of_lsmod():
    rows = ["{name} {size_bytes}".format(**row) for row in table("modules")]
    assert rows == [" ".join(line.split()[:2]) for line in output_of("lsmod").splitlines()[1:]]


def test_time_and_load():
    boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert abs(table("uptime")["uptime_seconds"] - boot) < 1
    load = table("loadavg")
    assert abs(load["load_1m"] - os.getloadavg()[0]) < 0.5
    assert load["last_pid"] > 0
    before = time.time() - boot
    assert abs(table("stat")["btime_seconds"] - before) < 2


def test_cpus():
    found = table("cpuinfo")
    online = [int(line) for line in output_of("lscpu", "-p=CPU").splitlines() if not line.startswith("#")]
    assert [row["processor"] for row in found["processors"]] == online
    lscpu = dict(re.findall(r"^([\w ]+): +(.*)$", output_of("lscpu"), re.MULTILINE))
    first = {**found["common"], **found["processors"][0]}
    assert first["model name"] == lscpu["Model name"]
    assert sorted(first["flags"]) == sorted(lscpu["Flags"].split())
    assert [row["cpu"] for row in table("stat")["cpus"]] == online


def test_times_of_cpus_are_between_two_looks():
    program = '/^cpu / {printf "%d", $2 + $3 + $4 + $5} /^ctxt/ {print "", $2}'
    before = [int(word) for word in awk(program, "stat")[0].split()]
    found = table("stat")
    after = [int(word) for word in awk(program, "stat")[0].split()]
    times = sum(found["cpu"][name + "_seconds"] for name in ("user", "nice", "system", "idle"))
    assert before[0] <= times * os.sysconf("SC_CLK_TCK") + 1 and times * os.sysconf("SC_CLK_TCK") - 1 <= after[0]
    assert before[1] <= found["ctxt"] <= after[1]


@pytest.mark.parametrize(("name", "key"), [("interrupts", "irq"), ("softirqs", "name")])
def test_interrupts_are_between_two_looks(name, key):
    program = (
        'NR == 1 {n = NF} NR > 1 {s = 0; for (i = 2; i <= n + 1 && i <= NF; i++) s += $i; printf "%s %d\\n", $1, s}'
    )
    before = awk(program, name)
    rows = table(name)
    after = awk(program, name)
    assert [row[key] + ":" for row in rows] == [line.split()[0] for line in before]
    for row, low, high in zip(rows, before, after):
        assert int(low.split()[1]) <= (row["total"] or 0) <= int(high.split()[1])
        assert sum(row["counts"].values()) in (row["total"] or 0, 0)


def test_mounts_are_those_of_findmnt():
    rows = json.loads(output_of("findmnt", "--json", "--list", "--output", "TARGET,FSTYPE,ID"))["filesystems"]
    theirs = {(row["target"], row["fstype"]) for row in rows}
    assert {(row["target"], row["type"]) for row in table("mounts")} == theirs
    assert {(row["target"], row["type"], row["id"]) for row in table("mountinfo")} == {
        (row["target"], row["fstype"], int(row["id"])) for row in rows
    }


@needs_root
def test_a_mount_with_an_odd_name(tmp_path, may_mount):
    names = ["sp ace", "tab\there", "line\nend", "back\\slash", "\xe4\xff", "#x"]
    script = (
        'for name in "$@"; do mkdir -p "$name"; mount -t tmpfs "#none" "$name" || exit 1; done; cat /proc/self/mounts'
    )
    argv = ["unshare", "-m", "sh", "-c", script, "sh", *(str(tmp_path / name) for name in names)]
    unparsed: list[str] = []
    rows = TABLES["mounts"].parse(output_of(*argv), unparsed)
    assert unparsed == []
    found = [row for row in rows if row["source"] == "#none"]
    assert [row["target"] for row in found] == [str(tmp_path / name) for name in names]


def test_devices():
    found = table("devices")
    theirs = awk("/^ *[0-9]/ {print $1, $2}", "devices")
    assert ["{major} {name}".format(**row) for row in found["character"] + found["block"]] == theirs
    assert ["{name} {nodev}".format(**row) for row in table("filesystems")] == awk(
        '{print $NF, NF == 2 ? "True" : "False"}', "filesystems"
    )
    for row in table("partitions"):
        sectors = pathlib.Path(f"/sys/class/block/{row['name']}/size").read_text()
        assert row["size_bytes"] == int(sectors) * 512
    assert {row["name"] for row in table("diskstats")} == set(awk("{print $3}", "diskstats"))


def test_disks_are_between_two_looks():
    def look():
        return {path.parent.name: path.read_text().split() for path in pathlib.Path("/sys/class/block").glob("*/stat")}

    before, rows, after = look(), table("diskstats"), look()
    for row in rows:
        for column, key, factor in ((0, "reads", 1), (2, "read_bytes", 512), (6, "written_bytes", 512)):
            low, high = (int(numbers[row["name"]][column]) * factor for numbers in (before, after))
            assert low <= row[key] <= high


def test_network_is_between_two_looks():
    def look():
        names = ("rx_bytes", "tx_packets")
        links = pathlib.Path("/sys/class/net").glob("*/statistics")
        return {path.parent.name: [int((path / name).read_text()) for name in names] for path in links}

    before, rows, after = look(), table("net_dev"), look()
    assert {row["interface"] for row in rows} == set(before)
    for row in rows:
        seen = (row["receive"]["bytes"], row["transmit"]["packets"])
        for low, value, high in zip(before[row["interface"]], seen, after[row["interface"]]):
            assert low <= value <= high
    snmp = table("net_snmp")
    assert sorted(snmp) == sorted(set(awk('{sub(":", "", $1); print $1}', "net/snmp")))
    assert snmp["Ip"]["DefaultTTL"] == int(pathlib.Path("/proc/sys/net/ipv4/ip_default_ttl").read_text())


def test_version_and_command_line():
    found = table("version")
    assert (found["release"], found["version"]) == (os.uname().release, os.uname().version)
    assert found["text"] == output_of("cat", "/proc/version").rstrip("\n")


@needs_root
def test_address_ranges():
    for name in ("iomem", "ioports"):
        theirs = [line.split("-") for line in awk('{sub(" : .*", ""); gsub(" ", ""); print}', name)]
        assert [[int(row["start"], 16), int(row["end"], 16)] for row in table(name)] == [
            [int(start, 16), int(end, 16)] for start, end in theirs
        ]


def test_sysctls_are_those_of_sysctl():
    names = ["kernel.ostype", "kernel.pid_max", "kernel.printk", "net.ipv4.ip_local_port_range", "vm.swappiness"]
    result = gather_all(sysctls=[*names, "net.ipv4.conf.*.forwarding"])
    for name, value in result["procfs"]["sysctls"].items():
        words = value if isinstance(value, list) else [value]
        assert output_of("sysctl", "-n", name).split() == [str(word) for word in words]
    assert "net.ipv4.conf.lo.forwarding" in result["procfs"]["sysctls"]
    assert result["status"] == {"sysctls": "present"}


@needs_root
def test_all_sysctls_are_read_without_an_error():
    result = gather(Root(), {**OPTIONS, "sysctls": ["*", "*.*", "*.*.*", "*.*.*.*", "*.*.*.*.*"]})
    assert len(result["procfs"]["sysctls"]) > 500
    assert result["procfs"]["sysctls"].get("vm.compact_memory") is None


@needs_root
def test_the_log_is_that_of_dmesg_and_nothing_is_taken_from_it():
    first = gather_all(kmsg={"limit": 100000})["procfs"]["kmsg"]
    try:
        theirs = json.loads(output_of("dmesg", "--json"))["dmesg"]
    except subprocess.CalledProcessError:
        pytest.skip("this dmesg prints no JSON")
    again = gather_all(kmsg={"limit": 100000})["procfs"]["kmsg"]
    # Meanwhile the log may have grown, and lost its oldest records.
    assert again[0] in first and len(first) > 20
    steady = first[first.index(again[0]) :]
    assert again[: len(steady)] == steady
    ours = {(row["seconds"], row["message"]) for row in first + again}
    assert {(row["time"], row["msg"]) for row in theirs} <= ours
    # What dmesg calls pri is the level for records of the kernel itself.
    levels = {(row["time"], row["msg"]): row["pri"] for row in theirs}
    for row in steady:
        if row["facility"] == 0:
            assert levels[row["seconds"], row["message"]] == LEVELS.index(row["level"])
    last = gather(Root(), {**OPTIONS, "kmsg": {"limit": 3}})
    assert len(last["procfs"]["kmsg"]) == 3 and last["procfs"]["kmsg"][0]["sequence"] >= again[-3]["sequence"]
    assert last["truncated"]["kmsg"] > 10


@needs_root
def test_a_message_arrives_in_the_log():
    text = f"tapvirt procfs test {os.getpid()}\t\\x41 \xe4"
    before = time.monotonic()
    with open("/dev/kmsg", "wb", buffering=0) as log:
        log.write(("<12>" + text + "\n").encode("utf-8"))
    rows = gather_all(kmsg={"limit": 10, "level": "warning", "since": -5.0, "pattern": rf"procfs test {os.getpid()}\b"})
    row = rows["procfs"]["kmsg"][0]
    assert (row["message"], row["level"], row["facility"]) == (text, "warning", 1)
    assert abs(row["seconds"] - before) < 5


AS_OTHERS = """
import json, sys
sys.path.insert(0, {collections!r})
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.gather import gather
options = json.loads({options!r})
print(json.dumps(gather(Root(), options)))
"""
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
EVERYTHING = {
    **OPTIONS,
    "tables": ["all"],
    "sysctls": ["kernel.ostype", "kernel.usermodehelper.bset"],
    "processes": {"sections": ["stat", "io", "maps", "limits"], "sort": "pid", "limit": 100000},
    "kmsg": {"limit": 5},
}


def as_others(collections, *before):
    """Return everything as another user, or in another mount, reads it; it has to end well."""
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    program = AS_OTHERS.format(collections=collections, options=json.dumps(EVERYTHING))
    done = subprocess.run([*before, python, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.decode())


def in_mount(collections, options, *before):
    """Read everything where procfs is mounted in another way, in a mount namespace of its own."""
    script = f'mount -t proc -o {options} proc /proc && exec "$@"'
    return as_others(collections, "unshare", "-m", "sh", "-c", script, "sh", *before)


@needs_root
def test_an_unprivileged_user_sees_what_is_restricted(readable_collections):
    ours, theirs = gather_all(tables=["all"]), as_others(readable_collections, *NOBODY)
    for name in TABLES:
        wanted = "restricted" if name in ROOT_ONLY | HIDDEN_FROM_OTHERS else ours["status"][name]
        assert theirs["status"][name] == wanted, name
    assert theirs["procfs"]["slabinfo"] is None
    for name in HIDDEN_FROM_OTHERS:
        assert len(theirs["procfs"][name]) == len(ours["procfs"][name])
        assert {(row["start"], row["end"], row["size_bytes"]) for row in theirs["procfs"][name]} == {(None, None, None)}
    assert theirs["procfs"]["sysctls"]["kernel.ostype"] == "Linux"
    assert theirs["status"]["kernel.usermodehelper.bset"] == "restricted"
    first = next(row for row in theirs["procfs"]["processes"] if row["pid"] == 1)
    assert first["unavailable"] == {"io": "restricted", "maps": "restricted"} and first["limits"]["open files"]
    assert first["stat"]["startcode"] is None
    dmesg_restrict = pathlib.Path("/proc/sys/kernel/dmesg_restrict").read_text().strip()
    readable = dmesg_restrict == "0" and os.stat("/dev/kmsg").st_mode & 0o004
    assert theirs["status"]["kmsg"] == ("present" if readable else "restricted")


@needs_root
def test_a_mount_that_hides_processes(readable_collections, may_mount):
    root = in_mount(readable_collections, "hidepid=2")
    assert root["status"]["processes"] == "present" and len(root["procfs"]["processes"]) > 3
    hidden = in_mount(readable_collections, "hidepid=2", *NOBODY)
    assert hidden["status"]["processes"] == "restricted"
    assert {row["user"] for row in hidden["procfs"]["processes"]} == {"nobody"}
    assert hidden["status"]["meminfo"] == "present"
    closed = in_mount(readable_collections, "hidepid=1", *NOBODY)
    assert closed["status"]["processes"] == "restricted"
    assert {row["user"] for row in closed["procfs"]["processes"]} == {"nobody"}


@needs_root
@pytest.mark.parametrize("before", [[], NOBODY])
def test_a_mount_with_processes_only(readable_collections, before, may_mount):
    found = in_mount(readable_collections, "hidepid=2,subset=pid", *before)
    for name in TABLES:
        assert found["status"][name] == ("present" if name in OF_THIS_PROCESS else "absent"), name
    assert found["status"]["sysctls"] == "absent"
    assert found["status"]["processes"] == ("restricted" if before else "present")
    assert found["procfs"]["processes"]


@needs_root
def test_a_proc_without_some_files(readable_collections, tmp_path, may_mount):
    script = 'mount --bind "$0" /proc/meminfo && mount -t tmpfs none /proc/sys && exec "$@"'
    empty = tmp_path / "empty"
    empty.write_text("")
    found = as_others(readable_collections, "unshare", "-m", "sh", "-c", script, str(empty))
    assert (found["procfs"]["meminfo"], found["status"]["meminfo"]) == ({}, "present")
    assert found["status"]["kernel.ostype"] == "absent" and found["procfs"]["sysctls"]["kernel.ostype"] is None
