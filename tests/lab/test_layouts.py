# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builders that look like those of other distributions, with a real stap, and traces of what they build."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

import pytest
import yaml

from .support.places import FILES, PLAYBOOKS

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts

pytestmark = pytest.mark.soak
HOST = "trace2"
LAYOUTS = ["ubuntu", "el9", "suse15", "suse"]
# Of this run alone: the builder may serve another one.
FOLDER = f"/var/lib/tapvirt/layouts-test-{os.getpid()}"
BUILD = "tapvirt.host.trace : Build the module once for each distinct kernel"
# An interpreter in the mount namespace of a layout.
PYTHON = """#!/bin/sh
pid=$(cat {folder}/{layout}.pid)
root=/proc/$pid/root/mnt/root
exec nsenter --target "$pid" --mount --root="$root" --wd="$root" /usr/bin/python3 "$@"
"""
START = """
cd {folder}
setsid unshare --mount --fork sh layouts.sh {layout} {release} {folder} > {layout}.log 2>&1 < /dev/null &
for _try in $(seq 600); do test -s {layout}.pid && exit; sleep 0.1; done
cat {layout}.log >&2
exit 1
"""


@pytest.fixture(scope="module")
def builders(lab: LabHosts, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[pathlib.Path]:
    """An inventory with a group ``as_LAYOUT`` for each layout, whose only host is the builder in that layout."""
    release = lab.release(HOST)
    machine = lab.variables("builder")
    inventory = {}
    lab.shell("builder", f"mkdir -p {FOLDER}")
    lab.write("builder", f"{FOLDER}/layouts.sh", (FILES / "layouts.sh").read_text(encoding="utf-8"))
    try:
        for layout in LAYOUTS:
            lab.shell("builder", START.format(folder=FOLDER, layout=layout, release=release))
            python = lab.write("builder", f"{FOLDER}/{layout}", PYTHON.format(folder=FOLDER, layout=layout), "755")
            variables = {
                **machine,
                "ansible_python_interpreter": python,
                "trace_builder_store": f"{FOLDER}/modules-{layout}",
            }
            inventory[f"as_{layout}"] = {"hosts": {f"builder-{layout}": variables}}
        file = tmp_path_factory.mktemp("layouts") / "builders.yml"
        file.write_text(yaml.safe_dump(inventory), encoding="utf-8")
        yield file
    finally:
        lab.shell("builder", f"cat {FOLDER}/*.pid | xargs -r kill; rm -rf {FOLDER}", check=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_missing(lab: LabHosts, builders: pathlib.Path, layout: str) -> None:
    task = {"name": "Check", "tapvirt.host.stap_host_info": {"kernels": [lab.release(HOST)]}}
    result = lab.run_tasks(f"as_{layout}", [task], "-i", str(builders)).of(f"builder-{layout}", "Check")
    family = {"u": "Debian", "e": "RedHat", "s": "SUSE"}[layout[0]]
    assert result["builder"]["distribution"]["family"] == family
    assert [row for row in result["missing"] if row["what"] != "runtime"] == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("module", [None, "kvm"])
def test_functions_of_the_kernel_and_of_a_module_are_traced(
    lab: LabHosts, builders: pathlib.Path, layout: str, module: str | None
) -> None:
    variables = {"function": "kvm_dev_ioctl", "module": "kvm"} if module else {"function": "vfs_read"}
    given = {
        "trace_builders": f"as_{layout}",
        "trace_targets": HOST,
        "trace_duration_seconds": 3,
        "trace_cpu_ceiling_percent": 50,  # an emulated guest that has little of a CPU is overloaded soon
        "trace_accept": ["ok", "zero_hits", "partial_arm", "skipped"],  # ... and its probes wait for each other
        "trace_variables": variables,
    }
    options = ("-i", str(builders), "-e", json.dumps(given))
    result = lab.playbook(PLAYBOOKS / "trace.yml", *options, timeout=1800)
    assert result.rc == 0, result.stdout[-3000:]
    assert result.of(HOST, BUILD)["module"]["debuginfo"] == "package"
    points = [probe["point"] for probe in result.of(HOST, BUILD)["module"]["probes"]]
    assert any(f'function("{variables["function"]}@' in point for point in points), points
    run = result.of(HOST, "tapvirt.host.trace : Collect the result")["run"]
    assert run["outcome"] in (("ok", "zero_hits") if module else ("ok", "skipped")), run
