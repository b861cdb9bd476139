# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of the running lab: run commands on them, and modules and playbooks through Ansible itself."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import time
import typing as t

import yaml

from .places import LAB
from .tasks import FACTS, RUNNING_KERNEL

STORE = "/var/lib/tapvirt/modules"
RESTART_SECONDS = 400
SMALL_DOMAIN = """
<domain type='kvm'>
  <name>{name}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/var/lib/libvirt/images/{name}.img'/>
      <target dev='hda' bus='ide'/>
    </disk>
    <serial type='pty'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
RECAP = re.compile(r"^(\S+)\s+:\s+((?:\w+=\d+\s*)+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class PlaybookResult:
    """The result of a playbook run: exit status, output, recap (host -> counters) and each task result as a row."""

    rc: int
    stdout: str
    recap: dict[str, dict[str, int]]
    results: list[dict[str, t.Any]]

    def of(self, host: str, task: str) -> dict[str, t.Any]:
        """Return the result of a named task on a host."""
        for row in self.results:
            if row["host"] == host and row["task"] == task:
                return t.cast("dict[str, t.Any]", row["result"])
        raise AssertionError(f"no result of {task!r} on {host}:\n{self.stdout[-3000:]}")

    def by_task(self) -> dict[str, t.Any]:
        """Return the results of a play with one host and unique task names: task -> result."""
        return {row["task"]: row["result"] for row in self.results}

    def hosts_of(self, task: str) -> list[str]:
        """Return the hosts on which a task was not skipped, in the order of their results."""
        return [row["host"] for row in self.results if row["task"] == task and row["status"] != "skipped"]

    def changes(self) -> dict[str, int]:
        """Return the number of changed tasks: host -> number."""
        return {host: counters["changed"] for host, counters in self.recap.items()}

    def stats(self) -> dict[str, t.Any]:
        """Return the data of the only task that called set_stats."""
        (stats,) = [row["result"]["ansible_stats"]["data"] for row in self.results if "ansible_stats" in row["result"]]
        return t.cast("dict[str, t.Any]", stats)


@dataclasses.dataclass(frozen=True)
class Playbook:
    """A running playbook."""

    process: subprocess.Popen[str]
    results: pathlib.Path

    def end(self, timeout: float = 900) -> PlaybookResult:
        """Wait until the playbook ends and return its result.

        :raises subprocess.TimeoutExpired: it did not end within ``timeout`` seconds and was killed.
        """
        try:
            stdout, stderr = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        rows = self.results.read_text(encoding="utf-8").splitlines() if self.results.exists() else []
        recap = {
            host: {key: int(value) for key, value in (pair.split("=") for pair in counters.split())}
            for host, counters in RECAP.findall(stdout.rpartition("PLAY RECAP")[2])
        }
        return PlaybookResult(self.process.returncode, stdout + stderr, recap, [json.loads(row) for row in rows])


class LabHosts:
    """The hosts of the running lab, as its inventory names them."""

    def __init__(self, inventory: pathlib.Path, scratch: pathlib.Path) -> None:
        self.inventory = inventory
        self._scratch = scratch
        self._runs = itertools.count(1)
        self.groups: dict[str, list[str]] = {}
        self._vars: dict[str, dict[str, t.Any]] = {}
        self._read(yaml.safe_load(inventory.read_text(encoding="utf-8")))

    def _read(self, tree: dict[str, t.Any]) -> None:
        for name, group in tree.items():
            hosts = (group or {}).get("hosts") or {}
            self.groups[name] = list(hosts)
            for host, variables in hosts.items():
                self._vars.setdefault(host, {}).update((group.get("vars") or {}) | (variables or {}))
            for inherited in self.groups[name]:
                for key, value in ((group or {}).get("vars") or {}).items():
                    self._vars[inherited].setdefault(key, value)
            self._read((group or {}).get("children") or {})

    @property
    def hosts(self) -> list[str]:
        """Every host that is up, by name."""
        return sorted(self._vars)

    def variables(self, host: str) -> dict[str, t.Any]:
        """Return the variables of a host in the inventory, with those of its groups."""
        return dict(self._vars[host])

    def run(self, host: str, *argv: str, timeout: float = 60, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command on a host over plain ssh with the inventory's own arguments."""
        variables = self._vars[host]
        ssh = ["ssh", "-p", str(variables["ansible_port"]), "-i", str(variables["ansible_ssh_private_key_file"])]
        ssh += shlex.split(str(variables.get("ansible_ssh_common_args", "")))
        ssh += [f"{variables.get('ansible_user', 'root')}@{variables['ansible_host']}", "--", shlex.join(argv)]
        return subprocess.run(ssh, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)

    def shell(self, host: str, command: str, *, check: bool = True, timeout: float = 120) -> str:
        """Run a shell command on a host and return its output without trailing white space.

        With ``check``, the shell ends at the first command that fails, and the test fails. Without it, any exit status
        is accepted.
        """
        done = self.run(host, "sh", "-ec" if check else "-c", command, timeout=timeout)
        assert done.returncode == 0 or not check, f"{host}: {command[:500]}: {done.stderr}"
        return done.stdout.rstrip()

    def write(self, host: str, path: str, text: str, mode: str = "644") -> str:
        """Write a file on a host and return its path."""
        quoted = shlex.quote(path)
        done = self.run(host, "sh", "-ec", f"umask 077; cat > {quoted}; chmod {mode} {quoted}", stdin=text)
        assert done.returncode == 0, f"{host}: {path}: {done.stderr}"
        return path

    def release(self, host: str) -> str:
        """Return the release of the running kernel of a host."""
        return self.shell(host, "uname -r")

    def builds(self, prefix: str = "", store: str = STORE) -> list[dict[str, t.Any]]:
        """Return the compilations in the log of a store of the builder, of modules whose name has a prefix."""
        log = self.run("builder", "cat", f"{store}/builds.log").stdout
        return [row for row in map(json.loads, log.splitlines()) if row["name"].startswith(prefix)]

    @staticmethod
    def small_domain(name: str) -> str:
        """Return the XML of a domain that boots from /var/lib/libvirt/images/NAME.img and has a serial console."""
        return SMALL_DOMAIN.format(name=name)

    def restart(self, host: str, action: str) -> None:
        """Restart a guest's kernel (``reboot``, ``kexec``) and wait until systemd has started everything again."""
        status = "cat /proc/sys/kernel/random/boot_id; systemctl is-system-running"
        before = self.shell(host, status, check=False).split()[0]
        self.run(host, "sh", "-c", f"(sleep 1; systemctl {action}) > /dev/null 2>&1 < /dev/null &")
        give_up = time.monotonic() + RESTART_SECONDS
        while time.monotonic() < give_up:
            time.sleep(3)
            with contextlib.suppress(subprocess.TimeoutExpired):
                words = self.shell(host, status, check=False, timeout=20).split()
                if words and before not in words and words[-1] in ("running", "degraded"):
                    return
        raise AssertionError(f"{host} did not come back after {action}")

    def ansible(
        self, pattern: str, module: str, args: dict[str, t.Any], check: bool = False, diff: bool = False
    ) -> dict[str, dict[str, t.Any]]:
        """Run one module on hosts and return host -> its result, with ``failed`` in it."""
        options = [*(["--check"] if check else []), *(["--diff"] if diff else [])]
        done = self.run_tasks(pattern, [{"name": "One module", module: args, "ignore_errors": True}], *options)
        return {row["host"]: {**row["result"], "failed": row["status"] != "ok"} for row in done.results}

    def run_tasks(
        self,
        hosts: str,
        tasks: t.Sequence[t.Mapping[str, t.Any]],
        *options: str,
        timeout: float = 900,
        **keywords: t.Any,
    ) -> PlaybookResult:
        """Run a play of some tasks against hosts of the lab; ``keywords`` are other keywords of the play."""
        play = {"hosts": hosts, "gather_facts": False, **keywords, "tasks": list(tasks)}
        return self.playbook(yaml.safe_dump([play]), *options, timeout=timeout)

    def playbook(self, text_or_path: str | pathlib.Path, *options: str, timeout: float = 900) -> PlaybookResult:
        """Run a playbook (its text, or the path of its file) against the lab."""
        return self.begin(text_or_path, *options).end(timeout)

    def begin(self, text_or_path: str | pathlib.Path, *options: str) -> Playbook:
        """Start a playbook and return while it runs."""
        number = next(self._runs)
        results = self._scratch / f"results-{number}.jsonl"
        path = text_or_path
        if isinstance(text_or_path, str):
            path = self._scratch / f"play-{number}.yml"
            path.write_text(text_or_path, encoding="utf-8")
        environment = os.environ | {
            "ANSIBLE_CALLBACK_PLUGINS": str(LAB / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "json_lines",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_INJECT_FACT_VARS": "0",
            "TAPVIRT_RESULTS": str(results),
        }
        process = subprocess.Popen(
            ["ansible-playbook", "-i", str(self.inventory), str(path), *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return Playbook(process, results)

    def build(
        self, hosts: str, scripts: t.Mapping[str, pathlib.Path], **options: t.Any
    ) -> dict[str, dict[str, dict[str, t.Any]]]:
        """Build scripts (name -> file) for the kernels of hosts; return host -> name -> the task's result."""
        names = list(scripts)
        tasks = [
            FACTS,
            {
                "name": "Render",
                "tapvirt.host.stap_script": {
                    "src": "{{ files[item] }}",
                    "guru": "{{ item in guru }}",
                    "guru_reason": "{{ guru[item] | default(omit) }}",
                },
                "loop": names,
                "delegate_to": "builder",
                "register": "rendered",
            },
            {
                "name": "Build",
                "tapvirt.host.stap_module": {
                    "script": "{{ item.script }}",
                    **RUNNING_KERNEL,
                    **options.get("module", {}),
                },
                "loop": "{{ rendered.results }}",
                "loop_control": {"label": "{{ item.item }}"},
                "delegate_to": "builder",
                "ignore_errors": True,
            },
        ]
        variables = {"files": {name: str(path) for name, path in scripts.items()}, "guru": options.get("guru", {})}
        done = self.run_tasks(hosts, tasks, vars=variables)
        results = {row["host"]: row["result"] for row in done.results if row["task"] == "Build"}
        assert results, done.stdout
        return {host: dict(zip(names, result["results"], strict=True)) for host, result in results.items()}
