# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of procfs: files recorded from kernels 6.1, 6.18 and 7.2, and what else the kernel is known to print."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs import bounds, kmsg, sysctls
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.devices import ranges_hidden
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.gather import gather
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.parse import decode
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.tables import TABLES

FIXTURES = next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures" / "procfs"
OLD, NEW = "6.1.0-50-cloud-amd64", "7.2.12+deb14-cloud-amd64"
RECORDED = sorted(
    (path.name, name)
    for path in FIXTURES.iterdir()
    for name in TABLES
    if (path / TABLES[name].path[len("proc/") :]).exists()
)
OPTIONS: dict[str, t.Any] = {
    "tables": [],
    "sysctls": [],
    "processes": None,
    "kmsg": None,
    "limit": 100,
    "max_bytes": 48000,
}


def parsed(name, text):
    """Return a table and the rows of it that are not known."""
    unparsed: list[str] = []
    value = TABLES[name].parse(text, unparsed)
    assert json.loads(json.dumps(value)) == value
    return value, unparsed


def recorded(release, name):
    text = decode((FIXTURES / release / TABLES[name].path[len("proc/") :]).read_bytes())
    value, unparsed = parsed(name, text)
    assert unparsed == []
    return value


def found(rows, **wanted):
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


def options(**changes):
    return {**OPTIONS, **changes}


def test_there_is_a_recorded_file_for_every_table_that_a_kernel_of_a_distribution_has():
    names = {name for _release, name in RECORDED}
    assert set(TABLES) - names == {"latency_stats"}


@pytest.mark.parametrize(("release", "name"), RECORDED)
def test_every_row_of_a_recorded_file_is_known(release, name):
    value = recorded(release, name)
    assert value or name == "swaps"
    if isinstance(value, list) and value:
        assert all(set(row) == set(value[0]) for row in value)


def test_meminfo_has_bytes_and_counts():
    table = recorded(NEW, "meminfo")
    assert table["MemTotal_bytes"] == 3047004 * 1024
    assert table["Inactive(file)_bytes"] == 160332 * 1024
    assert (table["HugePages_Total"], table["Hugepagesize_bytes"]) == (0, 2 << 20)
    assert "HugePages_Total_bytes" not in table
    assert parsed("meminfo", "MemTotal: 1 kB\nNewKind: many\nno colon\n: 3 kB\n")[1] == [
        "NewKind: many",
        "no colon",
        ": 3 kB",
    ]


def test_modules_with_users_taints_and_hidden_addresses():
    rows = recorded(OLD, "modules")
    assert found(rows, name="cryptd")["used_by"] == ["ghash_clmulni_intel", "crypto_simd"]
    assert found(rows, name="params_test")["taints"] == ["out_of_tree_module", "unsigned_module"]
    assert found(rows, name="kvm") == {
        "name": "kvm",
        "size_bytes": 1146880,
        "references": 1,
        "used_by": ["kvm_amd"],
        "permanent": False,
        "state": "live",
        "address": "0xffffffffc0602000",
        "taints": [],
    }
    text = (
        "a 1 0 - Live 0x0000000000000000 (PZ+)\nb 2 1 [permanent], Loading 0x00000000\nc 3 - - Unloading 0xf00 (O-)\n"
    )
    first, second, third = parsed("modules", text)[0]
    assert (first["address"], first["taints"]) == (None, ["proprietary_module", "Z"])
    assert (second["permanent"], second["used_by"], second["state"], second["address"]) == (True, [], "loading", None)
    assert (third["references"], third["state"], third["taints"]) == (None, "unloading", ["out_of_tree_module"])
    assert parsed("modules", "a 1 0 - Live\na 1 0 - Live 0x1 rest\n") == ([], ["a 1 0 - Live", "a 1 0 - Live 0x1 rest"])


def test_names_of_mounts_are_unescaped():
    line = r"/dev/a\040b /mnt/tab\011line\012back\134slash\303\244 ext4 rw,lowerdir=/a\134,b:/c 0 0"
    row = parsed("mounts", line + "\n")[0][0]
    assert (row["source"], row["target"]) == ("/dev/a b", "/mnt/tab\tline\nback\\slashä")
    assert row["options"] == ["rw", "lowerdir=/a\\,b:/c"]
    assert parsed("mounts", r"\043bad / t rw 0 0")[0][0]["source"] == "#bad"
    assert parsed("mounts", "a b c\n") == ([], ["a b c"])


def test_mountinfo_has_any_number_of_optional_fields():
    table = recorded(NEW, "mountinfo")
    assert found(table, target="/proc")["propagation"] == ["shared:10"]
    lines = ["1 2 0:3 / / rw - ext4 /dev/x rw", r"1 2 0:3 /a\040- /b rw shared:1 master:2 - t s rw,x"]
    none, two = parsed("mountinfo", "\n".join(lines))[0]
    assert (none["propagation"], none["type"]) == ([], "ext4")
    assert (two["propagation"], two["root"], two["super_options"]) == (["shared:1", "master:2"], "/a -", ["rw", "x"])
    assert parsed("mountinfo", "1 2 0:3 - / rw shared:1 - ext4 x rw\n")[0][0]["root"] == "-"
    assert parsed("mountinfo", "1 2 0:3 / / rw shared:1 ext4 x rw\n")[1]


def test_interrupts_follow_the_header():
    rows = recorded("6.18.44", "interrupts")
    assert found(rows, irq="ERR") == {"irq": "ERR", "total": 0, "counts": {}, "description": ""}
    assert found(rows, irq="36")["counts"] == {"cpu1": 1994246}
    assert found(rows, irq="LOC")["total"] == 12424190 + 11722492
    assert found(rows, irq="36")["description"] == "PCI-MSIX-0000:00:02.0 1-edge virtio1-req.0"
    text = "  CPU0 CPU2 CPU17\n 1: 5 6 7 8250 level serial\nFIQ:   usb_fiq\nIPI0: 1 2 3\nBAD: 1 2\nErr: 4\nno colon\n"
    rows, unparsed = parsed("interrupts", text)
    assert [row["counts"] for row in rows] == [
        {"cpu0": 5, "cpu2": 6, "cpu17": 7},
        {},
        {"cpu0": 1, "cpu2": 2, "cpu17": 3},
        {},
    ]
    assert [row["description"] for row in rows] == ["8250 level serial", "usb_fiq", "", ""]
    assert [row["total"] for row in rows] == [18, None, 6, 4]
    assert unparsed == ["BAD: 1 2", "no colon"]
    assert parsed("interrupts", "XYZ0 CPU1\n 1: 2 3\n") == ([], ["XYZ0 CPU1", " 1: 2 3"])


def test_softirqs():
    assert found(recorded(NEW, "softirqs"), name="TIMER") == {
        "name": "TIMER",
        "total": 23599,
        "counts": {"cpu0": 12029, "cpu1": 11570},
    }


@pytest.mark.parametrize("name", ["iomem", "ioports"])
def test_address_ranges_and_zeros_that_hide_them(name):
    rows = recorded(NEW, "iomem")
    assert found(rows, name="Kernel code")["depth"] == 1
    assert rows[0] == {"start": "0x0", "end": "0xfff", "size_bytes": 4096, "name": "Reserved", "depth": 0}
    hidden, unparsed = parsed(name, "00000000-00000000 : Reserved\n  00000000-00000000 : Kernel code : x\n")
    assert ranges_hidden(hidden) and not ranges_hidden(rows)
    assert TABLES[name].hidden is ranges_hidden
    assert hidden[1] == {"start": None, "end": None, "size_bytes": None, "name": "Kernel code : x", "depth": 1}
    assert unparsed == []


def test_locks_of_every_kind():
    rows = recorded("6.18.44", "locks")
    assert rows[0] == {
        "id": 1,
        "blocked": False,
        "type": "ofdlck",
        "mode": "advisory",
        "access": "read",
        "pid": None,
        "device": "fe:00",
        "inode": 16639522,
        "start": 203,
        "end": 203,
    }
    text = "1: POSIX  ADVISORY  WRITE 7 fe:00:5 0 EOF\n1:  -> POSIX  ADVISORY  READ 8 fe:00:5 0 9\n"
    text += "2: LEASE  ACTIVE    READ  9 00:1b:6 0 EOF\n3: POSIX  ADVISORY  WRITE 7 <none>:0 0 EOF\n4: what\n"
    rows, unparsed = parsed("locks", text)
    assert [row["blocked"] for row in rows] == [False, True, False, False]
    assert [row["end"] for row in rows] == [None, 9, None, None]
    assert (rows[2]["type"], rows[2]["mode"], rows[3]["device"]) == ("lease", "active", "<none>")
    assert unparsed == ["4: what"]


def test_stat_has_seconds_and_only_cpus_that_are_online():
    table = recorded(NEW, "stat")
    assert table["cpu"]["user_seconds"] == 162.44
    assert (table["btime_seconds"], table["intr_total"], table["softirq_total"]) == (1795394440, 147340, 96272)
    text = "cpu  1 2 3 4\ncpu0 1 2 3 4 5\ncpu3 100 0 0 0 0 0 0 0 0 0 77\nnew 1 2\npage 5\ncpuX 1 2 3 4\n"
    table, unparsed = parsed("stat", text)
    assert [row["cpu"] for row in table["cpus"]] == [0, 3]
    assert table["cpu"]["guest_seconds"] is None
    assert table["cpus"][1]["more"] == [0.77]
    assert table["page"] == 5
    assert unparsed == ["new 1 2", "cpuX 1 2 3 4"]


def test_small_tables():
    assert recorded(NEW, "loadavg") == {
        "load_1m": 0.72,
        "load_5m": 0.42,
        "load_15m": 0.34,
        "runnable": 2,
        "entities": 104,
        "last_pid": 540,
    }
    assert recorded(NEW, "uptime") == {"uptime_seconds": 1349.77, "idle_seconds": 2245.55}
    assert recorded(NEW, "version")["release"] == NEW
    assert recorded(NEW, "version")["version"] == "#1 SMP PREEMPT_DYNAMIC Debian 7.2.12-1 (2026-10-22)"
    assert recorded(OLD, "cmdline")["parameters"]["console"] == ["ttyS0"]
    assert {"name": "ext4", "nodev": False} in recorded(NEW, "filesystems")
    assert {"name": "proc", "nodev": True} in recorded(NEW, "filesystems")
    assert {"major": 128, "name": "ptm"} in recorded(NEW, "devices")["character"]
    assert {"major": 4, "name": "/dev/vc/0"} in recorded(NEW, "devices")["character"]
    assert {"major": 259, "name": "blkext"} in recorded(NEW, "devices")["block"]
    assert parsed("version", "Linux\n")[0] == {
        "text": "Linux",
        "release": None,
        "builder": None,
        "compiler": None,
        "version": None,
    }


def test_disks():
    row = found(recorded("6.18.44", "diskstats"), name="vda")
    assert row["read_bytes"] == 55651922 * 512
    assert (row["read_seconds"], row["flushes"], row["discarded_bytes"]) == (2651.665, 139349, 139319816 * 512)
    old, new = "8 0 sda" + " 1" * 11, "8 0 sda" + " 1" * 19
    assert parsed("diskstats", old)[0][0]["discards"] is None
    assert parsed("diskstats", new)[0][0]["more"] == [1, 1]
    assert parsed("diskstats", "8 1 sda1 1 2 3 4\n")[1] == ["8 1 sda1 1 2 3 4"]
    assert recorded(NEW, "partitions") == [{"name": "vda", "major": 254, "minor": 0, "size_bytes": 8 << 30}]


def test_swaps():
    text = "Filename\tType\tSize\tUsed\tPriority\n/swap\\040file\\040(deleted) file\t1024\t8\t-2\n"
    row = {"path": "/swap file (deleted)", "type": "file", "size_bytes": 1 << 20, "used_bytes": 8192, "priority": -2}
    assert parsed("swaps", text) == ([row], [])


def test_cpuinfo_is_folded_and_other_architectures_have_other_blocks():
    table = recorded(NEW, "cpuinfo")
    assert [row["processor"] for row in table["processors"]] == [0, 1]
    assert set(table["processors"][0]) == {"processor", "core id", "apicid", "initial apicid", "bogomips"}
    assert table["common"]["cache size_bytes"] == 512 << 10
    assert "svm" in table["common"]["flags"] and table["common"]["power management"] == []
    arm = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n\nHardware\t: Board\n"
    table = parsed("cpuinfo", arm)[0]
    assert table["processors"] == [{"processor": 0}]  # what all share is in one place, however many there are
    assert table["common"]["Features"] == ["fp", "asimd"]
    assert table["machine"] == {"Hardware": "Board"}
    assert parsed("cpuinfo", "a : 1\na : 2\nrest\n")[1] == ["a : 2", "rest"]


def test_zones():
    zones = recorded(OLD, "zoneinfo")
    dma = found(zones, zone="DMA")
    assert dma["protection"] == [0, 2951, 2951, 2951, 2951]
    assert dma["counters"]["start_pfn"] == 1 and "nr_inactive_anon" in dma["node_counters"]
    assert found(zones, zone="DMA32")["pagesets"][1] == {
        "cpu": 1,
        "count": 1587,
        "high": 7004,
        "batch": 63,
        "vm stats threshold": 24,
    }
    assert found(zones, zone="DMA32")["counters"]["managed"] == 760197
    assert found(recorded(NEW, "buddyinfo"), zone="DMA32")["free"][-1] == 664
    assert parsed("zoneinfo", "  pages free 1\nNode 0, zone X\n   protection: (x)\n")[1] == [
        "  pages free 1",
        "   protection: (x)",
    ]


def test_slabinfo_follows_the_header():
    row = found(recorded(NEW, "slabinfo"), name="kvm_gmem_inode_cache")
    assert (row["active_objs"], row["objsize_bytes"], row["active_slabs"]) == (28, 608, 3)
    header = "# name <a> <b> : tunables <c> : slabdata <d>\n"
    damaged = ["z 1 : tunables 3", "w 1 2 : tunables 3 4 : slabdata 5", "v 1 2 : tunables 3 : slabdata x"]
    text = header + "\n".join(["x y 1 2 : tunables 3 : slabdata 4", *damaged])
    assert parsed("slabinfo", text) == ([{"name": "x y", "a": 1, "b": 2, "c": 3, "d": 4}], damaged)
    assert parsed("slabinfo", "x 1 2\n") == ([], ["x 1 2"])


def test_network():
    rows = recorded("6.18.44", "net_dev")
    assert found(rows, interface="eth0")["receive"]["bytes"] == 13486507409
    assert found(rows, interface="eth0")["transmit"]["packets"] == 156382
    header = "Inter-|   Receive     |  Transmit\n face |bytes drop|bytes\n"
    glued, unparsed = parsed("net_dev", header + "a:b:1 2 3\nshort: 1\n")
    assert glued == [{"interface": "a:b", "receive": {"bytes": 1, "drop": 2}, "transmit": {"bytes": 3}}]
    assert unparsed == ["short: 1"]
    assert recorded(NEW, "net_snmp")["Tcp"]["MaxConn"] == -1
    text = "Ip: A B\nIp: 1 2\nTcp: A B\nTcp: 1\nUdp: A\nUdp: x\n"
    assert parsed("net_snmp", text) == ({"Ip": {"A": 1, "B": 2}}, ["Tcp: A B", "Tcp: 1", "Udp: x"])


def test_schedstat_of_two_versions():
    old, new = recorded(OLD, "schedstat"), recorded(NEW, "schedstat")
    assert (old["version"], new["version"]) == (15, 17)
    assert (old["cpus"][0]["domains"][0]["name"], new["cpus"][0]["domains"][0]["name"]) == (None, "MC")
    assert old["cpus"][0]["domains"][0]["cpumask"] == new["cpus"][0]["domains"][0]["cpumask"] == "3"
    cpu = new["cpus"][1]
    assert (cpu["run_seconds"], cpu["wait_seconds"], cpu["timeslices"]) == (243.859864270, 140.227217794, 21169)


def test_latency_stats():
    text = "Latency Top version : v0.1\n3 4000000 2500000 do_select core_sys_select\nbad\n"
    row = {"count": 3, "total_seconds": 4.0, "maximum_seconds": 2.5, "trace": ["do_select", "core_sys_select"]}
    assert parsed("latency_stats", text) == ([row], ["bad"])


@pytest.mark.parametrize("word", ["1_000", "٣", "1e3", "0x10", "9" * 30, "+1", ""])
def test_a_number_is_what_the_kernel_prints(word):
    assert parsed("vmstat", f"good 1\nbad {word}\n")[0] == {"good": 1}


def test_lines_end_where_the_kernel_ends_them():
    assert parsed("filesystems", "nodev\ta\x0bb\x85c\u2028d\n")[0] == [{"name": "a\x0bb\x85c\u2028d", "nodev": True}]


def test_bytes_that_are_no_text_are_kept():
    assert parsed("filesystems", decode(b"\ta\xff\xfe\n"))[0] == [{"name": "a\\xff\\xfe", "nodev": False}]


def test_a_tree_without_files_is_absent(tmp_path):
    (tmp_path / "proc").mkdir()
    result = gather(Root(str(tmp_path)), options(tables=["all"], sysctls=["kernel.x"], kmsg={"limit": 1}))
    assert set(result["procfs"]) == {*TABLES, "sysctls", "kmsg"}
    assert set(result["status"].values()) == {"absent"}
    assert result["procfs"]["meminfo"] is None
    assert result["procfs"]["sysctls"] == {"kernel.x": None}
    assert (result["truncated"], result["unparsed"]) == ({}, {})


def test_a_table_that_cannot_be_read_is_reported(tmp_path):
    (tmp_path / "proc" / "meminfo").mkdir(parents=True)
    result = gather(Root(str(tmp_path)), options(tables=["meminfo"]))
    assert (result["procfs"], result["status"]) == ({"meminfo": None}, {"meminfo": "unreadable"})


def test_rows_are_limited_and_counted(tmp_path):
    (tmp_path / "proc").mkdir()
    lines = [f"{name} 0 - Live 0x1" for name in ("bad", "worse")] + [f"m{n} 1 0 - Live 0x1" for n in range(9)]
    (tmp_path / "proc" / "modules").write_text("\n".join(lines * 4) + "\n")
    result = gather(Root(str(tmp_path)), options(tables=["modules"], limit=7))
    assert len(result["procfs"]["modules"]) == 7
    assert result["truncated"] == {"modules": 29, "modules.unparsed": 3}
    assert result["unparsed"] == {"modules": ["bad 0 - Live 0x1", "worse 0 - Live 0x1"] * 2 + ["bad 0 - Live 0x1"]}


def test_a_result_is_as_small_as_asked_and_small_tables_stay_whole(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "vmstat").write_text("".join(f"counter{n} 123456789\n" for n in range(5000)))
    (tmp_path / "proc" / "uptime").write_text("1.0 2.0\n")
    (tmp_path / "proc" / "modules").write_text("".join(f"m{n} 1 0 - Live 0x1\n" for n in range(5000)))
    result = gather(Root(str(tmp_path)), options(tables=["vmstat", "uptime", "modules"], limit=5000, max_bytes=10000))
    assert len(json.dumps(result)) < 10000
    assert result["procfs"]["uptime"] == {"uptime_seconds": 1.0, "idle_seconds": 2.0}
    for name in ("vmstat", "modules"):
        assert len(result["procfs"][name]) > 15
        assert result["truncated"][name] + len(result["procfs"][name]) == 5000


@pytest.mark.parametrize("max_bytes", [8000, 20000, 48000])
def test_everything_at_once_is_as_small_as_asked(tmp_path, max_bytes):
    for name, table in TABLES.items():
        path = tmp_path / table.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"row {number} of {name} that nobody knows: x\n" for number in range(300)))
    for number in range(300):
        path = tmp_path / "proc" / "sys" / "kernel" / f"value_with_a_long_name_{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if number % 2 else path.write_text("text " * 100)
    asked = [f"kernel.value_with_a_long_name_{number}" for number in range(300)]
    result = gather(Root(str(tmp_path)), options(tables=["all"], sysctls=asked, max_bytes=max_bytes))
    assert max_bytes / 2 < len(json.dumps(result)) <= max_bytes
    assert result["truncated"]["sysctls"] > 0 and result["truncated"]["vmstat.unparsed"] == 295
    assert ("status" in result["truncated"]) == (max_bytes < 48000)


def test_a_very_large_file_is_read_in_part(tmp_path):
    (tmp_path / "proc").mkdir()
    row = "counter{:07d} 12345678901234567890\n"
    (tmp_path / "proc" / "vmstat").write_text("".join(row.format(number) for number in range(200000)))
    result = gather(Root(str(tmp_path)), options(tables=["vmstat"], max_bytes=10_000_000))
    assert 100000 < len(result["procfs"]["vmstat"]) < 200000
    assert set(result["procfs"]["vmstat"].values()) == {12345678901234567890}
    assert (result["truncated"], result["unparsed"]) == ({"vmstat": 1}, {})


def test_shares():
    assert bounds.shares({"a": 10, "b": 500, "c": 1000}, 410) == {"a": 10, "b": 200, "c": 200}
    assert bounds.shares({"a": 1, "b": 2}, 100) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("kernel.panic", ["kernel", "panic"]),
        ("net.ipv4.conf.eth0/100.forwarding", ["net", "ipv4", "conf", "eth0.100", "forwarding"]),
        ("net/ipv4/conf/eth0.100/forwarding", ["net", "ipv4", "conf", "eth0.100", "forwarding"]),
        ("kernel/panic", ["kernel", "panic"]),
    ],
)
def test_names_of_sysctls(name, parts):
    assert sysctls.parts_of(name) == parts


@pytest.mark.parametrize(
    "name", ["", ".", "../etc/passwd", "kernel/../../etc/passwd", "kernel..panic", "a\nb", "/etc", "."]
)
def test_what_leads_out_of_sysctls_is_refused(name, tmp_path):
    with pytest.raises(InvalidInput, match="An entry names a value below /proc/sys"):
        gather(Root(str(tmp_path)), options(sysctls=[name]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5\n", 5),
        ("-1\n", -1),
        ("4\t4\t1\t7\n", [4, 4, 1, 7]),
        ("", ""),
        ("007\n", "007"),
        ("(none)\n", "(none)"),
        ("a\nb\n", "a\nb"),
    ],
)
def test_values_of_sysctls(text, value):
    assert sysctls.sysctl_value(text) == value


def test_patterns_of_sysctls_match_one_component(tmp_path):
    for name in ("a/x/v", "a/y/v", "a/v", "b/x/v"):
        path = tmp_path / "proc" / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1\n")
    names = ["a.*.v", "a.*", "a/x/v", "a.nothing*", "no.such", "a.x"]
    reading, status = sysctls.read_sysctls(Root(str(tmp_path)), names)
    assert reading.value == {"a.x.v": 1, "a.y.v": 1, "a.v": 1, "no.such": None, "a.x": None}
    assert status == {"no.such": "absent", "a.x": "unreadable"}


def test_recorded_log():
    text = decode((FIXTURES / NEW / "kmsg").read_bytes())
    texts = text.replace("\n ", "\0 ").split("\n")[:-1]
    records = [kmsg.parse_record(record.replace("\0", "\n")) for record in texts]
    assert len(records) > 30
    assert records[0]["message"].startswith("Linux version 7.2.12")
    assert (records[0]["sequence"], records[0]["level"], records[0]["facility"]) == (0, "notice", 0)
    bus = [record for record in records if record["fields"].get("SUBSYSTEM") == "pci_bus"]
    assert bus[0]["fields"] == {"SUBSYSTEM": "pci_bus", "DEVICE": "+pci_bus:0000:00"}
    assert bus[0]["seconds"] == 3.578224


def test_a_record_of_the_log_is_unescaped():
    text = "30,5,1500000,c,caller=T1;a\\x09b\\xc3\\xa4\\x5cx41;c\n KEY=v\\x0aw\n"
    record = kmsg.parse_record(text)
    assert (record["message"], record["fields"]) == ("a\tbä\\x41;c", {"KEY": "v\nw"})
    assert (record["level"], record["facility"], record["seconds"]) == ("info", 3, 1.5)


def test_which_records_are_wanted():
    record = {"level": "warning", "seconds": 10.0, "message": "kvm: disabled"}
    assert kmsg.wanted_of({"limit": 5}, 100.0).takes(record)
    assert kmsg.wanted_of({"limit": 5, "level": "warning", "since": 10.0, "pattern": "^kvm"}, 100.0).takes(record)
    assert not kmsg.wanted_of({"limit": 5, "level": "err"}, 100.0).takes(record)
    assert not kmsg.wanted_of({"limit": 5, "since": -80.0}, 100.0).takes(record)
    assert kmsg.wanted_of({"limit": 5, "since": -95.0}, 100.0).takes(record)
    assert not kmsg.wanted_of({"limit": 5, "pattern": "xen"}, 100.0).takes(record)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kmsg": {"limit": 5, "pattern": "("}}, "for kmsg.pattern: The regular expression is not valid: "),
        ({"kmsg": {"limit": 0}}, "^Invalid value 0 for kmsg.limit: The limit must be 1 or more.$"),
        ({"limit": 0}, "^Invalid value 0 for limit: The limit must be 1 or more.$"),
        ({"max_bytes": 10}, "^Invalid value 10 for max_bytes: The limit must be 8000 or more.$"),
        ({"processes": {"limit": -1}}, "^Invalid value -1 for processes.limit: The limit must be 1 or more.$"),
    ],
)
def test_wrong_options_are_refused(changes, words, tmp_path):
    with pytest.raises(InvalidInput, match=words):
        gather(Root(str(tmp_path)), options(**changes))
