# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tracers that stay: what is asked for, what is planned, and what their program is, without a kernel to trace."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import zipfile

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service import model
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service.apply import Applier
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service.observe import (
    Host,
    Kernel,
    Seen,
    Unit,
    image_version,
    installed_kernels,
    known_names,
    observe,
    parse_units,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service.plan import (
    Program,
    Step,
    plan,
    settings_for,
)
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service.result import find_fault, row
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.service.run import check, info
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise import tracer_daemon

RUNNING, NEXT, OTHER = "6.12.1-amd64", "6.12.2-amd64", "6.12.3-amd64"
PROGRAM = Program(b"program", "e" * 64, "/usr/bin/python3")
NOTHING = Seen(Unit("inactive", False, False, 0, 0, ""), None, None, None, {}, {}, None, None, [], False, False)
DEFAULTS = {
    "state": "started",
    "enabled": True,
    "modules": [],
    "globals": {},
    "buffer_mb": 1,
    "output_file_bytes": 16 << 20,
    "output_files": 4,
    "remove_output": False,
}


def build(kernel=RUNNING, key="a", **more):
    probe = {"point": 'kernel.function("vfs_read@fs/read_write.c:1").call', "asked": "x", "place": "_stext+0x10"}
    return {
        "name": "tapvirt_reads_01234567",
        "sha256": key * 64,
        "key": key * 64,
        "kernel": kernel,
        "kernel_version": "#1 " + kernel,
        "globals": {"threshold": "long"},
        "probes": [probe],
        **more,
    }


def entry(**more):
    return {**DEFAULTS, "name": "reads", "modules": [build(), build(NEXT, "b")], **more}


def item(**more):
    (wanted,) = model.read_wanted([entry(**more)])
    return wanted


def kept(wanted, **more):
    """What there is of a tracer that runs as it is wanted."""
    sites = [{"address": "1014", "kind": "k", "symbol": "vfs_read", "offset": 4, "rest": []}]
    state = {"state": "running", "module": wanted.module_name, "sites": sites}
    state["settings"] = settings_for(wanted, RUNNING, PROGRAM)
    seen = Seen(
        unit=Unit("active", True, False, 0, 0, ""),
        unit_text=model.unit_text(wanted.name, PROGRAM.python),
        spec_text=model.spec_text(model.spec_of(wanted, PROGRAM.sha256)),
        program_sha256=PROGRAM.sha256,
        modules={model.module_path(module): module["sha256"] for module in wanted.builds.values()},
        state=state,
        digest="a" * 40,
        users=1,
        output=[],
        has_directory=True,
        has_output=True,
    )
    return dataclasses.replace(seen, **more)


def tracer_host(seen, name="reads"):
    kernels = [Kernel(release, "#1 " + release, release == RUNNING) for release in (RUNNING, NEXT, OTHER)]
    return Host(True, RUNNING, kernels, {name: seen})


def summary(wanted, seen):
    return [change.how for change in plan([wanted], tracer_host(seen), PROGRAM)]


@pytest.mark.parametrize("name", ["a/b", "", "../../etc"])
def test_information_is_only_of_services(name):
    with pytest.raises(InvalidInput, match=r"for names\[1\]: The name of a service is 1 to 32 "):
        info(["reads", name])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"name": "Slow Reads"},
            "Invalid value 'Slow Reads' for services[0].name: The name of a service is 1 to 32 lower-case "
            "letters, digits, "
            "dashes and underscores, and begins with a letter or a digit. Did you mean slow_reads?",
        ),
        ({"name": "../etc"}, "Invalid value '../etc' for services[0].name: The name of a service is 1 to 32 "),
        (
            {"modules": []},
            "Invalid value [] for services[0].modules: A service needs a module for each kernel that it "
            "is to run with. "
            "Give the modules that stap_module returned.",
        ),
        (
            {"modules": [None]},
            "Invalid value for services[0].modules[0]: stap_module does not return such a module; in "
            "check mode it returns "
            "null until it is built.",
        ),
        (
            {"modules": [build(kernel="../../etc")]},
            "Invalid value '../../etc' for services[0].modules[0].kernel: stap_module does not return "
            "such a kernel. Give "
            "the module that stap_module returned.",
        ),
        (
            {"modules": [build(key="x")]},
            f"Invalid value {'x' * 64!r} for services[0].modules[0].sha256: stap_module does not return such a sha256.",
        ),
        (
            {"modules": [build(), build()]},
            "'6.12.1-amd64' for services[0].modules[1].kernel: services[0].modules[0] has the same kernel.",
        ),
        (
            {"modules": [build(), build(NEXT, name="tapvirt_other")]},
            "for services[0].modules: The modules of a service must come from one script, which gives "
            "them the same name.",
        ),
        (
            {"globals": {"treshold": 1}},
            "Invalid value 'treshold' for services[0].globals: The script tapvirt_reads_01234567 does not "
            "declare a global "
            "variable of that name; it has threshold. Did you mean threshold?",
        ),
        (
            {"globals": {"threshold": "much"}},
            "Invalid value 'much' for services[0].globals.threshold: The global variable threshold takes "
            "a whole number.",
        ),
        (
            {"modules": [build(assigned={"threshold": "much"})]},
            "Invalid value 'much' for services[0].modules[0].assigned.threshold: The global variable threshold takes a "
            "whole number.",
        ),
        ({"buffer_mb": 0}, "Invalid value 0 for services[0].buffer_mb: The number must be from 1 to 64."),
        ({"output_files": 1}, "Invalid value 1 for services[0].output_files: The number must be from 2 to 100."),
        (
            {"output_file_bytes": 1},
            "Invalid value 1 for services[0].output_file_bytes: The number must be from 4096 to 1073741824.",
        ),
        (
            {"remove_output": True},
            "Invalid value True for services[0].remove_output: The output is removed only together with "
            "its service. Set "
            "state: absent.",
        ),
    ],
)
def test_what_cannot_be_is_named(more, words):
    with pytest.raises(InvalidInput, match=re.escape(words)):
        model.read_wanted([entry(**more)])


def test_two_tracers_are_two():
    again = "Invalid value 'reads' for services[1].name: services[0] has the same name."
    with pytest.raises(InvalidInput, match=re.escape(again)):
        model.read_wanted([entry(), entry()])
    same = (
        "Invalid value 'tapvirt_reads_01234567' for services[1].modules: Service 'reads' has the same "
        "module, and a kernel "
        "can load it only once. Give each service a script of its own."
    )
    with pytest.raises(InvalidInput, match=re.escape(same)):
        model.read_wanted([entry(), entry(name="writes")])


def test_nothing_is_planned_for_what_is_as_wanted():
    wanted = item()
    assert summary(wanted, kept(wanted)) == []
    assert summary(item(state="absent"), NOTHING) == []
    stopped = item(state="stopped")
    assert summary(stopped, kept(stopped, unit=Unit("inactive", True, False, 0, 0, ""), digest=None)) == []


def test_a_new_tracer_is_planned_whole_and_a_running_one_removed_whole():
    steps = ["copy", "copy", "write", "write", "write, daemon-reload", "systemctl enable", "systemctl start"]
    assert summary(item(), NOTHING) == steps
    assert summary(item(enabled=False), NOTHING) == [step for step in steps if step != "systemctl enable"]
    wanted = item(state="absent")
    gone = ["systemctl stop", "systemctl disable", "remove, daemon-reload", "remove"]
    assert summary(wanted, kept(item())) == gone
    assert summary(item(state="absent", remove_output=True), kept(item())) == [*gone, "remove"]


def test_a_module_for_another_kernel_restarts_nothing():
    before = item(modules=[build()])
    assert summary(item(), kept(before)) == ["copy", "write"]
    assert summary(before, kept(item())) == ["remove", "write"]


@pytest.mark.parametrize(
    ("more", "seen", "why"),
    [
        ({"globals": {"threshold": 5}}, {}, "its global variables change.*only while a module is loaded"),
        ({"buffer_mb": 2}, {}, "its buffer changes"),
        ({"output_files": 9}, {}, "its output changes"),
        ({"modules": [build(key="c")]}, {}, "the loaded module is aaaaaaaaaaaa, and cccccccccccc is wanted"),
        ({}, {"digest": None}, "its module is not loaded"),
    ],
)
def test_a_restart_gives_the_reason(more, seen, why):
    changes = list(plan([item(**more)], tracer_host(kept(item(), **seen)), PROGRAM))
    assert changes[-1].how == "systemctl restart"
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(changes[-1].why)


def test_what_was_too_much_rests_until_it_changes():
    resting = kept(item(), unit=Unit("failed", True, False, 0, 3, "overloaded: too much"), digest=None)
    resting = dataclasses.replace(resting, state={**resting.state, "state": "overloaded", "reason": "too much"})
    assert summary(item(), resting) == []
    assert summary(item(state="stopped"), resting) == ["forget"]
    assert summary(item(globals={"threshold": 9}), resting) == ["write", "systemctl start"]
    result = row("reads", resting, tracer_host(resting), None, model.spec_of(item(), PROGRAM.sha256))
    fault = find_fault("started", result)
    assert fault is not None and fault.message == (
        "Service 'reads' stays stopped, because it used more of a CPU than its build allows (too much). "
        "To start it again, "
        "change its script or its settings, or set state: stopped and then state: started."
    )


def test_a_module_that_nothing_uses_is_taken_away():
    idle = {"unit": Unit("inactive", True, False, 0, 0, "")}
    assert summary(item(state="stopped"), kept(item(), **idle, users=0)) == ["staprun -d"]
    assert summary(item(state="stopped"), kept(item(), **idle, users=1)) == []


def test_sysctls_that_a_killed_tracer_changed_are_put_back():
    killed = {"unit": Unit("failed", True, False, 0, 9, ""), "digest": None, "holds_sysctls": True}
    assert summary(item(state="stopped"), kept(item(), **killed)) == ["write"]
    gone = ["write", "systemctl disable", "remove, daemon-reload", "remove"]
    assert summary(item(state="absent"), kept(item(), **killed)) == gone
    # Its own start and stop do so otherwise.
    assert summary(item(), kept(item(), holds_sysctls=True)) == []
    assert summary(item(state="stopped"), kept(item(), holds_sysctls=True)) == ["systemctl stop"]


def test_what_a_killed_tracer_holds_is_found(tmp_path):
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text(RUNNING)
    (tmp_path / "run/tapvirt/stap/service.reads").mkdir(parents=True)
    (tmp_path / "run/tapvirt/stap/service.reads/holds").touch()
    assert observe(Root(str(tmp_path)), ["reads"]).services["reads"].holds_sysctls
    assert not observe(Root(str(tmp_path)), ["writes"]).services["writes"].holds_sysctls


def test_the_running_kernel_must_have_a_module():
    words = (
        "Invalid value '6.12.2-amd64' for services[0].modules: Service 'reads' has no module for the running kernel "
        "6.12.1-amd64."
    )
    with pytest.raises(InvalidInput, match=re.escape(words)):
        plan([item(modules=[build(NEXT)])], tracer_host(NOTHING), PROGRAM)
    assert summary(item(modules=[build(NEXT)], state="stopped"), NOTHING)[-1] == "systemctl enable"


def test_a_row_reports_which_kernels_are_ready():
    wanted = item(modules=[build(), build(NEXT, "b", kernel_version="#2 " + NEXT)])
    seen = kept(wanted)
    result = row("reads", seen, tracer_host(seen), 0x1000, model.spec_of(wanted, PROGRAM.sha256))
    assert [(kernel["release"], kernel["ready"]) for kernel in result["kernels"]] == [
        (RUNNING, True),
        (NEXT, False),
        (OTHER, False),
    ]
    assert "another build of it" in result["kernels"][1]["reason"]
    assert result["pending"][1] == f"kernel {OTHER}: there is no module for it, so the tracer does not start with it"
    assert result["probes"] == {"asked": 1, "armed": 1, "proved": 1, "missing": []}
    assert find_fault("started", result) is None
    blind = dataclasses.replace(seen, state={**seen.state, "sites": []})
    result = row("reads", blind, tracer_host(blind), 0x1000, model.spec_of(wanted, PROGRAM.sha256))
    assert "Service 'reads' runs, but none of its 1 probes is armed: " in str(find_fault("started", result))


def test_a_row_has_the_hints_of_what_the_tracer_met():
    """The same as those of a run: the option and a number."""
    wanted = item(modules=[build(limits={"max_active": 20}), build(NEXT, "b")])
    point = 'kernel.function("vfs_read@fs/read_write.c:1").return'
    messages = {
        "errors": ["Array overflow, check MAXMAPENTRIES near identifier 'a'"],
        "warnings": [f"Skipped due to missed kretprobe/1 on '{point}': 5"],
    }
    running = kept(wanted)
    seen = kept(wanted, state={**running.state, "messages": messages, "hits": {point: 1000}})
    spec = model.spec_of(wanted, PROGRAM.sha256)
    first, second = row("reads", seen, tracer_host(seen), 0x1000, spec)["hints"]
    assert first.startswith("An array of the script is full. Set limits.max_map_entries of stap_module")
    assert second.startswith(f"5 returns of {point} were missed, because at most 20 calls") and "to 25." in second
    assert row("reads", running, tracer_host(running), 0x1000, spec)["hints"] == []


@pytest.mark.parametrize(
    "more",
    [{"messages": 5}, {"messages": {"errors": 5}}, {"messages": {"x": [5]}}, {"hits": []}, {"hits": {"a": "b"}}],
)
def test_a_damaged_state_has_no_hints(tmp_path, more):
    directory = tmp_path / "var/lib/tapvirt/services/reads"
    directory.mkdir(parents=True)
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text(RUNNING)
    (directory / "state.json").write_text(json.dumps({"state": "failed", "module": "x", **more}))
    assert observe(Root(str(tmp_path)), ["reads"]).services["reads"].state == {}


def test_systemd_is_read():
    text = "Id=a.service\nActiveState=failed\nUnitFileState=enabled\nNRestarts=4\nExecMainStatus=3\n"
    text += "NeedDaemonReload=no\nStatusText=overloaded: a = b\n\nId=b.service\nActiveState=inactive\nUnitFileState=\n"
    units = parse_units(text)
    assert units["a.service"] == Unit("failed", True, False, 4, 3, "overloaded: a = b")
    assert units["b.service"] == Unit("inactive", False, False, 0, 0, "")
    # When the disk was full, the state could not be written.
    full = dataclasses.replace(kept(item()), unit=units["a.service"])
    assert full.current == "overloaded"


def test_installed_kernels_are_distinguished_from_what_removed_ones_left(tmp_path):
    for release in (RUNNING, NEXT):
        (tmp_path / "lib/modules" / release).mkdir(parents=True)
        (tmp_path / "lib/modules" / release / "modules.builtin").touch()
    (tmp_path / "lib/modules/5.10.0/extra").mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    image = bytearray(0x400)
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = (0x100).to_bytes(2, "little")
    text = f"{NEXT} (us@here) #1 SMP PREEMPT\0".encode()
    image[0x300 : 0x300 + len(text)] = text
    (tmp_path / "boot" / ("vmlinuz-" + NEXT)).write_bytes(image)
    root = Root(str(tmp_path))
    assert installed_kernels(root, RUNNING) == [Kernel(RUNNING, None, True), Kernel(NEXT, "#1 SMP PREEMPT", False)]
    (tmp_path / "boot" / ("vmlinuz-" + NEXT)).write_bytes(image[:0x210])
    assert image_version(root, NEXT) is None


def test_the_module_for_a_kernel_is_chosen_at_its_start():
    spec = model.spec_of(item(), PROGRAM.sha256)
    chosen = tracer_daemon.choose(spec, NEXT, "#1 " + NEXT)
    assert chosen["path"] == "modules/6.12.2-amd64/tapvirt_reads_01234567.ko"
    with pytest.raises(tracer_daemon.Unable, match="another build of it") as error:
        tracer_daemon.choose(spec, NEXT, "#2 " + NEXT)
    assert (error.value.state, error.value.code) == ("pending", tracer_daemon.EXIT_STAY)
    with pytest.raises(tracer_daemon.Unable, match="no module for the running kernel 7.0; there is for 6.12.1-amd64,"):
        tracer_daemon.choose(spec, "7.0", "")


def test_the_program_is_whole_and_always_the_same(tmp_path):
    data = model.program()
    assert data == model.program()
    assert {info.date_time for info in zipfile.ZipFile(io.BytesIO(data)).infolist()} == {(1980, 1, 1, 0, 0, 0)}
    path = tmp_path / "program.pyz"
    path.write_bytes(data)
    # Without the collection and without arguments, it comes as far as reading these.
    done = subprocess.run(
        [sys.executable, "-I", str(path)], capture_output=True, text=True, check=False, cwd="/", env={**os.environ}
    )
    assert done.stderr.splitlines()[-1].startswith("ValueError: not enough values to unpack"), done.stderr


def test_a_unit_is_started_again_a_limited_number_of_times_and_not_after_an_overload():
    text = model.unit_text("reads", "/usr/bin/python3")
    assert f"\nRestartPreventExitStatus={tracer_daemon.EXIT_STAY}\n" in text
    for line in ("Restart=on-failure", "StartLimitBurst=5", "StartLimitIntervalSec=600", "Type=notify"):
        assert line in text.splitlines()


def test_without_systemd_nothing_stays():
    wanted = [item(state="stopped")]
    found = dataclasses.replace(tracer_host(NOTHING), systemd=False)
    with pytest.raises(TapvirtError, match="not run by systemd .* Use tapvirt.host.stap_run"):
        check(Root(), wanted, found, plan(wanted, found, PROGRAM), {})
    gone = [item(state="absent")]
    check(Root(), gone, found, plan(gone, found, PROGRAM), {})


def test_what_the_host_forbids_is_reported_of_the_tracer():
    """This machine does not run the kernel of the test's modules."""
    wanted = [item()]
    found = tracer_host(NOTHING)
    with pytest.raises(TapvirtError, match=r"^Service 'reads' cannot start: .*\. Nothing was changed\.$"):
        check(Root(), wanted, found, plan(wanted, found, PROGRAM), {})


def test_a_step_that_failed_is_an_error_of_its_tracer():
    """Without the module nothing else is done for the tracer, so that nothing is written here."""
    wanted = [item()]
    steps = Applier(wanted, PROGRAM, {})
    steps.apply(plan(wanted, tracer_host(NOTHING), PROGRAM))
    problem = (
        "Service 'reads': the step 'modules/6.12.1-amd64/tapvirt_reads_01234567.ko' (copy) failed: The module was not "
        "shipped to this host."
    )
    assert steps.errors["reads"].row() == {
        "option": None,
        "value": None,
        "problem": problem,
        "hint": None,
        "candidates": [],
    }


BAD_SPECS = [
    "[" * 200_000 + "]" * 200_000,
    "[]",
    '{"builds": []}',
    '{"builds": {"x": 5}}',
    '{"builds": {"x": {"key": 5, "probes": []}}}',
    '{"builds": {"x": {"key": "a", "probes": [{"point": 5}]}}}',
    '{"settings": []}',
    '{"settings": {"output": {"files": 1}}}',
]
BAD_STATES = [{"sites": 5}, {"sites": [5]}, {"module": ["a"]}, {"sites": [{"address": 5}]}]


def test_a_damaged_tracer_hides_no_other(tmp_path):
    directory = tmp_path / model.DIRECTORY
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text(RUNNING)
    good = item()
    for number, text in enumerate([*BAD_SPECS, *("{}" for _state in BAD_STATES)]):
        folder = directory / f"bad{number}"
        (folder / "modules").mkdir(parents=True)
        (folder / "modules" / "gone.ko").symlink_to("nowhere")
        (folder / "service.json").write_text(text)
    for number, state in enumerate(BAD_STATES):
        (directory / f"bad{len(BAD_SPECS) + number}" / "state.json").write_text(json.dumps(state))
    (directory / "reads").mkdir()
    (directory / "reads" / "service.json").write_text(model.spec_text(model.spec_of(good, PROGRAM.sha256)))
    (directory / "not a tracer").mkdir()
    root = Root(str(tmp_path))
    names = known_names(root)
    assert names == sorted([*(f"bad{number}" for number in range(len(BAD_SPECS) + len(BAD_STATES))), "reads"])
    seen = observe(root, names)
    rows = {name: row(name, tracer, seen, None, tracer.spec) for name, tracer in seen.services.items()}
    assert rows["reads"]["digest"]["wanted"] == "a" * 40
    wanted = [dataclasses.replace(good, name=name) for name in names]
    steps = [step for step in plan(wanted, seen, PROGRAM) if isinstance(step, Step)]
    assert [step.service for step in steps if step.action == "start"] == names
