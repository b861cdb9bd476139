# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All recorded definitions, and edits of every kind, under the daemon of a KVM host: the plan is what is done, once."""

from __future__ import annotations

import dataclasses
import os
import random
import typing as t

import pytest
import yaml
from ansible_collections.tapvirt.host.plugins.filter.boot_sector import boot_sector
from ansible_collections.tapvirt.host.tests.unit.plugins.modules.definitions import (
    TAKE_FROM_THE_HOST,
    definitions,
    make_files,
    why_not,
)
from ansible_collections.tapvirt.host.tests.unit.plugins.modules.domain_edits import (
    DISK_BYTES,
    KINDS,
    Edit,
    World,
    edits,
)
from ansible_collections.tapvirt.host.tests.unit.plugins.modules.edit_checks import (
    READ,
    Made,
    items,
    read_definitions,
    wrong_edits,
)

if t.TYPE_CHECKING:
    from .conftest import LabHosts, PlaybookResult

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

HOST = "trace4"
FOLDER = "/var/lib/libvirt/images/edits"
SEED = int(os.environ.get("TAPVIRT_SEED", random.randrange(10_000)))
EACH, AT_ONCE = 20, {False: 20, True: 10}
WORLD = World("kvm", FOLDER, ("qemu64", "qemu32"), ("maximum", "host-model", "host-passthrough"))
CONNECT = "import libvirt\nconnection = libvirt.open('qemu:///system')\n"
# What the host has no firmware and no TPM for, and libvirt's word for that.
LACKING = {"efi_tpm": "Unable to find 'efi' firmware", "secure_boot": "Unable to find 'efi' firmware", "tpm_crb": "TPM"}
UNMARK = """
mark = "https://github.com/tapvirt/tapvirt.host/domain/1"
for name in NAMES:
    domain = connection.lookupByName(name)
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, mark, 2)
"""
FORGET = """
for domain in connection.listAllDomains():
    if domain.name() in NAMES:
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
print(sorted({domain.name() for domain in connection.listAllDomains()} & set(NAMES)))
"""


def python(name: str, code: str) -> dict[str, t.Any]:
    return {"name": name, "ansible.builtin.command": {"argv": ["python3", "-c", CONNECT + code]}}


def converge(name: str, wanted: list[dict[str, t.Any]], **options: t.Any) -> dict[str, t.Any]:
    return {"name": name, "tapvirt.host.libvirt_domain": {"domains": wanted}, **options}


def run(lab: LabHosts, tasks: list[dict[str, t.Any]]) -> PlaybookResult:
    return lab.playbook(yaml.safe_dump([{"hosts": HOST, "gather_facts": False, "tasks": tasks}]), timeout=1800)


def forget(lab: LabHosts, names: list[str]) -> None:
    """Take domains and their files away."""
    code = CONNECT + FORGET.replace("NAMES", repr(names))
    left = lab.run(HOST, "python3", "-c", code, timeout=300)
    logs = " ".join(f"/var/log/libvirt/qemu/{name}.log" for name in names)
    lab.run(HOST, "sh", "-c", f"rm -rf {FOLDER} {logs}")
    assert left.stdout == "[]\n", left.stderr


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_each_edit_gives_its_rows_and_an_effect_or_what_waits(lab: LabHosts, kind: str, running: bool) -> None:
    some = edits(WORLD, kind, EACH, SEED)
    if kind in ("vcpus", "CPU mode"):
        # Guests that run with many processors or features on an emulated host have ended it.
        some = [dataclasses.replace(edit, state="paused") for edit in some]
    wrong: list[str] = []
    for start in range(0, len(some), AT_ONCE[running]):
        batch = some[start : start + AT_ONCE[running]]
        wrong += wrong_edits(batch, make(lab, batch, running), running)
    assert not wrong, "\n".join([f"seed {SEED}", *wrong])


def make(lab: LabHosts, some: list[Edit], running: bool) -> Made:
    """Make edits of domains, which are gone afterwards."""
    names = [edit.name for edit in some]
    files = sorted(file for edit in some for file in edit.files())
    images = " ".join(edit.before.image(WORLD) for edit in some)
    line = boot_sector("an edit of the lab")
    prepare = f"mkdir -p {FOLDER}; for image in {images}; do echo {line} | base64 -d > $image; done"
    if files:
        prepare += f"; truncate -s {DISK_BYTES} {' '.join(files)}"
    before, after = (items(WORLD, some, late, running) for late in (False, True))
    read = READ.replace("NAMES", repr(names))
    tasks = [
        {"name": "Prepare", "ansible.builtin.shell": prepare},
        converge("Begin", before),
        python("Before", read),
        converge("Planned", after, check_mode=True),
        converge("Done", after),
        python("After", read),
        converge("Again", after),
    ]
    try:
        done = run(lab, tasks)
        assert done.rc == 0, done.stdout
        seen = [read_definitions(done.of(HOST, name)["stdout"]) for name in ("Before", "After")]
        planned, real, again = (done.of(HOST, name) for name in ("Planned", "Done", "Again"))
        return Made(seen[0], planned, real, seen[1], again, warned=False)
    finally:
        forget(lab, names)


def test_every_definition_stopped_gives_the_plan_and_nothing_more(lab: LabHosts) -> None:
    found = definitions(FOLDER, "kvm")
    lacking = [{"name": name, "xml": found[name]} for name in LACKING]
    wanted = [{"name": name, "xml": xml} for name, xml in found.items() if name not in LACKING]
    tasks = [
        converge("Lacking", lacking, ignore_errors=True),
        converge("Planned", wanted, check_mode=True),
        converge("Done", wanted),
        converge("Again", wanted),
        python("Unmark", UNMARK.replace("NAMES", repr([one["name"] for one in wanted]))),
        converge("Unmarked", wanted),
    ]
    try:
        done = run(lab, tasks)
        assert done.rc == 0, done.stdout
    finally:
        forget(lab, [one["name"] for one in wanted])
    planned, real, again, unmarked = (done.of(HOST, name) for name in ("Planned", "Done", "Again", "Unmarked"))
    for row in done.of(HOST, "Lacking")["domains"]:
        assert LACKING[row["name"]] in row["error"]
    assert planned["plan"] == real["plan"]
    assert len(real["domains"]) == len(wanted) >= 40
    assert {row["plan_fidelity"] for row in real["domains"]} == {"exact"}
    for one in (again, unmarked):
        assert (one["changed"], one["plan"], {row["plan_fidelity"] for row in one["domains"]}) == (False, [], {"exact"})


def test_every_definition_that_can_run_there_is_told_exactly_once(lab: LabHosts) -> None:
    found = definitions(FOLDER, "kvm")
    names = sorted(set(found) - TAKE_FROM_THE_HOST - set(LACKING))
    ran = 0
    for start in range(0, len(names), AT_ONCE[True]):
        some = names[start : start + AT_ONCE[True]]
        wanted = [{"name": name, "xml": found[name], "state": "paused"} for name in some]
        ran_names = "done.domains | selectattr('error', 'none') | map(attribute='name')"
        started = f"{{{{ wanted | selectattr('name', 'in', {ran_names}) }}}}"
        tasks: list[dict[str, t.Any]] = [
            {"name": "Files", "ansible.builtin.shell": f"mkdir -p -m 777 {FOLDER}; {make_files(FOLDER)}"},
            {"name": "Wanted", "ansible.builtin.set_fact": {"wanted": wanted}},
            converge("Planned", wanted, check_mode=True),
            converge("Done", wanted, register="done", failed_when=False),
            {"name": "Again", "tapvirt.host.libvirt_domain": {"domains": started}},
            python("Unmark", UNMARK.replace("NAMES", repr(some))),
            {"name": "Unmarked", "tapvirt.host.libvirt_domain": {"domains": started}},
        ]
        try:
            done = run(lab, tasks)
            assert done.rc == 0, done.stdout
        finally:
            forget(lab, some)
        planned, real = done.of(HOST, "Planned"), done.of(HOST, "Done")
        assert planned["plan"] == real["plan"]
        assert [problem for row in real["domains"] if (problem := why_not(row["name"], row["error"]))] == []
        run_ = [row["name"] for row in real["domains"] if row["error"] is None]
        ran += len(run_)
        for name in ("Again", "Unmarked"):
            result = done.of(HOST, name)
            assert (result["changed"], result["plan"]) == (False, [])
            assert [(row["name"], row["state"], row["pending"]) for row in result["domains"]] == [
                (name, "paused", []) for name in run_
            ]
    assert ran > len(names) // 2
