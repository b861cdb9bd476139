# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What first jobs need: what the inventory asks for, what hosts lack, and how it is reported."""

from __future__ import annotations

import json
import re
import subprocess
import time
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.plugin_utils._preflight import judge, report
from ansible_collections.tapvirt.host.plugins.plugin_utils._preflight.inventory import preflight_jobs
from ansible_collections.tapvirt.host.plugins.plugin_utils._preflight.probe import parse_probe, probe_command
from ansible_collections.tapvirt.host.plugins.plugin_utils._preflight.reads import HOST_CACHE, builder_reads, host_reads

RELEASE = "6.12.107-amd64"
DEBIAN = {"name": "debian", "family": "Debian"}
GIB = 1 << 30
OLD_PYTHON = "The host's Python /usr/bin/python3 has the version 3.6.8"
DF = "/dev/sda1 1000 10 {} 1% /var"
TABLE = [{"module": "kvm", "name": "halt_poll_ns", "value": 2}]
PATTERNS = dict.fromkeys(("trace_targets", "trace_builders", "params_targets", "domains_targets"), "")


def checked_host(**more: t.Any) -> dict[str, t.Any]:
    return {
        "distribution": DEBIAN,
        "kernel": {"release": RELEASE},
        "traceability": {"reasons": [], "conditions": []},
        "staprun": "5.1",
        "privilege": {"load_modules": True, "groups": []},
        "memory": {"free_bytes": GIB, "buffers_bytes": 0, "cpus_online": 2},
        "loaded": [],
        **more,
    }


def checked_builder(*releases: str, debuginfo: bool = True) -> dict[str, t.Any]:
    kernels = {release: {"version": "#1", "compiler": "gcc-14", "debuginfo": debuginfo} for release in releases}
    return {"distribution": DEBIAN, "stap": "5.6", "tested": ["3.10", "7.3"], "kernels": kernels}


def answer(uid: int = 0, ahead: float = 0, free: int = 8 * GIB, more: str = "", **results: t.Any) -> dict[str, t.Any]:
    """Return what the action returns for a host that answers."""
    now = time.time()
    directories = builder_reads()["directories"] + host_reads(["domains"])["directories"]
    lines = [f"tapvirt:uid={uid}", f"tapvirt:time={int(now + ahead)}", "tapvirt:kvm=1", more]
    lines += [f"tapvirt:disk{number}={DF.format(free // 1024)}" for number in range(len(directories))]
    return {
        "reached": True,
        "reason": "",
        "output": "Welcome\n" + "\n".join(lines),
        "directories": directories,
        "begin": now - 0.1,
        "end": now + 0.1,
        "results": {"kernel_facts": {}, **results},
    }


def traced(host: dict[str, t.Any] | None = None, **options: t.Any) -> dict[str, t.Any]:
    return answer(**{"stap_host_info": {"host": host or checked_host()}, **options})


def unreached(reason: str) -> dict[str, t.Any]:
    return {"reached": False, "reason": reason, "output": "", "directories": [], "results": {}}


def built(**options: t.Any) -> dict[str, t.Any]:
    return answer(**{"stap_host_info": {"builder": checked_builder(RELEASE), "missing": []}, **options})


def lacks_of(found: t.Any, *jobs: t.Any, builders: t.Any = None, **options: t.Any) -> list[tuple[bool, str, str]]:
    usable = {"b": checked_builder(RELEASE)} if builders is None else builders
    rows = judge.judge_host(found, jobs or ("trace",), builders=usable, **options)
    return [(row.blocks, row.reason, row.fix) for row in rows]


# The inventory.


def jobs_of(variables: dict[str, t.Any], groups: dict[str, list[str]], **patterns: t.Any) -> dict[str, t.Any]:
    hosts = groups["all"]
    hostvars = {host: variables.get(host, {}) for host in hosts}
    return preflight_jobs(hostvars, hosts, groups, {**PATTERNS, **patterns})


def test_groups_and_tables_ask_for_jobs() -> None:
    groups = {"all": ["a", "b", "c", "d"], "trace_hosts": ["a", "b"], "builders": ["c"], "virt_hosts": ["d"]}
    asked = jobs_of({"a": {"module_params_wanted": TABLE}, "b": {"domains_host": [{"name": "web"}]}}, groups)
    assert asked["of_host"] == {"a": ["trace", "parameters"], "b": ["trace", "domains"], "d": ["domains"]}
    assert (asked["builders"], asked["problems"]) == (["c"], [])


def test_variables_of_the_playbooks_are_respected() -> None:
    groups = {"all": ["web1", "web2", "b1"]}
    asked = jobs_of({}, groups, trace_targets="web*:!web2", trace_builders=["b1"])
    assert (asked["trace"], asked["builders"], asked["problems"]) == (["web1"], ["b1"], [])
    asked = jobs_of({}, groups, trace_targets="nobody")
    (problem,) = asked["problems"]
    assert problem["reason"] == "trace_targets: the pattern 'nobody' matches no host of the inventory"


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ({"all": ["a"]}, "the inventory asks for no job"),
        ({"all": ["a"], "trace_hosts": ["a"]}, "the inventory has no builder"),
    ],
)
def test_what_the_inventory_lacks_fails(groups: dict[str, list[str]], reason: str) -> None:
    asked = jobs_of({}, groups)
    result = report.preflight_result({"a": {"preflight_answer": traced()}}, asked, [])
    assert report.preflight_lines(result)[0].startswith(f"Missing in the inventory: {reason}. Fix: put ")
    assert report.preflight_problem(result) != ""


# What the shell prints.


def test_the_command_runs_in_a_shell_and_its_output_is_read() -> None:
    directories = ["/", "/does not/exist $(false)/'at all'"]
    done = subprocess.run(
        ["sh", "-c", probe_command(directories)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    probe = parse_probe(done.stdout, directories)
    assert probe is not None and probe.uid is not None
    assert abs((probe.time or 0) - time.time()) < 60
    assert set(probe.free_bytes) == set(directories) and min(probe.free_bytes.values()) >= 0


@pytest.mark.parametrize("output", ["", "Welcome", "uid=0", "\0" * 100])
def test_other_output_is_no_probe(output: str) -> None:
    assert parse_probe(output, ["/"]) is None


def test_odd_values_of_the_shell_are_not_known() -> None:
    probe = parse_probe("tapvirt:uid=root\ntapvirt:time=1e9\ntapvirt:disk0=x y z\n", ["/"])
    assert probe is not None
    assert (probe.uid, probe.time, probe.free_bytes) == (None, None, {})


# Judgements.


def test_a_host_with_everything_lacks_nothing() -> None:
    assert lacks_of(traced(libvirt_domain_info={}), "trace", "parameters", "domains") == []


@pytest.mark.parametrize(
    ("reason", "told", "fix"),
    [
        ("Failed: host w port 22: Connection refused", "no answer: Connection refused", "start the host"),
        ("root@w: Permission denied (publickey).", "no answer: Permission denied (publickey)", "set ansible_user"),
        ("Could not resolve w: Name or service not known", "no answer: Name or service not known", "set ansible_host"),
        ("Missing sudo password", "the user cannot become root: Missing sudo password", "let the user become root"),
    ],
)  # fmt: skip
def test_a_host_that_does_not_answer_has_one_reason(reason: str, told: str, fix: str) -> None:
    ((blocks, found, helps),) = lacks_of(unreached(reason), "trace", "parameters")
    assert (blocks, found, helps[: len(fix)]) == (True, told, fix)


def test_a_shell_that_sudo_refuses() -> None:
    refused = {**traced(), "output": "", "reason": "u is not in the sudoers file."}
    ((_blocks, reason, fix),) = lacks_of(refused)
    assert reason == "no command can be run: u is not in the sudoers file"
    assert fix.startswith("let the user become root")


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ({"msg": f"{OLD_PYTHON}, and this collection needs Python 3.8 or newer. X"}, f"no usable Python: {OLD_PYTHON}"),
        ({"msg": "MODULE FAILURE. See", "module_stderr": "sh: p: not found"}, "no usable Python: sh: p: not found"),
        ({"msg": "No space left"}, "no module can be run: No space left"),
    ],
)  # fmt: skip
def test_a_host_without_a_usable_python(failure: dict[str, str], told: str) -> None:
    assert [row[1] for row in lacks_of(traced(kernel_facts={"failed": True, **failure}))] == [told]


def test_a_user_who_is_not_root_is_told_once() -> None:
    facts = checked_host(privilege={"load_modules": False, "groups": []})
    assert lacks_of(traced(facts, uid=1000), "trace", "parameters") == [
        (True, "tasks do not run as root", "set ansible_become: true")
    ]
    failed = answer(uid=1000, stap_host_info={"failed": True, "msg": "refused"})
    assert [row[1] for row in lacks_of(failed)] == ["tasks do not run as root"]
    (row,) = judge.judge_host(traced(uid=1000), ("parameters",), builders={})
    assert row.detail == "uid 1000"


def test_what_stap_host_info_finds_is_taken_over_with_the_role_that_helps() -> None:
    ((blocks, reason, fix),) = lacks_of(traced(checked_host(staprun=None)))
    assert (blocks, reason) == (True, "staprun is not installed")
    assert fix == "install the package systemtap-runtime; the role tapvirt.host.trace_host does this"
    lacks = lacks_of(traced(), builders={"b": checked_builder("9.9")})
    assert [row[:2] for row in lacks] == [(True, f"the builder has no headers for {RELEASE}; it has them for: 9.9")]
    assert f"linux-headers-{RELEASE}" in lacks[0][2] and "trace_builder_kernels" in lacks[0][2]


def test_debug_information_is_needed_and_a_left_over_is_a_note() -> None:
    lacks = lacks_of(traced(), builders={"b": checked_builder(RELEASE, debuginfo=False)})
    ((blocks, reason, fix),) = lacks
    assert blocks and reason.startswith(f"the builder has no debug information for {RELEASE}")
    assert "trace_builder_debuginfod" in fix
    loaded = checked_host(loaded=[{"name": "stap_1", "users": 0}])
    assert [row[::2] for row in lacks_of(traced(loaded))] == [(False, "staprun -d stap_1")]


def test_signatures_are_missing_until_they_are_asked_for() -> None:
    conditions = ["module signatures are enforced: only modules signed with a key the kernel trusts load"]
    facts = checked_host(
        traceability={"reasons": [], "conditions": conditions}, trusted_keys=[{"name": "k", "key_id": "1"}]
    )
    ((blocks, _reason, fix),) = lacks_of(traced(facts))
    assert blocks and fix.startswith("set trace_sign: true, to sign with")
    assert lacks_of(traced(facts), signs=True) == []
    assert [row[0] for row in lacks_of(traced({**facts, "trusted_keys": []}), signs=True)] == [True]


@pytest.mark.parametrize(("ahead", "detail"), [(0, None), (-3, None), (90, "s ahead"), (-90, "s behind")])
def test_a_clock_that_differs_is_a_note(ahead: float, detail: str | None) -> None:
    rows = judge.judge_host(traced(ahead=ahead), ("trace",), builders={})
    assert [(row.blocks, row.detail.partition(" ")[2]) for row in rows] == ([(False, detail)] if detail else [])


def test_space_and_selinux() -> None:
    (row,) = judge.judge_host(traced(free=5 << 20), ("trace",), builders={})
    assert (row.blocks, row.reason, row.detail) == (True, f"less than 128 MiB are free for {HOST_CACHE}", "5 MiB")
    (row,) = judge.judge_host(answer(free=5 << 20, libvirt_domain_info={}), ("domains",), builders={})
    assert (row.blocks, row.detail) == (False, "5 MiB")
    assert [row[0] for row in lacks_of(traced(more="tapvirt:selinux=1"))] == [False]
    off = "tapvirt:selinux=1\ntapvirt:insmod=1 1"
    assert [row[::2] for row in lacks_of(traced(more=off))] == [(True, "setsebool secure_mode_insmod off")]


def test_libvirt() -> None:
    binding = (
        "No Python of this host can import 'libvirt' (looked at x). What helps: install the package python3-libvirt."
    )
    ((blocks, reason, fix),) = lacks_of(answer(libvirt_domain_info={"failed": True, "msg": binding}), "domains")
    assert (blocks, reason) == (True, "libvirt's binding for Python is not installed")
    assert fix == "install the package python3-libvirt; the role tapvirt.host.virt_host does this"
    silent = {"failed": True, "msg": "Opening qemu:///system failed: no socket (libvirt error 38)."}
    ((_blocks, reason, fix),) = lacks_of(answer(libvirt_domain_info=silent), "domains")
    assert reason.endswith("no socket (libvirt error 38)") and fix.startswith("start libvirt: systemctl enable --now")
    ((_blocks, _reason, fix),) = lacks_of(answer(uid=1000, libvirt_domain_info=silent), "domains")
    assert "group libvirt" in fix


@pytest.mark.parametrize(
    "odd",
    [5, {}, {**traced(), "results": 5}, traced({"a": 5}), {**traced(), "begin": "x"}, traced(checked_host(staprun=5))],
)  # fmt: skip
def test_odd_answers_are_a_reason_of_their_host(odd: t.Any) -> None:
    ((blocks, reason, _fix),) = lacks_of(odd)
    assert blocks and reason.startswith("what the host returned cannot be read: ")
    assert "trace_builder_for" not in reason


def test_a_builder_says_what_it_can_build_or_lacks() -> None:
    assert judge.judge_builder(built(), builder_reads()["directories"][0]) == ([], checked_builder(RELEASE))
    missing = [
        {"what": "toolchain", "reason": "stap is not installed", "remedy": "install the packages systemtap, gcc"}
    ]
    lacks, facts = judge.judge_builder(built(stap_host_info={"builder": None, "missing": missing}), "/x")
    assert facts is None
    assert [row.fix for row in lacks] == [
        "install the packages systemtap, gcc; the role tapvirt.host.trace_builder does this"
    ]
    lacks, facts = judge.judge_builder(built(free=GIB), builder_reads()["directories"][0])
    assert facts and [row.blocks for row in lacks] == [False], "room for the store, not for debug information"
    lacks, facts = judge.judge_builder(built(free=GIB // 4), builder_reads()["directories"][0])
    assert facts is None and [row.blocks for row in lacks] == [True, False]


# The result.


def result_of(answers: dict[str, t.Any], builders: dict[str, t.Any], **variables: t.Any) -> dict[str, t.Any]:
    groups = {"all": [*answers, *builders], "trace_hosts": [*answers], "builders": [*builders]}
    hostvars: dict[str, t.Any] = {host: {"preflight_answer": found, **variables} for host, found in answers.items()}
    hostvars.update({host: {} for host in builders})
    asked = preflight_jobs(hostvars, groups["all"], groups, PATTERNS)
    return report.preflight_result(hostvars, asked, [{"item": name, **found} for name, found in builders.items()])


def test_everything_there_can_be_done() -> None:
    result = result_of({"web1": traced(), "web2": traced()}, {"b1": built()})
    assert report.preflight_lines(result) == [
        "Trace: can be done on 2 of 2 hosts, with 1 builder. "
        "Next: ansible-playbook tapvirt.host.trace -e trace_function=vfs_read",
        "Parameters: not asked for: no host has a table, such as module_params_wanted.",
        "Domains: not asked for: no host has a table, such as domains_wanted, or is in the group virt_hosts.",
    ]
    assert report.preflight_problem(result) == ""


def test_a_cause_is_one_line_with_the_first_hosts_and_what_differs() -> None:
    answers = {f"web{number}": traced(checked_host(staprun=None)) for number in range(12)}
    result = result_of({**answers, "late1": traced(ahead=3600)}, {"b1": built()})
    first, note, trace = report.preflight_lines(result)[:3]
    assert first == (
        "Missing on 12 hosts: web0, web1, web2, web3, web4, web5, web6, web7 and 4 more: staprun is not installed. "
        "Fix: install the package systemtap-runtime; the role tapvirt.host.trace_host does this."
    )
    assert re.match(r"Note on 1 host: late1 \((3599|3600|3601) s ahead\): the clock differs", note)
    assert trace == "Trace: can be done only on some hosts: 1 of 13 hosts ready, with 1 builder."
    assert report.preflight_problem(result).startswith("These jobs cannot be done on all of their hosts: trace.")
    assert report.preflight_host(result, "late1")["findings"][0]["level"] == "warn"


def test_a_dead_builder_is_told_once_and_beside_another_it_is_a_note() -> None:
    result = result_of({"web1": traced(), "web2": traced()}, {"b1": unreached("x: No route to host")})
    (cause,) = result["causes"]
    assert (cause["reason"], list(cause["hosts"])) == ("as a builder: no answer: No route to host", ["b1"])
    assert not result["jobs"]["trace"]["can"]
    result = result_of({"web1": traced()}, {"b1": unreached("x: No route to host"), "b2": built()})
    assert [row["blocks"] for row in result["causes"]] == [False]
    assert result["jobs"]["trace"]["can"]
    result = result_of({"web1": traced()}, {"b1": unreached("x: no"), "b2": built()}, trace_builder="b1")
    assert not result["jobs"]["trace"]["can"], "the host's own builder does not answer"


def test_a_cause_of_hosts_with_different_jobs_is_one() -> None:
    answers = {"web1": unreached("x: no route"), "web2": unreached("x: no route")}
    hostvars: dict[str, dict[str, t.Any]] = {host: {"preflight_answer": found} for host, found in answers.items()}
    hostvars["web2"]["module_params_wanted"] = TABLE
    asked = preflight_jobs(hostvars, [*answers], {"all": [*answers], "trace_hosts": ["web1"]}, PATTERNS)
    result = report.preflight_result(hostvars, asked, [])
    assert [(row["jobs"], list(row["hosts"])) for row in result["causes"]] == [
        (["trace"], []),
        (["trace", "parameters"], ["web1", "web2"]),
    ]
    assert result["jobs"]["parameters"] == {"asked": 1, "ready": 0, "can": False}


def test_a_thousand_hosts_stay_small() -> None:
    long = "x" * 5000
    answers = {f"{'h' * 200}{number:04}": unreached(f"{number} {long}") for number in range(1000)}
    result = result_of(answers, {"b1": built()})
    lines = report.preflight_lines(result)
    assert len(lines) <= 40 and max(map(len, lines)) <= 1000
    assert "And 975 causes more, which are not shown. Set preflight_dest for a page with those of each host." in lines
    artifact = report.preflight_artifact(result)
    assert len(json.dumps(artifact)) < 100_000
    assert artifact["causes_count"] == 1000 and artifact["jobs"]["trace"] == {"asked": 1000, "ready": 0, "can": False}


def test_text_of_a_host_is_printable() -> None:
    result = result_of({"web1": unreached("a\x1b[31m\nb\ud800")}, {"b1": built()})
    assert all(line.isprintable() and "\x1b" not in line for line in report.preflight_lines(result))


def test_the_command_ends_whatever_a_directory_is_called():
    """A store of ``~/store`` is the module's to expand; a path without a slash has no parent."""
    directories = ["~/no store", "no/such", "none", "/no/such/place"]
    done = subprocess.run(
        ["sh", "-c", probe_command(directories)], stdout=subprocess.PIPE, text=True, timeout=20, check=True
    )
    found = parse_probe(done.stdout, directories)
    assert found is not None and set(found.free_bytes) == set(directories)


def test_domains_are_read_by_a_connection_that_may_change_them():
    """Anybody may read: that says nothing about who can converge."""
    assert host_reads(["domains"])["modules"]["libvirt_domain_info"]["gather"] == ["addresses"]
