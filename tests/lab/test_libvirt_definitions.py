# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All recorded definitions, and edits of every kind, under the daemon of a KVM host: each plan is applied once."""

from __future__ import annotations

import dataclasses
import os
import random
import typing as t

import pytest
from ansible_collections.tapvirt.host.playbooks.filter_plugins.boot_sector import boot_sector
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.definitions import (
    TAKE_FROM_THE_HOST,
    definitions,
    make_files,
    why_not,
)
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.domain_edits import (
    DISK_BYTES,
    KINDS,
    Edit,
    World,
    edits,
)
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.edit_checks import (
    READ,
    Made,
    items,
    read_definitions,
    wrong_edits,
)

from .support.tasks import module_task

if t.TYPE_CHECKING:
    from .support.hosts import LabHosts

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

HOST = "trace4"
FOLDER = "/var/lib/libvirt/images/edits"
SEED = int(os.environ.get("TAPVIRT_SEED", random.randrange(10_000)))
EACH, AT_ONCE = 20, {False: 20, True: 10}
WORLD = World("kvm", FOLDER, ("qemu64", "qemu32"), ("maximum", "host-model", "host-passthrough"))
CONNECT = "import libvirt\nconnection = libvirt.open('qemu:///system')\n"
# Definitions that need firmware or a TPM that the host does not have: name -> error of libvirt.
LACKING = {"efi_tpm": "Unable to find 'efi' firmware", "secure_boot": "Unable to find 'efi' firmware", "tpm_crb": "TPM"}
UNMARK = """
mark = "https://github.com/tapvirt/tapvirt.host/domain/1"
for name in NAMES:
    domain = connection.lookupByName(name)
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, mark, 2)
"""
DELETE = """
for domain in connection.listAllDomains():
    if domain.name() in NAMES:
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
print(sorted({domain.name() for domain in connection.listAllDomains()} & set(NAMES)))
"""


def python_task(name: str, code: str) -> dict[str, t.Any]:
    """Return a task that runs Python code with a connection to libvirt."""
    return {"name": name, "ansible.builtin.command": {"argv": ["python3", "-c", CONNECT + code]}}


def domains_task(name: str, wanted: list[dict[str, t.Any]], **keywords: t.Any) -> dict[str, t.Any]:
    """Return a task that converges domains."""
    return module_task(name, "libvirt_domain", {"domains": wanted}, **keywords)


def delete_domains(lab: LabHosts, names: list[str]) -> None:
    """Delete domains and their files."""
    code = CONNECT + DELETE.replace("NAMES", repr(names))
    left = lab.run(HOST, "python3", "-c", code, timeout=300)
    logs = " ".join(f"/var/log/libvirt/qemu/{name}.log" for name in names)
    lab.run(HOST, "sh", "-c", f"rm -rf {FOLDER} {logs}")
    assert left.stdout == "[]\n", left.stderr


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_each_edit_has_its_rows_and_takes_effect_or_is_pending(lab: LabHosts, kind: str, running: bool) -> None:
    some = edits(WORLD, kind, EACH, SEED)
    if kind in ("vcpus", "CPU mode"):
        # Guests that run with many processors or features on an emulated host have ended it.
        some = [dataclasses.replace(edit, state="paused") for edit in some]
    wrong: list[str] = []
    for start in range(0, len(some), AT_ONCE[running]):
        batch = some[start : start + AT_ONCE[running]]
        wrong += wrong_edits(batch, apply_edits(lab, batch, running), running)
    assert not wrong, "\n".join([f"seed {SEED}", *wrong])


def apply_edits(lab: LabHosts, some: list[Edit], running: bool) -> Made:
    """Apply edits to domains, which are deleted afterwards; return the plans and the definitions."""
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
        domains_task("Begin", before),
        python_task("Before", read),
        domains_task("Planned", after, check_mode=True),
        domains_task("Done", after),
        python_task("After", read),
        domains_task("Again", after),
    ]
    try:
        done = lab.run_tasks(HOST, tasks, timeout=1800)
        assert done.rc == 0, done.stdout
        seen = [read_definitions(done.of(HOST, name)["stdout"]) for name in ("Before", "After")]
        planned, real, again = (done.of(HOST, name) for name in ("Planned", "Done", "Again"))
        return Made(seen[0], planned, real, seen[1], again, warned=False)
    finally:
        delete_domains(lab, names)


def test_stopped_definitions_converge_as_planned(lab: LabHosts) -> None:
    found = definitions(FOLDER, "kvm")
    lacking = [{"name": name, "xml": found[name]} for name in LACKING]
    wanted = [{"name": name, "xml": xml} for name, xml in found.items() if name not in LACKING]
    tasks = [
        domains_task("Lacking", lacking, ignore_errors=True),
        domains_task("Planned", wanted, check_mode=True),
        domains_task("Done", wanted),
        domains_task("Again", wanted),
        python_task("Unmark", UNMARK.replace("NAMES", repr([item["name"] for item in wanted]))),
        domains_task("Unmarked", wanted),
    ]
    try:
        done = lab.run_tasks(HOST, tasks, timeout=1800)
        assert done.rc == 0, done.stdout
    finally:
        delete_domains(lab, [item["name"] for item in wanted])
    planned, real, again, unmarked = (done.of(HOST, name) for name in ("Planned", "Done", "Again", "Unmarked"))
    for row in done.of(HOST, "Lacking")["domains"]:
        assert LACKING[row["name"]] in row["error"]["problem"]
    assert planned["plan"] == real["plan"]
    assert len(real["domains"]) == len(wanted) >= 40
    assert {row["plan_fidelity"] for row in real["domains"]} == {"exact"}
    for result in (again, unmarked):
        assert (result["changed"], result["plan"], {row["plan_fidelity"] for row in result["domains"]}) == (
            False,
            [],
            {"exact"},
        )


def test_running_definitions_converge_as_planned_and_once(lab: LabHosts) -> None:
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
            domains_task("Planned", wanted, check_mode=True),
            domains_task("Done", wanted, register="done", failed_when=False),
            {"name": "Again", "tapvirt.host.libvirt_domain": {"domains": started}},
            python_task("Unmark", UNMARK.replace("NAMES", repr(some))),
            {"name": "Unmarked", "tapvirt.host.libvirt_domain": {"domains": started}},
        ]
        try:
            done = lab.run_tasks(HOST, tasks, timeout=1800)
            assert done.rc == 0, done.stdout
        finally:
            delete_domains(lab, some)
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
