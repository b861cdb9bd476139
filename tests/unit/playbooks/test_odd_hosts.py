# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that return something else than their modules do: each fails alone, and the summary of all is kept."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.stubs import Stubs, artifact

RETURN = 'return {"changed": False, **told["result"]}'
CONSOLE = """
job = "job-" + host
folder = pathlib.Path(os.environ["ANSIBLE_ASYNC_DIR"])
folder.mkdir(exist_ok=True)
said = {**told["console"], "ansible_job_id": job, "started": 1, "finished": 1}
(folder / job).write_text(json.dumps(said), encoding="utf-8")
return {"changed": False, "ansible_job_id": job, "started": 1, "finished": 0}
"""


def deep(levels: int) -> t.Any:
    value: t.Any = "x"
    for _level in range(levels):
        value = [value]
    return value


def hosts_with(key: str, **results: t.Any) -> dict[str, t.Any]:
    return {host: {"told": {key: result}} for host, result in results.items()}


def test_gather_goes_on_without_hosts_whose_facts_cannot_be_compared(tmp_path: pathlib.Path) -> None:
    fine = {"release": "6.12", "version": "#1", "build_id": "x"}
    kernels = {
        "h1": fine,
        "h2": {**fine, "release": "6.1", "build_id": 7},
        "odd1": 5,
        "odd2": {**fine, "release": deep(90)},
        "odd3": None,
    }
    answers = {host: {"ansible_facts": {"tapvirt_kernel": kernel}} for host, kernel in kernels.items()}
    answers["odd4"] = {}
    done = Stubs(tmp_path, kernel_facts=RETURN).run("gather", hosts_with("result", **answers), "--tags", "drift")
    assert done.returncode == 2
    summary = artifact(done)["gather_summary"]
    assert sorted(row["release"] for row in summary["kernels"]) == ["6.1", "6.12"], done.stdout
    assert sorted(summary["no_answer"]) == ["odd1", "odd2", "odd3", "odd4"]
    assert {row["fact"] for row in summary["drift"]} == {"release", "build_id"}
    output = " ".join((done.stdout + done.stderr).split())
    assert "odd1 is left out: it is 5, not a dictionary" in output
    assert "1 x 6.12 (build-id x): h1" in output and "1 x 6.1 (build-id 7): h2" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("playbook", "module", "fine", "odd"),
    [
        (
            "domains",
            "libvirt_domain",
            {"plan": [{"what": "web state", "before": None, "after": "running"}], "domains": []},
            [
                {"plan": "x"},
                {"plan": [{"before": 1}]},
                {"domains": [{"name": "web", "pending": [5]}]},
                {"domains": {"web": 1}},
            ],
        ),
        (
            "params",
            "kernel_module_param",
            {"plan": [{}], "params": [{"module": "kvm", "name": "x", "changed": True, "before": 1, "wanted": 2}]},
            [
                {"params": "x"},
                {"params": [{"module": 5}]},
                {"params": [{"module": "kvm", "name": "x", "pending": [5]}]},
            ],
        ),
    ],
)
def test_hosts_that_cannot_be_compared_are_named(
    tmp_path: pathlib.Path, playbook: str, module: str, fine: dict[str, t.Any], odd: list[dict[str, t.Any]]
) -> None:
    stubs = Stubs(tmp_path, **{module: RETURN})
    answers = hosts_with("result", h1=fine, **{f"odd{number}": result for number, result in enumerate(odd)})
    wanted: dict[str, dict[str, t.Any]] = {
        "domains": {"domains_wanted": [{"name": "web", "state": "running"}]},
        "params": {"module_params_wanted": [{"module": "kvm", "name": "x", "value": 2}]},
    }
    done = stubs.run(playbook, answers, "--tags", "report", **wanted[playbook])
    assert done.returncode == 2
    drift = artifact(done)[f"{playbook}_drift"]
    assert list(drift["before"]) == ["h1"], done.stdout
    assert sorted(drift["failed"]) == [f"odd{number}" for number in range(len(odd))]
    assert all(
        f"for {playbook}_drift: The input is not a result of {module}: " in why for why in drift["failed"].values()
    ), drift
    assert "Traceback" not in done.stdout + done.stderr


def test_a_host_does_not_choose_a_file_of_the_controller(tmp_path: pathlib.Path) -> None:
    chosen = tmp_path / "chosen by the host"
    lie = {"ansible_facts": {"report_dest": str(chosen), "tapvirt_kernel": {"release": "6"}}}
    stubs = Stubs(tmp_path, kernel_facts=RETURN, stap_host_info='return {"verdict": "ready"}')
    done = stubs.run("report", hosts_with("result", h1=lie))
    assert not chosen.exists()
    output = " ".join((done.stdout + done.stderr).split())
    message = "The value is a fact of this name that the host returned; a host must not choose a file of the controller"
    assert message in output
    done = stubs.run("report", hosts_with("result", h1=lie), report_dest=str(chosen))
    assert done.returncode == 0 and chosen.exists(), "the user's own choice may be that of the fact"


def test_consoles_are_counted_whatever_one_of_them_returned(tmp_path: pathlib.Path) -> None:
    listed = 'return {"domains": [{"name": "web", "state": "running", "console": {"a": 1}}], "truncated": False}'
    stubs = Stubs(tmp_path, libvirt_domain_info=listed, libvirt_console=CONSOLE)
    fine = {"text": "said\n", "bytes": 5, "matched": True}
    odd = [{**fine, "bytes": "7"}, {**fine, "bytes": [], "matched": "x"}, {"msg": ["a"], "failed": True}, {"text": "x"}]
    answers = hosts_with("console", h1=fine, **{f"odd{number}": answer for number, answer in enumerate(odd)})
    done = stubs.run("console_logs", answers, console_logs_seconds=0)
    assert done.returncode == 2
    counts = artifact(done)["console_logs"]
    assert counts["hosts"] == 5 and counts["read"] >= 1, done.stdout
    assert "h1" not in counts["failed"] and {"odd2", "odd3"} <= set(counts["failed"])
    assert "Traceback" not in done.stdout + done.stderr
