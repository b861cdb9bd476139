# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes: recorded files, names that look like something else, and processes that end while they are read."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import pwd
import shutil
import subprocess
import sys
import time

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs import process_files, processes
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.parse import NotARow, decode
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.procfs.processes import SECTIONS, Wanted

FIXTURES = next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures" / "procfs"
KERNELS = ["6.1.0-50-cloud-amd64", "7.2.12+deb14-cloud-amd64"]
ALL = tuple(SECTIONS)


def recorded(release, section):
    unparsed: list[str] = []
    text = decode((FIXTURES / release / "pid" / section).read_bytes())
    value = SECTIONS[section](text, unparsed)
    assert unparsed == []
    assert json.loads(json.dumps(value)) == value
    return value


def read_processes(**wanted):
    return processes.read_processes(Root(), Wanted(**wanted))


@pytest.mark.parametrize("release", KERNELS)
def test_recorded_files_of_the_first_process(release):
    stat = recorded(release, "stat")
    assert (stat["pid"], stat["comm"], stat["state"], stat["ppid"]) == (1, "systemd", "S", 0)
    assert stat["rsslim_bytes"] is None and stat["kstkesp"] is None and stat["startcode"].startswith("0x5")
    assert stat["exit_code"] == 0 and "more" not in stat and "signal" not in stat
    status = recorded(release, "status")
    assert status["Uid"] == {"real": 0, "effective": 0, "saved": 0, "filesystem": 0}
    assert (status["Umask"], status["SigBlk"], status["Cpus_allowed_list"]) == ("0000", "7fefc1fe28014a03", "0-1")
    assert status["VmSize_bytes"] == stat["vsize_bytes"]
    assert (status["NSpid"], status["Groups"], status["Threads"]) == ([1], [], 1)
    assert "Cpus_allowed" not in status
    assert recorded(release, "cmdline") == ["/sbin/init"]
    assert recorded(release, "io")["rchar"] > 0
    limits = recorded(release, "limits")
    assert limits["open files"] == {"soft": 1073741816, "hard": 1073741816, "unit": "files"}
    assert limits["cpu time"] == {"soft": None, "hard": None, "unit": "seconds"}
    assert limits["nice priority"] == {"soft": 0, "hard": 0, "unit": None}
    assert recorded(release, "cgroup") == [{"hierarchy": 0, "controllers": [], "path": "/init.scope"}]
    maps = recorded(release, "maps")
    assert (maps["mappings"], maps["files"][0]["deleted"]) == (45, False)
    assert maps["size_bytes"] > maps["executable_bytes"] > 0


TAIL = " S 1 " + " ".join(["7"] * 48)


@pytest.mark.parametrize(
    "comm", ["a) R 1 1 (b", "two\nlines", "a b", "", ")", "(", "\\xff", "kworker/u8:2-events_unbound"]
)
def test_a_name_ends_at_the_last_parenthesis(comm):
    stat = process_files.stat(f"5 ({comm}){TAIL}\n")
    assert (stat["comm"], stat["state"], stat["ppid"], stat["exit_code"]) == (comm, "S", 1, 7)


def test_addresses_that_the_kernel_hides_are_null():
    # It prints 0, and 1 for those of the code.
    stat = process_files.stat("5 (a) S " + " ".join(["1"] * 48))
    assert (stat["startcode"], stat["endcode"], stat["kstkesp"]) == (None, None, None)
    assert process_files.stat(f"5 (a){TAIL}")["startcode"] == "0x7"


def test_a_future_kernel_may_have_more_and_an_old_one_less():
    assert process_files.stat(f"5 (a){TAIL} 8 9\n")["more"] == [8, 9]
    assert process_files.stat("5 (a) S " + " ".join(["7"] * 30))["exit_code"] is None


@pytest.mark.parametrize("text", ["", "5 (a", "5 (a) S 1 2 3", "x (a)" + TAIL, "5 a" + TAIL, "5 (a) S " + "x " * 40])
def test_what_is_no_stat_is_refused(text):
    with pytest.raises(NotARow):
        process_files.stat(text)


def test_unusual_status_cgroup_maps_and_arguments():
    unparsed: list[str] = []
    status = process_files.status("Name:\ta\\nb\\\\c\nSigQ:\t1/2\nSigCgt:\t0000000000000001\nodd\nUid:\t1\n", unparsed)
    assert (status["Name"], status["SigQ"], status["SigCgt"]) == ("a\nb\\c", "1/2", "0000000000000001")
    assert unparsed == ["odd", "Uid:\t1"]
    rows = process_files.cgroup("4:cpu,cpuacct:/a:b\\012c (deleted)\n0::/\nodd\n", unparsed)
    assert rows[0] == {"hierarchy": 4, "controllers": ["cpu", "cpuacct"], "path": "/a:b\nc (deleted)"}
    text = "1000-3000 rw-p 00000000 00:00 0                  [heap]\n"
    text += "3000-4000 r-xp 00000000 fe:00 7   /a b\\012c (deleted)\n4000-5000 rwxp 00000000 00:00 0 \nodd\n"
    maps = process_files.maps(text, unparsed)
    assert (maps["size_bytes"], maps["heap_bytes"], maps["executable_bytes"]) == (0x4000, 0x2000, 0x2000)
    assert (maps["anonymous_bytes"], maps["private_writable_bytes"]) == (0x1000, 0x3000)
    assert maps["files"] == [{"path": "/a b\nc", "size_bytes": 0x1000, "deleted": True}]
    assert unparsed[2:] == ["odd", "odd"]
    assert process_files.cmdline("") == []
    assert process_files.cmdline("a\0\0b c\0") == ["a", "", "b c"]
    assert process_files.cmdline("nginx: worker\0\0\0\0") == ["nginx: worker"]


@pytest.mark.parametrize(
    ("arguments", "domain"),
    [
        (["/usr/bin/qemu-system-x86_64", "-name", "guest=web1,debug-threads=on", "-S"], "web1"),
        (["/usr/libexec/qemu-kvm", "-name", "guest=a,,b,debug-threads=on"], "a,b"),
        (["/usr/bin/qemu-system-x86_64", "-name", "guest=a,,,debug-threads=on"], "a,"),
        (["/usr/lib/xen-4.20/bin/qemu-system-i386", "-name", "hvm1"], "hvm1"),
        (["/usr/lib/libvirt/libvirt_lxc", "--name", "box,1", "--console", "22"], "box,1"),
        (["/usr/bin/qemu-system-x86_64", "-name"], None),
        (["/bin/echo", "-name", "guest=web1"], None),
        ([], None),
    ],
)
def test_the_domain_of_a_process(arguments, domain):
    assert processes.domain_of(arguments) == domain


@pytest.fixture
def child(tmp_path, start):
    """A program that sleeps, as a copy of sleep with a name of its own."""

    def run(name="sleeper", **options):
        program = tmp_path / name
        shutil.copy(shutil.which("sleep") or "sleep", str(program))
        return start([str(program), "300"], **options)

    return run


def test_a_process_agrees_with_ps(child):
    pid = child("sleep-for-ps").pid
    columns = "pid=,ppid=,nlwp=,rss=,vsz=,uid=,comm="
    theirs = subprocess.run(["ps", "-o", columns, "-p", str(pid)], stdout=subprocess.PIPE, check=True).stdout.split()
    row = read_processes(pids=[pid], sections=ALL).value[0]
    ours = [row["pid"], row["ppid"], row["threads"], row["rss_bytes"] >> 10, row["vsize_bytes"] >> 10, row["uid"]]
    assert [*(str(number).encode() for number in ours), row["name"].encode()] == theirs
    assert row["user"] == pwd.getpwuid(os.geteuid()).pw_name
    assert row["cmdline"][1:] == ["300"] and row["status"]["Name"] == "sleep-for-ps"
    assert row["unavailable"] == {}
    text = pathlib.Path(f"/proc/{pid}/maps").read_text()
    ranges = [line.split()[0].split("-") for line in text.splitlines()]
    assert row["maps"]["size_bytes"] == sum(int(end, 16) - int(start, 16) for start, end in ranges)
    assert row["maps"]["mappings"] == len(ranges)
    assert row["limits"]["open files"]["soft"] == int(
        subprocess.run(
            ["prlimit", "--nofile", "--output=SOFT", "--noheadings", "-p", str(pid)], stdout=subprocess.PIPE, check=True
        ).stdout
    )
    age = subprocess.run(["ps", "-o", "etimes=", "-p", str(pid)], stdout=subprocess.PIPE, check=True).stdout
    uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    assert abs(uptime - row["start_seconds"] - int(age)) < 3


def test_all_processes_are_those_of_ps():
    argv = ["ps", "-e", "-o", "pid=,ppid="]
    before = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout
    ours = {(row["pid"], row["ppid"]) for row in read_processes(limit=100000).value}
    after = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout
    steady = {tuple(int(word) for word in line.split()) for line in before.splitlines() if line in after.splitlines()}
    assert len(steady) > 3
    assert steady <= ours | {row for row in steady if not os.path.exists(f"/proc/{row[0]}")}


def test_filters_hold_together(child):
    first, second = child("tv-one"), child("tv-two")
    assert {row["pid"] for row in read_processes(name="tv-*").value} == {first.pid, second.pid}
    assert [row["pid"] for row in read_processes(name="tv-*", pids=[second.pid]).value] == [second.pid]
    user = pwd.getpwuid(os.geteuid()).pw_name
    for asked in (user, str(os.geteuid())):
        assert {row["pid"] for row in read_processes(name="tv-*", user=asked).value} == {first.pid, second.pid}
    assert read_processes(name="tv-*", user="no-such-user").value == []
    group = read_processes(pids=[first.pid], sections=["cgroup"]).value[0]["cgroup"][0]["path"]
    assert {row["pid"] for row in read_processes(name="tv-*", cgroup=group).value} == {first.pid, second.pid}
    assert len(read_processes(name="tv-*", cgroup="/").value) == 2
    assert read_processes(name="tv-*", cgroup="/no/such").value == []
    newest = read_processes(name="tv-*", sort="start", limit=1)
    assert ([row["pid"] for row in newest.value], newest.left_out) == ([second.pid], 1)


def test_a_control_group_takes_those_below_it(tmp_path):
    for pid, path in (
        ("11", "/machine.slice/machine-qemu.scope/emulator"),
        ("12", "/system.slice"),
        ("13", "/machine.slice2"),
    ):
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "stat").write_text(f"{pid} (a){TAIL}\n")
        (tmp_path / "proc" / pid / "status").write_text("Uid:\t0\t0\t0\t0\n")
        (tmp_path / "proc" / pid / "cgroup").write_text(f"0::{path}\n")

    def pids(pattern):
        return [row["pid"] for row in processes.read_processes(Root(str(tmp_path)), Wanted(cgroup=pattern)).value]

    assert pids("/machine.slice") == pids("machine.slice/") == pids("/machine.*/machine-qemu*") == [11]
    assert pids("/*.slice") == [11, 12]
    assert pids("/") == [11, 12, 13]


def test_a_domain_is_found_by_its_command_line(start):
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        pytest.fail("qemu-system-x86_64 is not installed: './dev test unit' installs it.")
    quiet = ["-S", "-machine", "none", "-accel", "tcg", "-nodefaults", "-display", "none"]
    # As libvirt starts it.
    process = start([program, "-name", "guest=tv,,procfs,debug-threads=on", *quiet])
    found = read_processes(domain="tv,procfs", sections=["cmdline"]).value
    assert [row["pid"] for row in found] == [process.pid]
    assert found[0]["cmdline"][1:3] == ["-name", "guest=tv,,procfs,debug-threads=on"]
    assert read_processes(domain="tv").value == []


NAMES = [b"a) R 1 1 (", b"two\nlines", b"\xff\xfe", b"sp ace", b"", b"b\\n"]


@pytest.mark.parametrize("name", NAMES)
def test_a_live_name_that_looks_like_something_else(name):
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
        os.write(go, b"x")
        time.sleep(300)
        os._exit(0)
    try:
        os.read(ready, 1)
        row = read_processes(pids=[pid], sections=["status", "stat"]).value[0]
        assert row["name"] == row["status"]["Name"] == row["stat"]["comm"] == decode(name)
        assert (row["pid"], row["ppid"]) == (pid, os.getpid())
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(go)


def test_a_process_that_ended_is_gone_whoever_holds_it(child):
    process = child("tv-gone")
    with processes.Process(Root(), process.pid) as held:
        assert held.stat()["comm"] == "tv-gone"
        process.kill()
        process.wait()
        for section in SECTIONS:
            with pytest.raises(processes.Gone):
                held.read(section)
    with pytest.raises(processes.Gone):
        processes.Process(Root(), process.pid)
    assert read_processes(pids=[process.pid]).value == []


def test_another_process_with_the_same_number_is_another_one(child):
    summary = read_processes(pids=[child("tv-reused").pid]).value[0]
    assert processes.read_row(Root(), summary, Wanted(), [])["pid"] == summary["pid"]
    with pytest.raises(processes.Gone):
        processes.read_row(Root(), {**summary, "start_seconds": summary["start_seconds"] - 10}, Wanted(), [])


def test_a_zombie_is_a_process(child):
    process = child("tv-zombie")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    row = read_processes(pids=[process.pid], sections=ALL).value[0]
    assert (row["state"], row["cmdline"], row["maps"]["mappings"]) == ("Z", [], 0)


def test_processes_that_vanish_give_no_error():
    forks = 1000
    program = f"import os\nfor _ in range({forks}):\n p = os.fork()\n if not p: os._exit(0)\n os.waitpid(p, 0)\n"
    process = subprocess.Popen([sys.executable, "-S", "-c", program])
    rounds = 0
    try:
        while process.poll() is None or rounds < 3:
            reading = read_processes(sections=ALL, sort="start", limit=30)
            assert reading.status == "present"
            assert all(row["pid"] and row["status"] is not None for row in reading.value)
            rounds += 1
    finally:
        process.kill()
        process.wait()


def test_a_section_that_this_kernel_lacks_is_reported(tmp_path):
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "stat").write_text(f"7 (a){TAIL}\n")
    (tmp_path / "proc" / "7" / "status").write_text("Name:\ta\n")
    row = processes.read_processes(Root(str(tmp_path)), Wanted(sections=["io"])).value[0]
    assert (row["io"], row["unavailable"], row["uid"], row["user"]) == (None, {"io": "absent"}, None, None)
    (tmp_path / "proc" / "8").mkdir()
    (tmp_path / "proc" / "8" / "stat").write_text("8 damaged\n")
    assert [row["pid"] for row in processes.read_processes(Root(str(tmp_path)), Wanted()).value] == [7]
