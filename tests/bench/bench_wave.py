# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a wave of the role trace costs over real ssh: from the first start to the last result, against one ping.

The hosts are those of bench_fleet.py: addresses of 127.0.0.0/8 with an sshd behind them. Each has directories of its
own in place of /run/tapvirt and /var/cache/tapvirt, and a program in place of staprun that loads nothing. A copy of the
collection looks for loaded modules where that program puts them; its builder's modules are stand-ins. The rest is the
role as it is. The number of hosts is an argument (default 200); ``--today`` measures ``wait: true`` as well, which
takes as long as all turns of the forks one after the other. It needs root, for the mounts.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t

import bench_fleet
from host import COLLECTION

SECONDS = 10
ALLOWED_PINGS = 4
ALLOWED_MIB = 200
OPEN_FILES = 8192
MODULE = b"stands for a kernel module"
SHA256 = hashlib.sha256(MODULE).hexdigest()
# It ends at the signal that ends a run. Its output is a record of each kind that a report merges.
STAPRUN = """#!/bin/sh
for word; do case $word in *.ko) name=${word##*/}; name=${name%.ko} ;; esac; done
loaded=/run/tapvirt/loaded/$name
mkdir -p "$loaded"
end() {
  echo '{"kind":"count","key":"calls","count":3}'
  rmdir "$loaded"
  exit 0
}
trap end INT TERM
sleep 900 &
wait
"""
# What an sshd is run by: each host has its own files there, and staprun.
HOST = """#!/bin/sh
top=$1; shift
for place in run/tapvirt var/cache/tapvirt; do
  mkdir -p "$top/$place" "/$place"
  mount --bind "$top/$place" "/$place"
done
mount --bind "$(dirname "$top")/bin" /usr/local/sbin
exec "$@"
"""
# Where the copy of the collection looks for what the kernel of a traced host has.
STAND_INS = {
    "module_utils/_systemtap/supervise/cleanup.py": ('MODULES = "/proc/systemtap"', 'MODULES = "/run/tapvirt/loaded"'),
    "module_utils/_systemtap/trace/start.py": ('root.exists("proc/modules")', 'root.exists("proc/version")'),
}
ANSWERS = {
    "stap_script": "{'script': {'name': 'bench', 'sha256': '1', 'text': '', 'modules': []}}",
    "stap_module": "{'module': task_vars['bench_module'], 'plan': []}",
}
ACTION = """
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return {answer}
"""
# Writes when the first start began, when the last result came, and what the hosts told.
CALLBACK = """
import json
import os
import time

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_NAME = "bench_times"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *words, **options):
        super().__init__(*words, **options)
        self.first = self.last = None
        self.runs = []

    def v2_playbook_on_task_start(self, task, is_conditional):
        if self.first is None and task.action in ("tapvirt.host.stap_run", "ping", "ansible.builtin.ping"):
            self.first = time.time()

    def v2_runner_on_ok(self, result):
        run = result._result.get("run", {})
        if "outcome" in run:
            self.runs.append([run["outcome"], run.get("times"), run.get("clock")])
        if "outcome" in run or "ping" in result._result:
            self.last = time.time()

    v2_runner_on_failed = lambda self, result, ignore_errors=False: self.v2_runner_on_ok(result)

    def v2_playbook_on_stats(self, stats):
        with open(os.environ["BENCH_TIMES"], "w", encoding="utf-8") as stream:
            json.dump({"seconds": self.last - self.first, "runs": self.runs}, stream)
"""
PING: dict[str, t.Any] = {"ansible.builtin.ping": {}}
WAVE: dict[str, t.Any] = {
    "ansible.builtin.include_role": {"name": "tapvirt.host.trace"},
    "vars": {
        "trace_script": "./bench.stp",
        "trace_duration_seconds": SECONDS,
        "trace_builder": "{{ inventory_hostname }}",
        "trace_cleared_script_sha256": "1",
    },
}
TODAY: dict[str, t.Any] = {
    "tapvirt.host.stap_run": {"module": "{{ bench_module }}", "duration_seconds": SECONDS},
}


class Figures(t.NamedTuple):
    """Seconds from the first start to the last result, the controller's peak MiB, and the runs of the hosts."""

    seconds: float
    memory: float
    runs: list[t.Any]


def stand_in_collection(folder: pathlib.Path) -> None:
    """Write a copy of the collection whose hosts need no kernel of their own and whose builder needs no SystemTap."""
    tree = folder / "ansible_collections" / "tapvirt" / "host"
    tree.mkdir(parents=True)
    for name in ("roles", "playbooks", "meta", "galaxy.yml"):
        (tree / name).symlink_to(COLLECTION / name)
    shutil.copytree(COLLECTION / "plugins", tree / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in STAND_INS.items():
        path = tree / "plugins" / name
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise SystemExit(f"{name} has changed: it does not contain {old} once")
        path.write_text(text.replace(old, new), encoding="utf-8")
    for name, answer in ANSWERS.items():
        (tree / "plugins" / "action" / f"{name}.py").write_text(ACTION.format(answer=answer), encoding="utf-8")


def write_hosts(folder: pathlib.Path, count: int) -> None:
    """Write what the hosts have: the program in place of staprun, and the module in each host's cache."""
    for name, text in {"bin/staprun": STAPRUN, "host": HOST, "sshd": host_program(folder)}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    for number in range(count):
        cache = folder / f"host{number:04}" / "var/cache/tapvirt/modules" / SHA256
        cache.mkdir(parents=True)
        (cache / f"{module_name(number)}.ko").write_bytes(MODULE)


def host_program(folder: pathlib.Path) -> str:
    """Return a program in place of sshd: it runs sshd with the files of the host whose address was connected to."""
    script = "import os, socket, sys; sock = socket.socket(fileno=os.dup(0)); a = sock.getsockname()[0].split('.'); "
    script += f"top = '{folder}/host%04d' % (int(a[2]) * 250 + int(a[3]) - 1); "
    script += f"os.execvp('unshare', ['unshare', '-m', '{folder}/host', top, '/usr/sbin/sshd', *sys.argv[1:]])"
    return f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS -c {shlex.quote(script)} "$@"\n'


def module_name(number: int) -> str:
    """Return the name of a host's module; all hosts share this machine's processes, so no two have the same."""
    return f"tapvirt_bench_{number:04}"


def write_inventory(folder: pathlib.Path, port: int, count: int) -> pathlib.Path:
    """Write the inventory of bench_fleet.py, with the module of each host."""
    path = pathlib.Path(bench_fleet.write_inventory(folder, port, count))
    data = json.loads(path.read_text(encoding="utf-8"))
    release = os.uname().release
    for number, host in enumerate(data["all"]["hosts"].values()):
        probes = [{"point": "begin"}]
        host["bench_module"] = {
            "name": module_name(number),
            "sha256": SHA256,
            "kernel": release,
            "globals": {},
            "probes": probes,
        }
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def play(folder: pathlib.Path, inventory: pathlib.Path, task: dict[str, t.Any]) -> Figures:
    """Run one task on all hosts."""
    book = folder / "book.yml"
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]), encoding="utf-8")
    times = folder / "times.json"
    env = os.environ | {
        "ANSIBLE_COLLECTIONS_PATH": str(folder),
        "ANSIBLE_CALLBACK_PLUGINS": str(folder / "callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "bench_times,tapvirt.host.progress",
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_FORKS": str(bench_fleet.FORKS),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=3600s",
        "ANSIBLE_INJECT_FACT_VARS": "0",
        "BENCH_TIMES": str(times),
    }
    env.pop("PYTHONPATH", None)
    watch = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
    watch += "print(done.stdout, done.stderr); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); "
    watch += "sys.exit(done.returncode)"
    command = [sys.executable, "-c", watch, "ansible-playbook", "-i", str(inventory), str(book)]
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise SystemExit(done.stdout[-6000:] + done.stderr[-3000:])
    measured = json.loads(times.read_text(encoding="utf-8"))
    return Figures(measured["seconds"], int(done.stdout.split()[-1]) / 1024, measured["runs"])


@contextlib.contextmanager
def hosts(count: int) -> t.Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Yield a folder and the inventory of so many hosts that listen; their connections are open."""
    with tempfile.TemporaryDirectory(prefix="tapvirt-") as name:
        folder = pathlib.Path(name)
        stand_in_collection(folder)
        write_hosts(folder, count)
        (folder / "callback").mkdir()
        (folder / "callback" / "bench_times.py").write_text(CALLBACK, encoding="utf-8")
        with bench_fleet.sshd(folder, count, folder / "sshd") as port:
            inventory = write_inventory(folder, port, count)
            try:
                play(folder, inventory, PING)
                yield folder, inventory
            finally:
                for socket in (folder / "cp").glob("*"):
                    argv = ["ssh", "-F", "/dev/null", "-o", f"ControlPath={socket}", "-O", "exit", "host"]
                    subprocess.run(argv, capture_output=True, check=False)
                time.sleep(1)


def armed_within(runs: list[t.Any]) -> str:
    """Return how far apart the hosts were armed, in seconds by the controller's clock; empty where none was."""
    armed = [times["armed"] - clock["skew_seconds"] for _outcome, times, clock in runs if times and times["armed"]]
    return f"{max(armed) - min(armed):.2f}" if armed else ""


def main() -> None:
    """Print a row for the ping, the wave, and today's way."""
    parser = argparse.ArgumentParser(description="Measure a wave of hosts.")
    parser.add_argument("hosts", type=int, nargs="?", default=200)
    parser.add_argument("--today", action="store_true", help="measure wait: true as well")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("Not measured: the stand-ins for hosts need root.")
        return
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, limit), limit))
    with hosts(arguments.hosts) as (folder, inventory):
        tasks = {"ansible.builtin.ping": PING, "start all, wait once, collect all": WAVE}
        if arguments.today:
            tasks["stap_run, wait: true"] = TODAY
        rows = {}
        for title, task in tasks.items():
            rows[title] = play(folder, inventory, task)
            print(f"{rows[title].seconds:.1f} s  {title}", flush=True)
    ping = next(iter(rows.values())).seconds
    print(f"{arguments.hosts} hosts, {bench_fleet.FORKS} forks, {SECONDS} s.")
    print(f"Allowed: {ALLOWED_PINGS} pings, {ALLOWED_MIB} MiB.")
    print(f"On a machine of {bench_fleet.machine()}, which is the controller and all hosts.")
    print(f"{'':<36} {'s':>8} {'above, in pings':>16} {'MiB':>6} {'armed within s':>15}  outcomes")
    for title, row in rows.items():
        above = (row.seconds - SECONDS * bool(row.runs)) / ping
        outcomes = {outcome: sum(run[0] == outcome for run in row.runs) for outcome, _times, _clock in row.runs}
        print(
            f"{title:<36} {row.seconds:>8.1f} {above:>16.2f} {row.memory:>6.0f} {armed_within(row.runs):>15}"
            f"  {outcomes or ''}"
        )


if __name__ == "__main__":
    main()
