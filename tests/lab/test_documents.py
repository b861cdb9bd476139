# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation's examples, page by page and in their order, on hosts that have the names that the page gives them.

What an example changes, the page puts back itself further down: so all of them are run, whatever fails before.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.filter.boot_sector import boot_sector
from ansible_collections.tapvirt.host.tests.unit.docs.documents import (
    TREE,
    Block,
    all_blocks,
    blocks_of,
    shown_in,
    write_files,
)

RST = "docs/docsite/rst/"
# Takes some seconds; the others take minutes.
QUICK = f"{RST}migration.rst"
TRACED = {"trace_hosts": {"web1": "trace1", "web2": "trace2"}, "builders": {"builder1": "builder"}}
# A page that is not named here has hosts to trace and a builder.
FLEETS = {
    f"{RST}guide_module_parameters.rst": {"fleet": {"web1": "trace1", "web2": "trace2"}, "latency": {"web2": "trace2"}},
    f"{RST}guide_console_logs.rst": {"virt_hosts": {"hv1": "trace1"}},
    f"{RST}guide_debugging_libvirt.rst": {"virt_hosts": {"hv1": "trace1"}},
}
PAGES = sorted({block.page for block in all_blocks() if block.run == "lab"})
DISK = "/var/lib/libvirt/images/web1.img"


@pytest.fixture(scope="module")
def web1(lab) -> t.Iterator[None]:
    """A domain that some pages speak of, which says on its console what a guest says that has started."""
    done = lab.run("trace1", "sh", "-c", f"echo {boot_sector('web1 login:')} | base64 -d > {DISK}")
    assert done.returncode == 0, done.stderr
    there = {"name": "web1", "xml": lab.small_domain("web1"), "state": "running"}
    gone = {"name": "web1", "state": "absent", "remove_disks": ["hda"], "on_timeout": "destroy", "wait_seconds": 1}
    try:
        started = lab.ansible("trace1", "tapvirt.host.libvirt_domain", there)["trace1"]
        assert not started["failed"], started
        yield
    finally:
        removed = lab.ansible("trace1", "tapvirt.host.libvirt_domain", gone)["trace1"]
        assert not removed["failed"], removed


def fleet_of(page: str) -> dict[str, dict[str, str]]:
    """Return a page's groups: the names that it gives to hosts, and the lab's hosts that stand for them."""
    return FLEETS.get(page, TRACED)


def inventory(lab, page: str) -> str:
    """Return the lab's hosts under the names and in the groups of a page."""
    groups = fleet_of(page).items()
    return yaml.safe_dump(
        {group: {"hosts": {name: lab.variables(host) for name, host in hosts.items()}} for group, hosts in groups}
    )


def commands_of(block: Block, blocks: t.Sequence[Block]) -> list[tuple[list[str], str]]:
    """Return what a reader would type for an example, each with the output that the page shows."""
    if block.kind == "console":
        return [(words[2 if words[:2] == ["./dev", "exec"] else 0 :], shown) for words, shown in block.commands]
    typed = [words for other in blocks if other.kind == "console" for words, _shown in other.commands]
    if any(block.file in words for words in typed):
        return []
    return [(["ansible-playbook", "-i", "inventory.yml", f"line-{block.line}.yml"], "")]


def plays_of(block: Block) -> list[dict[str, t.Any]]:
    """Return what a block shows as plays; tasks alone are for the first group of the page."""
    group = next(iter(fleet_of(block.page)))
    return [{**play, "hosts": group} for play in block.playbook] if block.kind == "tasks" else block.playbook


@pytest.mark.parametrize(
    "page", [page if page == QUICK else pytest.param(page, marks=pytest.mark.soak) for page in PAGES]
)
def test_the_examples_of_a_page_do_what_it_says(lab, page, tmp_path, request):
    if "virt_hosts" in fleet_of(page):
        request.getfixturevalue("web1")
    blocks = blocks_of(TREE / page)
    write_files(blocks, tmp_path)
    (tmp_path / "inventory.yml").write_text(inventory(lab, page), encoding="utf-8")
    # As a shell has it in this folder, and as ./dev exec names the lab's hosts.
    env = os.environ | {"PWD": str(tmp_path), "ANSIBLE_INVENTORY": str(tmp_path / "inventory.yml")}
    env |= {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1"}
    quiet: t.Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    wrong = []
    for block in (block for block in blocks if block.run == "lab"):
        if block.kind != "console":
            (tmp_path / f"line-{block.line}.yml").write_text(yaml.safe_dump(plays_of(block)), encoding="utf-8")
        for words, shown in commands_of(block, blocks):
            done = subprocess.run(words, cwd=tmp_path, env=env, timeout=600, check=False, **quiet)
            if done.returncode or not shown_in(shown, done.stdout):
                said = done.stdout[-3000:] + done.stderr[-1000:]
                wrong.append(f"{block}: {shlex.join(words)} ended with {done.returncode}:\n{said}")
    assert not wrong, "\n\n".join(wrong)
