# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet costs over real ssh: facts and unchanged parameters, against ansible.builtin.ping and setup.

Addresses of 127.0.0.0/8 with an sshd behind them stand for the hosts, so that this machine does the work of the
controller and of every host: what is compared is the whole. TAPVIRT_BENCH_HOSTS has the numbers of hosts ("200");
TAPVIRT_BENCH_RESULTS a directory for the table and the plot of the growth as files with today's date in their names.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import importlib
import json
import os
import pathlib
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing as t

from bench_parameters import own_values
from host import HOST_PYTHON

SIZES = [int(word) for word in os.environ.get("TAPVIRT_BENCH_HOSTS", "200").split(",")]
RESULTS = os.environ.get("TAPVIRT_BENCH_RESULTS")
FORKS = 25
PARAMETERS = 20
RAW = "ansible.builtin.raw"
FACTS = "tapvirt.host.kernel_facts"
PING, SETUP = "ansible.builtin.ping", "ansible.builtin.setup"
PARAMS = f"tapvirt.host.kernel_module_param, {PARAMETERS} unchanged"
OPEN_FILES = 4096
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
HEAD = ("", "s", "ms a host", "x ping", "x setup", "CPU s", "MiB", "bytes a host")


class Figures(t.NamedTuple):
    """What one task cost: seconds, the controller's CPU seconds (with ssh) and peak MiB, bytes of one host's result."""

    wall: float
    cpu: float
    memory: float
    size: int


def tasks() -> dict[str, dict[str, t.Any]]:
    """Return the tasks to measure, by title."""
    params, writable = own_values()
    return {
        PING: {PING: {}},
        SETUP: {SETUP: {}},
        FACTS: {FACTS: {}},
        "  transport: module": {FACTS: {"transport": "module"}},
        PARAMS: {"tapvirt.host.kernel_module_param": {"params": params[: min(PARAMETERS, writable)]}},
        "raw: cat /proc/kallsyms >/dev/null": {RAW: "cat /proc/kallsyms >/dev/null"},
        "raw: true": {RAW: "true"},
    }


def addresses(count: int) -> list[str]:
    """Return one loopback address for each host."""
    return [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(count)]


@contextlib.contextmanager
def sshd(folder: pathlib.Path, count: int, wrapper: pathlib.Path | None = None) -> t.Iterator[int]:
    """Listen on all addresses and give every connection to an sshd of its own, as inetd does; yield the port.

    A single sshd listens on sixteen addresses, or on all of this machine's, which are not loopback's alone.

    :param wrapper: a program that runs sshd with the arguments that it gets.
    """
    program = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin")
    if not program:
        raise SystemExit("No sshd here: apt-get install openssh-server")
    program = str(wrapper or program)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    config = folder / "sshd_config"
    config.write_text(SSHD.format(folder=folder), encoding="utf-8")
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    selector = selectors.DefaultSelector()
    started: list[subprocess.Popen[bytes]] = []
    port = 0
    for address in addresses(count):
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


def write_inventory(folder: pathlib.Path, port: int, count: int) -> pathlib.Path:
    """Write an inventory whose hosts differ in their address only."""
    variables = {
        "ansible_port": port,
        "ansible_user": getpass.getuser(),
        "ansible_ssh_private_key_file": str(folder / "key"),
        "ansible_python_interpreter": HOST_PYTHON,
        "ansible_ssh_common_args": "-F /dev/null -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
    }
    hosts = {f"host{number:04}": {"ansible_host": address} for number, address in enumerate(addresses(count))}
    path = folder / "inventory.yml"
    path.write_text(json.dumps({"all": {"vars": variables, "hosts": hosts}}), encoding="utf-8")
    return path


def play(folder: pathlib.Path, inventory: pathlib.Path, task: dict[str, t.Any]) -> Figures:
    """Run one task on all hosts. The memory is that of the largest process, which is the one that holds the results."""
    book = folder / "book.yml"
    measure = {"ansible.builtin.debug": {"msg": "{{ done | to_json | length }}"}, "run_once": True}
    steps = [{**task, "register": "done"}, measure]
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": steps}]), encoding="utf-8")
    env = os.environ | {
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_FORKS": str(FORKS),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=3600s",
        "ANSIBLE_INJECT_FACT_VARS": "0",
    }
    watch = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
    watch += "print(done.stdout, done.stderr); used = resource.getrusage(resource.RUSAGE_CHILDREN); "
    watch += "print(used.ru_utime + used.ru_stime, used.ru_maxrss); sys.exit(done.returncode)"
    started = time.perf_counter()
    command = [sys.executable, "-c", watch, "ansible-playbook", "-i", str(inventory), str(book)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    size = int(done.stdout.partition('"msg": ')[2].split()[0].strip('"'))
    cpu, memory = done.stdout.split()[-2:]
    return Figures(wall, float(cpu), int(memory) / 1024, size)


def measure_fleet(count: int) -> dict[str, Figures]:
    """Measure all tasks on a number of hosts, one after the other."""
    rows: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="tapvirt-") as name:
        folder = pathlib.Path(name)
        with sshd(folder, count) as port:
            inventory = write_inventory(folder, port, count)
            play(folder, inventory, {RAW: "true"})  # opens the connections
            for title, task in tasks().items():
                rows[title] = play(folder, inventory, task)
                print(f"{rows[title].wall:.1f} s  {count} hosts: {title.strip()}", flush=True)
            subprocess.run(["pkill", "-f", "ssh.*" + str(folder / "cp")], check=False)
    return rows


def table(count: int, rows: t.Mapping[str, Figures]) -> list[list[str]]:
    """Return the cells of one number of hosts."""
    ping, setup = rows[PING].wall, rows[SETUP].wall
    return [
        [
            title.strip(),
            f"{row.wall:.1f}",
            f"{row.wall * 1000 / count:.0f}",
            f"{row.wall / ping:.2f}",
            f"{row.wall / setup:.2f}",
            f"{row.cpu:.0f}",
            f"{row.memory:.0f}",
            str(row.size),
        ]
        for title, row in rows.items()
    ]


def machine() -> str:
    """Return the machine in the two numbers that matter."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} cores, {memory / 1024**3:.0f} GiB of memory"


def write_results(folder: pathlib.Path, measured: t.Mapping[int, t.Mapping[str, Figures]]) -> None:
    """Write the table and the plot."""
    name = f"fleet-{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}"
    where = f"On a machine of {machine()}, which is the controller and all hosts; forks: {FORKS}."
    lines = [f"# {name}", "", where, ""]
    lines += [f"![Wall time over the number of hosts]({name}.svg)", ""]
    for count, rows in measured.items():
        lines += [f"## {count} hosts", "", "| Task" + " | ".join(HEAD) + " |", "| --- |" + " --: |" * (len(HEAD) - 1)]
        lines += ["| " + " | ".join(cells) + " |" for cells in table(count, rows)] + [""]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")
    with tempfile.TemporaryDirectory() as library:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--target", library]
        subprocess.run([*pip, "matplotlib"], check=True)
        sys.path.insert(0, library)
        importlib.import_module("matplotlib").use("svg")
        figure, axes = importlib.import_module("matplotlib.pyplot").subplots(figsize=(8, 5))
        for title in (SETUP, PARAMS, FACTS, PING):
            axes.plot(list(measured), [rows[title].wall for rows in measured.values()], marker="o", label=title)
        axes.set(xlabel="hosts", ylabel="seconds", xlim=(0, None), ylim=(0, None))
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        plot = folder / f"{name}.svg"
        figure.savefig(plot, metadata={"Date": None})
    lines = [line.rstrip() for line in plot.read_text(encoding="utf-8").splitlines()]
    plot.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Print one table for each number of hosts."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, limit), limit))
    measured = {count: measure_fleet(count) for count in SIZES}
    line = "{:<48} {:>8} {:>10} {:>8} {:>8} {:>8} {:>8} {:>13}"
    for count, rows in measured.items():
        print(f"{count} hosts")
        for cells in (HEAD, *table(count, rows)):
            print(line.format(*cells))
    if RESULTS:
        write_results(pathlib.Path(RESULTS), measured)


if __name__ == "__main__":
    main()
