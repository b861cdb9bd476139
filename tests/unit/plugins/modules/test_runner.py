# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks under ansible-runner, as AWX runs them, have the events, artifacts and facts that a run by hand has."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace import campaign
from ansible_collections.tapvirt.host.tests.unit.support.documents import example
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.short_directory import short_directory

COLLECTIONS = pathlib.Path(campaign.__file__).resolve().parents[6]
CALLBACKS = pathlib.Path(__file__).resolve().parents[3] / "lab" / "callback"
BIN = pathlib.Path(sys.executable).parent
RESULT_CHARACTERS = 700_000  # AWX leaves out what is longer
ARTIFACT_BYTES = 100_000
FACT_BYTES = 8192
HOSTS = ["hv1", "hv2"]
LONG = bool(os.environ.get("TAPVIRT_SOAK"))
SITE = [{"ansible.builtin.import_playbook": "tapvirt.host." + name} for name in ["gather"] + LONG * ["domains"]]
OPTIONS = "--forks 2" if LONG else "--forks 2 --tags drift"  # a symbol table is several MB
# As a guide has them.
BY_RUNNER, BY_NODE = (
    line.removeprefix("$ ")
    for line in example("docs/docsite/rst/guide_awx.rst", "ansible-runner run").text.splitlines()
)
STATUS = {"runner_on_ok": "ok", "runner_on_failed": "failed", "runner_on_skipped": "skipped"}
# What is another one at each look, and what only says how Ansible called a module.
PASSING = re.compile(r"(/\.ansible[^\"' ]*|/tmp/[^\"' ]*)|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}\b")
PASSING_KEYS = {"diff", "invocation", "memory", "parameters", "src", "symbols", "warnings"}

Row = tuple[str, str, str, str]


class Fleet:
    """Two hosts that are this machine, each with a libvirt of its own; what ansible-runner wants to find of them."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        self.data = top / "data"
        hosts = {name: {"domains_uri": f"qemu:///embed?root={top}/roots/{name}"} for name in HOSTS}
        domains = [{"name": name, "type": "qemu", "memory_mib": 16, "machine": "pc"} for name in ("web", "db")]
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "gather_dest": str(top / "gathered"),
            "domains_wanted": domains,
        }
        files = {
            "inventory/hosts.json": {"all": {"hosts": hosts, "vars": variables}},
            "project/site.yml": SITE,
            "env/settings": {"fact_cache_type": "jsonfile"},
            "env/envvars": {"ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS)},
            "env/cmdline": OPTIONS,
        }
        for name, content in files.items():
            path = self.data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    def run(self, command: str, **env: str) -> None:
        """Run a command line of a shell, from the same state as ever."""
        for name in ("roots", "gathered"):
            shutil.rmtree(self.top / name, ignore_errors=True)
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.top,
            env={
                **os.environ,
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                **env,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def settled(value: t.Any) -> t.Any:
    """Return a result without what is another one at each look."""
    if isinstance(value, dict):
        return {
            key: settled(item)
            for key, item in value.items()
            if key not in PASSING_KEYS and not key.startswith("_ansible")
        }
    if isinstance(value, list):
        return [settled(item) for item in value]
    return PASSING.sub("*", value) if isinstance(value, str) else value


def compared_row(host: str, task: str, status: str, result: t.Any) -> Row:
    """Return what is compared of a result; a task is named with its role in one place and without in the other."""
    compared = {} if status == "skipped" or "censored" in result else settled(result)  # there is no more in an event
    return host, task.rpartition(" : ")[2], status, json.dumps(compared, sort_keys=True)


@pytest.fixture(scope="module")
def fleet() -> t.Iterator[Fleet]:
    with short_directory() as top:
        yield Fleet(top)


@pytest.fixture(scope="module")
def by_hand(fleet: Fleet) -> list[dict[str, t.Any]]:
    """Return the rows of a run by ``ansible-playbook``."""
    results = fleet.top / "results.jsonl"
    fleet.run(
        f"ansible-playbook {OPTIONS} -i data/inventory data/project/site.yml",
        ANSIBLE_CALLBACK_PLUGINS=str(CALLBACKS),
        ANSIBLE_CALLBACKS_ENABLED="json_lines",
        TAPVIRT_RESULTS=str(results),
    )
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def check(artifacts: pathlib.Path, by_hand: list[dict[str, t.Any]]) -> None:
    """Compare what ansible-runner kept of a run with the rows of one by hand."""
    events = [json.loads(path.read_text(encoding="utf-8")) for path in (artifacts / "job_events").glob("*-*.json")]
    rows = []
    for event in events:
        data = event["event_data"]
        if event["event"] in STATUS:
            result = data.get("res", {})
            assert result or event["event"] == "runner_on_skipped", "it was too long for AWX"
            assert len(json.dumps(result)) < RESULT_CHARACTERS
            rows.append(compared_row(data["host"], data["task"], STATUS[event["event"]], result))
    wanted = [compared_row(each["host"], each["task"], each["status"], each["result"]) for each in by_hand]
    assert sorted(rows) == sorted(wanted)
    (stats,) = [event["event_data"] for event in events if event["event"] == "playbook_on_stats"]
    kept = stats["artifact_data"]
    assert len(json.dumps(kept)) < ARTIFACT_BYTES
    assert kept["gather_summary"]["hosts"] == 2 and kept["gather_summary"]["kernels_count"] == 1
    assert not LONG or (kept["domains_drift"]["before_count"] == 2 and kept["domains_drift"]["after"] == {})
    gathered = {
        each["host"]: each["result"]["ansible_facts"] for each in by_hand if each["task"] == "Gather kernel facts"
    }
    for host in HOSTS:
        (cached,) = (artifacts / "fact_cache").glob(f"*{host}")
        facts = json.loads(cached.read_text(encoding="utf-8"))
        facts = json.loads(facts["__payload__"]) if "__payload__" in facts else facts  # since ansible-core 2.19
        assert settled(facts["tapvirt_kernel"]) == settled(gathered[host]["tapvirt_kernel"])
        assert len(json.dumps(facts["tapvirt_kernel"])) < FACT_BYTES


@pytest.mark.soak
def test_a_run_has_the_same_results_as_one_by_hand(fleet: Fleet, by_hand: list[dict[str, t.Any]]) -> None:
    fleet.run(BY_RUNNER)
    check(fleet.data / "artifacts" / "run", by_hand)


def test_an_execution_node_has_the_same_results(fleet: Fleet, by_hand: list[dict[str, t.Any]]) -> None:
    fleet.run(BY_NODE)
    check(fleet.top / "back" / "artifacts" / "sent", by_hand)
