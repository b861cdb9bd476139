# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running lab as a fixture: commands on its hosts, modules and playbooks through Ansible itself."""

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

import pytest
import yaml

HERE = pathlib.Path(__file__).resolve().parent
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
    """What a playbook run did: exit status, screen, recap (host -> counters) and each task result as a row."""

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


@dataclasses.dataclass(frozen=True)
class Playbook:
    """A playbook under way."""

    process: subprocess.Popen[str]
    results: pathlib.Path

    def end(self, timeout: float = 900) -> PlaybookResult:
        """Wait for its end; what exceeds the time is killed."""
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
        """Return what the inventory says of a host: how it is reached."""
        return dict(self._vars[host])

    def run(self, host: str, *argv: str, timeout: float = 60, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command on a host over plain ssh with the inventory's own arguments."""
        variables = self._vars[host]
        ssh = ["ssh", "-p", str(variables["ansible_port"]), "-i", str(variables["ansible_ssh_private_key_file"])]
        ssh += shlex.split(str(variables.get("ansible_ssh_common_args", "")))
        ssh += [f"{variables.get('ansible_user', 'root')}@{variables['ansible_host']}", "--", shlex.join(argv)]
        return subprocess.run(ssh, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)

    @staticmethod
    def small_domain(name: str) -> str:
        """Return the XML of a domain that boots from /var/lib/libvirt/images/NAME.img and has a serial console."""
        return SMALL_DOMAIN.format(name=name)

    def restart(self, host: str, action: str) -> None:
        """Restart a guest's kernel (``reboot``, ``kexec``) and wait until systemd has started everything again."""
        look = "cat /proc/sys/kernel/random/boot_id; systemctl is-system-running"
        before = self.run(host, "sh", "-c", look).stdout.split()[0]
        self.run(host, "sh", "-c", f"(sleep 1; systemctl {action}) > /dev/null 2>&1 < /dev/null &")
        give_up = time.monotonic() + RESTART_SECONDS
        while time.monotonic() < give_up:
            time.sleep(3)
            with contextlib.suppress(subprocess.TimeoutExpired):
                said = self.run(host, "sh", "-c", look, timeout=20).stdout.split()
                if said and before not in said and said[-1] in ("running", "degraded"):
                    return
        raise AssertionError(f"{host} did not come back after {action}")

    def ansible(
        self, pattern: str, module: str, args: dict[str, t.Any], check: bool = False, diff: bool = False
    ) -> dict[str, dict[str, t.Any]]:
        """Run one module on hosts and return host -> its result, with ``failed`` in it."""
        play = [
            {
                "hosts": pattern,
                "gather_facts": False,
                "tasks": [{"name": "One module", module: args, "ignore_errors": True}],
            }
        ]
        options = [*(["--check"] if check else []), *(["--diff"] if diff else [])]
        done = self.playbook(yaml.safe_dump(play), *options)
        return {row["host"]: {**row["result"], "failed": row["status"] != "ok"} for row in done.results}

    def playbook(self, text_or_path: str | pathlib.Path, *options: str, timeout: float = 900) -> PlaybookResult:
        """Run a playbook (its text, or the path of its file) against the lab."""
        return self.begin(text_or_path, *options).end(timeout)

    def begin(self, text_or_path: str | pathlib.Path, *options: str) -> Playbook:
        """Start a playbook, to be looked after while it runs."""
        number = next(self._runs)
        results = self._scratch / f"results-{number}.jsonl"
        path = text_or_path
        if isinstance(text_or_path, str):
            path = self._scratch / f"play-{number}.yml"
            path.write_text(text_or_path, encoding="utf-8")
        environment = os.environ | {
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"),
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
        kernel = "ansible_facts.tapvirt_kernel"
        tasks = [
            {"name": "Facts", "tapvirt.host.kernel_facts": {"gather_subset": ["min"]}},
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
                    "kernel": f"{{{{ {kernel}.release }}}}",
                    "kernel_version": f"{{{{ {kernel}.version }}}}",
                    **options.get("module", {}),
                },
                "loop": "{{ rendered.results }}",
                "loop_control": {"label": "{{ item.item }}"},
                "delegate_to": "builder",
                "ignore_errors": True,
            },
        ]
        variables = {"files": {name: str(path) for name, path in scripts.items()}, "guru": options.get("guru", {})}
        done = self.playbook(
            yaml.safe_dump([{"hosts": hosts, "gather_facts": False, "vars": variables, "tasks": tasks}])
        )
        built = {row["host"]: row["result"] for row in done.results if row["task"] == "Build"}
        assert built, done.stdout
        return {host: dict(zip(names, result["results"], strict=True)) for host, result in built.items()}


def kernel_hosts() -> list[str]:
    """Return a host of each kernel, and every Xen dom0 that is up: it is only started when it is named."""
    inventory = os.environ.get("TAPVIRT_LAB_INVENTORY", "")
    groups = yaml.safe_load(pathlib.Path(inventory).read_text(encoding="utf-8")) if inventory else {}
    return ["trace1", "trace2", "trace3", *groups.get("xen_hosts", {}).get("hosts", {})]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes ``kernel_host`` each of them in turn."""
    if "kernel_host" in metafunc.fixturenames:
        metafunc.parametrize("kernel_host", kernel_hosts(), scope="module")


@pytest.fixture(scope="session", name="kernel_hosts")
def all_kernel_hosts() -> list[str]:
    """All of them, for what is done on all at once."""
    return kernel_hosts()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> LabHosts:
    """The lab that is up; without one the tests fail, they are never skipped."""
    inventory = os.environ.get("TAPVIRT_LAB_INVENTORY", "")
    if not inventory:
        pytest.fail("No lab: run these tests with './dev test lab', which brings it up.")
    return LabHosts(pathlib.Path(inventory), tmp_path_factory.mktemp("lab"))
