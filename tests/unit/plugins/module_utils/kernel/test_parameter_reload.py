# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loading modules again: a scratch host whose rmmod and modprobe do to its tree what the real ones do to a kernel."""

from __future__ import annotations

import json
import os
import pathlib
import sys

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core import command
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.modules import modprobe_d
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters import reload
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.model import wanted_list
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.run import Parameters
from ansible_collections.tapvirt.host.tests.unit.support.files import write_files
from ansible_collections.tapvirt.host.tests.unit.support.kernel.module_object import object_file
from ansible_collections.tapvirt.host.tests.unit.support.kernel.parameters import set_parameters

RELEASE = "6.12.107"
OWN = "etc/modprobe.d/zz-tapvirt.conf"
JOURNAL = "var/lib/tapvirt/kernel_module_param.json"
# A module with three parameters: two that only its load sets (it makes an odd number of "parts"), one for both.
PROGRAM = """\
#!{python}
import os, pathlib, sys
tree = pathlib.Path({tree!r})
module, *arguments = sys.argv[1:]
directory = tree / "sys/module" / module
with open(tree / "called", "a") as log:
    print(os.path.basename(sys.argv[0]), *sys.argv[1:], file=log)
if sys.argv[0].endswith("rmmod"):
    if (tree / "busy").exists():
        sys.exit("rmmod: ERROR: Module " + module + " is not permitted to go")
    if (tree / "held").exists():
        (tree / "held").unlink()
        sys.exit("rmmod: ERROR: Module " + module + " is in use")
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    directory.rmdir()
    sys.exit(0)
values = dict(parts="16", count="2", log="N")
own = tree / {own!r}
for line in own.read_text().splitlines() if own.exists() else []:
    words = line.split()
    if words[:2] == ["options", module]:
        values.update(word.split("=") for word in words[2:])
values.update(word.split("=") for word in arguments)
if int(values["count"]) < 0:
    sys.exit("modprobe: ERROR: could not insert: Invalid argument")
values["parts"] = str(int(values["parts"]) | 1)
(directory / "parameters").mkdir(parents=True)
(directory / "holders").mkdir()
(directory / "initstate").write_text("live")
(directory / "refcnt").write_text("0")
for name, value in values.items():
    (directory / "parameters" / name).write_text(value + chr(10))
    (directory / "parameters" / name).chmod(0o644 if name == "log" else 0o444)
"""


@pytest.fixture
def nbd_root(tmp_path, monkeypatch):
    write_files(
        tmp_path,
        {
            "proc/sys/kernel/osrelease": RELEASE,
            "proc/sys/kernel/random/boot_id": "this\n",
            f"lib/modules/{RELEASE}/modules.dep": "kernel/drivers/nbd.ko:\n",
            f"lib/modules/{RELEASE}/modules.alias": "alias rtnl-link-nb-link nbd\n",
        },
    )
    (tmp_path / "etc" / "modprobe.d").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("rmmod", "modprobe"):
        program = tmp_path / "bin" / name
        program.write_text(PROGRAM.format(python=sys.executable, tree=str(tmp_path), own=OWN))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    root = Root(str(tmp_path))
    command.run(["modprobe", "nbd"])
    (tmp_path / "called").unlink()
    return root


def set_nbd(root, values, **options):
    options = {"persist": "auto", "reload": "if_unused", **options}
    return set_parameters(root, {f"nbd.{name}": value for name, value in values.items()}, **options)


def value(root, name):
    return root.read_text("sys/module/nbd/parameters/" + name).strip()


def called(root):
    return (root.read_text_or("called") or "").splitlines()


def put(root, name, text):
    write_files(root.path("/"), {name: text})


def test_one_reload_for_all_parameters_of_a_module_and_none_in_the_second_run(nbd_root):
    checked = set_nbd(nbd_root, {"count": 5, "parts": 8}, check=True)[0].rows()
    assert (called(nbd_root), nbd_root.exists(OWN), value(nbd_root, "count")) == ([], False, "2")
    plan, result = set_nbd(nbd_root, {"count": 5, "parts": 8}, read_back="rounded")
    assert [row["how"] for row in plan.rows()] == ["/" + OWN, "/" + OWN, "rmmod, modprobe"]
    assert plan.rows() == checked
    assert called(nbd_root) == ["rmmod nbd", "modprobe nbd"]
    assert [(row["after"], row["verdict"], row["pending"]) for row in result["params"]] == [
        (5, "changed", []),
        (9, "adjusted", []),
    ]
    plan, result = set_nbd(nbd_root, {"count": 5, "parts": 8})
    assert (plan.rows(), [row["verdict"] for row in result["params"]]) == ([], ["unchanged", "adjusted"])


def test_values_that_nothing_configures_are_not_lost(nbd_root):
    reload.unload("nbd")
    command.run(["modprobe", "nbd", "count=7"])
    put(nbd_root, "sys/module/nbd/parameters/log", "Y\n")
    set_nbd(nbd_root, {"parts": 3})
    assert [value(nbd_root, name) for name in ("parts", "count", "log")] == ["3", "7", "Y"]
    assert called(nbd_root)[-1] == "modprobe nbd count=7"


def test_without_being_asked_nothing_is_loaded_again(nbd_root):
    _plan, result = set_nbd(nbd_root, {"count": 5}, reload="never")
    assert result["params"][0]["pending"] == ["not in effect: it takes effect when the module is loaded again"]
    assert (called(nbd_root), value(nbd_root, "count")) == ([], "2")
    with pytest.raises(
        InvalidInput,
        match="^Invalid value 'if_unused' for params.0..reload: .*nbd.count.* Set persist to auto or modprobe_d.$",
    ):
        set_nbd(nbd_root, {"count": 5}, persist="none")


def test_a_parameter_that_can_be_set_needs_no_reload(nbd_root):
    set_nbd(nbd_root, {"log": True})
    assert (called(nbd_root), value(nbd_root, "log")) == ([], "Y")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("sys/module/nbd/holders/nbd_core", "", "it is used by nbd_core"),
        ("sys/module/nbd/refcnt", "3\n", "it is in use (3 times: open devices, mounts, sockets or the like)"),
        ("proc/modules", "nbd 65536 0 [permanent], Live 0x0\n", "it cannot be unloaded (permanent)"),
        ("proc/sys/kernel/modules_disabled", "1\n", "no module can be loaded any more (kernel.modules_disabled)"),
        ("etc/modprobe.d/a.conf", "remove nbd /bin/true\n", "/etc/modprobe.d/a.conf says: remove nbd /bin/true"),
        ("sys/class/net/lo/uevent", "DEVTYPE=nb_link\n", "the network interface lo is up"),
        (f"lib/modules/{RELEASE}/modules.dep", "", "it is not installed for this kernel"),
    ],
)
def test_what_is_in_the_way_is_reported_and_nothing_is_loaded_again(name, text, reason, nbd_root):
    put(nbd_root, "sys/class/net/lo/flags", "0x9\n")
    put(nbd_root, name, text)
    _plan, result = set_nbd(nbd_root, {"count": 5})
    (pending,) = result["params"][0]["pending"]
    assert pending.startswith("not in effect: it takes effect when the module is loaded again; that was not done now: ")
    assert reason in pending
    assert (called(nbd_root), value(nbd_root, "count"), result["params"][0]["verdict"]) == ([], "2", "changed")
    assert set_nbd(nbd_root, {"count": 5})[1]["params"][0]["verdict"] == "pending"


def test_a_module_that_could_not_be_loaded_again_is_not_unloaded(nbd_root):
    path = pathlib.Path(nbd_root.path(f"lib/modules/{RELEASE}/kernel/drivers/nbd.ko"))
    path.parent.mkdir(parents=True)
    path.write_bytes(object_file(b"parmtype=count:int\0parmtype=parts:int\0parmtype=log:bool\0"))
    put(nbd_root, "etc/modprobe.d/a.conf", "options nbd parts=many\n")
    _plan, result = set_nbd(nbd_root, {"count": 5})
    assert (called(nbd_root), value(nbd_root, "count")) == ([], "2")
    assert "that was not done now: /etc/modprobe.d/a.conf sets parts=many for nbd" in result["params"][0]["pending"][0]
    put(nbd_root, "etc/modprobe.d/a.conf", "options nbd parts=8\n")
    set_nbd(nbd_root, {"count": 5})
    assert (called(nbd_root), value(nbd_root, "count")) == (["rmmod nbd", "modprobe nbd"], "5")


def test_a_device_that_is_bound_to_the_module_is_in_the_way(nbd_root):
    put(nbd_root, "sys/bus/virtio/drivers/nbd/bind", "")
    os.makedirs(nbd_root.path("sys/module/nbd/drivers"))
    os.symlink("../../../bus/virtio/drivers/nbd", nbd_root.path("sys/module/nbd/drivers/virtio:nbd"))
    lines: list[modprobe_d.Line] = []
    assert reload.reload_blockers(nbd_root, "nbd", lines, "") == []
    os.symlink("/sys", nbd_root.path("sys/bus/virtio/drivers/nbd/module"))
    os.symlink("/sys", nbd_root.path("sys/bus/virtio/drivers/nbd/virtio7"))
    assert reload.reload_blockers(nbd_root, "nbd", lines, "") == ["it drives virtio7"]


def test_an_interface_that_is_down_or_of_another_kind_is_not_in_the_way(nbd_root):
    put(nbd_root, "sys/class/net/lo/flags", "0x8\n")
    put(nbd_root, "sys/class/net/lo/uevent", "DEVTYPE=nb_link\n")
    assert reload.reload_blockers(nbd_root, "nbd", [], "alias rtnl-link-nb-link nbd\n") == []
    put(nbd_root, "sys/class/net/lo/flags", "0x9\n")
    assert reload.reload_blockers(nbd_root, "nbd", [], "alias rtnl-link-nb-link other\n") == []


def test_a_module_that_cannot_be_unloaded_is_a_failure_that_leaves_all_as_before(nbd_root):
    put(nbd_root, "busy", "")
    with pytest.raises(
        TapvirtError, match="The module nbd could not be unloaded: .*not permitted.*Everything is as it was"
    ):
        set_nbd(nbd_root, {"count": 5, "log": True})
    assert [value(nbd_root, name) for name in ("count", "log")] == ["2", "N"]
    assert not nbd_root.exists(OWN)
    assert not nbd_root.exists(JOURNAL)


def test_who_looks_at_a_new_device_for_a_moment_is_waited_for(nbd_root):
    put(nbd_root, "held", "")
    set_nbd(nbd_root, {"count": 5})
    assert (called(nbd_root), value(nbd_root, "count")) == (["rmmod nbd", "rmmod nbd", "modprobe nbd"], "5")


def test_a_module_that_does_not_come_back_is_loaded_as_before(nbd_root):
    put(nbd_root, "sys/module/nbd/parameters/log", "Y\n")
    with pytest.raises(
        TapvirtError, match="The module nbd could not be loaded: .*Invalid argument. Everything is as it was"
    ):
        set_nbd(nbd_root, {"count": -1})
    assert [value(nbd_root, name) for name in ("count", "log")] == ["2", "Y"]
    assert (called(nbd_root), nbd_root.exists(OWN)) == (["rmmod nbd", "modprobe nbd", "modprobe nbd"], False)


def test_a_module_that_cannot_even_be_loaded_as_before_is_left_to_the_next_run(nbd_root):
    program = pathlib.Path(nbd_root.path("bin/modprobe"))
    works = program.read_text()
    program.write_text("#!/bin/sh\necho modprobe: FATAL: none >&2\nexit 1\n")
    with pytest.raises(
        TapvirtError, match="Not everything could be put back: The module nbd could not be loaded: modprobe: FATAL"
    ):
        set_nbd(nbd_root, {"count": 5})
    program.write_text(works)
    plan, result = set_nbd(nbd_root, {"count": 2})
    assert (plan.rows()[0]["what"], result["recovered"], value(nbd_root, "count")) == (
        "the module nbd",
        ["the module nbd"],
        "2",
    )


def test_the_first_of_two_modules_is_loaded_as_before_when_the_second_fails(nbd_root):
    put(nbd_root, f"lib/modules/{RELEASE}/modules.dep", "kernel/a.ko:\nkernel/nbd.ko:\n")
    command.run(["modprobe", "a", "count=7"])
    entry = {"runtime": True, "persist": "auto", "read_back": "auto", "reload": "if_unused", "name": "count"}
    entries = [{**entry, "module": "a", "value": 3}, {**entry, "module": "nbd", "value": -1}]
    with pytest.raises(TapvirtError, match="The module nbd could not be loaded: .*Everything is as it was"):
        Parameters(nbd_root, "x86_64", wanted_list(entries, "present"), "present").converge(False)
    assert nbd_root.read_text("sys/module/a/parameters/count") == "7\n"
    assert (value(nbd_root, "count"), nbd_root.exists(OWN), nbd_root.exists(JOURNAL)) == ("2", False, False)


def test_a_value_that_the_load_did_not_take_is_a_failure_that_leaves_all_as_before(nbd_root):
    with pytest.raises(
        TapvirtError, match="The kernel took '8' for nbd.parts, but 9 reads back.*Everything is as it was"
    ):
        set_nbd(nbd_root, {"count": 5, "parts": 8}, read_back="exact")
    assert [value(nbd_root, name) for name in ("count", "parts")] == ["2", "17"]
    assert not nbd_root.exists(OWN)


def test_restored_loads_it_again_with_what_was_there(nbd_root):
    set_nbd(nbd_root, {"count": 5})
    _plan, result = set_nbd(nbd_root, {"count": None}, state="restored", reload="never")
    assert result["params"][0]["pending"] == ["the running value stays until the module is loaded again"]
    assert value(nbd_root, "count") == "5"
    put(nbd_root, "sys/module/nbd/refcnt", "1\n")
    (pending,) = set_nbd(nbd_root, {"count": None}, state="restored")[1]["params"][0]["pending"]
    assert "; that was not done now: it is in use (1 times" in pending
    put(nbd_root, "sys/module/nbd/refcnt", "0\n")
    plan, result = set_nbd(nbd_root, {"count": None}, state="restored")
    assert [row["what"] for row in plan.rows()] == ["the module nbd"]
    assert (value(nbd_root, "count"), result["params"][0]["verdict"]) == ("2", "restored")
    assert not set_nbd(nbd_root, {"count": None}, state="restored")[0]
    assert not nbd_root.exists(JOURNAL)


def test_a_module_that_a_killed_run_had_unloaded_is_loaded_by_the_next_one(nbd_root):
    reload.unload("nbd")
    journal = {"boot_id": "this", "in_progress": {}, "reloading": {"nbd": {"count": "7", "log": "Y", "parts": "17"}}}
    put(nbd_root, JOURNAL, json.dumps(journal))
    put(nbd_root, "sys/module/kernel/parameters/panic", "0\n")
    entry = {"module": "kernel", "name": "panic", "value": 0, "runtime": True, "persist": "none", "read_back": "auto"}
    plan, result = Parameters(nbd_root, "x86_64", wanted_list([entry], "present"), "present").converge(False)
    assert ([step.what for step in plan], result["recovered"]) == (["the module nbd"], ["the module nbd"])
    assert [value(nbd_root, name) for name in ("count", "log", "parts")] == ["7", "Y", "17"]
    assert not Parameters(nbd_root, "x86_64", wanted_list([entry], "present"), "present").converge(False)[0]


def test_other_lines_about_the_module_are_notes(nbd_root):
    put(nbd_root, "etc/modprobe.d/a.conf", "blacklist nbd\nsoftdep nbd pre: dummy\nblacklist other\n")
    put(nbd_root, "proc/cmdline", "quiet module_blacklist=x,nbd modprobe.blacklist=nbd\n")
    _plan, result = set_nbd(nbd_root, {"count": 5})
    assert result["params"][0]["notes"] == [
        "/etc/modprobe.d/a.conf says: blacklist nbd",
        "/etc/modprobe.d/a.conf says: softdep nbd pre: dummy",
        "/proc/cmdline says: module_blacklist=x,nbd",
        "/proc/cmdline says: modprobe.blacklist=nbd",
    ]
    assert result["params"][0]["verdict"] == "changed"
