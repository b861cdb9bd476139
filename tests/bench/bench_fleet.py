# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What gathering a fleet's facts costs over real ssh, against ansible.builtin.ping and setup in the same run.

Addresses of 127.0.0.0/8 with an sshd behind them stand for the hosts, so that this machine does the work of the
controller and of every host: what is compared is the whole. TAPVIRT_BENCH_HOSTS is the number of hosts (200).
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import pathlib
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing as t

from host import HOST_PYTHON

HOSTS = int(os.environ.get("TAPVIRT_BENCH_HOSTS", "200"))
FORKS = 25
RAW = "ansible.builtin.raw"
FACTS = "tapvirt.host.kernel_facts"
TASKS: list[tuple[str, dict[str, t.Any]]] = [
    ("ansible.builtin.ping", {"ansible.builtin.ping": {}}),
    ("ansible.builtin.setup", {"ansible.builtin.setup": {}}),
    ("tapvirt.host.kernel_facts", {FACTS: {}}),
    ("  transport: module", {FACTS: {"transport": "module"}}),
    ("  module, without the symbol table", {FACTS: {"transport": "module", "gather_subset": ["!symbols", "!tracing"]}}),
    ("raw: cat /proc/kallsyms >/dev/null", {RAW: "cat /proc/kallsyms >/dev/null"}),
    ("raw: true", {RAW: "true"}),
]
SSHD = """
AuthorizedKeysFile {folder}/key.pub
HostKey {folder}/key
KbdInteractiveAuthentication no
PasswordAuthentication no
PermitRootLogin yes
PidFile none
StrictModes no
UsePAM no
"""


def addresses() -> list[str]:
    """Return one loopback address for each host."""
    return ["127.1.{}.{}".format(number // 250, number % 250 + 1) for number in range(HOSTS)]


@contextlib.contextmanager
def sshd(folder: pathlib.Path) -> t.Iterator[int]:
    """Listen on all addresses and give every connection to an sshd of its own, as inetd does; yield the port.

    A single sshd listens on sixteen addresses, or on all of this machine's, which are not loopback's alone.
    """
    program = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin")
    if not program:
        raise SystemExit("No sshd here: apt-get install openssh-server")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    config = folder / "sshd_config"
    config.write_text(SSHD.format(folder=folder), encoding="utf-8")
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    selector = selectors.DefaultSelector()
    started: list[subprocess.Popen[bytes]] = []
    port = 0
    for address in addresses():
        listener = socket.create_server((address, port), backlog=16)
        port = listener.getsockname()[1]
        selector.register(listener, selectors.EVENT_READ)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            for key, _mask in selector.select(0.2):
                connection, _peer = t.cast("socket.socket", key.fileobj).accept()
                with connection, (folder / "sshd.log").open("ab") as log:
                    argv = [program, "-i", "-e", "-f", str(config)]
                    started.append(
                        subprocess.Popen(argv, stdin=connection.fileno(), stdout=connection.fileno(), stderr=log)
                    )

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield port
    finally:
        ended.set()
        thread.join()
        for process in started:
            process.terminate()
            process.wait(30)
        for key in list(selector.get_map().values()):
            t.cast("socket.socket", key.fileobj).close()


def write_inventory(folder: pathlib.Path, port: int) -> pathlib.Path:
    """Write an inventory whose hosts differ in their address only."""
    variables = {
        "ansible_port": port,
        "ansible_user": getpass.getuser(),
        "ansible_ssh_private_key_file": str(folder / "key"),
        "ansible_python_interpreter": HOST_PYTHON,
        "ansible_ssh_common_args": "-F /dev/null -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
    }
    hosts = {"host{:04}".format(number): {"ansible_host": address} for number, address in enumerate(addresses())}
    path = folder / "inventory.yml"
    path.write_text(json.dumps({"all": {"vars": variables, "hosts": hosts}}), encoding="utf-8")
    return path


def play(folder: pathlib.Path, inventory: pathlib.Path, task: dict[str, t.Any]) -> tuple[float, float, int]:
    """Run one task on all hosts: wall time in seconds, the controller's peak memory in MiB, the largest result's size.

    The memory is that of the largest process, which is the one that holds the results.
    """
    book = folder / "book.yml"
    measure = {"ansible.builtin.debug": {"msg": "{{ done | to_json | length }}"}, "run_once": True}
    tasks = [{**task, "register": "done"}, measure]
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    env = os.environ | {
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_FORKS": str(FORKS),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=600s",
        "ANSIBLE_INJECT_FACT_VARS": "0",
    }
    watch = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
    watch += "print(done.stdout, done.stderr); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); "
    watch += "sys.exit(done.returncode)"
    started = time.perf_counter()
    command = [sys.executable, "-c", watch, "ansible-playbook", "-i", str(inventory), str(book)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    size = int(done.stdout.partition('"msg": ')[2].split()[0].strip('"'))
    return wall, int(done.stdout.split()[-1]) / 1024, size


def main() -> None:
    """Print a table: wall time, times that of ping and of setup, the controller's memory, one host's result."""
    rows: dict[str, tuple[float, float, int]] = {}
    with tempfile.TemporaryDirectory(prefix="tapvirt-") as name:
        folder = pathlib.Path(name)
        with sshd(folder) as port:
            inventory = write_inventory(folder, port)
            play(folder, inventory, {RAW: "true"})  # opens the connections
            for title, task in TASKS:
                rows[title] = play(folder, inventory, task)
                print("{:.1f} s  {}".format(rows[title][0], title.strip()), flush=True)
            subprocess.run(["pkill", "-f", "ssh.*" + str(folder / "cp")], check=False)
    print("{:<38} {:>8} {:>8} {:>8} {:>8} {:>8}".format("", "s", "x ping", "x setup", "MiB", "bytes"))
    ping, setup = rows["ansible.builtin.ping"][0], rows["ansible.builtin.setup"][0]
    for title, (wall, memory, size) in rows.items():
        row = (title, wall, wall / ping, wall / setup, memory, size)
        print("{:<38} {:>8.1f} {:>8.2f} {:>8.2f} {:>8.0f} {:>8}".format(*row))


if __name__ == "__main__":
    main()
