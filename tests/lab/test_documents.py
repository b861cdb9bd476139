# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the documentation, page by page and in their order, on hosts with the names in the page.

The page itself restores what an example changes, or a helper in ``STAGES`` does. All examples of a page run, even after
one has failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.playbooks.filter_plugins.boot_sector import boot_sector
from ansible_collections.tapvirt.host.tests.unit.support.documents import (
    TREE,
    Block,
    all_blocks,
    blocks_of,
    shown_in,
    write_files,
)

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts

RST = "docs/docsite/rst/"
# Takes some seconds; the others take minutes.
QUICK = f"{RST}migration.rst"
PAGES = sorted({block.page for block in all_blocks() if block.run == "lab"})
IMAGES = "/var/lib/libvirt/images"
NETWORK = "<network><name>default</name><dns enable='no'/></network>"
Given = t.Callable[["LabHosts", str, pathlib.Path], t.ContextManager[None]]


def run_module(lab: LabHosts, host: str, name: str, args: dict[str, t.Any]) -> None:
    """Run a module on a host; the test fails if it fails."""
    done = lab.ansible(host, f"tapvirt.host.{name}", args)[host]
    assert not done["failed"], done


@contextlib.contextmanager
def domain(
    lab: LabHosts, host: str, folder: pathlib.Path, name: str = "web1", state: str = "running"
) -> t.Iterator[None]:
    """A domain with its own disk, which prints ``NAME login:`` repeatedly, and its template for the reader."""
    raw, disk = f"/var/tmp/{name}.raw", f"{IMAGES}/{name}.qcow2"
    make = (
        f"echo {boot_sector(name + ' login:')} | base64 -d > {raw} && qemu-img convert -O qcow2 {raw} {disk}; rm {raw}"
    )
    lab.shell(host, make)
    xml = lab.small_domain(name).replace("'raw'", "'qcow2'").replace(f"{name}.img", f"{name}.qcow2")
    (folder / f"{name}.xml.j2").write_text(xml, encoding="utf-8")
    try:
        if state != "absent":
            run_module(lab, host, "libvirt_domain", {"name": name, "xml": xml, "state": state})
        yield
    finally:
        undefine = f"virsh undefine --managed-save --snapshots-metadata --nvram {name}"
        lab.run(host, "sh", "-c", f"virsh destroy {name}; {undefine}; rm -f {IMAGES}/{name}.* /var/log/{name}-*")


@contextlib.contextmanager
def old_domain(lab: LabHosts, host: str, _folder: pathlib.Path, disk: str = "") -> t.Iterator[None]:
    """A stopped domain, ``old7``, which the page removes."""
    drive = f"<disk type='file'><source file='{disk}'/><target dev='vda'/></disk>"
    xml = "<domain type='kvm'><name>old7</name><memory unit='MiB'>16</memory><os><type>hvm</type></os>"
    xml += f"<devices>{drive if disk else ''}</devices></domain>"
    run_module(lab, host, "libvirt_domain", {"name": "old7", "xml": xml})
    if disk:
        lab.shell(host, f"truncate -s 1M {disk}")
    yield
    assert lab.run(host, "virsh", "domstate", "old7").returncode != 0
    assert not disk or lab.run(host, "test", "-e", disk).returncode != 0


@contextlib.contextmanager
def image(lab: LabHosts, host: str, _folder: pathlib.Path, name: str = "web") -> t.Iterator[None]:
    """The disk of a domain that the page defines; both are removed afterwards."""
    lab.shell(host, f"qemu-img create -q -f qcow2 {IMAGES}/{name}.qcow2 1M")
    try:
        yield
    finally:
        lab.run(host, "sh", "-c", f"virsh destroy {name}; virsh undefine {name}; rm -f {IMAGES}/{name}.qcow2")


@contextlib.contextmanager
def saved_network(lab: LabHosts, host: str, folder: pathlib.Path) -> t.Iterator[None]:
    """Replace the definition of libvirt's network ``default`` by that of the reader; restore it afterwards."""
    (folder / "default-network.xml").write_text(NETWORK, encoding="utf-8")
    saved = "/var/tmp/default-network.xml"
    end = "virsh net-destroy default; virsh net-undefine default"
    lab.shell(host, f"virsh net-dumpxml --inactive default > {saved}; {end}", check=False)
    try:
        yield
    finally:
        lab.run(host, "sh", "-c", f"{end}; [ -s {saved} ] && virsh net-define {saved}; rm {saved}")


@contextlib.contextmanager
def network(lab: LabHosts, host: str, folder: pathlib.Path) -> t.Iterator[None]:
    """The active network ``default``, without a DHCP server."""
    with saved_network(lab, host, folder):
        run_module(lab, host, "libvirt_network", {"name": "default", "xml": NETWORK, "state": "active"})
        yield


@contextlib.contextmanager
def pool(lab: LabHosts, host: str, _folder: pathlib.Path) -> t.Iterator[None]:
    """The pool ``images`` with a base image in it."""
    lab.shell(host, "mkdir /srv/images && qemu-img create -q -f qcow2 /srv/images/base.qcow2 1M")
    xml = "<pool type='dir'><name>images</name><target><path>/srv/images</path></target></pool>"
    try:
        run_module(lab, host, "libvirt_pool", {"name": "images", "xml": xml, "state": "active"})
        yield
    finally:
        lab.run(host, "sh", "-c", "virsh pool-destroy images; virsh pool-undefine images; rm -rf /srv/images")


@contextlib.contextmanager
def parameters(
    lab: LabHosts, host: str, _folder: pathlib.Path, names: t.Sequence[str] = ("halt_poll_ns",)
) -> t.Iterator[None]:
    """Restore parameters of KVM that the page sets."""
    try:
        yield
    finally:
        params = [{"module": "kvm", "name": name} for name in names]
        run_module(lab, host, "kernel_module_param", {"params": params, "state": "restored"})


@contextlib.contextmanager
def user(lab: LabHosts, host: str, _folder: pathlib.Path) -> t.Iterator[None]:
    """A user ``alice``."""
    lab.shell(host, "useradd --system alice")
    try:
        yield
    finally:
        lab.shell(host, "userdel alice; systemctl stop sys-kernel-debug.mount")


@contextlib.contextmanager
def key(lab: LabHosts, host: str, _folder: pathlib.Path) -> t.Iterator[None]:
    """A builder without a key; the key that the page makes is removed afterwards."""
    lab.shell(host, "! test -e /etc/tapvirt/signing")
    try:
        yield
    finally:
        lab.run(host, "rm", "-rf", "/etc/tapvirt/signing")


@contextlib.contextmanager
def daemon(lab: LabHosts, host: str, _folder: pathlib.Path) -> t.Iterator[None]:
    """Restore the log settings of libvirt's daemon, and remove the pool ``images`` that the page makes."""
    conf = "/etc/libvirt/libvirtd.conf"
    saved = lab.shell(host, f"cp -a {conf} {conf}.documents; virt-admin daemon-log-outputs")
    outputs = saved.partition(":")[2].strip()
    try:
        yield
    finally:
        end = "virsh pool-destroy images; virsh pool-undefine images;"
        lab.run(host, "sh", "-c", f"{end} mv {conf}.documents {conf}; virt-admin daemon-log-outputs '{outputs}'")


@dataclasses.dataclass(frozen=True)
class Stage:
    """The requirements of a page: its groups (group -> name of a host in the page -> host of the lab), and the helpers
    that prepare hosts (name of a host in the page, helper).
    """

    groups: dict[str, dict[str, str]]
    given: tuple[tuple[str, Given], ...] = ()


TRACED = {"trace_hosts": {"web1": "trace1", "web2": "trace2"}, "builders": {"builder1": "builder"}}
ONE = {"virt_hosts": {"hv1": "trace1"}}
TWO = {"virt_hosts": {"hv1": "trace1", "hv2": "trace2"}}
absent = functools.partial(domain, state="absent")
# Other pages have hosts to trace and a builder.
STAGES = {
    f"{RST}examples.rst": Stage(
        {**TRACED, "virt_hosts": {"web1": "trace1"}},
        (
            ("web1", absent),
            ("web1", old_domain),
            ("web1", pool),
            ("web1", parameters),
            ("web2", parameters),
        ),
    ),
    f"{RST}guide_first_hour.rst": Stage(
        {**TRACED, **ONE}, (("hv1", functools.partial(domain, name="first", state="absent")),)
    ),
    f"{RST}guide_module_parameters.rst": Stage(
        {"fleet": {"web1": "trace1", "web2": "trace2", "web3": "trace3"}, "latency": {"web2": "trace2"}}
    ),
    f"{RST}guide_console_logs.rst": Stage(
        ONE, (("hv1", domain), ("hv1", functools.partial(domain, name="web2", state="present")))
    ),
    f"{RST}guide_debugging_libvirt.rst": Stage(ONE, (("hv1", domain),)),
    f"{RST}guide_domains.rst": Stage(
        TWO, tuple((host, given) for host in TWO["virt_hosts"] for given in (image, network, old_domain))
    ),
    f"{RST}guide_builders.rst": Stage({**TRACED, "builders": {"debian1": "builder"}}, (("debian1", key),)),
    QUICK: Stage(
        {"trace_hosts": TRACED["trace_hosts"], **ONE},
        (("hv1", absent), ("hv1", functools.partial(old_domain, disk=f"{IMAGES}/old7.img"))),
    ),
    "roles/domains/README.md": Stage(
        ONE, tuple(("hv1", given) for given in (functools.partial(image, name="web1"), network, old_domain))
    ),
    "roles/fleet_report/README.md": Stage(
        {"fleet": TRACED["trace_hosts"]}, tuple((host, parameters) for host in TRACED["trace_hosts"])
    ),
    "roles/module_params/README.md": Stage(
        {"fleet": {"web1": "trace1", "web2": "trace2"}, "latency": {"web2": "trace2"}},
        tuple(
            (host, functools.partial(parameters, names=["halt_poll_ns", "halt_poll_ns_shrink"]))
            for host in TRACED["trace_hosts"]
        ),
    ),
    "roles/trace/README.md": Stage(
        {"trace_hosts": {"hv1": "trace1"}, "builders": {"builder1": "builder"}}, (("hv1", domain),)
    ),
    "roles/trace_host/README.md": Stage({"trace_hosts": {"web1": "trace1"}}, (("web1", user),)),
    "roles/virt_host/README.md": Stage(ONE, (("hv1", daemon), ("hv1", saved_network))),
}


def stage_of(page: str) -> Stage:
    """Return the requirements of a page."""
    return STAGES.get(page, Stage(TRACED))


def inventory(lab: LabHosts, page: str) -> str:
    """Return the lab's hosts under the names and in the groups of a page, with the variables of its groups."""
    shown = [block.data for block in blocks_of(TREE / page) if block.file == "inventory.yml"]
    tree = {}
    for group, hosts in stage_of(page).groups.items():
        variables = [data[group].get("vars", {}) for data in shown if group in data]
        named = {name: lab.variables(host) for name, host in hosts.items()}
        tree[group] = {"hosts": named, "vars": dict(pair for each in variables for pair in each.items())}
    return yaml.safe_dump(tree)


def commands_of(block: Block, blocks: t.Sequence[Block]) -> list[tuple[list[str], str]]:
    """Return the commands that a reader types for an example, each with the output in the page."""
    if block.kind == "console":
        return [(words[2 if words[:2] == ["./dev", "exec"] else 0 :], shown) for words, shown in block.commands]
    typed = [words for other in blocks if other.kind == "console" for words, _shown in other.commands]
    if any(block.file in words for words in typed):
        return []
    return [(["ansible-playbook", "-i", "inventory.yml", f"line-{block.line}.yml"], "")]


def plays_of(block: Block) -> list[dict[str, t.Any]]:
    """Return a block as plays; tasks without a play run on the page's hosts of domains or on its first group."""
    groups = stage_of(block.page).groups
    libvirt = "virt_hosts" in groups and any("libvirt_" in key for key, _options in block.steps)
    group = "virt_hosts" if libvirt else next(iter(groups))
    return [{**play, "hosts": group} for play in block.playbook] if block.kind == "tasks" else block.playbook


def ssh_by_inventory(lab: LabHosts, page: str, folder: pathlib.Path) -> None:
    """Let ``ssh``, as libvirt calls it, find the page's hosts in the domain example.org."""
    lines = []
    for name, host in next(iter(stage_of(page).groups.values())).items():
        variables = lab.variables(host)
        lines += [
            f"Host {name}.example.org",
            f"  HostName {variables['ansible_host']}",
            f"  Port {variables['ansible_port']}",
        ]
        lines += [f'  IdentityFile "{variables["ansible_ssh_private_key_file"]}"']
        lines += ["  StrictHostKeyChecking no", "  UserKnownHostsFile /dev/null", "  LogLevel ERROR"]
    (folder / "ssh_config").write_text("\n".join(lines) + "\n", encoding="utf-8")
    program = folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nexec {shutil.which("ssh")} -F {shlex.quote(str(folder / "ssh_config"))} "$@"\n', "utf-8"
    )
    program.chmod(0o755)


@pytest.mark.scenario
@pytest.mark.parametrize(
    "page", [page if page == QUICK else pytest.param(page, marks=pytest.mark.soak) for page in PAGES]
)
def test_examples_of_a_page_work(lab, page, tmp_path):
    blocks = blocks_of(TREE / page)
    write_files(blocks, tmp_path)
    (tmp_path / "inventory.yml").write_text(inventory(lab, page), encoding="utf-8")
    ssh_by_inventory(lab, page, tmp_path)
    # The environment of a shell in this directory, with the inventory as ./dev exec sets it.
    env = os.environ | {"PWD": str(tmp_path), "ANSIBLE_INVENTORY": str(tmp_path / "inventory.yml")}
    env |= {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    quiet: t.Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    wrong = []
    output = ""
    with contextlib.ExitStack() as given:
        hosts = {name: host for group in stage_of(page).groups.values() for name, host in group.items()}
        for name, give in stage_of(page).given:
            given.enter_context(give(lab, hosts[name], tmp_path))
        for block in blocks:
            if block.run == "printed" and not shown_in(block.text, output, numbers_differ=True):
                wrong.append(f"{block} shows\n{block.text}\nand this came:\n{output[-6000:]}")
            if block.run != "lab":
                continue
            if block.kind != "console":
                (tmp_path / f"line-{block.line}.yml").write_text(yaml.safe_dump(plays_of(block)), encoding="utf-8")
            output = ""
            for words, shown in commands_of(block, blocks):
                # As in a shell, an assignment before a command sets a variable of its environment.
                variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
                argv = words[len(variables) :]
                done = subprocess.run(argv, cwd=tmp_path, env=env | variables, timeout=600, check=False, **quiet)
                output += done.stdout
                if done.returncode or not shown_in(shown, done.stdout):
                    end = done.stdout[-3000:] + done.stderr[-1000:]
                    wrong.append(f"{block}: {shlex.join(words)} ended with {done.returncode}:\n{end}")
        assert not wrong, "\n\n".join(wrong)
