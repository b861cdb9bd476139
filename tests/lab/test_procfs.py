# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""procfs of three kernels, value by value against other readers in the guests, as root and as a user without rights."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import typing as t
import zipfile

import pytest

from .support.places import TREE

CODE = TREE / "plugins" / "module_utils"
OPTIONS = {
    "tables": ["all"],
    "sysctls": ["kernel.printk", "kernel.pid_max"],
    "processes": {
        "name": "tv) R*",
        "sections": ["stat", "status", "cmdline", "io", "limits", "cgroup", "maps"],
        "sort": "pid",
        "limit": 5,
    },
    "kmsg": {"limit": 100000},
    "limit": 100000,
    "max_bytes": 10000000,
}
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from module_utils._core.root import Root
from module_utils._kernel.procfs.gather import gather
json.dump(gather(Root(), json.loads(sys.argv[2])), sys.stdout)
"""
# Guests are slow: all reads in one script. It starts a process whose name looks like fields of /proc/PID/stat.
READERS = r"""
set -e
export LC_ALL=C
work=$(mktemp -d)
chmod 755 $work
base64 -d >$work/code.zip <<'END'
@CODE@
END
cat >$work/program.py <<'END'
@PROGRAM@
END
cp /bin/sleep "$work/tv) R 1 (x"
"$work/tv) R 1 (x" 300 </dev/null >/dev/null 2>&1 &
pid=$!
trap 'kill $pid; rm -rf $work' EXIT
sleep 1
mark() { echo "%%%$1"; }
mark root; python3 $work/program.py $work/code.zip '@OPTIONS@'; echo
mark nobody
setpriv --reuid=65534 --regid=65534 --clear-groups python3 $work/program.py $work/code.zip '@OPTIONS@'; echo
mark pid; echo $pid
mark lsmod; lsmod | awk 'NR > 1 {print $1, $2, $3}'
mark taints; awk '/\(.*\)$/ {print $1, $NF}' /proc/modules
mark addresses; awk '{print $1, $6}' /proc/modules
mark memory; free -b | awk '/^Mem|^Swap/ {print $2}'
mark cpus; lscpu -p=CPU | grep -v '^#'
mark model; lscpu | sed -n 's/^Model name: *//p'
mark mounts; findmnt --noheadings --raw --output TARGET,FSTYPE
mark irqs; awk 'NR > 1 {sub(":", "", $1); print $1}' /proc/interrupts
mark iomem; awk '{print $1}' /proc/iomem
mark slabs; awk 'NR > 2 {print $1, $4}' /proc/slabinfo
mark zones; awk '/^Node/ {sub(",", "", $2); zone = $2 " " $4} $1 == "managed" {print zone, $2}' /proc/zoneinfo
mark disks; lsblk --bytes --raw --noheadings --output NAME,SIZE
mark schedstat; awk '/^version/ {v = $2} /^domain/ {n++} END {print v, n + 0}' /proc/schedstat
mark uname; uname -r; uname -v
mark sysctls; sysctl -n kernel.pid_max; sysctl -n kernel.printk
mark ps; ps -o pid=,ppid=,nlwp=,vsz=,rss=,uid=,comm= -p $pid
mark maps; wc -l </proc/$pid/maps
mark log; dmesg --json
"""


class Readings(t.NamedTuple):
    """Values read in a guest: by our code as root and as another user, and by other programs (name -> lines)."""

    root: dict[str, t.Any]
    nobody: dict[str, t.Any]
    others: dict[str, list[str]]


def code_archive() -> bytes:
    """Return a zip file from which a guest imports the package ``module_utils``."""
    paths = [*CODE.glob("_core/**/*.py"), *CODE.glob("_kernel/**/*.py")]
    names = [path.relative_to(CODE.parent) for path in paths]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as code:
        # Packages without a file of their own need an entry.
        for directory in sorted({parent.as_posix() for name in names for parent in name.parents[:-1]}):
            code.writestr(directory + "/", "")
        for path, name in zip(paths, names, strict=True):
            code.write(path, name.as_posix())
    return archive.getvalue()


@pytest.fixture(scope="module")
def all_readings(lab, kernel_hosts):
    """The readings of all guests, which are read at once."""
    script = READERS.replace("@CODE@", base64.encodebytes(code_archive()).decode().strip())
    script = script.replace("@PROGRAM@", PROGRAM).replace("@OPTIONS@", json.dumps(OPTIONS))

    def read(host: str) -> Readings:
        done = lab.run(host, "sh", stdin=script, timeout=300)
        assert done.returncode == 0, done.stderr
        parts = dict(part.split("\n", 1) for part in done.stdout.split("%%%")[1:])
        others = {name: text.splitlines() for name, text in parts.items() if name not in ("root", "nobody")}
        return Readings(json.loads(parts["root"]), json.loads(parts["nobody"]), others)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(kernel_hosts, pool.map(read, kernel_hosts), strict=True))


@pytest.fixture
def readings(kernel_host, all_readings):
    """The readings of one guest."""
    return all_readings[kernel_host]


def test_every_row_of_every_table_is_parsed(readings):
    assert readings.root["unparsed"] == readings.nobody["unparsed"] == {}
    assert readings.root["truncated"] == {}
    absent = {name for name, status in readings.root["status"].items() if status != "present"}
    assert absent == {"latency_stats"}


def test_modules_agree_with_lsmod(readings):
    rows = readings.root["procfs"]["modules"]
    assert [f"{row['name']} {row['size_bytes']} {row['references']}" for row in rows] == readings.others["lsmod"]
    assert {row["name"] for row in rows if row["taints"]} == {line.split()[0] for line in readings.others["taints"]}
    assert [f"{row['name']} {row['address']}" for row in rows] == readings.others["addresses"]


def test_tables_agree_with_other_readers(readings):
    ours, others = readings.root["procfs"], readings.others
    assert [ours["meminfo"][name] for name in ("MemTotal_bytes", "SwapTotal_bytes")] == [
        int(line) for line in others["memory"]
    ]
    cpus = ours["cpuinfo"]
    assert [str(row["processor"]) for row in cpus["processors"]] == others["cpus"]
    assert [cpus["common"]["model name"]] == others["model"]
    assert [str(row["cpu"]) for row in ours["stat"]["cpus"]] == others["cpus"]
    assert {(row["target"], row["type"]) for row in ours["mounts"]} == {
        tuple(line.split(" ")) for line in others["mounts"]
    }
    assert len(ours["mountinfo"]) == len(ours["mounts"]) == len(others["mounts"])
    assert [row["irq"] for row in ours["interrupts"]] == others["irqs"]
    assert [(int(row["start"], 16), int(row["end"], 16)) for row in ours["iomem"]] == [
        tuple(int(word, 16) for word in line.split("-")) for line in others["iomem"]
    ]
    assert {f"{row['name']} {row['objsize_bytes']}" for row in ours["slabinfo"]} == set(others["slabs"])
    zones = [f"{row['node']} {row['zone']} {row['counters']['managed']}" for row in ours["zoneinfo"]]
    assert zones == others["zones"]
    assert [f"{row['name']} {row['size_bytes']}" for row in ours["partitions"]] == others["disks"]
    version, domains = (int(word) for word in others["schedstat"][0].split())
    assert ours["schedstat"]["version"] == version
    assert sum(len(row["domains"]) for row in ours["schedstat"]["cpus"]) == domains
    assert [ours["version"]["release"], ours["version"]["version"]] == others["uname"]
    assert ours["sysctls"]["kernel.pid_max"] == int(others["sysctls"][0])
    assert ours["sysctls"]["kernel.printk"] == [int(word) for word in others["sysctls"][1].split()]


def test_process_agrees_with_ps(readings):
    row = readings.root["procfs"]["processes"][0]
    assert [str(row["pid"])] == readings.others["pid"]
    words = readings.others["ps"][0].split(None, 6)
    ours = [row["pid"], row["ppid"], row["threads"], row["vsize_bytes"] >> 10, row["rss_bytes"] >> 10, row["uid"]]
    assert [*(str(number) for number in ours), row["name"]] == words
    assert row["name"] == row["stat"]["comm"] == row["status"]["Name"] == "tv) R 1 (x"
    assert row["cmdline"][1:] == ["300"] and row["unavailable"] == {}
    assert [str(row["maps"]["mappings"])] == readings.others["maps"]


def test_kernel_log_agrees_with_dmesg(readings):
    theirs = json.loads("\n".join(readings.others["log"]))["dmesg"]
    ours = readings.root["procfs"]["kmsg"]
    assert len(ours) > 100
    assert [(row["seconds"], row["message"]) for row in ours] == [
        (row["time"], row["msg"]) for row in theirs[: len(ours)]
    ]


def test_restricted_values_are_marked_for_other_users(readings):
    status = readings.nobody["status"]
    assert {name for name, word in status.items() if word == "restricted"} >= {"iomem", "ioports", "slabinfo"}
    assert readings.nobody["procfs"]["slabinfo"] is None
    assert [row["name"] for row in readings.nobody["procfs"]["iomem"]] == [
        row["name"] for row in readings.root["procfs"]["iomem"]
    ]
    assert {row["end"] for row in readings.nobody["procfs"]["iomem"]} == {None}
    assert {row["address"] for row in readings.nobody["procfs"]["modules"]} == {None}
    process = readings.nobody["procfs"]["processes"][0]
    assert process["unavailable"] == {"io": "restricted", "maps": "restricted"}
    assert process["stat"]["startcode"] is None and process["limits"]["open files"]["soft"]


def test_module_result_is_small_and_complete(lab, kernel_hosts):
    results = lab.ansible(
        ",".join(kernel_hosts), "tapvirt.host.procfs_info", {"tables": ["all"], "kmsg": {"level": "err"}}
    )
    assert set(results) == set(kernel_hosts)
    for result in results.values():
        assert not result["failed"] and not result["changed"]
        assert result["status"]["modules"] == "present" and result["unparsed"] == {}
        assert len(json.dumps(result)) < 50000
