# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parameters of modules, compared with modinfo, and the playbook params with the table of a fleet."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

import pytest
import yaml

# Two kernels; each more host makes these tests a third longer.
HOSTS = ("trace1", "trace2", "trace3") if os.environ.get("TAPVIRT_SOAK") else ("trace1", "trace3")
# Loaded, only installed, built in (of which modinfo knows those that modules.builtin lists).
MODULES = ["kvm", "kvm_amd", "fuse", "dummy", "nbd", "kvm-intel", "loop", "nf_conntrack", "zswap", "rcutree", "8250"]
MODINFO = """
for module in {modules}; do
  for field in parm parmtype; do
    modinfo -0 -F $field $module 2>/dev/null | tr '\\0' '\\1' | sed "s/^/$module $field /"
    echo '#end'
  done
done
"""
# What a run might change: /etc, and every parameter except those that show measurements.
STATE = (
    "find /etc -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum; cd /sys/module;"
    "a=$(grep -s . */parameters/* | grep -v ^damon_stat/); echo $a | tr ' ' '\\n' | grep ^kvm; echo $a | sha256sum"
)


def modinfo(lab, host: str, modules: list[str]) -> dict[tuple[str, str], dict[str, str]]:
    """Return what modinfo prints about parameters: (module, name) -> field -> text after the colon."""
    done = lab.run(host, "sh", stdin=MODINFO.format(modules=" ".join(modules)))
    assert done.returncode == 0, done.stderr
    found: dict[tuple[str, str], dict[str, str]] = {}
    for part in done.stdout.split("#end\n"):
        if not part:
            continue
        module, field, entries = part.split(" ", 2)
        for entry in entries.split("\1"):
            name, colon, rest = entry.partition(":")
            if colon:
                found.setdefault((module.replace("-", "_"), name), {})[field] = rest
    return found


@pytest.mark.parametrize("host", ["trace1", "trace2", "trace3"])
def test_every_parameter_agrees_with_modinfo(lab, host):
    theirs = modinfo(lab, host, MODULES)
    assert len(theirs) > 60
    result = lab.ansible(host, "tapvirt.host.kernel_module_param_info", {"modules": MODULES, "limit": 1000})[host]
    assert not result["failed"], result
    mine = {(row["module"], row["name"]): row for row in result["params"]}
    assert len(mine) == len(result["params"])
    for key, fields in theirs.items():
        row = mine[key]
        printed = fields.get("parm", "")
        if "parmtype" in fields and printed.endswith(f" ({fields['parmtype']})"):
            printed = printed[: -len(fields["parmtype"]) - 3]
        assert (row["description"] or "") == printed, key
        if "parmtype" in fields:
            assert (row["type"], row["type_source"]) == (fields["parmtype"], "modinfo"), key
        else:
            assert row["type_source"] != "modinfo", key
    asked_modinfo = {module for module, _name in theirs}
    for (module, name), row in mine.items():
        if module in asked_modinfo and (module, name) not in theirs:
            assert row["type_source"] != "modinfo", (module, name)
            assert row["description"] is None, (module, name)
    status = {row["module"]: row["status"] for row in result["modules"]}
    assert status["kvm"] == "loaded"
    assert status["kvm_intel"] == "installed"
    assert status["rcutree"] == "built_in"
    assert mine["rcutree", "blimit"]["type"] == "long"
    assert mine["kvm_intel", "vmentry_l1d_flush"]["mode"] == "0644"


#: The parameters that the code of these modules sets at load time, according to the processor.
DECIDED_BY_CODE = {
    "kvm": {"enable_pmu", "pi_inject_timer"},
    "kvm_amd": {
        *("gmet", "lbrv", "npt", "nrips", "pause_filter_count", "pause_filter_thresh", "tsc_scaling", "vgif", "vls"),
        *("vnmi", "avic", "sev", "sev_es", "sev_snp"),
    },
}


@pytest.mark.parametrize("host", ["trace1", "trace2", "trace3"])
def test_values_that_were_never_set_equal_their_defaults(lab, host):
    options = {"modules": ["kvm*", "fuse", "virtio*", "nf*", "ip*", "crypt*", "autofs*", "config*"], "limit": 1000}
    result = lab.ansible(host, "tapvirt.host.kernel_module_param_info", options)[host]
    assert not result["truncated"]
    loaded = {row["module"] for row in result["modules"] if row["status"] == "loaded"}
    assert {"kvm", "kvm_amd"} <= loaded
    rows = [row for row in result["params"] if row["module"] in loaded and row["value_status"] == "known"]
    compared = [row for row in rows if row["default"] is not None and row["configured_in"] is None]
    assert len(compared) > 25
    others = [row for row in compared if row["value"] != row["default"]]
    assert not [row for row in others if row["name"] not in DECIDED_BY_CODE.get(row["module"], ())]
    # What is not loaded has the mode that it would have.
    assert {row["mode"] for row in result["params"] if row["module"] == "kvm_intel"} >= {"0444", "0644"}


class Fleet:
    """Hosts with a table, and the playbook."""

    def __init__(self, lab, folder: pathlib.Path) -> None:
        self.lab = lab
        self._path = folder / "tables.yml"

    def tables(self, group: list[dict[str, t.Any]], hosts: dict[str, t.Any] | None = None) -> None:
        """Write the tables of the group and of single hosts."""
        inventory = {
            "trace_hosts": {
                "vars": {
                    "module_params_wanted": [{"module": "kvm", "name": "halt_poll_ns", "value": 1}],
                    "module_params_group_of_tests": group,
                },
                "hosts": {host: {"module_params_host": rows} for host, rows in (hosts or {}).items()},
            }
        }
        self._path.write_text(yaml.safe_dump(inventory), encoding="utf-8")

    def run(self, *options: str):
        """Run the playbook."""
        arguments = ["-i", str(self._path), "-e", json.dumps({"params_targets": ":".join(HOSTS)}), *options]
        return self.lab.playbook(pathlib.Path("tapvirt.host.params"), *arguments)

    def state(self) -> dict[str, str]:
        """Return checksums of /etc and of the parameters on each host."""
        return {host: self.lab.shell(host, STATE, check=False) for host in HOSTS}

    def values(self) -> dict[str, str]:
        """Return the parameters of KVM and our own file on each host."""
        command = (
            "cd /sys/module/kvm/parameters; cat halt_poll_ns halt_poll_ns_grow; cat /etc/modprobe.d/zz-tapvirt.conf"
        )
        return {host: self.lab.shell(host, command, check=False) for host in HOSTS}


TABLE: list[dict[str, t.Any]] = [
    {"module": "kvm", "name": "halt_poll_ns", "value": "0x30d41"},
    {"module": "kvm", "name": "halt-poll-ns-grow", "value": 3, "persist": "none"},
    {"module": "nbd", "name": "max_part", "value": 8},
]
SET = "Set or restore the parameters"
ROLE = "tapvirt.host.module_params : "


@pytest.fixture
def fleet(lab, tmp_path):
    """The fleet without parameters that we set; afterwards its parameters are restored."""
    fleet = Fleet(lab, tmp_path)
    before = fleet.values()
    for host, text in before.items():
        if "options" in text:
            pytest.fail(f"{host} keeps parameters of somebody else: {text}")
    yield fleet
    if fleet.values() != before:
        fleet.tables(TABLE)
        fleet.run("-e", "params_state=restored")
    assert fleet.values() == before


def plans(result, task: str) -> dict[str, list[dict[str, t.Any]]]:
    """Return the plan of a task of the role for each host."""
    return {host: result.of(host, ROLE + task)["plan"] for host in HOSTS}


def messages(result, task: str) -> list[str]:
    """Return the lines of a task that prints."""
    (lines,) = [row["result"]["msg"] for row in result.results if row["task"] == task]
    return lines


def fleet_changes(result) -> dict[str, int]:
    """Return the number of changed tasks of each host."""
    return {host: result.changes()[host] for host in HOSTS}


@pytest.mark.scenario
def test_fleet_is_compared_set_and_restored(fleet):
    fleet.tables(TABLE, {"trace3": [{"module": "kvm", "name": "halt_poll_ns", "value": 300000}]})
    before, values = fleet.state(), fleet.values()

    checked = fleet.run("--check", "--diff")
    assert checked.rc == 0, checked.stdout
    assert fleet.state() == before
    assert "+kvm.halt_poll_ns: 200001" in checked.stdout
    lines = messages(checked, "Report which hosts differ")
    assert "trace1: kvm.halt_poll_ns is 200000, wanted 200001" in lines
    assert "trace3: kvm.halt_poll_ns is 200000, wanted 300000" in lines
    assert lines[-1] == f"0 of {len(HOSTS)} hosts are as wanted."
    assert messages(checked, "Report which hosts still differ") == lines

    first = fleet.run()
    assert first.rc == 0, first.stdout
    assert fleet_changes(first) == dict.fromkeys(HOSTS, 1)
    assert plans(first, SET) == plans(checked, SET) == plans(first, "Plan the changes")
    order = first.hosts_of(ROLE + SET)
    assert order[0] == "trace1"
    assert set(order) == set(HOSTS)
    assert messages(first, "Report which hosts differ") == lines
    left = messages(first, "Report which hosts still differ")
    waiting = "nbd.max_part not in effect: it takes effect when the module is loaded"
    assert [line for line in left if line != f"{line.split(':')[0]}: {waiting}"] == [
        f"0 of {len(HOSTS)} hosts are as wanted."
    ]
    running = fleet.values()
    assert running["trace1"].startswith("200001\n3\n")
    assert running["trace3"].startswith("300000\n3\n")
    assert "options kvm halt_poll_ns=200001" in running["trace1"]
    assert "halt_poll_ns_grow" not in running["trace1"]

    second = fleet.run()
    assert second.rc == 0, second.stdout
    assert fleet_changes(second) == dict.fromkeys(HOSTS, 0)
    assert messages(second, "Report which hosts differ") == left
    counts = dict.fromkeys(HOSTS, 1)
    drift = {"hosts": len(HOSTS), "before": counts, "before_count": len(HOSTS)}
    assert second.stats() == {"params_drift": {**drift, "after": counts, "after_count": len(HOSTS)}}

    restored = fleet.run("-e", "params_state=restored")
    assert restored.rc == 0, restored.stdout
    assert "trace1: kvm.halt_poll_ns is 200001, and was 200000 before it was first set" in messages(
        restored, "Report which hosts differ"
    )
    summary = f"{len(HOSTS)} of {len(HOSTS)} hosts are as wanted."
    assert messages(restored, "Report which hosts still differ") == [summary]
    assert fleet.values() == values
    assert fleet.state() == before


def test_failing_canary_stops_the_run(fleet):
    fleet.tables(TABLE)
    before = fleet.state()
    done = fleet.lab.run(
        "trace1", "sh", "-c", "mount --bind /etc/modprobe.d /etc/modprobe.d && mount -o remount,bind,ro /etc/modprobe.d"
    )
    assert done.returncode == 0, done.stderr
    try:
        result = fleet.run()
    finally:
        fleet.lab.run("trace1", "umount", "/etc/modprobe.d")
    assert result.rc != 0
    tried = {row["host"]: row["status"] for row in result.results if row["task"] == ROLE + SET}
    assert tried == {"trace1": "failed"}
    assert "Everything is as it was before" in result.of("trace1", ROLE + SET)["msg"]
    assert fleet.state() == before


def test_value_that_one_host_refuses_changes_no_host(fleet):
    fleet.tables(TABLE, {HOSTS[-1]: [{"module": "kvm", "name": "halt_poll_ns", "value": -1}]})
    before = fleet.state()
    result = fleet.run()
    assert result.rc != 0
    assert not [row for row in result.results if row["task"] == ROLE + SET]
    assert "Invalid value -1 for module_params_host[0].value (kvm.halt_poll_ns)" in result.stdout
    assert fleet.state() == before


def test_hosts_without_the_module_are_skipped_on_request(fleet):
    fleet.tables([{"module": "kvm", "name": "eager_page_split", "value": True, "persist": "none"}])
    skip = json.dumps(
        {
            "module_params_when_absent": "skip",
            "module_params_group_z": [
                {"module": "kvm", "name": "mitigate_smt_rsb", "value": False, "persist": "none", "runtime": False},
                {"module": "kvm_amd", "name": "no_such_parameter", "value": 1},
            ],
        }
    )
    result = fleet.run("-e", skip, "--tags", "report")
    assert result.rc == 0, result.stdout
    lines = messages(result, "Report which hosts differ")
    assert "trace1: has no kvm_amd.no_such_parameter" in lines
    assert len([line for line in lines if "no_such_parameter" in line]) == len(HOSTS)
    assert not [row for row in result.results if row["task"] == ROLE + SET]
