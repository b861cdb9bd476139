# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What params and domains print about a run, and their artifacts."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.run_report import Playbook, run_artifact, run_report

SAME: dict[str, dict[str, t.Any]] = {
    "params": {"wanted": 1, "differs": [], "absent": []},
    "domains": {"wanted": 1, "plan": [], "pending": []},
}
DIFFERENT: dict[str, dict[str, t.Any]] = {
    "params": {"wanted": "2", "differs": ["kvm.x is 1, wanted 2"], "absent": ["nbd.y"]},
    "domains": {
        "wanted": "2",
        "plan": [
            {"what": "web state", "before": None, "after": "running"},
            {"what": "web memory", "before": {"a": 1}, "after": "6\n4 "},
        ],
        "pending": ["web: vcpus wait"],
    },
}
LINES = {
    "params": ["kvm.x is 1, wanted 2", "has no nbd.y"],
    "domains": ["web state is absent, wanted running", 'web memory is {"a": 1}, wanted 6 4', "web: vcpus wait"],
}
DIFFERENCES = {"params": 1, "domains": {"changes": 2, "pending": 1}}
COUNT = {"params": "module_params_count", "domains": "domains_count"}
BOTH = pytest.mark.parametrize("playbook", ["params", "domains"])


def facts(playbook: Playbook, **values: t.Any) -> dict[str, t.Any]:
    return {f"{playbook}_{name}": value for name, value in values.items()}


@BOTH
def test_differences_before_a_run(playbook: Playbook) -> None:
    hostvars = {
        "h1": facts(playbook, before=DIFFERENT[playbook]),
        "h2": facts(playbook, before=SAME[playbook]),
        "h3": facts(playbook, before={**SAME[playbook], "wanted": "0"}) | {COUNT[playbook]: 0},
        "h4": facts(playbook, failed="could not be compared: no\nroute"),
    }
    assert run_report(playbook, list(hostvars), hostvars, when="before") == [
        "h4: could not be compared: no route",
        *(f"h1: {line}" for line in LINES[playbook]),
        "Without a table (1): h3",
        "1 of 3 hosts are as wanted.",
    ]
    assert run_artifact(playbook, list(hostvars), hostvars) == {
        "hosts": 4,
        "before": {"h1": DIFFERENCES[playbook]},
        "before_count": 1,
        "after": {"h1": DIFFERENCES[playbook]},
        "after_count": 1,
        "without_table_count": 1,
        "failed": {"h4": "could not be compared: no\nroute"},
        "failed_count": 1,
    }


@BOTH
def test_hosts_that_were_not_reached_after_a_run(playbook: Playbook) -> None:
    different, same = DIFFERENT[playbook], SAME[playbook]
    hostvars = {
        "h1": facts(playbook, before=different, after=same, started=True),
        "h2": facts(playbook, before=different, after=different, started=True, failed="could not be set: x"),
        "h3": facts(playbook, before=different, after=different),
    }
    lines = run_report(playbook, list(hostvars), hostvars, when="after")
    assert lines[:2] == ["h2: could not be set: x", "Not reached (1): h3"]
    assert lines[-1] == "1 of 3 hosts are as wanted."
    kept = run_artifact(playbook, list(hostvars), hostvars)
    assert (kept["before_count"], kept["after_count"]) == (3, 2)
    assert (kept["not_reached"], kept["not_reached_count"]) == (["h3"], 1)


def test_the_hosts_that_differ_most_come_first() -> None:
    hostvars = {
        f"h{number}": facts("params", before={"wanted": 9, "differs": ["x"] * (number % 3)}) for number in range(7)
    }
    assert list(run_artifact("params", list(hostvars), hostvars)["before"].items()) == [
        ("h2", 2),
        ("h5", 2),
        ("h1", 1),
        ("h4", 1),
    ]


@BOTH
def test_a_fact_that_is_no_result_is_passed_over(playbook: Playbook) -> None:
    hostvars = {"h1": facts(playbook, before={"differs": 5, "plan": 5}), "h2": facts(playbook, before=SAME[playbook])}
    assert run_report(playbook, ["h1", "h2"], hostvars, when="before") == ["1 of 2 hosts are as wanted."]
