# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What domains that need nothing cost, against a loop of community.libvirt.virt and against an empty play.

A libvirtd of its own, in a mount namespace of its own, so that the machine's libvirt is neither seen nor changed.
It takes root. The peer comes from the PyPI package ``ansible``; only its folder is taken out of it.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing as t
import zipfile

FEW, MANY, STARTED = 50, 500, 20
TURNS = 3
WAIT_SECONDS = 30.0
EMPTY: dict[str, t.Any] = {"ansible.builtin.ping": {}}
_INSIDE = "TAPVIRT_BENCH_NAMESPACE"
_PRIVATE = ["/etc/libvirt", "/run", "/var/cache/libvirt", "/var/lib/libvirt", "/var/log/libvirt"]
_XML = """
<domain type='qemu'>
  <name>{name}</name>
  <uuid>3f2a1f9e-2f1c-4f55-9a43-{number:012x}</uuid>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/var/lib/libvirt/images/{name}.img'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='user'><mac address='52:54:00:00:{high:02x}:{low:02x}'/><model type='virtio'/></interface>
    <serial type='pty'/>
  </devices>
</domain>
"""


def xml_of(number: int) -> str:
    """Return the definition of one domain; the peer would change MAC addresses that are not said."""
    return _XML.format(name=f"bench-{number:03}", number=number, high=number // 256, low=number % 256)


def ours(count: int, state: str = "present") -> dict[str, t.Any]:
    """Return the one task for many domains."""
    domains = [{"name": f"bench-{number:03}", "xml": xml_of(number), "state": state} for number in range(count)]
    return {"tapvirt.host.libvirt_domain": {"domains": domains, "on_timeout": "destroy", "wait_seconds": 1}}


def peers(count: int) -> dict[str, t.Any]:
    """Return the looped task of the peer."""
    return {
        "community.libvirt.virt": {"command": "define", "xml": "{{ item }}"},
        "loop": [xml_of(number) for number in range(count)],
        "loop_control": {"label": ""},
    }


def fetch_peer(folder: pathlib.Path) -> None:
    """Put community.libvirt, and the library that it needs, below a folder."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "download", "--no-deps", "--only-binary=:all:", "-d", folder, "ansible"], check=True)
    subprocess.run([*pip, "install", "--target", folder / "python", "lxml"], check=True)
    (wheel,) = folder.glob("ansible-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inner = "ansible_collections/community/libvirt/"
        archive.extractall(folder / "peer", [name for name in archive.namelist() if name.startswith(inner)])
    wheel.unlink()


class Daemon:
    """A libvirtd that lives as long as the block."""

    def __init__(self) -> None:
        for path in _PRIVATE:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
        pathlib.Path("/var/lib/libvirt/images").mkdir()
        for number in range(STARTED):
            pathlib.Path(f"/var/lib/libvirt/images/bench-{number:03}.img").write_bytes(bytes(512))
        pathlib.Path("/etc/libvirt/qemu.conf").write_text('stdio_handler = "file"\nuser = "root"\n', encoding="ascii")

    def __enter__(self) -> None:
        program = shutil.which("libvirtd", path="/usr/sbin:/sbin:/usr/bin")
        if not program:
            raise SystemExit("No libvirtd here: apt-get install libvirt-daemon-system")
        self._process = subprocess.Popen([program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        socket = pathlib.Path("/run/libvirt/libvirt-sock")
        give_up = time.monotonic() + WAIT_SECONDS
        while not socket.exists():
            if time.monotonic() > give_up:
                raise SystemExit("libvirtd did not start.")
            time.sleep(0.1)

    def __exit__(self, *_error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(WAIT_SECONDS)


def play(
    folder: pathlib.Path, task: dict[str, t.Any], inventory: str = "localhost,"
) -> tuple[float, list[dict[str, int]]]:
    """Run one task on this machine, as each host of an inventory; return the wall time in seconds, and the recaps."""
    book = folder / "book.yml"
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]), encoding="utf-8")
    found = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")
    env = os.environ | {
        "ANSIBLE_COLLECTIONS_PATH": f"{folder / 'peer'}:{found}",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{folder / 'python'}",
    }
    argv = ["ansible-playbook", "-i", inventory, "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]
    started = time.perf_counter()
    done = subprocess.run(
        [*argv, str(book)], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    wall = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    recaps = [line.split() for line in done.stdout.rpartition("PLAY RECAP")[2].splitlines() if "ok=" in line]
    return wall, [{key: int(value) for key, value in (word.split("=") for word in line[2:])} for line in recaps]


def best(folder: pathlib.Path, tasks: dict[str, dict[str, t.Any]]) -> dict[str, tuple[float, int]]:
    """Run each task in turns; return its least wall time and what it said that it changed."""
    rows: dict[str, tuple[float, int]] = {}
    for _turn in range(TURNS):
        for title, task in tasks.items():
            wall, (recap,) = play(folder, task)
            rows[title] = (min(wall, rows.get(title, (wall, 0))[0]), recap["changed"])
    return rows


def main() -> None:
    """Print a table: wall time, seconds above an empty play, times that of one task for the few."""
    if os.geteuid() != 0:
        print("Not measured: a libvirtd in a mount namespace takes root.")
        return
    if not os.environ.get(_INSIDE):
        env = os.environ | {_INSIDE: "1"}
        os.execvpe("unshare", ["unshare", "--mount", sys.executable, __file__], env)
    with tempfile.TemporaryDirectory(prefix="tapvirt-", dir="/var/tmp") as name:
        folder = pathlib.Path(name)
        fetch_peer(folder)
        few = f"tapvirt.host.libvirt_domain, {FEW} domains"
        loop = f"community.libvirt.virt, loop of {FEW}"
        many = f"tapvirt.host.libvirt_domain, {MANY} domains"
        start, stop = f"  {STARTED} of them started", f"  {STARTED} of them stopped"
        with Daemon():
            play(folder, ours(MANY))
            tasks = {"an empty play": EMPTY, few: ours(FEW), loop: peers(FEW), many: ours(MANY)}
            rows = best(folder, tasks)
            for title, state in ((start, "running"), (stop, "shutdown")):
                wall, (recap,) = play(folder, ours(STARTED, state))
                rows[title] = (wall, recap["changed"])
    floor, unit = rows["an empty play"][0], rows[few][0]
    print(f"{'':<48} {'s':>8} {'above':>8} {'x':>8} {'changed':>8}")
    for title, (wall, changed) in rows.items():
        print(f"{title:<48} {wall:>8.2f} {wall - floor:>8.2f} {wall / unit:>8.2f} {changed:>8}")


if __name__ == "__main__":
    main()
