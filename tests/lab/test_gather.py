# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook that gathers facts of an inventory: one symbol table for each kernel, and differences of hosts."""

from __future__ import annotations

import hashlib
import json

import pytest

from .support.places import PLAYBOOKS

HOSTS = ["trace1", "trace2", "trace4"]


@pytest.fixture(scope="module")
def gathered(lab, tmp_path_factory):
    """Gather twice from three hosts with two kernels; return both runs and where the files are."""
    dest = tmp_path_factory.mktemp("gathered")
    options = [
        "--limit",
        ",".join(HOSTS),
        "-e",
        json.dumps({"gather_targets": "trace_hosts", "gather_dest": str(dest)}),
    ]
    runs = [lab.playbook(PLAYBOOKS / "gather.yml", *options) for _number in range(2)]
    assert runs[0].rc == 0, runs[0].stdout[-3000:]
    return runs, dest


def test_one_symbol_table_is_stored_for_each_kernel(gathered, lab):
    _runs, dest = gathered
    tables = {path.stem: path.read_text() for path in (dest / "symbols").iterdir()}
    build_ids = {}
    for host in HOSTS:
        notes = lab.shell(host, "od -An -v -tx1 /sys/kernel/notes | tr -d ' \\n'")
        (build_ids[host],) = (build_id for build_id in tables if build_id in notes)
    assert build_ids["trace2"] == build_ids["trace4"] != build_ids["trace1"]
    assert set(tables) == set(build_ids.values())
    for host in HOSTS:
        theirs = lab.shell(host, "grep -v '\\[' /proc/kallsyms | cut -c18- | sha256sum")
        lines = [line[17:] for line in tables[build_ids[host]].splitlines() if "[" not in line]
        assert theirs.split()[0] == hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def test_second_run_fetches_and_changes_nothing(gathered):
    (_first, second), _dest = gathered
    assert second.rc == 0, second.stdout[-3000:]
    assert second.changes() == dict.fromkeys(HOSTS, 0)
    assert not [row for row in second.results if row["task"] == "Read the symbol table" and row["status"] == "ok"]


def test_differences_are_printed_and_stored(gathered):
    (first, _second), dest = gathered
    drift = {row["fact"]: row["groups"] for row in json.loads((dest / "drift.json").read_text())}
    assert [group["hosts"] for group in drift["release"]] == [["trace2", "trace4"], ["trace1"]]
    assert not [fact for fact in drift if fact.startswith("memory.")]
    assert "2 x 6.12." in first.stdout and "1 x 6.1." in first.stdout
